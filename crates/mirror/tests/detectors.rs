//! Every way to hear of changes, on the file systems that need it: in the end the copy equals the source.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Mirror, fs_mirror, mirror_arguments, program, run_command};
use mirror::engine::options::Detector;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::process::{Gid, Signal, Uid};
use testkit::compare::{Class, Options};
use testkit::lab::{self, Lab};
use testkit::proc::wait_until;
use testkit::{Fs, Image, need, skip, workload};

const NOBODY: u32 = 65_534;

/// A mount made by hand, gone when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn bind(from: &Path, at: &Path) -> Mounted {
        fs::create_dir_all(at).unwrap();
        mount_bind(from, at).unwrap();
        Mounted(at.to_path_buf())
    }
    /// As a person does; fails while somebody uses it.
    fn unmount(self) {
        unmount(&self.0, UnmountFlags::empty()).unwrap();
        std::mem::forget(self);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn churn(tree: &Path, seed: u64, ops: u64, outside: Option<&Path>) {
    let params = workload::Params {
        seed,
        ops,
        outside: outside.map(Path::to_path_buf),
        ..Default::default()
    };
    workload::start(tree, &params, 2).unwrap().wait().unwrap();
}

/// Without stores through mappings of closed files: on overlay and FUSE they move no time and make no event, as is said
/// at the start.
fn churn_unmapped(tree: &Path, seed: u64, ops: u64) {
    let params = workload::Params {
        seed,
        ops,
        mappings: false,
        ..Default::default()
    };
    workload::start(tree, &params, 2).unwrap().wait().unwrap();
}

/// Does this as another user, who has no rights but the usual ones.
fn as_nobody<T>(act: impl FnOnce() -> T) -> T {
    let (root, nobody) = (Uid::ROOT, Uid::from_raw(NOBODY));
    let group = Gid::from_raw(NOBODY);
    rustix::thread::set_thread_res_gid(group, group, Gid::ROOT).unwrap();
    rustix::thread::set_thread_res_uid(nobody, nobody, root).unwrap();
    let done = act();
    rustix::thread::set_thread_res_uid(root, root, root).unwrap();
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).unwrap();
    done
}

/// What an ordinary user can't set in a copy, and records.
fn recorded() -> Options {
    Options::ignoring(&[
        Class::Uid,
        Class::Gid,
        Class::Mode,
        Class::Type,
        Class::Device,
        Class::Xattr,
        Class::Flags,
        Class::Project,
    ])
}

fn start(src: &Path, dst: &Path, more: &[&str]) -> Mirror {
    let mut all = vec!["--on-mass-change", "follow"];
    all.extend(more);
    let mut mirror = Mirror::start_with(src, dst, &all);
    mirror.equal_once();
    mirror
}

fn said(mirror: &Mirror) -> String {
    mirror.program.stderr()
}

/// The first image holds SRC, the second the copy.
fn two(lab: &Lab, fs: Fs) -> Result<(Image, Image), lab::Skip> {
    Ok((lab.image(fs, 256)?, lab.ext4(256)?))
}

#[test]
fn each_detector_by_name() {
    lab::in_private_namespace("each_detector_by_name", |lab| {
        let (image, copies) = need!(two(lab, Fs::Ext4));
        let src = image.dir("src").unwrap();
        for (n, name) in ["fanotify", "inotify", "scan"].into_iter().enumerate() {
            let dst = copies.path().join(name);
            let mut mirror = start(&src, &dst, &["--detector", name]);
            assert!(
                said(&mirror).contains(&format!("watching with {name}: asked for")),
                "{}",
                said(&mirror)
            );
            churn(&src, 100 + n as u64, 1000, None);
            if name == "scan" {
                // No event ever explains a loss: when the workload emptied a directory it waits for a word.
                mirror.must_become_equal();
                assert!(said(&mirror).contains("everything is looked at every 10 s"));
                // By its interval, without being asked.
                fs::write(src.join("by itself"), "x").unwrap();
                wait_until("the scan finds it", Duration::from_secs(40), || {
                    dst.join("by itself").exists()
                })
                .unwrap();
            } else {
                mirror.must_be_equal();
            }
            assert_eq!(mirror.number("counters/scan_corrections"), 0);
            mirror.stop();
        }
    });
}

