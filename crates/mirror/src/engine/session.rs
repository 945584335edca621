//! One session of capture over one tree: the source opened, log and index recovered, the watch set, the loop running.
//!
//! A session ends when it is stopped, when a guard holds, or when log or index can't go on; whoever runs it then closes
//! everything and starts a new one. Every descriptor into the source belongs to the session.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use mirror_core::model::apply_group;
use mirror_core::{Digest, Handle, Name, Object, ObjectId, Position, Rows};

use super::options::Detector;
use super::status::HoldReason;
use crate::capture::part::Part;
use crate::capture::run::{Capture, CaptureOptions, CaptureSetup};
use crate::capture::sink::Sink;
use crate::capture::state::{Barrier, Ended, Order, Shared};
use crate::capture::tree::{RootId, SourceTree, TreeError};
use crate::capture::watch::{Watch, WatchOptions, Watching};
use crate::disk::Disk;
use crate::filter::Filter;
use crate::index::{self, Index, IndexError, Opened, move_aside};
use crate::log::{Log, LogError, LogOptions, LogReader};
use crate::sync::lock;

/// How often everything is looked at when nothing else tells of changes.
const SCAN_ONLY_EVERY: Duration = Duration::from_secs(10);

pub struct SessionSetup {
    /// The tree's root, canonical.
    pub source: PathBuf,
    /// Where `log/` and `content/` live.
    pub disk: Arc<dyn Disk>,
    /// The worker's index.
    pub index: PathBuf,
    pub index_options: index::Options,
    pub log_options: LogOptions,
    pub filter: Arc<Filter>,
    pub sink: Arc<dyn Sink>,
    pub detector: Option<Detector>,
    /// Where the service has its states, if it has a listener.
    pub listener: Option<PathBuf>,
    /// An operator let this hold go on.
    pub released: Option<HoldReason>,
    pub capture: CaptureOptions,
    /// The worker's index, being opened already.
    pub opening: Option<Opening>,
}

/// An index that is opened on a thread of its own, as long as reading and checking it takes. Dropped, it waits for
/// that, because an index can be open only once.
pub struct Opening {
    thread: Option<JoinHandle<Result<(Index, Opened), IndexError>>>,
}

impl Opening {
    /// `None`: there is nothing to open.
    pub fn start(path: &Path, options: &index::Options) -> Option<Opening> {
        if !path.exists() {
            return None;
        }
        let (path, options) = (path.to_path_buf(), options.clone());
        let thread = std::thread::Builder::new()
            .name("open".into())
            .spawn(move || Index::open(&path, options));
        Some(Opening {
            thread: Some(thread.ok()?),
        })
    }

    fn finish(mut self) -> Option<Result<(Index, Opened), IndexError>> {
        self.thread.take()?.join().ok()
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("cannot open the log")]
    Log(#[from] LogError),
    #[error("cannot open the index")]
    Index(#[from] IndexError),
    /// A detector was asked for that can't be had: exit 2.
    #[error("{0}")]
    Detector(String),
    /// The root is not the one this log is of.
    #[error("{what}")]
    OtherRoot {
        what: String,
        /// The one it is of, if it is the root itself: see [`is_root`].
        wanted: Option<Vec<u8>>,
    },
    /// A mount that was part of the tree is not asked for any more.
    #[error("{0}")]
    NotCrossed(String),
    #[error("{0}")]
    Other(String),
}

pub struct Session {
    pub tree: Arc<SourceTree>,
    pub tree_id: [u8; 16],
    pub index: Arc<RwLock<Index>>,
    pub reader: LogReader,
    pub shared: Arc<Shared>,
    pub orders: Sender<Order>,
    pub detector: Detector,
    /// As it is now.
    pub why: Arc<Mutex<String>>,
    /// Things found while opening that a person should know.
    pub notices: Vec<String>,
    thread: JoinHandle<()>,
    ended: Receiver<Ended>,
    _watching: Watching,
}

pub fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64)
}

/// Sixteen random bytes from the system.
pub fn random_id() -> std::io::Result<[u8; 16]> {
    let mut id = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut id)?;
    Ok(id)
}

