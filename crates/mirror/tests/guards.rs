//! What must never be mirrored: a source that went away, and very much that is gone at once.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use testkit::compare::{Options, assert_equal};
use testkit::lab::{self, Image, Lab, Skip};

use testkit::proc::wait_until;

use common::{DEADLINE, Mirror, fs_mirror, mirror_arguments, run, run_command};

/// Directories of 50 files each.
fn fill(tree: &Path, dirs: u32) {
    for dir in 0..dirs {
        let dir = tree.join(format!("d{dir}"));
        fs::create_dir_all(&dir).unwrap();
        for file in 0..50 {
            fs::write(dir.join(format!("f{file}")), format!("{file}")).unwrap();
        }
    }
}

fn files(tree: &Path) -> usize {
    fs::read_dir(tree)
        .unwrap()
        .map(|dir| fs::read_dir(dir.unwrap().path()).map_or(1, Iterator::count))
        .sum()
}

fn place(lab: &Lab) -> Result<(Image, std::path::PathBuf, std::path::PathBuf), Skip> {
    let image = lab.ext4(256)?;
    let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
    Ok((image, src, dst))
}

/// Without history: as users have it who keep none.
fn start(src: &Path, dst: &Path) -> Mirror {
    Mirror::start_with(src, dst, &["--no-history"])
}

fn held(mirror: &mut Mirror, reason: &str) {
    mirror.wait_state("hold");
    // It may be on hold for another reason until it looks again.
    let mut ran = mirror.wait_idle();
    let _ = wait_until("it is held for this reason", DEADLINE, || {
        ran = mirror.wait_idle();
        ran.code == 4 && ran.stderr.contains(reason)
    });
    assert!(ran.code == 4 && ran.stderr.contains(reason), "{ran:?}");
    let ran = mirror.ask(&["check"]);
    assert!(ran.code == 2 && ran.stdout.contains(reason), "{ran:?}");
}

fn let_go(mirror: &mut Mirror) {
    let shown = mirror.ask(&["release"]);
    assert_eq!(shown.code, 4, "nobody is there to ask: {shown:?}");
    let released = mirror.ask(&["release", "--yes"]);
    assert_eq!(released.code, 0, "{released:?}");
    mirror.goes_on();
    mirror.must_be_equal();
}

#[test]
fn much_removed_at_once_is_held_and_released() {
    lab::in_private_namespace("much_removed_at_once_is_held_and_released", |lab| {
        let (_image, src, dst) = testkit::need!(place(lab));
        fill(&src, 80);
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
        // 800 of 4,080 entries: not more than 1,000, and not 30 %.
        for dir in 0..20 {
            for file in 0..40 {
                fs::remove_file(src.join(format!("d{dir}/f{file}"))).unwrap();
            }
        }
        mirror.must_be_equal();
        // Together with these it is.
        for dir in 20..60 {
            for file in 0..40 {
                fs::remove_file(src.join(format!("d{dir}/f{file}"))).unwrap();
            }
        }
        held(&mut mirror, "were removed within minutes");
        assert!(files(&dst) > files(&src), "something is kept");
        // What comes meanwhile is recorded, not applied.
        fs::write(src.join("meanwhile"), "recorded").unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert!(!dst.join("meanwhile").exists());
        let_go(&mut mirror);
        assert!(dst.join("meanwhile").exists());
    });
}

#[test]
fn a_site_removed_is_held() {
    lab::in_private_namespace("a_site_removed_is_held", |lab| {
        let (_image, src, dst) = testkit::need!(place(lab));
        fill(&src, 40);
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
        for file in 0..44 {
            fs::remove_file(src.join(format!("d7/f{file}"))).unwrap();
        }
        mirror.must_be_equal();
        fs::remove_dir_all(src.join("d8")).unwrap();
        held(&mut mirror, "d8");
        assert!(dst.join("d8").exists());
        // A hold outlives the process.
        mirror.kill();
        let mut mirror = start(&src, &dst);
        held(&mut mirror, "d8");
        assert!(dst.join("d8").exists());
        let_go(&mut mirror);
    });
}

