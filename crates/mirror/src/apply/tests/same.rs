//! The copy equals the source: every kind of thing, every kind of change.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::sys;

#[test]
fn a_tree_with_everything_in_it() {
    let mut pair = pair();
    let params = testkit::generate::Params {
        seed: 7,
        ..Default::default()
    };
    testkit::generate::tree(&pair.source.path, &params).unwrap();
    pair.sync();
    let fetched = pair.source.contents.fetched.lock().unwrap().len();
    // Nothing changed, nothing is done.
    assert!(pair.source.look().is_empty());
    pair.crash();
    pair.catch_up();
    pair.check();
    assert_eq!(
        pair.source.contents.fetched.lock().unwrap().len(),
        fetched,
        "what stands already is not fetched again"
    );
    testkit::generate::remove(&pair.source.path).unwrap();
    std::fs::create_dir(&pair.source.path).unwrap_or_default();
    for entry in std::fs::read_dir(&pair.dst).unwrap().take(1) {
        drop(entry);
    }
    testkit::generate::remove(&pair.dst).unwrap();
}

#[test]
fn names_come_change_and_go() {
    let mut pair = pair();
    pair.mkdir("a/b/c");
    pair.write("a/b/c/file", b"one");
    pair.write("top", b"two");
    std::fs::hard_link(pair.src("top"), pair.src("a/link")).unwrap();
    symlink("nowhere", pair.src("sym")).unwrap();
    pair.sync();
    // Content of a file with two names: both get the new inode.
    pair.write("top", b"twenty");
    pair.sync();
    // a/b -> b/a
    pair.mv("a/b", "b");
    pair.mv("a", "b/a");
    pair.sync();
    pair.mv("b/c/file", "file");
    pair.rm("b");
    pair.sync();
    pair.rm("file");
    pair.mkdir("file");
    pair.write("file/x", b"x");
    pair.rm("sym");
    pair.sync();
    pair.rm("file");
    pair.write("file", b"a file again");
    let outcome = pair.sync();
    assert_eq!(outcome.counts.moved_aside, 0);
}

#[test]
fn directories_swapped_while_what_is_in_them_changes() {
    let mut pair = pair();
    pair.mkdir("a");
    pair.mkdir("b");
    pair.write("a/x", b"x");
    pair.write("b/y", b"y");
    pair.sync();
    pair.mv("a", "m");
    pair.mv("b", "a");
    pair.mv("m", "b");
    std::fs::set_permissions(pair.src("b/x"), std::fs::Permissions::from_mode(0o711)).unwrap();
    pair.write("a/y", b"yy");
    pair.write("a/z", b"z");
    pair.sync();
}

#[test]
fn a_directory_replaced_by_another_of_the_same_name() {
    let mut pair = pair();
    pair.mkdir("site/old");
    pair.write("site/index", b"1");
    pair.mkdir("new/fresh");
    pair.write("new/index", b"2");
    pair.sync();
    // A deploy: the old one aside, the new one in its place, the old one removed.
    pair.mv("site", "gone");
    pair.mv("new", "site");
    pair.rm("gone");
    pair.sync();
    // The same with a directory that was never seen before, and a file moved from the old one to the new one.
    pair.mkdir("next");
    pair.write("next/index", b"3");
    pair.mv("site/index", "next/index.old");
    pair.rm("site");
    pair.mv("next", "site");
    pair.sync();
}

