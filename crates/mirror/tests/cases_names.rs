//! What happens to names and attributes: cases 1 to 22 and 35 to 39 of the list that every version must pass, against
//! the real kernel.

mod common;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use testkit::lab;
use testkit::{Class, Fs};

use common::cases::{Case, Ctx, EXT4, run_cases};
use common::raw;

const CASES: &[Case] = &[
    case!(case_01_batch),
    case!(case_02_link_rename_link),
    case!(case_03_unlink_and_create_with_the_same_inode),
    case!(case_04_rename_over),
    case!(case_05_exchange),
    case!(case_06_swap_in_three_steps),
    case!(case_07_parent_and_child_change_places),
    case!(case_08_rename_onto_the_twin),
    case!(case_09_whiteout),
    case!(case_10_deep_dir_renamed_while_files_are_written_below),
    case!(case_11_dir_with_10000_files_moved_in),
    case!(case_12_moved_out_changed_outside_moved_back),
    case!(case_14_made_filled_and_parent_renamed_at_once),
    case!(case_15_removed_while_others_create),
    case!(case_16_written_through_the_outside_name),
    case!(case_17_two_of_three_links_gone_then_written),
    case!(case_18_nameless_file_gets_a_name_and_is_changed_later),
    case!(case_19_names),
    case!(case_20_symlinks),
    case!(case_21_special_files),
    case!(case_22_type_changes),
    case!(case_35_attributes),
    case!(case_36_setuid_cleared_by_a_write),
    case!(case_37_flags_and_project_of_something_looked_at, EXT4),
    case!(case_39_directory_attributes),
];

#[test]
fn names_on_ext4() {
    lab::in_private_namespace("names_on_ext4", |lab| run_cases(lab, Fs::Ext4, 256, CASES));
}
#[test]
fn names_on_xfs() {
    lab::in_private_namespace("names_on_xfs", |lab| run_cases(lab, Fs::Xfs, 400, CASES));
}
#[test]
fn names_on_btrfs() {
    lab::in_private_namespace("names_on_btrfs", |lab| {
        run_cases(lab, Fs::Btrfs, 400, CASES)
    });
}

fn rename_with(ctx: &Ctx<'_>, from: &str, to: &str, flags: RenameFlags) {
    rustix::fs::renameat_with(CWD, ctx.path(from), CWD, ctx.path(to), flags).unwrap();
}

fn case_01_batch(ctx: &mut Ctx<'_>) {
    ctx.write("old", "old");
    ctx.settle();
    ctx.write("a", "one");
    ctx.rename("a", "b");
    ctx.write("b", "two");
    ctx.write("c", "gone at once");
    ctx.remove("c");
    ctx.rename("old", "new");
    ctx.write("old", "another");
    ctx.remove("new");
}

fn case_02_link_rename_link(ctx: &mut Ctx<'_>) {
    ctx.write("f", "twin");
    ctx.settle();
    for round in 0..5 {
        let (x, y) = (format!("x{round}"), format!("y{round}"));
        ctx.link("f", &x);
        ctx.rename(&x, &y);
        ctx.link("f", &x);
    }
}

