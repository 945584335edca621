//! Every class of difference is seen: two equal trees, one planted difference, exactly that one found.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid,
    XattrFlags, lsetxattr, makedev, mknodat, utimensat,
};
use testkit::compare::{Class, Options, compare};
use testkit::{Lab, is_root, need, skip};

/// Two equal trees under one temporary directory.
struct Pair {
    base: tempfile::TempDir,
}

impl Pair {
    fn new() -> Pair {
        Pair::in_dir(&std::env::temp_dir())
    }
    fn in_dir(dir: &Path) -> Pair {
        let base = tempfile::Builder::new()
            .prefix("testkit-compare-")
            .tempdir_in(dir)
            .unwrap();
        let pair = Pair { base };
        for tree in [pair.left(), pair.right()] {
            make(&tree);
        }
        pair
    }
    fn left(&self) -> PathBuf {
        self.base.path().join("left")
    }
    fn right(&self) -> PathBuf {
        self.base.path().join("right")
    }
    fn found(&self) -> Vec<(String, Class)> {
        self.found_with(&Options::default())
    }
    fn found_with(&self, options: &Options) -> Vec<(String, Class)> {
        let found = compare(&self.left(), &self.right(), options);
        found
            .into_iter()
            .map(|difference| (difference.path, difference.class))
            .collect()
    }
}

const FILE: &str = "dir/file";
const FILES: [&str; 6] = [
    "dir/file",
    "dir/twin",
    "dir/other",
    "sparse",
    "setuid",
    "empty",
];

fn make(tree: &Path) {
    fs::create_dir_all(tree.join("dir/deeper/empty")).unwrap();
    for name in FILES {
        fs::write(tree.join(name), format!("content of {name}\n").repeat(500)).unwrap();
    }
    fs::write(tree.join("empty"), "").unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 512 << 10).unwrap();
    symlink("file", tree.join("dir/symlink")).unwrap();
    node(&tree.join("fifo"), FileType::Fifo, 0);
    node(&tree.join("socket"), FileType::Socket, 0);
    fs::hard_link(tree.join("dir/other"), tree.join("linked")).unwrap();
    fs::hard_link(tree.join("dir/other"), tree.join("dir/deeper/linked")).unwrap();
    fs::set_permissions(tree.join("setuid"), fs::Permissions::from_mode(0o4755)).unwrap();
    still(tree);
}

fn node(path: &Path, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device).unwrap();
}

/// Gives everything the same old time.
fn still(path: &Path) {
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            still(&entry.unwrap().path());
        }
    }
    set_mtime(path, -86_400, 123_456_789);
}

fn set_mtime(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Plants one difference into the right tree and expects exactly this class at exactly this path.
#[track_caller]
fn planted(class: Class, at: &str, plant: impl FnOnce(&Path)) {
    let pair = Pair::new();
    plant(&pair.right().join(at));
    if class != Class::Mtime {
        still(&pair.right());
    }
    assert_eq!(pair.found(), [(at.to_owned(), class)]);
    assert_eq!(pair.found_with(&Options::ignoring(&[class])), [], "ignored");
}

#[test]
fn equal_trees_are_equal() {
    assert_eq!(Pair::new().found(), []);
}

#[test]
fn names_and_types() {
    planted(Class::Missing, "dir/deeper/empty", |path| {
        fs::remove_dir(path).unwrap()
    });
    planted(Class::Missing, "dir/symlink", |path| {
        fs::remove_file(path).unwrap()
    });
    planted(Class::Extra, "dir/extra", |path| {
        fs::create_dir(path).unwrap()
    });
    planted(Class::Type, "dir/symlink", |path| {
        fs::remove_file(path).unwrap();
        fs::write(path, "file").unwrap();
    });
    planted(Class::Type, "fifo", |path| {
        fs::remove_file(path).unwrap();
        node(path, FileType::Socket, 0);
    });
}

#[test]
fn content_and_size() {
    planted(Class::Size, FILE, |path| fs::write(path, "short").unwrap());
    planted(Class::Content, FILE, |path| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(b"X", 7777).unwrap();
    });
    planted(Class::Content, "sparse", |path| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(b"In the middle", 512 << 10).unwrap();
    });
}

