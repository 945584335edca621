//! Opening a catalogue, and making again what is damaged in it: a sealed segment from its spare, keys and a spare from the
//! segment. Of what can't be made again the intact part is kept, the file is set aside, and whoever opens says since when
//! all is known (`Lost`).

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mirror_core::Digest;
use mirror_core::history::Moment;

use super::frames::{Salvage, Walked, is_damage, next_frame, salvage, walk};
use super::{
    Broken, Catalogue, CatalogueError, DIR, Parts, Result, SEGMENT_BYTES_MAX, Segment, io_error,
    keys_name, name_of, spare_name,
};
use crate::disk::{Disk, DiskFile};
use crate::history::format;
use crate::history::keys::{KeysFile, Table};
use crate::history::spare::Spare;
use crate::sync::lock;

const CHUNK: usize = 1 << 20;
/// Segments in a row that are missing: more is no damage.
const MISSING_MAX: u64 = 64;

/// What whoever opens it knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The rows of the present are as of here: later groups come again.
    pub now: Moment,
    /// The last group that was in it when those were made durable, if that is known.
    pub last: Option<Moment>,
}

/// Some of it can't be had any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    pub name: String,
    /// All after this group is known again.
    pub known_from: Moment,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub name: String,
    pub what: String,
    pub repaired: bool,
}

enum Look {
    /// It takes more if the flag is set.
    Good(Segment, Digest, bool),
    Bad(u64, &'static str),
}

impl Catalogue {
    pub fn open(disk: Arc<dyn Disk>, tree: [u8; 16]) -> Result<Catalogue> {
        Catalogue::open_with(disk, tree, SEGMENT_BYTES_MAX, None, &mut |_| Ok(true))
    }

    /// `lost` is called before anything changes that shows what is lost, so that a crash forgets nothing. It says whether
    /// that was not known yet.
    pub fn open_with(
        disk: Arc<dyn Disk>,
        tree: [u8; 16],
        segment_bytes_max: u64,
        known: Option<Known>,
        lost: &mut dyn FnMut(Lost) -> Result<bool>,
    ) -> Result<Catalogue> {
        disk.make_dir(DIR).map_err(io_error("make", DIR))?;
        let mut catalogue = Catalogue {
            disk,
            tree,
            segments: Vec::new(),
            open: false,
            head: Digest([0; 32]),
            dirty: false,
            broken: Broken::No,
            frames: Default::default(),
            segment_bytes_max,
            told: Default::default(),
        };
        let listed = catalogue.disk.list(DIR).map_err(io_error("list", DIR))?;
        // What is missing may be made again from what stands beside it.
        let mut numbers = BTreeSet::new();
        for name in &listed {
            if name.ends_with(".new") {
                catalogue.remove(&format!("{DIR}/{name}"))?;
            } else if let Some((number, "rows" | "spare" | "keys")) = name.split_once('.')
                && let Ok(number) = u64::from_str_radix(number, 16)
            {
                numbers.insert(number);
            }
        }
        let newest = numbers.last().copied();
        let mut next = numbers.first().copied().unwrap_or_default();
        for number in numbers {
            if number - next > MISSING_MAX {
                return Err(CatalogueError::Damaged {
                    name: name_of(next),
                    offset: 0,
                    what: "it is missing, and many more that follow it",
                });
            }
            for number in next..=number {
                catalogue.take(number, Some(number) == newest, known, lost)?;
            }
            next = number + 1;
        }
        if let Some(Known {
            now,
            last: Some(last),
        }) = known
            && catalogue.last() < Some(last)
        {
            let name = newest.map_or(DIR.into(), name_of);
            let text = format!("the end of {name} is missing");
            let is_new = lost(Lost {
                name,
                known_from: now,
            })?;
            if is_new {
                catalogue.tell(text);
            }
        }
        Ok(catalogue)
    }

