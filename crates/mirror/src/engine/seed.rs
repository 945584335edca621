//! The tree as the index has it, as records that make it: for a follower whose place the log does not reach back to.
//!
//! First into a file without a name, under one lock of the index, so that it is the tree at one position; then sent at
//! the follower's pace. Records as in the log, in whole groups, hash-chained from nothing; local parts are left out.
//! Where a group ends is told by the names in it, so two that know nearly the same tree have nearly the same groups, and
//! only the others travel ([`listed`]).

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use mirror_core::model::GROUP_RECORDS_MAX;
use mirror_core::{
    At, Change, Digest, Name, Object, ObjectId, Position, Record, Rows, State, codec,
};

use crate::disk::nameless;
use crate::index::Index;
use crate::log::{End, Tail};

/// On a follower, in its state directory: what came, group by group, until it is made.
pub const FILE: &str = "seed";

const ROWS: usize = 256;
/// Records of one group; also what the follower holds at once.
const GROUP_RECORDS: usize = 1000;
const GROUP_BYTES: usize = 1 << 20;
/// Records of a group, about: one that differs makes so many travel.
const CUT_AFTER: u32 = 100;
/// How long the index may take to become durable.
const DURABLE_WITHIN: Duration = Duration::from_secs(30);

/// What the log says of objects that a copy could not be brought to yet; `None`: they are gone.
pub type Owed = BTreeMap<ObjectId, Option<Object>>;

/// A tree as of one position, in groups that can be had one by one.
pub struct Spooled {
    file: File,
    pub end: End,
    pub groups: Vec<Group>,
}

/// One group of a [`Spooled`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Chained apart, groups are equal wherever the same part of a tree is told as of the same position.
    pub hash: GroupHash,
    offset: u64,
    bytes: u32,
}

pub type GroupHash = [u8; 16];

impl Spooled {
    /// The frames of group `n`.
    pub fn group(&self, n: usize) -> Result<Vec<u8>, String> {
        let group = self.groups.get(n).ok_or("there is no such group")?;
        let mut frames = vec![0; group.bytes as usize];
        self.file
            .read_exact_at(&mut frames, group.offset)
            .map_err(|e| format!("cannot read a list of the tree: {e}"))?;
        Ok(frames)
    }
}

/// How the records of a tree are chained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chained {
    /// One after the other, through all groups.
    Through,
    /// Each group from nothing, so that it stands for itself.
    Apart,
}

/// The tree that an index says, once that is durable: before, it is not served.
pub fn spool(
    index: &RwLock<Index>,
    tree: [u8; 16],
    tail: &Tail,
    state_dir: &Path,
    chained: Chained,
) -> Result<Spooled, String> {
    let spooled = {
        let rows = index.read().unwrap_or_else(PoisonError::into_inner);
        let end = end_of(&rows)?;
        spool_rows(&rows, &Owed::new(), (tree, end), state_dir, chained)?
    };
    durable(tail, spooled.end.position)?;
    Ok(spooled)
}

/// What rows are of.
pub fn end_of(rows: &Index) -> Result<End, String> {
    let mark = rows.mark().ok_or("nothing is known of the tree yet")?;
    Ok(End {
        position: mark.position,
        head: mark.head,
    })
}

fn cannot_write(error: io::Error) -> String {
    format!("cannot write a list of the tree: {error}")
}

/// The tree that rows say, but what is owed as it ought to be; told to be of this tree and position.
pub fn spool_rows(
    rows: &Index,
    owed: &Owed,
    (tree, end): ([u8; 16], End),
    state_dir: &Path,
    chained: Chained,
) -> Result<Spooled, String> {
    let name = format!("seed.{:?}", std::thread::current().id());
    let file = nameless(state_dir, &name).map_err(cannot_write)?;
    let mut out = Spool {
        out: BufWriter::new(&file),
        offset: 0,
        groups: Vec::new(),
        group: Vec::new(),
        frames: Vec::new(),
        chained,
        head: codec::GENESIS,
        position: end.position,
    };
    out.tree(rows, owed, tree)?;
    out.out.flush().map_err(cannot_write)?;
    let groups = std::mem::take(&mut out.groups);
    drop(out);
    Ok(Spooled { file, end, groups })
}

