//! `fs_mirror mirror far:/path DST` from end to end, with a script in ssh's place.

mod ssh_support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use ssh_support::*;

#[test]
fn first_copy_then_live_then_again() {
    let bed = Bed::new();
    bed.populate(1200, 1);
    let mut follower = bed.mirror(&[]);
    follower.wait_stderr("equal: ", LONG).unwrap();
    bed.equal();
    // Live, of every kind and size.
    let src = bed.src();
    fs::write(src.join("small"), "small").unwrap();
    fs::write(src.join("middle"), vec![1u8; 200 << 10]).unwrap();
    fs::write(src.join("large"), vec![2u8; 5 << 20]).unwrap();
    fs::write(src.join("empty"), "").unwrap();
    symlink("small", src.join("link")).unwrap();
    fs::hard_link(src.join("small"), src.join("again")).unwrap();
    let sparse = fs::File::create(src.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"data", 1 << 20).unwrap();
    fs::rename(src.join("tree"), src.join("moved")).unwrap();
    bed.equal();
    let (code, said) = bed.command(&["wait", "--idle", "--timeout", "30s"]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = bed.command(&["status"]);
    assert!(code == 0 && said.contains("following"), "{said}");
    let (code, said) = bed.command(&["verify", "--against", "source"]);
    assert!(code == 0 && said.contains("no difference"), "{said}");
    stop(follower);
    // Started again, nothing is copied twice.
    fs::write(src.join("meanwhile"), "x").unwrap();
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    bed.equal();
}

#[test]
fn a_file_of_many_links_travels() {
    let bed = Bed::new();
    let src = bed.src();
    fs::write(src.join("0"), "many").unwrap();
    for n in 1..3000 {
        fs::hard_link(src.join("0"), src.join(n.to_string())).unwrap();
    }
    let mut follower = bed.mirror(&["--on-mass-change", "follow"]);
    follower.wait_stderr("equal: ", LONG).unwrap();
    bed.equal();
    fs::hard_link(src.join("7"), src.join("new")).unwrap();
    fs::remove_file(src.join("0")).unwrap();
    fs::write(src.join("99"), "changed").unwrap();
    bed.equal();
    stop(follower);
    for n in 1..1500 {
        fs::remove_file(src.join(n.to_string())).unwrap();
    }
    fs::hard_link(src.join("new"), src.join("1")).unwrap();
    let (code, said) = bed.mirror_once(&[]);
    assert!(code == 0 || code == 4, "{said}");
    if code == 4 {
        let (code, said) = bed.command(&["release", "--yes"]);
        assert_eq!(code, 0, "{said}");
        let (code, said) = bed.mirror_once(&[]);
        assert_eq!(code, 0, "{said}");
    }
    bed.equal();
}

#[test]
fn what_a_hand_changed_is_found_and_repaired() {
    let bed = Bed::new();
    bed.populate(60, 2);
    let mut follower = bed.mirror(&[]);
    follower.wait_stderr("equal: ", LONG).unwrap();
    fs::write(bed.src().join("a"), "as it is").unwrap();
    bed.equal();
    fs::write(bed.dst().join("a"), "by hand!").unwrap();
    fs::write(bed.dst().join("extra"), "by hand").unwrap();
    let (code, said) = bed.command(&["verify", "--against", "index"]);
    assert!(code != 0 && said.contains("extra"), "{code} {said}");
    let (_, said) = bed.command(&["verify", "--against", "source", "--repair"]);
    assert!(said.contains("repaired"), "{said}");
    bed.equal();
    stop(follower);
}

#[test]
fn pause_closes_all_and_resume_goes_on() {
    let bed = Bed::new();
    fs::write(bed.src().join("a"), "1").unwrap();
    let mut follower = bed.mirror(&[]);
    follower.wait_stderr("equal: ", LONG).unwrap();
    let (code, said) = bed.command(&["pause"]);
    assert_eq!(code, 0, "{said}");
    fs::write(bed.src().join("b"), "2").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(!bed.dst().join("b").exists());
    let (code, said) = bed.command(&["resume"]);
    assert_eq!(code, 0, "{said}");
    bed.equal();
    stop(follower);
}

#[test]
fn a_second_follower_joins_the_running_capture() {
    let bed = Bed::new();
    bed.populate(300, 3);
    let mut first = bed.mirror(&[]);
    first.wait_stderr("equal: ", LONG).unwrap();
    let daemon = bed.daemons();
    let other = bed.path("other");
    let mut second = bed.mirror_to(&other, &[]);
    second.wait_stderr("equal: ", LONG).unwrap();
    assert_eq!((bed.daemons(), daemon.len()), (daemon, 1));
    fs::write(bed.src().join("both"), "x").unwrap();
    bed.equal();
    bed.equal_to(&other);
    let output = Command::new(MIRRORD)
        .arg("status")
        .env("MIRRORD_STATE", bed.states())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.matches("replica").count(), 2, "{said}");
    stop(first);
    stop(second);
}

