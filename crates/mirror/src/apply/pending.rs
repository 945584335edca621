//! What failed and is still wanted, kept with the rows: `apply.pending` in the index.
//!
//! Bytes: count of objects (u32), then for each: id (u64), flags (u8: 1 wanted, 2 void, 4 lies about, 8 held, 16 held from the
//! beginning), step and reason (u16 length and text each), with 8 or 16 where the rows stood before (epoch u32, sequence
//! u64) and the time of the first record after that (u64), and with 1 or 4 the number of records (u32) and the records as [`mirror_core::codec`] writes
//! them: when wanted a `Create` under the first name and a `Link` for each other; an `Unlink` for each name where
//! something of it lies about. Then the count of inodes that were replaced and still stand (u32), and for each: inode
//! (u64), birth seconds (i64) and nanoseconds (u32), object (u64), bytes (u64), mtime seconds (i64) and nanoseconds (u32);
//! an older version wrote nothing here. All little endian; crc32c (u32) of it all at the end.

use std::collections::{BTreeMap, BTreeSet};

use mirror_core::codec;
use mirror_core::plan::Wanted;
use mirror_core::{
    At, Change, Local, Name, Names, Object, ObjectId, Position, Record, State, Time,
};

use super::Failure;
use super::journal::Inode;
use crate::sys::stat::Stat;

pub const KEY: &str = "apply.pending";

/// An object that an earlier batch could not bring to this state, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pending {
    pub wanted: BTreeMap<ObjectId, Wanted>,
    pub why: BTreeMap<ObjectId, Failure>,
    /// Of those: did not fail, but wait for a content on its way.
    pub held: BTreeMap<ObjectId, Held>,
    /// Their contents are on their way to this process.
    pub travels: BTreeSet<ObjectId>,
    /// Inodes of ours that no row speaks of any more: replaced, but whatever is to have their names is not there yet.
    pub replaced: BTreeMap<Inode, Replaced>,
}

/// Whose an inode was, and what it looked like when it was left: changed since, it is somebody's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replaced {
    pub object: ObjectId,
    bytes: u64,
    mtime: Time,
}

impl Replaced {
    pub fn new(object: ObjectId, stat: &Stat) -> Replaced {
        Replaced {
            object,
            bytes: if stat.is_file() { stat.bytes } else { 0 },
            mtime: stat.mtime,
        }
    }
    /// As a row says that it is. Only a file has bytes.
    pub fn by_row(object: ObjectId, here: &State) -> Replaced {
        Replaced {
            object,
            bytes: here.kind.content().map_or(0, |content| content.bytes),
            mtime: here.meta.mtime,
        }
    }
    pub fn is_as_left(&self, stat: &Stat) -> bool {
        *self == Replaced::new(self.object, stat)
    }
}

/// Since when something is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Where the rows stood before the batch that met it.
    pub before: Option<Position>,
    /// Of the first record of that.
    pub since_ns: u64,
}

const STEPS: [&str; 20] = [
    "stage",
    "fetch",
    "verify",
    "write",
    "make",
    "look",
    "open",
    "list",
    "link",
    "rename",
    "exchange",
    "remove",
    "replace",
    "move aside",
    "set the metadata of",
    "set the flags of",
    "order",
    "wait",
    "park",
    "repair",
];

fn record(object: ObjectId, change: Change, wanted: &Wanted) -> Record {
    Record {
        position: Position {
            epoch: (object.0 >> 44) as u32,
            sequence: object.0 & ((1 << 44) - 1),
        },
        time_ns: 0,
        end: true,
        who: None,
        change,
        local: None,
        content: wanted.place,
    }
}

/// The root has no name; here it goes by one.
fn root_name() -> Option<At> {
    Name::new(b"root").ok().map(|name| At {
        parent: ObjectId::ROOT,
        name,
    })
}

