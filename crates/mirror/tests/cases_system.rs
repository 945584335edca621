//! What happens around the tree: cases 13, 37, 38, 40 and 42 to 50 of the list that every version must pass.
//!
//! Case 41 (kill -9 at any point) is `kill.rs`, case 49 (two racing processes) is `race.rs`.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use testkit::compare::Options;
use testkit::lab::{self, ImageOptions, QueueLimit};
use testkit::{Fs, compare, workload};

use common::{Mirror, fs_mirror, lines, mirror_arguments, raw};

fn mkdir(path: &Path) {
    fs::create_dir_all(path).unwrap();
}
fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
    fs::write(path, bytes).unwrap();
}
fn sh(script: &str, at: &Path) -> bool {
    let status = Command::new("sh")
        .args(["-c", script])
        .current_dir(at)
        .status();
    status.is_ok_and(|status| status.success())
}

/// A small tree of files.
fn some_files(dir: &Path, files: u32) {
    for number in 0..files {
        let sub = dir.join(format!("d{}", number % 7));
        mkdir(&sub);
        write(sub.join(format!("f{number}")), format!("content {number}"));
    }
}

#[test]
fn case_13_dir_above_the_root_renamed() {
    lab::in_private_namespace("case_13_dir_above_the_root_renamed", |lab| {
        let image = testkit::need!(lab.ext4(128));
        let src = image.dir("above/src").unwrap();
        let dst = image.path().join("dst");
        some_files(&src, 50);
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_be_equal();
        // The name leads elsewhere: hold, whatever is found there.
        fs::rename(image.path().join("above"), image.path().join("away")).unwrap();
        mirror.wait_state("hold");
        let moved = image.path().join("away/src");
        write(moved.join("written while away"), "x");
        fs::remove_dir_all(moved.join("d1")).unwrap();
        mkdir(&src);
        write(src.join("impostor"), "not the same root");
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(mirror.state(), "hold");
        assert_eq!(mirror.ask(&["wait", "--idle", "--timeout", "5s"]).code, 4);
        assert!(dst.join("d1/f1").exists() && !dst.join("impostor").exists());
        // The same root is back: it goes on by itself, with all that happened meanwhile.
        fs::remove_dir_all(image.path().join("above")).unwrap();
        fs::rename(image.path().join("away"), image.path().join("above")).unwrap();
        mirror.wait_state("following");
        mirror.must_be_equal();
        assert!(!dst.join("d1").exists());
    });
}

#[test]
fn case_37_flags_and_project_are_found_by_a_scan() {
    lab::in_private_namespace("case_37_flags_and_project_are_found_by_a_scan", |lab| {
        let options = |features: &str| ImageOptions {
            size_mb: 128,
            mkfs: ["-O", features].map(String::from).to_vec(),
            ..ImageOptions::default()
        };
        let with_projects = lab.image_with(Fs::Ext4, &options("project"));
        let projects = with_projects.is_ok();
        let image = testkit::need!(with_projects.or_else(|reason| {
            testkit::print_skip(&format!("project ids: {reason}"));
            lab.ext4(128)
        }));
        let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
        mkdir(&src.join("d"));
        mkdir(&src.join("inherits"));
        for name in ["immutable", "append", "nodump", "project", "d/deep"] {
            write(src.join(name), name);
        }
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_be_equal();
        for (name, flag) in [
            ("immutable", 0x10),
            ("append", 0x20),
            ("nodump", 0x40),
            ("d", 0x10),
        ] {
            testkit::change_flags(&src.join(name), 0, flag).unwrap();
        }
        if projects {
            testkit::set_project(&src.join("project"), 4711).unwrap();
            testkit::set_project(&src.join("inherits"), 4712).unwrap();
        }
        mirror.stop();
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_be_equal();
        // Locked things change and go too, once they are unlocked.
        for (name, flag) in [("immutable", 0x10), ("append", 0x20), ("d", 0x10)] {
            testkit::change_flags(&src.join(name), flag, 0).unwrap();
        }
        write(src.join("immutable"), "changed");
        fs::remove_file(src.join("append")).unwrap();
        fs::rename(src.join("d/deep"), src.join("d/deeper")).unwrap();
        fs::rename(src.join("d"), src.join("e")).unwrap();
        mirror.must_be_equal();
        testkit::change_flags(&src.join("e"), 0, 0x10).unwrap();
        mirror.stop();
        Mirror::start(&src, &dst).must_be_equal();
        for dir in [&src, &dst] {
            testkit::change_flags(&dir.join("e"), 0x10, 0).unwrap();
        }
    });
}

