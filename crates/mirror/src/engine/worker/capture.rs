//! A running session of capture as the link serves it: its files read again by object, the tree verified, reports.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crossbeam_channel::Sender;
use mirror_core::{Content, Digest, ObjectId, Rows};

use super::super::control::{ControlError, VerifyEnd, VerifyLine};
use super::super::local::contents::SourceContents;
use super::super::options::Detector;
use super::super::seed::{self, Chained, Spooled};
use super::super::session::Session;
use super::super::status::{Counters, DetectorStatus, PathText};
use super::super::verify::{self, SourceOf};
use crate::capture::state::{Order, Shared};
use crate::capture::tree::SourceTree;
use crate::index::Index;
use crate::link::report::{Report, ScanReport};
use crate::link::serve::{Compared, Found, Open, ReadBack};
use crate::link::stream::{Streamed, stream};
use crate::sync::lock;

/// What others hold of a session. Given up within moments when it ends, so that nothing keeps the source open.
#[derive(Clone)]
pub struct Live {
    pub open: Open,
    pub orders: Sender<Order>,
    pub shared: Arc<Shared>,
    pub index: Arc<RwLock<Index>>,
    tree: Arc<SourceTree>,
    pub detector: Detector,
    why: Arc<Mutex<String>>,
    pub not_mirrored: Vec<PathText>,
    contents: Arc<SourceContents>,
}

impl Live {
    pub fn new(session: &Session, path: Vec<u8>, not_mirrored: Vec<PathText>) -> Live {
        Live {
            open: Open {
                program: concat!("mirrord ", env!("CARGO_PKG_VERSION")),
                tree: session.tree_id,
                path,
                detector: session.detector.to_string(),
                why: lock(&session.why).clone(),
                reader: session.reader.clone(),
            },
            orders: session.orders.clone(),
            shared: session.shared.clone(),
            index: session.index.clone(),
            tree: session.tree.clone(),
            detector: session.detector,
            why: session.why.clone(),
            not_mirrored,
            contents: Arc::new(SourceContents::new(
                session.reader.content(),
                session.tree.clone(),
                session.index.clone(),
                session.orders.clone(),
            )),
        }
    }

    /// What the index knows of an object's content, if that is what is wanted.
    fn current(&self, object: ObjectId, digest: Digest) -> Result<Option<Content>, String> {
        let rows = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let found = rows.object(object).map_err(|e| e.to_string())?;
        Ok(found
            .and_then(|found| found.state.kind.content().cloned())
            .filter(|content| content.digest == digest))
    }

    pub fn read_back(
        &self,
        object: ObjectId,
        digest: Digest,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> ReadBack {
        let content = match self.current(object, digest) {
            Ok(Some(content)) => content,
            // Its successor is in the log already.
            Ok(None) => return ReadBack::Void,
            Err(reason) => return ReadBack::Failed(reason),
        };
        let file = match self.contents.open(object) {
            Ok(Some(fd)) => File::from(fd),
            Ok(None) => return self.changed(object, digest),
            Err(reason) => return ReadBack::Failed(reason),
        };
        match stream(&file, &content, each) {
            Streamed::Complete => ReadBack::Complete,
            Streamed::Different => self.changed(object, digest),
            Streamed::Failed(reason) => ReadBack::Failed(format!("cannot read it again: {reason}")),
            Streamed::Stopped => ReadBack::Stopped,
        }
    }

    /// The file is not what the log says: capture looks again, and a successor record follows.
    fn changed(&self, object: ObjectId, digest: Digest) -> ReadBack {
        if matches!(self.current(object, digest), Ok(Some(_))) {
            let _ = self.orders.send(Order::Reread(object));
        }
        ReadBack::Void
    }

    /// Reads the whole source again and compares it with the index.
    pub fn verify(
        &self,
        repair: bool,
        each: &mut dyn FnMut(Found) -> bool,
    ) -> Result<Compared, String> {
        let settled = || {
            let (answer, answered) = crossbeam_channel::bounded(1);
            let _ = self.orders.send(Order::Barrier(answer));
            match answered.recv() {
                Ok(_) => Ok(()),
                Err(_) => Err(ControlError::Busy("capture ended meanwhile".into())),
            }
        };
        let source = SourceOf {
            tree: self.tree.clone(),
            index: self.index.clone(),
            shared: self.shared.clone(),
            orders: self.orders.clone(),
            settled: &settled,
        };
        settled().map_err(|e| e.to_string())?;
        let mut end = VerifyEnd::default();
        let mut line = |line: VerifyLine| {
            each(Found {
                path: line.path.as_str().as_bytes().to_vec(),
                what: line.what,
            })
        };
        verify::source(&source, repair, &mut line, &mut end).map_err(|e| e.to_string())?;
        let stats = self
            .index
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .stats();
        Ok(Compared {
            entries: stats.entries,
            bytes: stats.bytes,
            different: end.different,
            unknown: end.unknown,
        })
    }

    pub fn spool(&self, state_dir: &std::path::Path, chained: Chained) -> Result<Spooled, String> {
        let tail = self.open.reader.tail();
        seed::spool(&self.index, self.open.tree, &tail, state_dir, chained)
    }

    /// Adds what the session knows.
    pub fn fill(&self, report: &mut Report) {
        let status = self.shared.lock();
        report.detector = Some(DetectorStatus {
            uses: self.detector,
            why: lock(&self.why).clone(),
        });
        report.not_mirrored.clone_from(&self.not_mirrored);
        for path in &status.foreign {
            let known = |have: &PathText| have.as_str().ends_with(path.as_str());
            if !report.not_mirrored.iter().any(known) {
                report.not_mirrored.push(path.clone());
            }
        }
        report.scan = status.scan.as_ref().map(|(seen, _)| ScanReport {
            entries: seen.entries.load(Ordering::Relaxed),
            bytes: seen.bytes.load(Ordering::Relaxed),
            read_files: seen.read_files.load(Ordering::Relaxed),
            read_bytes: seen.read_bytes.load(Ordering::Relaxed),
        });
        report.scans = status.scans;
        report.failed.clone_from(&status.failed);
        report.failed_total = status.failed_total;
        report.fuzzy = status.fuzzy.values().cloned().collect();
        report.fuzzy_total = status.fuzzy.len() as u64;
        report.counters = Counters {
            overflows: status.overflows,
            scan_corrections: status.corrections,
            torn_reads: status.torn,
            proven: status.proven,
            fuzzy: status.fuzzy.len() as u64,
            unwatched: status.unwatched,
            ..Counters::default()
        };
        report.entries = status.entries;
        report.files = status.files;
        report.bytes = status.bytes;
        report.last_change.clone_from(&status.last_change);
        report.read_bytes = self.shared.read_bytes.load(Ordering::Relaxed);
        report.behind_since_ns = status.behind_since_ns;
    }
}

/// A path as it travels.
pub fn path_bytes(path: &std::path::Path) -> Vec<u8> {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec()
}

/// Where a worker's log, contents and index are.
pub fn index_path(state_dir: &std::path::Path) -> PathBuf {
    state_dir.join("index")
}