#[test]
fn much_gone_while_nobody_looked_is_held() {
    lab::in_private_namespace("much_gone_while_nobody_looked_is_held", |lab| {
        let (_image, src, dst) = testkit::need!(place(lab));
        fill(&src, 80);
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
        mirror.stop();
        for dir in 0..30 {
            fs::remove_dir_all(src.join(format!("d{dir}"))).unwrap();
        }
        // A new file beside what is gone.
        fs::write(src.join("d50/new"), "new").unwrap();
        let mut mirror = start(&src, &dst);
        held(&mut mirror, "no event says why");
        assert_eq!(files(&dst), 80 * 50, "the copy stays as it is");
        // Brought back, nothing is left to decide.
        for dir in 0..30 {
            fs::create_dir(src.join(format!("d{dir}"))).unwrap();
            for file in 0..50 {
                fs::write(src.join(format!("d{dir}/f{file}")), format!("{file}")).unwrap();
            }
        }
        let ran = mirror.wait_idle();
        if ran.code == 4 {
            let_go(&mut mirror);
        }
        mirror.must_be_equal();
        mirror.stop();
        for dir in 0..30 {
            fs::remove_dir_all(src.join(format!("d{dir}"))).unwrap();
        }
        let once = run_command(&mut fs_mirror(mirror_arguments(&src, &dst, &["--once"])));
        assert!(
            once.code == 4 && once.stderr.contains("no event says why"),
            "{once:?}"
        );
        assert_eq!(files(&dst), 80 * 50 + 1);
        let mut mirror = start(&src, &dst);
        held(&mut mirror, "no event says why");
        let_go(&mut mirror);
    });
}

/// Files that are new, changed, moved and in new directories, beside a directory that is gone.
fn change_beside_a_loss(src: &Path) {
    fs::remove_dir_all(src.join("d1")).unwrap();
    fs::write(src.join("d0/new"), "new").unwrap();
    fs::write(src.join("d2/f9"), "changed").unwrap();
    fs::rename(src.join("d3/f8"), src.join("d3/moved")).unwrap();
    fs::create_dir_all(src.join("new/er")).unwrap();
    fs::write(src.join("new/er/est"), "new").unwrap();
    fs::rename(src.join("d4"), src.join("new/d4")).unwrap();
    fs::rename(src.join("d5/f1"), src.join("d5/f2")).unwrap();
}

#[test]
fn a_hold_leaves_the_copy_as_it_is() {
    lab::in_private_namespace("a_hold_leaves_the_copy_as_it_is", |lab| {
        let (image, src, dst) = testkit::need!(place(lab));
        for (detector, kill) in [("auto", false), ("inotify", true), ("scan", false)] {
            let (src, dst) = (src.join(detector), dst.with_extension(detector));
            fs::create_dir(&src).unwrap();
            fill(&src, 8);
            let options = ["--detector", detector];
            let mut mirror = Mirror::start_with(&src, &dst, &options);
            mirror.must_be_equal();
            let before = image.path().join(format!("before {detector}"));
            let mut copy = std::process::Command::new("cp");
            assert!(
                copy.arg("-a")
                    .args([&src, &before])
                    .status()
                    .unwrap()
                    .success()
            );
            let as_it_was = || assert_equal(&before, &dst, &Options::default());
            if kill {
                mirror.kill();
            } else {
                mirror.stop();
            }
            change_beside_a_loss(&src);
            let once = run(mirror_arguments(
                &src,
                &dst,
                &["--once", "--detector", detector],
            ));
            assert!(once.code == 4 && once.stderr.contains("d1"), "{once:?}");
            as_it_was();
            let mut mirror = Mirror::start_with(&src, &dst, &options);
            held(&mut mirror, "no event says why");
            as_it_was();
            let_go(&mut mirror);
            // Found by a later look of a running mirror.
            if detector == "scan" {
                fs::remove_dir_all(src.join("d6")).unwrap();
                fs::write(src.join("d0/newer"), "new").unwrap();
                held(&mut mirror, "no event says why");
                assert!(!dst.join("d0/newer").exists() && dst.join("d6/f1").exists());
            }
        }
    });
}

