//! A look at everything, by a few threads: compares the tree with the index, reads ahead what is new.
//!
//! Workers only read. What differs goes to the capture loop, which looks again and decides; names that
//! are missing are held back until the end, when the guard has seen how many they are. Marks are set before a scan
//! begins and hints are drained after it, so a name that moves while a directory is listed is found by its event.
//!
//! A *survey* is a scan before the guard had its word: it reads no contents, and says of what is new only its topmost
//! name, and which known objects are found below it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use mirror_core::reconcile::{Body, Dir, Dirty, Failure, ReadEnd, Seen as Looked};
use mirror_core::{At, Handle, Name, ObjectId, Rows};

use super::kernel::{failure, ignored, look, reopen};
use super::names::Names;
use super::part;
use super::prepared::{PreparedDir, PreparedOwn};
use super::queue::{Brood, Item, Queue, Trail, names};
use super::read::{Into, ReadOptions, Reader};
use super::sink::{Sink, SinkDir};
use super::tree::{Closed, SourceTree, Walker};
use super::watch::Watch;
use crate::filter::Filter;
use crate::index::{ChildInode, Index, IndexError};
use crate::planted;
use crate::sync::lock;
use crate::sys::stat::Stat;
use crate::sys::{Errno, dir, sched};

/// Entries of one directory handed over at once.
const CHUNK: usize = 4096;
/// Entries read ahead that the loop has not taken yet: a directory may hold millions.
const AHEAD_MAX: usize = 16_384;
const STOP_SEEN_AFTER: Duration = Duration::from_millis(50);
/// Rows read under one lock.
const ROWS: usize = 1024;

/// What a worker tells the capture loop.
pub enum Found {
    /// A new directory (or more of one), read ahead.
    Ahead(Box<PreparedDir>),
    /// These differ from the index, or can't be told apart from what does.
    Differ(Vec<(At, Dirty)>),
    /// In the index, not in the tree.
    Missing(Vec<At>),
    /// A directory's own attributes may differ.
    Dir(ObjectId),
    Failed(Vec<(At, Failure)>),
    Foreign(Vec<Vec<u8>>),
    /// Only of a survey: known objects under names that the index does not have.
    Moved(Vec<ObjectId>),
    /// Only of a survey: more differs than names can tell.
    Deeper,
    /// A directory could not be identified or listed although nobody says it is gone.
    Broken(String),
    /// All workers are done.
    End,
}

/// Counters anyone may read while it runs.
#[derive(Default)]
pub struct Seen {
    pub entries: AtomicU64,
    pub bytes: AtomicU64,
    pub dirs: AtomicU64,
    pub read_files: AtomicU64,
    pub read_bytes: AtomicU64,
}

#[derive(Default)]
struct Progress {
    /// Workers that may still add items.
    busy: usize,
    /// Workers that wait for one.
    waiting: usize,
    broken: bool,
}

struct Shared {
    queue: Mutex<(Queue, Progress)>,
    wake: Condvar,
    stop: AtomicBool,
    seen: Arc<Seen>,
    tree: Arc<SourceTree>,
    index: Arc<RwLock<Index>>,
    filter: Arc<Filter>,
    sink: Arc<dyn Sink>,
    watch: Arc<Watch>,
    out: Sender<Found>,
    survey: bool,
    /// Entries on their way to the loop.
    ahead: Mutex<usize>,
    taken: Condvar,
}

/// A scan under way.
pub struct Scan {
    shared: Arc<Shared>,
    pub found: Receiver<Found>,
    threads: Vec<JoinHandle<()>>,
}

/// What a scan needs to know.
pub struct ScanSetup {
    pub tree: Arc<SourceTree>,
    pub index: Arc<RwLock<Index>>,
    pub filter: Arc<Filter>,
    pub sink: Arc<dyn Sink>,
    pub watch: Arc<Watch>,
    pub read: ReadOptions,
    pub threads: usize,
    pub survey: bool,
    /// Where a file may be made for what does not fit in memory.
    pub spill: Option<PathBuf>,
}

