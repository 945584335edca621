//! Contents of a mirror on one host: from the log's content segments, or read again from the source.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crossbeam_channel::Sender;
use mirror_core::reconcile::Dir;
use mirror_core::{Content, ContentRef, ObjectId, Rows};

use crate::apply::{Contents, Fetched};
use crate::capture::kernel::way;
use crate::capture::read::hasher;
use crate::capture::state::Order;
use crate::capture::tree::{SourceTree, Walker};
use crate::index::Index;
use crate::log::ContentStore;
use crate::sync::lock;
use crate::sys::{open, stat};

/// Read into memory and checked before it is handed over; larger is streamed, and apply checks it.
const WHOLE_BYTES_MAX: u64 = 1 << 20;

pub struct SourceContents {
    pub store: ContentStore,
    pub tree: Arc<SourceTree>,
    pub index: Arc<RwLock<Index>>,
    pub orders: Sender<Order>,
    walkers: Mutex<Vec<Walker>>,
}

impl SourceContents {
    pub fn new(
        store: ContentStore,
        tree: Arc<SourceTree>,
        index: Arc<RwLock<Index>>,
        orders: Sender<Order>,
    ) -> SourceContents {
        SourceContents {
            store,
            tree,
            index,
            orders,
            walkers: Mutex::new(Vec::new()),
        }
    }

    /// What the source has under the object's name now, open for reading. `None`: gone or something else.
    pub fn open(&self, object: ObjectId) -> Result<Option<OwnedFd>, String> {
        let (at, handle, trail, ino) = {
            let rows = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let find = || -> Result<_, crate::index::IndexError> {
                let Some(found) = rows.object(object)? else {
                    return Ok(None);
                };
                let Some(at) = found.names.first().cloned() else {
                    return Ok(None);
                };
                let way = way(&*rows, at.parent, self.tree.by_handle)?;
                Ok(way.map(|(handle, trail)| (at, handle, trail, found.local.ino)))
            };
            match find().map_err(|e| e.to_string())? {
                Some(found) => found,
                None => return Ok(None),
            }
        };
        let mut walker = {
            let mut walkers = lock(&self.walkers);
            walkers
                .pop()
                .unwrap_or_else(|| Walker::new(self.tree.clone()))
        };
        let dir = walker.open(&Dir {
            handle: &handle,
            trail,
        });
        walker.forget_all();
        lock(&self.walkers).push(walker);
        let Ok(dir) = dir else { return Ok(None) };
        let Ok(fd) = open::file(&dir, at.name.as_bytes()) else {
            return Ok(None);
        };
        let found = stat::fstat(&fd).map_err(|e| e.to_string())?;
        Ok((found.is_file() && found.ino == ino).then_some(fd))
    }

    fn gone(&self, object: ObjectId) -> Fetched {
        // A newer version may be on its way, or the change was never seen: capture looks.
        let _ = self.orders.send(Order::Reread(object));
        Fetched::Gone
    }
}

impl Contents for SourceContents {
    fn at_hand(&self, _: ObjectId, _: &Content, place: Option<ContentRef>) -> Fetched {
        match place.map(|place| self.store.get(place)) {
            Some(Ok(bytes)) => Fetched::Bytes(bytes.into()),
            _ => Fetched::Gone,
        }
    }

    fn fetch(&self, object: ObjectId, content: &Content, place: Option<ContentRef>) -> Fetched {
        if let Some(place) = place {
            match self.store.get(place) {
                Ok(bytes) => return Fetched::Bytes(bytes.into()),
                // Pruned or damaged: the source may still have it.
                Err(_)
                    if super::super::session::current_content(
                        &self.index,
                        object,
                        content.digest,
                    ) => {}
                Err(error) => return Fetched::Failed(super::super::applying::chain(&error)),
            }
        }
        let fd = match self.open(object) {
            Ok(Some(fd)) => fd,
            Ok(None) => return self.gone(object),
            Err(text) => return Fetched::Failed(text),
        };
        if !super::super::session::current_content(&self.index, object, content.digest) {
            return self.gone(object);
        }
        let ranges = if content.data.is_empty() {
            vec![(0, content.bytes)]
        } else {
            content.data.clone()
        };
        let length: u64 = ranges.iter().map(|(_, length)| length).sum();
        let mut reader = Ranges {
            file: File::from(fd),
            ranges,
            at: 0,
        };
        if length > WHOLE_BYTES_MAX {
            return Fetched::Reader(Box::new(reader));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        if let Err(error) = reader.read_to_end(&mut bytes) {
            return Fetched::Failed(error.to_string());
        }
        let mut hash = hasher(content.bytes, &content.data);
        hash.update(&bytes);
        if *hash.finalize().as_bytes() == content.digest.0 {
            Fetched::Bytes(bytes.into())
        } else {
            self.gone(object)
        }
    }
}

/// The bytes of some ranges of a file, one after the other.
struct Ranges {
    file: File,
    ranges: Vec<(u64, u64)>,
    /// Bytes of the first range already given.
    at: u64,
}

impl Read for Ranges {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        loop {
            let Some((start, length)) = self.ranges.first().copied() else {
                return Ok(0);
            };
            if self.at >= length {
                self.ranges.remove(0);
                self.at = 0;
                continue;
            }
            let want = usize::try_from(length - self.at)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let Some(piece) = buffer.get_mut(..want) else {
                return Ok(0);
            };
            let n = self.file.read_at(piece, start + self.at)?;
            self.at += n as u64;
            if n == 0 {
                self.ranges.clear();
            }
            return Ok(n);
        }
    }
}
