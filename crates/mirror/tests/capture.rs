//! Capture against the real kernel: after a workload of two racing processes the index equals the tree.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use mirror::capture::run::CaptureOptions;
use mirror::capture::sink::NoSink;
use mirror::disk::RealDisk;
use mirror::engine::options::Detector;
use mirror::engine::session::{Session, SessionSetup};
use mirror::filter::Filter;
use mirror_core::{Kind, ObjectId};
use testkit::lab::{self, QueueLimit};
use testkit::workload;

fn open(tree: &Path, state: &Path, detector: Option<Detector>) -> Session {
    mirror::sys::lease::init();
    fs::create_dir_all(state).unwrap();
    Session::open(SessionSetup {
        source: tree.to_path_buf(),
        disk: Arc::new(RealDisk::open(state).unwrap()),
        index: state.join("source-index"),
        index_options: Default::default(),
        log_options: Default::default(),
        filter: Arc::new(Filter::none()),
        sink: Arc::new(NoSink),
        detector,
        released: None,
        capture: CaptureOptions::default(),
    })
    .unwrap()
}

type Shown = BTreeMap<Vec<u8>, String>;

/// What the index says of each path.
fn indexed(session: &Session) -> Shown {
    let rows = session.index.read().unwrap_or_else(PoisonError::into_inner);
    let mut shown = Shown::new();
    let mut dirs = vec![(ObjectId::ROOT, Vec::new())];
    while let Some((dir, path)) = dirs.pop() {
        for child in rows.scan(dir, None, usize::MAX).unwrap() {
            let mut path: Vec<u8> = path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(child.name.as_bytes());
            let state = &child.object.state;
            let what = match &state.kind {
                Kind::Dir => "dir".to_string(),
                Kind::File(content) => format!("file {} {:?}", content.bytes, content.digest),
                Kind::Symlink(target) => format!("symlink {}", mirror_core::escape(target)),
                other => format!("{other:?}"),
            };
            let meta = &state.meta;
            let link = matches!(state.kind, Kind::Symlink(_));
            let mode = if link { 0o777 } else { meta.mode };
            let text = format!(
                "{what} {mode:o} {}:{} {}.{:09}",
                meta.uid, meta.gid, meta.mtime.seconds, meta.mtime.nanos
            );
            if matches!(state.kind, Kind::Dir) {
                dirs.push((child.id, path.clone()));
            }
            shown.insert(path, text);
        }
    }
    shown
}

/// What the tree shows, read plainly.
fn seen(root: &Path) -> Shown {
    let mut shown = Shown::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let below = path
                .strip_prefix(root)
                .unwrap()
                .as_os_str()
                .as_bytes()
                .to_vec();
            if below == b"lost+found" {
                continue;
            }
            let meta = fs::symlink_metadata(&path).unwrap();
            use std::os::unix::fs::FileTypeExt;
            let kind = meta.file_type();
            let what = if kind.is_dir() {
                dirs.push(path.clone());
                "dir".to_string()
            } else if kind.is_file() {
                let bytes = fs::read(&path).unwrap();
                let sparse = meta.blocks() * 512 < meta.len();
                if sparse {
                    "sparse".into()
                } else {
                    let digest = mirror_core::Digest(*blake3::hash(&bytes).as_bytes());
                    format!("file {} {:?}", bytes.len(), digest)
                }
            } else if kind.is_symlink() {
                format!(
                    "symlink {}",
                    mirror_core::escape(fs::read_link(&path).unwrap().as_os_str().as_bytes())
                )
            } else if kind.is_fifo() {
                "Fifo".into()
            } else if kind.is_socket() {
                "Socket".into()
            } else {
                let (major, minor) = (
                    rustix::fs::major(meta.rdev()),
                    rustix::fs::minor(meta.rdev()),
                );
                format!(
                    "Device {{ block: {}, major: {major}, minor: {minor} }}",
                    kind.is_block_device()
                )
            };
            let text = format!(
                "{what} {:o} {}:{} {}.{:09}",
                meta.mode() & 0o7777,
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec()
            );
            shown.insert(below, text);
        }
    }
    shown
}

fn differences(a: &Shown, b: &Shown) -> Vec<String> {
    let mut found = Vec::new();
    for path in a.keys().chain(b.keys()) {
        let (x, y) = (a.get(path), b.get(path));
        let sparse = y.is_some_and(|text| text.starts_with("sparse"))
            && x.is_some_and(|text| text.starts_with("file"));
        if x != y && !sparse {
            found.push(format!(
                "{}: index {x:?}, tree {y:?}",
                mirror_core::escape(path)
            ));
        }
    }
    found.sort();
    found.dedup();
    found
}

fn barrier(session: &Session) {
    let answer = session.barrier();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while answer.is_empty() {
        if let Some(ended) = session.ended() {
            panic!("capture ended: {ended:?}");
        }
        assert!(
            std::time::Instant::now() < deadline,
            "no barrier in a minute"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn race(lab: &testkit::lab::Lab, seed: u64, limit: Option<u32>, detector: Option<Detector>) {
    let image = testkit::need!(lab.ext4(256));
    let (tree, outside) = (image.dir("tree").unwrap(), image.dir("outside").unwrap());
    let state = tempfile::tempdir().unwrap();
    let guard = limit.map(|n| QueueLimit::set(n).unwrap());
    let session = open(&tree, state.path(), detector);
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
    let found = differences(&indexed(&session), &seen(&tree));
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
    let session = open(&tree, state.path(), detector);
    let before = session.reader.tail().durable().unwrap().position;
    barrier(&session);
    let after = session.reader.tail().durable().unwrap().position;
    println!("restart: {before} -> {after}");
    assert!(differences(&indexed(&session), &seen(&tree)).is_empty());
    session.stop();
}

#[test]
fn two_processes_race() {
    lab::in_private_namespace("two_processes_race", |lab| {
        for seed in 1..=4 {
            race(lab, seed, None, None);
        }
    });
}

#[test]
fn two_processes_race_and_the_queue_overflows() {
    lab::in_private_namespace("two_processes_race_and_the_queue_overflows", |lab| {
        for seed in 11..=14 {
            race(lab, seed, Some(40), None);
        }
    });
}

#[test]
fn two_processes_race_under_inotify() {
    // Nothing outside: what is written through a link outside of the tree tells inotify nothing.
    lab::in_private_namespace("two_processes_race_under_inotify", |lab| {
        for seed in 21..=22 {
            race(lab, seed, None, Some(Detector::Inotify));
        }
    });
}
