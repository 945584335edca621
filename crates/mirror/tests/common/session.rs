//! A session of capture over a tree, and what its index says beside what the tree shows.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use mirror::capture::read::hasher;
use mirror::capture::run::CaptureOptions;
use mirror::capture::sink::{NoSink, Sink};
use mirror::disk::RealDisk;
use mirror::engine::options::Detector;
use mirror::engine::session::{Session, SessionError, SessionSetup};
use mirror::filter::Filter;
use mirror_core::{Kind, ObjectId};

pub fn open(tree: &Path, state: &Path, detector: Option<Detector>) -> Session {
    open_with(tree, state, detector, CaptureOptions::default()).unwrap()
}

pub fn open_with(
    tree: &Path,
    state: &Path,
    detector: Option<Detector>,
    capture: CaptureOptions,
) -> Result<Session, SessionError> {
    open_sinking(tree, state, detector, capture, Arc::new(NoSink))
}

pub fn open_sinking(
    tree: &Path,
    state: &Path,
    detector: Option<Detector>,
    capture: CaptureOptions,
    sink: Arc<dyn Sink>,
) -> Result<Session, SessionError> {
    mirror::sys::lease::init();
    fs::create_dir_all(state).unwrap();
    Session::open(SessionSetup {
        opening: None,
        source: tree.to_path_buf(),
        disk: Arc::new(RealDisk::open(state).unwrap()),
        index: state.join("source-index"),
        index_options: Default::default(),
        log_options: Default::default(),
        filter: Arc::new(Filter::none()),
        sink,
        detector,
        listener: None,
        released: None,
        capture,
    })
}

type Shown = BTreeMap<Vec<u8>, String>;
/// Where a file has data, as the index says: what is preallocated counts as a hole until somebody reads it, so that the
/// tree may say something else a moment later.
type Ranges = BTreeMap<Vec<u8>, Vec<(u64, u64)>>;

/// What the index says of each path.
fn indexed(session: &Session, ranges: &mut Ranges) -> Shown {
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
                Kind::File(content) => {
                    ranges.insert(path.clone(), content.data.clone());
                    format!("file {} {:?}", content.bytes, content.digest)
                }
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
fn seen(root: &Path, ranges: &Ranges) -> Shown {
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
                let data = ranges.get(&below).map_or(&[][..], Vec::as_slice);
                let mut hash = hasher(meta.len(), data);
                if data.is_empty() {
                    hash.update(&bytes);
                }
                let mut done = 0;
                for &(start, length) in data {
                    let (start, end) = (start as usize, (start + length) as usize);
                    let hole = bytes.get(done..start).unwrap_or_default();
                    assert!(hole.iter().all(|&b| b == 0));
                    // Of another length it is another file: the digest will say so.
                    hash.update(bytes.get(start..end).unwrap_or_default());
                    done = end;
                }
                let digest = mirror_core::Digest(*hash.finalize().as_bytes());
                format!("file {} {:?}", bytes.len(), digest)
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

/// What the index says otherwise than the tree shows.
pub fn differences(session: &Session, tree: &Path) -> Vec<String> {
    let mut ranges = Ranges::new();
    let a = indexed(session, &mut ranges);
    let b = seen(tree, &ranges);
    let mut found = Vec::new();
    for path in a.keys().chain(b.keys()) {
        let (x, y) = (a.get(path), b.get(path));
        if x != y {
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

pub fn barrier(session: &Session) {
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
