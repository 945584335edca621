//! Reads one inode as one: attributes and bytes that belong together, by rule C of the change-detection facts.
//!
//! (1) lease probe; refused: the file is *busy* and goes on the hot list, and its pages are write-protected, so that the next
//! store moves ctime. (2) stat, read and hash, stat; differing: again, a few times, then as read (*fuzzy*). Bytes are
//! *proven* when the probe was granted, the stat stood still, and ctime is older than the clock's grain: whoever opens or
//! maps the file after the probe moves ctime with the first byte. A lease is never held; nothing here makes a writer wait.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mirror_core::reconcile::{Body, Failure, ReadEnd, Reading, Seen};
use mirror_core::{Content, Digest, Kind, Meta, Name, Time};
use rustix::fs::FileType;

use super::sink::{Sink, SinkDir, SinkFile};
use crate::planted;
use crate::sys::stat::Stat;
use crate::sys::{Errno, flags, holes, lease, open, stat, xattr};

/// Pieces in which large files are read.
const PIECE_BYTES: usize = 1 << 20;
/// Ranges of data in a sparse file; a file with more is taken as dense from there on.
const RANGES_MAX: usize = 65_536;
/// Reads of a file that changes under us before it is taken as read.
const TRIES_MAX: u32 = 3;
/// A file larger than this is read by a thread of its own when the capture loop meets it.
pub const APART_BYTES: u64 = 1 << 20;
/// How often it is asked whether a file that is being read still has a name.
const LINKED_EVERY_BYTES: u64 = 64 << 20;

#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Content up to here is returned in memory; larger goes to the sink.
    pub inline_bytes_max: u64,
    /// Larger files are read by threads of their own.
    pub apart_bytes: u64,
    /// A change always shows in ctime after a look (Linux 6.13). Before, a recent ctime proves nothing.
    pub multigrain: bool,
    /// Probe for writers with a momentary lease.
    pub lease: bool,
    /// Once it is set, nothing is read to its end any more.
    pub stop: Arc<AtomicBool>,
    /// Bytes read so far, for whoever wonders whether anything goes on.
    pub done: Arc<AtomicU64>,
}

impl Default for ReadOptions {
    fn default() -> ReadOptions {
        ReadOptions {
            inline_bytes_max: 64 << 10,
            apart_bytes: APART_BYTES,
            multigrain: multigrain(),
            lease: true,
            stop: Arc::default(),
            done: Arc::default(),
        }
    }
}

/// Whether this kernel is 6.13 or later.
fn multigrain() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (6, 13)
}