#[test]
fn capture_lingers_and_then_ends_by_itself() {
    let bed = Bed::new();
    fs::write(bed.src().join("a"), "1").unwrap();
    let serve = format!(
        "exec {MIRRORD} stdio --tree {} --linger 1s",
        bed.src().display()
    );
    bed.script(&serve);
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(bed.daemons().len(), 1);
    bed.wait("the daemon ends", || bed.daemons().is_empty());
    // The next one begins where it was; a signal ends it too, soon and cleanly.
    let mut follower = bed.mirror(&[]);
    follower.wait_stderr("equal: ", LONG).unwrap();
    let daemon = bed.daemons()[0];
    let before = Instant::now();
    signal(daemon, Signal::TERM);
    bed.wait("the daemon ends", || {
        !fs::read_to_string(format!("/proc/{daemon}/cmdline")).is_ok_and(|line| !line.is_empty())
    });
    assert!(
        before.elapsed() < Duration::from_secs(5),
        "{:?}",
        before.elapsed()
    );
    fs::write(bed.src().join("b"), "2").unwrap();
    bed.equal();
    stop(follower);
}

#[test]
fn a_forced_command_serves_its_own_tree_only() {
    let bed = Bed::new();
    fs::write(bed.src().join("a"), "1").unwrap();
    let other = bed.path("secret");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("key"), "no").unwrap();
    let forced = format!(
        "for last; do :; done\nSSH_ORIGINAL_COMMAND=\"$last\" exec {MIRRORD} stdio --tree {}",
        bed.src().display()
    );
    bed.script(&forced);
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    let stolen = bed.path("stolen");
    let source = format!("far:{}", other.display());
    let (code, said) = ended(bed.mirror_from(&source, &stolen, &[]));
    assert_eq!(code, 6, "{said}");
    assert!(said.contains("this login serves"), "{said}");
    assert!(!stolen.join("key").exists());
}

#[test]
fn what_is_no_tree_is_told_in_one_line() {
    let bed = Bed::new();
    fs::write(bed.path("file"), "x").unwrap();
    let from = |below: &str| {
        let source = format!("far:{}", bed.path(below).display());
        ended(bed.mirror_from(&source, &bed.dst(), &[]))
    };
    let (code, said) = from("nowhere");
    assert!(
        code == 2 && said.contains("nowhere does not exist"),
        "{code} {said}"
    );
    let (code, said) = from("file");
    assert!(
        code == 2 && said.contains("file is not a directory"),
        "{code} {said}"
    );
    assert!(bed.daemons().is_empty());
}