fn case_03_unlink_and_create_with_the_same_inode(ctx: &mut Ctx<'_>) {
    let time = Timespec {
        tv_sec: 1_000_000_000,
        tv_nsec: 7,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    let mut again = 0;
    for round in 0..20 {
        let before = fs::metadata(ctx.path("f")).map(|meta| meta.ino()).ok();
        let _ = fs::remove_file(ctx.path("f"));
        ctx.write("f", format!("content {round:02}"));
        rustix::fs::utimensat(CWD, ctx.path("f"), &times, rustix::fs::AtFlags::empty()).unwrap();
        again += u32::from(before == fs::metadata(ctx.path("f")).map(|meta| meta.ino()).ok());
        if round % 4 == 3 {
            ctx.settle();
        }
    }
    println!("the same inode number came again {again} times");
}

fn case_04_rename_over(ctx: &mut Ctx<'_>) {
    for name in ["a", "b", "c", "linked"] {
        ctx.write(name, name);
    }
    ctx.link("linked", "other name of linked");
    for dir in ["full", "empty", "replaced by full"] {
        ctx.mkdir(dir);
    }
    ctx.write("full/x", "x");
    symlink("a", ctx.path("link")).unwrap();
    ctx.settle();
    ctx.rename("a", "b");
    ctx.rename("c", "linked");
    ctx.rename("full", "empty");
    ctx.rename("link", "other name of linked");
    ctx.settle();
    ctx.rename("empty", "replaced by full");
}

fn case_05_exchange(ctx: &mut Ctx<'_>) {
    for name in ["file1", "file2", "file3"] {
        ctx.write(name, name);
    }
    for dir in ["dir1", "dir2", "dir3"] {
        ctx.mkdir(dir);
        ctx.write(&format!("{dir}/in {dir}"), dir);
    }
    ctx.settle();
    for (a, b) in [("file1", "file2"), ("dir1", "dir2"), ("file3", "dir3")] {
        rename_with(ctx, a, b, RenameFlags::EXCHANGE);
    }
    ctx.settle();
    // Into each other's directories, and at once changed under the new names.
    rename_with(ctx, "dir1/in dir2", "dir2/in dir1", RenameFlags::EXCHANGE);
    rename_with(ctx, "dir1", "file1", RenameFlags::EXCHANGE);
    ctx.write("dir1", "a file now");
    ctx.write("file1/new", "a directory now");
}

fn case_06_swap_in_three_steps(ctx: &mut Ctx<'_>) {
    for name in ["a", "b"] {
        ctx.write(name, name);
        ctx.mkdir(&format!("dir {name}"));
        ctx.write(&format!("dir {name}/f"), name);
    }
    ctx.settle();
    for (a, b) in [("a", "b"), ("dir a", "dir b"), ("a", "dir a")] {
        ctx.rename(a, "t");
        ctx.rename(b, a);
        ctx.rename("t", b);
    }
}

fn case_07_parent_and_child_change_places(ctx: &mut Ctx<'_>) {
    ctx.mkdir("a/b/c");
    ctx.write("a/f", "of a");
    ctx.write("a/b/f", "of b");
    ctx.write("a/b/c/f", "of c");
    ctx.settle();
    ctx.rename("a/b", "t");
    ctx.rename("a", "t/a");
    ctx.rename("t", "b");
    ctx.settle();
    // And deeper: a chain turned round.
    ctx.rename("b/c", "c");
    ctx.rename("b/a", "c/a");
    ctx.rename("b", "c/a/b");
}

fn case_08_rename_onto_the_twin(ctx: &mut Ctx<'_>) {
    ctx.write("x", "twin");
    ctx.link("x", "y");
    ctx.settle();
    ctx.rename("x", "y");
    assert!(ctx.path("x").exists() && ctx.path("y").exists());
    ctx.settle();
    ctx.remove("x");
    ctx.write("y", "alone");
}

fn case_09_whiteout(ctx: &mut Ctx<'_>) {
    ctx.write("w", "leaves a device");
    ctx.mkdir("wd");
    ctx.write("wd/f", "leaves one too");
    ctx.settle();
    for (from, to) in [("w", "moved"), ("wd", "moved dir")] {
        if let Err(e) = rustix::fs::renameat_with(
            CWD,
            ctx.path(from),
            CWD,
            ctx.path(to),
            RenameFlags::WHITEOUT,
        ) {
            return ctx.skip(&format!("no whiteouts here: {e}"));
        }
    }
    assert!(!fs::symlink_metadata(ctx.path("w")).unwrap().is_file());
}

fn case_10_deep_dir_renamed_while_files_are_written_below(ctx: &mut Ctx<'_>) {
    ctx.mkdir("top/1/2/3/4/5");
    ctx.settle();
    let deep = rustix::fs::open(
        ctx.path("top/1/2/3/4/5"),
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap();
    let writer = std::thread::spawn(move || {
        for number in 0..300 {
            let fd = rustix::fs::openat(
                &deep,
                format!("f{number}"),
                OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC,
                Mode::from_raw_mode(0o644),
            )
            .unwrap();
            let mut file = File::from(fd);
            file.write_all(format!("content {number}").as_bytes())
                .unwrap();
            if number % 3 == 0 {
                let (old, new) = (format!("f{number}"), format!("g{number}"));
                rustix::fs::renameat(&deep, old, &deep, new).unwrap();
            }
        }
    });
    for number in 0..30 {
        ctx.rename("top/1/2", "top/moved");
        ctx.rename("top", &format!("t{number}"));
        ctx.rename(&format!("t{number}"), "top");
        ctx.rename("top/moved", "top/1/2");
        std::thread::sleep(Duration::from_millis(2));
    }
    writer.join().unwrap();
    ctx.rename("top/1", "one");
}

fn case_11_dir_with_10000_files_moved_in(ctx: &mut Ctx<'_>) {
    let files = if ctx.fs == Fs::Ext4 { 10_000 } else { 2_000 };
    let dir = ctx.outside.join("many");
    fs::create_dir_all(dir.join("sub")).unwrap();
    for number in 0..files {
        let below = if number % 4 == 0 { "sub/" } else { "" };
        fs::write(dir.join(format!("{below}{number}")), number.to_string()).unwrap();
    }
    ctx.settle();
    fs::rename(&dir, ctx.path("many")).unwrap();
    ctx.write("many/one more", "written after the move");
    ctx.settle();
    // And out again.
    fs::rename(ctx.path("many/sub"), ctx.outside.join("sub")).unwrap();
}

fn case_12_moved_out_changed_outside_moved_back(ctx: &mut Ctx<'_>) {
    ctx.mkdir("d/sub");
    ctx.write("d/sub/f", "before");
    ctx.write("d/gone", "gone later");
    ctx.write("file", "before");
    ctx.settle();
    for settle_between in [false, true] {
        let (dir, file) = (ctx.outside.join("d"), ctx.outside.join("file"));
        fs::rename(ctx.path("d"), &dir).unwrap();
        fs::rename(ctx.path("file"), &file).unwrap();
        if settle_between {
            ctx.settle();
        }
        fs::write(dir.join("sub/f"), format!("changed {settle_between}")).unwrap();
        fs::write(dir.join(format!("new {settle_between}")), "new").unwrap();
        let _ = fs::remove_file(dir.join("gone"));
        fs::rename(dir.join("sub"), dir.join(format!("sub {settle_between}"))).unwrap();
        fs::create_dir(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/f"), "another").unwrap();
        fs::write(&file, format!("changed {settle_between}")).unwrap();
        fs::rename(&dir, ctx.path("d")).unwrap();
        fs::rename(&file, ctx.path("file")).unwrap();
        ctx.settle();
    }
}

fn case_14_made_filled_and_parent_renamed_at_once(ctx: &mut Ctx<'_>) {
    for round in 0..40 {
        ctx.mkdir(&format!("n{round}/a/b"));
        ctx.write(&format!("n{round}/a/b/f"), format!("{round}"));
        ctx.rename(&format!("n{round}"), &format!("m{round}"));
        ctx.write(&format!("m{round}/a/g"), "after");
        ctx.rename(&format!("m{round}/a"), &format!("m{round}/c"));
    }
}

fn case_15_removed_while_others_create(ctx: &mut Ctx<'_>) {
    ctx.mkdir("busy");
    let dir = ctx.path("busy");
    let creator = std::thread::spawn(move || {
        for number in 0..600 {
            let sub = dir.join(format!("s{}", number % 7));
            let _ = fs::create_dir_all(&sub);
            let _ = fs::write(sub.join(format!("f{number}")), "x");
        }
    });
    for _ in 0..20 {
        let _ = fs::remove_dir_all(ctx.path("busy"));
        std::thread::sleep(Duration::from_millis(3));
    }
    creator.join().unwrap();
}

fn case_16_written_through_the_outside_name(ctx: &mut Ctx<'_>) {
    let outside = ctx.outside.join("name");
    ctx.write("inside", "one");
    fs::hard_link(ctx.path("inside"), &outside).unwrap();
    let moved_in = ctx.outside.join("second");
    fs::write(&moved_in, "born outside").unwrap();
    fs::hard_link(&moved_in, ctx.path("second")).unwrap();
    ctx.options.ignore.insert(Class::Links);
    ctx.settle();
    fs::write(&outside, "through the outside name").unwrap();
    OpenOptions::new()
        .append(true)
        .open(&moved_in)
        .unwrap()
        .write_all(b", appended outside")
        .unwrap();
    ctx.settle();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).unwrap();
    ctx.settle();
    // The name inside goes and comes back by its twin outside.
    ctx.remove("inside");
    fs::write(&outside, "while it was only outside").unwrap();
    fs::hard_link(&outside, ctx.path("inside again")).unwrap();
    ctx.settle();
    fs::remove_file(&outside).unwrap();
    fs::remove_file(&moved_in).unwrap();
}

fn case_17_two_of_three_links_gone_then_written(ctx: &mut Ctx<'_>) {
    ctx.mkdir("d");
    ctx.write("a", "three names");
    ctx.link("a", "b");
    ctx.link("a", "d/c");
    ctx.settle();
    let file = OpenOptions::new().write(true).open(ctx.path("a")).unwrap();
    ctx.remove("a");
    ctx.remove("b");
    file.write_all_at(b"THREE", 0).unwrap();
    ctx.settle();
    file.write_all_at(b"again", 5).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o640))
        .unwrap();
    ctx.settle();
    drop(file);
}

