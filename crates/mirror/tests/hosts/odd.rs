//! Hosts whose clock is wrong, and hosts that were put back to an older image of themselves.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use testkit::lab::{Skip, in_private_namespace};
use testkit::{need, skip};

use super::node::Node;
use super::readers::Lot;
use super::{FS_MIRROR, MIRRORD};

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// This host's clock, in `faketime`'s words; may be called again while programs run.
fn clock(node: &mut Node, offset: &str) {
    let file = node.path("clock");
    fs::write(node.path("clock.new"), offset).unwrap();
    fs::rename(node.path("clock.new"), &file).unwrap();
    node.env = [
        ("LD_PRELOAD", FAKETIME.to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
        ("FAKETIME_CACHE_DURATION", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("NO_FAKE_STAT", "1".into()),
    ]
    .to_vec();
}

/// Idle lag is none, at both ends; none is ever less than that, or of the size of what the clocks differ by.
fn lag_is_right(web: &Node, backup: &Node) {
    let lag = |status: &serde_json::Value| status["lag"]["seconds"].as_f64();
    let right = |seconds: Option<f64>| seconds.is_none_or(|s| (0.0..3600.0).contains(&s));
    backup.wait("no lag is left", || {
        let (here, there) = (backup.status("www"), web.status("www"));
        let replica = there["replicas"][0].clone();
        for seconds in [lag(&here), lag(&there), lag(&replica)] {
            assert!(right(seconds), "{seconds:?}\n{here}\n{there}");
        }
        here["lag"]["records"] == 0
            && lag(&here).is_some_and(|s| s < 60.0)
            && lag(&replica).is_some_and(|s| s < 60.0)
    });
}

#[test]
fn clocks_that_are_off_or_jump() {
    in_private_namespace("odd::clocks_that_are_off_or_jump", |lab| {
        if !Path::new(FAKETIME).exists() {
            skip!("no faketime");
        }
        let mut lot = need!(Lot::new(lab, &["www"]));
        let src = lot.src("www");
        let mut backup = need!(lot.backup("backup"));
        clock(&mut lot.web, "+1d");
        lot.web.serve();
        // Tokens are of the clock that made them.
        lot.web.lets(&backup);
        lot.web.wait("its clock is another", || {
            let now = lot.web.status("www")["now"].as_str().map(str::to_owned);
            now.is_some_and(|now| now > today(&lot.web))
        });
        backup.follows(&lot.web, "www", "");
        backup.serve();
        backup.equal(&src, "www");
        lag_is_right(&lot.web, &backup);
        for (n, offset) in ["-1d", "+2d", "+0", "-400d", "+1h"].into_iter().enumerate() {
            // While it follows.
            let mut tokens: Vec<String> = (0..10).map(|_| lot.web.token("www")).collect();
            fs::write(src.join(format!("before {n}")), "x").unwrap();
            clock(&mut lot.web, offset);
            for m in 0..20 {
                fs::write(src.join(format!("{n} {m}")), offset).unwrap();
            }
            let _ = fs::remove_file(src.join(format!("before {}", n.wrapping_sub(1))));
            backup.equal(&src, "www");
            lag_is_right(&lot.web, &backup);
            let words = ["wait", "www", "--for", "applied", "--timeout", "60s"];
            let (code, said) = lot.web.try_run(MIRRORD, &words);
            assert_eq!(code, 0, "{said}");
            // A token of before is good no more, whatever way the clock went.
            let address = lot.web.host.address.clone();
            lot.web.wait("its clock is set", || {
                let Some(token) = tokens.pop() else {
                    panic!("{offset}: all tokens are still good");
                };
                let (_, said) = backup.try_run(FS_MIRROR, &["pair", &address, &token]);
                let refused = said.contains("expired") || said.contains("set back");
                if !refused {
                    // The programs look at their clock once a second.
                    std::thread::sleep(std::time::Duration::from_millis(500));
                }
                refused
            });
            // Keys know no time: who comes anew is let in.
            if n % 2 == 0 {
                backup.service = None;
                backup.serve();
            } else {
                lot.web.service = None;
                lot.web.serve();
            }
            fs::write(src.join("again"), offset).unwrap();
            backup.equal(&src, "www");
        }
        assert!(
            !backup.said().contains("compared again"),
            "{}",
            backup.said()
        );
    });
}

/// The tree `www`, as it is, with a service that follows it.
fn backed_up(lot: &mut Lot) -> Result<Node, Skip> {
    lot.web.serve();
    let mut backup = lot.backup("backup")?;
    lot.web.lets(&backup);
    backup.follows(&lot.web, "www", "");
    backup.serve();
    backup.equal(&lot.src("www"), "www");
    Ok(backup)
}

#[test]
fn a_worker_that_stands_still_is_lag() {
    in_private_namespace("odd::a_worker_that_stands_still_is_lag", |lab| {
        let mut lot = need!(Lot::new(lab, &["www"]));
        let src = lot.src("www");
        let backup = need!(backed_up(&mut lot));
        lag_is_right(&lot.web, &backup);
        let pid = lot.web.status("www")["pid"].as_u64().unwrap() as i32;
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        // Its silence counts before it is taken for dead, and does not begin anew when it is.
        let seconds = |status: &serde_json::Value| status["lag"]["seconds"].as_f64().unwrap();
        let mut before = 0.0;
        backup.wait("it is taken for dead", || {
            let status = backup.status("www");
            let dead = status["state"]["is"] == "disconnected";
            if !dead {
                before = seconds(&status);
            }
            assert!(
                !dead || (seconds(&status) >= 14.0 && before >= 7.0),
                "{before} {status}"
            );
            dead
        });
        fs::write(src.join("meanwhile"), "x").unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        backup.equal(&src, "www");
        lag_is_right(&lot.web, &backup);
    });
}

/// The day after tomorrow's midnight is later than a clock that is a day ahead shows; so is now earlier.
fn today(node: &Node) -> String {
    let mut plain = node.host.command("date");
    let output = plain
        .args(["-u", "-d", "+12 hours", "+%FT%T"])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(done.success());
}

/// Puts what was copied in the place of what is there.
fn put_back(image: &Path, place: &Path) {
    fs::remove_dir_all(place).unwrap();
    copy(image, place);
}

#[test]
fn hosts_that_were_put_back_to_an_older_image() {
    in_private_namespace("odd::hosts_that_were_put_back_to_an_older_image", |lab| {
        let mut lot = need!(Lot::new(lab, &["www"]));
        let src = lot.src("www");
        for n in 0..40 {
            fs::create_dir(src.join(format!("dir {n}"))).unwrap();
            fs::write(src.join(format!("dir {n}/file")), n.to_string()).unwrap();
        }
        let mut backup = need!(backed_up(&mut lot));
        let inodes = |backup: &Node| -> Vec<u64> {
            let file = |n| backup.path(&format!("www/dir {n}/file"));
            (0..40)
                .map(|n| fs::metadata(file(n)).unwrap().ino())
                .collect()
        };
        let idle = |backup: &Node| {
            let at = backup.path("www").display().to_string();
            backup.wait("nothing is left to do", || {
                backup
                    .try_run(
                        FS_MIRROR,
                        &["wait", "--idle", "-m", &at, "--timeout", "10s"],
                    )
                    .0
                    == 0
            });
        };
        idle(&backup);

        // The worker's state is older than what the backup has: two histories from one position, and nobody says why.
        lot.web.stop();
        let state = lot.web.path("state");
        copy(&state, &lot.base.join("image"));
        lot.web.serve();
        for n in 0..10 {
            fs::write(src.join(format!("of the first history {n}")), "x").unwrap();
        }
        backup.equal(&src, "www");
        idle(&backup);
        let before = inodes(&backup);
        lot.web.stop();
        put_back(&lot.base.join("image"), &state);
        fs::remove_file(src.join("of the first history 0")).unwrap();
        fs::write(src.join("of the second history"), "x").unwrap();
        lot.web.serve();
        fs::write(src.join("and another"), "x").unwrap();
        backup.equal(&src, "www");
        idle(&backup);
        backup.wait("the fork is told", || {
            backup.said().contains("unexplained fork")
        });
        let status = backup.status("www");
        assert_eq!(
            status["forks"].as_array().map(Vec::len),
            Some(1),
            "{status}"
        );
        assert_eq!(inodes(&backup), before, "what did not differ was made anew");

        // The backup's state is older than its own copy.
        backup.stop();
        let state = backup.path("www.fs_mirror");
        copy(&state, &lot.base.join("image of the backup"));
        backup.serve();
        for n in 0..10 {
            fs::write(src.join(format!("while the image is old {n}")), "x").unwrap();
        }
        fs::remove_file(src.join("and another")).unwrap();
        fs::rename(src.join("dir 1"), src.join("moved")).unwrap();
        fs::rename(src.join("moved"), src.join("dir 1")).unwrap();
        backup.equal(&src, "www");
        idle(&backup);
        let before = inodes(&backup);
        backup.stop();
        put_back(&lot.base.join("image of the backup"), &state);
        backup.serve();
        backup.equal(&src, "www");
        idle(&backup);
        fs::write(src.join("in the end"), "x").unwrap();
        backup.equal(&src, "www");
        assert_eq!(inodes(&backup), before, "what did not differ was made anew");
    });
}
