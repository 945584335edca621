//! The writer: one at a time, appends groups, flushes them together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use mirror_core::codec::{self, GENESIS, frame};
use mirror_core::model::GROUP_RECORDS_MAX;
use mirror_core::{Change, Digest, Fork, Position, Record};

use super::recover::{self, Found};
use super::segment::{self, Header};
use super::{
    ContentStore, Draft, End, GROUP_BYTES_MAX, LogError, LogOptions, LogReader, PruneLimits,
    PruneStats, Recovered, Shared, Tail, describe, io_error, prune, receive::refused, walk,
};
use crate::disk::{Disk, DiskFile};
use crate::planted;

/// Encoded records are handed to the kernel when there are this many bytes, or at a flush.
const WRITE_BYTES: usize = 1 << 20;

/// The writer. Dropping it without [`Log::finish`] is a crash, which the next [`Log::open`] copes with.
pub struct Log {
    shared: Arc<Shared>,
    options: LogOptions,
    /// The segment being written.
    file: Arc<dyn DiskFile>,
    segment: Position,
    /// Bytes of it in the kernel's hands; the buffer comes behind them.
    written: u64,
    durable: u64,
    buffer: Vec<u8>,
    pub(super) end: Option<End>,
    time_ns: u64,
    /// The last thing in the segment is a seal.
    sealed: bool,
    failed: Option<String>,
}

impl Log {
    /// A new log of a tree, with its first record (`Open` of epoch 1), durable.
    pub fn create(
        disk: Arc<dyn Disk>,
        options: LogOptions,
        tree: [u8; 16],
        claim: [u8; 16],
        time_ns: u64,
    ) -> Result<Log, LogError> {
        let open = Record {
            position: Position {
                epoch: 1,
                sequence: 1,
            },
            time_ns,
            end: true,
            who: None,
            change: Change::Open {
                tree,
                claim,
                parent: None,
            },
            local: None,
            content: None,
        };
        Log::begin(disk, options, tree, None, Some(open))
    }

    /// A new, empty log that follows another one, from after `end` (`None`: from the beginning).
    pub fn create_follower(
        disk: Arc<dyn Disk>,
        options: LogOptions,
        tree: [u8; 16],
        end: Option<End>,
    ) -> Result<Log, LogError> {
        Log::begin(disk, options, tree, end, None)
    }

    fn begin(
        disk: Arc<dyn Disk>,
        options: LogOptions,
        tree: [u8; 16],
        prev: Option<End>,
        record: Option<Record>,
    ) -> Result<Log, LogError> {
        match recover::recover(&*disk) {
            Err(LogError::Absent) => {}
            Ok(_) => return Err(LogError::Exists),
            Err(error) => return Err(error),
        }
        disk.make_dir(segment::DIR)
            .map_err(|error| io_error("make", segment::DIR, error))?;
        let content = open_content(&disk, &options)?;
        let first = match prev {
            None => Position {
                epoch: 1,
                sequence: 1,
            },
            Some(end) => next(end.position)?,
        };
        let time_ns = record.as_ref().map_or(0, |record| record.time_ns);
        let header = Header {
            tree,
            first,
            prev,
            content_from: content.number(),
            time_ns,
        };
        let mut bytes = header.bytes().to_vec();
        let mut end = prev;
        if let Some(record) = record {
            let head =
                codec::encode_stamped(&record, &GENESIS, segment::HEADER_BYTES as u32, &mut bytes)
                    .map_err(|error| refused(record.position, error))?;
            end = Some(End {
                position: record.position,
                head,
            });
        }
        let file = give_birth(&*disk, first, &bytes)?;
        let len = bytes.len() as u64;
        let segments = BTreeMap::from([(first, header)]);
        let found = Found {
            segments,
            file,
            len,
            end,
            time_ns,
            sealed: false,
            cut_bytes: 0,
        };
        Ok(Log::start(disk, options, content, found))
    }

    /// Opens what is there: cuts a torn tail of the last segment, names any other damage as an error.
    pub fn open(disk: Arc<dyn Disk>, options: LogOptions) -> Result<(Log, Recovered), LogError> {
        let found = recover::recover(&*disk)?;
        let content = open_content(&disk, &options)?;
        let cut_bytes = found.cut_bytes;
        let log = Log::start(disk, options, content, found);
        let recovered = Recovered {
            tree: log.tree(),
            end: log.end,
            cut_bytes,
        };
        Ok((log, recovered))
    }

    fn start(disk: Arc<dyn Disk>, options: LogOptions, content: ContentStore, found: Found) -> Log {
        let segment = found.segments.last_key_value().map_or(
            Position {
                epoch: 1,
                sequence: 1,
            },
            |(first, _)| *first,
        );
        let tree = found
            .segments
            .values()
            .next()
            .map_or([0; 16], |header| header.tree);
        let shared = Shared {
            disk,
            tree,
            segments: Mutex::new(found.segments),
            tail: Tail::new(found.end, segment, found.len),
            content,
        };
        Log {
            shared: Arc::new(shared),
            options,
            file: found.file,
            segment,
            written: found.len,
            durable: found.len,
            buffer: Vec::new(),
            end: found.end,
            time_ns: found.time_ns,
            sealed: found.sealed,
            failed: None,
        }
    }

