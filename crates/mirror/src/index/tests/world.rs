//! A small world of changes, its model in memory, and the comparison of an index with it.

use std::collections::BTreeMap;

use mirror_core::*;
use proptest::prelude::*;

use crate::index::{Child, Index, IndexError, Mark, Stats};

#[derive(Debug, Clone)]
pub enum Op {
    Put(u64, Object),
    /// Put as new when the model says that it is, else like `Put`.
    PutNew(u64, Object),
    Remove(u64),
    Meta(u8, Option<Vec<u8>>),
    Blocks(u64, Option<Vec<u8>>),
    Spill,
    Flush,
    /// In two halves, with changes between them that aren't part of it.
    FlushAside(Vec<Op>),
    /// Close, and open again.
    Reopen,
    /// Drop without a flush, and open again.
    Drop,
}

const IDS: u64 = 14;
const DIRS: u64 = 4;
const NAMES: [&[u8]; 6] = [b"a", b"ab", b"b", b"\xff\xfe", b"z z", b"zz"];
const HANDLES: u32 = 10;

fn id() -> impl Strategy<Value = u64> {
    1..=IDS
}

fn at() -> impl Strategy<Value = At> {
    (1..=DIRS, 0..NAMES.len()).prop_map(|(dir, name)| At {
        parent: ObjectId(dir),
        name: Name::new(NAMES[name]).unwrap(),
    })
}

fn names() -> impl Strategy<Value = Vec<At>> {
    let set = |size| proptest::collection::btree_set(at(), size);
    prop_oneof![1 => set(0..1usize), 8 => set(1..2), 3 => set(2..4)]
        .prop_map(|names| names.into_iter().collect())
}

fn handle(n: u32) -> Handle {
    let mut bytes = n.to_le_bytes().to_vec();
    bytes.extend_from_slice(&[7, 0, 0, 0]);
    match n % 3 {
        0 => Handle {
            kind: 1,
            bytes: bytes.into(),
        },
        1 => Handle {
            kind: 0x81,
            bytes: bytes[..7].into(),
        },
        _ => Handle {
            kind: -1,
            bytes: [].into(),
        },
    }
}

fn time() -> impl Strategy<Value = Time> {
    let seconds = prop_oneof![Just(0i64), Just(1_700_000_000), any::<i64>()];
    (seconds, prop_oneof![Just(0u32), 0..1_000_000_000u32])
        .prop_map(|(seconds, nanos)| Time { seconds, nanos })
}

fn bytes(max: usize) -> impl Strategy<Value = Box<[u8]>> {
    proptest::collection::vec(any::<u8>(), 0..max).prop_map(Into::into)
}

pub fn kind() -> impl Strategy<Value = Kind> {
    let data = proptest::collection::vec(any::<(u64, u64)>(), 0..3);
    let file = (
        any::<u64>(),
        any::<[u8; 32]>(),
        data,
        any::<bool>(),
        any::<bool>(),
    );
    prop_oneof![
        2 => Just(Kind::Dir),
        4 => file.prop_map(|(bytes, digest, data, proven, fuzzy)| Kind::File(Content {
            // Sums of sizes must not overflow.
            bytes: bytes >> 20,
            digest: Digest(digest),
            data,
            proven,
            fuzzy,
        })),
        1 => bytes(80).prop_map(Kind::Symlink),
        1 => any::<(bool, u32, u32)>()
            .prop_map(|(block, major, minor)| Kind::Device { block, major, minor }),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Socket),
    ]
}

pub fn state() -> impl Strategy<Value = State> {
    let owner = prop_oneof![Just((0u32, 0u32)), any::<(u32, u32)>()];
    let xattr = (bytes(20), bytes(40)).prop_map(|(name, value)| Xattr { name, value });
    let xattrs = prop_oneof![3 => Just(vec![]), 1 => proptest::collection::vec(xattr, 1..4)];
    let extra = prop_oneof![2 => Just((0u32, 0u32)), 1 => any::<(u32, u32)>()];
    (kind(), any::<u16>(), owner, time(), xattrs, extra).prop_map(
        |(kind, mode, (uid, gid), mtime, xattrs, (flags, project))| State {
            kind,
            meta: Meta {
                mode,
                uid,
                gid,
                mtime,
                xattrs,
                flags,
                project,
            },
        },
    )
}