#[test]
fn fanotify_on_xfs_and_tmpfs() {
    lab::in_private_namespace("fanotify_on_xfs_and_tmpfs", |lab| {
        for (n, fs) in [Fs::Xfs, Fs::Tmpfs].into_iter().enumerate() {
            let (image, copies) = need!(two(lab, fs));
            let src = image.dir("src").unwrap();
            let outside = image.dir("outside").unwrap();
            let mut mirror = start(&src, &copies.path().join("dst"), &[]);
            let words = "watching with fanotify: one mark for the whole file system";
            assert!(said(&mirror).contains(words), "{}", said(&mirror));
            churn(&src, 200 + n as u64, 1500, Some(&outside));
            // A copy on ext4 has no holes where xfs and tmpfs have them by another size of block.
            mirror.must_be_equal_but(&Options::ignoring(&[Class::Holes, Class::Blocks]));
        }
    });
}

#[test]
fn inotify_where_fanotify_can_not_be() {
    lab::in_private_namespace("inotify_where_fanotify_can_not_be", |lab| {
        overlay(lab);
        subvolume(lab);
        fuse(lab);
    });
}

fn overlay(lab: &Lab) {
    let (image, copies) = need!(two(lab, Fs::Ext4));
    let lower_image = need!(lab.tmpfs(64));
    // Its files show another device number than the overlay's directories.
    let lower = lower_image.dir("lower").unwrap();
    fs::create_dir_all(lower.join("d/e")).unwrap();
    fs::write(lower.join("d/e/f"), "below").unwrap();
    fs::write(lower.join("d/g"), "below too").unwrap();
    let (upper, work) = (image.dir("upper").unwrap(), image.dir("work").unwrap());
    let src = image.dir("merged").unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let options = std::ffi::CString::new(options).unwrap();
    if let Err(e) = mount("overlay", &src, "overlay", MountFlags::empty(), &*options) {
        skip!("no overlay here: {e}");
    }
    let src = Mounted(src);
    let mut mirror = start(&src.0, &copies.path().join("dst"), &[]);
    let words = "watching with inotify: fanotify is not possible: directories of overlay can't be opened by handle; \
                 what is stored through mappings on overlay is found by scans alone";
    assert!(said(&mirror).contains(words), "{}", said(&mirror));
    assert_eq!(
        fs::read(mirror.dst.join("d/e/f")).unwrap(),
        b"below",
        "files of the lower layer are part of the tree"
    );
    // Copied up, a directory's way to its files included.
    fs::write(src.0.join("d/e/f"), "above").unwrap();
    fs::write(src.0.join("d/e/new"), "above").unwrap();
    mirror.must_be_equal_but(&Options::ignoring(&[Class::Holes, Class::Blocks]));
    churn_unmapped(&src.0, 301, 800);
    mirror.must_be_equal_but(&Options::ignoring(&[Class::Holes, Class::Blocks]));
    fs::remove_dir_all(src.0.join("d")).unwrap();
    mirror.must_be_equal_but(&Options::ignoring(&[Class::Holes, Class::Blocks]));
}