fn case_18_nameless_file_gets_a_name_and_is_changed_later(ctx: &mut Ctx<'_>) {
    let nameless = |ctx: &Ctx<'_>| {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        File::from(rustix::fs::open(&ctx.dir, flags, Mode::from_raw_mode(0o644)).unwrap())
    };
    let name = |ctx: &Ctx<'_>, file: &File, name: &str| {
        use std::os::fd::AsRawFd;
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(CWD, from, CWD, ctx.path(name), follow).unwrap();
    };
    let first = nameless(ctx);
    first.write_all_at(b"nameless", 0).unwrap();
    name(ctx, &first, "named");
    ctx.settle();
    first.write_all_at(b", later by the descriptor", 8).unwrap();
    ctx.settle();
    first
        .set_permissions(fs::Permissions::from_mode(0o600))
        .unwrap();
    ctx.settle();
    let second = nameless(ctx);
    name(ctx, &second, "named empty");
    second
        .write_all_at(b"filled after it got its name", 0)
        .unwrap();
    drop((first, second));
}

fn case_19_names(ctx: &mut Ctx<'_>) {
    let long = [b'n'; 255];
    let wide = "\u{1f600}".repeat(63);
    let names: &[&[u8]] = &[
        b"\xff\xfe not UTF-8",
        b"new\nline",
        b"#12345",
        b"gone (deleted)",
        b" leading and trailing ",
        b"-rf",
        b"*",
        b"back\\slash",
        b"tab\tescape\x1b[31m",
        b"...",
        b"\x01\x02\x7f",
        "decomposed e\u{301}".as_bytes(),
        "composed \u{e9}".as_bytes(),
        &long,
        wide.as_bytes(),
    ];
    for name in names {
        let name = OsStr::from_bytes(name);
        fs::create_dir(ctx.dir.join(name)).unwrap();
        fs::write(ctx.dir.join(name).join(name), name.as_bytes()).unwrap();
    }
    ctx.settle();
    for name in names {
        let dir = ctx.dir.join(OsStr::from_bytes(name));
        let name = OsStr::from_bytes(name);
        fs::write(dir.join(name), "changed").unwrap();
        let mut short = name.as_bytes().to_vec();
        short.truncate(200);
        short.push(b'x');
        fs::rename(dir.join(name), dir.join(OsStr::from_bytes(&short))).unwrap();
    }
    ctx.settle();
    // A path longer than PATH_MAX, by steps.
    let mut at =
        rustix::fs::open(&ctx.dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    for depth in 0..25 {
        // The uppermost is there already.
        let made = rustix::fs::mkdirat(&at, &long[..], Mode::from_raw_mode(0o755));
        assert!(made.is_ok() || depth == 0, "{made:?}");
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        at = rustix::fs::openat(&at, &long[..], flags, Mode::empty()).unwrap();
    }
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&at, "deep", flags, Mode::from_raw_mode(0o644)).unwrap();
    File::from(file).write_all(b"beyond PATH_MAX").unwrap();
    ctx.settle();
    let file =
        rustix::fs::openat(&at, "deep", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    File::from(file).write_all(b"changed").unwrap();
}

fn case_20_symlinks(ctx: &mut Ctx<'_>) {
    let link = ctx.path("link");
    symlink("first", &link).unwrap();
    symlink("/absolute/and/nowhere", ctx.path("absolute")).unwrap();
    symlink("x".repeat(1000), ctx.path("long target")).unwrap();
    symlink(OsStr::from_bytes(b"\xff\n"), ctx.path("odd target")).unwrap();
    ctx.settle();
    let retarget = |to: &str| {
        symlink(to, ctx.path("link.new")).unwrap();
        fs::rename(ctx.path("link.new"), &link).unwrap();
    };
    retarget("second");
    fs::remove_file(&link).unwrap();
    symlink("third", &link).unwrap();
    ctx.settle();
    std::os::unix::fs::lchown(&link, Some(1234), Some(5678)).unwrap();
    let time = |sec, nsec| Timespec {
        tv_sec: sec,
        tv_nsec: nsec,
    };
    let times = Timestamps {
        last_access: time(1, 2),
        last_modification: time(-77, 123_456_789),
    };
    rustix::fs::utimensat(CWD, &link, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    ctx.settle();
    // A symlink has hard links and extended attributes too.
    rustix::fs::linkat(
        CWD,
        &link,
        CWD,
        ctx.path("twin"),
        rustix::fs::AtFlags::empty(),
    )
    .unwrap();
    raw::set_xattr(&link, "trusted.note", b"on a symlink").unwrap();
}

fn node(ctx: &Ctx<'_>, name: &str, kind: FileType, major: u32, minor: u32) {
    let dev = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(CWD, ctx.path(name), kind, Mode::from_raw_mode(0o620), dev).unwrap();
}

fn case_21_special_files(ctx: &mut Ctx<'_>) {
    node(ctx, "fifo", FileType::Fifo, 0, 0);
    node(ctx, "socket", FileType::Socket, 0, 0);
    node(ctx, "char", FileType::CharacterDevice, 1, 3);
    node(ctx, "block", FileType::BlockDevice, 259, 200_000);
    node(ctx, "whiteout", FileType::CharacterDevice, 0, 0);
    let bound = std::os::unix::net::UnixListener::bind(ctx.path("listening")).unwrap();
    ctx.settle();
    rustix::fs::chmodat(
        CWD,
        ctx.path("fifo"),
        Mode::from_raw_mode(0o600),
        rustix::fs::AtFlags::empty(),
    )
    .unwrap();
    std::os::unix::fs::chown(ctx.path("char"), Some(7), Some(8)).unwrap();
    ctx.link("fifo", "fifo's twin");
    ctx.rename("block", "block2");
    fs::remove_file(ctx.path("whiteout")).unwrap();
    node(ctx, "whiteout", FileType::CharacterDevice, 0, 1);
    drop(bound);
}

fn case_22_type_changes(ctx: &mut Ctx<'_>) {
    let name = ctx.path("n");
    for round in 0..3 {
        fs::write(&name, "a file").unwrap();
        if round > 0 {
            ctx.settle();
        }
        fs::remove_file(&name).unwrap();
        fs::create_dir(&name).unwrap();
        fs::write(name.join("inside"), "of a directory").unwrap();
        if round > 0 {
            ctx.settle();
        }
        fs::remove_dir_all(&name).unwrap();
        symlink("a symlink", &name).unwrap();
        if round > 0 {
            ctx.settle();
        }
        fs::remove_file(&name).unwrap();
        node(ctx, "n", FileType::Fifo, 0, 0);
        if round > 0 {
            ctx.settle();
        }
        fs::remove_file(&name).unwrap();
    }
    fs::create_dir(&name).unwrap();
}

/// user:1234:rwx beside owner, group and others, as the kernel keeps it.
const ACL: &[u8] =
    b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x07\0\xd2\x04\0\0\x04\0\x04\0\xff\xff\xff\xff\
\x10\0\x07\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
/// cap_net_raw=p
const CAPABILITY: &[u8] =
    b"\x00\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

fn case_35_attributes(ctx: &mut Ctx<'_>) {
    let file = ctx.path("f");
    fs::write(&file, "attributes").unwrap();
    ctx.mkdir("d");
    let (holder, inherits) = (ctx.path("d"), ctx.path("d/inherits"));
    ctx.settle();
    let steps: &[&dyn Fn()] = &[
        &|| fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).unwrap(),
        &|| std::os::unix::fs::chown(&file, Some(4_000_000_000), Some(33)).unwrap(),
        &|| raw::set_xattr(&file, "user.a", b"one").unwrap(),
        &|| raw::set_xattr(&file, "user.a", b"two\0with NUL").unwrap(),
        &|| raw::set_xattr(&file, "trusted.empty", b"").unwrap(),
        &|| raw::set_xattr(&file, "system.posix_acl_access", ACL).unwrap(),
        &|| raw::set_xattr(&file, "security.capability", CAPABILITY).unwrap(),
        &|| rustix::fs::lremovexattr(&file, "user.a").unwrap(),
        &|| raw::set_xattr(&holder, "system.posix_acl_default", ACL).unwrap(),
        &|| fs::write(&inherits, "the default").unwrap(),
        &|| rustix::fs::lremovexattr(&file, "system.posix_acl_access").unwrap(),
    ];
    let (dir, copy) = (ctx.dir.clone(), ctx.copy.clone());
    for (number, step) in steps.iter().enumerate() {
        step();
        let ran = ctx.mirror.wait_idle();
        assert_eq!(ran.code, 0, "step {number}: {ran:?}");
        let found = testkit::compare(&dir, &copy, &ctx.options);
        assert!(found.is_empty(), "step {number}: {found:?}");
    }
}

fn case_36_setuid_cleared_by_a_write(ctx: &mut Ctx<'_>) {
    use std::os::unix::process::CommandExt;
    ctx.write("suid", "#!");
    fs::set_permissions(&ctx.dir, fs::Permissions::from_mode(0o755)).unwrap();
    let file = ctx.path("suid");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o6777)).unwrap();
    ctx.settle();
    // Opened by root, written by somebody: whoever may not set it clears it by a write.
    let held = OpenOptions::new().append(true).open(&file).unwrap();
    let wrote = Command::new("sh")
        .args(["-c", "printf more"])
        .stdout(held)
        .uid(65_534)
        .gid(65_534)
        .status()
        .unwrap();
    assert!(wrote.success());
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o777);
}