#[test]
fn metadata_of_everything() {
    if !testkit::is_root() {
        testkit::skip!("needs root: owners, devices");
    }
    let mut pair = pair();
    pair.write("file", b"x");
    pair.mkdir("dir/sub");
    symlink("to", pair.src("sym")).unwrap();
    let fd = sys::open::dir_at_path(&pair.source.path).unwrap();
    use rustix::fs::FileType::{CharacterDevice, Fifo, Socket};
    sys::target::create_node(&fd, b"null", CharacterDevice, (1, 3)).unwrap();
    sys::target::create_node(&fd, b"fifo", Fifo, (0, 0)).unwrap();
    sys::target::create_node(&fd, b"sock", Socket, (0, 0)).unwrap();
    pair.sync();
    let time = mirror_core::Time {
        seconds: -77,
        nanos: 123_456_789,
    };
    for name in [&b"file"[..], b"dir", b"sym", b"null", b"fifo", b"sock"] {
        sys::target::set_owner(&fd, name, 1234, 4321).unwrap();
        if name != b"sym" {
            sys::target::set_mode(&fd, name, 0o4751).unwrap();
        }
        let trusted = mirror_core::Xattr {
            name: b"trusted.t"[..].into(),
            value: b"\0v"[..].into(),
        };
        sys::xattr::set(&fd, name, &trusted).unwrap();
        sys::target::set_mtime(&fd, name, time).unwrap();
    }
    let ino = pair.in_dst("file").metadata().unwrap().ino();
    pair.sync();
    assert_eq!(
        pair.in_dst("file").metadata().unwrap().ino(),
        ino,
        "only metadata: the inode stays"
    );
    // A capability must come after the owner.
    let cap: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let cap = mirror_core::Xattr {
        name: b"security.capability"[..].into(),
        value: cap[..].into(),
    };
    sys::target::set_owner(&fd, b"file", 1, 2).unwrap();
    sys::xattr::set(&fd, b"file", &cap).unwrap();
    pair.sync();
    sys::xattr::remove(&fd, b"file", b"security.capability").unwrap();
    sys::xattr::remove(&fd, b"dir", b"trusted.t").unwrap();
    pair.sync();
}

#[test]
fn extended_attributes() {
    let mut pair = pair();
    pair.write("file", b"x");
    pair.mkdir("dir");
    let fd = sys::open::dir_at_path(&pair.source.path).unwrap();
    let xattr = |value: &[u8]| mirror_core::Xattr {
        name: b"user.t"[..].into(),
        value: value.into(),
    };
    if sys::xattr::set(&fd, b"file", &xattr(b"1")).is_err() {
        testkit::skip!("no extended attributes here");
    }
    sys::xattr::set(&fd, b"dir", &xattr(b"2")).unwrap();
    pair.sync();
    sys::xattr::set(&fd, b"file", &xattr(b"3")).unwrap();
    sys::xattr::remove(&fd, b"dir", b"user.t").unwrap();
    pair.sync();
}

#[test]
fn immutable_things_come_change_and_go() {
    if !testkit::is_root() {
        testkit::skip!("needs root: inode flags");
    }
    let mut pair = pair();
    let flag = |pair: &Pair, name: &str, set: u32| {
        let clear = sys::flags::IMMUTABLE | sys::flags::APPEND;
        testkit::change_flags(&pair.src(name), clear & !set, set).unwrap();
    };
    pair.mkdir("dir");
    pair.write("dir/file", b"1");
    pair.write("dir/log", b"1");
    flag(&pair, "dir/file", sys::flags::IMMUTABLE);
    flag(&pair, "dir/log", sys::flags::APPEND | sys::flags::NODUMP);
    flag(&pair, "dir", sys::flags::IMMUTABLE);
    pair.sync();
    flag(&pair, "dir", 0);
    flag(&pair, "dir/file", 0);
    pair.write("dir/file", b"22");
    pair.write("dir/more", b"2");
    flag(&pair, "dir/file", sys::flags::IMMUTABLE);
    flag(&pair, "dir", sys::flags::APPEND);
    pair.sync();
    flag(&pair, "dir", 0);
    pair.mv("dir", "moved");
    flag(&pair, "moved", sys::flags::IMMUTABLE);
    pair.sync();
    for name in ["moved", "moved/file", "moved/log"] {
        flag(&pair, name, 0);
    }
    pair.rm("moved");
    pair.sync();
}

