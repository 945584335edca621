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