#[test]
fn a_missing_mirrord_and_a_refused_login_are_told_in_one_line() {
    let mut bed = Bed::new();
    bed.remote = "/no/such/mirrord".into();
    let (code, said) = ended(bed.mirror(&[]));
    assert!(
        code == 6 && said.contains("mirrord is not installed on far"),
        "{code} {said}"
    );
    assert!(said.contains("--remote-command"), "{said}");
    for (body, wanted) in [
        (
            "echo 'u@far: Permission denied (publickey).' >&2; exit 255",
            "far refuses the login",
        ),
        (
            "echo 'ssh: connect to host far port 22: Connection refused' >&2; exit 255",
            "cannot reach far: ssh: connect to host far port 22: Connection refused",
        ),
        (
            "echo 'Host key verification failed.' >&2; exit 255",
            "the key of far is not known here",
        ),
        (
            "echo 'sudo: a password is required' >&2; exit 1",
            "sudo on far asks for a password",
        ),
        (
            "echo 'Welcome to far, have a nice day'; sleep 5",
            "far prints something before the protocol begins",
        ),
    ] {
        bed.script(body);
        let (code, said) = ended(bed.mirror(&["--once"]));
        assert!(code == 6 && said.contains(wanted), "{code} {said}");
    }
    bed.ssh = "/no/such/ssh".into();
    let (code, said) = ended(bed.mirror(&[]));
    assert!(
        code == 6 && said.contains("is not installed here"),
        "{code} {said}"
    );
}

#[test]
fn a_mirror_that_was_connected_once_waits_for_its_source() {
    let bed = Bed::new();
    fs::write(bed.src().join("a"), "1").unwrap();
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    let works = fs::read_to_string(bed.path("ssh")).unwrap();
    bed.script("echo 'ssh: connect to host far port 22: No route to host' >&2; exit 255");
    let (code, said) = bed.mirror_once(&[]);
    assert!(
        code == 6 && said.contains("No route to host"),
        "{code} {said}"
    );
    let mut follower = bed.mirror(&[]);
    follower.wait_stderr("No route to host", LONG).unwrap();
    fs::write(bed.src().join("b"), "2").unwrap();
    fs::write(bed.path("ssh"), works).unwrap();
    bed.equal();
    stop(follower);
}

#[test]
fn another_history_of_the_same_tree_is_compared_and_told() {
    let bed = Bed::new();
    bed.populate(200, 4);
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    let lose_state = || {
        for pid in bed.daemons() {
            kill9(pid);
        }
        fs::remove_dir_all(bed.states()).unwrap();
    };
    let inode = |path: &str| {
        use std::os::unix::fs::MetadataExt;
        fs::symlink_metadata(bed.dst().join(path)).unwrap().ino()
    };
    lose_state();
    fs::write(bed.src().join("after the loss"), "x").unwrap();
    let before = inode("tree");
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("unexplained fork: ") && said.contains(". All is compared again, "),
        "{said}"
    );
    assert_eq!(inode("tree"), before, "what is equal stays");
    bed.equal();
    let follower = bed.mirror(&[]);
    bed.wait("it is told", || {
        let (code, said) = bed.command(&["check"]);
        code == 1 && said.contains("unexplained fork")
    });
    stop(follower);

    // Nobody knows whose log it is: a mirror of before, or one that is to follow another host.
    fs::remove_file(bed.path("dst.fs_mirror/followed")).unwrap();
    lose_state();
    fs::write(bed.src().join("new"), "x").unwrap();
    let (code, said) = bed.mirror_once(&[]);
    assert!(
        code == 1 && said.contains("another history"),
        "{code} {said}"
    );
    assert!(said.contains("--adopt"), "{said}");
    let (code, said) = bed.mirror_once(&["--adopt", "--yes"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(inode("tree"), before, "what is equal stays");
    bed.equal();
}

#[test]
fn a_restored_worker_is_followed_again_by_comparing() {
    let bed = Bed::new();
    bed.populate(200, 5);
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    let stop_worker = || {
        for pid in bed.daemons() {
            signal(pid, Signal::TERM);
        }
        bed.wait("the daemon ends", || bed.daemons().is_empty());
    };
    stop_worker();
    let saved = bed.path("saved");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let done = Command::new("cp")
            .arg("-a")
            .args([from, to])
            .status()
            .unwrap();
        assert!(done.success());
    };
    copy(&bed.states(), &saved);
    fs::write(bed.src().join("later"), "x").unwrap();
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    stop_worker();
    // The worker comes back as it was before: the mirror is ahead of it.
    fs::remove_dir_all(bed.states()).unwrap();
    copy(&saved, &bed.states());
    fs::write(bed.src().join("other"), "y").unwrap();
    fs::remove_file(bed.src().join("later")).unwrap();
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("another history"), "{said}");
    bed.equal();
    assert!(bed.path("dst.fs_mirror/divergence").is_dir());
}