fn durable(tail: &Tail, position: Position) -> Result<(), String> {
    let until = Instant::now() + DURABLE_WITHIN;
    while tail.durable().is_none_or(|end| end.position < position) {
        if Instant::now() >= until {
            return Err("the log does not become durable".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Anew, for us alone.
pub fn create(state_dir: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(state_dir.join(FILE))
}

/// A group and its length before it. `None`: that was the last one.
pub fn next_group(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut group = Vec::new();
    let length = u64::from(u32::from_le_bytes(length));
    from.take(length).read_to_end(&mut group)?;
    if group.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(group))
}

pub fn put_group(to: &mut impl Write, group: &[u8]) -> io::Result<()> {
    let length = u32::try_from(group.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(group)
}

struct Spool<'a> {
    out: BufWriter<&'a File>,
    offset: u64,
    groups: Vec<Group>,
    /// Changes of the group that is being gathered.
    group: Vec<Change>,
    frames: Vec<u8>,
    chained: Chained,
    head: Digest,
    position: Position,
}

impl Spool<'_> {
    fn tree(&mut self, rows: &Index, owed: &Owed, tree: [u8; 16]) -> Result<(), String> {
        let failed = |e: crate::index::IndexError| e.to_string();
        self.group.push(Change::Open {
            tree,
            claim: [0; 16],
            parent: None,
        });
        self.end_group()?;
        let mut owed_in: BTreeMap<ObjectId, Vec<(&Name, ObjectId, &Object)>> = BTreeMap::new();
        for (id, object) in owed
            .iter()
            .filter_map(|(id, want)| Some((id, want.as_ref()?)))
        {
            for at in object.names.iter() {
                let entries = owed_in.entry(at.parent).or_default();
                entries.push((&at.name, *id, object));
            }
        }
        let root = match owed.get(&ObjectId::ROOT) {
            Some(Some(root)) => Some(root.clone()),
            _ => rows.object(ObjectId::ROOT).map_err(failed)?,
        };
        if let Some(root) = root {
            self.push(Change::Update {
                object: ObjectId::ROOT,
                at: None,
                meta: Some(root.state.meta),
                content: None,
            })?;
        }
        // Objects with several names that were made already.
        let mut made: HashSet<ObjectId> = HashSet::new();
        let mut dirs = vec![ObjectId::ROOT];
        while let Some(dir) = dirs.pop() {
            let mut after: Option<Name> = None;
            loop {
                let children = rows.scan(dir, after.as_ref(), ROWS).map_err(failed)?;
                let Some(last) = children.last() else { break };
                after = Some(last.name.clone());
                for child in children {
                    if !owed.contains_key(&child.id) {
                        self.entry(
                            &mut dirs,
                            &mut made,
                            dir,
                            child.name,
                            child.id,
                            child.object,
                        )?;
                    }
                }
            }
            for (name, id, object) in owed_in.remove(&dir).into_iter().flatten() {
                self.entry(&mut dirs, &mut made, dir, name.clone(), id, object.clone())?;
            }
        }
        self.end_group()
    }

    fn entry(
        &mut self,
        dirs: &mut Vec<ObjectId>,
        made: &mut HashSet<ObjectId>,
        dir: ObjectId,
        name: Name,
        id: ObjectId,
        object: Object,
    ) -> Result<(), String> {
        let at = At { parent: dir, name };
        if object.state.kind.is_dir() {
            dirs.push(id);
        }
        let several = object.names.len() > 1;
        self.push(if several && !made.insert(id) {
            Change::Link { at, object: id }
        } else {
            made_new(at, id, object)
        })
    }

    fn push(&mut self, change: Change) -> Result<(), String> {
        // Where a group ends is told by what is in it, so that a difference before it does not move it.
        let ends = made_at(&change).is_some_and(is_cut_after);
        self.group.push(change);
        if ends || self.group.len() >= GROUP_RECORDS {
            self.end_group()?;
        }
        Ok(())
    }

    fn end_group(&mut self) -> Result<(), String> {
        let changes = std::mem::take(&mut self.group);
        let last = changes.len().saturating_sub(1);
        for (n, change) in changes.into_iter().enumerate() {
            // Large attributes make a group long before it has many records.
            let end = n == last || self.frames.len() >= GROUP_BYTES;
            let record = Record {
                position: self.position,
                time_ns: 0,
                end,
                who: None,
                change,
                local: None,
                content: None,
            };
            self.head = codec::encode(&record, &self.head, &mut self.frames)
                .map_err(|e| format!("a record can't be written: {e:?}"))?;
            if end {
                self.put()?;
            }
        }
        Ok(())
    }

    fn put(&mut self) -> Result<(), String> {
        let bytes = u32::try_from(self.frames.len()).map_err(|_| "a group too large")?;
        self.out
            .write_all(&self.frames)
            .map_err(|e| format!("cannot write a list of the tree: {e}"))?;
        self.groups.push(Group {
            hash: hash(&self.frames),
            offset: self.offset,
            bytes,
        });
        self.offset += u64::from(bytes);
        self.frames.clear();
        if self.chained == Chained::Apart {
            self.head = codec::GENESIS;
        }
        Ok(())
    }
}

/// Of a group whose records are chained apart.
pub fn hash(frames: &[u8]) -> GroupHash {
    let whole = blake3::hash(frames);
    std::array::from_fn(|n| whole.as_bytes()[n])
}

/// The name that a change of a spooled tree makes.
fn made_at(change: &Change) -> Option<&At> {
    match change {
        Change::Create { at, .. } | Change::Link { at, .. } => Some(at),
        _ => None,
    }
}

/// After one of [`CUT_AFTER`] names, whatever the names around it.
fn is_cut_after(at: &At) -> bool {
    let mut hash = crc32c::crc32c(&at.parent.0.to_le_bytes());
    hash = crc32c::crc32c_append(hash, at.name.as_bytes());
    hash.is_multiple_of(CUT_AFTER)
}

fn made_new(at: At, object: ObjectId, row: Object) -> Change {
    let state: State = row.state;
    Change::Create { at, object, state }
}

/// The records of a group, and the head after them. It may begin a chain of its own ([`Chained::Apart`]).
pub fn decode_group(mut frames: &[u8], head: &mut Digest) -> Result<Vec<Record>, String> {
    let mut records = Vec::new();
    if codec::decode(frames, head).is_err() {
        *head = codec::GENESIS;
    }
    while !frames.is_empty() {
        let (mut record, after, length) =
            codec::decode(frames, head).map_err(|e| format!("a record: {e:?}"))?;
        if records.len() >= GROUP_RECORDS_MAX {
            return Err("a group of very many records".into());
        }
        // What only this host can know, nobody else tells it.
        (record.local, record.content) = (None, None);
        *head = after;
        frames = frames.get(length..).unwrap_or_default();
        records.push(record);
    }
    match records.last() {
        Some(last) if last.end => Ok(records),
        _ => Err("a group without an end".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_core::{ContentRef, Local, Position};

    #[test]
    fn what_only_we_can_know_is_not_taken_from_others() {
        let record = |sequence, end| Record {
            position: Position { epoch: 1, sequence },
            time_ns: 0,
            end,
            who: None,
            change: Change::Note(mirror_core::Note::Overflow),
            local: Some(Local {
                ino: 2,
                ..Local::default()
            }),
            content: Some(ContentRef {
                segment: 1,
                block: 0,
                start: 0,
                length: 9,
            }),
        };
        let mut frames = Vec::new();
        let head = codec::encode(&record(1, false), &codec::GENESIS, &mut frames).unwrap();
        codec::encode(&record(2, true), &head, &mut frames).unwrap();
        let records = decode_group(&frames, &mut codec::GENESIS.clone()).unwrap();
        assert!(
            records
                .iter()
                .all(|r| r.local.is_none() && r.content.is_none())
        );
        assert_eq!(records.len(), 2);
    }

    #[test]
    fn a_group_is_no_larger_than_in_a_log() {
        let mut frames = Vec::new();
        let mut head = codec::GENESIS;
        for sequence in 1..=GROUP_RECORDS_MAX as u64 + 1 {
            let record = Record {
                position: Position { epoch: 1, sequence },
                time_ns: 0,
                end: sequence > GROUP_RECORDS_MAX as u64,
                who: None,
                change: Change::Note(mirror_core::Note::Overflow),
                local: None,
                content: None,
            };
            head = codec::encode(&record, &head, &mut frames).unwrap();
        }
        let read = decode_group(&frames, &mut codec::GENESIS.clone());
        assert!(read.is_err_and(|e| e.contains("very many")));
    }
}