fn case_37_flags_and_project_of_something_looked_at(ctx: &mut Ctx<'_>) {
    const IMMUTABLE: u32 = 0x10;
    const NODUMP: u32 = 0x40;
    const NOATIME: u32 = 0x80;
    ctx.mkdir("d");
    ctx.write("d/locked", "immutable");
    ctx.write("noted", "nodump");
    ctx.settle();
    // Nothing tells of flags; any other change of the same object lets it be looked at.
    testkit::change_flags(&ctx.path("noted"), 0, NODUMP | NOATIME).unwrap();
    fs::set_permissions(ctx.path("noted"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(ctx.path("d/locked"), fs::Permissions::from_mode(0o444)).unwrap();
    testkit::change_flags(&ctx.path("d/locked"), 0, IMMUTABLE).unwrap();
    // The mode's event may be answered before the flag is set: a look that comes later sees both.
    raw::set_xattr(&ctx.path("d"), "user.x", b"x").unwrap();
    let _ = File::open(ctx.path("d/locked"));
    ctx.options.ignore.insert(Class::Flags);
    ctx.settle();
    testkit::change_flags(&ctx.path("d/locked"), IMMUTABLE, 0).unwrap();
    testkit::change_flags(&ctx.path("noted"), NODUMP | NOATIME, 0).unwrap();
    for name in ["noted", "d/locked"] {
        fs::set_permissions(ctx.path(name), fs::Permissions::from_mode(0o640)).unwrap();
    }
    ctx.options.ignore.clear();
}

fn case_39_directory_attributes(ctx: &mut Ctx<'_>) {
    ctx.mkdir("d/sub");
    ctx.settle();
    for name in ["d", "d/sub", "."] {
        let path = ctx.path(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o2751)).unwrap();
        std::os::unix::fs::chown(&path, Some(11), Some(22)).unwrap();
        raw::set_xattr(&path, "user.on.a.dir", name.as_bytes()).unwrap();
        let time = Timespec {
            tv_sec: 1_234_567_890,
            tv_nsec: 987_654_321,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
    }
    ctx.settle();
    fs::set_permissions(&ctx.root, fs::Permissions::from_mode(0o751)).unwrap();
    raw::set_xattr(&ctx.root, "user.root", b"of the tree").unwrap();
}