#[test]
fn what_is_ignored_is_not_sent_and_is_a_capture_of_its_own() {
    let bed = Bed::new();
    fs::write(bed.src().join("a.txt"), "1").unwrap();
    fs::write(bed.src().join("a.log"), "2").unwrap();
    let (code, said) = bed.mirror_once(&["--ignore", "*.log"]);
    assert_eq!(code, 0, "{said}");
    assert!(bed.dst().join("a.txt").exists() && !bed.dst().join("a.log").exists());
    let all = bed.path("all");
    let (code, said) = ended(bed.mirror_to(&all, &["--once"]));
    assert_eq!(code, 0, "{said}");
    assert!(all.join("a.log").exists());
    assert_eq!(bed.daemons().len(), 2);
}

#[test]
fn a_dry_run_tells_and_does_nothing() {
    let bed = Bed::new();
    fs::write(bed.src().join("a"), "1").unwrap();
    fs::create_dir(bed.src().join("d")).unwrap();
    fs::write(bed.src().join("d/b"), vec![1; 300_000]).unwrap();
    let (code, said) = would(&bed);
    assert_eq!(code, 0, "{said}");
    assert!(
        ["a", "d", "d/b"]
            .iter()
            .all(|path| said.contains(&format!("new {path}"))),
        "{said}"
    );
    assert!(!bed.dst().exists() && !bed.path("dst.fs_mirror").exists());
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = would(&bed);
    assert!(code == 0 && !said.contains("new"), "{said}");
    fs::write(bed.src().join("a"), "22").unwrap();
    fs::remove_file(bed.src().join("d/b")).unwrap();
    let (code, said) = would(&bed);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("changed a") && said.contains("removed d/b"),
        "{said}"
    );
    assert!(bed.dst().join("d/b").exists());
}

/// What a dry run prints, blanks made single.
fn would(bed: &Bed) -> (i32, String) {
    let mut program = bed.mirror(&["--dry-run"]);
    let status = program.wait(LONG).unwrap();
    let said = format!("{}{}", program.stdout(), program.stderr());
    let words: Vec<&str> = said.split_whitespace().collect();
    (status.code().unwrap_or(-1), words.join(" "))
}

#[test]
fn odd_paths_arrive_whole() {
    let mut bed = Bed::new();
    let odd = bed.path("src/it's $(odd) \\ \"dir\"");
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("a"), "1").unwrap();
    bed.host = "far".into();
    let source = format!("far:{}", odd.display());
    let (code, said) = ended(bed.mirror_from(&source, &bed.dst(), &["--once"]));
    assert_eq!(code, 0, "{said}");
    assert_eq!(fs::read(bed.dst().join("a")).unwrap(), b"1");
}

#[test]
fn a_source_that_goes_is_a_hold_and_comes_back() {
    let bed = Bed::new();
    bed.populate(50, 6);
    let mut follower = bed.mirror(&[]);
    follower.wait_stderr("equal: ", LONG).unwrap();
    let away = bed.path("away");
    fs::rename(bed.src(), &away).unwrap();
    follower.wait_stderr("on hold", LONG).unwrap();
    let (code, said) = bed.command(&["check"]);
    assert!(code != 0, "{said}");
    assert!(bed.dst().join("tree").is_dir(), "the copy stays");
    fs::rename(&away, bed.src()).unwrap();
    fs::write(bed.src().join("back"), "x").unwrap();
    bed.equal();
    stop(follower);
}

#[test]
fn everything_going_at_once_is_held_and_released() {
    let bed = Bed::new();
    fs::create_dir(bed.src().join("d")).unwrap();
    for n in 0..1500 {
        fs::write(bed.src().join(format!("d/{n}")), "x").unwrap();
    }
    let mut follower = bed.mirror(&["--no-history"]);
    follower.wait_stderr("equal: ", LONG).unwrap();
    fs::remove_dir_all(bed.src().join("d")).unwrap();
    fs::write(bed.src().join("after"), "x").unwrap();
    follower.wait_stderr("on hold", LONG).unwrap();
    // What went before the threshold of 1,000 was reached is gone; all that comes after it waits.
    let kept = fs::read_dir(bed.dst().join("d")).unwrap().count();
    assert!(kept >= 500, "{kept} of 1500 kept");
    assert!(!bed.dst().join("after").exists());
    let (code, said) = bed.command(&["release", "--yes"]);
    assert_eq!(code, 0, "{said}");
    bed.equal();
    stop(follower);
}