fn subvolume(lab: &Lab) {
    let (image, copies) = need!(two(lab, Fs::Btrfs));
    let made = |path: &Path| {
        let mut command = Command::new("btrfs");
        command.args(["subvolume", "create"]).arg(path);
        command.output().is_ok_and(|out| out.status.success())
    };
    let sub = image.path().join("sub");
    if !made(&sub) {
        skip!("no btrfs program");
    }
    let src = Mounted::bind(&sub, &image.path().join("src"));
    assert!(made(&sub.join("nested")));
    fs::write(sub.join("nested/inner"), "x").unwrap();
    let mut mirror = start(&src.0, &copies.path().join("dst"), &[]);
    let words =
        "watching with inotify: fanotify is not possible: the mount shows a btrfs subvolume";
    assert!(said(&mirror).contains(words), "{}", said(&mirror));
    churn(&src.0, 302, 1000, None);
    assert_eq!(mirror.wait_idle().code, 0);
    // The nested one is no part of the tree, nor is one that comes later.
    assert!(made(&src.0.join("later")));
    fs::write(src.0.join("after"), "x").unwrap();
    assert_eq!(mirror.wait_idle().code, 0);
    let status = mirror.status();
    let left_out = status.pointer("/status/not_mirrored").unwrap().to_string();
    assert!(
        left_out.contains("nested") && left_out.contains("later"),
        "{left_out}"
    );
    assert!(!mirror.dst.join("nested").exists() && !mirror.dst.join("later").exists());
    for name in ["nested", "later"] {
        let mut command = Command::new("btrfs");
        command.args(["subvolume", "delete"]).arg(src.0.join(name));
        assert!(command.output().unwrap().status.success());
    }
    mirror.must_be_equal_but(&Options::ignoring(&[Class::Holes, Class::Blocks]));
}

