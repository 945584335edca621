//! Capture against the real kernel: after a workload of two racing processes the index equals the tree.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::session::{barrier, differences, open, open_sinking, open_with};
use mirror::capture::run::CaptureOptions;
use mirror::capture::sink::{Sink, SinkDir, SinkFile};
use mirror::capture::state::Ended;
use mirror::engine::options::Detector;
use mirror::engine::session::Session;
use mirror_core::hints::Unconfirmed;
use mirror_core::{At, Name, ObjectId, Rows};
use testkit::lab::{self, QueueLimit};
use testkit::workload;

/// The seeds a test runs: its own, or what the environment says (`SEED=n` that one alone, `SEEDS=n` so many).
fn seeds(first: u64, usual: u64) -> std::ops::Range<u64> {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    match (number("SEED"), number("SEEDS")) {
        (Some(seed), count) => seed..seed + count.unwrap_or(1),
        (None, count) => first..first + count.unwrap_or(usual),
    }
}

fn race(lab: &testkit::lab::Lab, seed: u64, limit: Option<u32>, detector: Option<Detector>) {
    race_with(lab, seed, limit, detector, CaptureOptions::default());
}

fn race_with(
    lab: &testkit::lab::Lab,
    seed: u64,
    limit: Option<u32>,
    detector: Option<Detector>,
    options: CaptureOptions,
) {
    let image = testkit::need!(lab.ext4(256));
    let (tree, outside) = (image.dir("tree").unwrap(), image.dir("outside").unwrap());
    let state = tempfile::tempdir().unwrap();
    let guard = limit.map(|n| QueueLimit::set(n).unwrap());
    let session = open_with(&tree, state.path(), detector, options.clone()).unwrap();
    drop(guard);
    let params = workload::Params {
        seed,
        ops: 3000,
        outside: (detector != Some(Detector::Inotify)).then_some(outside),
        ..Default::default()
    };
    let churn = workload::start(&tree, &params, 2).unwrap();
    churn.wait().unwrap();
    barrier(&session);
    let found = differences(&session, &tree);
    let status = session.shared.lock();
    println!(
        "seed {seed}: {} entries, {} overflows, {} failed",
        status.entries, status.overflows, status.failed_total
    );
    let failed = status.failed.clone();
    drop(status);
    assert!(
        found.is_empty(),
        "seed {seed}: {found:#?}\nfailed: {failed:?}"
    );
    let ended = session.stop();
    assert!(
        matches!(ended, mirror::capture::state::Ended::Stopped),
        "{ended:?}"
    );
    // A restart finds nothing new.
    let session = open_with(&tree, state.path(), detector, options).unwrap();
    let before = session.reader.tail().durable().unwrap().position;
    barrier(&session);
    let after = session.reader.tail().durable().unwrap().position;
    println!("restart: {before} -> {after}");
    assert!(differences(&session, &tree).is_empty());
    session.stop();
}

#[test]
fn two_processes_race() {
    lab::in_private_namespace("two_processes_race", |lab| {
        for seed in seeds(1, 4) {
            race(lab, seed, None, None);
        }
    });
}

#[test]
fn two_processes_race_and_the_queue_overflows() {
    lab::in_private_namespace("two_processes_race_and_the_queue_overflows", |lab| {
        for seed in seeds(11, 4) {
            race(lab, seed, Some(40), None);
        }
    });
}

#[test]
fn two_processes_race_under_inotify() {
    // Nothing outside: what is written through a link outside of the tree tells inotify nothing.
    lab::in_private_namespace("two_processes_race_under_inotify", |lab| {
        for seed in seeds(21, 2) {
            race(lab, seed, None, Some(Detector::Inotify));
        }
    });
}

/// Nearly every file is read by a thread of its own, while the loop goes on.
#[test]
fn two_processes_race_and_files_are_read_apart() {
    lab::in_private_namespace("two_processes_race_and_files_are_read_apart", |lab| {
        let mut options = CaptureOptions::default();
        options.read.apart_bytes = 100;
        for seed in seeds(31, 4) {
            race_with(lab, seed, None, None, options.clone());
        }
        race_with(lab, 41, Some(40), None, options.clone());
        race_with(lab, 42, None, Some(Detector::Inotify), options);
    });
}

