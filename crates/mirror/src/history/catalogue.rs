//! The catalogue: which name stood for what, and what state objects were in, before each group. Append-only segments; an
//! authority, not derived from anything. Chapter "Catalogue" of `docs/FORMAT.md`.

use std::io;
use std::sync::{Arc, Mutex};

use mirror_core::history::asof::{NameWas, ObjectWas};
use mirror_core::history::{Moment, Row, Was};
use mirror_core::{At, Digest, Name, ObjectId, Who};

use super::format::{self, Dated, FRAME, FrameKind};
use super::keys::{self, Keys, KeysFile, Kind, Loc, Table, Time};
use super::walk;
use crate::disk::{Disk, DiskFile, replace_file};
use crate::sync::lock;

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
    file: Arc<dyn DiskFile>,
    len: u64,
    last: Moment,
    table: Table,
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
    /// A write or a flush failed: what is in the page cache is not believed until it is opened again.
    broken: bool,
    frames: Mutex<Vec<(u64, u32, Arc<Vec<u8>>)>>,
    segment_bytes_max: u64,
}

fn name_of(number: u64) -> String {
    format!("{DIR}/{number:016x}.rows")
}
fn keys_name(number: u64) -> String {
    format!("{DIR}/{number:016x}.keys")
}

fn io_error(
    what: &'static str,
    name: impl Into<String>,
) -> impl FnOnce(io::Error) -> CatalogueError {
    let name = name.into();
    move |source| CatalogueError::Io { what, name, source }
}

impl Catalogue {
    pub fn open(disk: Arc<dyn Disk>, tree: [u8; 16]) -> Result<Catalogue> {
        Catalogue::open_with(disk, tree, SEGMENT_BYTES_MAX)
    }

