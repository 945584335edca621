//! The rolling verify: what was changed by hand in the copy is found without being asked for, told, and put right.

mod common;
mod ssh_support;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use testkit::compare::{Options, compare};
use testkit::proc::wait_until;
use testkit::workload;

use common::{DEADLINE, Mirror, mirror_arguments, run};

fn fill(src: &Path) {
    for dir in ["a", "b", "b/below", "c"] {
        fs::create_dir_all(src.join(dir)).unwrap();
        for n in 0..10 {
            fs::write(src.join(format!("{dir}/{n}")), format!("{dir} {n}")).unwrap();
        }
    }
}

/// Everything that a hand may do.
fn change(dst: &Path) {
    fs::write(dst.join("extra"), "by hand").unwrap();
    fs::create_dir_all(dst.join("b/below/more/of it")).unwrap();
    fs::write(dst.join("b/below/more/of it/x"), "by hand").unwrap();
    fs::remove_file(dst.join("a/3")).unwrap();
    fs::remove_dir_all(dst.join("c")).unwrap();
    fs::set_permissions(dst.join("a/4"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(dst.join("a/5"), "longer than it was").unwrap();
    // What only the bytes tell.
    let path = dst.join("b/below/6");
    let mtime = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "b/below X").unwrap();
    File::open(&path).unwrap().set_modified(mtime).unwrap();
    let bytes = fs::read(dst.join("b/7")).unwrap();
    fs::remove_file(dst.join("b/7")).unwrap();
    fs::create_dir(dst.join("b/7")).unwrap();
    fs::write(dst.join("b/7/in it"), bytes).unwrap();
}

fn kept(state: &Path) -> Vec<Vec<u8>> {
    let mut contents = Vec::new();
    let mut dirs = vec![state.join("adopted")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => dirs.push(path),
                false => contents.push(fs::read(path).unwrap()),
            }
        }
    }
    contents
}

