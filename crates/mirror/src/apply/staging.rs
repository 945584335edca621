//! The sink: contents written straight into the staging area by whoever reads the source, before their record exists.
//!
//! Thread-safe. What is staged under a [`Token`] is bound to an object when its record is appended, and
//! [`super::Applier::apply`] then puts it in place without copying. Staging never outlives the process: it is wiped
//! at open, and what was lost is fetched again.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mirror_core::{Content, Kind, Local, Meta, Name, ObjectId, State};
use rustix::fs::{Mode, OFlags, ftruncate, openat};

use super::content;
use super::meta::Rules;
use crate::sync::lock;
use crate::sys::behind::Behind;
use crate::sys::stat::{Stat, fstat};
use crate::sys::{self, open, target};

/// Chosen by the writer, each used once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// The staging area.
pub struct Staging {
    sink: Arc<OwnedFd>,
    travelling: Arc<OwnedFd>,
    rules: Rules,
    next: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    dirs: HashMap<Token, Part>,
    files: HashMap<Token, Entry>,
    bound_dirs: HashMap<ObjectId, Vec<Token>>,
    bound_files: HashMap<ObjectId, Token>,
    files_waiting: u64,
    bytes_waiting: u64,
    /// When something was last bound or taken.
    moved: Option<Instant>,
}

/// What is bound and not taken for so long is given up: its record says something else than what was staged.
const STALE: Duration = Duration::from_secs(15);

/// A directory of staged files.
struct Part {
    /// In the sink; `None`: it became a directory of the tree, and its entries lie in that.
    name: Option<String>,
    local: Local,
    entries: BTreeMap<Name, Entry>,
}

/// A finished file.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub content: Content,
    pub meta: Meta,
    pub local: Local,
    /// In the sink; `None`: by its own name in its part.
    pub parked: Option<String>,
}

/// Where a staged file lies.
pub(super) enum Lies {
    /// In the directory object itself, under its final name.
    InPlace,
    /// In this directory under this name.
    At(Arc<OwnedFd>, Vec<u8>),
}

/// A directory being filled. The files get their final names at once, because nobody can see them yet.
pub struct StagedDir {
    staging: Arc<Staging>,
    token: Token,
    name: String,
    fd: Arc<OwnedFd>,
    entries: Arc<Mutex<BTreeMap<Name, Entry>>>,
}

/// A file being written. Dropped unfinished it is removed.
pub struct StagedFile {
    staging: Arc<Staging>,
    dir: Arc<OwnedFd>,
    name: Vec<u8>,
    goes: Goes,
    file: Option<OwnedFd>,
    behind: Behind,
}

enum Goes {
    Dir(Arc<Mutex<BTreeMap<Name, Entry>>>, Name),
    File(Token),
}

/// A finished file in staging: only its key, so it may be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Staged(pub(super) Option<Token>);

/// A file of its own that is larger is flushed by whoever writes it.
const FLUSHED_BYTES_MIN: u64 = 4 << 20;

pub(super) fn local_of(stat: &Stat) -> Local {
    Local {
        handle: None,
        ino: stat.ino,
        ctime: stat.ctime,
        btime: stat.btime,
    }
}

