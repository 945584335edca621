extern crate std;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::record::{Change, Fork, Note, Who};

fn name() -> impl Strategy<Value = Name> {
    prop_oneof![
        "[a-z.]{1,12}".prop_map(String::into_bytes),
        prop::collection::vec(1u8.., 1..=255),
        Just(vec![0xff; 255]),
    ]
    .prop_filter_map("a name", |bytes| Name::new(&bytes).ok())
}

fn at() -> impl Strategy<Value = At> {
    (any::<u64>(), name()).prop_map(|(parent, name)| At {
        parent: ObjectId(parent),
        name,
    })
}

fn time() -> impl Strategy<Value = Time> {
    (any::<i64>(), 0u32..1_000_000_000).prop_map(|(seconds, nanos)| Time { seconds, nanos })
}

fn bytes(len: usize) -> impl Strategy<Value = Box<[u8]>> {
    prop::collection::vec(any::<u8>(), 0..len).prop_map(Vec::into_boxed_slice)
}

fn xattrs() -> impl Strategy<Value = Vec<Xattr>> {
    prop::collection::btree_map("[a-z.]{1,20}", bytes(200), 0..4).prop_map(|map| {
        map.into_iter()
            .map(|(name, value)| Xattr {
                name: name.into_bytes().into(),
                value,
            })
            .collect()
    })
}

fn meta() -> impl Strategy<Value = Meta> {
    let numbers = (
        0u16..=0o7777,
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
    );
    (numbers, time(), xattrs()).prop_map(|((mode, uid, gid, flags, project), mtime, xattrs)| Meta {
        mode,
        uid,
        gid,
        mtime,
        xattrs,
        flags,
        project,
    })
}

fn content() -> impl Strategy<Value = Content> {
    let ranges = prop::collection::vec((0u64..1 << 40, 0u64..1 << 40), 0..5);
    (
        any::<[u8; 32]>(),
        ranges,
        0u64..1 << 50,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(digest, gaps, rest, proven, fuzzy)| {
            let mut end = 0;
            let mut data = Vec::new();
            for (gap, length) in gaps {
                data.push((end + gap, length));
                end += gap + length;
            }
            Content {
                bytes: end + rest,
                digest: Digest(digest),
                data,
                proven,
                fuzzy,
            }
        })
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Dir),
        content().prop_map(Kind::File),
        prop::collection::vec(1u8.., 1..300).prop_map(|target| Kind::Symlink(target.into())),
        (any::<bool>(), any::<u32>(), any::<u32>()).prop_map(|(block, major, minor)| {
            Kind::Device {
                block,
                major,
                minor,
            }
        }),
        Just(Kind::Fifo),
        Just(Kind::Socket),
    ]
}

fn position() -> impl Strategy<Value = Position> {
    (any::<u32>(), any::<u64>()).prop_map(|(epoch, sequence)| Position { epoch, sequence })
}

fn change() -> impl Strategy<Value = Change> {
    let object = || any::<u64>().prop_map(ObjectId);
    let fork = (position(), any::<[u8; 32]>()).prop_map(|(position, head)| Fork {
        position,
        head: Digest(head),
    });
    prop_oneof![
        (any::<[u8; 16]>(), any::<[u8; 16]>(), prop::option::of(fork)).prop_map(
            |(tree, claim, parent)| Change::Open {
                tree,
                claim,
                parent
            }
        ),
        (at(), object(), kind(), meta()).prop_map(|(at, object, kind, meta)| Change::Create {
            at,
            object,
            state: State { kind, meta }
        }),
        (at(), object()).prop_map(|(at, object)| Change::Link { at, object }),
        (at(), object()).prop_map(|(at, object)| Change::Unlink { at, object }),
        (at(), object(), at()).prop_map(|(from, object, to)| Change::Move { object, from, to }),
        (
            prop::option::of(at()),
            object(),
            prop::option::of(meta()),
            prop::option::of(content())
        )
            .prop_map(|(at, object, meta, content)| Change::Update {
                object,
                at,
                meta,
                content
            }),
        (position(), object()).prop_map(|(of, object)| Change::Void { of, object }),
        prop::sample::select(vec![
            Note::Overflow,
            Note::ScanBegin,
            Note::ScanEnd,
            Note::Hold,
            Note::Release
        ])
        .prop_map(Change::Note),
    ]
}

fn local() -> impl Strategy<Value = Local> {
    let handle = (any::<i32>(), bytes(HANDLE_BYTES_MAX + 1))
        .prop_map(|(kind, bytes)| Handle { kind, bytes });
    (prop::option::of(handle), any::<u64>(), time(), time()).prop_map(
        |(handle, ino, ctime, btime)| Local {
            handle,
            ino,
            ctime,
            btime,
        },
    )
}

fn who() -> impl Strategy<Value = Who> {
    let exe = prop::option::of(bytes(100));
    (
        prop::option::of(any::<u32>()),
        prop::option::of(any::<u32>()),
        exe,
    )
        .prop_map(|(pid, uid, exe)| Who { pid, uid, exe })
}