#[test]
fn what_moved_while_nobody_looked_is_no_loss() {
    lab::in_private_namespace("what_moved_while_nobody_looked_is_no_loss", |lab| {
        let (_image, src, dst) = testkit::need!(place(lab));
        fill(&src, 80);
        let follow = ["--on-mass-change", "follow"];
        let mut mirror = Mirror::start_with(&src, &dst, &follow);
        mirror.must_be_equal();
        for detector in ["auto", "inotify"] {
            mirror.stop();
            // As a whole, into a new directory; one by one, into another one and over what is there.
            fs::create_dir_all(src.join("new/er")).unwrap();
            for dir in 0..40 {
                let from = src.join(format!("d{dir}"));
                fs::rename(from, src.join(format!("new/er/d{dir}"))).unwrap();
            }
            fs::create_dir(src.join("new/files")).unwrap();
            for file in 0..50 {
                let to = match file % 2 {
                    0 => src.join(format!("new/files/{file}")),
                    _ => src.join(format!("d79/f{file}")),
                };
                fs::rename(src.join(format!("d78/f{file}")), to).unwrap();
            }
            mirror = Mirror::start_with(&src, &dst, &["--detector", detector]);
            mirror.must_be_equal();
            assert_eq!(mirror.state(), "following");
            for dir in 0..40 {
                let to = src.join(format!("d{dir}"));
                fs::rename(src.join(format!("new/er/d{dir}")), to).unwrap();
            }
            fs::remove_dir_all(src.join("d78")).unwrap();
            fs::create_dir(src.join("d78")).unwrap();
            for file in 0..50 {
                fs::write(src.join(format!("d78/f{file}")), "again").unwrap();
            }
            mirror.must_be_equal();
            fs::remove_dir_all(src.join("new")).unwrap();
            mirror.must_be_equal();
        }
    });
}

/// More than can be held back: it is looked at twice, and all the same nothing comes before the guard's word.
#[test]
fn much_that_is_new_waits_too() {
    lab::in_private_namespace("much_that_is_new_waits_too", |lab| {
        // With inodes for both.
        let image = testkit::need!(lab.ext4(1024));
        let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
        fill(&src, 8);
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
        mirror.stop();
        for n in 0..20_000 {
            fs::write(src.join(format!("d{}/new{n}", n % 4)), "new").unwrap();
        }
        fs::remove_dir_all(src.join("d7")).unwrap();
        let mut mirror = start(&src, &dst);
        held(&mut mirror, "no event says why");
        assert_eq!(files(&dst), 8 * 50);
        let_go(&mut mirror);
        mirror.stop();
        for n in 0..20_000 {
            let (from, to) = (format!("d{}/new{n}", n % 4), format!("d{}/moved{n}", n % 3));
            fs::rename(src.join(from), src.join(to)).unwrap();
        }
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
        assert_eq!(files(&dst), files(&src));
    });
}

#[test]
fn an_empty_source_is_held() {
    lab::in_private_namespace("an_empty_source_is_held", |lab| {
        let (image, src, dst) = testkit::need!(place(lab));
        fill(&src, 3);
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
        mirror.stop();
        let away = image.dir("away").unwrap();
        for dir in ["d0", "d1", "d2"] {
            fs::rename(src.join(dir), away.join(dir)).unwrap();
        }
        let mut mirror = start(&src, &dst);
        held(&mut mirror, "empty");
        assert_eq!(files(&dst), 150);
        for dir in ["d0", "d1", "d2"] {
            fs::rename(away.join(dir), src.join(dir)).unwrap();
        }
        // Full again, the same root: it goes on by itself.
        mirror.goes_on();
        mirror.must_be_equal();
    });
}

#[test]
fn a_source_removed_or_replaced_is_held() {
    lab::in_private_namespace("a_source_removed_or_replaced_is_held", |lab| {
        let (image, src, dst) = testkit::need!(place(lab));
        fill(&src, 3);
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
        let aside = image.path().join("aside");
        fs::rename(&src, &aside).unwrap();
        held(&mut mirror, "is gone");
        fs::rename(&aside, &src).unwrap();
        mirror.goes_on();
        mirror.must_be_equal();
        // Removed and made again, as by a deploy gone wrong: another directory.
        fs::remove_dir_all(&src).unwrap();
        fs::create_dir(&src).unwrap();
        fs::write(src.join("other"), "of another tree").unwrap();
        mirror.wait_state("hold");
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(mirror.state(), "hold");
        assert!(dst.exists() && !dst.join("other").exists());
        let kept = files(&dst);
        mirror.stop();
        let mut mirror = start(&src, &dst);
        held(&mut mirror, "is not the directory it was");
        assert_eq!(files(&dst), kept);
        let_go(&mut mirror);
        assert!(dst.join("other").exists() && !dst.join("d0").exists());
    });
}