impl Scan {
    /// Starts at these directories, which the index knows; each is compared with all below it.
    pub fn start(setup: ScanSetup, dirs: &[(ObjectId, Handle, Vec<Name>)]) -> Scan {
        let (out, found) = bounded(64);
        let items = dirs
            .iter()
            .map(|(id, handle, path)| {
                let trail = path
                    .iter()
                    .fold(None, |above, name| Trail::below(&above, name.clone()));
                Item {
                    handle: handle.clone(),
                    trail,
                    known: Ok(*id),
                }
            })
            .collect();
        let shared = Arc::new(Shared {
            queue: Mutex::new((Queue::new(items, setup.spill), Progress::default())),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            seen: Arc::new(Seen::default()),
            tree: setup.tree,
            index: setup.index,
            filter: setup.filter,
            sink: setup.sink,
            watch: setup.watch,
            out,
            survey: setup.survey,
            ahead: Mutex::new(0),
            taken: Condvar::new(),
        });
        let alive = Arc::new(AtomicU64::new(setup.threads.max(1) as u64));
        let threads = (0..setup.threads.max(1))
            .map(|_| {
                let (shared, read, alive) = (shared.clone(), setup.read.clone(), alive.clone());
                std::thread::spawn(move || {
                    sched::stand_back();
                    let mut worker = Worker {
                        walker: Walker::new(shared.tree.clone()),
                        reader: Reader::new(read),
                        shared: &shared,
                    };
                    while let Some(item) = worker.shared.next() {
                        if let Err(gone) = worker.visit(item)
                            && let Gone::Broken(text) = gone
                        {
                            let _ = shared.out.send(Found::Broken(text));
                        }
                        shared.done();
                    }
                    if alive.fetch_sub(1, Ordering::AcqRel) == 1 {
                        let _ = shared.out.send(Found::End);
                    }
                })
            })
            .collect();
        Scan {
            shared,
            found,
            threads,
        }
    }

    pub fn seen(&self) -> Arc<Seen> {
        self.shared.seen.clone()
    }

    /// So many entries that were read ahead were taken.
    pub fn taken(&self, entries: usize) {
        let mut ahead = self.shared.ahead();
        *ahead = ahead.saturating_sub(entries);
        drop(ahead);
        self.shared.taken.notify_all();
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake.notify_all();
        self.shared.taken.notify_all();
        // Whoever waits to hand something over must get through, to see that it is over.
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            while self.found.try_recv().is_ok() {}
            std::thread::yield_now();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn ahead(&self) -> MutexGuard<'_, usize> {
        lock(&self.ahead)
    }

    fn next(&self) -> Option<Item> {
        let mut queue = lock(&self.queue);
        loop {
            if self.stop.load(Ordering::Acquire) {
                return None;
            }
            let (items, progress) = &mut *queue;
            match items.pop() {
                Ok(Some(item)) => {
                    progress.busy += 1;
                    return Some(item);
                }
                Ok(None) if progress.busy > 0 => {}
                Ok(None) => {
                    self.wake.notify_all();
                    return None;
                }
                Err(error) => {
                    let first = !std::mem::replace(&mut progress.broken, true);
                    drop(queue);
                    if first {
                        let _ = self.out.send(Found::Broken(error.to_string()));
                    }
                    self.wake.notify_all();
                    return None;
                }
            }
            queue.1.waiting += 1;
            queue = self
                .wake
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
            queue.1.waiting -= 1;
        }
    }

    fn done(&self) {
        let mut queue = lock(&self.queue);
        queue.1.busy -= 1;
        if queue.1.busy == 0 {
            self.wake.notify_all();
        }
    }

    fn push(&self, of: &Item, brood: Brood) {
        if brood.is_empty() {
            return;
        }
        let mut queue = lock(&self.queue);
        queue.0.push(of, brood);
        let waiting = queue.1.waiting > 0;
        drop(queue);
        // Each notice is a system call, heard or not.
        if waiting {
            self.wake.notify_all();
        }
    }
}