#[test]
fn metadata() {
    let mode = |mode| {
        move |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap()
    };
    planted(Class::Mode, "setuid", mode(0o755));
    planted(Class::Mode, "dir", mode(0o1755));
    planted(Class::Mode, "fifo", mode(0o600));
    for at in [".", FILE, "dir", "dir/symlink", "fifo", "socket"] {
        planted(Class::Mtime, at, |path| {
            set_mtime(path, -86_400, 123_456_788)
        });
    }
    planted(Class::Target, "dir/symlink", |path| {
        fs::remove_file(path).unwrap();
        symlink("filE", path).unwrap();
    });
}

#[test]
fn owners() {
    if !is_root() {
        skip!("needs root (chown)");
    }
    let chown = |path: &Path, uid: Option<u32>, gid: Option<u32>| {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    };
    for at in [FILE, "dir", "dir/symlink", "fifo"] {
        planted(Class::Uid, at, |path| chown(path, Some(12345), None));
        planted(Class::Gid, at, |path| {
            chown(path, None, Some(4_000_000_000))
        });
    }
}

#[test]
fn hard_links() {
    // The bytes are equal, the inode is not.
    planted(Class::Links, "linked", |path| {
        let bytes = fs::read(path).unwrap();
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
    });
    // One inode where there should be two.
    let pair = Pair::new();
    fs::write(pair.left().join("setuid"), "").unwrap();
    fs::set_permissions(
        pair.left().join("setuid"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    fs::remove_file(pair.right().join("setuid")).unwrap();
    fs::hard_link(pair.right().join("empty"), pair.right().join("setuid")).unwrap();
    still(&pair.left());
    still(&pair.right());
    assert_eq!(pair.found(), [("setuid".to_owned(), Class::Links)]);
    // A link from outside the tree is no difference.
    let pair = Pair::new();
    fs::hard_link(pair.right().join(FILE), pair.base.path().join("outside")).unwrap();
    assert_eq!(pair.found(), []);
}

#[test]
fn attributes_acls_and_capabilities() {
    let set = |name: &'static str, value: &'static [u8]| {
        move |path: &Path| lsetxattr(path, name, value, XattrFlags::empty()).unwrap()
    };
    // Owner rw, a user 33 r, group r, mask r, others r.
    const ACL: &[u8] =
        b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\x21\0\0\0\x04\0\x04\0\xff\xff\xff\xff\
                         \x10\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
    planted(Class::Xattr, FILE, set("user.empty", b""));
    planted(Class::Xattr, FILE, set("system.posix_acl_access", ACL));
    planted(Class::Xattr, "dir", set("system.posix_acl_default", ACL));
    if !is_root() {
        skip!("needs root (trusted and security attributes)");
    }
    const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    planted(Class::Xattr, FILE, set("security.capability", CAPABILITY));
    for at in ["dir", "dir/symlink", "fifo", "socket"] {
        planted(Class::Xattr, at, set("trusted.x", b"\0\xff"));
    }
    let pair = Pair::new();
    set("user.a", b"1")(&pair.left().join(FILE));
    set("user.a", b"2")(&pair.right().join(FILE));
    assert_eq!(pair.found(), [(FILE.to_owned(), Class::Xattr)]);
}

#[test]
fn holes_and_blocks() {
    planted(Class::Holes, "sparse", |path| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[0; 4096], 64 << 10).unwrap();
    });
    planted(Class::Blocks, "sparse", |path| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 64 << 10, 8192).unwrap();
    });
    // A hole where the left side has zeros.
    let pair = Pair::new();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(pair.left().join("sparse"))
        .unwrap();
    file.write_all_at(&[0; 4096], 64 << 10).unwrap();
    still(&pair.left());
    assert_eq!(pair.found(), [("sparse".to_owned(), Class::Holes)]);
}