#[test]
fn case_38_generation_set() {
    lab::in_private_namespace("case_38_generation_set", |lab| {
        let options = ImageOptions {
            size_mb: 64,
            mkfs: ["-O", "^metadata_csum"].map(String::from).to_vec(),
            ..ImageOptions::default()
        };
        let image = testkit::need!(lab.image_with(Fs::Ext4, &options));
        let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
        mkdir(&src.join("d"));
        for name in ["f", "g", "d/in"] {
            write(src.join(name), name);
        }
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_be_equal();
        for (name, generation) in [("f", 77), ("g", 78), ("d", 79)] {
            let file = File::open(src.join(name)).unwrap();
            if let Err(e) = raw::set_generation(&file, generation) {
                testkit::skip!("no EXT4_IOC_SETVERSION: {e}");
            }
        }
        // Its handle is another one now: what is written is told of an object that nobody knows.
        write(src.join("f"), "changed after it got another handle");
        fs::rename(src.join("g"), src.join("h")).unwrap();
        write(src.join("d/new"), "in a directory with another handle");
        mirror.must_be_equal();
        mirror.stop();
        Mirror::start(&src, &dst).must_be_equal();
    });
}

#[test]
fn case_40_overflow_at_every_phase() {
    lab::in_private_namespace("case_40_overflow_at_every_phase", |lab| {
        let image = testkit::need!(lab.ext4(256));
        let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
        some_files(&src, 1000);
        // The queue overflows from the first moment on: during the first scan, and during each scan that follows.
        let params = workload::Params {
            seed: 40,
            ops: 6000,
            ..Default::default()
        };
        let churn = workload::start(&src, &params, 2).unwrap();
        let limit = testkit::need!(QueueLimit::set(40));
        let mut mirror = Mirror::start(&src, &dst);
        mirror.watching();
        drop(limit);
        churn.wait().unwrap();
        mirror.must_be_equal();
        let overflows = mirror.number("counters/overflows");
        println!("{overflows} overflows");
        assert!(overflows > 0);
        for round in 0..3 {
            some_files(&src.join(format!("burst {round}")), 2000);
            mirror.must_be_equal();
        }
    });
}

#[test]
fn case_42_changes_while_stopped() {
    lab::in_private_namespace("case_42_changes_while_stopped", |lab| {
        let image = testkit::need!(lab.ext4(256));
        let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
        some_files(&src, 200);
        for seed in 1..=5 {
            let mut mirror = Mirror::start(&src, &dst);
            mirror.must_become_equal();
            assert_eq!(mirror.stop(), 0);
            let params = workload::Params {
                seed,
                ops: 800,
                existing: true,
                outside: Some(image.dir("outside").unwrap()),
                flags: true,
                ..Default::default()
            };
            workload::run(&src, &params).unwrap();
        }
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_become_equal();
        let _ = testkit::generate::remove(&src);
    });
}

#[test]
fn case_43_source_unmounted_and_mounted_again() {
    lab::in_private_namespace("case_43_source_unmounted_and_mounted_again", |lab| {
        let mut image = testkit::need!(lab.ext4(128));
        let other = testkit::need!(lab.ext4(128));
        let (src, dst) = (image.dir("src").unwrap(), other.path().join("dst"));
        some_files(&src, 100);
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_be_equal();
        for round in 0..2 {
            write(
                src.join("before"),
                format!("written just before the unmount {round}"),
            );
            image
                .unmount()
                .expect("umount of SRC works while it is mirrored");
            mirror.wait_state("hold");
            assert_eq!(mirror.ask(&["wait", "--idle", "--timeout", "5s"]).code, 4);
            assert!(dst.join("d1/f1").exists());
            // All descriptors are closed: the file system is free for its checker.
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(image.check().unwrap(), None);
            image.mount().unwrap();
            mirror.wait_state("following");
            write(
                src.join("after"),
                format!("written after the remount {round}"),
            );
            mirror.must_be_equal();
            write(
                src.join("after"),
                format!("and seen by the new mark {round}"),
            );
            mirror.must_be_equal();
        }
        assert_eq!(mirror.stop(), 0);
    });
}

