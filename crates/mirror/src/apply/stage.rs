//! Making new inodes in staging: complete, verified, flushed, and only then given a name in the tree.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mirror_core::plan::{Occupant, Place, Step};
use mirror_core::{Content, ContentRef, Kind, Name, ObjectId, State};
use rustix::fs::FileType;

use super::batch::{Batch, StepError, ToFlush};
use super::content::{self, RangeReader, WriteError};
use super::meta::{LATE_FLAGS, Rules, hold};
use super::options::{Flush, Trace};
use super::staging::{Entry, Lies, local_of};
use super::{ApplyError, Contents, Fetched, Staging, Store, crash};
use crate::sync::lock;
use crate::sys::stat::{Stat, fstat, statx};
use crate::sys::{Errno, flags, open, target};

/// Files written at once before their descriptors are let go.
const CHUNK: usize = 128;
/// Fewer jobs than this are done by the calling thread: starting threads would take longer.
const THREADS_FROM: usize = 4;
/// Or more bytes than this.
const THREADS_BYTES: u64 = 4 << 20;

/// A regular file to be made.
struct Job {
    object: ObjectId,
    place: Place,
    dir: Arc<OwnedFd>,
    name: Vec<u8>,
    here: State,
    content: Content,
    from: From,
}

enum From {
    /// An inode of the copy that holds these bytes already.
    Copy(Arc<OwnedFd>, Vec<u8>, Option<ContentRef>),
    Fetch(Option<ContentRef>),
    /// What is here is not what the record says it brings: an empty stand-in.
    Empty,
}

/// Those of a content, as they come.
enum Bytes {
    Whole(Arc<Vec<u8>>),
    Stream(Box<dyn Read>),
}

#[allow(clippy::large_enum_variant)] // One a file, gone at once.
enum Made {
    /// Open for the flush, if asked for.
    File(Stat, Option<OwnedFd>),
    Travels,
    Failed {
        step: &'static str,
        reason: String,
        void: bool,
    },
}

