//! Plain trees of the past, published by the program while everything changes.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{DEADLINE, Mirror, fs_mirror};
use testkit::compare::{self, Class};
use testkit::proc::wait_until;

struct Place {
    base: tempfile::TempDir,
    mirror: Mirror,
}

impl Place {
    /// A mirror that keeps history, quiet.
    fn new(more: &[&str]) -> Place {
        let base = tempfile::tempdir().unwrap();
        let (src, dst) = (base.path().join("src"), base.path().join("dst"));
        for dir in 0..5 {
            let dir = src.join(format!("d{dir}"));
            fs::create_dir_all(&dir).unwrap();
            for file in 0..40 {
                fs::write(
                    dir.join(format!("f{file}")),
                    format!("{file} ").repeat(file),
                )
                .unwrap();
            }
        }
        fs::hard_link(src.join("d0/f7"), src.join("d1/link")).unwrap();
        std::os::unix::fs::symlink("d0/f7", src.join("symlink")).unwrap();
        let mut command = fs_mirror(["mirror"]);
        command.arg(&src).arg(&dst);
        command.args(["--on-mass-change", "follow"]).args(more);
        let mut mirror = Mirror::start_command(&mut command, &src, &dst);
        mirror.equal_once();
        let place = Place { base, mirror };
        place.idle();
        place
    }
    fn at(&self, below: &str) -> PathBuf {
        self.base.path().join(below)
    }
    #[track_caller]
    fn done(&self, words: &[&str]) -> String {
        let ran = self.mirror.ask(words);
        assert_eq!(ran.code, 0, "{words:?}: {ran:?}");
        ran.stdout
    }
    fn idle(&self) {
        let idle = || {
            self.mirror
                .ask(&["wait", "--idle", "--timeout", "50s"])
                .code
                == 0
        };
        wait_until("it is idle", DEADLINE, idle).unwrap();
    }
    fn truth(&self, name: &str) -> PathBuf {
        let to = self.at(name);
        let mut cp = Command::new("cp");
        let copied = cp.arg("-a").arg(self.at("src")).arg(&to).status();
        assert!(copied.unwrap().success());
        to
    }
}

#[track_caller]
fn same(truth: &Path, tree: &Path) {
    let options = compare::Options::ignoring(&[Class::Holes]);
    compare::assert_equal(truth, tree, &options);
}

/// One change of any kind.
fn change(src: &Path, n: u64) -> std::io::Result<()> {
    let file = |n: u64| src.join(format!("d{}/f{}", n % 5, n / 5 % 40));
    let path = file(n.wrapping_mul(7919));
    match n % 8 {
        0 => fs::set_permissions(
            &path,
            fs::Permissions::from_mode(0o600 + (n / 8 % 8) as u32),
        ),
        1 => fs::write(&path, format!("now {n}")),
        2 => {
            let mut file = fs::File::options().append(true).open(&path)?;
            std::io::Write::write_all(&mut file, b"more")
        }
        3 => fs::File::options()
            .write(true)
            .open(&path)?
            .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(n)),
        4 => {
            let flags = rustix::fs::XattrFlags::empty();
            let value = n.to_string();
            Ok(rustix::fs::setxattr(
                &path,
                "user.n",
                value.as_bytes(),
                flags,
            )?)
        }
        5 => fs::rename(&path, file(n.wrapping_mul(104_729))),
        6 => fs::rename(src.join(format!("d{}", n % 5)), src.join("d9"))
            .and_then(|()| fs::rename(src.join("d9"), src.join(format!("d{}", n % 5)))),
        _ => {
            fs::remove_file(&path)?;
            fs::write(&path, format!("again {n}"))
        }
    }
}

#[test]
fn a_published_tree_is_and_stays_what_it_was_while_everything_changes() {
    let place = Place::new(&[]);
    let truth = place.truth("truth");
    place.done(&["snapshot", "create", "then"]);
    let (over, count) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let changing = {
        let (over, count, src) = (over.clone(), count.clone(), place.at("src"));
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let n = count.fetch_add(1, Ordering::Relaxed);
                let _ = change(&src, n);
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        })
    };
    place.done(&["snapshot", "publish", "then"]);
    for n in 0..4 {
        place.done(&["snapshot", "publish", &format!("at{n}"), "--at", "then"]);
    }
    let after = count.load(Ordering::Relaxed) + 1000;
    let changed = || count.load(Ordering::Relaxed) >= after;
    wait_until("a thousand changes later", DEADLINE, changed).unwrap();
    over.store(true, Ordering::Relaxed);
    changing.join().unwrap();
    place.idle();
    let trees = place.at("dst.fs_mirror/snapshots");
    for name in ["then", "at0", "at1", "at2", "at3"] {
        same(&truth, &trees.join(name));
    }
    same(&place.at("src"), &place.at("dst"));
    let linked = fs::metadata(trees.join("then/d2/f20")).unwrap().nlink();
    assert!(linked > 1, "links, not copies");
    let listed = place.done(&["snapshot", "list"]);
    assert!(listed.contains("/snapshots/at2  "), "{listed}");
    place.done(&["snapshot", "rm", "at2"]);
    assert!(!trees.join("at2").exists() && !trees.join("at2.json").exists());
    // A tree, and a name of a position.
    place.done(&["snapshot", "rm", "then"]);
    assert!(!trees.join("then").exists());
    let ran = place.mirror.ask(&["snapshot", "rm", "then"]);
    assert_eq!(ran.code, 2, "{ran:?}");
}

