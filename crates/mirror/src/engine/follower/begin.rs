//! A copy begun from a tree that came whole: its records applied from their file, on a thread of its own, before there is
//! a log.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use mirror_core::codec;

use super::contents::WireContents;
use crate::apply::{Applier, Contents, Counts, Flush};
use crate::engine::applying::chain;
use crate::engine::seed;
use crate::index::Index;
use crate::log::End;

/// Records applied at once.
const BATCH_RECORDS: usize = 8192;

pub struct Begin {
    pub at: End,
    pub tree: [u8; 16],
    pub made: Arc<Made>,
    thread: JoinHandle<Result<Applier<Index>, String>>,
}

/// How much is made.
#[derive(Default)]
pub struct Made {
    pub files: AtomicU64,
    pub bytes: AtomicU64,
}

impl Made {
    fn add(&self, counts: &Counts) {
        let files = counts.created + counts.adopted;
        self.files.fetch_add(files, Ordering::Relaxed);
        self.bytes
            .fetch_add(counts.content_bytes, Ordering::Relaxed);
    }
}

impl Begin {
    pub fn start(
        mut applier: Applier<Index>,
        contents: WireContents,
        state_dir: PathBuf,
        (at, tree): (End, [u8; 16]),
        stopping: Arc<AtomicBool>,
    ) -> std::io::Result<Begin> {
        let made = Arc::new(Made::default());
        let count = made.clone();
        let thread = std::thread::Builder::new()
            .name("begin".into())
            .spawn(move || {
                let path = state_dir.join(seed::FILE);
                let file = File::open(&path).map_err(|e| format!("cannot read the tree: {e}"))?;
                let done = apply(&mut applier, &contents, file, at, &stopping, &count);
                let _ = std::fs::remove_file(&path);
                done.map(|()| applier)
            })?;
        Ok(Begin {
            at,
            tree,
            made,
            thread,
        })
    }

    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    pub fn join(self) -> Result<Applier<Index>, String> {
        self.thread
            .join()
            .unwrap_or_else(|_| Err("the thread broke off".into()))
    }
}

fn apply(
    applier: &mut Applier<Index>,
    contents: &dyn Contents,
    file: File,
    at: End,
    stopping: &AtomicBool,
    made: &Made,
) -> Result<(), String> {
    applier
        .set_flush(Flush::Checkpoint)
        .map_err(|e| chain(&e))?;
    let mut from = BufReader::new(file);
    let mut head = codec::GENESIS;
    let mut batch = Vec::new();
    loop {
        if stopping.load(Ordering::Acquire) {
            return Err("stopped".into());
        }
        let group =
            seed::next_group(&mut from).map_err(|e| format!("cannot read the tree: {e}"))?;
        let last = group.is_none();
        if let Some(group) = group {
            batch.append(&mut seed::decode_group(&group, &mut head)?);
        }
        if batch.len() >= BATCH_RECORDS || (last && !batch.is_empty()) {
            let outcome = applier
                .apply(&batch, at.head, contents)
                .map_err(|e| chain(&e))?;
            made.add(&outcome.counts);
            batch.clear();
        }
        if last {
            break;
        }
    }
    applier.set_flush(Flush::Batch).map_err(|e| chain(&e))?;
    applier.checkpoint().map_err(|e| chain(&e))
}
