//! The mirror over ssh under faults: each of the three processes killed at any moment, and a link that comes and goes.

mod ssh_support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use ssh_support::*;
use testkit::workload;

/// Random work removes much of a small tree at once.
const FOLLOW: [&str; 2] = ["--on-mass-change", "follow"];

/// Everyday changes of all kinds, the same for the same seed.
fn churn(bed: &Bed, seed: u64) {
    let live = bed.src().join("live");
    fs::create_dir_all(&live).unwrap();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..250 {
        let dir = live.join(format!("d{}", random(6)));
        let file = dir.join(format!("f{}", random(12)));
        let other = live.join(format!("d{}/f{}", random(6), random(12)));
        let _ = fs::create_dir(&dir);
        let bytes = vec![random(256) as u8; random(3) as usize * 40_000 + random(5000) as usize];
        // What can't be done just now is not done.
        let _ = match random(12) {
            0..=3 => fs::write(&file, &bytes),
            4 => fs::OpenOptions::new()
                .append(true)
                .open(&file)
                .and_then(|mut to| to.write_all(&bytes)),
            5 | 6 => fs::rename(&file, &other),
            7 => fs::remove_file(&file),
            8 => fs::rename(&dir, live.join(format!("d{}", random(6)))),
            9 => fs::hard_link(&file, &other),
            10 => symlink("../somewhere", &file),
            _ => fs::set_permissions(&file, fs::Permissions::from_mode(0o600 + random(64) as u32)),
        };
    }
}

#[test]
fn the_follower_is_killed_at_any_moment() {
    let bed = Bed::new();
    bed.populate(600, 11);
    for (n, ms) in [150, 400, 700, 1000, 1500].into_iter().enumerate() {
        let mut follower = bed.mirror(&FOLLOW);
        std::thread::sleep(Duration::from_millis(ms));
        follower.kill().unwrap();
        churn(&bed, n as u64);
    }
    let follower = bed.mirror(&FOLLOW);
    bed.equal();
    stop(follower);
    assert_eq!(bed.daemons().len(), 1, "capture went on all the time");
}

#[test]
fn the_link_is_killed_and_comes_back() {
    let bed = Bed::new();
    bed.populate(300, 12);
    let mut follower = bed.mirror(&FOLLOW);
    follower.wait_stderr("equal: ", LONG).unwrap();
    let daemon = bed.daemons();
    for n in 0..3 {
        kill9(bed.far_end());
        churn(&bed, 20 + n);
        bed.equal();
    }
    assert_eq!(bed.daemons(), daemon, "capture outlives the link");
    let said = stop(follower);
    assert!(
        said.contains("disconnected: the link to far broke"),
        "{said}"
    );
}

#[test]
fn the_link_is_killed_while_the_first_copy_runs() {
    let bed = Bed::new();
    bed.populate(1500, 13);
    fs::write(bed.src().join("large"), vec![9u8; 20 << 20]).unwrap();
    let mut follower = bed.mirror(&["--bwlimit", "8M", "--on-mass-change", "follow"]);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(900));
        kill9(bed.far_end());
    }
    follower.wait_stderr("equal: ", LONG).unwrap();
    bed.equal();
    stop(follower);
}

#[test]
fn the_worker_is_killed_and_captures_again() {
    let bed = Bed::new();
    bed.populate(400, 14);
    let mut follower = bed.mirror(&FOLLOW);
    follower.wait_stderr("equal: ", LONG).unwrap();
    for n in 0..3 {
        let daemons = bed.daemons();
        assert_eq!(daemons.len(), 1);
        churn(&bed, 40 + n);
        kill9(daemons[0]);
        churn(&bed, 50 + n);
        bed.equal();
        bed.wait("another daemon", || {
            let now = bed.daemons();
            now.len() == 1 && now != daemons
        });
    }
    stop(follower);
}

#[test]
fn the_worker_is_killed_while_the_first_copy_runs() {
    let bed = Bed::new();
    bed.populate(1500, 15);
    let mut follower = bed.mirror(&FOLLOW);
    for _ in 0..2 {
        bed.wait("a daemon", || !bed.daemons().is_empty());
        std::thread::sleep(Duration::from_millis(500));
        for pid in bed.daemons() {
            kill9(pid);
        }
    }
    follower.wait_stderr("equal: ", LONG).unwrap();
    bed.equal();
    stop(follower);
}

