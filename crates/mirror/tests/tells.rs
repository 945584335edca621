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
fn an_extra_below_a_directory_moves_only_after_a_yes() {
    let place = Place::new();
    fs::create_dir_all(place.path("src/deep/er")).unwrap();
    fs::write(place.path("src/deep/er/f"), "f").unwrap();
    fs::create_dir_all(place.path("dst/deep/er")).unwrap();
    fs::write(place.path("dst/deep/er/mine"), "mine").unwrap();
    let ran = place.run("mirror src dst --once --adopt");
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.stderr
            .contains("1 entry of DST is not in SRC:\n  deep/er/mine\n"),
        "{ran:?}"
    );
    assert!(place.path("dst/deep/er/mine").exists());
    let ran = place.run("mirror src dst --once --yes");
    assert!(ran.code == 0 && ran.stderr.contains("\nequal: "), "{ran:?}");
    place.equal();
}

#[test]
fn one_is_said_as_one() {
    let place = Place::new();
    fs::create_dir(place.path("dst")).unwrap();
    fs::write(place.path("dst/b"), "b").unwrap();
    let ran = place.run("mirror src dst --once --adopt --yes");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(!ran.stderr.contains("made again"), "{ran:?}");
    assert!(
        ran.stderr.contains("1 entry of DST is not in SRC:\n  b\n"),
        "{ran:?}"
    );
    assert!(
        ran.stderr.contains("equal: 1 entry (1 file, 1 B)"),
        "{ran:?}"
    );
}

#[test]
fn a_stopped_mirror_is_verified_too() {
    let place = Place::new();
    fs::create_dir(place.path("src/d")).unwrap();
    fs::write(place.path("src/d/b"), "as it is").unwrap();
    assert_eq!(place.run("mirror src dst --once").code, 0);
    let well = place.run("verify -m dst");
    assert!(
        well.code == 0
            && well
                .stderr
                .contains("3 entries compared (9 B): no difference"),
        "{well:?}"
    );
    fs::write(place.path("dst/d/b"), "by hand!").unwrap();
    fs::write(place.path("dst/d/new"), "").unwrap();
    let root = fs::File::open(place.path("dst")).unwrap();
    root.set_modified(std::time::UNIX_EPOCH).unwrap();
    // The copy against its index, also when the source is lost.
    fs::rename(place.path("src"), place.path("away")).unwrap();
    let found = place.run("verify -m dst --against index");
    assert_eq!(found.code, 3, "{found:?}");
    for line in [".: attributes\n", "d/b: content\n", "d/new: extra\n"] {
        assert!(found.stdout.contains(line), "{line} {found:?}");
    }
    let no_source = place.run("verify -m dst --against source");
    assert!(no_source.code != 0, "{no_source:?}");
    fs::rename(place.path("away"), place.path("src")).unwrap();
    let found = place.run("verify -m dst --against source --json");
    assert_eq!(found.code, 3, "{found:?}");
    let lines: Vec<serde_json::Value> = found
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(lines.iter().any(|line| line["path"] == "d/b"), "{found:?}");
    assert_eq!(lines.last().unwrap()["end"]["repaired"], 0);
    let repaired = place.run("verify -m dst --repair");
    assert!(
        repaired.code == 0 && repaired.stdout.contains("d/b: content (repaired)\n"),
        "{repaired:?}"
    );
    place.equal();
}

/// A mirror that ran twice, with the state `hurt` left, and what a run then says.
fn hurt(hurt: impl Fn(&std::path::Path)) -> (Place, Ran) {
    let place = Place::new();
    for n in 0..30 {
        fs::write(place.path(&format!("src/f{n}")), format!("content {n}")).unwrap();
    }
    assert_eq!(place.run("mirror src dst --once").code, 0);
    fs::write(place.path("src/f1"), "changed").unwrap();
    assert_eq!(place.run("mirror src dst --once").code, 0);
    fs::write(place.path("src/f2"), "changed too").unwrap();
    hurt(&place.path("dst.fs_mirror"));
    let ran = place.run("mirror src dst --once");
    assert!(!format!("{ran:?}").contains("/proc/self/fd"), "{ran:?}");
    (place, ran)
}

fn only_file(dir: PathBuf) -> PathBuf {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(files.len(), 1);
    files.remove(0)
}

