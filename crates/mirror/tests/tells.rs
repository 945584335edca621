//! The program tells the truth: what failed, what was moved aside, what is damaged; with real mirrors.

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{Ran, program, run_command};
use testkit::compare;
use testkit::compare::Options;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("src")).unwrap();
        fs::write(place.path("src/a"), "a").unwrap();
        place
    }
    fn path(&self, below: &str) -> PathBuf {
        fs::canonicalize(self.0.path()).unwrap().join(below)
    }
    /// `fs_mirror` with these words, run here, without a terminal.
    fn run(&self, line: &str) -> Ran {
        let mut command = Command::new(program());
        command.args(line.split_whitespace());
        self.here(&mut command)
    }
    /// Likewise, where no file may become longer than 64 MiB.
    fn run_limited(&self, line: &str) -> Ran {
        let script = format!(
            "trap '' XFSZ; ulimit -f 131072; exec {} {line}",
            program().display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        self.here(&mut command)
    }
    fn here(&self, command: &mut Command) -> Ran {
        let top = self.path("").display().to_string();
        let top = top.trim_end_matches('/');
        command.current_dir(self.path("")).stdin(Stdio::null());
        let ran = run_command(command);
        Ran {
            code: ran.code,
            stdout: ran.stdout.replace(top, "@"),
            stderr: ran.stderr.replace(top, "@"),
        }
    }
    /// A file that does not fit under the limit, without taking room.
    fn big(&self, name: &str) {
        let file = fs::File::create(self.path(name)).unwrap();
        file.write_at(b"end", 100 << 20).unwrap();
    }
    #[track_caller]
    fn equal(&self) {
        let found = compare(&self.path("src"), &self.path("dst"), &Options::default());
        assert!(found.is_empty(), "{found:?}");
    }
}

#[test]
fn what_failed_is_named_and_nothing_is_called_equal() {
    let place = Place::new();
    fs::create_dir_all(place.path("src/d/e")).unwrap();
    place.big("src/d/e/big");
    let ran = place.run_limited("mirror src dst --once");
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.stderr.contains("incomplete: 1 path failed; ")
            && ran
                .stderr
                .contains("\n  d/e/big: cannot write: File too large"),
        "{ran:?}"
    );
    assert!(!ran.stderr.contains("equal"), "{ran:?}");
    assert!(!ran.stderr.contains("object "), "{ran:?}");
    assert!(place.path("dst/a").exists() && !place.path("dst/d/e/big").exists());
    // Also from its JSON, and from the status it leaves.
    let ran = place.run_limited("mirror src dst --once --json");
    let events: Vec<serde_json::Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect();
    assert!(events.iter().all(|event| event["event"] != "equal"));
    let last = events.last().unwrap();
    assert_eq!((&last["event"], ran.code), (&"incomplete".into(), 3));
    assert_eq!(last["failed"][0]["path"], "d/e/big");
    let status: serde_json::Value =
        serde_json::from_str(&place.run("status -m dst --json").stdout).unwrap();
    assert!(status["status"]["equal_at"].is_null());
    assert_eq!(status["status"]["failed"][0]["path"], "d/e/big");
    // Without the limit it heals by itself.
    let ran = place.run("mirror src dst --once");
    assert!(
        ran.code == 0 && ran.stderr.contains("\nequal: 4 entries"),
        "{ran:?}"
    );
    place.equal();
}

#[test]
fn extras_of_an_adopted_copy_move_only_after_a_yes() {
    let place = Place::new();
    fs::create_dir_all(place.path("dst/sub/more")).unwrap();
    for n in 10..34 {
        fs::write(place.path(&format!("dst/x{n}")), "x").unwrap();
    }
    let ran = place.run("mirror src dst --adopt --dry-run");
    assert_eq!(ran.stdout.matches("moved aside ").count(), 25, "{ran:?}");
    assert!(!ran.stdout.contains("removed"), "{ran:?}");
    // Nobody can be asked, and the next run still wants to know.
    for line in ["mirror src dst --once --adopt", "mirror src dst"] {
        let ran = place.run(line);
        assert_eq!(ran.code, 3, "{ran:?}");
        let told = "25 entries of DST are not in SRC:\n  sub\n  x10\n  x11\n";
        assert!(
            ran.stderr.contains(told) && ran.stderr.contains("  ... and 15 more\n"),
            "{ran:?}"
        );
        assert!(
            ran.stderr
                .contains("incomplete: 25 entries of DST not in SRC and not moved aside"),
            "{ran:?}"
        );
        assert!(place.path("dst/sub/more").is_dir() && place.path("dst/x33").exists());
    }
    let listed = fs::read_to_string(place.path("dst.fs_mirror/extras.list")).unwrap();
    assert_eq!(listed.lines().count(), 25);
    let ran = place.run("mirror src dst --once --yes");
    assert!(ran.code == 0 && ran.stderr.contains("\nequal: "), "{ran:?}");
    assert!(
        ran.stderr.matches("\nmoved aside to adopted/").count() == 10,
        "{ran:?}"
    );
    place.equal();
    let kept = fs::read_dir(place.path("dst.fs_mirror/adopted")).unwrap();
    let kept: usize = kept
        .map(|batch| fs::read_dir(batch.unwrap().path()).unwrap().count())
        .sum();
    assert_eq!(kept, 25);
}

#[test]
fn one_is_said_as_one() {
    let place = Place::new();
    fs::create_dir(place.path("dst")).unwrap();
    fs::write(place.path("dst/b"), "b").unwrap();
    let ran = place.run("mirror src dst --once --adopt --yes");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stderr.contains("1 entry of DST is not in SRC:\n  b\n"),
        "{ran:?}"
    );
    assert!(
        ran.stderr.contains("equal: 1 entry (1 file, 1 B)"),
        "{ran:?}"
    );
}