/// Why a directory was left.
enum Gone {
    /// Not there any more: its parent's names say so.
    Stale,
    Stopped,
    Broken(String),
}

impl From<IndexError> for Gone {
    fn from(error: IndexError) -> Gone {
        Gone::Broken(error.to_string())
    }
}

struct Worker<'a> {
    shared: &'a Shared,
    walker: Walker,
    reader: Reader,
}

impl Worker<'_> {
    fn send(&self, found: Found) -> Result<(), Gone> {
        if self.shared.stop.load(Ordering::Acquire) {
            return Err(Gone::Stopped);
        }
        self.shared.out.send(found).map_err(|_| Gone::Stopped)
    }

    /// Hands over what was read ahead, once there is room for it.
    fn send_ahead(&self, prepared: PreparedDir) -> Result<(), Gone> {
        let entries = prepared.count();
        let mut ahead = self.shared.ahead();
        while *ahead > 0
            && *ahead + entries > AHEAD_MAX
            && !self.shared.stop.load(Ordering::Acquire)
        {
            // Who stops may do so between our look and our sleep.
            ahead = match self.shared.taken.wait_timeout(ahead, STOP_SEEN_AFTER) {
                Ok((ahead, _)) => ahead,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        *ahead += entries;
        drop(ahead);
        self.send(Found::Ahead(Box::new(prepared)))
    }

    fn rows<T>(&self, read: impl FnOnce(&Index) -> Result<T, IndexError>) -> Result<T, Gone> {
        let index = self
            .shared
            .index
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(read(&index)?)
    }

    fn visit(&mut self, item: Item) -> Result<(), Gone> {
        let trail = (!self.shared.tree.by_handle).then(|| names(&item.trail));
        let fd = match self.walker.open(&Dir {
            handle: &item.handle,
            trail,
        }) {
            Ok(fd) => fd,
            Err(Closed::Stale) => return Err(Gone::Stale),
            Err(Closed::Failed(e)) => return self.failed_dir(&item, failure("open", e)),
        };
        self.shared.seen.dirs.fetch_add(1, Ordering::Relaxed);
        let passing = self.shared.survey && item.known.is_err();
        if !passing {
            self.shared.watch.add_dir(&fd, &item.handle);
        }
        let before = match &item.known {
            Ok(_) => None,
            Err(_) => Some(crate::sys::stat::fstat(fd.as_fd()).map_err(|_| Gone::Stale)?),
        };
        let listed = match self.list(&fd, &item) {
            Ok(listed) => listed,
            // Removed while we stood in it: its own name says so, and nothing failed.
            Err(Errno::NOENT | Errno::STALE) => return Err(Gone::Stale),
            Err(e) => return self.failed_dir(&item, failure("list", e)),
        };
        let done = match (&item.known, before) {
            (Ok(id), _) => self.compare(*id, &item, &fd, listed),
            (Err(_), _) if passing => self.survey(&item, &fd, listed),
            (Err(parent), Some(before)) => self.ingest(parent.clone(), &item, &fd, before, listed),
            (Err(_), None) => Err(Gone::Stale),
        };
        self.walker.forget(&item.handle);
        done
    }

    fn failed_dir(&self, item: &Item, failure: Failure) -> Result<(), Gone> {
        let parent = match &item.known {
            Ok(id) => {
                let object = self.rows(|index| index.object(*id))?;
                return match object.and_then(|object| object.names.first().cloned()) {
                    Some(at) => self.send(Found::Failed(vec![(at, failure)])),
                    None => Err(Gone::Broken(format!(
                        "cannot {} the root: {}",
                        failure.step, failure.reason
                    ))),
                };
            }
            Err(parent) => parent,
        };
        // Unknown as yet: its name is looked at, which makes it known, and it is listed then.
        let known = self.rows(|index| index.by_handle(parent))?;
        if let (Some(parent), Some(step)) = (known, &item.trail) {
            self.send(Found::Failed(vec![(
                At {
                    parent,
                    name: step.name.clone(),
                },
                failure,
            )]))?;
        }
        Ok(())
    }

    /// Names in byte order, without what is never part of a tree.
    fn list(&self, fd: &OwnedFd, item: &Item) -> Result<Names, Errno> {
        let part = self.shared.tree.part_of(&item.handle);
        // Of a descriptor that others use too the position is theirs; what this worker opened is its own.
        let reopened = match part.is_some_and(|part| part.id.handle != item.handle) {
            true => None,
            false => Some(reopen(fd)?),
        };
        let mut listed = Names::default();
        dir::list(reopened.as_ref().unwrap_or(fd), |name, kind, _| {
            if !part.is_some_and(|part| part.is_lost_and_found(&item.handle, name)) {
                listed.push(name, kind.is_file());
            }
        })?;
        listed.sort();
        Ok(listed)
    }

    fn compare(
        &mut self,
        id: ObjectId,
        item: &Item,
        fd: &OwnedFd,
        listed: Names,
    ) -> Result<(), Gone> {
        let own = self.rows(|index| index.object(id))?.ok_or(Gone::Stale)?;
        let found = crate::sys::stat::fstat(fd.as_fd()).map_err(|_| Gone::Stale)?;
        if found.nlink == 0 {
            return Err(Gone::Stale);
        }
        if found.ctime != own.local.ctime || found.mtime != own.state.meta.mtime {
            self.send(Found::Dir(id))?;
        }
        let mut unread = New::default();
        let mut work = Compared::default();
        let mut after: Option<Name> = None;
        let mut rows = Vec::new().into_iter();
        let mut row = None;
        let mut last = false;
        let mut next_row = |this: &Self| -> Result<Option<(Name, ChildInode)>, Gone> {
            if let Some(row) = rows.next() {
                return Ok(Some(row));
            }
            if last {
                return Ok(None);
            }
            let more = this.rows(|index| index.scan_inodes(id, after.as_ref(), ROWS))?;
            last = more.len() < ROWS;
            after = more.last().map(|(name, _)| name.clone());
            rows = more.into_iter();
            Ok(rows.next())
        };
        let mut fresh = true;
        for name in listed.iter() {
            if fresh {
                row = next_row(self)?;
                fresh = false;
            }
            while let Some((in_row, _)) = &row
                && *in_row < name
            {
                work.missing.push(At {
                    parent: id,
                    name: in_row.clone(),
                });
                row = next_row(self)?;
            }
            match &row {
                Some((in_row, inode)) if *in_row == name => {
                    self.compare_one(id, item, fd, name, inode, &mut work)?;
                    fresh = true;
                }
                _ => self.new_name(id, item, fd, name, &mut work, &mut unread)?,
            }
            self.flush_if(item, fd, &mut work, &mut unread, CHUNK)?;
        }
        if fresh {
            row = next_row(self)?;
        }
        while let Some((in_row, _)) = row {
            work.missing.push(At {
                parent: id,
                name: in_row,
            });
            row = next_row(self)?;
            self.flush_if(item, fd, &mut work, &mut unread, CHUNK)?;
        }
        self.flush_if(item, fd, &mut work, &mut unread, 0)
    }

    fn compare_one(
        &mut self,
        dir: ObjectId,
        item: &Item,
        fd: &OwnedFd,
        name: Name,
        known: &ChildInode,
        work: &mut Compared,
    ) -> Result<(), Gone> {
        self.shared.seen.entries.fetch_add(1, Ordering::Relaxed);
        let at = At { parent: dir, name };
        let tree = &self.shared.tree;
        let crossed = tree.crossed_at(&item.handle, &at.name);
        let part = tree.part_of(&item.handle);
        let looked = match (crossed, part) {
            (Some(part), _) => part.stat(part.root(), b""),
            (None, Some(part)) => part.stat(fd, at.name.as_bytes()),
            (None, None) => return Err(Gone::Stale),
        };
        let found = match looked {
            Ok(found) => found,
            Err(Errno::NOENT) => {
                work.missing.push(at);
                return Ok(());
            }
            Err(e) => {
                work.failed.push((at, failure("stat", e)));
                return Ok(());
            }
        };
        if crossed.is_none() && part.is_some_and(|part| part.is_foreign(&found)) {
            work.foreign.push(self.path(item, &at.name));
            return Ok(());
        }
        if found.is_file() {
            let bytes = &self.shared.seen.bytes;
            bytes.fetch_add(found.bytes, Ordering::Relaxed);
        }
        let same_inode = found.ino == known.ino
            && found.btime == known.btime
            && match (crossed, part, known.handle_kind) {
                (Some(part), _, Some(_)) => known
                    .handle
                    .as_ref()
                    .is_some_and(|handle| *handle == part.id.handle),
                (None, Some(part), Some(kind)) => part::tag_of_kind(kind) == part.tag,
                _ => true,
            };
        if found.is_file()
            && found.nlink as usize > known.names
            && self.shared.watch.dirs().is_some()
            && let Some(object) = self.rows(|index| index.object(known.id))?
            && let Some(handle) = &object.local.handle
        {
            self.shared.watch.linked(handle, found.nlink);
        }
        if found.is_dir() && same_inode && known.is_dir {
            match &known.handle {
                Some(handle) => work.dirs.push(&at.name, handle, Some(known.id)),
                None => {
                    work.deeper |= self.shared.survey;
                    work.dirty.push((at, doubt()));
                }
            }
            // Its own attributes are compared when it is visited.
            return Ok(());
        }
        let changed = match planted::is("trust_equal_stat") {
            false => found.ctime != known.ctime,
            true => found.mtime != known.mtime,
        };
        if !same_inode || changed || !known.proven {
            use mirror_core::reconcile::Look;
            let survey = self.shared.survey;
            // Another directory took this name while nobody looked. Known elsewhere, it may have changed below; new,
            // it may hold directories that are known and have.
            if (found.is_dir() || (survey && !same_inode))
                && let Look::Seen(other) = look(tree, &item.handle, fd, &at.name)
            {
                let known = self.rows(|index| index.by_handle(&other.handle))?;
                work.moved.extend(known.filter(|_| survey));
                if other.is_dir() {
                    work.dirs.push(&at.name, &other.handle, known);
                }
            }
            // What has no handle in the index is learned by its path, and all below it with it.
            work.deeper |= survey && known.is_dir && known.handle.is_none();
            work.dirty.push((at, doubt()));
        }
        Ok(())
    }

    /// A name the index does not have.
    fn new_name(
        &mut self,
        dir: ObjectId,
        item: &Item,
        fd: &OwnedFd,
        name: Name,
        work: &mut Compared,
        unread: &mut New,
    ) -> Result<(), Gone> {
        self.shared.seen.entries.fetch_add(1, Ordering::Relaxed);
        use mirror_core::reconcile::Look;
        let found = match look(&self.shared.tree, &item.handle, fd, &name) {
            Look::Seen(found) => found,
            Look::Foreign => {
                work.foreign.push(self.path(item, &name));
                return Ok(());
            }
            Look::Absent | Look::Stale => return Ok(()),
            Look::Failed(failure) => {
                work.failed.push((At { parent: dir, name }, failure));
                return Ok(());
            }
        };
        if ignored(
            &self.shared.filter,
            &mut || names(&item.trail),
            &name,
            found.is_dir(),
        ) {
            return Ok(());
        }
        let known = self.rows(|index| index.by_handle(&found.handle))?;
        let dirty = |name| {
            (
                At { parent: dir, name },
                Dirty {
                    contents: true,
                    doubt: true,
                    ..Dirty::default()
                },
            )
        };
        let survey = self.shared.survey;
        match known {
            Some(id) => {
                work.moved.extend(Some(id).filter(|_| survey));
                if found.is_dir() {
                    // It moved here while nobody looked: what is below it is compared all the same.
                    work.dirs.push(&name, &found.handle, Some(id));
                }
                work.dirty.push(dirty(name));
            }
            None if found.is_dir() => {
                work.dirs.push(&name, &found.handle, None);
                work.dirty.extend(survey.then(|| dirty(name)));
            }
            None if survey => work.dirty.push(dirty(name)),
            None => unread.names.push((name, found)),
        }
        Ok(())
    }

    fn path(&self, item: &Item, name: &Name) -> Vec<u8> {
        let mut path = Vec::new();
        for step in names(&item.trail) {
            path.extend_from_slice(step.as_bytes());
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        path
    }

    /// Hands over what was found once it is more than `min`. A directory goes on the queue only after everything
    /// that must be known before it was handed over.
    fn flush_if(
        &mut self,
        item: &Item,
        fd: &OwnedFd,
        work: &mut Compared,
        unread: &mut New,
        min: usize,
    ) -> Result<(), Gone> {
        if work.len() + unread.names.len() <= min && min > 0 {
            return Ok(());
        }
        if !unread.names.is_empty() {
            let prepared = self.read_ahead(item, fd, std::mem::take(&mut unread.names), None)?;
            self.send_ahead(prepared)?;
        }
        if !work.dirty.is_empty() {
            self.send(Found::Differ(std::mem::take(&mut work.dirty)))?;
        }
        if !work.missing.is_empty() {
            self.send(Found::Missing(std::mem::take(&mut work.missing)))?;
        }
        if !work.failed.is_empty() {
            self.send(Found::Failed(std::mem::take(&mut work.failed)))?;
        }
        if !work.foreign.is_empty() {
            self.send(Found::Foreign(std::mem::take(&mut work.foreign)))?;
        }
        if !work.moved.is_empty() {
            self.send(Found::Moved(std::mem::take(&mut work.moved)))?;
        }
        if std::mem::take(&mut work.deeper) {
            self.send(Found::Deeper)?;
        }
        self.shared.push(item, std::mem::take(&mut work.dirs));
        Ok(())
    }

    /// A directory that is new: what in it is known did not leave the tree.
    fn survey(&mut self, item: &Item, fd: &OwnedFd, listed: Names) -> Result<(), Gone> {
        use mirror_core::reconcile::Look;
        let mut work = Compared::default();
        for name in listed.iter() {
            self.shared.seen.entries.fetch_add(1, Ordering::Relaxed);
            let Look::Seen(found) = look(&self.shared.tree, &item.handle, fd, &name) else {
                continue;
            };
            let trail = &mut || names(&item.trail);
            if ignored(&self.shared.filter, trail, &name, found.is_dir()) {
                continue;
            }
            let known = self.rows(|index| index.by_handle(&found.handle))?;
            work.moved.extend(known);
            if found.is_dir() {
                work.dirs.push(&name, &found.handle, known);
            }
            self.flush_if(item, fd, &mut work, &mut New::default(), CHUNK)?;
        }
        self.flush_if(item, fd, &mut work, &mut New::default(), 0)
    }

    /// A directory that is new, with all below it.
    fn ingest(
        &mut self,
        parent: Handle,
        item: &Item,
        fd: &OwnedFd,
        before: Stat,
        listed: Names,
    ) -> Result<(), Gone> {
        use mirror_core::reconcile::Look;
        let found = crate::sys::stat::fstat(fd.as_fd()).map_err(|_| Gone::Stale)?;
        let Some(step) = &item.trail else {
            return Err(Gone::Stale);
        };
        let seen = super::read::seen(&found, item.handle.clone());
        let sink: Arc<dyn Sink> = self.shared.sink.clone();
        let reading = match self.reader.read(fd, None, &seen, false, Into::Sink(&*sink)) {
            ReadEnd::Done(mut reading) => {
                if (before.ctime, before.mtime) != (reading.seen.ctime, reading.seen.mtime) {
                    // A name may have come after the listing: it is listed again.
                    reading.seen.ctime = mirror_core::Time::default();
                }
                reading
            }
            ReadEnd::Moved | ReadEnd::Later => return Err(Gone::Stale),
            ReadEnd::Failed(failure) => return self.failed_dir(item, failure),
        };
        let mut own = Some(PreparedOwn {
            parent,
            name: step.name.clone(),
            reading,
        });
        let (mut files, mut work) = (Vec::new(), Compared::default());
        let plain = self.shared.tree.crossed().next().is_none();
        for (name, regular) in listed.iter_kinds() {
            self.shared.seen.entries.fetch_add(1, Ordering::Relaxed);
            if regular && plain {
                let trail = &mut || names(&item.trail);
                if !ignored(&self.shared.filter, trail, &name, false) {
                    files.push((name, Ahead::Unseen));
                }
                if files.len() >= CHUNK {
                    let files = std::mem::take(&mut files);
                    let prepared = self.read_some(item, fd, files, own.take())?;
                    self.send(Found::Ahead(Box::new(prepared)))?;
                }
                continue;
            }
            let found = match look(&self.shared.tree, &item.handle, fd, &name) {
                Look::Seen(found) => found,
                Look::Foreign => {
                    work.foreign.push(self.path(item, &name));
                    continue;
                }
                Look::Absent | Look::Stale => continue,
                Look::Failed(_) => {
                    // Left to the loop's own look, which reports it.
                    files.push((name, Ahead::Left));
                    continue;
                }
            };
            if ignored(
                &self.shared.filter,
                &mut || names(&item.trail),
                &name,
                found.is_dir(),
            ) {
                continue;
            }
            if found.is_dir() {
                let known = self.rows(|index| index.by_handle(&found.handle))?;
                work.dirs.push(&name, &found.handle, known);
                if known.is_some() {
                    files.push((name, Ahead::Left));
                }
                if work.dirs.len() >= CHUNK {
                    let (files, own) = (std::mem::take(&mut files), own.take());
                    let prepared = self.read_some(item, fd, files, own)?;
                    self.send_ahead(prepared)?;
                    self.shared.push(item, std::mem::take(&mut work.dirs));
                }
                continue;
            }
            files.push((name, Ahead::Seen(found)));
            if files.len() >= CHUNK {
                let prepared = self.read_some(item, fd, std::mem::take(&mut files), own.take())?;
                self.send_ahead(prepared)?;
            }
        }
        if own.is_some() || !files.is_empty() {
            let prepared = self.read_some(item, fd, files, own.take())?;
            self.send_ahead(prepared)?;
        }
        if !work.foreign.is_empty() {
            self.send(Found::Foreign(work.foreign))?;
        }
        self.shared.push(item, work.dirs);
        Ok(())
    }

    /// A regular file, opened before it was looked at: so stat and handle are of one inode.
    fn open(&self, item: &Item, dir: &OwnedFd, name: &Name) -> Option<(OwnedFd, Stat, Handle)> {
        let part = self.shared.tree.part_of(&item.handle)?;
        let file = crate::sys::open::file(dir, name.as_bytes()).ok()?;
        let found = part.stat(&file, b"").ok()?;
        if !found.is_file() || part.is_foreign(&found) {
            return None;
        }
        let handle = part.identify(&file, b"", &found).ok()?;
        Some((file, found, handle))
    }

    fn read_ahead(
        &mut self,
        item: &Item,
        fd: &OwnedFd,
        found: Vec<(Name, Looked)>,
        own: Option<PreparedOwn>,
    ) -> Result<PreparedDir, Gone> {
        self.read_some(
            item,
            fd,
            found
                .into_iter()
                .map(|(name, seen)| (name, Ahead::Seen(seen)))
                .collect(),
            own,
        )
    }

    fn read_some(
        &mut self,
        item: &Item,
        fd: &OwnedFd,
        found: Vec<(Name, Ahead)>,
        mut own: Option<PreparedOwn>,
    ) -> Result<PreparedDir, Gone> {
        if !self.shared.sink.room() {
            return Err(Gone::Stopped);
        }
        let sink = self.shared.sink.clone();
        let mut staged: Option<(u64, Box<dyn SinkDir>)> = None;
        let (mut entries, mut others) = (HashMap::with_capacity(found.len()), Vec::new());
        let mut wanted = true;
        for (name, ahead) in found {
            if self.shared.stop.load(Ordering::Acquire) {
                return Err(Gone::Stopped);
            }
            let seen = match ahead {
                Ahead::Left => {
                    others.push(name);
                    continue;
                }
                Ahead::Seen(seen) => {
                    // An inode with several names is read once, by the loop.
                    if seen.nlink != 1 {
                        others.push(name);
                        continue;
                    }
                    Err(seen)
                }
                Ahead::Unseen => match self.open(item, fd, &name) {
                    Some(open) if open.1.nlink == 1 => Ok(open),
                    _ => {
                        if let mirror_core::reconcile::Look::Foreign =
                            look(&self.shared.tree, &item.handle, fd, &name)
                        {
                            self.send(Found::Foreign(vec![self.path(item, &name)]))?;
                        } else {
                            others.push(name);
                        }
                        continue;
                    }
                },
            };
            let is_file = seen.as_ref().map_or_else(Looked::is_file, |_| true);
            if is_file && staged.is_none() && wanted {
                staged = sink.dir();
                wanted = staged.is_some();
            }
            let into = match &mut staged {
                Some((_, dir)) if is_file => Into::Dir(&mut **dir),
                _ => Into::Sink(&*sink),
            };
            let read = match seen {
                Ok((file, found, handle)) => {
                    self.reader.read_open(&file, &name, found, handle, into)
                }
                Err(seen) => self.reader.read(fd, Some(&name), &seen, true, into),
            };
            match read {
                ReadEnd::Done(mut reading) => {
                    // What nobody took is asked for by whoever needs it: a first scan does not fill the log.
                    if matches!(reading.body, Body::Bytes(_)) {
                        reading.body = Body::None;
                    }
                    self.shared.seen.read_files.fetch_add(1, Ordering::Relaxed);
                    if let Some(mirror_core::Kind::File(content)) = &reading.kind {
                        self.shared
                            .seen
                            .read_bytes
                            .fetch_add(content.bytes, Ordering::Relaxed);
                    }
                    entries.insert(name, reading);
                }
                ReadEnd::Moved | ReadEnd::Later => {}
                ReadEnd::Failed(_) => others.push(name),
            }
        }
        let token = staged.map(|(token, dir)| {
            dir.finish();
            token
        });
        if let (Some(own), Some(token)) = (&mut own, token) {
            own.reading.body = Body::Token(token);
        }
        Ok(PreparedDir {
            handle: item.handle.clone(),
            own,
            entries,
            others,
            token,
        })
    }
}

#[derive(Default)]
struct Compared {
    dirty: Vec<(At, Dirty)>,
    missing: Vec<At>,
    failed: Vec<(At, Failure)>,
    foreign: Vec<Vec<u8>>,
    dirs: Brood,
    moved: Vec<ObjectId>,
    deeper: bool,
}

impl Compared {
    fn len(&self) -> usize {
        self.dirty.len()
            + self.missing.len()
            + self.failed.len()
            + self.dirs.len()
            + self.moved.len()
    }
}

/// What is known of a name that is to be read ahead.
enum Ahead {
    /// The directory says that it is a regular file.
    Unseen,
    Seen(Looked),
    /// The loop's own look is to tell.
    Left,
}

/// Names that are new in a known directory.
#[derive(Default)]
struct New {
    names: Vec<(Name, Looked)>,
}

fn doubt() -> Dirty {
    Dirty {
        doubt: true,
        ..Dirty::default()
    }
}
