//! The catalogue: which name stood for what, and what state objects were in, before each group. Append-only segments; an
//! authority, not derived from anything. Chapter "Catalogue" of `docs/FORMAT.md`.

mod frames;
mod mend;

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use mirror_core::history::asof::{NameWas, ObjectWas};
use mirror_core::history::{Moment, Row, Was};
use mirror_core::{At, Digest, Name, ObjectId, Who};

use super::format::{self, Dated, FRAME, FrameKind};
use super::keys::{self, Keys, KeysFile, Kind, Loc, Table, Time};
use super::spare;
use super::walk as walking;
use crate::disk::{Disk, DiskFile, replace_file};
use crate::sync::lock;
pub(super) use frames::is_damage;
use frames::{read_frame, walk};
pub use mend::{Finding, Known, Lost};

pub const DIR: &str = "catalogue";
const MAGIC: [u8; 8] = *b"FSM.CAT\n";
const VERSION: u32 = 1;
const HEADER: usize = 128;
/// A segment that has grown so large is sealed, and another one begun.
pub const SEGMENT_BYTES_MAX: u64 = 8 << 20;
/// Frames read lately.
const FRAMES_KEPT: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error("cannot {what} {name} of the history")]
    Io {
        what: &'static str,
        name: String,
        source: io::Error,
    },
    #[error("the history is damaged: {name}, at byte {offset}: {what}")]
    Damaged {
        name: String,
        offset: u64,
        what: &'static str,
    },
    #[error("{name} of the history was written by a newer version")]
    Newer { name: String },
    #[error("{name} is the history of another tree")]
    OtherTree { name: String },
}

type Result<T> = std::result::Result<T, CatalogueError>;

/// A row that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub moment: Moment,
    pub row: Row,
    pub who: Option<Who>,
}

struct Segment {
    number: u64,
    len: u64,
    last: Moment,
    /// Replaced when it was damaged and is made again.
    parts: Mutex<Arc<Parts>>,
    /// Nothing is left to make it from.
    hopeless: AtomicBool,
}

struct Parts {
    file: Arc<dyn DiskFile>,
    table: Table,
}

