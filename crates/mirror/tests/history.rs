//! The past of a mirror as a user asks for it: a site is broken, found out, and brought back; everything is encrypted; the
//! copy is compared anew.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Mirror, Ran, run};

struct Site {
    base: tempfile::TempDir,
    mirror: Mirror,
}

impl Site {
    fn new(fill: impl FnOnce(&Path)) -> Site {
        let base = tempfile::tempdir().unwrap();
        let (src, dst) = (base.path().join("src"), base.path().join("dst"));
        fs::create_dir(&src).unwrap();
        fill(&src);
        let mut mirror = Mirror::start_with(&src, &dst, &[]);
        mirror.equal_once();
        Site { base, mirror }
    }
    fn src(&self, path: &str) -> PathBuf {
        self.mirror.src.join(path)
    }
    fn at(&self, path: &str) -> PathBuf {
        self.base.path().join(path)
    }
    #[track_caller]
    fn idle(&mut self) {
        let ran = self.mirror.wait_idle();
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    #[track_caller]
    fn ask(&self, words: &[&str]) -> Ran {
        let ran = self.mirror.ask(words);
        assert_eq!(ran.code, 0, "{words:?}: {ran:?}");
        ran
    }
    #[track_caller]
    fn snapshot(&mut self, name: &str) {
        self.idle();
        self.ask(&["snapshot", "create", name]);
    }
    fn kept(&self, name: &str) -> PathBuf {
        let to = self.at(name);
        let done = Command::new("cp")
            .arg("-a")
            .arg(&self.mirror.src)
            .arg(&to)
            .status();
        assert!(done.unwrap().success());
        to
    }
}

#[track_caller]
fn same(left: &Path, right: &Path) {
    testkit::compare::assert_equal(left, right, &Default::default());
}

fn wordpress(src: &Path) {
    for dir in ["wp-content/plugins/good", "wp-includes", "uploads/2026"] {
        fs::create_dir_all(src.join(dir)).unwrap();
    }
    fs::write(
        src.join("wp-config.php"),
        "<?php\n$db = 'site';\n$debug = false;\n",
    )
    .unwrap();
    for n in 0..20 {
        fs::write(
            src.join(format!("wp-includes/f{n}.php")),
            format!("<?php // {n}\n"),
        )
        .unwrap();
        fs::write(src.join(format!("uploads/2026/{n}.jpg")), vec![n; 5000]).unwrap();
    }
    fs::write(
        src.join("wp-content/plugins/good/good.php"),
        "<?php good();\n",
    )
    .unwrap();
}

#[test]
fn a_site_is_broken_and_brought_back() {
    let mut site = Site::new(wordpress);
    site.snapshot("healthy");
    let healthy = site.kept("healthy");
    // A bad plugin comes, writes into the configuration, hides a shell; somebody deletes the uploads.
    fs::create_dir(site.src("wp-content/plugins/bad")).unwrap();
    fs::write(site.src("wp-content/plugins/bad/bad.php"), "<?php bad();\n").unwrap();
    site.idle();
    fs::write(
        site.src("wp-config.php"),
        "<?php\n$db = 'theirs';\n$debug = false;\n",
    )
    .unwrap();
    fs::write(site.src("uploads/2026/.shell.php"), "<?php eval($_GET[0]);").unwrap();
    site.idle();
    fs::rename(
        site.src("wp-includes/f3.php"),
        site.src("wp-includes/moved.php"),
    )
    .unwrap();
    fs::remove_dir_all(site.src("uploads")).unwrap();
    site.idle();
    let broken = site.kept("broken");

    // When did it begin, and what was it?
    let timeline = site.ask(&["timeline"]).stdout;
    assert!(timeline.contains("peak"), "{timeline}");
    let log = site.ask(&["log", "wp-config.php", "-p"]).stdout;
    assert!(
        log.contains("write") && log.contains("+$db = 'theirs';"),
        "{log}"
    );
    assert!(log.contains("-$db = 'site';"), "{log}");
    let all = site.ask(&["log"]).stdout;
    let gone = all
        .lines()
        .find(|line| line.contains("remove") && line.contains("  uploads/"));
    assert!(
        gone.is_some_and(|line| line.contains("with 22 entries")),
        "one line for all of it: {all}"
    );
    let only = site.ask(&["log", "--op", "rename"]).stdout;
    assert_eq!(only.lines().count(), 1, "{only}");
    assert!(
        only.contains("wp-includes/f3.php -> wp-includes/moved.php"),
        "{only}"
    );
    // Under the name it had before, too.
    let moved = site.ask(&["log", "wp-includes/moved.php"]).stdout;
    assert!(moved.contains("wp-includes/f3.php -> "), "{moved}");
    let diff = site.ask(&["diff", "healthy"]).stdout;
    for wanted in [
        "create      wp-content/plugins/bad/ with 1 entry",
        "write       wp-config.php",
        "remove      uploads/ with 21 entries",
        "rename      wp-includes/f3.php -> wp-includes/moved.php",
    ] {
        assert!(diff.contains(wanted), "{wanted}: {diff}");
    }
    let found = site.ask(&["find", "7.jpg", "--deleted"]).stdout;
    assert!(found.contains("uploads/2026/7.jpg"), "{found}");
    let was = site
        .ask(&["cat", "wp-config.php", "--at", "healthy"])
        .stdout;
    assert_eq!(was, "<?php\n$db = 'site';\n$debug = false;\n");

    // Elsewhere first, whole and by path.
    let to = site.at("checkout");
    site.ask(&["checkout", "--at", "healthy", to.to_str().unwrap()]);
    same(&healthy, &to);
    let to = site.at("restored");
    site.ask(&[
        "restore",
        "uploads/2026",
        "wp-config.php",
        "--at",
        "healthy",
        "--to",
        to.to_str().unwrap(),
    ]);
    same(&healthy.join("uploads/2026"), &to.join("uploads/2026"));
    // Twice is no change.
    site.ask(&[
        "restore",
        "uploads/2026",
        "wp-config.php",
        "--at",
        "healthy",
        "--to",
        to.to_str().unwrap(),
    ]);
    same(&healthy.join("uploads/2026"), &to.join("uploads/2026"));
    assert_eq!(
        fs::read_dir(&to).unwrap().count(),
        2,
        "nothing else is left there"
    );

    // A mirror is never edited, and nothing happens without a target.
    let none = site.mirror.ask(&["restore", "uploads", "--at", "healthy"]);
    assert_eq!(none.code, 2, "{none:?}");
    assert!(
        none.stderr.contains("--to DIR") && none.stderr.contains("--to-source"),
        "{none:?}"
    );
    let inside = site.mirror.dst.join("x");
    let inside = site.mirror.ask(&[
        "restore",
        "uploads",
        "--at",
        "healthy",
        "--to",
        inside.to_str().unwrap(),
    ]);
    assert_eq!(inside.code, 2, "{inside:?}");

    // Then in the source, all of it.
    let dry = site
        .ask(&[
            "restore",
            ".",
            "--at",
            "healthy",
            "--to-source",
            "--delete",
            "--dry-run",
        ])
        .stdout;
    assert!(dry.contains("put back    uploads\n"), "{dry}");
    same(&broken, &site.mirror.src);
    site.ask(&["restore", ".", "--at", "healthy", "--to-source", "--delete"]);
    same(&healthy, &site.mirror.src);
    site.idle();
    same(&healthy, &site.mirror.dst);
    // What was undone is history as well.
    let log = site.ask(&["log", "wp-config.php"]).stdout;
    assert!(log.matches("wp-config.php").count() >= 2, "{log}");

    // A stopped mirror answers the same.
    let running = site.ask(&["log", "-n", "0"]).stdout;
    site.mirror.program.stop(common::DEADLINE).unwrap();
    let stopped = site.ask(&["log", "-n", "0"]).stdout;
    assert_eq!(running, stopped);
}

#[test]
fn what_can_not_be_had_is_said_with_what_can() {
    let mut site = Site::new(wordpress);
    site.snapshot("here");
    for (words, code, said) in [
        (
            &["cat", "wp-config.php", "--at", "1970-01-01"][..],
            2,
            "history goes from",
        ),
        (
            &["cat", "wp-config.php", "--at", "2099-01-01"],
            2,
            "in the future",
        ),
        (
            &["cat", "wp-config.php", "--at", "nothing-like-it"],
            2,
            "there are here",
        ),
        (
            &["cat", "wp-config.php", "--at", "pos:9.9"],
            2,
            "not in the copy yet",
        ),
        (&["cat", "no/such", "--at", "here"], 2, "was not there"),
        (&["cat", "uploads", "--at", "here"], 2, "a directory"),
        (
            &["cat", "../../etc/passwd", "--at", "here"],
            2,
            "leads out of the mirror",
        ),
        (&["log", "never/was"], 2, "nothing is known of never/was"),
        (&["log", "--who", "root"], 2, "--who is uid=N"),
        (&["log", "--op", "chmod"], 2, "--op is one of"),
        (
            &["snapshot", "create", "here"],
            2,
            "there is a snapshot here already",
        ),
        (&["snapshot", "create", "10m ago"], 2, "can't be a name"),
        (&["snapshot", "rm", "gone"], 2, "there is no snapshot gone"),
    ] {
        let ran = site.mirror.ask(words);
        assert_eq!(ran.code, code, "{words:?}: {ran:?}");
        assert!(ran.stderr.contains(said), "{words:?}: {ran:?}");
        assert_eq!(
            ran.stderr.trim_end().lines().count(),
            1,
            "{words:?}: {ran:?}"
        );
        assert_eq!(ran.stdout, "", "{words:?}");
    }
    let full = site.at("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("x"), "x").unwrap();
    let ran = site
        .mirror
        .ask(&["checkout", "--at", "here", full.to_str().unwrap()]);
    assert!(ran.code == 2 && ran.stderr.contains("not empty"), "{ran:?}");
}

#[test]
fn undo_takes_back_what_one_did_and_leaves_what_others_did_later() {
    let mut site = Site::new(wordpress);
    site.snapshot("before");
    let by = |program: &str, script: String| {
        let done = Command::new(program).arg("-c").arg(script).status();
        assert!(done.unwrap().success());
    };
    let src = site.mirror.src.display().to_string();
    // The bad one is a copy of the shell under another name.
    let bad = site.at("bad");
    fs::copy("/bin/sh", &bad).unwrap();
    let bad = bad.to_str().unwrap();
    by(
        bad,
        format!(
            "echo bad > {src}/wp-config.php; echo bad > {src}/uploads/2026/1.jpg; echo shell > {src}/shell.php; sleep 1"
        ),
    );
    site.idle();
    by(
        "/bin/sh",
        format!("echo good > {src}/wp-config.php; echo mine > {src}/mine; sleep 1"),
    );
    site.idle();
    let who = format!("exe={bad}");
    let log = site.ask(&["log", "--who", &who]).stdout;
    if !log.contains("shell.php") {
        testkit::print_skip("the kernel did not tell who it was");
        return;
    }
    let ran = site
        .mirror
        .ask(&["undo", "--since", "before", "--who", &who, "--to-source"]);
    assert_eq!(ran.code, 3, "one of them was changed later: {ran:?}");
    assert!(
        ran.stderr.contains("wp-config.php: left as it is"),
        "{ran:?}"
    );
    assert_eq!(fs::read(site.src("wp-config.php")).unwrap(), b"good\n");
    assert_eq!(
        fs::read(site.src("uploads/2026/1.jpg")).unwrap(),
        vec![1; 5000]
    );
    assert!(!site.src("shell.php").exists(), "what it made is gone");
    assert_eq!(fs::read(site.src("mine")).unwrap(), b"mine\n");
}

/// Files that are encrypted; `FS_MIRROR_DRILL` sets another number (the full drill has 100,000).
fn drill_files() -> u32 {
    let asked = std::env::var("FS_MIRROR_DRILL").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(3000)
}

#[test]
fn everything_is_encrypted_and_brought_back_by_one_command() {
    let files = drill_files();
    let site = Site::new(|src| {
        for n in 0..files {
            let dir = src.join(format!("d{}", n / 500));
            if n % 500 == 0 {
                fs::create_dir(&dir).unwrap();
            }
            fs::write(
                dir.join(format!("{n}.doc")),
                format!("document {n}\n").repeat(20),
            )
            .unwrap();
        }
    });
    let last_good = site.kept("good");
    let began = std::time::Instant::now();
    // A third in place, a third under other names, a third is deleted.
    for n in 0..files {
        let path = site.src(&format!("d{}/{n}.doc", n / 500));
        match n % 3 {
            0 => fs::write(&path, [0x5a; 300]).unwrap(),
            1 => {
                fs::write(path.with_extension("doc.locked"), [0xa5; 300]).unwrap();
                fs::remove_file(&path).unwrap();
            }
            _ => fs::remove_file(&path).unwrap(),
        }
    }
    let ended = began.elapsed();
    testkit::proc::wait_until("the alarm", common::DEADLINE, || {
        let ran = site.mirror.ask(&["check"]);
        ran.code == 2 && ran.stdout.contains("alarm: ")
    })
    .unwrap();
    println!(
        "{files} files in {ended:?}, alarm after {:?}",
        began.elapsed()
    );
    let deadline = std::time::Duration::from_secs(600);
    testkit::proc::wait_until("all of it is followed", deadline, || {
        site.mirror
            .ask(&["wait", "--idle", "--timeout", "50s"])
            .code
            == 0
    })
    .unwrap();
    // The position before it is told.
    let status = site.ask(&["status", "--json"]).stdout;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let alarm = &status["status"]["alarm"];
    assert!(
        alarm["what"].as_str().unwrap().contains("within minutes"),
        "{alarm}"
    );
    // One command, from before the first of it.
    let first = site.ask(&["log", "-n", "0", "--json"]).stdout;
    let first: serde_json::Value = serde_json::from_str(first.lines().last().unwrap()).unwrap();
    let position = first["position"].as_str().unwrap();
    let (epoch, sequence) = position.split_once('.').unwrap();
    let before = format!("pos:{epoch}.{}", sequence.parse::<u64>().unwrap() - 1);
    // Its first group may hold several changes; what was before it is the state of the beginning all the same.
    let to = site.at("brought back");
    let began = std::time::Instant::now();
    site.ask(&["checkout", "--at", &before, to.to_str().unwrap()]);
    println!("checkout in {:?}", began.elapsed());
    same(&last_good, &to);
    let began = std::time::Instant::now();
    let mut command = common::fs_mirror([
        "restore",
        ".",
        "--at",
        &before,
        "--to-source",
        "--delete",
        "-m",
    ]);
    command.arg(&site.mirror.dst);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    println!(
        "{} in {:?}",
        String::from_utf8_lossy(&output.stdout).trim(),
        began.elapsed()
    );
    same(&last_good, &site.mirror.src);
    // A person has looked.
    site.ask(&["release", "--yes"]);
    let ran = site.mirror.ask(&["check"]);
    assert!(!ran.stdout.contains("alarm"), "{ran:?}");
}

#[test]
fn what_was_before_a_comparison_can_be_had_after_it() {
    let mut site = Site::new(wordpress);
    site.snapshot("first");
    let first = site.kept("first");
    fs::write(site.src("wp-config.php"), "second").unwrap();
    fs::remove_file(site.src("uploads/2026/3.jpg")).unwrap();
    site.idle();
    site.mirror.program.stop(common::DEADLINE).unwrap();
    // The log is lost: all is compared, and positions begin anew.
    let state = site.at("dst.fs_mirror");
    fs::remove_dir_all(state.join("log")).unwrap();
    fs::write(site.src("uploads/2026/4.jpg"), "changed meanwhile").unwrap();
    let (src, dst) = (site.mirror.src.clone(), site.mirror.dst.clone());
    site.mirror = Mirror::start_with(&src, &dst, &["--adopt", "--yes"]);
    site.mirror.equal_once();
    site.idle();
    fs::write(site.src("uploads/2026/5.jpg"), "changed after it").unwrap();
    site.idle();
    if !state.join("past/1").exists() {
        panic!(
            "the history was not set aside: {:?}",
            run(["status", "-m", dst.to_str().unwrap()])
        );
    }
    let was = site.ask(&["cat", "wp-config.php", "--at", "first"]);
    assert_eq!(was.stdout, "<?php\n$db = 'site';\n$debug = false;\n");
    for n in [3, 5, 7] {
        let path = format!("uploads/2026/{n}.jpg");
        let to = site.at(&format!("r{n}"));
        site.ask(&[
            "restore",
            &path,
            "--at",
            "first",
            "--to",
            to.to_str().unwrap(),
        ]);
        same(&first.join(&path), &to.join(&path));
    }
}