/// A sink that lets the first scan worker who wants to read something new stand until it is told to go on.
struct Gate {
    stands: std::sync::mpsc::SyncSender<()>,
    go_on: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Sink for Gate {
    fn dir(&self) -> Option<(u64, Box<dyn SinkDir>)> {
        None
    }
    fn file(&self) -> Option<(u64, Box<dyn SinkFile>)> {
        None
    }
    fn bind(&self, _: u64, _: ObjectId) {}
    fn forget(&self, _: u64) {}
    fn room(&self) -> bool {
        let _ = self.stands.try_send(());
        // Once the other side is gone nobody waits.
        let _ = self.go_on.lock().unwrap().recv();
        true
    }
}

/// Other bytes, with size and mtime as they were: only the ctime tells.
fn forge(path: &Path) {
    let before = fs::metadata(path).unwrap();
    let mut bytes = fs::read(path).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 1);
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all(&bytes).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
}

/// Whether the index has this path by now.
fn knows(session: &Session, path: &str) -> bool {
    let rows = session.index.read().unwrap();
    let mut at = Some(ObjectId::ROOT);
    for name in path.split('/') {
        let name = Name::new(name.as_bytes()).unwrap();
        at = at.and_then(|parent| rows.name(&At { parent, name }).unwrap());
    }
    at.is_some()
}

