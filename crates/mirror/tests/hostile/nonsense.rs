//! What no worker says.

use std::fs;

use mirror::link::message::{self as say, Message};
use mirror_core::{Change, Kind, ObjectId};

use crate::ssh_support::made_up::*;
use crate::trial::*;

/// What makes no sense, and what the program says then.
type Nonsense = (&'static str, fn(&mut Chain) -> Vec<Message>, &'static str);
const NONSENSE: &[Nonsense] = &[
    (
        "a seal",
        |chain| {
            chain.raw(255, 1, b"", b"");
            records_of(&chain.bytes)
        },
        "a seal is no record",
    ),
    (
        "a kind that must be understood",
        |chain| {
            chain.raw(77, 3, b"", b"");
            records_of(&chain.bytes)
        },
        "unknown kind",
    ),
    (
        "rubbish for a body",
        |chain| {
            chain.raw(2, 3, &[0x9f; 5000], b"");
            records_of(&chain.bytes)
        },
        "body",
    ),
    (
        "arrays of very much",
        |chain| {
            chain.raw(
                2,
                3,
                b"\xf6\x83\x01\x9b\x7f\xff\xff\xff\xff\xff\xff\xff",
                b"",
            );
            records_of(&chain.bytes)
        },
        "body",
    ),
    (
        "bodies nested very deep",
        |chain| {
            chain.raw(2, 3, &[0x81; 500_000], b"");
            records_of(&chain.bytes)
        },
        "body",
    ),
    (
        "a length that can't be",
        |chain| {
            dir(chain, "d");
            let mut bytes = chain.bytes.clone();
            bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
            records_of(&bytes)
        },
        "the length of the record can't be",
    ),
    (
        "a flipped head",
        |chain| {
            chain.head.0[3] ^= 1;
            dir(chain, "d");
            records_of(&chain.bytes)
        },
        "the hash chain is broken",
    ),
    (
        "a flipped byte",
        |chain| {
            dir(chain, "d");
            let mut bytes = chain.bytes.clone();
            let last = bytes.len() - 3;
            bytes[last] ^= 0x20;
            records_of(&bytes)
        },
        "the checksum of the record is wrong",
    ),
    (
        "the same once more",
        |chain| {
            dir(chain, "d");
            records_of(&[&chain.bytes[..], &chain.bytes].concat())
        },
        "the position does not follow",
    ),
    (
        "a position that goes back",
        |chain| {
            dir(chain, "d");
            chain.position.sequence = 2;
            dir(chain, "e");
            records_of(&chain.bytes)
        },
        "the position does not follow",
    ),
    (
        "a position far ahead",
        |chain| {
            chain.position.sequence = u64::MAX - 1;
            chain.raw(8, 1, b"", b"");
            records_of(&chain.bytes)
        },
        "",
    ),
    (
        "another epoch without a word",
        |chain| {
            chain.position.epoch = 2;
            dir(chain, "d");
            records_of(&chain.bytes)
        },
        "the position does not follow",
    ),
    (
        "a group without an end",
        |chain| {
            let object = chain.id();
            let at = at_name(ObjectId::ROOT, b"d");
            let state = mirror_core::State {
                kind: Kind::Dir,
                meta: mode(0o755),
            };
            chain.record(Change::Create { at, object, state }, false);
            records_of(&chain.bytes)
        },
        "its group has no end",
    ),
    (
        "a group of one record too many",
        |chain| {
            for n in 0..65_537u32 {
                let note = Change::Note(mirror_core::Note::Overflow);
                chain.record(note, n == 65_536);
            }
            records_of(&chain.bytes)
        },
        "a group of records",
    ),
    (
        "pieces without an end",
        |_| {
            let piece = say::Records {
                whole: false,
                bytes: vec![0; 1000 << 10],
            };
            vec![piece.into(); 200]
        },
        "a group of records has no end",
    ),
    (
        "a file larger than files are",
        |chain| {
            // As a record of ours, with another size put in.
            let before = chain.bytes.len();
            create(chain, "f", hole(i64::MAX as u64), mode(0o644));
            let shared = chain.bytes.split_off(before + 80);
            let size = |bytes: u64| [&[0x1b][..], &bytes.to_be_bytes()].concat();
            let (from, to) = (size(i64::MAX as u64), size(u64::MAX));
            let at = shared.windows(9).position(|w| w == from).unwrap();
            let shared = [&shared[..at], &to, &shared[at + 9..]].concat();
            chain.bytes.truncate(before);
            let mut again = Chain::new();
            again.raw(2, 3, &shared, b"");
            records_of(&again.bytes)
        },
        "file",
    ),
    (
        "a greeting once more",
        |_| vec![welcome()],
        "does not say messages of kind 2 now",
    ),
    (
        "what only a follower says",
        |_| vec![say::Order { what: 1 }.into()],
        "does not say messages of kind 16 now",
    ),
    (
        "a tree that nobody asked for",
        |chain| {
            vec![
                say::Seed {
                    whole: true,
                    bytes: chain.bytes.clone(),
                }
                .into(),
            ]
        },
        "a tree comes that nobody asked for",
    ),
    (
        "a report that is none",
        |_| {
            vec![
                say::Report {
                    json: "[".repeat(500_000),
                }
                .into(),
            ]
        },
        "its report",
    ),
    (
        "a report of other things",
        |_| {
            vec![
                say::Report {
                    json: "{\"hold\":7}".into(),
                }
                .into(),
            ]
        },
        "its report",
    ),
];