fn fuse(lab: &Lab) {
    let (image, copies) = need!(two(lab, Fs::Ext4));
    let (back, src) = (image.dir("back").unwrap(), image.dir("src").unwrap());
    std::os::unix::fs::chown(&back, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(
        image.path().parent().unwrap(),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    let mounted = Command::new("bindfs").arg(&back).arg(&src).output();
    if !mounted.is_ok_and(|out| out.status.success()) {
        skip!("no bindfs");
    }
    let src = Mounted(src);
    let mut mirror = start(&src.0, &copies.path().join("dst"), &[]);
    let words = "watching with inotify: fanotify is not possible: FUSE gives no file handles that last; what is \
                 changed elsewhere on FUSE is found by scans alone";
    assert!(said(&mirror).contains(words), "{}", said(&mirror));
    let options = Options::ignoring(&[Class::Holes, Class::Blocks, Class::Flags, Class::Project]);
    // Not as root: there are owners that FUSE can't tell.
    as_nobody(|| churn_unmapped(&src.0, 303, 600));
    mirror.must_be_equal_but(&options);
    // There is no birth time, and numbers are used again: another symlink may look like the one before.
    let link = src.0.join("link");
    symlink("here", &link).unwrap();
    mirror.must_be_equal_but(&options);
    mirror.program.signal(Signal::STOP).unwrap();
    let number = link.symlink_metadata().unwrap().ino();
    let retargeted = (0..64).any(|n| {
        fs::remove_file(&link).unwrap();
        symlink(format!("there, {n}"), &link).unwrap();
        link.symlink_metadata().unwrap().ino() == number
    });
    mirror.program.signal(Signal::CONT).unwrap();
    assert!(retargeted, "the number was never used again");
    mirror.must_be_equal_but(&options);
    // What is done behind it is found when it is asked for.
    fs::write(back.join("behind"), "x").unwrap();
    mirror.must_be_equal_but(&options);
    // Mounted anew its inodes have other numbers, and another device: nothing of that is a change.
    mirror.stop();
    src.unmount();
    let src = image.dir("src").unwrap();
    assert!(
        Command::new("bindfs")
            .arg(&back)
            .arg(&src)
            .status()
            .unwrap()
            .success()
    );
    let src = Mounted(src);
    let mut mirror = start(&src.0, &copies.path().join("dst"), &[]);
    mirror.must_be_equal_but(&options);
}

#[test]
fn an_ordinary_user() {
    lab::in_private_namespace("an_ordinary_user", |lab| {
        let (image, copies) = need!(two(lab, Fs::Ext4));
        for image in [&image, &copies] {
            let base = image.path();
            fs::set_permissions(base.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
            std::os::unix::fs::chown(&base, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        // Where anybody may start it.
        let own = image.path().parent().unwrap().join("fs_mirror");
        fs::copy(program(), &own).unwrap();
        let src = image.path().join("src");
        as_nobody(|| {
            fs::create_dir_all(src.join("deep/er")).unwrap();
            fs::write(src.join("deep/er/f"), "f").unwrap();
        });
        let secret = src.join("secret");
        fs::write(&secret, "mine").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(src.join("closed")).unwrap();
        fs::set_permissions(src.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(src.join("closed/inside"), "mine").unwrap();
        let hidden = Mounted::bind(&copies.path(), &image.path().join("src/mounted"));
        let dst = copies.path().join("dst");
        let mut command = Command::new(&own);
        command
            .args(mirror_arguments(
                &src,
                &dst,
                &["--on-mass-change", "follow"],
            ))
            .env_clear()
            .uid(NOBODY)
            .gid(NOBODY);
        let mut mirror = Mirror::start_command(&mut command, &src, &dst);
        mirror.printed("incomplete: 2 paths failed");
        let words = "watching with inotify: fanotify is not possible: it needs root";
        assert!(said(&mirror).contains(words), "{}", said(&mirror));
        // What can't be read is told, and does not stop the rest.
        let ran = mirror.wait_idle();
        assert_eq!(ran.code, 3, "{ran:?}");
        let failed = mirror
            .status()
            .pointer("/status/failed")
            .unwrap()
            .to_string();
        assert!(
            failed.contains("secret") && failed.contains("closed"),
            "{failed}"
        );
        assert!(!failed.contains("mounted"), "{failed}");
        as_nobody(|| churn(&src, 400, 1000, None));
        let ran = mirror.wait_idle();
        assert_eq!(ran.code, 3, "{ran:?}");
        // It heals when it may be read.
        for name in ["secret", "closed"] {
            fs::set_permissions(src.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        hidden.unmount();
        fs::remove_dir(src.join("mounted")).unwrap();
        wait_until("nothing fails any more", common::DEADLINE, || {
            mirror.wait_idle().code == 0
        })
        .unwrap_or_else(|late| panic!("{late}: {}", mirror.status()));
        mirror.must_be_equal_but(&recorded());
        assert!(mirror.dst.join("closed/inside").exists());

        // A renamed directory is one move, however much lies in it.
        as_nobody(|| {
            fs::create_dir(src.join("big")).unwrap();
            for n in 0..1000 {
                fs::write(src.join(format!("big/{n}")), "x").unwrap();
            }
        });
        assert_eq!(mirror.wait_idle().code, 0);
        let before = mirror.number("counters/records");
        let inode = fs::metadata(mirror.dst.join("big/7")).unwrap().ino();
        as_nobody(|| fs::rename(src.join("big"), src.join("deep/bigger")).unwrap());
        assert_eq!(mirror.wait_idle().code, 0);
        let records = mirror.number("counters/records") - before;
        assert!(records <= 5, "{records} records for one rename");
        assert_eq!(
            fs::metadata(mirror.dst.join("deep/bigger/7"))
                .unwrap()
                .ino(),
            inode
        );
        // And it is still heard.
        as_nobody(|| fs::write(src.join("deep/bigger/7"), "y").unwrap());
        mirror.must_be_equal_but(&recorded());
        // A restart knows it all.
        mirror.stop();
        let mut mirror = Mirror::start_command(&mut command, &src, &dst);
        mirror.equal_once();
        as_nobody(|| churn(&src, 401, 500, None));
        mirror.must_be_equal_but(&recorded());
    });
}

#[test]
fn more_directories_than_watches() {
    lab::in_private_namespace("more_directories_than_watches", |lab| {
        let (image, copies) = need!(two(lab, Fs::Ext4));
        let src = image.dir("src").unwrap();
        for n in 0..60 {
            fs::create_dir(src.join(format!("{n}"))).unwrap();
        }
        let dst = copies.path().join("dst");
        // A user namespace has a limit of its own.
        let script = "echo 20 > /proc/sys/user/max_inotify_watches && exec \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "sh", "-c", script, "sh"])
            .arg(program())
            .args(mirror_arguments(
                &src,
                &dst,
                &["--on-mass-change", "follow", "--owners", "record"],
            ));
        let tried = Command::new("unshare")
            .args(["--user", "--map-root-user", "true"])
            .status();
        if !tried.is_ok_and(|status| status.success()) {
            skip!("no user namespaces");
        }
        let mut mirror = Mirror::start_command(&mut command, &src, &dst);
        mirror.equal_once();
        mirror.printed("there is no watch for some directories");
        assert_eq!(mirror.number("counters/unwatched"), 41);
        for n in 0..60 {
            fs::write(src.join(format!("{n}/f")), "x").unwrap();
        }
        mirror.must_be_equal_but(&recorded());
        assert_eq!(said(&mirror).matches("there is no watch").count(), 1);
        assert_eq!(mirror.number("counters/scan_corrections"), 0);
        // Watches of directories that left are used for others.
        for n in 0..45 {
            fs::rename(
                src.join(format!("{n}")),
                image.path().join(format!("left {n}")),
            )
            .unwrap();
        }
        mirror.must_be_equal_but(&recorded());
        wait_until("all have a watch", common::DEADLINE, || {
            mirror.wait_idle();
            mirror.number("counters/unwatched") == 0
        })
        .unwrap();
    });
}

#[test]
fn a_link_from_outside_under_inotify() {
    lab::in_private_namespace("a_link_from_outside_under_inotify", |lab| {
        let (image, copies) = need!(two(lab, Fs::Ext4));
        let (src, outside) = (image.dir("src").unwrap(), image.dir("outside").unwrap());
        fs::write(outside.join("before"), "one").unwrap();
        fs::hard_link(outside.join("before"), src.join("before")).unwrap();
        let dst = copies.path().join("dst");
        let mut mirror = start(&src, &dst, &["--detector", "inotify"]);
        fs::write(outside.join("before"), "two").unwrap();
        mirror.must_be_equal();
        fs::hard_link(outside.join("before"), src.join("again")).unwrap();
        fs::write(outside.join("later"), "one").unwrap();
        fs::hard_link(outside.join("later"), src.join("later")).unwrap();
        mirror.must_be_equal();
        fs::write(outside.join("later"), "two").unwrap();
        fs::write(outside.join("before"), "three").unwrap();
        mirror.must_be_equal();
        mirror.stop();
        let mut mirror = start(&src, &dst, &["--detector", "inotify"]);
        mirror.must_be_equal();
        fs::write(outside.join("later"), "four").unwrap();
        mirror.must_be_equal();
        // In the end, without being asked.
        fs::write(outside.join("later"), "the fifth").unwrap();
        wait_until("it is found", common::DEADLINE, || {
            fs::read(dst.join("later")).unwrap() == b"the fifth"
        })
        .unwrap();
    });
}

#[test]
fn crossed_mounts_are_part_of_the_tree() {
    lab::in_private_namespace("crossed_mounts_are_part_of_the_tree", |lab| {
        for (n, detector) in [Detector::Fanotify, Detector::Inotify, Detector::Scan]
            .into_iter()
            .enumerate()
        {
            crossed(lab, detector, 500 + 10 * n as u64);
        }
    });
}

fn crossed(lab: &Lab, detector: Detector, seed: u64) {
    let (image, copies) = need!(two(lab, Fs::Ext4));
    // The roots of two file systems of one kind have the same handle, and their inodes the same numbers.
    let (outer, inner) = (need!(lab.ext4(64)), need!(lab.tmpfs(64)));
    let left_out = need!(lab.tmpfs(16));
    let src = image.dir("src").unwrap();
    fs::create_dir_all(src.join("a/outer")).unwrap();
    fs::create_dir(src.join("other")).unwrap();
    fs::write(src.join("a/outer/hidden"), "must not be seen").unwrap();
    fs::write(src.join("other/hidden"), "is mirrored").unwrap();
    let outer_at = Mounted::bind(&outer.path(), &src.join("a/outer"));
    let inner_at = Mounted::bind(&inner.path(), &src.join("a/outer/inner"));
    let other_at = Mounted::bind(&left_out.path(), &src.join("other"));
    fs::write(src.join("a/outer/f"), "outer").unwrap();
    fs::write(src.join("a/outer/inner/f"), "inner").unwrap();
    fs::write(src.join("f"), "src").unwrap();
    fs::write(src.join("other/shown"), "not mirrored").unwrap();
    // A directory of the same file system as SRC, and one that holds SRC.
    let beside = image.dir("beside").unwrap();
    fs::write(beside.join("f"), "beside").unwrap();
    let beside_at = Mounted::bind(&beside, &src.join("beside"));
    let name = detector.to_string();
    let more = [
        "--cross",
        "a/outer/inner",
        "--cross",
        "beside",
        "--cross",
        "a/outer",
        "--detector",
        &name,
    ];
    let dst = copies.path().join("dst");
    let mut mirror = start(&src, &dst, &more);
    let first = said(&mirror);
    assert!(first.contains("not mirrored: ") && first.contains("/other is another mount"));
    assert_eq!(first.matches("is another mount").count(), 1, "{first}");
    assert_eq!(fs::read(dst.join("a/outer/f")).unwrap(), b"outer");
    assert_eq!(fs::read(dst.join("a/outer/inner/f")).unwrap(), b"inner");
    assert_eq!(fs::read(dst.join("beside/f")).unwrap(), b"beside");
    assert_eq!(fs::read(dst.join("other/hidden")).unwrap(), b"is mirrored");
    assert!(!dst.join("other/shown").exists());
    assert!(!dst.join("a/outer/hidden").exists());

    let parts = ["", "a/outer", "a/outer/inner", "beside"];
    let equal = |mirror: &mut Mirror| {
        let ran = mirror.wait_idle();
        assert_eq!(ran.code, 0, "{ran:?}\n{}", said(mirror));
        let options = Options {
            skip_mounts: true,
            ..Options::ignoring(&[Class::Holes, Class::Blocks])
        };
        for part in parts {
            mirror.assert_same(&src.join(part), &dst.join(part), &options);
        }
    };
    equal(&mut mirror);
    let verified = mirror.ask(&["verify", "--against", "source"]);
    assert_eq!(verified.code, 0, "{verified:?}");
    let mut workloads = Vec::new();
    for (n, part) in parts.into_iter().enumerate() {
        let params = workload::Params {
            seed: seed + n as u64,
            ops: 500,
            ..Default::default()
        };
        workloads.push(workload::start(&src.join(part), &params, 1).unwrap());
    }
    for workload in workloads {
        workload.wait().unwrap();
    }
    equal(&mut mirror);
    // What is above the mount moves with it: it is where it was, as long as the path is.
    assert_eq!(mirror.number("counters/scan_corrections"), 0);
    assert_eq!(mirror.stop(), 0);
    // A restart finds every object again.
    let before = mirror_records(&dst);
    let mut mirror = start(&src, &dst, &["--detector", &name]);
    equal(&mut mirror);
    assert!(mirror.number("counters/records") <= before + 6);
    mirror.stop();
    drop((beside_at, other_at, inner_at, outer_at));
}

fn mirror_records(dst: &Path) -> u64 {
    let state = PathBuf::from(format!("{}.fs_mirror/status.json", dst.display()));
    let status: serde_json::Value = serde_json::from_slice(&fs::read(state).unwrap()).unwrap();
    status
        .pointer("/counters/records")
        .unwrap()
        .as_u64()
        .unwrap()
}

#[test]
fn a_crossed_mount_that_goes_holds() {
    lab::in_private_namespace("a_crossed_mount_that_goes_holds", |lab| {
        let (image, copies) = need!(two(lab, Fs::Ext4));
        let (data, other) = (need!(lab.ext4(64)), need!(lab.ext4(64)));
        let src = image.dir("src").unwrap();
        let dst = copies.path().join("dst");
        fs::create_dir(src.join("m")).unwrap();
        // Never mounted: nothing was begun, so it is a mistake.
        let mut command = fs_mirror(mirror_arguments(&src, &dst, &["--cross", "m"]));
        let ran = run_command(&mut command);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(
            ran.stderr.contains("nothing is mounted on")
                && ran.stderr.contains("/m, which is crossed")
        );
        std::os::unix::fs::symlink("m", src.join("l")).unwrap();
        let ran = run_command(&mut fs_mirror(mirror_arguments(
            &src,
            &dst,
            &["--cross", "l"],
        )));
        assert_eq!(ran.code, 2, "{ran:?}");

        let at = Mounted::bind(&data.path(), &src.join("m"));
        for n in 0..50 {
            fs::write(src.join(format!("m/{n}")), "data").unwrap();
        }
        let mut mirror = start(&src, &dst, &["--cross", "m"]);
        // It can be unmounted while it is mirrored, and what it held stays in the copy.
        at.unmount();
        mirror.wait_state("hold");
        mirror.printed("/m (crossed) was unmounted");
        assert_eq!(fs::read_dir(dst.join("m")).unwrap().count(), 50);
        let at = Mounted::bind(&data.path(), &src.join("m"));
        fs::write(src.join("m/new"), "data").unwrap();
        mirror.wait_state("following");
        let equal = |mirror: &mut Mirror| {
            assert_eq!(mirror.wait_idle().code, 0);
            mirror.assert_same(&src.join("m"), &dst.join("m"), &Options::default());
        };
        equal(&mut mirror);
        mirror.stop();
        // Not there at start.
        at.unmount();
        let mut mirror = Mirror::start(&src, &dst);
        mirror.wait_state("hold");
        mirror.printed("nothing is mounted on");
        assert_eq!(fs::read_dir(dst.join("m")).unwrap().count(), 51);
        let at = Mounted::bind(&data.path(), &src.join("m"));
        mirror.wait_state("following");
        equal(&mut mirror);
        // Something else is.
        at.unmount();
        mirror.wait_state("hold");
        let at = Mounted::bind(&other.path(), &src.join("m"));
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(mirror.state(), "hold");
        mirror.stop();
        let mut mirror = Mirror::start(&src, &dst);
        mirror.wait_state("hold");
        mirror.printed("another file system than before is mounted on m");
        assert_eq!(fs::read_dir(dst.join("m")).unwrap().count(), 51);
        mirror.stop();
        at.unmount();
        let at = Mounted::bind(&data.path(), &src.join("m"));
        // Not asked for any more.
        let config = PathBuf::from(format!("{}.fs_mirror/config.toml", dst.display()));
        let text = fs::read_to_string(&config).unwrap();
        assert!(text.contains("cross = [\"m\"]"), "{text}");
        fs::write(&config, text.replace("cross = [\"m\"]", "cross = []")).unwrap();
        let mut mirror = Mirror::start(&src, &dst);
        mirror.wait_state("hold");
        mirror.printed("m was crossed");
        assert_eq!(fs::read_dir(dst.join("m")).unwrap().count(), 51);
        let ran = mirror.ask(&["release", "--yes"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        mirror.wait_state("following");
        assert_eq!(mirror.wait_idle().code, 0);
        assert_eq!(fs::read_dir(dst.join("m")).unwrap().count(), 0);
        mirror.stop();
        drop(at);
    });
}
