//! What a worker writes for people: told, but nothing in it is obeyed, and not without end.

use std::time::Duration;

use mirror::link::message::{self as say, Message};

use crate::ssh_support::made_up::*;
use crate::ssh_support::*;
use crate::trial::*;

const EVIL: &str = "\\u001b[2J\\u001b]0;owned\\u0007\\r\\n\\u009b31m\\u202egpj.exe\\u0000";

fn evil_report(n: u64) -> Message {
    let most = u64::MAX;
    let since = "\"2026-11-22T18:04:00Z\"";
    let failed = format!(
        "{{\"path\":\"p{EVIL}\",\"reason\":\"r{EVIL}\",\"since\":{since},\"tries\":{most}}}"
    );
    let hold = match n % 2 {
        0 => "null".into(),
        _ => format!(
            "{{\"reason\":\"mass_change\",\"since\":{since},\"what\":\"w{EVIL}\",\"gone\":{most},\"of\":{most},\"below\":\"b{EVIL}\"}}"
        ),
    };
    let notices: Vec<String> = (0..20)
        .map(|_| format!("\"n{EVIL}{}\"", "x".repeat(2000)))
        .collect();
    let json = format!(
        "{{\"scans\":{most},\"entries\":{most},\"files\":{most},\"bytes\":{most},\"failed_total\":{most},\"fuzzy_total\":{most},\
         \"fuzzy\":[\"f{EVIL}\"],\"held_gone\":{most},\"read_bytes\":{most},\"behind_since_ns\":{most},\
         \"notices\":[{}],\"notices_total\":{},\"failed\":[{failed}],\"not_mirrored\":[\"m{EVIL}\"],\"hold\":{hold},\
         \"detector\":{{\"uses\":\"scan\",\"why\":\"y{EVIL}\"}},\
         \"counters\":{{\"overflows\":{most},\"scan_corrections\":{most},\"torn_reads\":{most},\"fuzzy\":{most},\"proven\":{most},\
         \"adopted\":{most},\"moved_aside\":{most},\"repaired\":{most}}},\
         \"last_change\":{{\"at\":{since},\"path\":\"l{EVIL}\"}}}}",
        notices.join(","),
        n * 20,
    );
    say::Report { json }.into()
}

#[test]
fn what_it_writes_for_people_is_told_in_bounded_lines_that_no_terminal_obeys() {
    let trial = Trial::new();
    let evil: String = serde_json::from_str(&format!("\"{EVIL}\"")).unwrap();
    let Message::Welcome(mut hello) = welcome() else {
        unreachable!("it is a greeting");
    };
    hello.program = format!("p{evil}");
    hello.path = format!("/x{evil}").into_bytes();
    hello.host = format!("h{evil}");
    hello.why = format!("w{evil}");
    let mut chain = Chain::new();
    chain.create(
        mirror_core::ObjectId::ROOT,
        b"d",
        mirror_core::Kind::Dir,
        mode(0o755),
    );
    let said = [vec![hello.into(), report()], records_of(&chain.bytes)].concat();
    let said = [said, (0..200).map(evil_report).collect()].concat();
    worker_to(&trial.bed, (&said, 2), (&said, 2), "ANSWERS");
    let mut follower = trial.bed.mirror(&["--timeout", "3s"]);
    let found = follower.wait_stderr("n\u{fffd}", LONG);
    assert!(found.is_ok(), "{}", follower.stderr());
    trial.bed.wait("all of it came", || {
        let (_, status) = trial.bed.command(&["status", "--json"]);
        trial.is_well(&status);
        status.contains("18446744073709551615")
    });
    for words in [
        &["status"][..],
        &["status", "-v"],
        &["check"],
        &["wait", "--timeout", "1s"],
    ] {
        let (_, text) = trial.bed.command(words);
        trial.is_well(&text);
    }
    assert!(follower.ended().unwrap().is_none(), "{}", follower.stderr());
    let text = follower.stderr();
    trial.is_well(&text);
    let told = text.lines().count();
    assert!(told < 150, "{told} lines\n{text}");
    assert!(
        text.lines().all(|line| line.chars().count() < 1500),
        "{text}"
    );
    let status = follower.stop(Duration::from_secs(20)).unwrap();
    assert!(status.code().is_some(), "{}", follower.stderr());
    // A refusal, too.
    let reason = format!("no{evil}{}", "x".repeat(500_000));
    let refused = say::Refused { cause: 0, reason };
    worker(&trial.bed, &[refused.into(), report()], "BEATS");
    let came = trial.run(&[]);
    assert!(
        came.code != 0 && came.said.contains("far: no"),
        "{}",
        came.said
    );
    assert!(came.said.len() < 8000, "{}", came.said.len());
}