#[test]
fn devices() {
    if !is_root() {
        skip!("needs root (device nodes)");
    }
    let pair = Pair::new();
    for (tree, minor) in [(pair.left(), 3), (pair.right(), 5)] {
        node(
            &tree.join("device"),
            FileType::CharacterDevice,
            makedev(1, minor),
        );
        node(&tree.join("same"), FileType::CharacterDevice, makedev(1, 3));
        still(&tree);
    }
    assert_eq!(pair.found(), [("device".to_owned(), Class::Device)]);
    fs::remove_file(pair.right().join("device")).unwrap();
    node(
        &pair.right().join("device"),
        FileType::BlockDevice,
        makedev(1, 3),
    );
    still(&pair.right());
    assert_eq!(pair.found(), [("device".to_owned(), Class::Type)]);
}

#[test]
fn flags() {
    let pair = Pair::new();
    for at in [FILE, "dir"] {
        let status = Command::new("chattr")
            .arg("+d")
            .arg(pair.right().join(at))
            .output();
        if !status.is_ok_and(|output| output.status.success()) {
            skip!("no inode flags here");
        }
    }
    still(&pair.right());
    assert_eq!(
        pair.found(),
        [
            ("dir".to_owned(), Class::Flags),
            (FILE.to_owned(), Class::Flags)
        ]
    );
}

#[test]
fn project_ids() {
    let lab = need!(Lab::enter());
    let image = need!(lab.xfs(300));
    let pair = Pair::in_dir(&image.path());
    assert_eq!(pair.found(), []);
    for at in [FILE, "dir"] {
        testkit::set_project(&pair.right().join(at), 42).unwrap();
    }
    assert_eq!(
        pair.found(),
        [
            ("dir".to_owned(), Class::Project),
            (FILE.to_owned(), Class::Project)
        ]
    );
}

#[test]
fn unreadable() {
    let pair = Pair::new();
    let found = compare(
        &pair.left(),
        &pair.right().join("nowhere"),
        &Options::default(),
    );
    assert_eq!(
        found.iter().map(|d| d.class).collect::<Vec<_>>(),
        [Class::Unreadable]
    );
    if is_root() {
        skip!("root reads everything");
    }
    fs::set_permissions(pair.left().join(FILE), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(pair.right().join(FILE), fs::Permissions::from_mode(0o000)).unwrap();
    assert_eq!(pair.found(), [(FILE.to_owned(), Class::Unreadable)]);
}

#[test]
fn lost_and_found_at_the_root_only() {
    let pair = Pair::new();
    fs::create_dir(pair.left().join("lost+found")).unwrap();
    fs::create_dir(pair.left().join("dir/lost+found")).unwrap();
    still(&pair.left());
    assert_eq!(
        pair.found(),
        [("dir/lost+found".to_owned(), Class::Missing)]
    );
}

#[test]
fn mount_points_can_be_left_out() {
    let lab = need!(Lab::enter());
    let image = need!(lab.tmpfs(10));
    let inner = need!(lab.tmpfs(10));
    let pair = Pair::in_dir(&image.path());
    let at = pair.left().join("dir/deeper/empty");
    rustix::mount::mount_bind(inner.path(), &at).unwrap();
    fs::write(at.join("hidden"), "x").unwrap();
    assert!(
        pair.found()
            .contains(&("dir/deeper/empty/hidden".to_owned(), Class::Missing))
    );
    assert_eq!(
        pair.found_with(&Options {
            skip_mounts: true,
            ..Options::default()
        }),
        []
    );
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
}

/// A directory `levels` below, each level with this name; made without ever building its path.
fn deep(root: &Path, name: &[u8], levels: usize) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut dir = rustix::fs::open(root, flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)).unwrap();
        dir = rustix::fs::openat(&dir, name, flags, Mode::empty()).unwrap();
    }
    dir
}

