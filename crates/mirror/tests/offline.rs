//! What changed while nobody looked: between a stop (or a kill) and the next start there are no events, only what a
//! look at everything finds. Seeded; `SEED=n` runs that one alone, `SEEDS=n` more of them.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, XattrFlags, renameat_with};
use testkit::lab::{self, Image, Lab};
use testkit::rng::Rng;
use testkit::{Fs, workload};

use common::{Mirror, took};

fn seeds(first: u64, usual: u64) -> std::ops::Range<u64> {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    match (number("SEED"), number("SEEDS")) {
        (Some(seed), count) => seed..seed + count.unwrap_or(1),
        (None, count) => first..first + count.unwrap_or(usual),
    }
}

/// Equal, and a comparison of every byte by the mirror itself finds nothing either.
fn must_be_exact(mirror: &mut Mirror) {
    mirror.must_become_equal();
    let ran = mirror.ask(&["verify"]);
    assert_eq!(ran.code, 0, "verify: {ran:?}");
}

/// A few rounds of some operations each, while the mirror is stopped, killed, or unmounted.
fn rounds(lab: &Lab, fs: Fs, seed: u64, detector: &str) {
    let _took = took(format!("seed {seed} on {}", fs.name()));
    let mut rng = Rng::new(seed ^ 0x0ff1);
    let mut source = testkit::need!(lab.image(fs, 512));
    let copies = testkit::need!(lab.image(Fs::Ext4, 512));
    let (src, dst) = (source.dir("src").unwrap(), copies.path().join("dst"));
    let mut params = workload::Params {
        seed,
        ops: 400,
        outside: Some(source.dir("outside").unwrap()),
        flags: true,
        ..Default::default()
    };
    workload::run(&src, &params).unwrap();
    let options = ["--on-mass-change", "follow", "--detector", detector];
    for round in 0..6 {
        println!("seed {seed}, round {round}");
        let mut mirror = Mirror::start_with(&src, &dst, &options);
        must_be_exact(&mut mirror);
        if rng.chance(0.3) {
            mirror.kill();
        } else {
            assert_eq!(mirror.stop(), 0);
        }
        params.seed = seed * 1000 + round;
        params.ops = *rng.pick(&[3, 10, 30, 100, 300]);
        workload::run(&src, &params).unwrap();
        if rng.chance(0.3) && fs != Fs::Tmpfs {
            source.unmount().unwrap();
            source.mount().unwrap();
        }
    }
    let mut mirror = Mirror::start_with(&src, &dst, &options);
    must_be_exact(&mut mirror);
    assert_eq!(mirror.stop(), 0);
}