#[test]
fn what_a_hand_changed_is_found_and_put_right() {
    let place = tempfile::tempdir().unwrap();
    let (src, dst) = (place.path().join("src"), place.path().join("dst"));
    fill(&src);
    let mut mirror = Mirror::start_with(&src, &dst, &["--verify-every", "1s"]);
    mirror.must_be_equal();
    // Not while it looks: what is half done would be repaired.
    assert_eq!(mirror.ask(&["pause"]).code, 0);
    change(&dst);
    assert_eq!(mirror.ask(&["resume"]).code, 0);
    wait_until("it is repaired", DEADLINE, || {
        compare(&src, &dst, &Options::default()).is_empty()
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", mirror.program.stderr()));
    let kept = kept(&place.path().join("dst.fs_mirror"));
    for by_hand in ["by hand", "longer than it was", "b/below X", "b 7"] {
        assert!(
            kept.iter().any(|bytes| bytes == by_hand.as_bytes()),
            "{by_hand} is not kept"
        );
    }
    wait_until("it is counted", DEADLINE, || {
        mirror.number("rolling/repaired") >= 8 && mirror.number("aside/entries") >= 4
    })
    .unwrap();
    assert!(mirror.number("counters/repaired") >= 8);
    assert_eq!(mirror.number("failed_total"), 0);
    let said = mirror.program.stderr();
    assert!(
        said.contains("extra was changed by hand in the copy (extra): repaired"),
        "{said}"
    );
    let status = mirror.ask(&["status"]).stdout;
    assert!(
        status.contains("looked at") && status.contains("adopted --empty"),
        "{status}"
    );
    mirror.must_be_equal();
    // Whoever does it again and again is told of, and left to a person.
    wait_until("it is done again and again", DEADLINE, || {
        fs::write(dst.join("extra"), "by hand").unwrap();
        mirror.number("failed_total") > 0
    })
    .unwrap();
    let said = mirror.program.stderr();
    assert!(said.contains(", once more: "), "{said}");
    assert_eq!(mirror.ask(&["verify", "--repair"]).code, 0);
    mirror.must_be_equal();
    assert_eq!(mirror.stop(), 0);
}

#[test]
fn very_much_is_told_and_left() {
    let place = tempfile::tempdir().unwrap();
    let (src, dst) = (place.path().join("src"), place.path().join("dst"));
    fill(&src);
    fs::create_dir(src.join("many")).unwrap();
    for n in 0..10_001 {
        File::create(src.join(format!("many/{n}"))).unwrap();
    }
    let mut mirror = Mirror::start_with(&src, &dst, &["--verify-every", "2s"]);
    mirror.must_be_equal();
    fs::rename(dst.join("many"), place.path().join("many")).unwrap();
    wait_until("it is told", DEADLINE, || {
        mirror.number("failed_total") == 1
    })
    .unwrap();
    let check = mirror.ask(&["check"]);
    assert!(
        check.code == 1 && check.stdout.contains("many: verify found: missing"),
        "{check:?}"
    );
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(mirror.number("failed_total"), 1, "once, in each pass");
    assert!(!dst.join("many").exists());
    assert_eq!(mirror.ask(&["verify", "--repair"]).code, 0);
    mirror.must_be_equal();
    assert_eq!(mirror.ask(&["check"]).code, 0);
    assert_eq!(mirror.stop(), 0);
}

#[test]
fn never_means_never() {
    let place = tempfile::tempdir().unwrap();
    let (src, dst) = (place.path().join("src"), place.path().join("dst"));
    fill(&src);
    let mut mirror = Mirror::start_with(&src, &dst, &["--verify-every", "0"]);
    mirror.must_be_equal();
    fs::write(dst.join("extra"), "by hand").unwrap();
    let shown = mirror.ask(&["config", "show"]);
    assert!(
        shown.stdout.contains("verify_every = \"never\""),
        "{shown:?}"
    );
    std::thread::sleep(Duration::from_secs(2));
    assert!(dst.join("extra").exists());
    assert_eq!(mirror.stop(), 0);
    // By itself it is not due for a day.
    let mut mirror = Mirror::start_with(&src, &dst, &["--verify-every", "24h"]);
    assert_eq!(mirror.wait_idle().code, 0);
    std::thread::sleep(Duration::from_secs(2));
    assert!(dst.join("extra").exists());
    assert_eq!(mirror.stop(), 0);
}

/// What changes while it looks is no finding.
#[test]
fn changes_that_are_applied_are_not_mistaken() {
    let place = tempfile::tempdir().unwrap();
    let (src, dst) = (place.path().join("src"), place.path().join("dst"));
    fs::create_dir(&src).unwrap();
    let mut params = workload::Params {
        seed: 0x5011,
        ops: 300,
        flags: testkit::is_root(),
        ..Default::default()
    };
    workload::run(&src, &params).unwrap();
    let options = ["--verify-every", "1s", "--on-mass-change", "follow"];
    let mut mirror = Mirror::start_with(&src, &dst, &options);
    mirror.must_be_equal();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(12) {
        params.seed += 1;
        params.ops = 60;
        workload::run(&src, &params).unwrap();
        std::thread::sleep(Duration::from_millis(30));
    }
    mirror.must_be_equal();
    wait_until("all was looked at", DEADLINE, || {
        !mirror
            .ask(&["status", "--json"])
            .stdout
            .contains("\"last_full\":null")
    })
    .unwrap();
    assert_eq!(
        mirror.number("rolling/found"),
        0,
        "{}",
        mirror.program.stderr()
    );
    assert_eq!(mirror.stop(), 0);
}

#[test]
fn over_ssh_too() {
    use ssh_support::{Bed, LONG, stop};
    let bed = Bed::new();
    fill(&bed.src());
    let mut follower = bed.mirror(&["--verify-every", "1s"]);
    follower.wait_stderr("equal: ", LONG).unwrap();
    assert_eq!(bed.command(&["pause"]).0, 0);
    change(&bed.dst());
    assert_eq!(bed.command(&["resume"]).0, 0);
    bed.wait("it is repaired", || {
        compare(&bed.src(), &bed.dst(), &Options::default()).is_empty()
    });
    stop(follower);
}

#[test]
fn what_a_stopped_mirror_s_verify_found_is_known_afterwards() {
    let place = tempfile::tempdir().unwrap();
    let (src, dst) = (place.path().join("src"), place.path().join("dst"));
    fill(&src);
    let once = |code: i32| {
        let ran = run(mirror_arguments(&src, &dst, &["--once"]));
        assert_eq!(ran.code, code, "{ran:?}");
    };
    let ask = |words: &[&str]| {
        let mut arguments = words.to_vec();
        let dst = dst.to_str().unwrap();
        arguments.extend(["-m", dst]);
        run(arguments)
    };
    once(0);
    fs::write(dst.join("a/1"), "by hand").unwrap();
    let found = ask(&["verify", "--against", "index"]);
    assert_eq!(found.code, 3, "{found:?}");
    let status = ask(&["status"]);
    assert!(
        status.stdout.contains("a/1: verify found: content"),
        "{status:?}"
    );
    once(3);
    assert_eq!(ask(&["verify", "--repair"]).code, 0);
    assert_eq!(ask(&["verify", "--against", "index"]).code, 0);
    once(0);
    assert!(!ask(&["status"]).stdout.contains("verify found"));
}