#[test]
fn what_is_not_possible_is_told() {
    let place = Place::new(&[]);
    let told = |words: &[&str], code: i32, wanted: &str| {
        let ran = place.mirror.ask(words);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(
            ran.code == code && said.contains(wanted),
            "{words:?}: {ran:?}"
        );
    };
    // Unless the hour just ended.
    let ran = place.mirror.ask(&["rotate", "hourly"]);
    let said = ran.stdout + &ran.stderr;
    assert!(
        ran.code == 0 && (said.contains("the first tree is that of") || said.contains("position")),
        "{said}"
    );
    told(
        &["snapshot", "publish", "hourly.0"],
        2,
        "a name that rotation gives",
    );
    told(&["snapshot", "publish", "../up"], 2, "can't be a name");
    told(&["rotate", "yearly"], 2, "yearly");
    place.done(&["snapshot", "publish", "one"]);
    told(&["snapshot", "publish", "one"], 2, "is there already");
    drop(place.mirror);
    // Settings that can't be are told at the start; a stopped mirror publishes, too.
    let base = place.base;
    let config = base.path().join("dst.fs_mirror/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let ask = |words: &[&str]| {
        let mut command = fs_mirror(words);
        command.arg("-m").arg(base.path().join("dst"));
        common::run_command(&mut command)
    };
    let ran = ask(&["snapshot", "publish", "two"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let trees = base.path().join("dst.fs_mirror/snapshots");
    same(&base.path().join("src"), &trees.join("two"));
    for (publish, wanted) in [
        ("{ dir = \"/proc\" }", "on another file system"),
        ("{ dir = \"/nowhere/at/all\" }", "can't be used"),
        ("{ names = \"odd\" }", "dated or numbered"),
    ] {
        assert!(text.contains("publish = \"off\""), "{text}");
        let new = text.replace("publish = \"off\"", &format!("publish = {publish}"));
        fs::write(&config, new).unwrap();
        let mut command = fs_mirror(["mirror"]);
        command
            .arg(base.path().join("src"))
            .arg(base.path().join("dst"));
        let ran = common::run_command(&mut command);
        assert!(
            ran.code != 0 && ran.stderr.contains(wanted),
            "{publish}: {ran:?}"
        );
    }
}

#[test]
fn a_view_shows_what_was_and_nobody_writes_through_it() {
    testkit::lab::in_private_namespace(
        "a_view_shows_what_was_and_nobody_writes_through_it",
        |_| {
            let place = Place::new(&[]);
            let truth = place.truth("truth");
            place.done(&["snapshot", "create", "then"]);
            for n in 0..400 {
                let _ = change(&place.at("src"), n);
            }
            fs::remove_dir_all(place.at("src/d1")).unwrap();
            place.idle();
            let at = place.at("seen");
            fs::create_dir(&at).unwrap();
            let seen = at.to_str().unwrap();
            place.done(&["view", "--at", "then", seen]);
            same(&truth, &at);
            assert!(fs::write(at.join("d2/f3"), "no").is_err());
            assert!(
                fs::set_permissions(at.join("d2/f3"), fs::Permissions::from_mode(0o666)).is_err()
            );
            let views = place.at("dst.fs_mirror/views");
            assert_eq!(fs::read_dir(&views).unwrap().count(), 1);
            let ran = place.mirror.ask(&["view", "--at", "then", seen]);
            assert!(ran.code == 2 && ran.stderr.contains("not empty"), "{ran:?}");
            place.done(&["view", "--drop", seen]);
            assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
            assert_eq!(fs::read_dir(&views).unwrap().count(), 0);
            // A part of it; and one that was unmounted by hand goes with the next.
            place.done(&["view", "--at", "then", "d1", seen]);
            same(&truth.join("d1"), &at);
            rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
            place.done(&["view", "--at", "then", "d0", seen]);
            same(&truth.join("d0"), &at);
            assert_eq!(fs::read_dir(&views).unwrap().count(), 1);
            let ran = place.mirror.ask(&["view", "--at", "then", "d0/f1", seen]);
            assert!(
                ran.code == 2 && ran.stderr.contains("no directory"),
                "{ran:?}"
            );
            place.done(&["view", "--drop", seen]);
        },
    );
}