#[test]
fn case_43_mounts_over_and_beside_the_tree() {
    lab::in_private_namespace("case_43_mounts_over_and_beside_the_tree", |lab| {
        let image = testkit::need!(lab.ext4(128));
        let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
        some_files(&src, 100);
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_be_equal();
        let elsewhere = tempfile::tempdir().unwrap();
        mount_bind(src.join("d1"), elsewhere.path()).unwrap();
        write(
            elsewhere.path().join("bound"),
            "written through a bind mount",
        );
        mirror.must_be_equal();

        // A mount over a directory of the tree: what it hides is still what is mirrored.
        let over = src.join("d1");
        mount("none", &over, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
        write(over.join("in the mount"), "not mirrored");
        write(elsewhere.path().join("hidden"), "written below the mount");
        fs::remove_file(elsewhere.path().join("bound")).unwrap();
        let options = Options {
            skip_mounts: true,
            ..Options::default()
        };
        mirror.must_be_equal_but(&options);
        let found = compare(elsewhere.path(), &dst.join("d1"), &Options::default());
        assert!(found.is_empty(), "below the mount:\n  {}", lines(&found));
        // A restart while it is mounted sees no difference, and says what it leaves out.
        mirror.stop();
        let mut mirror = Mirror::start(&src, &dst);
        mirror.printed("not mirrored: ");
        mirror.must_be_equal_but(&options);
        let found = compare(elsewhere.path(), &dst.join("d1"), &Options::default());
        assert!(found.is_empty(), "after a restart:\n  {}", lines(&found));
        unmount(&over, UnmountFlags::empty()).unwrap();
        mirror.must_be_equal();
        write(over.join("again"), "visible again");
        mirror.must_be_equal();

        // Changes from other namespaces.
        let elsewhere_ns = [
            (
                "unshare -m sh -c 'echo mount namespace > m; mv d2 d2.moved'",
                "mount",
            ),
            (
                "unshare -Ur sh -c 'echo user namespace > u; rm d3/f3'",
                "user",
            ),
            ("unshare -p -f sh -c 'echo pid namespace > p'", "pid"),
        ];
        for (script, what) in elsewhere_ns {
            if !sh(script, &src) {
                testkit::print_skip(&format!("no {what} namespace"));
            }
            mirror.must_be_equal();
        }
    });
}

#[test]
fn case_44_btrfs_subvolumes() {
    lab::in_private_namespace("case_44_btrfs_subvolumes", |lab| {
        let image = testkit::need!(lab.btrfs(256));
        let top = image.path();
        for volume in ["@data", "@other"] {
            let made = Command::new("btrfs")
                .args(["-q", "subvolume", "create"])
                .arg(top.join(volume))
                .status();
            if !made.is_ok_and(|status| status.success()) {
                testkit::skip!("no btrfs program");
            }
        }
        // As distributions do it: the subvolume itself is mounted. The kernel refuses a mark on such a mount.
        let at = tempfile::tempdir().unwrap();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table
            .lines()
            .find(|line| line.contains(top.to_str().unwrap()) && line.contains("btrfs"))
            .unwrap();
        let device = line
            .rsplit(" - ")
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap();
        mount(
            device,
            at.path(),
            "btrfs",
            MountFlags::empty(),
            c"subvol=@data",
        )
        .unwrap();
        let src = at.path().join("src");
        mkdir(&src);
        some_files(&src, 100);
        let target = testkit::need!(lab.ext4(128));
        let dst = target.path().join("dst");
        let mut mirror = Mirror::start(&src, &dst);
        mirror.watching();
        println!("{}", mirror.program.stderr());
        mirror.must_be_equal();
        write(src.join("d1/new"), "seen on a mount of a subvolume");
        fs::rename(src.join("d2"), src.join("d3/d2")).unwrap();
        mirror.must_be_equal();

        // Another subvolume inside, a snapshot, and both gone again: not part of the tree.
        let btrfs = |arguments: &[&str]| {
            let done = Command::new("btrfs")
                .arg("-q")
                .arg("subvolume")
                .args(arguments)
                .current_dir(&src)
                .status();
            assert!(done.unwrap().success(), "{arguments:?}");
        };
        btrfs(&["create", "d1/nested"]);
        write(src.join("d1/nested/inside"), "not mirrored");
        btrfs(&["snapshot", at.path().to_str().unwrap(), "d1/snapshot"]);
        let ran = mirror.wait_idle();
        assert_eq!(ran.code, 0, "{ran:?}");
        let found = compare(&src, &dst, &Options::default());
        let strangers: Vec<_> = found
            .iter()
            .filter(|d| !d.path.starts_with("d1/nested") && !d.path.starts_with("d1/snapshot"))
            .collect();
        assert!(strangers.is_empty(), "{strangers:?}");
        assert!(!dst.join("d1/snapshot/src").exists() && !dst.join("d1/nested/inside").exists());
        let left_out = mirror.status()["status"]["not_mirrored"].to_string();
        assert!(
            left_out.contains("nested") && left_out.contains("snapshot"),
            "{left_out}"
        );
        write(src.join("d1/beside"), "beside the subvolumes");
        btrfs(&["delete", "d1/snapshot"]);
        btrfs(&["delete", "d1/nested"]);
        mirror.must_be_equal();
        write(src.join("d1/nested"), "a file now");
        mirror.must_be_equal();
        drop(mirror);
        unmount(at.path(), UnmountFlags::DETACH).unwrap();

        // The top volume is marked as a whole, with events of all subvolumes.
        let src = image.dir("tree").unwrap();
        some_files(&src, 50);
        let mut mirror = Mirror::start(&src, &image.path().join("copy"));
        mirror.must_be_equal();
        write(top.join("@other/file"), "elsewhere");
        write(src.join("file"), "here");
        mirror.must_be_equal();
    });
}

/// Mounts an overlay; `None`: not possible here.
fn overlay(lower: &Path, upper: &Path, work: &Path, at: &Path, more: &str) -> Option<Mounted> {
    for dir in [lower, upper, work, at] {
        mkdir(dir);
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}{more}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let options = std::ffi::CString::new(options).unwrap();
    match mount(
        "overlay",
        at,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    ) {
        Ok(()) => Some(Mounted(at.to_path_buf())),
        Err(e) => {
            testkit::print_skip(&format!("no overlay: {e}"));
            None
        }
    }
}

struct Mounted(PathBuf);
impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// What containers do to their files.
fn use_overlay(merged: &Path) {
    write(merged.join("d1/f1"), "copied up by a write");
    fs::set_permissions(merged.join("d2/f2"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::remove_file(merged.join("d3/f3")).unwrap();
    fs::remove_dir_all(merged.join("d4")).unwrap();
    mkdir(&merged.join("d4"));
    write(merged.join("d4/opaque"), "over a removed directory");
    fs::rename(merged.join("d5/f5"), merged.join("d6/from d5")).unwrap();
    write(merged.join("new"), "new");
    fs::remove_file(merged.join("new")).unwrap();
    write(merged.join("new"), "new again");
}

#[test]
fn case_45_overlay_upper_inside_the_tree() {
    lab::in_private_namespace("case_45_overlay_upper_inside_the_tree", |lab| {
        let image = testkit::need!(lab.ext4(128));
        let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
        let lower = image.dir("lower").unwrap();
        some_files(&lower, 70);
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_be_equal();
        let at = image.dir("merged").unwrap();
        let Some(mounted) = overlay(&lower, &src.join("upper"), &src.join("work"), &at, "") else {
            return;
        };
        for round in 0..3 {
            if round > 0 {
                write(at.join("d1/f1"), format!("round {round}"));
            } else {
                use_overlay(&at);
            }
            mirror.must_be_equal();
        }
        drop(mounted);
        mirror.must_be_equal();
        mirror.stop();
        Mirror::start(&src, &dst).must_be_equal();
    });
}

#[test]
fn case_45_overlay_as_the_source() {
    lab::in_private_namespace("case_45_overlay_as_the_source", |lab| {
        let image = testkit::need!(lab.ext4(128));
        let lower = image.dir("lower").unwrap();
        some_files(&lower, 70);
        let at = image.dir("merged").unwrap();
        let (upper, work) = (image.path().join("upper"), image.path().join("work"));
        let Some(_mounted) = overlay(&lower, &upper, &work, &at, "") else {
            return;
        };
        let dst = image.path().join("dst");
        let mut mirror = Mirror::start(&at, &dst);
        mirror.watching();
        println!("{}", mirror.program.stderr());
        mirror.must_be_equal();
        use_overlay(&at);
        mirror.must_be_equal();
        mkdir(&at.join("deep/er/still"));
        write(at.join("deep/er/still/f"), "in new directories");
        fs::rename(at.join("deep/er"), at.join("er")).unwrap();
        mirror.must_be_equal();
        write(at.join("er/still/f"), "changed below a moved directory");
        mirror.must_be_equal();
        mirror.stop();
        Mirror::start(&at, &dst).must_be_equal();
    });
}

#[test]
fn case_46_disconnected_dentries() {
    lab::in_private_namespace("case_46_disconnected_dentries", |lab| {
        let mut image = testkit::need!(lab.ext4(128));
        let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
        some_files(&src, 100);
        fs::hard_link(src.join("d1/f1"), src.join("d2/second name")).unwrap();
        let handles: Vec<raw::FileHandle> = ["d1/f1", "d3/f3", "d5/f5"]
            .iter()
            .map(|name| raw::FileHandle::of(&src.join(name)).unwrap())
            .collect();
        // A server that knows files only by handle, as NFS servers do, on a file system whose names nobody cached.
        image.unmount().unwrap();
        image.mount().unwrap();
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_be_equal();
        for round in 0..2 {
            if let Err(e) = fs::write("/proc/sys/vm/drop_caches", "2") {
                testkit::skip!("names can't be dropped from the kernel's cache: {e}");
            }
            let mount = File::open(image.path()).unwrap();
            for (number, handle) in handles.iter().enumerate() {
                let file = handle.open(&mount).unwrap();
                file.write_all_at(format!("by handle {round} {number}").as_bytes(), 0)
                    .unwrap();
                if number == 1 {
                    file.set_permissions(PermissionsExt::from_mode(0o640))
                        .unwrap();
                }
            }
            mirror.must_be_equal();
        }
    });
}

#[test]
fn case_47_few_descriptors() {
    lab::in_private_namespace("case_47_few_descriptors", |lab| {
        let image = testkit::need!(lab.ext4(128));
        let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
        for number in 0..300 {
            mkdir(&src.join(format!("a/{number}/b")));
            write(src.join(format!("a/{number}/b/f")), format!("{number}"));
        }
        let mut command = Command::new("sh");
        command
            .args(["-c", "ulimit -n 256; exec \"$0\" \"$@\""])
            .arg(common::program());
        command.args(mirror_arguments(
            &src,
            &dst,
            &["--on-mass-change", "follow"],
        ));
        command.stdin(Stdio::null());
        let mut mirror = Mirror::start_command(&mut command, &src, &dst);
        mirror.must_be_equal();
        for number in 0..300 {
            write(
                src.join(format!("a/{number}/b/f")),
                format!("changed {number}"),
            );
            fs::rename(
                src.join(format!("a/{number}")),
                src.join(format!("a/n{number}")),
            )
            .unwrap();
        }
        mirror.must_be_equal();
    });
}

#[test]
fn case_47_source_cut_off_from_its_medium() {
    lab::in_private_namespace("case_47_source_cut_off_from_its_medium", |lab| {
        let mut image = testkit::need!(lab.ext4(128));
        let other = testkit::need!(lab.ext4(128));
        let (src, dst) = (image.dir("src").unwrap(), other.path().join("dst"));
        some_files(&src, 300);
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_be_equal();
        // Everything answers EIO from now on. Nothing of that is a deletion.
        rustix::fs::sync();
        image.power_cut().unwrap();
        let _ = fs::write(src.join("d1/f1"), "fails");
        let _ = fs::remove_file(src.join("d2/f2"));
        let ran = mirror.ask(&["wait", "--idle", "--timeout", "3s"]);
        assert!(ran.code == 0 || ran.code == 3, "{ran:?}");
        // A look at everything, which nothing can be read of, says so.
        let ran = mirror.ask(&["verify"]);
        assert_eq!(ran.code, 3, "{ran:?}");
        assert!(ran.stdout.contains("d1/f1: unreadable"), "{ran:?}");
        assert!(!ran.stdout.contains("missing"), "{ran:?}");
        for number in 0..300 {
            let copy = dst.join(format!("d{}/f{number}", number % 7));
            assert_eq!(
                fs::read_to_string(&copy).unwrap(),
                format!("content {number}")
            );
        }
        let _ = image.unmount();
        image.mount().unwrap();
        write(src.join("d1/f1"), "after the repair");
        mirror.goes_on();
        mirror.must_be_equal();
    });
}

#[test]
fn case_48_our_own_writes_do_not_loop() {
    lab::in_private_namespace("case_48_our_own_writes_do_not_loop", |lab| {
        let image = testkit::need!(lab.ext4(128));
        let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
        some_files(&src, 300);
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_be_equal();
        write(src.join("last"), "change");
        mirror.must_be_equal();
        let end = |mirror: &Mirror| mirror.status()["status"]["positions"]["durable"].to_string();
        let ticks = |mirror: &Mirror| -> u64 {
            let stat = fs::read_to_string(format!("/proc/{}/stat", mirror.program.pid())).unwrap();
            let rest = stat.rsplit_once(')').unwrap().1;
            rest.split_whitespace()
                .skip(11)
                .take(2)
                .map(|t| t.parse::<u64>().unwrap())
                .sum()
        };
        std::thread::sleep(Duration::from_millis(1500));
        let (before, used) = (end(&mirror), ticks(&mirror));
        std::thread::sleep(Duration::from_secs(3));
        let used = ticks(&mirror) - used;
        assert_eq!(
            before,
            end(&mirror),
            "records appear though nothing changes"
        );
        println!("{used} ticks of 10 ms in 3 s of rest");
        assert!(used < 60, "{used} ticks of processor time in 3 s of rest");
        // Another copy on the same file system, of the copy itself.
        let mut second = Mirror::start(&dst, &image.path().join("dst2"));
        second.must_be_equal();
        write(src.join("through both"), "twice");
        mirror.must_be_equal();
        second.must_be_equal();
    });
}

/// A library that shifts the clock of the program it is loaded into by as many seconds as a file says.
fn shifted_clock(dir: &Path) -> Option<PathBuf> {
    let source = r#"
#define _GNU_SOURCE
#include <time.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <fcntl.h>
#include <sys/syscall.h>
static long shift(void) {
    char text[32] = {0};
    int fd = open(getenv("CLOCK_SHIFT"), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    long got = read(fd, text, sizeof text - 1);
    close(fd);
    return got > 0 ? atol(text) : 0;
}
int clock_gettime(clockid_t clock, struct timespec *at) {
    int result = syscall(SYS_clock_gettime, clock, at);
    if (result == 0 && clock == CLOCK_REALTIME) at->tv_sec += shift();
    return result;
}
"#;
    let (file, library) = (dir.join("clock.c"), dir.join("clock.so"));
    write(&file, source);
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&file)
        .status();
    built
        .is_ok_and(|status| status.success())
        .then_some(library)
}

#[test]
fn case_50_clock_set_back_by_an_hour() {
    lab::in_private_namespace("case_50_clock_set_back_by_an_hour", |lab| {
        let dir = tempfile::tempdir().unwrap();
        let Some(library) = shifted_clock(dir.path()) else {
            testkit::skip!("no C compiler: the clock can't be shifted for one program");
        };
        let image = testkit::need!(lab.ext4(128));
        let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
        some_files(&src, 100);
        let shift = dir.path().join("shift");
        // Set back while it runs, set back between two runs, then an hour ahead and right again.
        for (at_start, later) in [(0, -3600), (-3600, -7200), (3600, 0)] {
            write(&shift, at_start.to_string());
            let mut command = fs_mirror(mirror_arguments(
                &src,
                &dst,
                &["--on-mass-change", "follow"],
            ));
            command
                .env("LD_PRELOAD", &library)
                .env("CLOCK_SHIFT", &shift);
            let mut mirror = Mirror::start_command(&mut command, &src, &dst);
            mirror.must_be_equal();
            write(src.join("d1/f1"), format!("same size {at_start:6}"));
            mirror.must_be_equal();
            write(&shift, later.to_string());
            for round in 0..20 {
                write(src.join("d1/f1"), format!("same size {round:6}"));
                if round % 4 == 0 {
                    mirror.must_be_equal();
                }
            }
            fs::rename(src.join("d2"), src.join("d2.new")).unwrap();
            mirror.must_be_equal();
            fs::rename(src.join("d2.new"), src.join("d2")).unwrap();
            mirror.must_be_equal();
            let lag = mirror.status()["status"]["lag"]["seconds"]
                .as_f64()
                .unwrap();
            assert!(lag < 60.0, "a lag of {lag} s by a clock that was set");
            assert_eq!(mirror.stop(), 0);
        }
    });
}

/// Not in the list: nothing of the above needs a disk.
#[test]
fn source_and_copy_in_memory() {
    lab::in_private_namespace("source_and_copy_in_memory", |lab| {
        let image = testkit::need!(lab.tmpfs(256));
        let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
        some_files(&src, 100);
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_be_equal();
        let params = workload::Params {
            seed: 77,
            ops: 1500,
            outside: Some(image.dir("outside").unwrap()),
            ..Default::default()
        };
        workload::start(&src, &params, 2).unwrap().wait().unwrap();
        mirror.must_be_equal();
        let mut file = File::create(src.join("end")).unwrap();
        file.write_all(b"end").unwrap();
        mirror.must_be_equal();
    });
}

#[cfg(feature = "planted")]
#[test]
fn planted_defects_are_caught() {
    common::caught(&[("trust_equal_stat", "case_42_changes_while_stopped")]);
}
