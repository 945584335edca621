//! Two processes race over a tree while it is mirrored; then the copy equals it. Seeded; `SEED=n` runs that one alone,
//! `SEEDS=n` more of them.

mod common;

use std::os::unix::fs::PermissionsExt;

use testkit::lab::{self, Lab, QueueLimit};
use testkit::{Fs, workload};

use common::{Mirror, took};

/// The seeds a test runs: its own, or what the environment says.
fn seeds(first: u64, usual: u64) -> std::ops::Range<u64> {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    match (number("SEED"), number("SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => first..first + count.unwrap_or(usual),
    }
}

struct Race {
    seed: u64,
    ops: u64,
    /// Of the kernel's queue.
    limit: Option<u32>,
    detector: &'static str,
}

fn race(lab: &Lab, fs: Fs, race: &Race) {
    let Race {
        seed,
        ops,
        limit,
        detector,
    } = *race;
    let _took = took(format!("seed {seed} on {}", fs.name()));
    let image = testkit::need!(lab.image(fs, 512));
    let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
    let outside = image.dir("outside").unwrap();
    let params = workload::Params {
        seed,
        ops,
        // Of what is written through a name outside inotify hears nothing.
        outside: (detector != "inotify").then_some(outside),
        ..Default::default()
    };
    let guard = limit.map(|limit| testkit::lab::QueueLimit::set(limit).unwrap());
    let mut mirror = Mirror::start_with(
        &src,
        &dst,
        &["--on-mass-change", "follow", "--detector", detector],
    );
    mirror.watching();
    drop(guard);
    let churn = workload::start(&src, &params, 2).unwrap();
    churn.wait().unwrap();
    println!("seed {seed} on {}:", fs.name());
    mirror.must_be_equal();
    let overflows = mirror.number("counters/overflows");
    assert!(
        limit.is_none() || overflows > 0,
        "the queue never overflowed"
    );
    let more = workload::Params {
        seed: seed + 1000,
        ops: ops / 4,
        ..params
    };
    workload::start(&src, &more, 2).unwrap().wait().unwrap();
    mirror.must_be_equal();
    assert_eq!(mirror.stop(), 0);
    // The index that a restart starts from is as good as the copy.
    let mut mirror = Mirror::start(&src, &dst);
    mirror.must_be_equal();
    assert_eq!(mirror.stop(), 0);
    println!("seed {seed}: {overflows} overflows");
}

fn races(lab: &Lab, fs: Fs, first: u64, usual: u64, limit: Option<u32>, detector: &'static str) {
    for seed in seeds(first, usual) {
        let ops = if limit.is_some() { 2500 } else { 1500 };
        race(
            lab,
            fs,
            &Race {
                seed,
                ops,
                limit,
                detector,
            },
        );
    }
}

#[test]
fn race_on_ext4() {
    lab::in_private_namespace("race_on_ext4", |lab| {
        races(lab, Fs::Ext4, 1, 3, None, "auto")
    });
}
#[test]
fn race_on_ext4_with_overflows() {
    if let Err(reason) = QueueLimit::set(40) {
        testkit::skip!("{reason}");
    }
    lab::in_private_namespace("race_on_ext4_with_overflows", |lab| {
        races(lab, Fs::Ext4, 11, 2, Some(40), "auto")
    });
}
#[test]
fn race_on_xfs() {
    lab::in_private_namespace("race_on_xfs", |lab| {
        races(lab, Fs::Xfs, 21, 1, None, "auto")
    });
}
#[test]
fn race_on_btrfs() {
    lab::in_private_namespace("race_on_btrfs", |lab| {
        races(lab, Fs::Btrfs, 31, 1, None, "auto")
    });
}
#[test]
fn race_on_xfs_and_btrfs_with_overflows() {
    if let Err(reason) = QueueLimit::set(40) {
        testkit::skip!("{reason}");
    }
    lab::in_private_namespace("race_on_xfs_and_btrfs_with_overflows", |lab| {
        races(lab, Fs::Xfs, 41, 1, Some(40), "auto");
        races(lab, Fs::Btrfs, 42, 1, Some(40), "auto");
    });
}
#[test]
fn race_under_inotify() {
    lab::in_private_namespace("race_under_inotify", |lab| {
        races(lab, Fs::Ext4, 51, 1, None, "inotify");
    });
}

/// Each is told by one event of its own: nothing else leads there.
#[test]
fn each_of_many_single_changes_arrives() {
    lab::in_private_namespace("each_of_many_single_changes_arrives", |lab| {
        let image = testkit::need!(lab.ext4(256));
        let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
        let files: Vec<_> = (0..4000).map(|n| src.join(format!("{n}"))).collect();
        for file in &files {
            std::fs::write(file, "x").unwrap();
        }
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_be_equal();
        for file in &files {
            std::fs::set_permissions(file, PermissionsExt::from_mode(0o640)).unwrap();
        }
        mirror.must_be_equal();
        assert_eq!(mirror.number("counters/overflows"), 0);
    });
}

#[cfg(feature = "planted")]
#[test]
fn planted_defects_are_caught() {
    common::caught(&[
        ("drop_a_hint", "each_of_many_single_changes_arrives"),
        ("ignore_overflow", "race_on_ext4_with_overflows"),
    ]);
}
