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

/// Processes that write all the time, faster than anybody can look. Ended when it is dropped.
struct Restless(Vec<std::process::Child>);

impl Restless {
    fn start(tree: &std::path::Path) -> Restless {
        let loops = [
            "while :; do echo x > f; done",
            "while :; do echo x >> g; : > h; rm h; mkdir d; mv g d/g; mv d/g g; rmdir d; done",
            "exec 3>>log; while :; do echo x >&3; done",
        ];
        let start = |script: &&str| {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", script]).current_dir(tree);
            command.stderr(std::process::Stdio::null()).spawn().unwrap()
        };
        Restless(loops.iter().map(start).collect())
    }
}

impl Drop for Restless {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Under writers that never rest `--once` ends, and a signal ends what follows.
#[test]
fn writers_that_never_rest_keep_nothing_from_ending() {
    lab::in_private_namespace("writers_that_never_rest_keep_nothing_from_ending", |lab| {
        let image = testkit::need!(lab.ext4(256));
        let src = image.dir("src").unwrap();
        for number in 0..500 {
            std::fs::write(src.join(format!("still {number}")), format!("{number}")).unwrap();
        }
        for detector in ["fanotify", "inotify", "scan"] {
            let dst = image.path().join(format!("dst {detector}"));
            let options = ["--on-mass-change", "follow", "--detector", detector];
            let restless = Restless::start(&src);
            let began = std::time::Instant::now();
            let once = [&options[..], &["--once"]].concat();
            let ran = common::run_command(&mut common::fs_mirror(common::mirror_arguments(
                &src, &dst, &once,
            )));
            println!("{detector}: once took {:?}", began.elapsed());
            assert!(ran.code == 0 || ran.code == 3, "{ran:?}");
            assert!(began.elapsed().as_secs() < 40, "{:?}", began.elapsed());
            assert!(dst.join("still 499").exists());
            let mut mirror = Mirror::start_with(&src, &dst, &options);
            mirror.watching();
            std::thread::sleep(std::time::Duration::from_secs(1));
            let began = std::time::Instant::now();
            assert_eq!(mirror.stop(), 0);
            println!("{detector}: the end took {:?}", began.elapsed());
            assert!(began.elapsed().as_secs() < 8, "{:?}", began.elapsed());
            drop(restless);
            let mut mirror = Mirror::start_with(&src, &dst, &options);
            mirror.must_be_equal();
            assert_eq!(mirror.stop(), 0);
        }
    });
}

/// Each of our system calls makes another process write into the tree, so that the kernel's queue is never empty.
#[test]
fn what_writes_whenever_we_read_keeps_nothing_from_ending() {
    let strace = std::process::Command::new("strace").arg("-V").output();
    if !strace.is_ok_and(|ran| ran.status.success()) {
        testkit::skip!("no strace");
    }
    lab::in_private_namespace(
        "what_writes_whenever_we_read_keeps_nothing_from_ending",
        |lab| {
            let image = testkit::need!(lab.ext4(256));
            let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
            std::fs::write(src.join("still"), "still").unwrap();
            for detector in ["fanotify", "inotify"] {
                let mut command = std::process::Command::new("timeout");
                command.args(["--signal=KILL", "60", "strace", "-f", "-o"]);
                command.arg(src.join("trace")).arg(common::program());
                let options = [
                    "--once",
                    "--detector",
                    detector,
                    "--on-mass-change",
                    "follow",
                ];
                command.args(common::mirror_arguments(&src, &dst, &options));
                let ran = common::run_command(command.stdin(std::process::Stdio::null()));
                if ran.stderr.contains("PTRACE") {
                    testkit::skip!("strace may not trace");
                }
                // The trace itself may be as it was at some time.
                assert!(ran.code == 0 || ran.code == 3, "{detector}: {ran:?}");
                assert!(dst.join("still").exists() && dst.join("trace").exists());
            }
        },
    );
}
