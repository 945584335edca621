//! `--owners` changed on a copy that is there: it becomes what the records say, as far as it can be set now.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use common::{Ran, fs_mirror, mirror_arguments, run, run_command};
use testkit::compare;
use testkit::compare::Options;
use testkit::lab::{self, ImageOptions};

fn once(base: &Path, more: &[&str]) -> Ran {
    let mut all = vec!["--once"];
    all.extend(more);
    let arguments = mirror_arguments(&base.join("s"), &base.join("d"), &all);
    run_command(&mut fs_mirror(arguments))
}

fn status(base: &Path) -> String {
    let dst = base.join("d");
    run(["status".as_ref(), "-m".as_ref(), dst.as_os_str()]).stdout
}

#[test]
fn recorded_then_applied() {
    if !testkit::is_root() {
        return println!("skipped: not root");
    }
    let base = tempfile::tempdir().unwrap();
    let base = base.path();
    let src = base.join("s");
    fs::create_dir_all(src.join("dir/sub")).unwrap();
    for (name, uid, mode) in [
        ("a", 1, 0o4755),
        ("dir/b", 2, 0o2755),
        ("dir/sub/c", 0, 0o6711),
    ] {
        fs::write(src.join(name), name).unwrap();
        chown(src.join(name), Some(uid), Some(uid + 5)).unwrap();
        fs::set_permissions(src.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    chown(src.join("dir/sub"), Some(3), None).unwrap();
    let mut mknod = Command::new("mknod");
    let made = mknod.arg(src.join("null")).args(["c", "1", "3"]).status();
    if !made.is_ok_and(|made| made.success()) {
        return println!("skipped: may not make device nodes");
    }
    let ran = once(base, &["--owners", "record"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for _ in 0..2 {
        let said = status(base);
        for kind in ["devices 1", "owners 4", "setid 3"] {
            assert!(said.contains(kind), "{said}");
        }
        // Nothing of it is forgotten by a run that changes nothing.
        let ran = once(base, &[]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    let ran = once(base, &["--owners", "apply"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let found = compare(&src, &base.join("d"), &Options::default());
    assert!(found.is_empty(), "{found:#?}");
    let said = status(base);
    assert!(!said.contains("recorded"), "{said}");
    assert!(
        fs::read_dir(base.join("d.fs_mirror/adopted"))
            .unwrap()
            .next()
            .is_none(),
        "our own stand-in is nobody's work"
    );
    let ran = run(["verify".as_ref(), "-m".as_ref(), base.join("d").as_os_str()]);
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// A file system of whole seconds up to 2038: what it can't tell is counted, and is no difference.
#[test]
fn times_that_can_not_be_kept_are_recorded() {
    lab::in_private_namespace("times_that_can_not_be_kept_are_recorded", |lab| {
        let source = testkit::need!(lab.ext4(64));
        let options = ImageOptions {
            size_mb: 64,
            mkfs: vec!["-I".into(), "128".into()],
            ..ImageOptions::default()
        };
        let coarse = testkit::need!(lab.image_with(testkit::Fs::Ext4, &options));
        let base = coarse.path();
        let src = source.dir("s").unwrap();
        std::os::unix::fs::symlink(&src, base.join("s")).unwrap();
        let at = |name: &str, date: &str| {
            fs::write(src.join(name), name).unwrap();
            let mut touch = Command::new("touch");
            let touched = touch.args(["-d", date]).arg(src.join(name)).status();
            assert!(touched.unwrap().success());
        };
        at("future", "2300-01-01 00:00:00 UTC");
        at("fine", "2020-01-01 00:00:00.123456789 UTC");
        at("whole", "2020-01-01 00:00:00 UTC");
        assert_eq!(once(&base, &[]).code, 0);
        // The tree's own time is one of them, too.
        assert!(status(&base).contains("times 3"), "{}", status(&base));
        let dst = base.join("d");
        let verify = run(["verify".as_ref(), "-m".as_ref(), dst.as_os_str()]);
        assert_eq!(verify.code, 0, "{verify:?}");
        assert_eq!(once(&base, &[]).code, 0);
        assert!(status(&base).contains("times 3"), "{}", status(&base));
    });
}

/// As somebody who is nobody here.
fn as_nobody(program: &Path, arguments: &[&std::ffi::OsStr]) -> Option<String> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    let ran = command.args(arguments).uid(65_534).gid(65_534).output();
    let ran = ran.ok().filter(|ran| ran.status.success())?;
    Some(String::from_utf8_lossy(&ran.stdout).trim().to_owned())
}

/// A program that gives root's rights, one that has a capability, a device that everybody may read: exact, and yet of no use.
#[test]
fn what_gives_rights_gives_none_in_the_copy() {
    if !testkit::is_root() {
        return println!("skipped: not root");
    }
    let base = tempfile::tempdir_in("/var/tmp").unwrap();
    let base = base.path();
    fs::set_permissions(base, fs::Permissions::from_mode(0o700)).unwrap();
    let src = base.join("s");
    fs::create_dir(&src).unwrap();
    let mode =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&src, 0o755);
    fs::copy("/usr/bin/id", src.join("id")).unwrap();
    mode(&src.join("id"), 0o4755);
    let made = Command::new("mknod")
        .arg(src.join("zero"))
        .args(["c", "1", "5"])
        .status();
    assert!(made.unwrap().success());
    mode(&src.join("zero"), 0o666);
    let head: [&std::ffi::OsStr; 2] = ["-c1".as_ref(), "".as_ref()];
    let read = |dir: &Path| {
        let zero = dir.join("zero");
        as_nobody(Path::new("/usr/bin/head"), &[head[0], zero.as_os_str()])
    };
    let run_id = |dir: &Path| as_nobody(&dir.join("id"), &["-u".as_ref()]);
    let dst = base.join("d");
    for owners in ["apply", "record"] {
        let ran = once(base, &["--owners", owners]);
        assert_eq!(ran.code, 0, "{ran:?}");
        // Below a closed directory nobody gets at any of it.
        assert_eq!((run_id(&dst), read(&dst)), (None, None), "{owners}");
        mode(base, 0o755);
        let (id, zero) = (run_id(&dst), read(&dst));
        match owners {
            // That is what the closed directory is for.
            "apply" => {
                let device = fs::symlink_metadata(dst.join("zero")).unwrap();
                assert!(std::os::unix::fs::FileTypeExt::is_char_device(
                    &device.file_type()
                ));
                compare::assert_equal(&src, &dst, &Options::default());
            }
            // Recorded only, it is harmless anywhere.
            _ => {
                assert_eq!(id.as_deref(), Some("65534"));
                assert_eq!(zero, None);
                assert_eq!(
                    fs::metadata(dst.join("id")).unwrap().permissions().mode() & 0o7777,
                    0o755
                );
            }
        }
        mode(base, 0o700);
    }
    // And all of it comes back.
    let ran = once(base, &["--owners", "apply"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    compare::assert_equal(&src, &dst, &Options::default());
}

#[test]
fn a_state_where_somebody_else_could_put_another_is_refused() {
    if !testkit::is_root() {
        return println!("skipped: not root");
    }
    let base = tempfile::tempdir().unwrap();
    let theirs = base.path().join("theirs");
    fs::create_dir_all(theirs.join("s")).unwrap();
    chown(&theirs, Some(65_534), Some(65_534)).unwrap();
    let mode = |mode| fs::set_permissions(&theirs, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o777);
    let ran = once(&theirs, &[]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr
            .contains("belongs to user 65534 and may be written by more than him"),
        "{ran:?}"
    );
    assert!(!theirs.join("d.fs_mirror").exists());
    // As in /tmp nobody renames what is another's; and where only he writes it is his own to lose.
    for fine in [0o1777, 0o755] {
        mode(fine);
        let ran = once(&theirs, &[]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
}