pub fn local(mtime: Time) -> impl Strategy<Value = Local> {
    let handle = prop_oneof![1 => Just(None), 4 => (0..HANDLES).prop_map(|n| Some(handle(n)))];
    let ctime = prop_oneof![Just(mtime), time()];
    (
        handle,
        any::<Option<u32>>(),
        ctime,
        any::<Option<bool>>(),
        time(),
    )
        .prop_map(|(handle, ino, ctime, which, other)| {
            let same = handle.as_ref().and_then(|h| h.bytes.first_chunk::<4>());
            Local {
                ino: match (ino, same) {
                    (None, Some(bytes)) => u32::from_le_bytes(*bytes).into(),
                    (ino, _) => u64::from(ino.unwrap_or(9)) << 9,
                },
                handle,
                ctime,
                btime: match which {
                    None => Time::default(),
                    Some(true) => ctime,
                    Some(false) => other,
                },
            }
        })
}

pub fn object() -> BoxedStrategy<Object> {
    (state(), names())
        .prop_flat_map(|(state, names)| {
            local(state.meta.mtime).prop_map(move |local| Object {
                state: state.clone(),
                local,
                names: names.iter().cloned().collect(),
            })
        })
        .boxed()
}

pub fn op() -> impl Strategy<Value = Op> {
    let few = proptest::collection::vec(plain_op(), 0..3);
    prop_oneof![
        30 => plain_op(),
        3 => few.prop_map(Op::FlushAside),
        3 => Just(Op::Flush),
        6 => Just(Op::Spill),
        1 => Just(Op::Reopen),
        1 => Just(Op::Drop),
    ]
}

fn plain_op() -> BoxedStrategy<Op> {
    let some = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300));
    let more = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300));
    prop_oneof![
        30 => (id(), object()).prop_map(|(id, object)| Op::Put(id, object)),
        10 => (id(), object()).prop_map(|(id, object)| Op::PutNew(id, object)),
        12 => id().prop_map(Op::Remove),
        3 => (0..4u8, some).prop_map(|(key, value)| Op::Meta(key, value)),
        3 => (id(), more).prop_map(|(id, value)| Op::Blocks(id, value)),
    ]
    .boxed()
}

/// What the index must be equal to.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub rows: MemRows,
    pub meta: BTreeMap<String, Vec<u8>>,
    pub blocks: BTreeMap<u64, Vec<u8>>,
    pub mark: Option<Mark>,
    /// What a flush in two halves makes durable.
    pub flushing: Option<Box<Model>>,
}

impl Model {
    fn name(&self, at: &At) -> Option<ObjectId> {
        let Ok(found) = self.rows.name(at);
        found
    }
    fn object(&self, id: u64) -> Option<Object> {
        let Ok(found) = self.rows.object(ObjectId(id));
        found
    }
    fn by_handle(&self, handle: &Handle) -> Option<ObjectId> {
        let Ok(found) = self.rows.by_handle(handle);
        found
    }
    fn is_new(&self, id: u64, object: &Object) -> bool {
        let handle = object.local.handle.as_ref();
        self.object(id).is_none()
            && object.names.iter().all(|at| self.name(at).is_none())
            && handle.is_none_or(|handle| self.by_handle(handle).is_none())
    }
}

/// Makes one change (not `Reopen` and `Drop`) in both.
pub fn change(index: &mut Index, model: &mut Model, op: &Op) -> Result<(), IndexError> {
    // Whatever the model holds when the index fails is what the index may hold.
    match op.clone() {
        Op::PutNew(id, object) if model.is_new(id, &object) => {
            let Ok(()) = model.rows.put(ObjectId(id), object.clone());
            index.put_new(ObjectId(id), object)
        }
        Op::Put(id, object) | Op::PutNew(id, object) => {
            let Ok(()) = model.rows.put(ObjectId(id), object.clone());
            index.put(ObjectId(id), object)
        }
        Op::Remove(id) => {
            let Ok(()) = model.rows.remove(ObjectId(id));
            model.blocks.remove(&id);
            index.remove(ObjectId(id))
        }
        Op::Meta(key, value) => {
            let key = format!("key {key}");
            match value {
                Some(value) => {
                    index.meta_put(&key, &value)?;
                    model.meta.insert(key, value);
                }
                None => {
                    index.meta_remove(&key)?;
                    model.meta.remove(&key);
                }
            }
            Ok(())
        }
        Op::Blocks(id, value) => match value {
            Some(value) => {
                index.blocks_put(ObjectId(id), &value)?;
                model.blocks.insert(id, value);
                Ok(())
            }
            None => {
                model.blocks.remove(&id);
                index.blocks_remove(ObjectId(id))
            }
        },
        Op::Spill => index.spill(),
        Op::Flush => {
            advance(index, model);
            index.flush()
        }
        Op::FlushAside(ops) => {
            advance(index, model);
            model.flushing = Some(Box::new(model.clone()));
            let flush = index.flush_start()?;
            let aside = std::thread::spawn(|| flush.map_or(Ok(()), |flush| flush.finish()));
            let changed: Result<(), IndexError> =
                ops.iter().try_for_each(|op| change(index, model, op));
            aside.join().unwrap()?;
            changed
        }
        Op::Reopen | Op::Drop => Ok(()),
    }
}