    pub fn open_with(
        disk: Arc<dyn Disk>,
        tree: [u8; 16],
        segment_bytes_max: u64,
    ) -> Result<Catalogue> {
        disk.make_dir(DIR).map_err(io_error("make", DIR))?;
        let mut catalogue = Catalogue {
            disk,
            tree,
            segments: Vec::new(),
            open: false,
            head: Digest([0; 32]),
            dirty: false,
            broken: false,
            frames: Mutex::default(),
            segment_bytes_max,
        };
        let listed = catalogue.disk.list(DIR).map_err(io_error("list", DIR))?;
        let mut numbers = Vec::new();
        for name in &listed {
            if name.ends_with(".new") {
                let name = format!("{DIR}/{name}");
                let removed = catalogue.disk.remove(&name);
                removed.map_err(io_error("remove", name))?;
            } else if let Some(number) = name.strip_suffix(".rows")
                && let Ok(number) = u64::from_str_radix(number, 16)
            {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        let newest = numbers.last().copied();
        for number in numbers {
            catalogue.take(number, Some(number) == newest)?;
        }
        Ok(catalogue)
    }

    /// A segment that is there. The newest one may end in what was not flushed when the machine stopped.
    fn take(&mut self, number: u64, newest: bool) -> Result<()> {
        let name = name_of(number);
        let file = self.disk.open(&name).map_err(io_error("open", &name))?;
        let mut len = file.len().map_err(io_error("read", &name))?;
        self.check_header(&name, &file)?;
        let keys = self.disk.open(&keys_name(number)).ok();
        let keys = keys.and_then(|keys| KeysFile::open(keys, len).ok());
        let last_time = |keys: &KeysFile| -> Option<Moment> {
            let table_last = keys.last_time().ok()??;
            Some(table_last.moment)
        };
        if let Some(keys) = keys
            && let Some(last) = last_time(&keys)
        {
            self.open = false;
            self.head = keys.head;
            let table = Table::File(keys);
            self.segments.push(Segment {
                number,
                file,
                len,
                last,
                table,
            });
            return Ok(());
        }
        let walked = walk(&name, &file, len)?;
        if let Some(end) = walked.torn {
            let damaged = |what| CatalogueError::Damaged {
                name: name.clone(),
                offset: end,
                what,
            };
            if !newest {
                return Err(damaged("no frame is there"));
            }
            if any_frame_after(&file, end, len).map_err(io_error("read", &name))? {
                return Err(damaged("no frame is there, but more follow"));
            }
            file.truncate(end).map_err(io_error("shorten", &name))?;
            len = end;
        }
        self.head = walked.head;
        let last = walked
            .keys
            .times
            .last()
            .map_or(Moment(0), |time| time.moment);
        self.open = newest;
        self.segments.push(Segment {
            number,
            file,
            len,
            last,
            table: Table::Memory(walked.keys),
        });
        if !newest {
            self.seal()?;
        }
        Ok(())
    }

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
        let last = |segment: &&Segment| segment.table.times() > 0;
        self.segments
            .iter()
            .rev()
            .find(last)
            .map(|segment| segment.last)
    }

    /// Groups in order; what is in it already is left out.
    pub fn append(&mut self, groups: &[Dated]) -> Result<()> {
        let last = self.last();
        let known = groups.partition_point(|dated| Some(dated.group.moment) <= last);
        let groups = groups.get(known..).unwrap_or_default();
        if groups.is_empty() {
            return Ok(());
        }
        if self.broken {
            let what = io::Error::other("an earlier write failed: it must be opened again");
            return Err(io_error("write", DIR)(what));
        }
        if !self.open {
            self.begin()?;
        }
        self.broken = true;
        let head = &mut self.head;
        let Some(segment) = self.segments.last_mut() else {
            return Ok(());
        };
        let name = name_of(segment.number);
        let Table::Memory(keys) = &mut segment.table else {
            return Ok(());
        };
        let (file, len) = (&segment.file, &mut segment.len);
        let packed = format::pack(groups, |body, placed, times| {
            let (frame, after) = format::frame(FrameKind::Groups, body, head);
            let at = u32::try_from(*len).map_err(io::Error::other)?;
            file.append(&frame)?;
            *len += frame.len() as u64;
            *head = after;
            for placed in placed {
                keys.add(placed, at);
            }
            for (moment, there_ns, here_ns) in times {
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
        self.broken = false;
        self.dirty = true;
        segment.last = groups
            .last()
            .map_or(segment.last, |dated| dated.group.moment);
        if segment.len >= self.segment_bytes_max {
            self.seal()?;
        }
        Ok(())
    }

    /// Makes all of it durable.
    pub fn flush(&mut self) -> Result<()> {
        if self.broken {
            let what = io::Error::other("an earlier write failed: it must be opened again");
            return Err(io_error("flush", DIR)(what));
        }
        if std::mem::take(&mut self.dirty)
            && let Some(segment) = self.segments.last()
            && let Err(source) = segment.file.flush()
        {
            self.broken = true;
            return Err(io_error("flush", name_of(segment.number))(source));
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        let number = self.segments.last().map_or(1, |last| last.number + 1);
        let name = name_of(number);
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..32].copy_from_slice(&self.tree);
        header[32..64].copy_from_slice(&self.head.0);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..]);
        header[12..16].copy_from_slice(&crc.to_le_bytes());
        replace_file(&*self.disk, &name, &header).map_err(io_error("make", &name))?;
        let file = self.disk.open(&name).map_err(io_error("open", &name))?;
        self.segments.push(Segment {
            number,
            file,
            len: HEADER as u64,
            last: self.last().unwrap_or_default(),
            table: Table::Memory(Keys::default()),
        });
        self.open = true;
        Ok(())
    }

    /// The newest segment takes no more: its keys go to a file.
    fn seal(&mut self) -> Result<()> {
        self.flush()?;
        self.open = false;
        let Some(segment) = self.segments.last_mut() else {
            return Ok(());
        };
        let Table::Memory(keys) = &segment.table else {
            return Ok(());
        };
        let name = keys_name(segment.number);
        let bytes = keys::encode(keys, segment.len, &self.head);
        replace_file(&*self.disk, &name, &bytes).map_err(io_error("write", &name))?;
        let file = self.disk.open(&name).map_err(io_error("open", &name))?;
        let keys = KeysFile::open(file, segment.len).map_err(io_error("read", &name))?;
        segment.table = Table::File(keys);
        Ok(())
    }

    fn from(
        &self,
        segment: &Segment,
        key: &[u8],
        each: &mut dyn FnMut(&[u8], Loc) -> io::Result<bool>,
    ) -> Result<()> {
        let name = keys_name(segment.number);
        segment
            .table
            .from(key, each)
            .map_err(io_error("read", name))
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
        let name = name_of(segment.number);
        let bytes = read_frame(&segment.file, u64::from(frame)).map_err(io_error("read", &name))?;
        let Some(mut bytes) = bytes else {
            return Err(CatalogueError::Damaged {
                name,
                offset: frame.into(),
                what: "the frame is damaged",
            });
        };
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
            let keys = keys_name(segment.number);
            let first = segment.table.times_until(&|time| time.moment > after);
            let first = first.map_err(io_error("read", &keys))?;
            if first >= segment.table.times() {
                continue;
            }
            let first = segment.table.time(first).map_err(io_error("read", &keys))?;
            let mut at = first.frame;
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
            let keys = keys_name(segment.number);
            let until = segment.table.times_until(&|time| !is_before(time));
            let until = until.map_err(io_error("read", &keys))?;
            if let Some(n) = until.checked_sub(1) {
                return segment
                    .table
                    .time(n)
                    .map(Some)
                    .map_err(io_error("read", keys));
            }
        }
        Ok(None)
    }
    /// The first group of all.
    pub fn first_time(&self) -> Result<Option<Time>> {
        for segment in &self.segments {
            if segment.table.times() > 0 {
                let keys = keys_name(segment.number);
                return segment
                    .table
                    .time(0)
                    .map(Some)
                    .map_err(io_error("read", keys));
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
            // Without its keys a segment is read again; without its rows the keys are nothing.
            for name in [keys_name(first.number), name_of(first.number)] {
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

    /// Reads every byte; what is damaged is told, at most once a file.
    pub fn verify(&self, damaged: &mut dyn FnMut(CatalogueError)) {
        for segment in &self.segments {
            let name = name_of(segment.number);
            match walk(&name, &segment.file, segment.len) {
                Ok(walked) => {
                    if let Some(offset) = walked.torn {
                        damaged(CatalogueError::Damaged {
                            name,
                            offset,
                            what: "the frame is damaged",
                        });
                    }
                }
                Err(e) => damaged(e),
            }
            if let Table::File(keys) = &segment.table {
                let name = keys_name(segment.number);
                match keys.is_intact() {
                    Ok(true) => {}
                    Ok(false) => damaged(CatalogueError::Damaged {
                        name,
                        offset: 0,
                        what: "its checksum is wrong",
                    }),
                    Err(source) => damaged(CatalogueError::Io {
                        what: "read",
                        name,
                        source,
                    }),
                }
            }
        }
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
    let mut chain: walk::Chain = None;
    for number in numbers {
        let name = name_of(number);
        let damaged = |offset, what| CatalogueError::Damaged {
            name: name.clone(),
            offset,
            what,
        };
        let bytes = walk::whole(disk, &name)?;
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
        if chain.is_some_and(|chain| chain != (number - 1, head)) {
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

/// A whole frame, header included. `None`: none that is intact stands there.
fn read_frame(file: &Arc<dyn DiskFile>, at: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; FRAME];
    if file.read_at(at, &mut bytes)? < FRAME {
        return Ok(None);
    }
    let Some(header) = format::header(&bytes) else {
        return Ok(None);
    };
    // No more is allocated than the file has.
    let left = file.len()?.saturating_sub(at + FRAME as u64);
    if header.body as u64 > left {
        return Ok(None);
    }
    bytes.resize(FRAME + header.body, 0);
    let got = file.read_at(at + FRAME as u64, &mut bytes[FRAME..])?;
    Ok((got == header.body && format::is_intact(&bytes)).then_some(bytes))
}

struct Walked {
    keys: Keys,
    head: Digest,
    /// Where no intact frame stands before the end.
    torn: Option<u64>,
}

fn walk(name: &str, file: &Arc<dyn DiskFile>, len: u64) -> Result<Walked> {
    let mut head = [0; 32];
    file.read_at(32, &mut head)
        .map_err(io_error("read", name))?;
    let mut walked = Walked {
        keys: Keys::default(),
        head: Digest(head),
        torn: None,
    };
    let mut at = HEADER as u64;
    while at < len {
        let frame = read_frame(file, at).map_err(io_error("read", name))?;
        let Some(frame) = frame else {
            walked.torn = Some(at);
            break;
        };
        let damaged = |what| CatalogueError::Damaged {
            name: name.into(),
            offset: at,
            what,
        };
        if !format::continues(&frame, &walked.head) {
            return Err(damaged("it does not follow what is before it"));
        }
        let Some(header) = format::header(&frame) else {
            return Err(damaged("no frame is there"));
        };
        walked.head = header.head;
        if header.kind == FrameKind::Groups {
            let groups = format::unpack(&frame[FRAME..]);
            let groups = groups.map_err(|_| damaged("a row can't be read"))?;
            for (dated, offsets) in &groups {
                let group = &dated.group;
                for (row, offset) in group.rows.iter().zip(offsets) {
                    let placed = format::Placed {
                        row,
                        moment: group.moment,
                        offset: *offset,
                    };
                    walked.keys.add(&placed, at as u32);
                }
                walked.keys.add_time(Time {
                    moment: group.moment,
                    there_ns: group.time_ns,
                    here_ns: dated.here_ns,
                    frame: at as u32,
                });
            }
        }
        at += frame.len() as u64;
    }
    Ok(walked)
}

/// Whether what follows a place without a frame was flushed once: then bytes have changed since.
fn any_frame_after(file: &Arc<dyn DiskFile>, from: u64, len: u64) -> io::Result<bool> {
    let mut rest = vec![0; (len - from) as usize];
    let got = file.read_at(from, &mut rest)?;
    rest.truncate(got);
    let starts = rest.windows(4).enumerate().skip(1);
    for (at, _) in starts.filter(|(_, magic)| *magic == b"FSMc") {
        if rest.get(at..).is_some_and(format::is_intact) {
            return Ok(true);
        }
    }
    Ok(false)
}