#[test]
fn a_loss_without_an_event_leaves_the_copy_as_it_is() {
    let bed = Bed::new();
    for dir in ["a", "b", "c"] {
        fs::create_dir(bed.src().join(dir)).unwrap();
        for n in 0..40 {
            fs::write(bed.src().join(format!("{dir}/{n}")), "x").unwrap();
        }
    }
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    for pid in bed.daemons() {
        kill9(pid);
    }
    fs::remove_dir_all(bed.src().join("b")).unwrap();
    fs::write(bed.src().join("a/new"), "new").unwrap();
    fs::write(bed.src().join("c/9"), "changed").unwrap();
    fs::rename(bed.src().join("c/8"), bed.src().join("c/moved")).unwrap();
    let (code, said) = bed.mirror_once(&[]);
    assert!(
        code == 4 && said.contains("40 of 40 entries in b"),
        "{code} {said}"
    );
    assert_eq!(fs::read(bed.dst().join("c/9")).unwrap(), b"x");
    assert!(!bed.dst().join("a/new").exists() && bed.dst().join("c/8").exists());
    assert!(bed.dst().join("b/1").exists());
    // Whoever comes while it is held can let it go on; so can a word given while nobody came. One is enough.
    let mut follower = bed.mirror(&[]);
    follower.wait_stderr("on hold", LONG).unwrap();
    let (code, said) = bed.command(&["release", "--yes"]);
    assert_eq!(code, 0, "{said}");
    bed.equal();
    stop(follower);
    for (dir, kill) in [("c", false), ("a", true)] {
        for pid in bed.daemons() {
            kill9(pid);
        }
        fs::remove_dir_all(bed.src().join(dir)).unwrap();
        let (code, said) = bed.mirror_once(&[]);
        assert_eq!(code, 4, "{said}");
        for pid in bed.daemons().into_iter().filter(|_| kill) {
            kill9(pid);
        }
        let (code, said) = bed.command(&["release", "--yes"]);
        assert_eq!(code, 0, "{said}");
        let (code, said) = bed.mirror_once(&[]);
        assert_eq!(code, 0, "{said}");
        bed.equal();
    }
}