impl<S: Store> Batch<'_, S> {
    /// Makes what `steps` stage: directories and special files at once, regular files together.
    pub fn stage(&mut self, steps: &[Step]) -> Result<(), StepError> {
        let mut jobs = Vec::new();
        for step in steps {
            let Step::Stage { object, place } = step else {
                continue;
            };
            match self.stage_one(*object, place) {
                Ok(None) => {}
                Ok(Some(job)) => jobs.push(job),
                Err(e) => self.refuse(*object, e)?,
            }
            if jobs.len() >= CHUNK {
                self.run_jobs(&mut jobs)?;
            }
            crash::point("stage");
        }
        self.run_jobs(&mut jobs)
    }

    /// An object that fails is noted; anything worse goes up.
    pub fn refuse(&mut self, object: ObjectId, error: StepError) -> Result<(), StepError> {
        match error {
            StepError::Fails { step, reason } => {
                self.fail(object, step, reason);
                Ok(())
            }
            StepError::Held => {
                self.fail(object, "wait", "something it depends on failed".into());
                Ok(())
            }
            fatal => Err(fatal),
        }
    }

    fn stage_one(&mut self, object: ObjectId, place: &Place) -> Result<Option<Job>, StepError> {
        let Some(want) = self.want(object).map(|w| w.state.clone()) else {
            return Err(StepError::Held);
        };
        let (here, _) = self.rules.here(&want);
        let (dir, name) = self.physical(place)?;
        if here.meta.flags & LATE_FLAGS != 0 {
            self.late.insert(object);
        }
        match &here.kind {
            Kind::Dir => {
                let local = match self.staging.take_dir(object, &dir, &name) {
                    Some(local) => {
                        self.flush.add(None);
                        local
                    }
                    None => {
                        self.make_way(place, &dir)?;
                        target::create_dir(&dir, &name).map_err(StepError::sys("make"))?;
                        local_of(&statx(&dir, &name).map_err(StepError::sys("look"))?)
                    }
                };
                self.made.insert(object, local);
                self.stage_row(object, place)?;
                self.counts.created += 1;
                Ok(None)
            }
            Kind::File(content) => {
                let from = match &want.kind {
                    Kind::File(_) => {
                        if self.take_staged(object, place, &dir, &name, content, &here)? {
                            return Ok(None);
                        }
                        self.source_of(object)?
                    }
                    _ => From::Empty,
                };
                let content = content.clone();
                Ok(Some(Job {
                    object,
                    place: place.clone(),
                    dir,
                    name,
                    here,
                    content,
                    from,
                }))
            }
            kind => {
                self.make_way(place, &dir)?;
                make_special(&dir, &name, kind).map_err(StepError::sys("make"))?;
                self.rules
                    .make(&dir, &name, kind, &here.meta, false)
                    .map_err(StepError::sys("set the metadata of"))?;
                let stat = statx(&dir, &name).map_err(StepError::sys("look"))?;
                self.is_made(object, place, &stat)?;
                Ok(None)
            }
        }
    }

    /// What was read ahead for a name of a staged directory is not what it became.
    pub fn make_way(&self, place: &Place, dir: &OwnedFd) -> Result<(), StepError> {
        let Place::Tree(at) = place else {
            return Ok(());
        };
        self.staging
            .make_way(at.parent, &at.name, dir)
            .map_err(StepError::sys("make way"))
    }

    fn is_made(&mut self, object: ObjectId, place: &Place, stat: &Stat) -> Result<(), StepError> {
        match self.target(object).is_some_and(|t| t.old.is_none()) {
            true => self.counts.created += 1,
            false => self.counts.content += 1,
        }
        self.made.insert(object, local_of(stat));
        self.complete.insert(object);
        self.stage_row(object, place)?;
        // An inode that takes an older row over.
        self.settled(object)
    }

    /// A staged inode is where it is; one outside the tree gets its row with its first name.
    fn stage_row(&mut self, object: ObjectId, place: &Place) -> Result<(), StepError> {
        if !matches!(place, Place::Tree(_)) && self.target(object).is_some_and(|t| t.is_dir()) {
            let state = State {
                kind: Kind::Dir,
                meta: Default::default(),
            };
            let local = self.made.get(&object).cloned().unwrap_or_default();
            self.put(
                object,
                mirror_core::Object {
                    state,
                    local,
                    names: Default::default(),
                },
            )?;
        }
        self.set(place, Some(Occupant::Is(object)))
    }

    fn source_of(&mut self, object: ObjectId) -> Result<From, StepError> {
        let Some(target) = self.target(object) else {
            return Err(StepError::Held);
        };
        let place = target.place;
        // The same bytes under one of its names, in an inode that must not be changed.
        let old = Occupant::Old(object);
        let names = target.want.iter().chain(&target.old).flat_map(|o| &o.names);
        let copy = names
            .map(|at| Place::Tree(at.clone()))
            .find(|at| self.now.get(at) == Some(&old));
        if let Some(at) = copy
            && let Ok((dir, name)) = self.physical(&at)
            && statx(&dir, &name).is_ok_and(|stat| {
                let bytes = self
                    .want(object)
                    .and_then(|w| w.state.kind.content())
                    .map(|c| c.bytes);
                stat.is_file() && Some(stat.bytes) == bytes
            })
        {
            return Ok(From::Copy(dir, name, place));
        }
        // Void or not: asking makes the source look at the object again, and it may well be there by now.
        Ok(From::Fetch(place))
    }

    /// Takes the file that was staged ahead of its record, if there is one. False: make it.
    fn take_staged(
        &mut self,
        object: ObjectId,
        place: &Place,
        dir: &Arc<OwnedFd>,
        name: &[u8],
        content: &Content,
        here: &State,
    ) -> Result<bool, StepError> {
        let Some(at) = self.want(object).and_then(|w| w.names.first().cloned()) else {
            return Ok(false);
        };
        let at = match place {
            Place::Tree(at) => at.clone(),
            _ => at,
        };
        let Some((lies, entry, same)) =
            self.staging.take_file(object, at.parent, &at.name, content)
        else {
            return Ok(false);
        };
        if matches!(lies, Lies::At(..)) {
            // Read once more after it was read ahead: what lies under its name is the older reading.
            self.make_way(place, dir)?;
        }
        if !same {
            let _ = match &lies {
                Lies::InPlace => target::unlink(dir, name),
                Lies::At(dir, name) => target::unlink(dir, name),
            };
            return Ok(false);
        }
        let done = settle_staged(self.rules, &lies, &entry, dir, name, here, &at.name);
        match done {
            Ok(local) => {
                self.flush.add(None);
                self.counts.created +=
                    u64::from(self.target(object).is_some_and(|t| t.old.is_none()));
                self.counts.add_bytes(content.bytes);
                self.made.insert(object, local);
                self.stage_row(object, place)?;
                self.settled(object)?;
                Ok(true)
            }
            // Whatever it was: it can be made anew.
            Err(_) => {
                let _ = target::unlink(dir, name);
                Ok(false)
            }
        }
    }

    fn run_jobs(&mut self, jobs: &mut Vec<Job>) -> Result<(), StepError> {
        if jobs.is_empty() {
            return Ok(());
        }
        let work = std::mem::take(jobs);
        let keep = self.options.flush == Flush::Batch
            && self.flush.fds.len() + work.len() <= ToFlush::FDS_MAX;
        let bytes = work
            .iter()
            .fold(0u64, |sum, job| sum.saturating_add(job.content.bytes));
        let many = work.len() >= THREADS_FROM && (bytes > THREADS_BYTES || work.len() >= 16);
        let threads = if many {
            self.options.threads.clamp(1, work.len())
        } else {
            1
        };
        let (rules, contents, staging) = (self.rules, self.contents, self.staging);
        let results = Mutex::new(Vec::with_capacity(work.len()));
        let next = AtomicUsize::new(0);
        let worker = || {
            while let Some(job) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                let made = make_file(job, rules, contents, staging, keep);
                lock(&results).push((job, made));
            }
        };
        if threads == 1 {
            worker();
        } else {
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(worker);
                }
            });
        }
        for (job, made) in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
            match made {
                Made::File(stat, fd) => {
                    self.flush.add(fd.map(Arc::new));
                    self.counts.add_bytes(job.content.bytes);
                    self.is_made(job.object, &job.place, &stat)?;
                }
                Made::Travels => {
                    self.travels.insert(job.object);
                    self.fail(job.object, "fetch", "it is on its way".into());
                }
                Made::Failed { step, reason, void } => {
                    self.fail(job.object, step, reason);
                    if void && let Some(failure) = self.failed.get_mut(&job.object) {
                        failure.void = true;
                    }
                }
            }
        }
        self.trace(Trace::Staged);
        Ok(())
    }

    /// A file that is to be nowhere in the tree. False: its bytes can't be had.
    pub(super) fn make_aside(
        &mut self,
        object: ObjectId,
        (dir, name): (Arc<OwnedFd>, Vec<u8>),
        here: State,
        place: Option<ContentRef>,
    ) -> Result<bool, StepError> {
        let Some(content) = here.kind.content().cloned() else {
            return Ok(false);
        };
        let job = Job {
            object,
            place: Place::Staging(object, 0),
            dir,
            name,
            here,
            content,
            from: From::Fetch(place),
        };
        let keep = self.options.flush == Flush::Batch;
        let contents = super::AtHand(self.contents);
        match make_file(&job, self.rules, &contents, self.staging, keep) {
            Made::File(_, fd) => {
                self.flush.add(fd.map(Arc::new));
                Ok(true)
            }
            // Nobody needs it in the tree, so nobody waits for it.
            Made::Travels => Ok(false),
            // The disk's fault is no reason to lose it.
            Made::Failed {
                step: step @ ("write" | "look" | "stage"),
                reason,
                ..
            } => Err(StepError::Fatal(ApplyError::Unkept { step, reason })),
            Made::Failed { .. } => Ok(false),
        }
    }

    pub fn trace(&self, what: Trace) {
        if let Some(trace) = &self.options.trace {
            trace(what);
        }
    }

    /// A staged directory is complete but for its own metadata.
    pub fn finish(&mut self, object: ObjectId) -> Result<(), StepError> {
        if !self.made.contains_key(&object) {
            return Ok(());
        }
        let fd = self.dir(object)?;
        self.staging
            .park(object, &fd)
            .map_err(StepError::sys("park"))?;
        let Some(want) = self.want(object).map(|w| w.state.clone()) else {
            return Ok(());
        };
        let (here, _) = self.rules.here(&want);
        self.rules
            .make(&fd, b"", &here.kind, &here.meta, false)
            .map_err(StepError::sys("set the metadata of"))?;
        self.settled(object)?;
        if self.options.flush == Flush::Batch {
            self.flush.add(Some(fd));
        }
        Ok(())
    }

    /// Everything staged is on stable storage, or the batch ends here: what a failed flush leaves is not believed.
    pub fn flush_staged(&mut self) -> Result<(), StepError> {
        let pending = std::mem::take(&mut self.flush);
        self.flush.dirs = pending.dirs;
        if self.options.flush != Flush::Batch || (pending.fds.is_empty() && !pending.all) {
            return Ok(());
        }
        flush(
            &pending.fds,
            pending.all,
            &self.area.new,
            self.options.threads,
        )
        .map_err(|e| {
            StepError::Fatal(ApplyError::Flush {
                what: "what was staged",
                source: e.into(),
            })
        })?;
        self.trace(Trace::FlushStaged);
        Ok(())
    }
}