impl Segment {
    fn new(number: u64, len: u64, last: Moment, file: Arc<dyn DiskFile>, table: Table) -> Segment {
        Segment {
            number,
            len,
            last,
            parts: Mutex::new(Arc::new(Parts { file, table })),
            hopeless: AtomicBool::new(false),
        }
    }
    fn parts(&self) -> Arc<Parts> {
        lock(&self.parts).clone()
    }
    /// While nobody else has them.
    fn parts_mut(&mut self) -> Option<&mut Parts> {
        let parts = self.parts.get_mut();
        Arc::get_mut(parts.unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// See the module.
pub struct Catalogue {
    disk: Arc<dyn Disk>,
    tree: [u8; 16],
    segments: Vec<Segment>,
    /// The last one takes more.
    open: bool,
    head: Digest,
    /// Something appended is not flushed.
    dirty: bool,
    broken: Broken,
    frames: Mutex<Vec<(u64, u32, Arc<Vec<u8>>)>>,
    segment_bytes_max: u64,
    /// What was damaged and is not any more, to be told.
    told: Mutex<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    No,
    /// Some of a write may be there, behind the end.
    Write,
    /// What is in the page cache is not believed until it is opened again.
    Flush,
}

fn name_of(number: u64) -> String {
    format!("{DIR}/{number:016x}.rows")
}
fn keys_name(number: u64) -> String {
    format!("{DIR}/{number:016x}.keys")
}
fn spare_name(number: u64) -> String {
    format!("{DIR}/{number:016x}.spare")
}

fn io_error(
    what: &'static str,
    name: impl Into<String>,
) -> impl FnOnce(io::Error) -> CatalogueError {
    let name = name.into();
    move |source| CatalogueError::Io { what, name, source }
}

impl Catalogue {
    fn check_header(&self, name: &str, file: &Arc<dyn DiskFile>) -> Result<()> {
        let mut header = [0; HEADER];
        let got = file
            .read_at(0, &mut header)
            .map_err(io_error("read", name))?;
        let damaged = |what| CatalogueError::Damaged {
            name: name.into(),
            offset: 0,
            what,
        };
        if got < HEADER || header[..8] != MAGIC {
            return Err(damaged("it does not begin as it must"));
        }
        let small = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..]);
        if small(12) != crc {
            return Err(damaged("its beginning is damaged"));
        }
        if small(8) > VERSION {
            return Err(CatalogueError::Newer { name: name.into() });
        }
        if header[16..32] != self.tree {
            return Err(CatalogueError::OtherTree { name: name.into() });
        }
        Ok(())
    }

    /// The last group that is in it.
    pub fn last(&self) -> Option<Moment> {
        let lasts = self.segments.iter().rev().map(|segment| segment.last);
        lasts.into_iter().find(|last| *last > Moment(0))
    }

    /// Groups in order; what is in it already is left out.
    pub fn append(&mut self, groups: &[Dated]) -> Result<()> {
        let last = self.last();
        let known = groups.partition_point(|dated| Some(dated.group.moment) <= last);
        let groups = groups.get(known..).unwrap_or_default();
        if groups.is_empty() {
            return Ok(());
        }
        match self.broken {
            Broken::No => {}
            Broken::Write => self.take_back()?,
            Broken::Flush => return Err(io_error("write", DIR)(unflushed())),
        }
        if !self.open {
            self.begin()?;
        }
        let head = &mut self.head;
        let Some(segment) = self.segments.last_mut() else {
            return Ok(());
        };
        let name = name_of(segment.number);
        let mut len = segment.len;
        let Some(Parts {
            file,
            table: Table::Memory(keys),
        }) = segment.parts_mut()
        else {
            let what = io::Error::other("it is being read");
            return Err(io_error("write", name)(what));
        };
        self.broken = Broken::Write;
        let packed = format::pack(groups, |body| {
            let (frame, after) = format::frame(FrameKind::Groups, body.goes_on, body.bytes, head);
            let at = u32::try_from(len).map_err(io::Error::other)?;
            file.append(&frame)?;
            len += frame.len() as u64;
            *head = after;
            for placed in body.placed {
                keys.add(placed, at);
            }
            for (moment, there_ns, here_ns) in body.groups {
                keys.add_time(Time {
                    moment: *moment,
                    there_ns: *there_ns,
                    here_ns: *here_ns,
                    frame: at,
                });
            }
            Ok(())
        });
        packed.map_err(io_error("write", name))?;
        self.broken = Broken::No;
        self.dirty = true;
        segment.len = len;
        segment.last = groups
            .last()
            .map_or(segment.last, |dated| dated.group.moment);
        if len >= self.segment_bytes_max {
            self.seal()?;
        }
        Ok(())
    }

    /// What a write left that failed goes, and the keys are those of what is there.
    fn take_back(&mut self) -> Result<()> {
        let Some(segment) = self.segments.last_mut() else {
            return Ok(());
        };
        let (name, len) = (name_of(segment.number), segment.len);
        let file = segment.parts().file.clone();
        file.truncate(len).map_err(io_error("shorten", &name))?;
        let walked = walk(&file, len).map_err(io_error("read", &name))?;
        if let Some((offset, what)) = walked.bad {
            return Err(CatalogueError::Damaged { name, offset, what });
        }
        self.head = walked.head;
        let table = Table::Memory(walked.keys);
        *lock(&segment.parts) = Arc::new(Parts { file, table });
        self.broken = Broken::No;
        Ok(())
    }

    /// Makes all of it durable.
    pub fn flush(&mut self) -> Result<()> {
        if self.broken == Broken::Flush {
            return Err(io_error("flush", DIR)(unflushed()));
        }
        if self.dirty
            && let Some(segment) = self.segments.last()
            && let Err(source) = segment.parts().file.flush()
        {
            self.broken = Broken::Flush;
            return Err(io_error("flush", name_of(segment.number))(source));
        }
        self.dirty = false;
        Ok(())
    }

    /// What a segment begins with that follows all there is.
    fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..32].copy_from_slice(&self.tree);
        header[32..64].copy_from_slice(&self.head.0);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..]);
        header[12..16].copy_from_slice(&crc.to_le_bytes());
        header
    }

    fn begin(&mut self) -> Result<()> {
        let number = self.segments.last().map_or(1, |last| last.number + 1);
        let name = name_of(number);
        let header = self.header();
        replace_file(&*self.disk, &name, &header).map_err(io_error("make", &name))?;
        let file = self.disk.open(&name).map_err(io_error("open", &name))?;
        let last = self.last().unwrap_or_default();
        let table = Table::Memory(Keys::default());
        let len = HEADER as u64;
        self.segments
            .push(Segment::new(number, len, last, file, table));
        self.open = true;
        Ok(())
    }

    /// The newest segment takes no more: a spare is made of it, and its keys go to a file.
    fn seal(&mut self) -> Result<()> {
        self.flush()?;
        let head = self.head;
        let Some(segment) = self.segments.last() else {
            return Ok(());
        };
        let parts = segment.parts();
        if let Table::Memory(keys) = &parts.table {
            self.make_spare(segment.number, &parts.file, segment.len)?;
            let keys = self.make_keys(segment.number, keys, segment.len, &head)?;
            let file = parts.file.clone();
            let table = Table::File(keys);
            *lock(&segment.parts) = Arc::new(Parts { file, table });
        }
        self.open = false;
        Ok(())
    }

    fn make_keys(&self, number: u64, keys: &Keys, of: u64, head: &Digest) -> Result<KeysFile> {
        let name = keys_name(number);
        let bytes = keys::encode(keys, of, head);
        replace_file(&*self.disk, &name, &bytes).map_err(io_error("write", &name))?;
        let file = self.disk.open(&name).map_err(io_error("open", &name))?;
        KeysFile::open(file).map_err(io_error("read", &name))
    }

    fn make_spare(&self, number: u64, file: &Arc<dyn DiskFile>, len: u64) -> Result<()> {
        let name = spare_name(number);
        let bytes = spare::encode(file, len).map_err(io_error("pack", name_of(number)))?;
        replace_file(&*self.disk, &name, &bytes).map_err(io_error("write", name))
    }

    /// Entries from this key on, in order, until `each` is false. What is damaged is made again on the way, if it can be.
    fn from(
        &self,
        segment: &Segment,
        key: &[u8],
        each: &mut dyn FnMut(&[u8], Loc) -> io::Result<bool>,
    ) -> Result<()> {
        let mut told: Option<Vec<u8>> = None;
        self.mending(segment, &mut |parts| {
            let from = told.clone().unwrap_or_else(|| key.to_vec());
            parts.table.from(&from, &mut |key, loc| {
                if told.as_deref() == Some(key) {
                    return Ok(true);
                }
                told = Some(key.to_vec());
                each(key, loc)
            })
        })
    }

    fn time_of(&self, segment: &Segment, n: u64) -> Result<Time> {
        self.mending(segment, &mut |parts| parts.table.time(n))
    }
    fn times_until(&self, segment: &Segment, is_after: &dyn Fn(&Time) -> bool) -> Result<u64> {
        self.mending(segment, &mut |parts| parts.table.times_until(is_after))
    }

    /// Does something with a segment, once more if it was damaged and could be made again.
    fn mending<T>(
        &self,
        segment: &Segment,
        act: &mut dyn FnMut(&Parts) -> io::Result<T>,
    ) -> Result<T> {
        let damaged = |e: io::Error| match is_damage(&e) {
            true => CatalogueError::Damaged {
                name: name_of(segment.number),
                offset: 0,
                what: "it can't be read, nor can it be made again (`fs_mirror verify --against history` tells more)",
            },
            false => io_error("read", name_of(segment.number))(e),
        };
        match act(&segment.parts()) {
            Err(e) if is_damage(&e) && self.mend(segment) => act(&segment.parts()).map_err(damaged),
            done => done.map_err(damaged),
        }
    }

    fn body(&self, segment: &Segment, frame: u32) -> Result<Arc<Vec<u8>>> {
        let key = (segment.number, frame);
        {
            let mut kept = lock(&self.frames);
            if let Some(at) = kept.iter().position(|(n, f, _)| (*n, *f) == key) {
                let found = kept.remove(at);
                let body = found.2.clone();
                kept.push(found);
                return Ok(body);
            }
        }
        let mut bytes = self.mending(segment, &mut |parts| {
            let bytes = read_frame(&parts.file, u64::from(frame))?;
            bytes.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        })?;
        bytes.drain(..FRAME);
        let body = Arc::new(bytes);
        let mut kept = lock(&self.frames);
        if kept.len() >= FRAMES_KEPT {
            kept.remove(0);
        }
        kept.push((segment.number, frame, body.clone()));
        Ok(body)
    }

    fn row(&self, segment: &Segment, moment: Moment, loc: Loc) -> Result<Found> {
        let body = self.body(segment, loc.frame)?;
        let (row, who) = format::row_at(&body, loc.row).map_err(|_| CatalogueError::Damaged {
            name: name_of(segment.number),
            offset: u64::from(loc.frame) + FRAME as u64 + u64::from(loc.row),
            what: "a row can't be read",
        })?;
        Ok(Found { moment, row, who })
    }

    /// The first row after `moment` among those of keys that `key` makes of moments.
    fn first_after(
        &self,
        moment: Moment,
        key: &dyn Fn(Moment) -> Vec<u8>,
    ) -> Result<Option<Found>> {
        let (from, to) = (key(Moment(moment.0.saturating_add(1))), key(Moment::MAX));
        for segment in self.segments.iter().filter(|s| s.last > moment) {
            let mut first = None;
            self.from(segment, &from, &mut |key, loc| {
                if key <= to.as_slice()
                    && let Some(moment) = key.last_chunk::<8>()
                {
                    first = Some((Moment(u64::from_be_bytes(*moment)), loc));
                }
                Ok(false)
            })?;
            if let Some((moment, loc)) = first {
                return self.row(segment, moment, loc).map(Some);
            }
        }
        Ok(None)
    }

    pub fn name_after(&self, at: &At, moment: Moment) -> Result<Option<Found>> {
        let key = |moment| keys::name_key(at.parent, at.name.as_bytes(), moment);
        self.first_after(moment, &key)
    }
    pub fn object_after(&self, id: ObjectId, kind: Kind, moment: Moment) -> Result<Option<Found>> {
        self.first_after(moment, &|moment| keys::object_key(id, kind, moment))
    }

    /// All rows of a name, or of an object, after one moment and up to another, oldest first, at most `max`.
    fn all(
        &self,
        key: &dyn Fn(Moment) -> Vec<u8>,
        (after, until): (Moment, Moment),
        max: usize,
    ) -> Result<Vec<Found>> {
        let (from, to) = (key(Moment(after.0.saturating_add(1))), key(until));
        let mut found = Vec::new();
        for segment in self.segments.iter().filter(|s| s.last > after) {
            let mut locs = Vec::new();
            self.from(segment, &from, &mut |key, loc| {
                let within = key <= to.as_slice() && found.len() + locs.len() < max;
                if within && let Some(moment) = key.last_chunk::<8>() {
                    locs.push((Moment(u64::from_be_bytes(*moment)), loc));
                }
                Ok(within)
            })?;
            for (moment, loc) in locs {
                found.push(self.row(segment, moment, loc)?);
            }
        }
        Ok(found)
    }
    pub fn rows_of_name(
        &self,
        at: &At,
        between: (Moment, Moment),
        max: usize,
    ) -> Result<Vec<Found>> {
        let key = |moment| keys::name_key(at.parent, at.name.as_bytes(), moment);
        self.all(&key, between, max)
    }
    pub fn rows_of_object(
        &self,
        id: ObjectId,
        kind: Kind,
        between: (Moment, Moment),
        max: usize,
    ) -> Result<Vec<Found>> {
        self.all(&|moment| keys::object_key(id, kind, moment), between, max)
    }

    /// For each name of a directory with rows after `moment` the first of them, in order of names after `after`.
    pub fn names_after(
        &self,
        dir: ObjectId,
        moment: Moment,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, Found)>> {
        let mut found: std::collections::BTreeMap<Name, (usize, Moment, Loc)> = Default::default();
        let mut end: Option<Name> = None;
        let mut from = keys::name_prefix(dir, after.map_or(b"", |name| name.as_bytes()));
        if after.is_some() {
            // Past all moments of that name, before any longer one.
            from.push(0);
            from.extend_from_slice(&[0xff; 9]);
        }
        for (n, segment) in self.segments.iter().enumerate() {
            if segment.last <= moment {
                continue;
            }
            let (mut names, mut last) = (0, None);
            self.from(segment, &from, &mut |key, loc| {
                let Some((name, at)) = keys::name_of(key, dir) else {
                    return Ok(false);
                };
                if at <= moment || last.as_ref() == Some(&name) {
                    return Ok(true);
                }
                if names == max {
                    return Ok(false);
                }
                names += 1;
                last = Some(name.clone());
                found.entry(name).or_insert((n, at, loc));
                Ok(true)
            })?;
            // It may know more names beyond.
            if names == max {
                end = match (end, last) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
        }
        let mut out = Vec::new();
        for (name, (n, at, loc)) in found {
            if end.as_ref().is_some_and(|end| name > *end) || out.len() >= max {
                break;
            }
            if let Some(segment) = self.segments.get(n) {
                out.push((name, self.row(segment, at, loc)?));
            }
        }
        Ok(out)
    }

    /// Groups after one moment and up to another, oldest first, until `each` is false.
    pub fn groups(
        &self,
        (after, until): (Moment, Moment),
        each: &mut dyn FnMut(Dated) -> bool,
    ) -> Result<()> {
        for segment in self.segments.iter().filter(|s| s.last > after) {
            let first = self.times_until(segment, &|time| time.moment > after)?;
            if first >= segment.parts().table.times() {
                continue;
            }
            let mut at = self.time_of(segment, first)?.frame;
            while u64::from(at) < segment.len {
                let body = self.body(segment, at)?;
                let damaged = |_| CatalogueError::Damaged {
                    name: name_of(segment.number),
                    offset: at.into(),
                    what: "a row can't be read",
                };
                for (dated, _) in format::unpack(&body).map_err(damaged)? {
                    let moment = dated.group.moment;
                    if moment > until {
                        return Ok(());
                    }
                    if moment > after && !each(dated) {
                        return Ok(());
                    }
                }
                at += (FRAME + body.len()) as u32;
            }
        }
        Ok(())
    }

    /// The last group for which `is_before` holds; it holds for all before that.
    pub fn last_time(&self, is_before: &dyn Fn(&Time) -> bool) -> Result<Option<Time>> {
        for segment in self.segments.iter().rev() {
            let until = self.times_until(segment, &|time| !is_before(time))?;
            if let Some(n) = until.checked_sub(1) {
                return self.time_of(segment, n).map(Some);
            }
        }
        Ok(None)
    }
    /// The first group of all.
    pub fn first_time(&self) -> Result<Option<Time>> {
        for segment in &self.segments {
            if segment.parts().table.times() > 0 {
                return self.time_of(segment, 0).map(Some);
            }
        }
        Ok(None)
    }

    /// Whether [`Catalogue::drop_before`] would remove any.
    pub fn would_drop(&self, moment: Moment) -> bool {
        matches!(self.segments.as_slice(), [first, _, ..] if first.last < moment)
    }

    /// Removes the segments, from the oldest on, whose groups all are before this moment. How many bytes that were.
    pub fn drop_before(&mut self, moment: Moment) -> Result<u64> {
        let mut bytes = 0;
        while let [first, _, ..] = self.segments.as_slice()
            && first.last < moment
        {
            // Without its keys a segment is read again; without its rows it would be made again from its spare.
            let number = first.number;
            for name in [keys_name(number), spare_name(number), name_of(number)] {
                match self.disk.remove(&name) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(io_error("remove", name)(e));
                    }
                    _ => {}
                }
            }
            bytes += first.len;
            self.segments.remove(0);
        }
        if bytes > 0 {
            let flushed = self.disk.flush_dir(DIR);
            flushed.map_err(io_error("flush", DIR))?;
        }
        Ok(bytes)
    }

    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }
}