#[test]
fn nonsense_is_named_in_one_line_and_leaves_nothing() {
    each(NONSENSE, |(what, say, line)| {
        let trial = Trial::new();
        let said = [vec![welcome(), report()], say(&mut Chain::new())].concat();
        worker(&trial.bed, &said, "BEATS");
        let came = trial.run(&[]);
        let last = came.said.lines().last().unwrap_or_default();
        println!("{what}: {} {} MiB {last}", came.code, came.rss_mib);
        assert_eq!(came.code, 1, "{what}: {}\n{}", came.code, came.said);
        assert!(
            last.contains(line) && last.len() < 400,
            "{what}\n{}",
            came.said
        );
    });
    // Frames that are none.
    let frame = |kind: u8, length: u32, body: &[u8]| {
        let mut bytes = b"FSMw\x01".to_vec();
        bytes.extend([kind, 1, 0]);
        bytes.extend(length.to_le_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes), body);
        bytes.extend(sum.to_le_bytes());
        [&bytes, body].concat()
    };
    let broken: &[(&str, Vec<u8>, &str)] = &[
        ("too long", frame(6, u32::MAX, b""), "4294967295 bytes"),
        (
            "damaged",
            [
                frame(6, 4, b"abcd"),
                frame(6, 4, b"abcd")[..19].to_vec(),
                vec![0],
            ]
            .concat(),
            "6",
        ),
        ("of a kind to come", frame(200, 0, b""), "newer version"),
        (
            "nested very deep",
            frame(6, 900_000, &[0x81; 900_000]),
            "can't be understood",
        ),
        (
            "another protocol",
            b"HTTP/1.1 200 OK\r\n\x1b[2J".to_vec(),
            "prints something",
        ),
        ("nothing", Vec::new(), ""),
    ];
    each(broken, |(what, bytes, line)| {
        let trial = Trial::new();
        fs::write(trial.bed.path("raw"), bytes).unwrap();
        let raw = trial.bed.path("raw");
        let listens = if bytes.is_empty() {
            ""
        } else {
            "; cat >/dev/null"
        };
        trial.bed.script(&format!("cat {}{listens}", raw.display()));
        let came = trial.run(&[]);
        let last = came.said.lines().last().unwrap_or_default();
        println!("{what}: {} {last}", came.code);
        assert!([1, 6].contains(&came.code), "{}", came.said);
        assert!(last.contains(line), "{what}\n{}", came.said);
    });
}