#[test]
fn owners_recorded() {
    let mut pair = pair_with(Options {
        owners: Owners::Record,
        ..Options::default()
    });
    pair.write("file", b"x");
    std::fs::set_permissions(pair.src("file"), std::fs::Permissions::from_mode(0o6755)).unwrap();
    pair.mkdir("dir");
    if testkit::is_root() {
        std::os::unix::fs::chown(pair.src("dir"), Some(1000), Some(1000)).unwrap();
        let fd = sys::open::dir_at_path(&pair.source.path).unwrap();
        let char = rustix::fs::FileType::CharacterDevice;
        sys::target::create_node(&fd, b"null", char, (1, 3)).unwrap();
    }
    let outcome = pair.step();
    assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
    assert_eq!(outcome.recorded.setid, 1);
    pair.check_index();
    let there = pair.in_dst("file").metadata().unwrap();
    assert_eq!(
        (there.mode() & 0o7777, there.uid()),
        (0o755, rustix::process::geteuid().as_raw())
    );
    if testkit::is_root() {
        assert_eq!((outcome.recorded.devices, outcome.recorded.owners), (1, 1));
        let null = pair.in_dst("null").symlink_metadata().unwrap();
        assert!(null.is_file() && null.len() == 0 && null.mode() & 0o7777 == 0o600);
        std::os::unix::fs::chown(pair.src("null"), Some(1000), Some(1000)).unwrap();
        pair.step();
        pair.check_index();
    }
}

#[test]
fn paths_longer_than_a_path_may_be() {
    let mut pair = pair();
    let name = "n".repeat(200);
    let mut fd = sys::open::dir_at_path(&pair.source.path).unwrap();
    for _ in 0..60 {
        sys::target::create_dir(&fd, name.as_bytes()).unwrap();
        fd = sys::open::dir(&fd, name.as_bytes()).unwrap();
    }
    sys::target::create_file(&fd, b"deep").unwrap();
    let mut options = Options {
        dir_fds_max: 8,
        ..Options::default()
    };
    std::mem::swap(&mut options, &mut pair.options);
    pair.open();
    pair.sync();
    rustix::fs::unlinkat(&fd, "deep", rustix::fs::AtFlags::empty()).unwrap();
    pair.sync();
    testkit::generate::remove(&pair.src(&name)).unwrap();
    pair.sync();
}

#[test]
fn holes_stay_holes() {
    let mut pair = pair();
    let file = std::fs::File::create(pair.src("sparse")).unwrap();
    use std::os::unix::fs::FileExt;
    file.set_len(50 << 20).unwrap();
    file.write_all_at(&[7; 5000], 20 << 20).unwrap();
    std::fs::File::create(pair.src("hole"))
        .unwrap()
        .set_len(10 << 20)
        .unwrap();
    pair.write("zeros", &[0; 100_000]);
    pair.sync();
    assert!(pair.in_dst("sparse").metadata().unwrap().blocks() < 100);
    assert_eq!(pair.in_dst("hole").metadata().unwrap().blocks(), 0);
    file.write_all_at(b"more", 49 << 20).unwrap();
    pair.sync();
}

#[test]
fn random_changes_on_a_real_tree() {
    let rounds = std::env::var("APPLY_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(12u64);
    for seed in 0..rounds {
        let mut random = Random(seed * 2 + 0x9e37_79b9_7f4a_7c15);
        let mut pair = pair_with(Options {
            flush: Flush::Never,
            checkpoint_batches_max: 5,
            ..Options::default()
        });
        for round in 0..15 {
            let mut records = Vec::new();
            for _ in 0..1 + random.below(3) {
                for _ in 0..random.below(12) {
                    random.change(&pair.source.path);
                }
                records.extend(pair.source.look());
            }
            pair.records.extend(records.iter().cloned());
            let outcome = pair.apply(&records);
            assert!(
                outcome.failed.is_empty(),
                "seed {seed} round {round}: {:#?}",
                outcome.failed
            );
            assert!(
                outcome.moved_aside.is_empty(),
                "seed {seed} round {round}: {:?}, {records:#?}",
                outcome.moved_aside
            );
            if random.below(4) == 0 {
                pair.crash();
                let outcome = pair.catch_up();
                assert!(
                    outcome.failed.is_empty(),
                    "seed {seed} round {round}: {:#?}",
                    outcome.failed
                );
            }
            println!("seed {seed} round {round}");
            pair.check();
        }
    }
}

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn some(&mut self, root: &Path) -> PathBuf {
        let mut path = root.to_path_buf();
        for _ in 0..1 + self.below(3) {
            let name = ["a", "b", "c", "d", "e"][self.below(5) as usize];
            if !path.is_dir() || path.is_symlink() {
                break;
            }
            path.push(name);
        }
        path
    }
    pub fn change(&mut self, root: &Path) {
        let (a, b) = (self.some(root), self.some(root));
        let n = self.below(100_000);
        let _ = match self.below(14) {
            0..=2 => std::fs::write(&a, format!("content {n}")),
            3..=4 => std::fs::create_dir(&a),
            5 => std::fs::remove_file(&a),
            6 => std::fs::remove_dir_all(&a),
            7..=8 => std::fs::rename(&a, &b),
            9 => std::fs::hard_link(&a, &b),
            10 => symlink(format!("to {n}"), &a),
            11 => std::fs::set_permissions(
                &a,
                std::fs::Permissions::from_mode(0o700 + (n as u32 & 0o77)),
            ),
            12 => rustix::fs::renameat_with(
                rustix::fs::CWD,
                &a,
                rustix::fs::CWD,
                &b,
                rustix::fs::RenameFlags::EXCHANGE,
            )
            .map_err(Into::into),
            _ => std::fs::File::create(&a).and_then(|f| f.set_len(n)),
        };
    }
}