impl Staging {
    pub(super) fn new(sink: Arc<OwnedFd>, travelling: Arc<OwnedFd>, rules: Rules) -> Staging {
        Staging {
            sink,
            travelling,
            rules,
            next: AtomicU64::new(0),
            inner: Mutex::default(),
        }
    }
    fn fresh_name(&self, kind: char) -> String {
        format!("{kind}{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A directory whose files will be staged. Several tokens may be bound to the same directory.
    pub fn begin_dir(self: &Arc<Self>, token: Token) -> io::Result<StagedDir> {
        let name = self.fresh_name('d');
        target::create_dir(&*self.sink, name.as_bytes())?;
        let fd = Arc::new(open::dir(&*self.sink, name.as_bytes())?);
        Ok(StagedDir {
            staging: self.clone(),
            token,
            name,
            fd,
            entries: Arc::default(),
        })
    }
    /// A single file; for [`super::Fetched::Staged`], or bound to its object.
    pub fn file(self: &Arc<Self>, token: Token) -> io::Result<StagedFile> {
        let name = self.fresh_name('f').into_bytes();
        let file = target::create_file(&*self.sink, &name)?;
        let (dir, staging) = (self.sink.clone(), self.clone());
        Ok(StagedFile {
            staging,
            dir,
            name,
            goes: Goes::File(token),
            file: Some(file),
            behind: Behind::default(),
        })
    }
    // What travels has a file of its own from the first piece on, by a name that its writer chose. No failure of a batch
    // touches it, and the next process finds what came.

    /// Opened, or made.
    pub fn open_travelling(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        Ok(openat(&*self.travelling, name, flags, mode)?)
    }
    pub fn drop_travelling(&self, name: &str) {
        let _ = target::unlink(&*self.travelling, name.as_bytes());
    }
    pub fn travelling(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        sys::dir::list(&*self.travelling, |name, _, _| {
            names.extend(String::from_utf8(name.to_vec()));
        })?;
        Ok(names)
    }
    /// It is complete, verified and flushed: for [`super::Fetched::Staged`].
    pub fn arrived(&self, name: &str, content: &Content) -> io::Result<Staged> {
        let parked = self.fresh_name('t');
        target::rename_noreplace(
            &*self.travelling,
            name.as_bytes(),
            &*self.sink,
            parked.as_bytes(),
        )?;
        let seal = || {
            let file = open::file(&*self.sink, parked.as_bytes())?;
            self.seal(&file, content, &Meta::default(), false)
        };
        match seal() {
            Ok(mut entry) => {
                // Apart from all that others chose.
                let token = Token(u64::MAX - self.next.fetch_add(1, Ordering::Relaxed));
                entry.parked = Some(parked);
                let mut inner = lock(&self.inner);
                inner.count_in(&entry);
                inner.files.insert(token, entry);
                Ok(Staged(Some(token)))
            }
            Err(e) => {
                let _ = target::unlink(&*self.sink, parked.as_bytes());
                Err(e.into())
            }
        }
    }

    /// What was finished under this token is the content of `object` (a file), or the files of `object` (a directory).
    /// Call it after `finish` and before the record is given to apply.
    pub fn bind(&self, token: Token, object: ObjectId) {
        let mut inner = lock(&self.inner);
        inner.moved = Some(Instant::now());
        if inner.dirs.contains_key(&token) {
            inner.bound_dirs.entry(object).or_default().push(token);
        } else if inner.files.contains_key(&token)
            && let Some(old) = inner.bound_files.insert(object, token)
        {
            drop(inner);
            self.forget(old);
        }
    }
    /// Gives up what was staged under this token.
    pub fn forget(&self, token: Token) {
        let mut inner = lock(&self.inner);
        if let Some(entry) = inner.files.remove(&token) {
            inner.count_out(&entry);
            drop(inner);
            self.discard(&entry);
        } else if let Some(part) = inner.dirs.remove(&token) {
            part.entries
                .values()
                .for_each(|entry| inner.count_out(entry));
            drop(inner);
            part.entries.values().for_each(|entry| self.discard(entry));
            if let Some(name) = part.name {
                let _ = super::wipe::remove(&*self.sink, name.as_bytes(), 0, &mut super::wipe::All);
            }
        }
    }
    /// Files and bytes staged and not yet in place: for back-pressure.
    pub fn waiting(&self) -> (u64, u64) {
        let mut inner = lock(&self.inner);
        let waiting = (inner.files_waiting, inner.bytes_waiting);
        if waiting.0 == 0 || inner.moved.is_none_or(|moved| moved.elapsed() < STALE) {
            return waiting;
        }
        inner.moved = Some(Instant::now());
        let mut stale: Vec<Token> = inner.bound_dirs.values().flatten().copied().collect();
        stale.extend(inner.bound_files.values());
        drop(inner);
        stale.into_iter().for_each(|token| self.forget(token));
        self.tidy();
        let inner = lock(&self.inner);
        (inner.files_waiting, inner.bytes_waiting)
    }

    fn discard(&self, entry: &Entry) {
        if let Some(name) = &entry.parked {
            let _ = target::unlink(&*self.sink, name.as_bytes());
        }
    }
    fn part_fd(&self, part: &Part) -> Option<Arc<OwnedFd>> {
        let name = part.name.as_ref()?;
        open::dir(&*self.sink, name.as_bytes()).ok().map(Arc::new)
    }

    /// A staged directory to become `dir`, moved to (`to`, `name`): its inode. `None`: make one.
    pub(super) fn take_dir(&self, dir: ObjectId, to: &OwnedFd, name: &[u8]) -> Option<Local> {
        let mut inner = lock(&self.inner);
        let token = *inner.bound_dirs.get(&dir)?.first()?;
        let part = inner.dirs.get_mut(&token)?;
        let staged = part.name.clone()?;
        target::rename_noreplace(&*self.sink, staged.as_bytes(), to, name).ok()?;
        part.name = None;
        Some(part.local.clone())
    }
    /// The file staged for `object`, which is called `name` in `dir`, and whether it has this content; if not, it is in
    /// the way.
    pub(super) fn take_file(
        &self,
        object: ObjectId,
        dir: ObjectId,
        name: &Name,
        want: &Content,
    ) -> Option<(Lies, Entry, bool)> {
        let mut inner = lock(&self.inner);
        inner.moved = Some(Instant::now());
        if let Some(token) = inner.bound_files.remove(&object)
            && let Some(entry) = inner.files.remove(&token)
        {
            inner.count_out(&entry);
            let same = entry.content.same(want);
            return Some((self.lies(&entry)?, entry, same));
        }
        for token in inner.bound_dirs.get(&dir).cloned().unwrap_or_default() {
            let Some(part) = inner.dirs.get_mut(&token) else {
                continue;
            };
            let Some(entry) = part.entries.remove(name) else {
                continue;
            };
            let lies = match (&entry.parked, &part.name) {
                (None, None) => Some(Lies::InPlace),
                (None, Some(_)) => self
                    .part_fd(part)
                    .map(|fd| Lies::At(fd, name.as_bytes().into())),
                (Some(_), _) => self.lies(&entry),
            };
            inner.count_out(&entry);
            let same = entry.content.same(want);
            return Some((lies?, entry, same));
        }
        None
    }
    /// The file behind the key, when it has this content.
    pub(super) fn take_key(&self, key: Staged, want: &Content) -> Option<(Lies, Entry)> {
        let mut inner = lock(&self.inner);
        let entry = inner.files.remove(&key.0?)?;
        inner.count_out(&entry);
        if entry.content.same(want) {
            return Some((self.lies(&entry)?, entry));
        }
        self.discard(&entry);
        None
    }
    fn lies(&self, entry: &Entry) -> Option<Lies> {
        let name = entry.parked.clone()?;
        Some(Lies::At(self.sink.clone(), name.into_bytes()))
    }

    /// `dir`, open as `fd`, is about to be seen: what lies in it and nobody took yet waits elsewhere.
    pub(super) fn park(&self, dir: ObjectId, fd: &OwnedFd) -> sys::Result<()> {
        let mut inner = lock(&self.inner);
        for token in inner.bound_dirs.get(&dir).cloned().unwrap_or_default() {
            let Some(part) = inner.dirs.get_mut(&token) else {
                continue;
            };
            if part.name.is_some() {
                continue;
            }
            for (name, entry) in &mut part.entries {
                if entry.parked.is_none() {
                    let parked = self.fresh_name('p');
                    target::rename_noreplace(fd, name.as_bytes(), &*self.sink, parked.as_bytes())?;
                    entry.parked = Some(parked);
                }
            }
        }
        Ok(())
    }
    /// A name in a staged directory is to show something else than what was read ahead for it.
    pub(super) fn make_way(&self, dir: ObjectId, name: &Name, fd: &OwnedFd) -> sys::Result<()> {
        let mut inner = lock(&self.inner);
        for token in inner.bound_dirs.get(&dir).cloned().unwrap_or_default() {
            let Some(part) = inner.dirs.get_mut(&token) else {
                continue;
            };
            if part.name.is_some() {
                continue;
            }
            if let Some(entry) = part.entries.remove(name) {
                inner.count_out(&entry);
                match entry.parked {
                    None => target::unlink(fd, name.as_bytes())?,
                    Some(_) => self.discard(&entry),
                }
            }
        }
        Ok(())
    }
    /// Forgets parts that have nothing left.
    pub(super) fn tidy(&self) {
        let mut inner = lock(&self.inner);
        let Inner {
            dirs, bound_dirs, ..
        } = &mut *inner;
        bound_dirs.retain(|_, tokens| {
            tokens.retain(|token| {
                let Some(part) = dirs.get(token) else {
                    return false;
                };
                if !part.entries.is_empty() {
                    return true;
                }
                if let Some(name) = dirs.remove(token).and_then(|part| part.name) {
                    let _ = target::remove_dir(&*self.sink, name.as_bytes());
                }
                false
            });
            !tokens.is_empty()
        });
    }
    /// Everything staged is not believed any more.
    pub(super) fn forget_all(&self) {
        let mut inner = lock(&self.inner);
        *inner = Inner::default();
    }

    /// Metadata of a file of ours, then what is known of it.
    fn seal(
        &self,
        file: &OwnedFd,
        content: &Content,
        meta: &Meta,
        moded: bool,
    ) -> sys::Result<Entry> {
        let state = State {
            kind: Kind::File(content.clone()),
            meta: meta.clone(),
        };
        let (here, _) = self.rules.here(&state);
        self.rules.make(file, b"", &here.kind, &here.meta, moded)?;
        let local = local_of(&fstat(file)?);
        Ok(Entry {
            content: content.clone(),
            meta: meta.clone(),
            local,
            parked: None,
        })
    }
}

impl Inner {
    fn count_in(&mut self, entry: &Entry) {
        self.files_waiting += 1;
        self.bytes_waiting += entry.content.bytes;
    }
    fn count_out(&mut self, entry: &Entry) {
        self.files_waiting = self.files_waiting.saturating_sub(1);
        self.bytes_waiting = self.bytes_waiting.saturating_sub(entry.content.bytes);
    }
}

impl StagedDir {
    /// A whole small file at once: the cheapest way. `bytes` as in [`super::Fetched::Bytes`], of digest
    /// `content.digest`: the caller has hashed them.
    pub fn put(
        &mut self,
        name: &Name,
        bytes: &[u8],
        content: &Content,
        meta: &Meta,
    ) -> io::Result<()> {
        let rules = &self.staging.rules;
        let special = meta.flags & sys::flags::NOCOW != 0;
        let mode = rules.creation_mode(meta).filter(|_| !special);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let created = Mode::from_raw_mode(mode.unwrap_or(0o600).into());
        let file = openat(&*self.fd, name.as_bytes(), flags, created)?;
        let fill = || -> sys::Result<Entry> {
            if special {
                sys::flags::set_flags(&file, sys::flags::NOCOW, sys::flags::NOCOW)?;
            }
            content::write_checked(&file, content, bytes)?;
            self.staging.seal(&file, content, meta, mode.is_some())
        };
        match fill() {
            Ok(entry) => {
                lock(&self.entries).insert(name.clone(), entry);
                Ok(())
            }
            Err(e) => {
                let _ = target::unlink(&*self.fd, name.as_bytes());
                Err(e.into())
            }
        }
    }
    /// A file to be written in pieces. Finish it before the directory.
    pub fn file(&mut self, name: &Name) -> io::Result<StagedFile> {
        let file = target::create_file(&*self.fd, name.as_bytes())?;
        Ok(StagedFile {
            staging: self.staging.clone(),
            dir: self.fd.clone(),
            name: name.as_bytes().into(),
            goes: Goes::Dir(self.entries.clone(), name.clone()),
            file: Some(file),
            behind: Behind::default(),
        })
    }
    /// No more files come under this token.
    pub fn finish(self) {
        // What can't be registered is fetched again.
        let Ok(stat) = fstat(&*self.fd) else { return };
        let entries = std::mem::take(&mut *lock(&self.entries));
        let mut inner = lock(&self.staging.inner);
        entries.values().for_each(|entry| inner.count_in(entry));
        let part = Part {
            name: Some(self.name),
            local: local_of(&stat),
            entries,
        };
        inner.dirs.insert(self.token, part);
    }
}

impl StagedFile {
    /// Bytes at the offset; what is never written stays a hole. Whoever writes gives every byte of `content.data`.
    pub fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match &self.file {
            Some(file) => {
                content::write_all_at(file, bytes, offset)?;
                self.behind.wrote(file, offset + bytes.len() as u64);
                Ok(())
            }
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
    /// Size, holes and metadata become final. `content.digest` is the caller's word for what it wrote. Returns the file
    /// for [`super::Fetched::Staged`]; one that was begun in a directory, or is bound to its object, is found by that.
    pub fn finish(mut self, content: &Content, meta: &Meta) -> io::Result<Staged> {
        let Some(file) = self.file.take() else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        // Apply flushes it in any case, and keeps all else waiting while a disk takes gigabytes.
        let flush = match &self.goes {
            Goes::File(_) if content.bytes >= FLUSHED_BYTES_MIN => rustix::fs::fdatasync(&file),
            _ => Ok(()),
        };
        let sealed = flush
            .and_then(|()| ftruncate(&file, content.bytes))
            .and_then(|()| self.staging.seal(&file, content, meta, false));
        let mut entry = match sealed {
            Ok(entry) => entry,
            Err(e) => {
                let _ = target::unlink(&*self.dir, &self.name);
                return Err(e.into());
            }
        };
        match &self.goes {
            Goes::Dir(entries, name) => {
                lock(entries).insert(name.clone(), entry);
                Ok(Staged(None))
            }
            Goes::File(token) => {
                entry.parked = String::from_utf8(self.name.clone()).ok();
                let mut inner = lock(&self.staging.inner);
                inner.count_in(&entry);
                inner.files.insert(*token, entry);
                Ok(Staged(Some(*token)))
            }
        }
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = target::unlink(&*self.dir, &self.name);
        }
    }
}