/// One by one, in parallel, or the file system as a whole.
pub(super) fn flush(
    fds: &[Arc<OwnedFd>],
    all: bool,
    of: &OwnedFd,
    threads: usize,
) -> Result<(), Errno> {
    if all {
        return rustix::fs::syncfs(of);
    }
    if fds.len() < THREADS_FROM {
        return fds.iter().try_for_each(rustix::fs::fsync);
    }
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Ok(()));
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, fds.len()) {
            scope.spawn(|| {
                while let Some(fd) = fds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(e) = rustix::fs::fsync(fd) {
                        *lock(&failed) = Err(e);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn make_special(dir: &OwnedFd, name: &[u8], kind: &Kind) -> Result<(), Errno> {
    match kind {
        Kind::Symlink(link) => target::create_symlink(dir, name, link),
        Kind::Fifo => target::create_node(dir, name, FileType::Fifo, (0, 0)),
        Kind::Socket => target::create_node(dir, name, FileType::Socket, (0, 0)),
        Kind::Device {
            block,
            major,
            minor,
        } => {
            let kind = if *block {
                FileType::BlockDevice
            } else {
                FileType::CharacterDevice
            };
            target::create_node(dir, name, kind, (*major, *minor))
        }
        Kind::Dir | Kind::File(_) => Err(Errno::INVAL),
    }
}

#[allow(clippy::result_large_err)] // The error is the answer, not an accident.
fn make_file(
    job: &Job,
    rules: &Rules,
    contents: &dyn Contents,
    staging: &Staging,
    keep: bool,
) -> Made {
    let io = |step: &'static str| {
        move |e: Errno| Made::Failed {
            step,
            reason: std::io::Error::from(e).to_string(),
            void: false,
        }
    };
    let failed = |step, reason: &str| Made::Failed {
        step,
        reason: reason.into(),
        void: false,
    };
    let stream = |reader| Ok(Bytes::Stream(reader));
    let fetch = |place| -> Result<Bytes, Made> {
        match contents.fetch(job.object, &job.content, place) {
            Fetched::Bytes(bytes) => Ok(Bytes::Whole(bytes)),
            Fetched::Reader(reader) => stream(reader),
            Fetched::Staged(key) => {
                let Some((lies, entry)) = staging.take_key(key, &job.content) else {
                    return Err(failed(
                        "fetch",
                        "what was staged is not what the record says",
                    ));
                };
                let name = Name::new(b"x").map_err(|_| failed("fetch", ""))?;
                match settle_staged(rules, &lies, &entry, &job.dir, &job.name, &job.here, &name) {
                    Ok(_) => {
                        match open::file(&job.dir, &job.name).and_then(|fd| Ok((fstat(&fd)?, fd))) {
                            Ok((stat, fd)) => Err(Made::File(stat, keep.then_some(fd))),
                            Err(e) => Err(io("look")(e)),
                        }
                    }
                    Err(e) => Err(io("stage")(e)),
                }
            }
            Fetched::Gone if crash::planted("attach_before_content") => {
                stream(Box::new(std::io::empty()))
            }
            Fetched::Gone => Err(Made::Failed {
                step: "fetch",
                reason: "this version of it is gone at the source".into(),
                void: true,
            }),
            Fetched::Travels => Err(Made::Travels),
            Fetched::Failed(reason) => Err(Made::Failed {
                step: "fetch",
                reason,
                void: false,
            }),
        }
    };
    let (from, again) = match &job.from {
        From::Empty => (Bytes::Whole(Arc::default()), None),
        From::Copy(dir, name, place) => match open::file(dir, name) {
            Ok(fd) => {
                let reader = Box::new(RangeReader::new(fd, &job.content));
                (Bytes::Stream(reader), Some(*place))
            }
            Err(e) => return io("open")(e),
        },
        From::Fetch(place) => match fetch(*place) {
            Ok(from) => (from, None),
            Err(made) => return made,
        },
    };
    let mut made = write_file(job, rules, from, keep);
    if let (Err(WriteError::Different), Some(place)) = (&made, again) {
        match fetch(place) {
            Ok(from) => made = write_file(job, rules, from, keep),
            Err(made) => return made,
        }
    }
    let reason = match made {
        Ok((stat, fd)) => return Made::File(stat, fd),
        Err(WriteError::Different) => {
            return failed("verify", "the bytes are not those the record speaks of");
        }
        Err(WriteError::Read(e)) => {
            return Made::Failed {
                step: "fetch",
                reason: e.to_string(),
                void: false,
            };
        }
        Err(WriteError::Write(e)) => e,
    };
    io("write")(reason)
}

/// Leaves nothing behind on error.
fn write_file(
    job: &Job,
    rules: &Rules,
    from: Bytes,
    keep: bool,
) -> Result<(Stat, Option<OwnedFd>), WriteError> {
    let file = target::create_file(&job.dir, &job.name).map_err(WriteError::Write)?;
    let fill = || {
        if job.here.meta.flags & flags::NOCOW != 0 {
            flags::set_flags(&file, flags::NOCOW, flags::NOCOW).map_err(WriteError::Write)?;
        }
        let written = match from {
            Bytes::Whole(bytes) => content::write_bytes(&file, &job.content, &bytes),
            Bytes::Stream(mut reader) => content::write(&file, &job.content, &mut reader),
        };
        match written {
            Err(WriteError::Different) if crash::planted("attach_before_content") => {}
            written => written?,
        }
        rules
            .make(&file, b"", &job.here.kind, &job.here.meta, false)
            .map_err(WriteError::Write)?;
        fstat(&file).map_err(WriteError::Write)
    };
    match { fill }() {
        Ok(stat) => Ok((stat, keep.then_some(file))),
        Err(e) => {
            let _ = target::unlink(&job.dir, &job.name);
            Err(e)
        }
    }
}

/// Moves a staged file to where it is to be, and sets what changed since it was staged.
fn settle_staged(
    rules: &Rules,
    lies: &Lies,
    entry: &Entry,
    dir: &OwnedFd,
    name: &[u8],
    here: &State,
    final_name: &Name,
) -> Result<mirror_core::Local, Errno> {
    let mut local = entry.local.clone();
    if let Lies::At(from, from_name) = lies {
        target::rename_noreplace(from, from_name, dir, name)?;
    } else if final_name.as_bytes() != name {
        return Err(Errno::INVAL);
    }
    let changed = entry.meta != here.meta && {
        let state = State {
            kind: here.kind.clone(),
            meta: entry.meta.clone(),
        };
        rules.here(&state).0.meta != here.meta
    };
    if changed {
        let held = hold(dir, name)?;
        rules.adjust(&held.fd, &here.kind, &here.meta, false)?;
    }
    if changed || matches!(lies, Lies::At(..)) {
        local = local_of(&statx(dir, name)?);
    }
    Ok(local)
}