/// All groups, oldest first, until `each` is false; true: that was all. Beside whoever appends: it ends where no whole frame
/// stands yet. What is missing or damaged before is an error.
pub fn read_all(disk: &dyn Disk, each: &mut dyn FnMut(Dated) -> bool) -> Result<bool> {
    let listed = disk.list(DIR).map_err(io_error("list", DIR))?;
    let number = |name: &String| u64::from_str_radix(name.strip_suffix(".rows")?, 16).ok();
    let mut numbers: Vec<u64> = listed.iter().filter_map(number).collect();
    numbers.sort_unstable();
    let newest = numbers.last().copied();
    let mut chain: walking::Chain = None;
    for number in numbers {
        let name = name_of(number);
        let damaged = |offset, what| CatalogueError::Damaged {
            name: name.clone(),
            offset,
            what,
        };
        let bytes = walking::whole(disk, &name)?;
        let head = bytes.get(32..64).and_then(|head| head.first_chunk::<32>());
        let (Some(head), true) = (head, bytes.len() >= HEADER) else {
            return Err(damaged(0, "it does not begin as it must"));
        };
        let mut head = Digest(*head);
        if bytes[..8] != MAGIC {
            return Err(damaged(0, "it does not begin as it must"));
        }
        if bytes[8..12] != VERSION.to_le_bytes() {
            return Err(CatalogueError::Newer { name });
        }
        // What was salvaged has another chain, and as many segments.
        if chain.is_some_and(|(before, _)| before != number - 1) {
            return Err(damaged(0, "what comes before it is missing"));
        }
        let mut at = HEADER;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let header = format::header(rest).filter(|_| format::is_intact(rest));
            let Some(header) = header else {
                match Some(number) == newest {
                    true => return Ok(true),
                    false => return Err(damaged(at as u64, "the frame is damaged")),
                }
            };
            if !format::continues(rest, &head) {
                return Err(damaged(at as u64, "it does not follow what is before it"));
            }
            head = header.head;
            let end = FRAME + header.body;
            if header.kind == FrameKind::Groups {
                let body = rest.get(FRAME..end).unwrap_or_default();
                let groups = format::unpack(body);
                for (dated, _) in groups.map_err(|_| damaged(at as u64, "a row can't be read"))? {
                    if !each(dated) {
                        return Ok(false);
                    }
                }
            }
            at += end;
        }
        chain = Some((number, head));
    }
    Ok(true)
}

impl Found {
    pub fn name_was(&self) -> Option<NameWas> {
        match &self.row.was {
            Was::Name { before, .. } => Some(NameWas {
                moment: self.moment,
                before: *before,
            }),
            _ => None,
        }
    }
    pub fn object_was(&self) -> Option<ObjectWas> {
        match &self.row.was {
            Was::Object { state, then, .. } => Some(ObjectWas {
                moment: self.moment,
                state: state.clone(),
                then: *then,
            }),
            _ => None,
        }
    }
}

fn unflushed() -> io::Error {
    io::Error::other("an earlier flush failed: it must be opened again")
}
