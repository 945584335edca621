//! The log on a disk that crashes: what was acknowledged stays, what is damaged is named, nothing is invented.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mirror_core::{At, Content, Handle, Kind, Meta, Name, Note, ObjectId, Record, State};

use super::*;
use crate::disk::{Fault, RealDisk, SimDisk};

mod crash;
mod damage;
mod golden;
mod reading;

const TREE: [u8; 16] = [7; 16];
const CLAIM: [u8; 16] = [8; 16];

/// Small segments, so that there are many.
fn small() -> LogOptions {
    LogOptions {
        segment_bytes_max: 4096,
        content_segment_bytes_max: 4096,
        ..LogOptions::default()
    }
}

fn created(disk: &SimDisk) -> Log {
    Log::create(Arc::new(disk.clone()), small(), TREE, CLAIM, 1).unwrap()
}

fn open(disk: &SimDisk) -> Result<(Log, Recovered), LogError> {
    Log::open(Arc::new(disk.clone()), small())
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

fn note() -> Draft {
    Draft {
        change: Change::Note(Note::Overflow),
        who: None,
        local: None,
        content: None,
    }
}

/// A new file with a name of this length, as capture would log it.
fn file(position: Position, name: usize, content: Option<ContentRef>) -> Draft {
    let state = State {
        kind: Kind::File(Content {
            bytes: content.map_or(0, |content| u64::from(content.length)),
            digest: Digest([3; 32]),
            data: Vec::new(),
            proven: true,
            fuzzy: false,
        }),
        meta: Meta {
            mode: 0o644,
            ..Meta::default()
        },
    };
    let handle = Handle {
        kind: 1,
        bytes: position.sequence.to_le_bytes().as_slice().into(),
    };
    Draft {
        change: Change::Create {
            at: At {
                parent: ObjectId::ROOT,
                name: Name::new(&vec![b'n'; name.max(1)]).unwrap(),
            },
            object: ObjectId::at(position).unwrap(),
            state,
        },
        who: Some(Who {
            pid: Some(1),
            uid: None,
            exe: None,
        }),
        local: Some(Local {
            handle: Some(handle),
            ino: position.sequence,
            ..Local::default()
        }),
        content,
    }
}

/// Bytes that are this content's and no other's.
fn bytes_of(content: u64) -> Vec<u8> {
    let mut random = Random(content);
    let len = 1 + random.below(600);
    (0..len)
        .map(|n| {
            if n % 3 == 0 {
                random.below(256) as u8
            } else {
                0
            }
        })
        .collect()
}

/// One group of up to four files, some with content, whose bytes are those of its position.
fn group(log: &mut Log, random: &mut Random) -> Result<Vec<Record>, LogError> {
    let mut drafts = Vec::new();
    let mut position = log.next_position();
    for _ in 0..1 + random.below(4) {
        let content = match random.below(2) {
            0 => None,
            _ => Some(log.content().put(&bytes_of(position.sequence))?),
        };
        drafts.push(file(position, random.below(200), content));
        position.sequence += 1;
    }
    log.append(drafts, position.sequence)
}

fn read_all(log: &Log) -> Result<Vec<Record>, LogError> {
    let mut cursor = log.reader().cursor_from_first()?;
    let mut records = Vec::new();
    while let Some(group) = cursor.next_group()? {
        assert!(group.records.last().is_some_and(|record| record.end));
        assert_eq!(group.records.iter().filter(|record| record.end).count(), 1);
        records.extend(group.records);
    }
    Ok(records)
}

/// Every content that a record names is there and is that record's.
fn check_contents(log: &Log, records: &[Record]) {
    for record in records {
        if let Some(content) = record.content {
            let bytes = log.content().get(content).unwrap();
            assert_eq!(
                bytes,
                bytes_of(record.position.sequence),
                "content of {}",
                record.position
            );
        }
    }
}

fn log_files(disk: &SimDisk) -> Vec<String> {
    disk.list("log")
        .unwrap()
        .into_iter()
        .map(|name| format!("log/{name}"))
        .collect()
}
