//! kill -9 at any moment, then started again: the copy becomes equal, without copying everything again.
//!
//! The sample that CI runs takes about a minute; all kill points (an hour or more):
//! `cargo test -p mirror --test kill -- --ignored`, or `KILLS=n` for so many random kills a test.

mod common;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use testkit::lab::{self, Lab};
use testkit::proc::{KillPoint, count_calls, has_strace, killpoint};
use testkit::rng::Rng;
use testkit::{Fs, generate, workload};

use common::raw::Map;
use common::{DEADLINE, Mirror, fs_mirror, mirror_arguments, took};

fn number(name: &str, usual: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
    fs::write(path, bytes).unwrap();
}

/// Kills at random moments while two processes work on the tree; now and then it is left to become equal.
fn random_kills(lab: &Lab, fs: Fs, seed: u64, kills: u64) {
    let _took = took(format!("{kills} kills on {}", fs.name()));
    let image = testkit::need!(lab.image(fs, 512));
    let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
    let outside = image.dir("outside").unwrap();
    let made = generate::Params {
        files: 300,
        seed,
        ..Default::default()
    };
    generate::tree(&src, &made).unwrap();
    let mut rng = Rng::new(seed);
    for kill in 0..kills {
        let params = workload::Params {
            seed: seed * 1000 + kill,
            ops: 100_000,
            outside: Some(outside.clone()),
            existing: rng.chance(0.3),
            rate: Some(3000.0),
            ..Default::default()
        };
        let churn = workload::start(&src, &params, 2).unwrap();
        let mut mirror = Mirror::start(&src, &dst);
        // Mostly in the middle of a start, of a first scan or of replaying; sometimes in calm following.
        let wait = if rng.chance(0.2) {
            rng.range(300, 1200)
        } else {
            rng.range(1, 300)
        };
        std::thread::sleep(Duration::from_millis(wait));
        if rng.chance(0.5) {
            mirror.kill();
            churn.kill();
        } else {
            churn.kill();
            mirror.kill();
        }
        if kill % 5 == 4 || kill + 1 == kills {
            println!("seed {seed}, after kill {kill} on {}", fs.name());
            let mut mirror = Mirror::start(&src, &dst);
            mirror.must_become_equal();
            if rng.chance(0.5) {
                assert_eq!(mirror.stop(), 0);
            } else {
                mirror.kill();
            }
        }
    }
}

#[test]
fn killed_at_random_moments() {
    lab::in_private_namespace("killed_at_random_moments", |lab| {
        random_kills(lab, Fs::Ext4, number("SEED", 1), number("KILLS", 20));
    });
}
#[test]
fn killed_at_random_moments_on_xfs_and_btrfs() {
    lab::in_private_namespace("killed_at_random_moments_on_xfs_and_btrfs", |lab| {
        random_kills(lab, Fs::Xfs, number("SEED", 2), number("KILLS", 5));
        random_kills(lab, Fs::Btrfs, number("SEED", 3), number("KILLS", 5));
    });
}