    pub fn tree(&self) -> [u8; 16] {
        self.shared.tree
    }

    /// The position that the first record of the next group gets; the following ones count up from it.
    pub fn next_position(&self) -> Position {
        match self.end {
            None => Position {
                epoch: 1,
                sequence: 1,
            },
            Some(end) => Position {
                sequence: end.position.sequence.saturating_add(1),
                ..end.position
            },
        }
    }

    /// The last appended record, durable or not. Of an empty follower's log: where it begins.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Appends one group and returns it with its positions. Not durable before [`Log::flush`]. Times never go back:
    /// an earlier `time_ns` becomes that of the record before.
    pub fn append(&mut self, group: Vec<Draft>, time_ns: u64) -> Result<Vec<Record>, LogError> {
        let first = self.next_position();
        let time_ns = time_ns.max(self.time_ns);
        let last = group.len();
        let records: Vec<Record> = group
            .into_iter()
            .zip(first.sequence..)
            .enumerate()
            .map(|(n, (draft, sequence))| Record {
                position: Position { sequence, ..first },
                time_ns,
                end: n + 1 == last,
                who: draft.who,
                change: draft.change,
                local: draft.local,
                content: draft.content,
            })
            .collect();
        self.append_group(&records)?;
        Ok(records)
    }

    /// Opens a new epoch after the log's end; a group of its own.
    pub fn append_open(
        &mut self,
        epoch: u32,
        claim: [u8; 16],
        parent: Option<Fork>,
        time_ns: u64,
    ) -> Result<Record, LogError> {
        let record = Record {
            position: Position {
                epoch,
                ..self.next_position()
            },
            time_ns: time_ns.max(self.time_ns),
            end: true,
            who: None,
            change: Change::Open {
                tree: self.tree(),
                claim,
                parent,
            },
            local: None,
            content: None,
        };
        self.append_group(std::slice::from_ref(&record))?;
        Ok(record)
    }

    pub(super) fn append_group(&mut self, group: &[Record]) -> Result<(), LogError> {
        self.alive()?;
        if group.len() > GROUP_RECORDS_MAX {
            return Err(LogError::TooLarge("a group of records"));
        }
        let mut prev = self.end.map(|end| end.position);
        for record in group {
            let opens = matches!(record.change, Change::Open { .. });
            if !walk::follows_position(prev, record.position, opens) {
                return Err(LogError::Refused {
                    position: record.position,
                    what: "the position does not follow",
                });
            }
            prev = Some(record.position);
        }
        let Some(first) = group.first() else {
            return Ok(());
        };
        let mut head = self.end.map_or(GENESIS, |end| end.head);
        let start: Digest = head;
        self.put_group(first.position, first.time_ns, group.iter(), |stamp, out| {
            head = start;
            let mut end = None;
            for record in group {
                head = codec::encode_stamped(record, &head, stamp, out)
                    .map_err(|error| refused(record.position, error))?;
                end = Some(End {
                    position: record.position,
                    head,
                });
            }
            Ok(end)
        })
    }