/// Where the bytes of a larger file go.
pub enum Into<'a> {
    Sink(&'a dyn Sink),
    /// A directory being staged: small files too.
    Dir(&'a mut dyn SinkDir),
}

/// Reusable buffers of one reader.
pub struct Reader {
    pub options: ReadOptions,
    buffer: Vec<u8>,
}

pub fn seen(found: &Stat, handle: mirror_core::Handle) -> Seen {
    Seen {
        handle,
        ino: found.ino,
        mode: u32::from(found.mode),
        nlink: found.nlink,
        uid: found.uid,
        gid: found.gid,
        bytes: found.bytes,
        blocks: found.blocks,
        rdev: found.rdev,
        mtime: found.mtime,
        ctime: found.ctime,
        btime: found.btime,
    }
}

fn failure(step: &'static str, error: Errno) -> Failure {
    Failure {
        step,
        reason: std::io::Error::from(error).to_string(),
    }
}

/// Why a try at reading ended without a result.
enum Stopped {
    Moved,
    Failed(Failure),
}

type Tried<T> = Result<T, Stopped>;

fn at_step(step: &'static str) -> impl Fn(Errno) -> Stopped {
    move |error| match error {
        Errno::NOENT | Errno::STALE | Errno::LOOP | Errno::NOTDIR => Stopped::Moved,
        error => Stopped::Failed(failure(step, error)),
    }
}

struct Bytes {
    content: Content,
    body: Body,
    stat: Stat,
    busy: bool,
}

impl Reader {
    pub fn new(options: ReadOptions) -> Reader {
        Reader {
            options,
            buffer: Vec::new(),
        }
    }

    /// Reads `name` in `dir` (`None`: `dir` itself), which was just seen as `seen`.
    pub fn read(
        &mut self,
        dir: &OwnedFd,
        name: Option<&Name>,
        seen: &Seen,
        content: bool,
        into: Into<'_>,
    ) -> ReadEnd {
        let read = self.try_read(dir, name, seen, content, into);
        self.ended(read)
    }

    fn ended(&self, read: Tried<Reading>) -> ReadEnd {
        match read {
            Ok(mut reading) => {
                if !self.settled(reading.seen.ctime) {
                    // A later change may get the same stamp.
                    reading.seen.ctime = Time::default();
                }
                ReadEnd::Done(reading)
            }
            Err(Stopped::Moved) => ReadEnd::Moved,
            Err(Stopped::Failed(failure)) => ReadEnd::Failed(failure),
        }
    }

    /// Reads a regular file that is open, and that `found` is the stat of; its handle tells which.
    pub fn read_open(
        &mut self,
        fd: &OwnedFd,
        name: &Name,
        found: Stat,
        handle: mirror_core::Handle,
        into: Into<'_>,
    ) -> ReadEnd {
        let want = seen(&found, handle);
        let read = self.read_file_seen(fd.as_fd(), name, found, &want, true, into);
        self.ended(read)
    }

    fn try_read(
        &mut self,
        dir: &OwnedFd,
        name: Option<&Name>,
        want: &Seen,
        content: bool,
        into: Into<'_>,
    ) -> Tried<Reading> {
        let Some(name) = name else {
            return self.read_dir(dir.as_fd(), want);
        };
        let kind = FileType::from_raw_mode(want.mode);
        match kind {
            FileType::RegularFile => {
                let fd = match open::file(dir, name.as_bytes()) {
                    Ok(fd) => fd,
                    Err(e) => return Err(at_step("open")(e)),
                };
                self.read_file(fd.as_fd(), name, want, content, into)
            }
            FileType::Directory => {
                let fd = open::dir(dir, name.as_bytes()).map_err(at_step("open"))?;
                self.read_dir(fd.as_fd(), want)
            }
            kind => self.read_node(dir, name, want, kind),
        }
    }

    fn read_dir(&self, fd: std::os::fd::BorrowedFd<'_>, want: &Seen) -> Tried<Reading> {
        let found = stat::fstat(fd).map_err(at_step("stat"))?;
        same(&found, want)?;
        let meta = meta_of(fd, b"", &found, true)?;
        Ok(Reading {
            seen: seen(&found, want.handle.clone()),
            meta,
            kind: Some(Kind::Dir),
            body: Body::None,
            busy: false,
        })
    }

    fn read_node(&self, dir: &OwnedFd, name: &Name, want: &Seen, kind: FileType) -> Tried<Reading> {
        // O_PATH pins the inode, so that target, attributes and identity are of one thing.
        let fd = open::path(dir, name.as_bytes()).map_err(at_step("open"))?;
        let found = stat::fstat(&fd).map_err(at_step("stat"))?;
        same(&found, want)?;
        let kind = match kind {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&fd, c"", Vec::with_capacity(256))
                    .map_err(at_step("read"))?;
                Kind::Symlink(target.into_bytes().into())
            }
            FileType::BlockDevice => Kind::Device {
                block: true,
                major: found.rdev.0,
                minor: found.rdev.1,
            },
            FileType::CharacterDevice => Kind::Device {
                block: false,
                major: found.rdev.0,
                minor: found.rdev.1,
            },
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            _ => return Err(Stopped::Failed(failure("read", Errno::OPNOTSUPP))),
        };
        let mut meta = meta_of(fd.as_fd(), b"", &found, false)?;
        if matches!(kind, Kind::Symlink(_)) {
            meta.mode = 0o777;
        }
        Ok(Reading {
            seen: seen(&found, want.handle.clone()),
            meta,
            kind: Some(kind),
            body: Body::None,
            busy: false,
        })
    }

    fn read_file(
        &mut self,
        fd: std::os::fd::BorrowedFd<'_>,
        name: &Name,
        want: &Seen,
        content: bool,
        into: Into<'_>,
    ) -> Tried<Reading> {
        let found = stat::fstat(fd).map_err(at_step("stat"))?;
        same(&found, want)?;
        self.read_file_seen(fd, name, found, want, content, into)
    }

    fn read_file_seen(
        &mut self,
        fd: std::os::fd::BorrowedFd<'_>,
        name: &Name,
        found: Stat,
        want: &Seen,
        content: bool,
        into: Into<'_>,
    ) -> Tried<Reading> {
        if !content {
            let meta = meta_of(fd, b"", &found, true)?;
            return Ok(Reading {
                seen: seen(&found, want.handle.clone()),
                meta,
                kind: None,
                body: Body::None,
                busy: self.options.lease && lease::writable_by_anyone(fd).unwrap_or(false),
            });
        }
        let mut meta = meta_of(fd, b"", &found, true)?;
        let bytes = self.read_bytes(fd, name, &mut meta, found, into)?;
        let stat = bytes.stat;
        meta.mode = stat.permissions();
        (meta.uid, meta.gid, meta.mtime) = (stat.uid, stat.gid, stat.mtime);
        Ok(Reading {
            seen: seen(&stat, want.handle.clone()),
            meta,
            kind: Some(Kind::File(bytes.content)),
            body: bytes.body,
            busy: bytes.busy,
        })
    }

    fn read_bytes(
        &mut self,
        fd: std::os::fd::BorrowedFd<'_>,
        name: &Name,
        meta: &mut Meta,
        first: Stat,
        mut into: Into<'_>,
    ) -> Tried<Bytes> {
        let mut before = first;
        let mut tries = 0;
        loop {
            tries += 1;
            // `None`: nobody can tell (no right to ask, or no leases here).
            let writers = match self.options.lease {
                true => lease::writable_by_anyone(fd).ok(),
                false => None,
            };
            if writers == Some(true) && !planted::is("trust_unproven") {
                // Not every file system can; then the hot list's last re-read is what counts.
                let _ = lease::write_protect(fd);
                before = stat::fstat(fd).map_err(at_step("stat"))?;
            }
            let (mut content, body) = self.hash(fd, name, meta, &before, &mut into)?;
            let after = stat::fstat(fd).map_err(at_step("stat"))?;
            let still = after.ctime == before.ctime
                && after.mtime == before.mtime
                && after.bytes == before.bytes;
            // A large file that is still being written is read again in its own time, not at once.
            let rests = || {
                before.bytes.max(after.bytes) <= self.options.apart_bytes
                    || !(self.options.lease && lease::writable_by_anyone(fd).unwrap_or(false))
            };
            if !still && tries < TRIES_MAX && rests() {
                forget(&body, &into);
                before = after;
                *meta = meta_of(fd, b"", &after, true)?;
                continue;
            }
            // A writer that came after the probe moved ctime, be it by its first store through a mapping.
            content.fuzzy = !still;
            content.proven = still && writers == Some(false) && self.settled(after.ctime)
                || planted::is("trust_unproven");
            return Ok(Bytes {
                content,
                body,
                stat: after,
                busy: !still || writers == Some(true),
            });
        }
    }

    /// Old enough that a later change can't hide in the same tick.
    fn settled(&self, ctime: Time) -> bool {
        if self.options.multigrain {
            return true;
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let age = (now.tv_sec - ctime.seconds).saturating_mul(1_000_000_000)
            + (now.tv_nsec - i64::from(ctime.nanos));
        age > 20_000_000
    }

    /// One pass over the bytes: hash them, and hand them on.
    fn hash(
        &mut self,
        fd: std::os::fd::BorrowedFd<'_>,
        name: &Name,
        meta: &Meta,
        of: &Stat,
        into: &mut Into<'_>,
    ) -> Tried<(Content, Body)> {
        // Blocks say nothing: room allocated beyond the end hides a hole.
        let data = if of.bytes > 0 {
            holes::data_ranges(fd, of.bytes, RANGES_MAX).map_err(at_step("read"))?
        } else {
            Vec::new()
        };
        let length = |data: &[(u64, u64)]| match data {
            [] => of.bytes,
            _ => data.iter().map(|(_, length)| length).sum(),
        };
        if length(&data) <= self.options.inline_bytes_max {
            return self.hash_small(fd, name, meta, of.bytes, data, into);
        }
        let data = holes::written_ranges(fd, of.bytes, RANGES_MAX).map_err(at_step("read"))?;
        if length(&data) <= self.options.inline_bytes_max {
            return self.hash_small(fd, name, meta, of.bytes, data, into);
        }
        let mut out: Option<(u64, Box<dyn SinkFile>)> = match into {
            Into::Sink(sink) => sink.file(),
            Into::Dir(dir) => dir.file(name).ok().map(|file| (0, file)),
        };
        let ranges: Vec<(u64, u64)> = if data.is_empty() {
            vec![(0, of.bytes)]
        } else {
            data.clone()
        };
        let mut hasher = hasher(of.bytes, &data);
        self.buffer.resize(PIECE_BYTES, 0);
        let mut bytes = of.bytes;
        let mut ask_at = LINKED_EVERY_BYTES;
        let mut read = 0;
        'ranges: for (start, length) in ranges {
            let mut done = 0;
            while done < length {
                let mut over = None;
                if self.options.stop.load(Ordering::Acquire) {
                    over = Some(Errno::CANCELED);
                } else if read >= ask_at {
                    // Removed: nobody wants it any more.
                    ask_at = read + LINKED_EVERY_BYTES;
                    over = matches!(stat::fstat(fd), Ok(now) if now.nlink == 0)
                        .then_some(Errno::NOENT);
                }
                if let Some(why) = over {
                    if let (Some((token, _)), Into::Sink(sink)) = (&out, &*into) {
                        sink.forget(*token);
                    }
                    return Err(at_step("read")(why));
                }
                let want = usize::try_from(length - done)
                    .unwrap_or(PIECE_BYTES)
                    .min(PIECE_BYTES);
                let piece = self.buffer.get_mut(..want).unwrap_or_default();
                let n = read_at(fd, piece, start + done).map_err(at_step("read"))?;
                if n == 0 {
                    // It became shorter: what is here is what there is; the second stat tells.
                    bytes = start + done;
                    break 'ranges;
                }
                let piece = self.buffer.get(..n).unwrap_or_default();
                hasher.update(piece);
                let bytes = piece.len() as u64;
                self.options.done.fetch_add(bytes, Ordering::Relaxed);
                if let Some((token, file)) = &mut out
                    && file.write_at(piece, start + done).is_err()
                {
                    if let (Into::Sink(sink), token) = (&*into, *token) {
                        sink.forget(token);
                    }
                    out = None;
                }
                done += n as u64;
                read += n as u64;
            }
        }
        if bytes != of.bytes && !data.is_empty() {
            // A digest over ranges that are not there any more says nothing: try again.
            return Err(Stopped::Moved);
        }
        let content = Content {
            bytes,
            digest: Digest(*hasher.finalize().as_bytes()),
            data,
            proven: false,
            fuzzy: false,
        };
        let body = match out {
            Some((token, file)) => match (file.finish(&content, meta), &*into) {
                (Ok(()), Into::Sink(_)) => Body::Token(token),
                (Ok(()), Into::Dir(_)) => Body::None,
                (Err(_), Into::Sink(sink)) => {
                    sink.forget(token);
                    Body::None
                }
                (Err(_), Into::Dir(_)) => Body::None,
            },
            None => Body::None,
        };
        Ok((content, body))
    }

    /// Fills the buffer with the bytes of these ranges (none: of the whole file). True: the file is shorter by now.
    fn gather(
        &mut self,
        fd: std::os::fd::BorrowedFd<'_>,
        bytes: u64,
        data: &[(u64, u64)],
    ) -> Tried<bool> {
        let whole = [(0, bytes)];
        let ranges = if data.is_empty() { &whole } else { data };
        self.buffer.clear();
        for &(start, length) in ranges {
            let from = self.buffer.len();
            let want = usize::try_from(length).unwrap_or(0);
            self.buffer.resize(from + want, 0);
            let mut done = 0;
            while done < want {
                let piece = self.buffer.get_mut(from + done..).unwrap_or_default();
                let n = read_at(fd, piece, start + done as u64).map_err(at_step("read"))?;
                if n == 0 {
                    break;
                }
                done += n;
            }
            if done < want {
                self.buffer.truncate(from + done);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a block of zeros is in what was gathered.
    fn zeros_gathered(&self, bytes: u64, data: &[(u64, u64)]) -> bool {
        let whole = [(0, bytes)];
        let ranges = if data.is_empty() { &whole } else { data };
        let mut rest = self.buffer.as_slice();
        ranges.iter().any(|&(start, length)| {
            let length = usize::try_from(length).map_or(rest.len(), |n| n.min(rest.len()));
            let (piece, after) = rest.split_at(length);
            rest = after;
            holes::has_zero_block(piece, start)
        })
    }

    fn hash_small(
        &mut self,
        fd: std::os::fd::BorrowedFd<'_>,
        name: &Name,
        meta: &Meta,
        bytes: u64,
        mut data: Vec<(u64, u64)>,
        into: &mut Into<'_>,
    ) -> Tried<(Content, Body)> {
        let mut short = self.gather(fd, bytes, &data)?;
        // Zeros may be what was allocated ahead and never written.
        if !short && self.zeros_gathered(bytes, &data) {
            let written = holes::written_ranges(fd, bytes, RANGES_MAX).map_err(at_step("read"))?;
            if written != data {
                data = written;
                short = self.gather(fd, bytes, &data)?;
            }
        }
        if short && !data.is_empty() {
            return Err(Stopped::Moved);
        }
        let bytes = if short {
            self.buffer.len() as u64
        } else {
            bytes
        };
        let mut hasher = hasher(bytes, &data);
        hasher.update(&self.buffer);
        let content = Content {
            bytes,
            digest: Digest(*hasher.finalize().as_bytes()),
            data,
            proven: false,
            fuzzy: false,
        };
        let body = match into {
            Into::Sink(_) => Body::Bytes(self.buffer.clone()),
            // What staging can't take is asked for again by apply, which then says why it can't.
            Into::Dir(dir) => {
                let _ = dir.put(name, &self.buffer, &content, meta);
                Body::None
            }
        };
        Ok((content, body))
    }
}

fn forget(body: &Body, into: &Into<'_>) {
    if let (Body::Token(token), Into::Sink(sink)) = (body, into) {
        sink.forget(*token);
    }
}

/// blake3, begun as [`Content::digest`] says.
pub fn hasher(bytes: u64, data: &[(u64, u64)]) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    if !data.is_empty() {
        hasher.update(b"fs_mirror sparse 1");
        hasher.update(&bytes.to_le_bytes());
        hasher.update(&(data.len() as u64).to_le_bytes());
        for (start, length) in data {
            hasher.update(&start.to_le_bytes());
            hasher.update(&length.to_le_bytes());
        }
    }
    hasher
}

fn read_at(fd: std::os::fd::BorrowedFd<'_>, piece: &mut [u8], offset: u64) -> Result<usize, Errno> {
    loop {
        match rustix::io::pread(fd, &mut *piece, offset) {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

fn same(found: &Stat, want: &Seen) -> Tried<()> {
    let same = found.ino == want.ino
        && found.btime == want.btime
        && u32::from(found.mode) & 0o170000 == want.mode & 0o170000;
    if same { Ok(()) } else { Err(Stopped::Moved) }
}

/// The inode that was seen, in the same state: its identity is what it was. Without a birth time a number used again
/// within one tick of the clock would not show.
pub fn same_state(found: &Stat, then: &Seen) -> bool {
    found.btime != Time::default()
        && (found.ino, found.btime) == (then.ino, then.btime)
        && (found.ctime, found.mtime) == (then.ctime, then.mtime)
        && (found.bytes, u32::from(found.mode)) == (then.bytes, then.mode)
        && (found.nlink, found.uid, found.gid) == (then.nlink, then.uid, then.gid)
}

fn meta_of(
    fd: std::os::fd::BorrowedFd<'_>,
    name: &[u8],
    found: &Stat,
    has_flags: bool,
) -> Tried<Meta> {
    let xattrs = xattr::read(fd, name).map_err(at_step("read attributes of"))?;
    let flags = if has_flags {
        flags::get(fd)
            .map_err(at_step("read flags of"))?
            .unwrap_or_default()
    } else {
        flags::Flags::default()
    };
    Ok(Meta {
        mode: found.permissions(),
        uid: found.uid,
        gid: found.gid,
        mtime: found.mtime,
        xattrs,
        flags: flags.flags & Meta::FLAGS_KEPT,
        project: flags.project,
    })
}