fn advance(index: &mut Index, model: &mut Model) {
    let sequence = model.mark.map_or(1, |mark| mark.position.sequence + 1);
    let position = Position { epoch: 1, sequence };
    let head = Digest([sequence as u8; 32]);
    model.mark = Some(Mark { position, head });
    index.set_position(position, head);
}

/// Whether the index shows what the model does, through every way of reading.
pub fn check(index: &Index, model: &Model) {
    let mut stats = Stats::default();
    for id in 0..=IDS + 1 {
        let object = model.object(id);
        assert_eq!(index.object(ObjectId(id)).unwrap(), object, "object {id}");
        let blocks = index.blocks_get(ObjectId(id)).unwrap();
        assert_eq!(blocks.as_ref(), model.blocks.get(&id), "blocks {id}");
        if let Some(object) = object {
            stats.objects += 1;
            stats.dirs += u64::from(object.state.kind.is_dir());
            if let Kind::File(content) = &object.state.kind {
                stats.files += 1;
                stats.bytes += content.bytes;
            }
        }
    }
    for handle in (0..HANDLES).map(handle) {
        let found = index.by_handle(&handle).unwrap();
        assert_eq!(found, model.by_handle(&handle), "{handle:?}");
    }
    // All of them, one after the other.
    let mut walked = Vec::new();
    let mut after = None;
    while let Some((at, id)) = index.entry_after(after.as_ref()).unwrap() {
        after = Some(at.clone());
        walked.push((at, id));
    }
    let mut all: Vec<(At, ObjectId)> = model
        .rows
        .objects()
        .flat_map(|(id, object)| object.names.iter().map(|at| (at.clone(), *id)))
        // A name may be another's by now.
        .filter(|(at, id)| model.name(at) == Some(*id))
        .collect();
    all.sort();
    assert_eq!(walked, all, "entry after entry");
    for dir in (0..=DIRS + 1).map(ObjectId) {
        for name in NAMES.map(|name| Name::new(name).unwrap()) {
            let at = At { parent: dir, name };
            let id = model.name(&at);
            assert_eq!(index.name(&at).unwrap(), id, "name {at:?}");
            let entry = id.and_then(|id| model.object(id.0).map(|object| (id, object)));
            assert_eq!(index.entry(&at).unwrap(), entry, "entry {at:?}");
            stats.entries += u64::from(id.is_some());

            for (after, max) in [(None, 2), (Some(&at.name), 3), (Some(&at.name), 0)] {
                let Ok(expected) = model.rows.children(dir, after, max);
                let found = index.children(dir, after, max).unwrap();
                assert_eq!(found, expected, "children {at:?} {max}");
                check_scan(index, model, dir, after, max, &expected);
            }
        }
        let Ok(expected) = model.rows.children(dir, None, 100);
        assert_eq!(
            index.children(dir, None, 100).unwrap(),
            expected,
            "children {dir:?}"
        );
        check_scan(index, model, dir, None, 100, &expected);
    }
    for key in (0..4).map(|key| format!("key {key}")) {
        assert_eq!(
            index.meta_get(&key).unwrap().as_ref(),
            model.meta.get(&key),
            "{key}"
        );
    }
    assert_eq!(index.stats(), stats);
    assert_eq!(index.mark(), model.mark);
}

fn check_scan(
    index: &Index,
    model: &Model,
    dir: ObjectId,
    after: Option<&Name>,
    max: usize,
    children: &[(Name, ObjectId)],
) {
    let expected: Vec<Child> = children
        .iter()
        .map(|(name, id)| Child {
            name: name.clone(),
            id: *id,
            object: model.object(id.0).unwrap(),
        })
        .collect();
    assert_eq!(
        index.scan(dir, after, max).unwrap(),
        expected,
        "scan {dir:?}"
    );
}