/// What was only recorded is set once it can be set, and the other way round; also when that is broken off.
#[test]
fn owners_recorded_and_then_applied() {
    if !testkit::is_root() {
        return println!("skipped: not root");
    }
    let with = |owners| Options {
        owners,
        ..Options::default()
    };
    let mut pair = pair_with(with(Owners::Record));
    for n in 0..8 {
        pair.mkdir(&format!("dir{n}/sub"));
        pair.write(&format!("dir{n}/sub/tool"), b"x");
        std::fs::hard_link(
            pair.src(&format!("dir{n}/sub/tool")),
            pair.src(&format!("link{n}")),
        )
        .unwrap();
        let tool = pair.src(&format!("link{n}"));
        std::os::unix::fs::chown(&tool, Some(1000 + n), Some(7)).unwrap();
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o4755)).unwrap();
    }
    pair.write("plain", b"plain");
    std::os::unix::fs::lchown(pair.src("dir1"), Some(12), Some(34)).unwrap();
    let fd = sys::open::dir_at_path(&pair.source.path).unwrap();
    let char = rustix::fs::FileType::CharacterDevice;
    sys::target::create_node(&fd, b"null", char, (1, 3)).unwrap();
    let capability = mirror_core::Xattr {
        name: b"security.capability"[..].into(),
        value: [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].into(),
    };
    sys::xattr::set(&fd, b"plain", &capability).unwrap();
    let outcome = pair.step();
    let recorded = outcome.recorded;
    assert_eq!(
        (recorded.setid, recorded.devices, recorded.xattrs),
        (8, 1, 1),
        "{recorded:?}"
    );
    assert_eq!(recorded.owners, 9);
    pair.check_index();
    pair.applier().checkpoint().unwrap();
    // Known over a restart, and as of now.
    pair.crash();
    assert!(!pair.applier().is_behind());
    assert_eq!(pair.applier().recorded(), recorded);
    pair.rm("dir7");
    pair.rm("link7");
    assert_eq!(pair.step().recorded.setid, 7);
    pair.applier().checkpoint().unwrap();
    let set_again = |pair: &mut Pair, most: u64| {
        let Pair {
            applier, source, ..
        } = pair;
        let mut slices = 0;
        let mut failed = Vec::new();
        let applier = applier.as_mut().unwrap();
        let set = applier.set_again(&source.contents, &mut |outcome| {
            slices += 1;
            failed.extend(outcome.failed);
            assert!(outcome.moved_aside.is_empty(), "{:?}", outcome.moved_aside);
            slices < most
        });
        set.unwrap();
        assert!(failed.is_empty(), "{failed:#?}");
        applier.is_behind()
    };
    pair.options = with(Owners::Apply);
    pair.crash();
    assert!(pair.applier().is_behind());
    assert!(set_again(&mut pair, 2), "broken off");
    pair.applier().checkpoint().unwrap();
    pair.crash();
    assert!(pair.applier().is_behind());
    // A change comes before the rest.
    pair.write("more", b"more");
    pair.step();
    assert!(!set_again(&mut pair, u64::MAX));
    assert_eq!(pair.applier().recorded(), Recorded::default());
    pair.check();
    pair.crash();
    assert!(!pair.applier().is_behind());
    pair.check();
}