impl Pending {
    /// Whether something of an object that is owed may stand at this name, which no row gives to it.
    pub fn lies_at(&self, at: &At) -> bool {
        self.wanted.values().any(|wanted| wanted.also.contains(at))
    }

    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        out.extend((self.wanted.len() as u32).to_le_bytes());
        for (id, wanted) in &self.wanted {
            out.extend(id.0.to_le_bytes());
            let (is_wanted, lies) = (wanted.want.is_some(), !wanted.also.is_empty());
            let held = self.held.get(id);
            let before = held.and_then(|held| held.before);
            let from_nothing = held.is_some() && before.is_none();
            out.push(
                u8::from(is_wanted)
                    | u8::from(wanted.void) << 1
                    | u8::from(lies) << 2
                    | u8::from(before.is_some()) << 3
                    | u8::from(from_nothing) << 4,
            );
            let why = self.why.get(id);
            text(&mut out, why.map_or("wait", |why| why.step));
            text(&mut out, why.map_or("", |why| &why.reason));
            if let Some(held) = held {
                out.extend(before.map_or(0, |at| at.epoch).to_le_bytes());
                out.extend(before.map_or(0, |at| at.sequence).to_le_bytes());
                out.extend(held.since_ns.to_le_bytes());
            }
            if !is_wanted && !lies {
                continue;
            }
            let mut changes = Vec::new();
            if let Some(want) = &wanted.want {
                let names = if *id == ObjectId::ROOT {
                    Names::one(root_name()?)
                } else {
                    want.names.clone()
                };
                changes.extend(names.iter().cloned().enumerate().map(|(i, at)| match i {
                    0 => Change::Create {
                        at,
                        object: *id,
                        state: want.state.clone(),
                    },
                    _ => Change::Link { at, object: *id },
                }));
            }
            let lies = wanted.also.iter().cloned();
            changes.extend(lies.map(|at| Change::Unlink { at, object: *id }));
            out.extend((changes.len() as u32).to_le_bytes());
            for change in changes {
                codec::encode(&record(*id, change, wanted), &codec::GENESIS, &mut out).ok()?;
            }
        }
        out.extend((self.replaced.len() as u32).to_le_bytes());
        for ((ino, seconds, nanos), was) in &self.replaced {
            out.extend(ino.to_le_bytes());
            out.extend(seconds.to_le_bytes());
            out.extend(nanos.to_le_bytes());
            out.extend(was.object.0.to_le_bytes());
            out.extend(was.bytes.to_le_bytes());
            out.extend(was.mtime.seconds.to_le_bytes());
            out.extend(was.mtime.nanos.to_le_bytes());
        }
        out.extend(crc32c::crc32c(&out).to_le_bytes());
        Some(out)
    }

    pub fn decode(bytes: &[u8]) -> Option<Pending> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        if crc32c::crc32c(body).to_le_bytes() != sum {
            return None;
        }
        let mut rest = body;
        let mut pending = Pending::default();
        let count = u32::from_le_bytes(take(&mut rest)?);
        for _ in 0..count {
            let id = ObjectId(u64::from_le_bytes(take(&mut rest)?));
            let [flags] = take::<1>(&mut rest)?;
            let step = take_text(&mut rest)?;
            let reason = take_text(&mut rest)?;
            let step = STEPS
                .iter()
                .copied()
                .find(|known| *known == step)
                .unwrap_or("stage");
            if flags & 24 != 0 {
                let epoch = u32::from_le_bytes(take(&mut rest)?);
                let sequence = u64::from_le_bytes(take(&mut rest)?);
                let since_ns = u64::from_le_bytes(take(&mut rest)?);
                let before = (flags & 8 != 0).then_some(Position { epoch, sequence });
                pending.held.insert(id, Held { before, since_ns });
            }
            let void = flags & 2 != 0;
            pending.why.insert(
                id,
                Failure {
                    object: id,
                    step,
                    reason,
                    void,
                },
            );
            let mut wanted = Wanted {
                want: None,
                place: None,
                void,
                also: Default::default(),
            };
            if flags & 5 != 0 {
                let names = u32::from_le_bytes(take(&mut rest)?);
                for _ in 0..names {
                    let (record, _, length) = codec::decode(rest, &codec::GENESIS).ok()?;
                    rest = rest.get(length..)?;
                    wanted.place = record.content;
                    match (record.change, &mut wanted.want) {
                        (Change::Create { at, state, .. }, want @ None) => {
                            let names = if id == ObjectId::ROOT {
                                Names::new()
                            } else {
                                Names::one(at)
                            };
                            *want = Some(Object {
                                state,
                                local: Local::default(),
                                names,
                            });
                        }
                        (Change::Link { at, .. }, Some(want)) => drop(want.names.insert(at)),
                        (Change::Unlink { at, .. }, _) => drop(wanted.also.insert(at)),
                        _ => return None,
                    }
                }
            }
            pending.wanted.insert(id, wanted);
        }
        if !rest.is_empty() {
            let count = u32::from_le_bytes(take(&mut rest)?);
            for _ in 0..count {
                let inode = (
                    u64::from_le_bytes(take(&mut rest)?),
                    i64::from_le_bytes(take(&mut rest)?),
                    u32::from_le_bytes(take(&mut rest)?),
                );
                let was = Replaced {
                    object: ObjectId(u64::from_le_bytes(take(&mut rest)?)),
                    bytes: u64::from_le_bytes(take(&mut rest)?),
                    mtime: Time {
                        seconds: i64::from_le_bytes(take(&mut rest)?),
                        nanos: u32::from_le_bytes(take(&mut rest)?),
                    },
                };
                pending.replaced.insert(inode, was);
            }
        }
        rest.is_empty().then_some(pending)
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(2000);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = text.get(..end).unwrap_or_default();
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    let length = u16::from_le_bytes(take(rest)?);
    let (head, tail) = rest.split_at_checked(length.into())?;
    *rest = tail;
    String::from_utf8(head.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_core::{Content, ContentRef, Digest, Kind, Meta};

    #[test]
    fn what_is_owed_survives() {
        let at = |name: &str| At {
            parent: ObjectId::ROOT,
            name: Name::new(name.as_bytes()).unwrap(),
        };
        let content = Content {
            bytes: 7,
            digest: Digest([3; 32]),
            data: vec![],
            proven: true,
            fuzzy: false,
        };
        let file = Object {
            state: State {
                kind: Kind::File(content),
                meta: Meta {
                    mode: 0o644,
                    ..Meta::default()
                },
            },
            local: Local::default(),
            names: vec![at("a"), at("b")].into(),
        };
        let root = Object {
            state: State {
                kind: Kind::Dir,
                meta: Meta {
                    uid: 5,
                    ..Meta::default()
                },
            },
            local: Local::default(),
            names: Names::new(),
        };
        let place = Some(ContentRef {
            segment: 1,
            block: 2,
            start: 3,
            length: 4,
        });
        let mut pending = Pending::default();
        let id = |n: u64| ObjectId((1 << 44) | n);
        pending.wanted.insert(
            id(9),
            Wanted {
                want: Some(file),
                place,
                void: true,
                also: [at("c"), at("d")].into(),
            },
        );
        pending.wanted.insert(
            ObjectId::ROOT,
            Wanted {
                want: Some(root),
                place: None,
                void: false,
                also: Default::default(),
            },
        );
        for (n, also) in [(10, vec![]), (11, vec![at("e")])] {
            let wanted = Wanted {
                want: None,
                place: None,
                void: false,
                also: also.into_iter().collect(),
            };
            pending.wanted.insert(id(n), wanted);
        }
        for id in pending.wanted.keys() {
            let void = pending.wanted[id].void;
            let why = Failure {
                object: *id,
                step: "fetch",
                reason: "no space ä".into(),
                void,
            };
            pending.why.insert(*id, why);
        }
        for (n, before) in [
            (9, None),
            (
                11,
                Some(Position {
                    epoch: 2,
                    sequence: 7,
                }),
            ),
        ] {
            let held = Held {
                before,
                since_ns: 5,
            };
            pending.held.insert(id(n), held);
        }
        let of_before = pending.encode().unwrap();
        let mtime = Time {
            seconds: -5,
            nanos: 7,
        };
        let was = Replaced {
            object: id(9),
            bytes: 7,
            mtime,
        };
        pending.replaced.insert((3, -4, 5), was);
        let bytes = pending.encode().unwrap();
        assert_eq!(Pending::decode(&bytes).as_ref(), Some(&pending));
        // As an older version wrote it.
        let (body, _) = of_before.split_at(of_before.len() - 8);
        let sum = crc32c::crc32c(body).to_le_bytes();
        let older = Pending::decode(&[body, &sum].concat()).unwrap();
        pending.replaced.clear();
        assert_eq!(older, pending);
        for i in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] ^= 1;
            assert_eq!(Pending::decode(&bad), None, "byte {i}");
            assert_eq!(Pending::decode(&bytes[..i]), None);
        }
    }
}