#[test]
fn another_file_system_at_the_source_over_ssh_is_let_go_on_once() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    const NAME: &str = "another_file_system_at_the_source_over_ssh_is_let_go_on_once";
    testkit::lab::in_private_namespace(NAME, |_lab| {
        let bed = Bed::new();
        bed.populate(50, 8);
        let mut follower = bed.mirror(&[]);
        follower.wait_stderr("equal: ", LONG).unwrap();
        mount("none", bed.src(), "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
        fs::write(bed.src().join("other"), "of another tree").unwrap();
        follower.wait_stderr("on hold", LONG).unwrap();
        let (code, said) = bed.command(&["release", "--yes"]);
        assert_eq!(code, 0, "{said}");
        bed.equal();
        assert!(bed.dst().join("other").exists());
        stop(follower);
        for pid in bed.daemons() {
            kill9(pid);
        }
        unmount(bed.src(), UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn mounts_are_crossed_and_the_guard_knows_them() {
    use rustix::mount::{UnmountFlags, mount_bind, unmount};
    testkit::lab::in_private_namespace("mounts_are_crossed_and_the_guard_knows_them", |lab| {
        let data = testkit::need!(lab.ext4(64));
        let bed = Bed::new();
        bed.populate(50, 7);
        let at = bed.src().join("m");
        fs::create_dir(&at).unwrap();
        fs::write(data.path().join("in"), "data").unwrap();
        mount_bind(data.path(), &at).unwrap();
        // First without it.
        let (code, said) = bed.mirror_once(&[]);
        assert_eq!(code, 0, "{said}");
        assert!(bed.dst().join("m").is_dir() && !bed.dst().join("m/in").exists());
        // Added later: all is compared, nothing equal is copied.
        let inode = |path: &str| {
            use std::os::unix::fs::MetadataExt;
            fs::symlink_metadata(bed.dst().join(path)).unwrap().ino()
        };
        let before = inode("tree");
        let mut follower = bed.mirror(&["--cross", "m"]);
        follower.wait_stderr("equal: ", LONG).unwrap();
        assert_eq!(inode("tree"), before);
        fs::write(at.join("live"), "more").unwrap();
        bed.wait("it is crossed", || {
            fs::read(bed.dst().join("m/live")).is_ok_and(|bytes| bytes == b"more")
                && bed.dst().join("m/in").exists()
        });
        // It goes: a hold, and what it held stays.
        unmount(&at, UnmountFlags::empty()).unwrap();
        follower.wait_stderr("on hold", LONG).unwrap();
        assert!(bed.dst().join("m/in").exists());
        mount_bind(data.path(), &at).unwrap();
        fs::write(at.join("back"), "again").unwrap();
        bed.wait("it goes on", || bed.dst().join("m/back").exists());
        stop(follower);
        unmount(&at, UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn a_first_run_that_reaches_nobody_leaves_nothing() {
    let bed = Bed::new();
    bed.script("echo 'ssh: connect to host far port 22: No route to host' >&2; exit 255");
    let (code, said) = bed.mirror_once(&[]);
    assert!(
        code == 6 && said.contains("No route to host"),
        "{code} {said}"
    );
    assert!(!bed.dst().exists() && !bed.path("dst.fs_mirror").exists());
    // What was there stays.
    fs::create_dir(bed.dst()).unwrap();
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 6, "{said}");
    assert!(bed.dst().exists() && !bed.path("dst.fs_mirror").exists());
}

#[test]
fn what_is_ignored_may_be_changed_later() {
    let bed = Bed::new();
    for name in ["a.txt", "a.log", "a.tmp"] {
        fs::write(bed.src().join(name), name).unwrap();
    }
    let (code, said) = bed.mirror_once(&["--ignore", "*.log"]);
    assert_eq!(code, 0, "{said}");
    assert!(!bed.dst().join("a.log").exists() && bed.dst().join("a.tmp").exists());
    let (code, said) = bed.mirror_once(&["--ignore", "*.tmp"]);
    assert_eq!(code, 0, "{said}");
    // What is ignored from now on stays as it is.
    assert!(bed.dst().join("a.log").exists() && bed.dst().join("a.tmp").exists());
    fs::write(bed.src().join("a.tmp"), "changed").unwrap();
    fs::write(bed.src().join("b.txt"), "new").unwrap();
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    assert!(bed.dst().join("b.txt").exists());
    assert_eq!(fs::read(bed.dst().join("a.tmp")).unwrap(), b"a.tmp");
    // Nor does a repair take it away.
    for line in ["--against=index", "--repair"] {
        let (code, said) = bed.command(&["verify", line]);
        assert!(code == 0 && said.contains("no difference"), "{said}");
    }
    assert!(bed.dst().join("a.tmp").exists());
}

#[test]
fn an_unreadable_tree_is_told() {
    if testkit::is_root() {
        testkit::skip!("root reads everything");
    }
    let bed = Bed::new();
    fs::set_permissions(bed.src(), fs::Permissions::from_mode(0o000)).unwrap();
    let (code, said) = bed.mirror_once(&[]);
    fs::set_permissions(bed.src(), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(code == 2 && said.contains("cannot read"), "{code} {said}");
}

#[test]
fn stdio_without_a_follower_says_what_it_is() {
    let bed = Bed::new();
    let mut command = Command::new(MIRRORD);
    command
        .args(["stdio", "--tree"])
        .arg(bed.src())
        .env("MIRRORD_STATE", bed.states())
        .stdin(std::process::Stdio::null());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("far end of"), "{said}");
    assert!(bed.daemons().is_empty());
}