#[test]
fn depth_and_raw_names() {
    let base = tempfile::tempdir().unwrap();
    let (left, right) = (base.path().join("left"), base.path().join("right"));
    let options = Options::ignoring(&[Class::Mtime]);
    let write = |dir: &OwnedFd, name: &[u8], bytes: &str| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let file =
            rustix::fs::openat(dir.as_fd(), name, flags, Mode::from_raw_mode(0o644)).unwrap();
        fs::File::from(file)
            .write_all_at(bytes.as_bytes(), 0)
            .unwrap();
    };
    for (tree, text) in [(&left, "1"), (&right, "2")] {
        fs::create_dir(tree).unwrap();
        write(&deep(tree, &[b'l'; 250], 20), b"long", "same");
        write(&deep(tree, b"d", 350), b"deep\n\xff", text);
        // Comes after the deep directory, so the walk must find its way back.
        fs::create_dir(tree.join("z")).unwrap();
        fs::write(
            tree.join("z").join(std::ffi::OsStr::from_bytes(b"caf\xe9")),
            text,
        )
        .unwrap();
    }
    let found: Vec<(String, Class)> = compare(&left, &right, &options)
        .into_iter()
        .map(|d| (d.path, d.class))
        .collect();
    let deep_path = format!("{}deep\\x0a\\xff", "d/".repeat(350));
    assert_eq!(
        found,
        [
            (deep_path, Class::Content),
            ("z/caf\\xe9".to_owned(), Class::Content)
        ]
    );
}

#[test]
fn the_list_can_be_cut_short() {
    let pair = Pair::new();
    for name in FILES {
        fs::remove_file(pair.right().join(name)).unwrap();
    }
    let options = Options {
        differences_max: Some(2),
        ..Options::default()
    };
    assert_eq!(pair.found_with(&options).len(), 2);
}

#[test]
fn the_program_says_it_by_its_exit_code() {
    let pair = Pair::new();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_treecmp"));
        let output = command
            .arg(pair.left())
            .arg(pair.right())
            .args(arguments)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    assert_eq!(run(&[]), (Some(0), String::new()));
    fs::write(pair.right().join("empty"), "x").unwrap();
    set_mtime(&pair.right().join("empty"), -86_400, 123_456_789);
    assert_eq!(run(&[]), (Some(1), "empty: size: 0 | 1\n".to_owned()));
    let json = "{\"path\":\"empty\",\"class\":\"size\",\"left\":\"0\",\"right\":\"1\"}\n";
    assert_eq!(run(&["--json"]), (Some(1), json.to_owned()));
    assert_eq!(run(&["--ignore", "mode,size"]).0, Some(0));
    assert_eq!(run(&["--ignore", "nonsense"]).0, Some(2));
}

#[test]
fn every_class_has_its_name() {
    let names: BTreeSet<&str> = Class::ALL.iter().map(|class| class.name()).collect();
    assert_eq!(names.len(), Class::ALL.len());
    assert!(
        Class::ALL
            .iter()
            .all(|&class| Class::by_name(class.name()) == Some(class))
    );
}

/// Blocks that were only reserved are data once they are read, and a hole again when the cache forgets them.
#[test]
fn reserved_blocks_are_neither_data_nor_hole() {
    let pair = Pair::new();
    for tree in [pair.left(), pair.right()] {
        let file = fs::File::create(tree.join("reserved")).unwrap();
        if tree == pair.left() {
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 64 << 10).unwrap();
        } else {
            file.set_len(64 << 10).unwrap();
        }
    }
    assert_eq!(
        fs::read(pair.left().join("reserved")).unwrap(),
        [0; 64 << 10]
    );
    still(&pair.left());
    still(&pair.right());
    assert_eq!(pair.found(), []);
}