fn change(file: &std::path::Path, with: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    with(&mut bytes);
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_damaged_log_is_named_with_the_way_out() {
    let log = |state: &std::path::Path| only_file(state.join("log"));
    type Hurt<'a> = &'a dyn Fn(&std::path::Path);
    let table: [(Hurt, &str); 5] = [
        // All sealed bytes were durable: what is missing was there.
        (
            &|state| change(&log(state), |bytes| bytes.truncate(bytes.len() / 2)),
            "the log is damaged: the copy's index stands at ",
        ),
        (
            &|state| change(&log(state), |bytes| bytes.truncate(10)),
            "is damaged at byte 0: the segment ends inside its header",
        ),
        (
            &|state| {
                change(&log(state), |bytes| {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                });
            },
            "is damaged at byte ",
        ),
        (
            &|state| change(&log(state), |bytes| bytes[3] ^= 1),
            "is damaged at byte 0: no log segment begins here",
        ),
        (
            &|state| fs::remove_file(log(state)).unwrap(),
            "the log is lost, and the copy's index stands at ",
        ),
    ];
    for (how, part) in table {
        let (place, ran) = hurt(how);
        assert_eq!(ran.code, 1, "{ran:?}");
        let last = ran.stderr.lines().last().unwrap();
        assert!(
            last.starts_with("fs_mirror: ")
                && last.contains(part)
                && last.contains("Start with --adopt: "),
            "{part}: {ran:?}"
        );
        assert_eq!(fs::read(place.path("dst/f2")).unwrap(), b"content 2");
        let ran = place.run("mirror src dst --once --adopt");
        assert!(
            ran.code == 0 && ran.stderr.contains("All is compared again"),
            "{ran:?}"
        );
        place.equal();
        let kept = only_file(place.path("dst.fs_mirror/divergence"));
        assert!(kept.join("index").exists());
        assert_eq!(place.run("mirror src dst --once").code, 0);
    }
}

#[test]
fn a_log_that_ends_before_what_the_copy_holds_is_never_called_torn() {
    for part in [1, 3, 5, 7] {
        let (place, ran) = hurt(|state| {
            let file = only_file(state.join("log"));
            change(&file, |bytes| {
                bytes.truncate(128 + (bytes.len() - 128) * part / 8);
            });
        });
        let last = ran.stderr.lines().last().unwrap();
        assert!(
            ran.code == 1
                && last.contains("the log is damaged: the copy's index stands at ")
                && last.contains("Start with --adopt: "),
            "{part}: {ran:?}"
        );
        assert!(!ran.stderr.contains("never acknowledged"), "{ran:?}");
        // It stays so, however often it is tried.
        let again = place.run("mirror src dst --once");
        assert!(
            again.code == 1 && again.stderr.contains("the copy's index stands at "),
            "{again:?}"
        );
        let ran = place.run("mirror src dst --once --adopt");
        assert_eq!(ran.code, 0, "{ran:?}");
        place.equal();
    }
}

#[test]
fn a_damaged_index_is_made_again() {
    type Hurt<'a> = &'a dyn Fn(&std::path::Path);
    let table: [(Hurt, &str); 5] = [
        (
            &|state| change(&state.join("index"), |bytes| bytes.truncate(5000)),
            "the index @/dst.fs_mirror/index is damaged: ",
        ),
        (
            &|state| change(&state.join("index"), |bytes| bytes[3] ^= 1),
            "and the old one is kept as @/dst.fs_mirror/index.damaged-1",
        ),
        (
            &|state| change(&state.join("source-index"), |bytes| bytes.clear()),
            "the index @/dst.fs_mirror/source-index is damaged: ",
        ),
        (
            &|state| fs::remove_file(state.join("index")).unwrap(),
            "the copy's index @/dst.fs_mirror/index is gone: it is made again",
        ),
        (
            &|state| fs::remove_file(state.join("source-index")).unwrap(),
            "the index @/dst.fs_mirror/source-index is gone: it is made again",
        ),
    ];
    for (how, part) in table {
        let (place, ran) = hurt(how);
        assert!(
            ran.code == 0 && ran.stderr.contains(part) && ran.stderr.contains("made again"),
            "{part}: {ran:?}"
        );
        place.equal();
    }
}

#[test]
fn what_a_newer_version_wrote_is_left_alone() {
    let newer = |bytes: &mut Vec<u8>, header: usize| {
        bytes[8] += 1;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..header]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    };
    let (place, ran) = hurt(|state| change(&only_file(state.join("log")), |b| newer(b, 128)));
    assert!(
        ran.code == 1
            && ran.stderr.ends_with(
                "newer than this program: use the version that wrote it, or a newer one\n"
            ),
        "{ran:?}"
    );
    assert_eq!(fs::read(place.path("dst/f2")).unwrap(), b"content 2");
    let (place, ran) = hurt(|state| {
        let table: redb::TableDefinition<&str, &[u8]> = redb::TableDefinition::new("header");
        let index = redb::Database::open(state.join("index")).unwrap();
        let write = index.begin_write().unwrap();
        let nine = 9u32.to_le_bytes();
        write
            .open_table(table)
            .unwrap()
            .insert("format", &nine[..])
            .unwrap();
        write.commit().unwrap();
    });
    assert!(
        ran.code == 1
            && ran
                .stderr
                .contains("/index has format 9, this program knows "),
        "{ran:?}"
    );
    assert_eq!(fs::read(place.path("dst/f2")).unwrap(), b"content 2");
}

#[test]
fn a_damaged_status_is_not_known_and_no_failure() {
    let place = Place::new();
    assert_eq!(place.run("mirror src dst --once").code, 0);
    let file = place.path("dst.fs_mirror/status.json");
    change(&file, |bytes| bytes.truncate(50));
    let ran = place.run("status -m dst");
    assert!(
        ran.code == 0
            && ran.stdout.starts_with("@/dst.fs_mirror: not running\n")
            && ran
                .stdout
                .contains("what it last was is not known: @/dst.fs_mirror/status.json is damaged"),
        "{ran:?}"
    );
    let ran = place.run("status -m dst --json");
    let value: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(value["status"].is_null() && value["note"].is_string());
    let ran = place.run("check -m dst");
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (2, "FS_MIRROR CRITICAL - not running\n")
    );
    // It is only written anew.
    assert_eq!(place.run("mirror src dst --once").code, 0);
    assert_eq!(place.run("status -m dst").code, 0);
}