#[test]
fn a_source_covered_by_a_mount_is_held() {
    lab::in_private_namespace("a_source_covered_by_a_mount_is_held", |lab| {
        let (_image, src, dst) = testkit::need!(place(lab));
        fill(&src, 3);
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
        mount("none", &src, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
        fs::write(src.join("impostor"), "in the mount").unwrap();
        held(&mut mirror, "covers it");
        assert_eq!(files(&dst), 150);
        unmount(&src, UnmountFlags::empty()).unwrap();
        mirror.goes_on();
        mirror.must_be_equal();
        mirror.stop();
        // The same, found at the start.
        mount("none", &src, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
        let mut mirror = start(&src, &dst);
        held(&mut mirror, "is not the directory it was");
        assert_eq!(files(&dst), 150);
        unmount(&src, UnmountFlags::empty()).unwrap();
        mirror.goes_on();
        mirror.must_be_equal();
        // It is meant to be there now: one word is enough, and says what there is.
        mount("none", &src, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
        held(&mut mirror, "covers it; what is there now is empty");
        unmount(&src, UnmountFlags::empty()).unwrap();
        mirror.goes_on();
        mount("none", &src, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
        fs::write(src.join("meant"), "to be there").unwrap();
        held(&mut mirror, "covers it");
        let_go(&mut mirror);
        assert!(dst.join("meant").exists() && !dst.join("d0").exists());
        assert_eq!(mirror.stop(), 0);
        unmount(&src, UnmountFlags::empty()).unwrap();
    });
}

#[test]
fn the_copy_can_be_unmounted_while_it_is_mirrored() {
    lab::in_private_namespace("the_copy_can_be_unmounted_while_it_is_mirrored", |lab| {
        let source = testkit::need!(lab.ext4(128));
        let mut backup = testkit::need!(lab.ext4(128));
        let (src, dst) = (source.dir("src").unwrap(), backup.path().join("dst"));
        fill(&src, 3);
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
        backup
            .unmount()
            .expect("umount of DST works while it is mirrored");
        fs::write(src.join("d0/while away"), "written while DST is away").unwrap();
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(backup.check().unwrap(), None);
        assert!(!dst.exists(), "nothing is made below the bare mount point");
        backup.mount().unwrap();
        if mirror.program.ended().unwrap().is_some() {
            // Then it said so, and a start goes on from there.
            assert!(!mirror.program.stderr().is_empty());
            mirror = start(&src, &dst);
        }
        mirror.goes_on();
        mirror.must_be_equal();
    });
}

#[test]
fn a_copy_removed_or_replaced_is_held() {
    lab::in_private_namespace("a_copy_removed_or_replaced_is_held", |lab| {
        let (image, src, dst) = testkit::need!(place(lab));
        fill(&src, 3);
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
        let aside = image.path().join("aside");
        fs::rename(&dst, &aside).unwrap();
        held(&mut mirror, "it is gone; bring it back, or move ");
        let verified = mirror.ask(&["verify"]);
        assert!(!matches!(verified.code, 0 | 3), "{verified:?}");
        fs::create_dir(&dst).unwrap();
        fs::write(dst.join("by hand"), "stays").unwrap();
        fs::write(src.join("d0/meanwhile"), "later").unwrap();
        held(&mut mirror, "another directory is there now");
        // Not only the running one knows.
        mirror.stop();
        let mut mirror = start(&src, &dst);
        held(&mut mirror, "another directory is there now");
        assert_eq!(fs::read(dst.join("by hand")).unwrap(), b"stays");
        let once = |code: i32| {
            let ran = run(mirror_arguments(&src, &dst, &["--once"]));
            assert_eq!(ran.code, code, "{ran:?}");
        };
        fs::remove_dir_all(&dst).unwrap();
        fs::rename(&aside, &dst).unwrap();
        mirror.goes_on();
        mirror.must_be_equal();
        mirror.stop();
        fs::remove_dir_all(&dst).unwrap();
        once(4);
        let state = image.path().join("dst.fs_mirror");
        fs::rename(&state, image.path().join("old state")).unwrap();
        once(0);
        assert_eq!(files(&dst), files(&src));
    });
}

#[test]
fn a_full_copy_is_started_and_makes_room() {
    lab::in_private_namespace("a_full_copy_is_started_and_makes_room", |lab| {
        let source = testkit::need!(lab.ext4(128));
        let backup = testkit::need!(lab.ext4(64));
        let (src, dst) = (source.dir("src").unwrap(), backup.path().join("dst"));
        fill(&src, 3);
        fs::write(src.join("large"), vec![7; 20 << 20]).unwrap();
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
        mirror.kill();
        // Not a byte is left.
        let filler = fs::File::create(backup.path().join("filler")).unwrap();
        for piece in [1 << 20, 4096, 1] {
            while (&filler).write_all(&vec![1; piece]).is_ok() {}
        }
        for n in 0..10_000 {
            if fs::write(backup.path().join(format!("{n}")), "x").is_err() {
                break;
            }
        }
        fs::remove_file(src.join("large")).unwrap();
        fs::write(src.join("new"), vec![8; 1 << 20]).unwrap();
        let once = run(mirror_arguments(&src, &dst, &["--once"]));
        assert_eq!(once.code, 0, "{once:?}");
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
    });
}

#[test]
fn a_full_copy_without_an_inode_is_started_and_heals() {
    lab::in_private_namespace("a_full_copy_without_an_inode_is_started_and_heals", |lab| {
        let source = testkit::need!(lab.ext4(128));
        // A new inode needs a chunk of blocks there.
        let backup = testkit::need!(lab.xfs(320));
        let (src, dst) = (source.dir("src").unwrap(), backup.path().join("dst"));
        fill(&src, 3);
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
        let filler = fs::File::create(backup.path().join("filler")).unwrap();
        let fill_up = || {
            for piece in [1 << 20, 4096, 1] {
                while (&filler).write_all(&vec![1; piece]).is_ok() {}
            }
        };
        fill_up();
        for n in 0..300 {
            fs::write(src.join(format!("f{n}")), vec![n as u8; 20_000]).unwrap();
        }
        mirror.printed("No space left on device");
        // The mirror that runs uses up what was kept in reserve.
        let reserve = backup.path().join("dst.fs_mirror/reserve");
        wait_until("the reserve is given up", DEADLINE, || !reserve.exists()).unwrap();
        mirror.kill();
        fill_up();
        for n in 0..1000 {
            if fs::write(backup.path().join(format!("{n}")), "").is_err() {
                break;
            }
        }
        let once = run(mirror_arguments(&src, &dst, &["--once"]));
        assert!(matches!(once.code, 1 | 3), "{once:?}");
        assert!(once.stderr.contains("commands find it without"), "{once:?}");
        let mut mirror = start(&src, &dst);
        mirror.printed("No space left on device");
        mirror.wait_state("failed");
        assert_eq!(mirror.program.ended().unwrap(), None, "it waits");
        drop(filler);
        fs::remove_file(backup.path().join("filler")).unwrap();
        mirror.must_be_equal();
        // And is found as ever from the next start on.
        mirror.stop();
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
        assert!(backup.path().join("dst.fs_mirror/control.sock").exists());
    });
}

#[test]
fn a_state_directory_of_another_user_is_refused() {
    lab::in_private_namespace("a_state_directory_of_another_user_is_refused", |lab| {
        let (image, src, dst) = testkit::need!(place(lab));
        fill(&src, 1);
        let state = image.dir("dst.fs_mirror").unwrap();
        std::os::unix::fs::chown(&state, Some(65534), None).unwrap();
        let ran = run(mirror_arguments(&src, &dst, &["--once"]));
        assert!(
            ran.code == 1 && ran.stderr.contains("belongs to another user (65534)"),
            "{ran:?}"
        );
        fs::remove_dir(&state).unwrap();
        // A link of theirs to a directory of ours.
        let ours = image.dir("ours").unwrap();
        std::os::unix::fs::symlink(&ours, &state).unwrap();
        std::os::unix::fs::lchown(&state, Some(65534), None).unwrap();
        let ran = run(mirror_arguments(&src, &dst, &["--once"]));
        assert!(
            ran.code == 1 && ran.stderr.contains("belongs to another user"),
            "{ran:?}"
        );
        assert_eq!(fs::read_dir(&ours).unwrap().count(), 0);
    });
}

#[test]
fn what_verify_found_is_not_called_equal() {
    lab::in_private_namespace("what_verify_found_is_not_called_equal", |lab| {
        let (_image, src, dst) = testkit::need!(place(lab));
        fill(&src, 2);
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
        fs::write(dst.join("d0/f1"), "changed by hand").unwrap();
        fs::remove_file(dst.join("d1/f2")).unwrap();
        fs::write(dst.join("extra"), "by hand").unwrap();
        assert_eq!(mirror.ask(&["verify"]).code, 3);
        let check = mirror.ask(&["check"]);
        assert!(
            check.code == 1 && check.stdout.contains("verify found"),
            "{check:?}"
        );
        assert_eq!(mirror.wait_idle().code, 3);
        // Nor after a restart.
        mirror.stop();
        let once = run(mirror_arguments(&src, &dst, &["--once"]));
        assert!(
            once.code == 3 && !once.stderr.contains("equal:"),
            "{once:?}"
        );
        let mut mirror = start(&src, &dst);
        assert_eq!(mirror.wait_idle().code, 3);
        assert_eq!(mirror.ask(&["verify", "--repair"]).code, 0);
        assert!(mirror.number("counters/repaired") >= 3);
        assert_eq!(mirror.number("failed_total"), 0);
        mirror.must_be_equal();
        assert_eq!(mirror.ask(&["check"]).code, 0);
    });
}

#[test]
fn places_that_can_not_be_are_answered_with_the_way_out() {
    lab::in_private_namespace(
        "places_that_can_not_be_are_answered_with_the_way_out",
        |lab| {
            let (image, src, dst) = testkit::need!(place(lab));
            fill(&src, 1);
            let refused = |src: &Path, dst: &Path, code: i32, words: &[&str]| {
                let ran = run(mirror_arguments(src, dst, &["--once"]));
                assert_eq!(ran.code, code, "{ran:?}");
                assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
                for word in words {
                    assert!(ran.stderr.contains(word), "no {word:?} in {ran:?}");
                }
            };
            refused(&src, &src.join("d0/copy"), 2, &["inside SRC"]);
            refused(&src.join("d0"), &src, 2, &["inside DST"]);
            refused(&src, &src, 2, &[]);
            // The same places under another name.
            let other = image.dir("other").unwrap();
            mount_bind(&src, &other).unwrap();
            refused(&src, &other.join("copy"), 2, &[]);
            unmount(&other, UnmountFlags::empty()).unwrap();
            // A mount point has no room beside it.
            let disk = testkit::need!(lab.ext4(64));
            refused(&src, &disk.path(), 2, &["mount point", "--state"]);
            fs::write(&dst, "a file").unwrap();
            refused(&src, &dst, 2, &["not a directory"]);
            fs::remove_file(&dst).unwrap();
            refused(&src.join("d0/f1"), &dst, 2, &["not a directory"]);
            refused(&src.join("nothing"), &dst, 2, &["does not exist"]);
            assert!(!dst.exists() && files(&src) == 50);
        },
    );
}

#[test]
fn a_second_process_is_refused_and_names_the_first() {
    lab::in_private_namespace("a_second_process_is_refused_and_names_the_first", |lab| {
        let (_image, src, dst) = testkit::need!(place(lab));
        fill(&src, 1);
        let mut mirror = start(&src, &dst);
        mirror.must_be_equal();
        let second = run(mirror_arguments(&src, &dst, &["--once"]));
        assert_eq!(second.code, 5, "{second:?}");
        let pid = mirror.program.pid().to_string();
        assert!(second.stderr.contains(&pid), "{second:?}");
        fs::write(src.join("still"), "followed").unwrap();
        mirror.must_be_equal();
    });
}

#[cfg(feature = "planted")]
#[test]
fn planted_defects_are_caught() {
    common::caught(&[
        ("mass_change_unseen", "a_site_removed_is_held"),
        (
            "mass_change_unseen",
            "much_removed_at_once_is_held_and_released",
        ),
    ]);
}