#[test]
fn a_link_that_falls_silent_is_dead_after_the_timeout() {
    let bed = Bed::new();
    fs::write(bed.src().join("a"), "1").unwrap();
    let mut follower = bed.mirror(&["--timeout", "2s"]);
    follower.wait_stderr("equal: ", LONG).unwrap();
    let frozen = bed.far_end();
    signal(frozen, Signal::STOP);
    fs::write(bed.src().join("b"), "2").unwrap();
    follower
        .wait_stderr("said nothing for 2 s", Duration::from_secs(20))
        .unwrap();
    bed.equal();
    kill9(frozen);
    stop(follower);
}

/// Of the one segment below this state so many eighths are left, its header besides.
fn cut_log(state: &Path, eighths: u64) {
    let mut segments = fs::read_dir(state.join("log")).unwrap();
    let segment = segments.next().unwrap().unwrap().path();
    assert!(segments.next().is_none());
    let file = fs::File::options().write(true).open(&segment).unwrap();
    let records = file.metadata().unwrap().len() - 128;
    file.set_len(128 + records * eighths / 8).unwrap();
}

#[test]
fn a_log_that_lost_its_end_is_compared_anew_on_either_side() {
    let bed = Bed::new();
    bed.populate(60, 17);
    assert_eq!(bed.mirror_once(&FOLLOW).0, 0);
    for eighths in [0, 1, 3, 5, 7] {
        // A log begun anew holds only what came after.
        for n in 0..20 {
            fs::write(bed.src().join(format!("{eighths}.{n}")), "").unwrap();
        }
        assert_eq!(bed.mirror_once(&FOLLOW).0, 0);
        fs::write(bed.src().join("a"), eighths.to_string()).unwrap();
        cut_log(&bed.path("dst.fs_mirror"), eighths);
        let (code, said) = bed.mirror_once(&FOLLOW);
        assert!(
            code == 0
                && said.contains("the log is damaged: the copy's index stands at ")
                && said.contains(". All is compared again, "),
            "{eighths}: {said}"
        );
        assert!(!said.contains("never acknowledged"), "{said}");
        bed.equal();
    }
    for eighths in [3, 6] {
        for pid in bed.daemons() {
            signal(pid, Signal::TERM);
        }
        bed.wait("the daemon ends", || bed.daemons().is_empty());
        let states: Vec<_> = fs::read_dir(bed.states()).unwrap().flatten().collect();
        let state = states
            .iter()
            .map(|entry| entry.path())
            .find(|path| path.join("log").is_dir())
            .unwrap();
        cut_log(&state, eighths);
        fs::write(bed.src().join("b"), eighths.to_string()).unwrap();
        let (code, said) = bed.mirror_once(&FOLLOW);
        assert!(
            code == 0
                && said.contains("has another history")
                && said.contains(". All is compared again, "),
            "{eighths}: {said}"
        );
        bed.equal();
        let told = fs::read_to_string(state.join("daemon.log")).unwrap();
        assert!(!told.contains("never acknowledged"), "{told}");
    }
}

#[test]
fn a_random_workload_of_two_processes_ends_equal() {
    let bed = Bed::new();
    bed.populate(200, 16);
    let mut follower = bed.mirror(&FOLLOW);
    follower.wait_stderr("equal: ", LONG).unwrap();
    let seed = 77;
    eprintln!("seed {seed}");
    let params = workload::Params {
        seed,
        ops: 3000,
        existing: true,
        ..workload::Params::default()
    };
    std::thread::scope(|scope| {
        for n in 0..2 {
            let (bed, params) = (
                &bed,
                workload::Params {
                    seed: seed + n,
                    ..params.clone()
                },
            );
            scope.spawn(move || {
                let _ = workload::run(&bed.src(), &params);
            });
        }
    });
    let (code, said) = bed.command(&["wait", "--idle", "--timeout", "60s"]);
    assert!(code == 0 || code == 3, "{said}");
    bed.equal();
    stop(follower);
}