    /// Puts the frames of one group behind the buffer, in a new segment if they don't fit.
    pub(super) fn put_group<'a>(
        &mut self,
        first: Position,
        time_ns: u64,
        records: impl Iterator<Item = &'a Record>,
        mut encode: impl FnMut(u32, &mut Vec<u8>) -> Result<Option<End>, LogError>,
    ) -> Result<(), LogError> {
        let mut content_from = self.shared.content.number();
        let mut time_end = time_ns;
        for record in records {
            content_from =
                content_from.min(record.content.map_or(u64::MAX, |content| content.segment));
            time_end = time_end.max(record.time_ns);
        }
        let before = self.buffer.len();
        let mut end = encode(self.durable as u32, &mut self.buffer);
        let len = self.buffer.len() - before;
        if end.is_ok() && len > GROUP_BYTES_MAX {
            end = Err(LogError::TooLarge("a group of records"));
        }
        if end.is_err() {
            self.buffer.truncate(before);
        }
        let mut end = end?;
        let segment_bytes_max = u64::from(self.options.segment_bytes_max.min(1 << 30));
        let holds_records = self.written + before as u64 > segment::HEADER_BYTES as u64;
        if holds_records && self.written + (before + len) as u64 > segment_bytes_max {
            self.buffer.truncate(before);
            let header = Header {
                tree: self.tree(),
                first,
                prev: self.end,
                content_from,
                time_ns,
            };
            let rolled = self.roll(header);
            self.remember(rolled)?;
            end = encode(self.durable as u32, &mut self.buffer)?;
        }
        self.end = end.or(self.end);
        self.time_ns = self.time_ns.max(time_end);
        self.sealed = false;
        self.shared.tail.append(self.end);
        if self.buffer.len() >= WRITE_BYTES {
            // No record reaches the disk before its content.
            let written = self
                .shared
                .content
                .flush()
                .map_err(LogError::from)
                .and_then(|()| self.write());
            self.remember(written)?;
        }
        Ok(())
    }

    /// Makes everything appended durable, content first, and shows it to the readers.
    pub fn flush(&mut self) -> Result<Option<End>, LogError> {
        self.alive()?;
        let flushed = self.flush_all();
        self.remember(flushed)?;
        Ok(self.end)
    }

    /// Writes a seal behind durable records, which tells damage to the last ones from a torn tail. Cheap: it is
    /// flushed with the next group. For an idle moment.
    pub fn seal(&mut self) -> Result<(), LogError> {
        self.alive()?;
        let whole = self.buffer.is_empty() && self.written == self.durable;
        if let Some(end) = self.end.filter(|_| whole && !self.sealed) {
            frame::seal(
                end.position,
                &end.head,
                self.durable as u32,
                &mut self.buffer,
            );
            self.sealed = true;
            let written = self.write();
            self.remember(written)?;
        }
        Ok(())
    }

    /// Flushes and seals.
    pub fn finish(mut self) -> Result<(), LogError> {
        self.flush()?;
        self.seal()?;
        self.flush()?;
        Ok(())
    }

    /// Drops old whole segments beyond the limits, none that holds `keep_from` or a later record.
    pub fn prune(
        &mut self,
        keep_from: Position,
        limits: &PruneLimits,
    ) -> Result<PruneStats, LogError> {
        prune::prune(&self.shared, keep_from, limits)
    }

    pub fn content(&self) -> ContentStore {
        self.shared.content.clone()
    }

    pub fn reader(&self) -> LogReader {
        LogReader {
            shared: self.shared.clone(),
        }
    }

    pub fn tail(&self) -> Tail {
        self.shared.tail.clone()
    }

    pub(super) fn alive(&self) -> Result<(), LogError> {
        match &self.failed {
            Some(failure) => Err(LogError::Poisoned(failure.clone())),
            None => Ok(()),
        }
    }

    /// After a failed write or flush nobody can say what is on disk: nothing more is written until it is read again.
    fn remember(&mut self, result: Result<(), LogError>) -> Result<(), LogError> {
        if let Err(error) = &result {
            let failure = describe(error);
            self.shared.tail.stop(Some(failure.clone()));
            self.failed = Some(failure);
        }
        result
    }

    fn write(&mut self) -> Result<(), LogError> {
        if !self.buffer.is_empty() {
            let written = self.file.append(&self.buffer);
            written.map_err(|error| io_error("write", &segment::name(self.segment), error))?;
            self.written += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    fn flush_all(&mut self) -> Result<(), LogError> {
        self.shared.content.flush()?;
        self.write()?;
        if self.written > self.durable {
            if !planted::is("acknowledge_before_flush") {
                self.file
                    .flush()
                    .map_err(|error| io_error("flush", &segment::name(self.segment), error))?;
            }
            self.durable = self.written;
            self.shared
                .tail
                .flushed(self.end, self.segment, self.durable);
        }
        Ok(())
    }

    /// Ends the segment, sealed, and begins the next one.
    fn roll(&mut self, header: Header) -> Result<(), LogError> {
        self.flush_all()?;
        if let Some(end) = self.end.filter(|_| !self.sealed) {
            frame::seal(
                end.position,
                &end.head,
                self.durable as u32,
                &mut self.buffer,
            );
            self.flush_all()?;
        }
        let bytes = header.bytes();
        self.file = give_birth(&*self.shared.disk, header.first, &bytes)?;
        self.segment = header.first;
        (self.written, self.durable) = (bytes.len() as u64, bytes.len() as u64);
        super::lock(&self.shared.segments).insert(header.first, header);
        self.shared
            .tail
            .flushed(self.end, self.segment, self.durable);
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.shared.tail.stop(None);
    }
}

fn open_content(disk: &Arc<dyn Disk>, options: &LogOptions) -> Result<ContentStore, LogError> {
    let (segment, cache) = (
        options.content_segment_bytes_max,
        options.content_cache_bytes_max,
    );
    Ok(ContentStore::open(disk.clone(), segment, cache)?)
}

/// A segment with its first bytes, under its name only when they are safe.
fn give_birth(
    disk: &dyn Disk,
    first: Position,
    bytes: &[u8],
) -> Result<Arc<dyn DiskFile>, LogError> {
    let name = segment::name(first);
    let unborn = format!("{name}{}", segment::UNBORN);
    let file = disk
        .create(&unborn)
        .map_err(|error| io_error("create", &unborn, error))?;
    file.append(bytes)
        .map_err(|error| io_error("write", &unborn, error))?;
    file.flush()
        .map_err(|error| io_error("flush", &unborn, error))?;
    disk.rename(&unborn, &name)
        .map_err(|error| io_error("name", &name, error))?;
    disk.flush_dir(segment::DIR)
        .map_err(|error| io_error("flush", segment::DIR, error))?;
    Ok(file)
}

fn next(position: Position) -> Result<Position, LogError> {
    match position.sequence.checked_add(1) {
        Some(sequence) => Ok(Position {
            sequence,
            ..position
        }),
        None => Err(LogError::TooLarge("the sequence")),
    }
}