fn any_record() -> impl Strategy<Value = Record> {
    let content =
        (any::<u64>(), any::<[u32; 3]>()).prop_map(|(segment, [block, start, length])| {
            ContentRef {
                segment,
                block,
                start,
                length,
            }
        });
    let head = (position(), any::<u64>(), any::<bool>());
    let bodies = (
        prop::option::of(who()),
        prop::option::of(local()),
        prop::option::of(content),
    );
    (head, bodies, change()).prop_map(
        |((position, time_ns, end), (who, local, content), change)| Record {
            position,
            time_ns,
            end,
            who,
            change,
            local,
            content,
        },
    )
}

/// A small record for tests that need just any.
fn small() -> Record {
    let meta = Meta {
        mode: 0o644,
        uid: 33,
        gid: 33,
        ..Meta::default()
    };
    let content = Content {
        bytes: 4096,
        digest: Digest([7; 32]),
        data: Vec::new(),
        proven: true,
        fuzzy: false,
    };
    Record {
        position: Position {
            epoch: 1,
            sequence: 2,
        },
        time_ns: 1_700_000_000_000_000_000,
        end: true,
        who: None,
        change: Change::Create {
            at: At {
                parent: ObjectId::ROOT,
                name: Name::new(b"wp-config.php").unwrap(),
            },
            object: ObjectId((1 << 44) | 2),
            state: State {
                kind: Kind::File(content),
                meta,
            },
        },
        local: Some(Local {
            handle: Some(Handle {
                kind: 1,
                bytes: vec![1; 8].into(),
            }),
            ino: 12,
            ..Local::default()
        }),
        content: None,
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(records in prop::collection::vec(any_record(), 1..4)) {
        let mut bytes = vec![0xaa];
        let mut head = GENESIS;
        for record in &records {
            head = encode(record, &head, &mut bytes).unwrap();
        }
        let (mut rest, mut prev) = (&bytes[1..], GENESIS);
        for record in &records {
            let (read, head, len) = decode(rest, &prev).unwrap();
            prop_assert_eq!(&read, record);
            (rest, prev) = (&rest[len..], head);
        }
        prop_assert!(rest.is_empty());
        prop_assert_eq!(prev, head);
    }

    #[test]
    fn the_local_body_comes_off_and_on(record in any_record(), here in prop::option::of(local())) {
        let (mut stored, mut wire, mut there) = (Vec::new(), Vec::new(), Vec::new());
        let head = encode_stamped(&record, &GENESIS, 77, &mut stored).unwrap();
        prop_assert_eq!(strip(&stored, &mut wire).unwrap(), stored.len());
        let (travelled, same_head, _) = decode(&wire, &GENESIS).unwrap();
        prop_assert_eq!(same_head, head);
        prop_assert_eq!(&travelled, &Record { local: None, content: None, ..record.clone() });
        prop_assert_eq!(attach(&wire, here.as_ref(), None, &mut there).unwrap(), wire.len());
        let (attached, same_head, _) = decode(&there, &GENESIS).unwrap();
        prop_assert_eq!(same_head, head);
        prop_assert_eq!(attached, Record { local: here, content: None, ..record });
    }

    #[test]
    fn every_change_of_the_shared_part_changes_the_head(a in any_record(), b in any_record()) {
        let (mut x, mut y) = (Vec::new(), Vec::new());
        let same = encode(&a, &GENESIS, &mut x).unwrap() == encode(&b, &GENESIS, &mut y).unwrap();
        let strip = |r: &Record| Record { local: None, content: None, ..r.clone() };
        prop_assert_eq!(same, strip(&a) == strip(&b));
    }

    #[test]
    fn a_cut_frame_is_torn(record in any_record(), cut in any::<prop::sample::Index>()) {
        let mut bytes = Vec::new();
        encode(&record, &GENESIS, &mut bytes).unwrap();
        let cut = cut.index(bytes.len());
        match decode(&bytes[..cut], &GENESIS) {
            Err(CodecError::Torn { need }) => prop_assert!(need > cut && need <= bytes.len()),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    /// With the checksum made right again, so that the body's decoder is reached.
    #[test]
    fn mutated_bodies_never_panic(record in any_record(), at in any::<prop::sample::Index>(), with in bytes(6)) {
        let mut bytes = Vec::new();
        encode(&record, &GENESIS, &mut bytes).unwrap();
        let shared = Frame::parse(&bytes).unwrap().shared.to_vec();
        let mut mutated = shared.clone();
        let at = at.index(mutated.len());
        for (place, byte) in mutated[at..].iter_mut().zip(with.iter()) {
            *place = *byte;
        }
        for kind in 0..=255u8 {
            let _ = body::get_shared(kind, frame::FLAG_MUST_UNDERSTAND, &mutated);
        }
        let _ = body::get_local(&mutated);
    }

    #[test]
    fn random_bytes_never_panic(bytes in bytes(400), kind in any::<u8>()) {
        let _ = decode(&bytes, &GENESIS);
        let _ = body::get_shared(kind, 0, &bytes);
        let _ = body::get_local(&bytes);
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let mut bytes = Vec::new();
    encode(&small(), &GENESIS, &mut bytes).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        match decode(&flipped, &GENESIS) {
            Err(CodecError::Corrupt(_)) => {}
            // A length that grew past the end.
            Err(CodecError::Torn { .. }) if (64..128).contains(&bit) => {}
            other => panic!("bit {bit}: {other:?}"),
        }
    }
}

#[test]
fn another_chain_is_refused() {
    let mut bytes = Vec::new();
    encode(&small(), &GENESIS, &mut bytes).unwrap();
    assert_eq!(
        decode(&bytes, &Digest([1; 32])),
        Err(CodecError::ChainBroken)
    );
}

/// Makes the checksum right again after a test changed a header.
fn mend(bytes: &mut [u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..20]), &bytes[24..]);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn newer_versions_and_unknown_kinds_are_named() {
    let mut bytes = Vec::new();
    encode(&small(), &GENESIS, &mut bytes).unwrap();
    let mut newer = bytes.clone();
    newer[4] = 2;
    mend(&mut newer);
    assert_eq!(
        decode(&newer, &GENESIS),
        Err(CodecError::Newer { version: 2 })
    );

    let mut unknown = bytes.clone();
    unknown[58] = 99;
    mend(&mut unknown);
    let frame = Frame::parse(&unknown).unwrap();
    assert!(!frame.continues(&GENESIS));
    assert_eq!(record(&frame), Err(CodecError::UnknownKind { kind: 99 }));
    unknown[56] &= !(frame::FLAG_MUST_UNDERSTAND as u8);
    mend(&mut unknown);
    let frame = Frame::parse(&unknown).unwrap();
    assert_eq!(record(&frame).unwrap().change, Change::Note(Note::Unknown));
}

#[test]
fn fields_of_a_newer_writer_are_skipped() {
    // Link: nobody known, [object, [parent, name, (new) "x"], (new) [1, [2]]].
    let mut e = minicbor::Encoder::new(Vec::new());
    e.null().unwrap().array(3).unwrap().u64(5).unwrap();
    e.array(3)
        .unwrap()
        .u64(4)
        .unwrap()
        .bytes(b"n")
        .unwrap()
        .str("x")
        .unwrap();
    e.array(2)
        .unwrap()
        .u8(1)
        .unwrap()
        .array(1)
        .unwrap()
        .u8(2)
        .unwrap();
    let bytes = e.into_writer();
    let (change, who) =
        body::get_shared(frame::KIND_LINK, frame::FLAG_MUST_UNDERSTAND, &bytes).unwrap();
    let at = At {
        parent: ObjectId(4),
        name: Name::new(b"n").unwrap(),
    };
    assert_eq!(
        (change, who),
        (
            Change::Link {
                at,
                object: ObjectId(5)
            },
            None
        )
    );
}

#[test]
fn limits_hold_when_writing() {
    let refused = |change: &mut dyn FnMut(&mut Record)| {
        let mut record = small();
        change(&mut record);
        let mut out = vec![1];
        assert!(encode(&record, &GENESIS, &mut out).is_err());
        assert_eq!(out, [1]);
    };
    fn state(record: &mut Record) -> &mut State {
        match &mut record.change {
            Change::Create { state, .. } => state,
            _ => unreachable!(),
        }
    }
    let xattr = |name: &[u8], value: usize| Xattr {
        name: name.into(),
        value: vec![0; value].into(),
    };
    refused(&mut |r| state(r).meta.mode = 0o10000);
    refused(&mut |r| state(r).meta.mtime.nanos = 1_000_000_000);
    refused(&mut |r| state(r).meta.xattrs = vec![xattr(b"b", 0), xattr(b"a", 0)]);
    refused(&mut |r| state(r).meta.xattrs = vec![xattr(b"a", XATTR_VALUE_BYTES_MAX + 1)]);
    refused(&mut |r| {
        state(r).meta.xattrs = (b'a'..=b'z')
            .map(|b| xattr(&[b], XATTR_VALUE_BYTES_MAX))
            .collect();
    });
    refused(&mut |r| state(r).kind = Kind::Symlink(Box::from(&b""[..])));
    refused(&mut |r| state(r).kind = Kind::Symlink(vec![b'a'; SYMLINK_BYTES_MAX + 1].into()));
    refused(&mut |r| {
        r.who = Some(Who {
            exe: Some(vec![0; EXE_BYTES_MAX + 1].into()),
            ..Who::default()
        })
    });
    refused(&mut |r| {
        if let Kind::File(content) = &mut state(r).kind {
            content.data = vec![(0, 10), (5, 10)];
        }
    });
}

#[test]
fn the_largest_sparse_file_fits() {
    let mut record = small();
    let data: Vec<_> = (0..DATA_RANGES_MAX as u64)
        .map(|n| (n << 20, 4096))
        .collect();
    if let Change::Create { state, .. } = &mut record.change {
        state.kind = Kind::File(Content {
            bytes: 1 << 50,
            digest: Digest([7; 32]),
            data,
            proven: true,
            fuzzy: false,
        });
    }
    let mut bytes = Vec::new();
    encode(&record, &GENESIS, &mut bytes).unwrap();
    assert_eq!(decode(&bytes, &GENESIS).unwrap().0, record);
}