    fn tell(&self, text: String) {
        lock(&self.told).push(text);
    }
    /// What was damaged and is dealt with since the last call.
    pub fn told(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.told))
    }

    fn remove(&self, name: &str) -> Result<()> {
        match self.disk.remove(name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", name)(e)),
            _ => Ok(()),
        }
    }

    fn take(
        &mut self,
        number: u64,
        newest: bool,
        known: Option<Known>,
        lost: &mut dyn FnMut(Lost) -> Result<bool>,
    ) -> Result<()> {
        let name = name_of(number);
        let (mut offset, mut what) = match self.look(number, newest, known)? {
            Look::Good(segment, head, open) => return self.push(segment, head, open),
            Look::Bad(offset, what) => (offset, what),
        };
        if self.restore(number)? {
            match self.look(number, newest, known)? {
                Look::Good(segment, head, open) => {
                    self.tell(format!(
                        "{name} was damaged at byte {offset} ({what}): repaired from its spare"
                    ));
                    return self.push(segment, head, open);
                }
                Look::Bad(at, why) => (offset, what) = (at, why),
            }
        }
        self.salvage(number, (offset, what), known, lost)?;
        match self.look(number, newest, known)? {
            Look::Good(segment, head, open) => self.push(segment, head, open),
            Look::Bad(offset, what) => Err(CatalogueError::Damaged { name, offset, what }),
        }
    }

    fn push(&mut self, segment: Segment, head: Digest, open: bool) -> Result<()> {
        let unsealed = matches!(segment.parts().table, Table::Memory(_));
        let keys = keys_name(segment.number);
        self.segments.push(segment);
        (self.head, self.open) = (head, open);
        if !unsealed {
            return Ok(());
        }
        // None are there while it is the newest and takes more.
        if !open || self.disk.open(&keys).is_ok() {
            self.tell(format!("{keys} was damaged or missing: made again"));
        }
        match open {
            true => self.remove(&keys),
            false => self.seal(),
        }
    }

    /// A segment that is there. The newest one may end in what was not flushed when the machine stopped.
    fn look(&self, number: u64, newest: bool, known: Option<Known>) -> Result<Look> {
        let name = name_of(number);
        let file = match self.disk.open(&name) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Look::Bad(0, "it is missing"));
            }
            Err(e) => return Err(io_error("open", &name)(e)),
        };
        let mut len = file.len().map_err(io_error("read", &name))?;
        match self.check_header(&name, &file) {
            Ok(()) => {}
            Err(CatalogueError::Damaged { what, .. }) => return Ok(Look::Bad(0, what)),
            Err(CatalogueError::Io { source, .. }) if is_damage(&source) => {
                return Ok(Look::Bad(0, "its beginning can't be read"));
            }
            Err(e) => return Err(e),
        }
        if let Some(keys) = self.keys_of(number) {
            if keys.of != len {
                return Ok(Look::Bad(len.min(keys.of), "it is not as long as it was"));
            }
            if let Ok(last) = keys.last_time() {
                let before = self.last().unwrap_or_default();
                let last = last.map_or(before, |last| last.moment);
                let head = keys.head;
                let table = Table::File(keys);
                let segment = Segment::new(number, len, last, file, table);
                return Ok(Look::Good(segment, head, false));
            }
        }
        let spare = self.spare_of(number);
        let sealed = spare.as_ref().map_or(0, |spare| spare.len);
        if sealed > len {
            return Ok(Look::Bad(len, "it is not as long as it was"));
        }
        let read = |len| walk(&file, len).map_err(io_error("read", &name));
        let mut walked = read(len)?;
        let (end, what) = match walked.bad {
            Some(bad) => bad,
            None => (walked.whole, "the rest of a group is missing"),
        };
        if walked.bad.is_some() || end < len {
            let flushed = match known.and_then(|known| known.last) {
                // What comes after comes again.
                Some(last) => last_of(&walked, walked.whole).or(self.last()) < Some(last),
                None => next_frame(&file, end + 1, len)
                    .map_err(io_error("read", &name))?
                    .is_some(),
            };
            if !newest || end < sealed || flushed {
                return Ok(Look::Bad(end, what));
            }
            len = walked.whole;
            file.truncate(len).map_err(io_error("shorten", &name))?;
            walked = read(len)?;
        }
        let last = last_of(&walked, len).unwrap_or(self.last().unwrap_or_default());
        let table = Table::Memory(walked.keys);
        let segment = Segment::new(number, len, last, file, table);
        Ok(Look::Good(segment, walked.head, newest))
    }

    fn keys_of(&self, number: u64) -> Option<KeysFile> {
        let file = self.disk.open(&keys_name(number)).ok()?;
        KeysFile::open(file).ok()
    }
    fn spare_of(&self, number: u64) -> Option<Spare> {
        let file = self.disk.open(&spare_name(number)).ok()?;
        Spare::open(file).ok()
    }

    /// Makes a segment again from its spare. False: that is of no use.
    fn restore(&self, number: u64) -> Result<bool> {
        let Some(spare) = self.spare_of(number).filter(|spare| spare.check().is_ok()) else {
            return Ok(false);
        };
        let name = name_of(number);
        let failed = |e| io_error("make again", name.clone())(e);
        let beside = format!("{name}.new");
        self.remove(&beside)?;
        let made = self.disk.create(&beside).map_err(failed)?;
        spare.restore(&*made).map_err(failed)?;
        // It was sealed but for its keys, and went on.
        if self.keys_of(number).is_none()
            && let Ok(old) = self.disk.open(&name)
        {
            copy(&old, spare.len, &*made).map_err(failed)?;
        }
        made.flush().map_err(failed)?;
        self.disk.rename(&beside, &name).map_err(failed)?;
        self.disk.flush_dir(DIR).map_err(failed)?;
        Ok(true)
    }

    /// Keeps what is intact of a segment that can't be made again, and sets it aside as it is.
    fn salvage(
        &self,
        number: u64,
        (offset, what): (u64, &'static str),
        known: Option<Known>,
        lost: &mut dyn FnMut(Lost) -> Result<bool>,
    ) -> Result<()> {
        let name = name_of(number);
        let failed = |what| io_error(what, name.clone());
        let file = match self.disk.open(&name) {
            Ok(file) => Some(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed("open")(e)),
        };
        let found = match &file {
            Some(file) => {
                let len = file.len().map_err(failed("read"))?;
                let mut head = Digest([0; 32]);
                let header = self.check_header(&name, file).is_ok();
                let read = file.read_at(32, &mut head.0);
                let head = Some(head).filter(|_| header && read.is_ok());
                salvage(file, len, head).map_err(failed("read"))?
            }
            None => Salvage {
                has_hole: true,
                ..Salvage::default()
            },
        };
        if found.has_hole {
            // What else the end held is told by whoever knows how far it went.
            let since = found.known_from.or(known.map(|known| known.now));
            let Some(known_from) = since else {
                return Err(CatalogueError::Damaged { name, offset, what });
            };
            lost(Lost {
                name: name.clone(),
                known_from,
            })?;
        }
        let aside = format!("{name}.damaged");
        let beside = format!("{name}.new");
        if let Some(file) = &file {
            self.remove(&beside)?;
            let made = self.disk.create(&beside).map_err(failed("set aside"))?;
            copy(file, 0, &*made).map_err(failed("set aside"))?;
            made.flush().map_err(failed("set aside"))?;
            let renamed = self.disk.rename(&beside, &aside);
            renamed.map_err(failed("set aside"))?;
        }
        // They are of what was there.
        self.remove(&keys_name(number))?;
        self.remove(&spare_name(number))?;
        self.disk.flush_dir(DIR).map_err(failed("set aside"))?;
        self.remove(&beside)?;
        let made = self.disk.create(&beside).map_err(failed("write"))?;
        self.write_again(file.as_ref(), &found.frames, &*made)
            .map_err(failed("write"))?;
        let renamed = self.disk.rename(&beside, &name);
        renamed.map_err(failed("write"))?;
        self.disk.flush_dir(DIR).map_err(failed("write"))?;
        self.tell(match file {
            Some(_) => format!(
                "{name} was damaged at byte {offset} ({what}) and can't be repaired: it is set aside as {aside}, what is intact of it is kept"
            ),
            None => format!("{name} is missing, and can't be made again"),
        });
        Ok(())
    }

    /// The same frames, chained anew.
    fn write_again(
        &self,
        from: Option<&Arc<dyn DiskFile>>,
        frames: &[u64],
        to: &dyn DiskFile,
    ) -> io::Result<()> {
        let mut head = self.head;
        to.append(&self.header())?;
        let frames = from
            .into_iter()
            .flat_map(|from| frames.iter().map(move |at| (from, at)));
        for (from, at) in frames {
            let Some(frame) = super::read_frame(from, *at)? else {
                continue;
            };
            let Some(header) = format::header(&frame) else {
                continue;
            };
            let body = &frame[format::FRAME..];
            let (frame, after) = format::frame(header.kind, header.goes_on, body, &head);
            to.append(&frame)?;
            head = after;
        }
        to.flush()
    }

    /// Makes a sealed segment again where it was found to be damaged. False: it can't be.
    pub(super) fn mend(&self, segment: &Segment) -> bool {
        if segment.hopeless.load(Ordering::Acquire) {
            return false;
        }
        match self.try_mend(segment) {
            Ok(Some(what)) => self.tell(what),
            _ => segment.hopeless.store(true, Ordering::Release),
        }
        !segment.hopeless.load(Ordering::Acquire)
    }

    fn try_mend(&self, segment: &Segment) -> Result<Option<String>> {
        let parts = segment.parts();
        let number = segment.number;
        if matches!(parts.table, Table::Memory(_)) {
            return Ok(None);
        }
        let name = name_of(number);
        let mut file = parts.file.clone();
        let mut text = format!("{} was damaged: made again", keys_name(number));
        let read =
            |file: &Arc<dyn DiskFile>| walk(file, segment.len).map_err(io_error("read", &name));
        let mut walked = read(&file)?;
        if let Some((offset, what)) = walked.bad {
            if !self.restore(number)? {
                return Ok(None);
            }
            file = self.disk.open(&name).map_err(io_error("open", &name))?;
            walked = read(&file)?;
            if walked.bad.is_some() {
                return Ok(None);
            }
            text = format!("{name} was damaged at byte {offset} ({what}): repaired from its spare");
        }
        let keys = self.make_keys(number, &walked.keys, segment.len, &walked.head)?;
        let table = Table::File(keys);
        *lock(&segment.parts) = Arc::new(Parts { file, table });
        Ok(Some(text))
    }

    /// Segments, oldest first.
    pub fn numbers(&self) -> Vec<u64> {
        self.segments.iter().map(|segment| segment.number).collect()
    }

    /// Reads every byte of a segment and of what belongs to it. What can be made again is, if it is to be; what can't is
    /// dealt with when it is opened the next time.
    pub fn check(&self, number: u64, repair: bool) -> Result<Vec<Finding>> {
        let found = self.segments.iter().find(|s| s.number == number);
        let Some(segment) = found else {
            return Ok(Vec::new());
        };
        let parts = segment.parts();
        let name = name_of(number);
        let mut found = Vec::new();
        let mut add = |name: String, what: String, repaired| {
            found.push(Finding {
                name,
                what,
                repaired,
            });
        };
        let header = match self.check_header(&name, &parts.file) {
            Ok(()) => None,
            Err(CatalogueError::Damaged { what, .. }) => Some((0, what)),
            Err(e) => return Err(e),
        };
        let walked = walk(&parts.file, segment.len).map_err(io_error("read", &name))?;
        let longer = parts.file.len().map_err(io_error("read", &name))? != segment.len;
        let longer = longer.then_some((segment.len, "it is not as long as it was"));
        let sealed = matches!(parts.table, Table::File(_));
        let bad = header.or(walked.bad).or(longer.filter(|_| sealed));
        if let Some((offset, what)) = bad {
            let mut repaired = false;
            if repair && sealed {
                repaired = self.restore(number)? && self.reopen(segment)?;
                if !repaired {
                    // So it is seen when it is opened.
                    self.remove(&keys_name(number))?;
                }
            }
            let what = format!("damaged at byte {offset}: {what}");
            add(name.clone(), what, repaired);
            if !repaired {
                return Ok(found);
            }
        }
        if !sealed {
            return Ok(found);
        }
        let file = segment.parts().file.clone();
        let (was, keys_name) = (&parts.table, keys_name(number));
        let on_disk = self.keys_of(number);
        let intact = |keys: &KeysFile| matches!(keys.is_intact(), Ok(true));
        let good = matches!(was, Table::File(keys) if keys.of == segment.len)
            && on_disk.is_some_and(|keys| keys.of == segment.len && intact(&keys));
        if !good {
            let mut repaired = false;
            if repair {
                let walked = walk(&file, segment.len).map_err(io_error("read", &name))?;
                let made = self.make_keys(number, &walked.keys, segment.len, &walked.head)?;
                let table = Table::File(made);
                let file = file.clone();
                *lock(&segment.parts) = Arc::new(Parts { file, table });
                repaired = true;
            }
            add(keys_name, "damaged".into(), repaired);
        }
        let spare = self.spare_of(number);
        if !spare.is_some_and(|spare| spare.len == segment.len && spare.check().is_ok()) {
            if repair {
                self.make_spare(number, &file, segment.len)?;
            }
            add(spare_name(number), "damaged".into(), repair);
        }
        Ok(found)
    }

    /// After it was made again. False: it is not as it was.
    fn reopen(&self, segment: &Segment) -> Result<bool> {
        let name = name_of(segment.number);
        let file = self.disk.open(&name).map_err(io_error("open", &name))?;
        let walked = walk(&file, segment.len).map_err(io_error("read", &name))?;
        let long = file.len().map_err(io_error("read", &name))? == segment.len;
        if walked.bad.is_some() || !long || self.check_header(&name, &file).is_err() {
            return Ok(false);
        }
        let keys = self.make_keys(segment.number, &walked.keys, segment.len, &walked.head)?;
        let table = Table::File(keys);
        *lock(&segment.parts) = Arc::new(Parts { file, table });
        segment.hopeless.store(false, Ordering::Release);
        Ok(true)
    }
}

/// The last group of what ends here.
fn last_of(walked: &Walked, end: u64) -> Option<Moment> {
    let times = walked.keys.times.iter().rev();
    let mut times = times.filter(|time| u64::from(time.frame) < end);
    times.next().map(|time| time.moment)
}

/// What can't be read is zeros.
fn copy(from: &Arc<dyn DiskFile>, mut at: u64, to: &dyn DiskFile) -> io::Result<()> {
    let len = from.len()?;
    let mut buffer = vec![0; CHUNK];
    while at < len {
        let most = usize::try_from(len - at).unwrap_or(CHUNK).min(CHUNK);
        let got = match from.read_at(at, &mut buffer[..most]) {
            Ok(0) => break,
            Ok(got) => got,
            Err(e) if is_damage(&e) => {
                buffer[..most].fill(0);
                most
            }
            Err(e) => return Err(e),
        };
        to.append(&buffer[..got])?;
        at += got as u64;
    }
    Ok(())
}
