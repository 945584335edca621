//! Somebody may change names in a directory of the copy: nothing of theirs ever gets what was meant for ours.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::sys::{Errno, open, stat, target};

const THEIRS: u32 = 65_534;
const TOOLS: usize = 8;

/// Trades names with tools of the copy until told to stop; returns all files it ever made.
fn attack(dir: &OwnedFd, seed: u64, stop: &AtomicBool) -> Vec<OwnedFd> {
    let mut random = super::same::Random(seed);
    let mut made = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let n = random.below(TOOLS as u64);
        let (tool, evil) = (format!("tool{n}"), format!("evil{n}"));
        if stat::statx(dir, evil.as_bytes()) == Err(Errno::NOENT) {
            let file = target::create_file(dir, evil.as_bytes()).unwrap();
            rustix::io::write(&file, b"#!/bin/evil").unwrap();
            target::set_mode(&file, b"", 0o755).unwrap();
            target::set_owner(&file, b"", THEIRS, THEIRS).unwrap();
            made.push(file);
        }
        for _ in 0..2 {
            let _ = target::exchange(dir, evil.as_bytes(), dir, tool.as_bytes());
            std::thread::sleep(Duration::from_micros(random.below(60)));
        }
    }
    made
}

#[test]
fn names_traded_by_somebody_give_no_rights() {
    if !testkit::is_root() {
        return println!("skipped: not root");
    }
    let seed = std::env::var("ATTACK_SEED").map_or(7, |seed| seed.parse().unwrap());
    let seconds = std::env::var("ATTACK_SECONDS").map_or(3, |n| n.parse().unwrap());
    println!("ATTACK_SEED={seed}");
    let mut pair = pair_with(Options {
        flush: Flush::Never,
        ..Options::default()
    });
    pair.mkdir("home");
    std::os::unix::fs::chown(pair.src("home"), Some(THEIRS), Some(THEIRS)).unwrap();
    let tools: Vec<PathBuf> = (0..TOOLS)
        .map(|n| pair.src(&format!("home/tool{n}")))
        .collect();
    let chmod = |mode| {
        for tool in &tools {
            std::fs::set_permissions(tool, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    tools
        .iter()
        .for_each(|tool| std::fs::write(tool, b"tool").unwrap());
    chmod(0o4755);
    pair.sync();
    let home = open::dir_at_path(&pair.in_dst("home")).unwrap();
    let stop = AtomicBool::new(false);
    let (made, rounds) = std::thread::scope(|scope| {
        let attacker = scope.spawn(|| attack(&home, seed, &stop));
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut rounds = 0;
        while Instant::now() < until && rounds < 2000 {
            rounds += 1;
            chmod(if rounds % 2 == 0 { 0o4755 } else { 0o4711 });
            let records = pair.source.look();
            let Pair {
                applier, source, ..
            } = &mut pair;
            // What fails because of the attack is tried again.
            let applier = applier.as_mut().unwrap();
            let applied = applier.apply(&records, Digest([0; 32]), &source.contents);
            if let Err(e) = applied {
                stop.store(true, Ordering::Relaxed);
                panic!("{e:?}");
            }
        }
        stop.store(true, Ordering::Relaxed);
        (attacker.join().unwrap(), rounds)
    });
    println!("{rounds} rounds, {} files of theirs", made.len());
    for file in &made {
        let stat = stat::fstat(file).unwrap();
        assert_eq!(
            (stat.uid, stat.gid, stat.permissions()),
            (THEIRS, THEIRS, 0o755),
            "one of theirs got what was meant for a tool"
        );
    }
    // And it all heals when they stop.
    for _ in 0..3 {
        let mut found = Vec::new();
        pair.applier().verify(true, &mut |d| found.push(d)).unwrap();
        let Pair {
            applier, source, ..
        } = &mut pair;
        let applier = applier.as_mut().unwrap();
        applier.repair(&found, &source.contents).unwrap();
    }
    let failed = pair.applier().failed();
    assert!(failed.is_empty(), "{failed:#?}");
    pair.check();
}

/// Another inode with the same bytes under a known name: it takes the place of the one that was there, in the rows too.
#[test]
fn an_equal_file_put_there_by_hand_is_taken_over() {
    let mut pair = pair();
    for name in ["file", "linked"] {
        pair.write(name, b"content");
    }
    std::fs::hard_link(pair.src("linked"), pair.src("link")).unwrap();
    pair.sync();
    for name in ["file", "linked"] {
        std::fs::copy(pair.in_dst(name), pair.in_dst("other")).unwrap();
        std::fs::rename(pair.in_dst("other"), pair.in_dst(name)).unwrap();
        std::fs::set_permissions(pair.src(name), std::fs::Permissions::from_mode(0o640)).unwrap();
    }
    pair.sync();
}

/// Trades a directory of the copy for a symlink that leads out, and back, as fast as it goes.
fn flip(dst: &std::path::Path, out: &std::path::Path, stop: &AtomicBool) -> u64 {
    let (at, away) = (dst.join("home"), dst.join("home.away"));
    let (mut flips, mut graves) = (0, 0u64);
    while !stop.load(Ordering::Relaxed) {
        if std::fs::rename(&at, &away).is_ok() {
            let _ = std::os::unix::fs::symlink(out, &at);
            flips += 1;
            if flips % 7 == 0 {
                std::thread::sleep(Duration::from_micros(flips % 300));
            }
            let _ = std::fs::remove_file(&at);
            let _ = std::fs::rename(&away, &at);
        } else {
            // It was made anew meanwhile: with that one, then.
            graves += 1;
            let _ = std::fs::rename(&away, dst.with_extension(format!("grave{graves}")));
            std::thread::yield_now();
        }
    }
    let _ = std::fs::rename(&away, &at);
    flips
}

#[test]
fn a_directory_that_becomes_a_symlink_under_our_hands_leads_nowhere() {
    let seconds = std::env::var("ATTACK_SECONDS").map_or(3, |n| n.parse().unwrap());
    let mut pair = pair_with(Options {
        flush: Flush::Never,
        ..Options::default()
    });
    // Names as in the copy: whoever follows the link finds them there.
    let out = tempfile::tempdir().unwrap();
    for base in [out.path().to_path_buf(), pair.src("home")] {
        std::fs::create_dir_all(base.join("sub")).unwrap();
        for name in ["f", "sub/f", "g"] {
            std::fs::write(base.join(name), b"as it was").unwrap();
        }
    }
    pair.sync();
    let before = super::hostile::canary(out.path());
    let stop = AtomicBool::new(false);
    let (dst, out_path) = (pair.dst.clone(), out.path().to_path_buf());
    let (flips, rounds, failed) = std::thread::scope(|scope| {
        let attacker = scope.spawn(|| flip(&dst, &out_path, &stop));
        let until = Instant::now() + Duration::from_secs(seconds);
        let (mut rounds, mut failed) = (0u64, 0);
        while Instant::now() < until || rounds < 20 {
            rounds += 1;
            let text = format!("round {rounds}");
            pair.write("home/f", text.as_bytes());
            pair.write("home/sub/f", text.as_bytes());
            let mode = if rounds % 2 == 0 { 0o666 } else { 0o600 };
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(pair.src("home/g"), mode).unwrap();
            let (here, there) = ("home/new", "home/sub/new");
            match rounds % 3 {
                0 => pair.write(here, b"new"),
                1 if pair.src(here).exists() => pair.mv(here, there),
                _ if pair.src(there).exists() => pair.rm(there),
                _ => {}
            }
            let records = pair.source.look();
            let Pair {
                applier, source, ..
            } = &mut pair;
            let applier = applier.as_mut().unwrap();
            match applier.apply(&records, Digest([0; 32]), &source.contents) {
                Ok(outcome) => failed += outcome.failed.len(),
                Err(e) => {
                    stop.store(true, Ordering::Relaxed);
                    panic!("{e:?}");
                }
            }
            if rounds % 20 == 0 {
                applier.retry(&source.contents).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        (attacker.join().unwrap(), rounds, failed)
    });
    println!("{rounds} rounds, {flips} flips, {failed} failures");
    assert_eq!(super::hostile::canary(out.path()), before);
    assert!(flips > 10);
}