impl Session {
    pub fn open(mut setup: SessionSetup) -> Result<Session, SessionError> {
        let mut notices = Vec::new();
        let tree = Arc::new(SourceTree::open_with(&setup.source, &setup.capture.cross)?);
        let (log, found) = open_log(&setup)?;
        let opening = setup.opening.take();
        let fresh = found.is_none();
        let (mut index, ends_early) = open_index(&setup, opening, &log, fresh, &mut notices)?;
        if let Some(cut_bytes) = found.filter(|cut_bytes| *cut_bytes > 0) {
            notices.insert(0, super::lost::cut(cut_bytes, ends_early));
        }
        know_root(
            &mut index,
            &tree,
            setup.released.is_some_and(HoldReason::is_another_root),
        )?;
        know_crossed(&mut index, &tree, setup.released)?;
        let watch = Watch::new(
            &tree,
            WatchOptions {
                forced: setup.detector,
                listener: setup.listener,
                who: true,
            },
        )
        .map_err(SessionError::Detector)?;
        let watch = Arc::new(watch);
        let watching = Watching::start(watch.clone());
        let index = Arc::new(RwLock::new(index));
        let shared = Arc::new(Shared::default());
        let (orders, taken) = unbounded();
        let (tell, ended) = bounded(1);
        let (reader, tree_id) = (log.reader(), log.tree());
        let mut capture = setup.capture;
        capture.released |= setup.released.is_some_and(|reason| {
            matches!(reason, HoldReason::Unexplained | HoldReason::RootEmpty)
                || reason.is_another_root()
        });
        let why = watch.why.clone();
        if watch.detector == Detector::Scan {
            capture.scan_interval = capture.scan_interval.min(SCAN_ONLY_EVERY);
            let seconds = capture.scan_interval.as_secs_f64();
            lock(&why).push_str(&format!("; everything is looked at every {seconds} s"));
        }
        let capture = Capture::new(CaptureSetup {
            tree: tree.clone(),
            index: index.clone(),
            log,
            watch: watch.clone(),
            filter: setup.filter,
            sink: setup.sink,
            shared: shared.clone(),
            orders: taken,
            spill: setup.index.parent().map(Path::to_path_buf),
            options: capture,
        });
        let thread = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || {
                let _ = tell.send(capture.run());
            });
        let thread =
            thread.map_err(|e| SessionError::Other(format!("cannot start a thread: {e}")))?;
        Ok(Session {
            detector: watch.detector,
            why,
            tree,
            tree_id,
            index,
            reader,
            shared,
            orders,
            notices,
            thread,
            ended,
            _watching: watching,
        })
    }

    /// Why the loop ended, if it did by itself.
    pub fn ended(&self) -> Option<Ended> {
        self.ended.try_recv().ok()
    }

    pub fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Ends the loop and closes everything.
    pub fn stop(self) -> Ended {
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.orders.send(Order::Stop);
        let ended = self
            .ended
            .recv()
            .unwrap_or_else(|_| Ended::Failed("the capture thread broke off".into()));
        let _ = self.thread.join();
        ended
    }

    /// Asks for a barrier; the answer comes on the channel.
    pub fn barrier(&self) -> Receiver<Barrier> {
        let (answer, receiver) = bounded(1);
        let _ = self.orders.send(Order::Barrier(answer));
        receiver
    }
}

/// The log, and how much was cut off its end; `None`: it was made just now.
fn open_log(setup: &SessionSetup) -> Result<(Log, Option<u64>), SessionError> {
    match Log::open(setup.disk.clone(), setup.log_options.clone()) {
        Ok((log, recovered)) => Ok((log, Some(recovered.cut_bytes))),
        Err(LogError::Absent) => {
            let random = |what| move |e| SessionError::Other(format!("cannot make {what}: {e}"));
            let tree = random_id().map_err(random("a tree id"))?;
            let claim = random_id().map_err(random("a claim id"))?;
            let log = Log::create(
                setup.disk.clone(),
                setup.log_options.clone(),
                tree,
                claim,
                now_ns(),
            )?;
            Ok((log, None))
        }
        Err(error) => Err(error.into()),
    }
}

/// The index as of the log's end: opened, or, if it is lost, damaged or of another log, made again from the log. True: the
/// log ends before what the old one stood at.
fn open_index(
    setup: &SessionSetup,
    opening: Option<Opening>,
    log: &Log,
    fresh: bool,
    notices: &mut Vec<String>,
) -> Result<(Index, bool), SessionError> {
    let reader = log.reader();
    let mut why = None;
    let opened = opening
        .and_then(Opening::finish)
        .unwrap_or_else(|| Index::open(&setup.index, setup.index_options.clone()));
    let mut ends_early = false;
    let mut index = match opened {
        Ok((index, opened)) => {
            if opened.created && !fresh {
                notices.push(format!(
                    "the index {} is gone: it is made again",
                    show(&setup.index)
                ));
            }
            if !opened.created && opened.tree != Some(log.tree()) {
                why = Some("it is of another tree".to_string());
            } else if let Some(mark) = opened.mark
                && reader.head_at(mark.position)? != Some(mark.head)
                && reader.first() <= mark.position
            {
                ends_early = log.end().is_none_or(|end| end.position < mark.position);
                why = Some(format!(
                    "it contains {}, which the log does not",
                    mark.position
                ));
            }
            index
        }
        Err(error @ (IndexError::Newer { .. } | IndexError::Io { .. })) => return Err(error.into()),
        Err(error) => {
            let aside = move_aside(&setup.index)?;
            notices.push(super::lost::rebuilt(&error, &aside));
            Index::open(&setup.index, setup.index_options.clone())?.0
        }
    };
    if let Some(why) = why {
        drop(index);
        let aside = move_aside(&setup.index)?;
        notices.push(format!(
            "the index can't be used ({why}): it is made again; the old one is {}",
            show(&aside)
        ));
        index = Index::open(&setup.index, setup.index_options.clone())?.0;
    }
    index.set_tree(log.tree());
    replay(&mut index, &reader, log.end().map(|end| end.position))?;
    Ok((index, ends_early))
}