/// Killed in the middle of changes, changed further while nobody looks, then started once: that must do.
fn killed_then_changed(lab: &Lab, fs: Fs, pair: u64) {
    let _took = took(format!("pair {pair} on {}", fs.name()));
    let image = testkit::need!(lab.image(fs, 512));
    let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
    let made = generate::Params {
        files: 400,
        seed: 14,
        ..Default::default()
    };
    generate::tree(&src, &made).unwrap();
    let mut mirror = Mirror::start(&src, &dst);
    mirror.must_be_equal();
    let mut params = workload::Params {
        seed: 40 + pair,
        ops: 300,
        existing: true,
        ..Default::default()
    };
    println!("pair {pair} on {}", fs.name());
    workload::run(&src, &params).unwrap();
    mirror.kill();
    params.seed = 1050 + pair;
    workload::run(&src, &params).unwrap();
    let mut mirror = Mirror::start(&src, &dst);
    mirror.must_become_equal();
    let ran = mirror.ask(&["verify", "--against", "index"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(mirror.stop(), 0);
}

/// `SEED=n` for one pair, `KILLS=n` for so many.
#[test]
fn killed_in_changes_and_changed_further() {
    lab::in_private_namespace("killed_in_changes_and_changed_further", |lab| {
        let first = number("SEED", 0);
        for pair in first..first + number("KILLS", 3) {
            let fs = [Fs::Ext4, Fs::Xfs, Fs::Btrfs][(pair % 3) as usize];
            killed_then_changed(lab, fs, pair);
        }
    });
}

/// A first copy that is cut off again and again does not begin again each time.
#[test]
fn first_copy_is_resumed() {
    lab::in_private_namespace("first_copy_is_resumed", |lab| {
        let image = testkit::need!(lab.ext4(512));
        let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
        let made = generate::Params {
            files: 5000,
            ..Default::default()
        };
        generate::tree(&src, &made).unwrap();
        let count = |dir: &Path| -> usize {
            let find = std::process::Command::new("find").arg(dir).output();
            find.map_or(0, |found| {
                found.stdout.iter().filter(|b| **b == b'\n').count()
            })
        };
        let all = count(&src);
        let mut kept = 0;
        for part in [0.2, 0.5, 0.8] {
            let mut mirror = Mirror::start(&src, &dst);
            let deadline = Instant::now() + DEADLINE;
            while (count(&dst) as f64) < all as f64 * part {
                assert!(
                    mirror.program.ended().unwrap().is_none(),
                    "{}",
                    mirror.program.stderr()
                );
                assert!(Instant::now() < deadline, "{} of {all}", count(&dst));
                std::thread::sleep(Duration::from_millis(2));
            }
            mirror.kill();
            let have = count(&dst);
            println!("killed at {have} of {all}");
            assert!(
                have >= kept,
                "a kill took back what was copied: {have} of {kept}"
            );
            kept = have;
        }
        // What is there now keeps its inodes: nothing of it is made a second time.
        let inodes = |dir: &Path| -> std::collections::BTreeMap<String, String> {
            let find = std::process::Command::new("find")
                .arg(dir)
                .args(["-type", "f", "-printf", "%P\\t%i %C@\\n"])
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&find.stdout).into_owned();
            text.lines()
                .filter_map(|line| line.rsplit_once('\t'))
                .map(|(path, inode)| (path.into(), inode.into()))
                .collect()
        };
        let before = inodes(&dst);
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_be_equal();
        let after = inodes(&dst);
        let again = before.iter().filter(|(path, inode)| {
            after.get(*path).map(|now| now.split(' ').next()) != Some(inode.split(' ').next())
        });
        let again = again.count();
        println!("{again} of {} files were made again", before.len());
        assert!(
            again <= before.len() / 20,
            "{again} of {} files were made again",
            before.len()
        );
    });
}

/// Written after the last look, and the process dead before the event: only that the content was never proven tells.
#[test]
fn killed_between_look_and_late_write() {
    lab::in_private_namespace("killed_between_look_and_late_write", |lab| {
        // Two file systems: where the copy lies on the source's, its flushes clean the source's pages, too.
        let image = testkit::need!(lab.ext4(256));
        let backup = testkit::need!(lab.ext4(256));
        let (src, dst) = (image.dir("src").unwrap(), backup.path().join("dst"));
        let size = 300_000;
        for number in 0..12 {
            write(src.join(format!("f{number}")), vec![b'a'; size]);
        }
        let maps: Vec<Map> = (0..12)
            .map(|number| {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(src.join(format!("f{number}")))
                    .unwrap();
                Map::new(&file, size).unwrap()
            })
            .collect();
        for round in 0..6u8 {
            let mut mirror = Mirror::start(&src, &dst);
            for (number, map) in maps.iter().enumerate() {
                map.store(number * 100, &[b'0' + round; 50]);
            }
            assert_eq!(mirror.wait_idle().code, 0);
            // The pages are dirty: these stores move no time and make no event.
            for (number, map) in maps.iter().enumerate() {
                map.store(200_000 + number * 100, &[b'A' + round; 50]);
            }
            // And one write that is in flight when the mirror dies.
            let big = src.join("big");
            let writer = std::thread::spawn(move || {
                let file = OpenOptions::new()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(big)
                    .unwrap();
                file.write_all_at(&vec![b'x' + round % 3; 24 << 20], 0)
                    .unwrap();
            });
            std::thread::sleep(Duration::from_millis(u64::from(round)));
            mirror.kill();
            writer.join().unwrap();
            let mut mirror = Mirror::start(&src, &dst);
            mirror.must_be_equal();
            if round % 2 == 0 {
                // Unmapped while nobody looks.
                mirror.kill();
            } else {
                mirror.stop();
            }
        }
        drop(maps);
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_be_equal();
    });
}

/// System calls that change something, in the words of strace.
const CALLS: &[&str] = &[
    "write,pwrite64,pwritev2,pwritev",
    "fsync,fdatasync,syncfs,sync_file_range",
    "rename,renameat,renameat2",
    "linkat,unlinkat,mkdirat,symlinkat,mknodat",
    "openat,openat2",
    "fchownat,fchmodat,fchmodat2,fchmod,utimensat,setxattrat,fsetxattr,lsetxattr,ioctl",
    "ftruncate,fallocate,copy_file_range",
];

/// Two states of a tree; a mirror of the first meets the second and dies on the way.
struct Sweep {
    src: std::path::PathBuf,
    dst: std::path::PathBuf,
    outside: std::path::PathBuf,
}

impl Sweep {
    fn new(lab: &Lab, image: &lab::Image) -> Sweep {
        let _ = lab;
        Sweep {
            src: image.dir("src").unwrap(),
            dst: image.path().join("dst"),
            outside: image.dir("outside").unwrap(),
        }
    }
    /// The tree changes in each way there is, the same each time for the same seed.
    fn change(&self, seed: u64) {
        let params = workload::Params {
            seed,
            ops: 120,
            outside: Some(self.outside.clone()),
            mappings: false,
            ..Default::default()
        };
        workload::run(&self.src, &params).unwrap();
        write(self.src.join("large"), vec![seed as u8; 300_000]);
    }
    fn once(&self) -> std::process::Command {
        fs_mirror(mirror_arguments(
            &self.src,
            &self.dst,
            &["--once", "-q", "--on-mass-change", "follow"],
        ))
    }
    /// Dies at the `n`-th of `calls`; false: it came to its end before.
    fn kill_at(&self, calls: &str, n: u64) -> bool {
        killpoint(&self.once(), calls, n, DEADLINE).unwrap() == KillPoint::Killed
    }
    fn recover(&self, what: &str) {
        let mut mirror = Mirror::start(&self.src, &self.dst);
        println!("recovers after {what}");
        mirror.must_become_equal();
        assert_eq!(mirror.stop(), 0);
    }
}

fn sweep(lab: &Lab, points: impl Fn(u64, &mut Rng) -> Vec<u64>) {
    testkit::need!(has_strace());
    let image = testkit::need!(lab.ext4(256));
    let sweep = Sweep::new(lab, &image);
    let mut rng = Rng::new(number("SEED", 7));
    let mut seed = 1;
    sweep.change(seed);
    let mut killed = 0;
    for calls in CALLS {
        let most = match count_calls(&sweep.once(), calls, DEADLINE) {
            Ok(most) => most,
            // This strace does not know one of the names.
            Err(e) => {
                println!("{calls}: {e:#}");
                continue;
            }
        };
        for n in points(most.max(20), &mut rng) {
            seed += 1;
            sweep.change(seed);
            let what = format!("call {n} of {calls}, change {seed}");
            if sweep.kill_at(calls, n) {
                killed += 1;
            } else {
                println!("not reached: {what}");
            }
            sweep.recover(&what);
        }
    }
    println!("{killed} kill points");
    assert!(killed > 0);
}

#[test]
fn kill_points_sample() {
    lab::in_private_namespace("kill_points_sample", |lab| {
        sweep(lab, |most, rng| {
            (0..4).map(|_| rng.range(1, most)).collect()
        });
    });
}

/// All of them: `cargo test -p mirror --test kill -- --ignored`.
#[test]
#[ignore = "an hour or more"]
fn kill_points_all() {
    lab::in_private_namespace("kill_points_all", |lab| {
        sweep(lab, |most, _| (1..=most).collect());
    });
}

/// The copy's file system loses what was not flushed, as in a power cut.
#[test]
fn power_cut_of_the_copy() {
    lab::in_private_namespace("power_cut_of_the_copy", |lab| {
        let source = testkit::need!(lab.ext4(256));
        let mut target = testkit::need!(lab.ext4(256));
        let (src, dst) = (source.dir("src").unwrap(), target.path().join("dst"));
        let mut rng = Rng::new(number("SEED", 11));
        for round in 0..6u64 {
            let params = workload::Params {
                seed: 500 + round,
                ops: 100_000,
                rate: Some(2000.0),
                ..Default::default()
            };
            let churn = workload::start(&src, &params, 2).unwrap();
            let mut mirror = Mirror::start(&src, &dst);
            std::thread::sleep(Duration::from_millis(rng.range(50, 900)));
            // What `wait` called durable must be there afterwards, without the source.
            let marker = format!("marker {round}");
            write(src.join("marker"), &marker);
            let durable = round % 2 == 1 && mirror.wait_idle().code == 0;
            let cut = target.power_cut();
            churn.kill();
            mirror.kill();
            cut.unwrap();
            target.unmount().unwrap();
            target.mount().unwrap();
            if durable {
                assert_eq!(fs::read_to_string(dst.join("marker")).unwrap(), marker);
            }
            println!("round {round}");
            let mut mirror = Mirror::start(&src, &dst);
            mirror.must_become_equal();
            assert_eq!(mirror.stop(), 0);
        }
        target.unmount().unwrap();
        assert_eq!(target.check().unwrap(), None);
    });
}

#[cfg(feature = "planted")]
#[test]
fn planted_defects_are_caught() {
    common::caught(&[("trust_unproven", "killed_between_look_and_late_write")]);
}