/// Files are forged while nobody looks. Then they, or directories above them, are renamed while the scan stands in the
/// middle: from what it visited to what it did not, the other way, and where they are.
fn moves_during_the_scan_after_a_start(lab: &testkit::lab::Lab) {
    let image = testkit::need!(lab.ext4(64));
    let tree = image.dir("tree").unwrap();
    let state = tempfile::tempdir().unwrap();
    let at = |path: &str| tree.join(path);
    for side in ["a", "z"] {
        fs::create_dir_all(at(side).join("deep/deeper")).unwrap();
        for name in ["file", "mode", "deep/file", "deep/deeper/file"] {
            fs::write(at(side).join(name), name).unwrap();
        }
    }
    fs::create_dir(at("m")).unwrap();
    let session = open(&tree, state.path(), Some(Detector::Fanotify));
    barrier(&session);
    session.stop();

    for side in ["a", "z"] {
        for name in ["file", "mode", "deep/file", "deep/deeper/file"] {
            forge(&at(side).join(name));
        }
    }
    fs::write(at("m/new"), "new").unwrap();
    let (stands, is_there) = std::sync::mpsc::sync_channel(1);
    let (go_on, gate) = std::sync::mpsc::channel();
    let options = CaptureOptions {
        scan_threads: 1,
        // So that the guard needs no survey first, and the one scan reads.
        released: true,
        ..CaptureOptions::default()
    };
    let sink = Arc::new(Gate {
        stands,
        go_on: gate.into(),
    });
    let detector = Some(Detector::Fanotify);
    let session = open_sinking(&tree, state.path(), detector, options, sink).unwrap();
    is_there.recv_timeout(Duration::from_secs(30)).unwrap();
    let moved = [
        ("a/file", "z/file_of_a"),
        ("z/file", "a/file_of_z"),
        ("a/deep", "z/deep_of_a"),
        ("z/deep", "a/deep_of_z"),
        ("a/mode", "a/mode_too"),
        ("z/mode", "z/mode_too"),
    ];
    for (from, to) in moved {
        // Our own changes are not told to us.
        let mut mv = std::process::Command::new("mv");
        assert!(
            mv.arg("-T")
                .args([at(from), at(to)])
                .status()
                .unwrap()
                .success()
        );
    }
    let late = Instant::now() + Duration::from_secs(30);
    loop {
        let unknown = moved.iter().filter(|(_, to)| !knows(&session, to));
        let unknown: Vec<&str> = unknown.map(|(_, to)| *to).collect();
        if unknown.is_empty() {
            break;
        }
        assert!(Instant::now() < late, "not heard: {unknown:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Ctimes that nothing speaks against are believed by then.
    std::thread::sleep(Duration::from_millis(2 * Unconfirmed::LATE_MS + 200));
    drop(go_on);
    barrier(&session);
    assert_eq!(differences(&session, &tree), Vec::<String>::new());
    session.stop();
}

#[test]
fn what_moves_while_the_first_scan_runs_is_read() {
    lab::in_private_namespace("what_moves_while_the_first_scan_runs_is_read", |lab| {
        moves_during_the_scan_after_a_start(lab);
    });
}

/// Names that nobody saw: a file is changed through a link that came and went, or that went while it was held open.
#[test]
fn inotify_finds_what_was_changed_through_a_name_that_is_gone() {
    use std::fs::{self, File, OpenOptions};
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    let t = tempfile::tempdir().unwrap();
    let (tree, state) = (t.path().join("tree"), t.path().join("state"));
    let at = |path: &str| tree.join(path);
    let open_to_append =
        |path: &str| -> File { OpenOptions::new().append(true).open(at(path)).unwrap() };
    let other_name = |name: &str, path: &str| fs::hard_link(at(name), at(path)).unwrap();
    fs::create_dir_all(at("dir")).unwrap();
    for name in ["short", "held", "seen", "below", "hidden", "mode"] {
        fs::write(at(name), name).unwrap();
    }
    other_name("seen", "dir/seen");
    let session = open(&tree, &state, Some(Detector::Inotify));
    barrier(&session);
    let settled = |what: &str| {
        barrier(&session);
        assert_eq!(differences(&session, &tree), Vec::<String>::new(), "{what}");
    };

    other_name("short", "x");
    open_to_append("x").write_all(b", written").unwrap();
    fs::remove_file(at("x")).unwrap();
    settled("written through a name that came and went");

    other_name("mode", "x");
    fs::set_permissions(at("x"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::remove_file(at("x")).unwrap();
    settled("changed its mode through a name that came and went");

    other_name("held", "x");
    let mut held = open_to_append("x");
    fs::remove_file(at("x")).unwrap();
    settled("opened through a name that came and went");
    held.write_all(b", written").unwrap();
    settled("written by who opened it so");
    held.write_all(b", and again").unwrap();
    drop(held);
    settled("written again");

    let mut seen = open_to_append("dir/seen");
    fs::remove_dir_all(at("dir")).unwrap();
    settled("its directory is gone");
    seen.write_all(b", written").unwrap();
    drop(seen);
    settled("written in a directory that is gone");

    fs::create_dir(at("dir")).unwrap();
    other_name("hidden", "dir/x");
    let mut hidden = open_to_append("dir/x");
    fs::remove_dir_all(at("dir")).unwrap();
    settled("a directory came and went");
    hidden.write_all(b", written").unwrap();
    drop(hidden);
    settled("written in a directory that came and went");

    other_name("below", "x");
    barrier(&session);
    let mut below = open_to_append("x");
    fs::rename(at("short"), at("x")).unwrap();
    settled("another file took its name");
    below.write_all(b", written").unwrap();
    settled("written by who opened it by that name");
    session.stop();
}

#[test]
fn a_session_that_ends_when_it_is_time_to_prune_ends() {
    lab::in_private_namespace("a_session_that_ends_when_it_is_time_to_prune_ends", |_| {
        let (tree, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = CaptureOptions {
            prune_every: std::time::Duration::ZERO,
            ..CaptureOptions::default()
        };
        let session = open_with(tree.path(), state.path(), None, options).unwrap();
        barrier(&session);
        std::fs::write(tree.path().join("new"), "new").unwrap();
        barrier(&session);
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(session.stop()));
        let ended = told.recv_timeout(std::time::Duration::from_secs(20));
        assert!(matches!(ended, Ok(Ended::Stopped)), "{ended:?}");
    });
}