/// Brings rows up to the log's end.
fn replay(
    index: &mut Index,
    reader: &LogReader,
    end: Option<Position>,
) -> Result<(), SessionError> {
    let mut cursor = reader.cursor(index.mark().map(|mark| mark.position))?;
    let mut groups = 0u64;
    while let Some(group) = cursor.next_group()? {
        apply_group(index, &group.records)
            .map_err(|e| SessionError::Other(format!("the log can't be replayed: {e:?}")))?;
        index.set_position(group.end.position, group.end.head);
        groups += 1;
    }
    if groups > 0 {
        index.flush()?;
    }
    let _ = end;
    Ok(())
}

const ROOT_KEY: &str = "root";

/// Whether this is the root that a session asked for, see [`SessionError::OtherRoot`].
pub fn is_root(tree: &SourceTree, wanted: &[u8]) -> bool {
    root_bytes(&tree.id) == wanted
}

/// A log is of one root. A root with another identity under the same path is a replaced disk or a wrong mount.
fn know_root(index: &mut Index, tree: &SourceTree, released: bool) -> Result<(), SessionError> {
    let now = root_bytes(&tree.id);
    match index.meta_get(ROOT_KEY)? {
        Some(old) if old != now && !released && index.stats().entries > 0 => {
            return Err(SessionError::OtherRoot {
                what: format!("{} is not the directory it was", show(&tree.path)),
                wanted: Some(old),
            });
        }
        Some(old) if old == now => {}
        Some(_) | None => {
            index.meta_put(ROOT_KEY, &now)?;
            if let Some(root) = index.object(ObjectId::ROOT)? {
                // Handles of another file system mean nothing: all is found again by path and equality.
                let local = mirror_core::Local {
                    handle: Some(tree.id.handle.clone()),
                    ino: tree.id.ino,
                    ..root.local.clone()
                };
                index.put(ObjectId::ROOT, Object { local, ..root })?;
            }
        }
    }
    Ok(())
}

const CROSSED_KEY: &str = "crossed";

/// The mounts that are part of the tree, each the same one as before. None of them may just be left out again: what
/// is under the mount point would look as if everything in it had been deleted.
fn know_crossed(
    index: &mut Index,
    tree: &SourceTree,
    released: Option<HoldReason>,
) -> Result<(), SessionError> {
    let before: BTreeMap<Vec<u8>, Vec<u8>> = match index.meta_get(CROSSED_KEY)? {
        Some(bytes) => serde_json::from_slice::<Vec<_>>(&bytes)
            .map_err(|e| {
                SessionError::Other(format!("the index can't tell what was crossed: {e}"))
            })?
            .into_iter()
            .collect(),
        None => BTreeMap::new(),
    };
    let path = |part: &Part| {
        let names: Vec<&[u8]> = part.path.iter().map(Name::as_bytes).collect();
        names.join(&b"/"[..])
    };
    let now: BTreeMap<Vec<u8>, Vec<u8>> = tree
        .crossed()
        .map(|part| (path(part), root_bytes(&part.id)))
        .collect();
    for (path, id) in &before {
        let shown = mirror_core::escape(path);
        match now.get(path) {
            Some(found) if found != id && !released.is_some_and(HoldReason::is_another_root) => {
                return Err(SessionError::OtherRoot {
                    what: format!(
                        "another file system than before is mounted on {shown}, which is crossed"
                    ),
                    wanted: None,
                });
            }
            None if released != Some(HoldReason::Unexplained) => {
                return Err(SessionError::NotCrossed(format!(
                    "{shown} was crossed (--cross {shown}) and is not any more: all that is below it would go"
                )));
            }
            _ => {}
        }
    }
    if before != now {
        let list: Vec<(Vec<u8>, Vec<u8>)> = now.into_iter().collect();
        let bytes = serde_json::to_vec(&list).map_err(|e| SessionError::Other(e.to_string()))?;
        index.meta_put(CROSSED_KEY, &bytes)?;
    }
    Ok(())
}

/// What makes a root the same: its handle and birth, and its file system's id, where that is one that lasts.
fn root_bytes(id: &RootId) -> Vec<u8> {
    let Handle { kind, bytes } = &id.handle;
    let mut out = kind.to_le_bytes().to_vec();
    out.extend_from_slice(&id.btime.seconds.to_le_bytes());
    out.extend_from_slice(&id.btime.nanos.to_le_bytes());
    out.extend_from_slice(bytes);
    for half in id.fsid.iter().flat_map(|id| id.0) {
        out.extend_from_slice(&half.to_le_bytes());
    }
    out
}

pub fn show(path: &Path) -> String {
    mirror_core::escape(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
}

/// Whether the rows know this object with this content now.
pub fn current_content(index: &RwLock<Index>, object: ObjectId, digest: Digest) -> bool {
    let rows = index.read().unwrap_or_else(PoisonError::into_inner);
    match rows.object(object) {
        Ok(Some(found)) => found
            .state
            .kind
            .content()
            .is_some_and(|content| content.digest == digest),
        _ => false,
    }
}