#[test]
fn whatever_happens_while_stopped_on_ext4() {
    lab::in_private_namespace("whatever_happens_while_stopped_on_ext4", |lab| {
        for seed in seeds(1, 3) {
            rounds(lab, Fs::Ext4, seed, "auto");
        }
    });
}
#[test]
fn whatever_happens_while_stopped_on_xfs() {
    lab::in_private_namespace("whatever_happens_while_stopped_on_xfs", |lab| {
        for seed in seeds(31, 1) {
            rounds(lab, Fs::Xfs, seed, "auto");
        }
    });
}
#[test]
fn whatever_happens_while_stopped_under_inotify() {
    lab::in_private_namespace("whatever_happens_while_stopped_under_inotify", |lab| {
        for seed in seeds(41, 1) {
            rounds(lab, Fs::Ext4, seed, "inotify");
        }
    });
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}
fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}
fn times_of(path: &Path) -> Timestamps {
    let found = fs::symlink_metadata(path).unwrap();
    let time = Timespec {
        tv_sec: found.mtime(),
        tv_nsec: found.mtime_nsec(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
fn set_times(path: &Path, times: &Timestamps) {
    rustix::fs::utimensat(CWD, path, times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
fn exchange(one: &Path, other: &Path) {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
}
fn three_renames(one: &Path, other: &Path) {
    let free = one.with_file_name("free");
    fs::rename(one, &free).unwrap();
    fs::rename(other, one).unwrap();
    fs::rename(free, other).unwrap();
}
/// Other bytes, and nothing but ctime says so.
fn rewrite_unseen(path: &Path) {
    let times = times_of(path);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"X", 0).unwrap();
    drop(file);
    set_times(path, &times);
}

struct Case {
    name: &'static str,
    before: fn(&Path),
    offline: fn(&Path),
}

/// Two directories with a file and a directory with a file each.
fn two_dirs(at: &Path) {
    for dir in ["a", "b"] {
        write(&at.join(dir).join("f"), dir);
        write(&at.join(dir).join("below/g"), dir);
    }
}

const CASES: &[Case] = &[
    Case {
        name: "two directories exchanged, a file in one changes its mode",
        before: two_dirs,
        offline: |at| {
            exchange(&at.join("a"), &at.join("b"));
            chmod(&at.join("a/f"), 0o600);
        },
    },
    Case {
        name: "two directories swapped by three renames, a file deep in one rewritten unseen",
        before: two_dirs,
        offline: |at| {
            three_renames(&at.join("a"), &at.join("b"));
            rewrite_unseen(&at.join("b/below/g"));
        },
    },
    Case {
        name: "directories on two levels swapped",
        before: two_dirs,
        offline: |at| {
            exchange(&at.join("a"), &at.join("b"));
            exchange(&at.join("a/below"), &at.join("b/below"));
            chmod(&at.join("a/below/g"), 0o640);
            write(&at.join("b/below/g"), "other and longer");
        },
    },
    Case {
        name: "a directory renamed, and edited in",
        before: two_dirs,
        offline: |at| {
            fs::rename(at.join("a"), at.join("c")).unwrap();
            write(&at.join("c/below/g"), "edited");
            write(&at.join("c/below/new"), "new");
            fs::remove_file(at.join("c/f")).unwrap();
        },
    },
    Case {
        name: "a directory moved into a new one, another takes its name",
        before: two_dirs,
        offline: |at| {
            fs::create_dir_all(at.join("new/newer")).unwrap();
            fs::rename(at.join("a"), at.join("new/newer/a")).unwrap();
            chmod(&at.join("new/newer/a/below/g"), 0o600);
            write(&at.join("a/f"), "not the one before");
            write(&at.join("a/below/g"), "nor this");
        },
    },
    Case {
        name: "parent and child change places",
        before: two_dirs,
        offline: |at| {
            fs::rename(at.join("a/below"), at.join("free")).unwrap();
            fs::rename(at.join("a"), at.join("free/below")).unwrap();
            fs::rename(at.join("free"), at.join("a")).unwrap();
            chmod(&at.join("a/g"), 0o600);
            rewrite_unseen(&at.join("a/below/f"));
        },
    },
    Case {
        name: "three directories in a circle, each edited in",
        before: |at| {
            two_dirs(at);
            write(&at.join("c/below/g"), "c");
            write(&at.join("c/f"), "c");
        },
        offline: |at| {
            exchange(&at.join("a"), &at.join("b"));
            exchange(&at.join("b"), &at.join("c"));
            for dir in ["a", "b", "c"] {
                rewrite_unseen(&at.join(dir).join("below/g"));
                chmod(&at.join(dir).join("below"), 0o711);
            }
        },
    },
    Case {
        name: "a file becomes a directory, and a directory a file",
        before: two_dirs,
        offline: |at| {
            fs::remove_file(at.join("a/f")).unwrap();
            write(&at.join("a/f/in/it"), "now below");
            fs::remove_dir_all(at.join("b/below")).unwrap();
            write(&at.join("b/below"), "now a file");
        },
    },
    Case {
        name: "a hard link moves, its file is written by the other name",
        before: |at| {
            two_dirs(at);
            fs::hard_link(at.join("a/f"), at.join("b/link")).unwrap();
        },
        offline: |at| {
            fs::rename(at.join("b/link"), at.join("b/below/moved")).unwrap();
            rewrite_unseen(&at.join("a/f"));
        },
    },
    Case {
        name: "links change groups",
        before: |at| {
            two_dirs(at);
            fs::hard_link(at.join("a/f"), at.join("x")).unwrap();
            fs::hard_link(at.join("b/f"), at.join("y")).unwrap();
        },
        offline: |at| {
            exchange(&at.join("x"), &at.join("y"));
            exchange(&at.join("a"), &at.join("b"));
            chmod(&at.join("x"), 0o606);
        },
    },
    Case {
        name: "an inode number is given again, with equal size and time",
        before: |at| {
            for n in 0..20 {
                write(&at.join(format!("{n}")), "one");
            }
        },
        offline: |at| {
            for n in 0..20 {
                let path = at.join(format!("{n}"));
                let times = times_of(&path);
                fs::remove_file(&path).unwrap();
                let again = at.join(format!("{}", (n + 7) % 20));
                let path = if again.exists() { path } else { again };
                write(&path, "two");
                set_times(&path, &times);
            }
        },
    },
    Case {
        name: "bytes change, the time is set back",
        before: two_dirs,
        offline: |at| rewrite_unseen(&at.join("a/f")),
    },
    Case {
        name: "the time alone is set back",
        before: two_dirs,
        offline: |at| {
            let times = times_of(&at.join("a/f"));
            let old = Timespec {
                tv_sec: 1,
                ..times.last_access
            };
            for path in ["a/f", "b/below", "b"] {
                let times = Timestamps {
                    last_access: old,
                    last_modification: old,
                };
                set_times(&at.join(path), &times);
            }
        },
    },
    Case {
        name: "an attribute alone",
        before: two_dirs,
        offline: |at| {
            for path in ["a/f", "b/below"] {
                let path = at.join(path);
                rustix::fs::lsetxattr(&path, "user.x", b"y", XattrFlags::empty()).unwrap();
            }
        },
    },
    Case {
        name: "flags alone",
        before: two_dirs,
        offline: |at| {
            // Not every file system has them.
            let _ = testkit::change_flags(&at.join("a/f"), 0, 0x40);
            let _ = testkit::change_flags(&at.join("b/below"), 0, 0x40);
        },
    },
    Case {
        name: "emptied, and filled as before",
        before: two_dirs,
        offline: |at| {
            let times = times_of(&at.join("a/below/g"));
            fs::remove_dir_all(at.join("a")).unwrap();
            two_dirs(at);
            set_times(&at.join("a/below/g"), &times);
        },
    },
    Case {
        name: "a symlink leads elsewhere, a file becomes one",
        before: |at| {
            two_dirs(at);
            std::os::unix::fs::symlink("a", at.join("l")).unwrap();
        },
        offline: |at| {
            fs::remove_file(at.join("l")).unwrap();
            std::os::unix::fs::symlink("b", at.join("l")).unwrap();
            fs::remove_file(at.join("a/f")).unwrap();
            std::os::unix::fs::symlink("g", at.join("a/f")).unwrap();
        },
    },
    Case {
        name: "holes come and go",
        before: |at| {
            write(&at.join("f"), &"x".repeat(100_000));
            File::create(at.join("hole"))
                .unwrap()
                .set_len(200_000)
                .unwrap();
        },
        offline: |at| {
            let file = OpenOptions::new().write(true).open(at.join("f")).unwrap();
            let punch =
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, punch, 8192, 16_384).unwrap();
            let mut file = OpenOptions::new()
                .append(true)
                .open(at.join("hole"))
                .unwrap();
            file.write_all(b"end").unwrap();
        },
    },
];

fn each(image: &mut Image, copies: &Image, remount: bool, detector: &str) {
    let name = format!("src {detector} {remount}");
    let src = image.dir(&name).unwrap();
    let dst = copies.path().join(format!("dst {detector} {remount}"));
    for case in CASES {
        fs::create_dir(src.join(case.name)).unwrap();
        (case.before)(&src.join(case.name));
    }
    let options = ["--on-mass-change", "follow", "--detector", detector];
    let mut mirror = Mirror::start_with(&src, &dst, &options);
    must_be_exact(&mut mirror);
    assert_eq!(mirror.stop(), 0);
    for case in CASES {
        (case.offline)(&src.join(case.name));
    }
    chmod(&src, 0o750);
    if remount {
        image.unmount().unwrap();
        image.mount().unwrap();
    }
    let mut mirror = Mirror::start_with(&src, &dst, &options);
    must_be_exact(&mut mirror);
    assert_eq!(mirror.stop(), 0);
}

#[test]
fn each_case_while_stopped() {
    lab::in_private_namespace("each_case_while_stopped", |lab| {
        for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
            let _took = took(fs.name());
            let mut image = testkit::need!(lab.image(fs, 512));
            let copies = testkit::need!(lab.ext4(256));
            each(&mut image, &copies, false, "auto");
            each(&mut image, &copies, true, "auto");
            each(&mut image, &copies, true, "inotify");
        }
    });
}
