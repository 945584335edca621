//! Bytes that anybody may have made up, for all that reads them: no panic, no endless loop, and what is read can be written
//! again. Samples are changed with their structure in mind: numbers at their ends, parts cut, doubled and traded, and then often
//! the checksum put right, so that what lies behind it is reached.
//!
//! `FUZZ_SEED` and `FUZZ_SECONDS` (of each target) make other and longer runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mirror_core::codec::{self, Frame, GENESIS};
use mirror_core::{
    At, Change, Content, ContentRef, Digest, Fork, Kind, Local, Meta, Name, Note, Object, ObjectId,
    Position, Record, State, Time, Who, Xattr,
};

use crate::disk::{Disk, SimDisk};
use crate::index::row;
use crate::link::message::{self as say, Message};
use crate::link::packed::{self, Unpacker};
use crate::log::{Log, LogOptions};

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }

    /// One of the samples, changed in a few places.
    pub fn changed(&mut self, samples: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = samples[self.below(samples.len())].clone();
        for _ in 0..1 + self.below(5) {
            let at = self.below(bytes.len() + 1);
            let length = (1 + self.below(12)).min(bytes.len() - at);
            match self.below(9) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => {
                    bytes[at] =
                        [0, 1, 0x1b, 0x5f, 0x7f, 0x80, 0x9b, 0x9f, 0xbf, 0xff][self.below(10)];
                }
                2 => {
                    let number: u64 = [
                        0,
                        1,
                        0x7f,
                        0xffff,
                        u32::MAX.into(),
                        1 << 40,
                        i64::MAX as u64,
                        u64::MAX,
                    ][self.below(8)];
                    let number = if self.below(2) == 0 {
                        number.to_le_bytes()
                    } else {
                        number.to_be_bytes()
                    };
                    let wide = [1, 2, 4, 8][self.below(4)].min(bytes.len() - at);
                    bytes[at..at + wide].copy_from_slice(&number[..wide]);
                }
                3 => drop(bytes.drain(at..at + length)),
                4 => bytes.truncate(at),
                5 => {
                    let part = bytes[at..at + length].to_vec();
                    bytes.splice(at..at, part);
                }
                6 => {
                    let other = &samples[self.below(samples.len())];
                    let from = self.below(other.len() + 1);
                    let part = &other[from..(from + 1 + self.below(40)).min(other.len()).max(from)];
                    let end = (at + part.len()).min(bytes.len());
                    bytes.splice(at..end, part.iter().copied());
                }
                7 => bytes.extend((0..self.below(20)).map(|n| n as u8)),
                _ => {
                    let with = [0u8, 0xff, b'a', b'"', b'[', b'.', b'/', b'\n'][self.below(8)];
                    let many = [1, 3, 70, 2000][self.below(4)];
                    bytes.splice(at..at, std::iter::repeat_n(with, many));
                }
            }
        }
        bytes
    }
}

/// As long as there is time. Prints what to run again when it fails.
pub fn run(target: &str, mut one: impl FnMut(&mut Random)) {
    let seed = std::env::var("FUZZ_SEED").map_or(1, |seed| seed.parse().unwrap());
    let seconds = std::env::var("FUZZ_SECONDS").map_or(2, |n| n.parse().unwrap());
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut random = Random(seed);
    let mut runs = 0u64;
    println!("FUZZ_SEED={seed}");
    while runs < 200 || Instant::now() < until {
        one(&mut random);
        runs += 1;
    }
    println!("{target}: {runs} runs");
}

fn at(parent: u64, name: &[u8]) -> At {
    let name = Name::new(name).unwrap();
    At {
        parent: ObjectId(parent),
        name,
    }
}

fn states() -> Vec<State> {
    let meta = Meta {
        mode: 0o4755,
        uid: 7,
        gid: 70_000,
        mtime: Time {
            seconds: -5,
            nanos: 999_999_999,
        },
        xattrs: vec![
            Xattr {
                name: b"system.posix_acl_access".as_slice().into(),
                value: vec![2; 44].into(),
            },
            Xattr {
                name: b"user.\xff".as_slice().into(),
                value: vec![].into(),
            },
        ],
        flags: 0x10,
        project: 9,
    };
    let content = Content {
        bytes: 1 << 33,
        digest: Digest([9; 32]),
        data: vec![(4096, 8192), (1 << 32, 1)],
        proven: true,
        fuzzy: false,
    };
    let kinds = [
        Kind::Dir,
        Kind::File(content),
        Kind::Symlink(b"../target".as_slice().into()),
        Kind::Device {
            block: true,
            major: 8,
            minor: 1,
        },
        Kind::Fifo,
        Kind::Socket,
    ];
    let state = |kind| State {
        kind,
        meta: meta.clone(),
    };
    kinds.map(state).into()
}

fn local() -> Local {
    let handle = mirror_core::Handle {
        kind: 1,
        bytes: vec![7; 20].into(),
    };
    let time = Time {
        seconds: 1_700_000_000,
        nanos: 5,
    };
    Local {
        handle: Some(handle),
        ino: 12,
        ctime: time,
        btime: time,
    }
}

fn changes() -> Vec<Change> {
    let object = ObjectId(ObjectId::ROOT.0 + 1);
    let (root, position) = (
        ObjectId::ROOT.0,
        Position {
            epoch: 1,
            sequence: 3,
        },
    );
    let mut all: Vec<Change> = states()
        .into_iter()
        .map(|state| Change::Create {
            at: at(root, b"name"),
            object,
            state,
        })
        .collect();
    let fork = Fork {
        position,
        head: Digest([3; 32]),
    };
    all.extend([
        Change::Open {
            tree: [1; 16],
            claim: [2; 16],
            parent: Some(fork),
        },
        Change::Link {
            at: at(root, b"link"),
            object,
        },
        Change::Unlink {
            at: at(root, &[b'n'; 255]),
            object,
        },
        Change::Move {
            object,
            from: at(root, b"from"),
            to: at(root, b"to"),
        },
        Change::Void {
            of: position,
            object,
        },
        Change::Note(Note::ScanEnd),
    ]);
    for state in states() {
        let content = state.kind.content().cloned();
        let (at, meta) = (Some(at(root, b"x")), Some(state.meta));
        all.push(Change::Update {
            object,
            at,
            meta,
            content,
        });
    }
    all
}

fn records() -> Vec<Vec<u8>> {
    let who = Who {
        pid: Some(1),
        uid: Some(2),
        exe: Some(b"/bin/x".as_slice().into()),
    };
    let frame = |change: Change| {
        let record = Record {
            position: Position {
                epoch: 1,
                sequence: 5,
            },
            time_ns: 7,
            end: true,
            who: Some(who.clone()),
            change,
            local: Some(local()),
            content: Some(ContentRef {
                segment: 1,
                block: 2,
                start: 3,
                length: 4,
            }),
        };
        let mut bytes = Vec::new();
        codec::encode(&record, &GENESIS, &mut bytes).unwrap();
        bytes
    };
    changes().into_iter().map(frame).collect()
}

/// Lengths and checksum of a record's frame as they would be, so that its bodies are looked at.
fn right_frame(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.len() < 80 {
        bytes.resize(80, 0);
    }
    let bodies = bytes.len() - 80;
    let local = random.below(3).min(1) * random.below(bodies + 1).min(40);
    bytes[..5].copy_from_slice(b"FSMr\x01");
    bytes[5..8].fill(0);
    bytes[59] = 0;
    bytes[8..12].copy_from_slice(&((bodies - local) as u32).to_le_bytes());
    bytes[12..16].copy_from_slice(&(local as u32).to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..20]), &bytes[24..]);
    bytes[20..24].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn records_and_their_frames() {
    let samples = records();
    let mut understood = 0u64;
    run("records", |random| {
        let mut bytes = random.changed(&samples);
        if random.below(4) > 0 {
            right_frame(&mut bytes, random);
        }
        let Ok(frame) = Frame::parse(&bytes) else {
            return;
        };
        let mut out = Vec::new();
        codec::strip(&bytes, &mut out).unwrap();
        let Ok(record) = codec::record(&frame) else {
            return;
        };
        understood += 1;
        if let Some(at) = match &record.change {
            Change::Create { at, .. } | Change::Link { at, .. } | Change::Unlink { at, .. } => {
                Some(at)
            }
            _ => None,
        } {
            let name = at.name.as_bytes();
            assert!(Name::new(name).is_ok() && !name.contains(&b'/'));
        }
        // What was understood can be said again, and means the same.
        if !matches!(record.change, Change::Note(Note::Unknown)) {
            let mut again = Vec::new();
            codec::encode(&record, &GENESIS, &mut again).unwrap();
            assert_eq!(codec::decode(&again, &GENESIS).unwrap().0, record);
        }
    });
    assert!(understood > 10);
}

#[test]
fn messages_and_their_frames() {
    let place = say::Place {
        epoch: 1,
        sequence: 2,
    };
    let messages: Vec<Message> = vec![
        say::Records {
            whole: true,
            bytes: records().concat(),
        }
        .into(),
        say::Contents {
            kept: true,
            blocks: vec![say::Block {
                digest: [1; 32],
                bytes: vec![2; 50],
            }],
        }
        .into(),
        say::Refused {
            cause: 2,
            reason: "no".into(),
        }
        .into(),
        say::Report {
            json: "{\"scans\":1}".into(),
        }
        .into(),
        say::BarrierDone {
            id: 1,
            position: Some(place),
            report: "{}".into(),
        }
        .into(),
        say::PieceEnd {
            id: 1,
            end: 0,
            reason: String::new(),
        }
        .into(),
        say::Heartbeat {
            time_ns: 7,
            end: None,
        }
        .into(),
    ];
    let samples: Vec<Vec<u8>> = messages
        .iter()
        .map(|message| {
            let mut bytes = Vec::new();
            message.encode(&mut bytes).unwrap();
            bytes
        })
        .collect();
    let mut understood = 0u64;
    run("messages", |random| {
        let mut bytes = random.changed(&samples);
        if bytes.len() >= 16 && random.below(4) > 0 {
            bytes[..5].copy_from_slice(b"FSMw\x01");
            let body = (bytes.len() - 16) as u32;
            bytes[8..12].copy_from_slice(&body.to_le_bytes());
            let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..]);
            bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        }
        let (mut from, mut body) = (bytes.as_slice(), Vec::new());
        while let Ok(message) = Message::read(&mut from, &mut body) {
            understood += 1;
            let mut again = Vec::new();
            if message.encode(&mut again).is_ok() {
                let same = Message::read(&mut again.as_slice(), &mut body).unwrap();
                assert_eq!(same, message);
            }
        }
        assert!(body.len() <= crate::link::frame::BODY_BYTES_MAX);
    });
    assert!(understood > 10);
}

#[test]
fn packed_frames() {
    let frame = |message: Message| message.encoded().unwrap();
    let text = "<?php echo get_option('name'); ?>\n".repeat(60);
    let frames = [
        frame(Message::from(say::Records {
            whole: true,
            bytes: records().concat(),
        })),
        frame(Message::from(say::Piece {
            id: 1,
            bytes: text.into_bytes(),
        })),
    ];
    let raw = frames.concat();
    let samples: Vec<Vec<u8>> = [raw.clone(), frames[1].repeat(30)]
        .iter()
        .flat_map(|raw| [1, 19].map(|level| zstd::bulk::compress(raw, level).unwrap()))
        .collect();
    let sizes = [raw.len(), frames[1].len() * 30];
    let mut unpacker = Unpacker::default();
    let (mut body, mut understood) = (Vec::new(), 0u64);
    run("packed frames", |random| {
        // What is packed may be nonsense, and so may the packing be.
        let (raw, bytes) = if random.below(2) == 0 {
            let raw = random.changed(&frames);
            (raw.len(), zstd::bulk::compress(&raw, 1).unwrap())
        } else {
            let raw = [sizes[random.below(2)], random.below(1 << 21)];
            (raw[random.below(2)], random.changed(&samples))
        };
        let raw = raw as u64;
        if unpacker.open(&say::Packed { raw, bytes }).is_ok() {
            while let Ok(Some(message)) = unpacker.next(&mut body) {
                assert!(say::may_be_packed(message.kind()));
                understood += 1;
            }
        }
        assert!(unpacker.room() <= packed::RAW_BYTES_MAX);
        unpacker = Unpacker::default();
    });
    assert!(understood > 10);
}

#[test]
fn segments_of_the_log() {
    let disk = SimDisk::new();
    let options = LogOptions {
        segment_bytes_max: 2000,
        ..LogOptions::default()
    };
    let mut log =
        Log::create(Arc::new(disk.clone()), options.clone(), [7; 16], [8; 16], 1).unwrap();
    for change in changes()
        .into_iter()
        .filter(|change| !matches!(change, Change::Open { .. }))
    {
        let content = log.content().put(b"a content").ok();
        let draft = crate::log::Draft {
            change,
            who: None,
            local: Some(local()),
            content,
        };
        log.append(vec![draft], 5).unwrap();
    }
    log.flush().unwrap();
    log.finish().unwrap();
    let mut names: Vec<String> = Vec::new();
    for dir in ["log", "content"] {
        names.extend(
            disk.list(dir)
                .unwrap()
                .into_iter()
                .map(|name| format!("{dir}/{name}")),
        );
    }
    let bytes_of = |name: &String| {
        let file = disk.open(name).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_at(0, &mut bytes).unwrap();
        bytes
    };
    let samples: Vec<Vec<u8>> = names.iter().map(bytes_of).collect();
    assert!(samples.len() >= 3);
    run("segments", |random| {
        let copy = disk.copy();
        let which = random.below(names.len());
        let bytes = random.changed(std::slice::from_ref(&samples[which]));
        copy.edit(&names[which], |file| *file = bytes).unwrap();
        let Ok((log, _)) = Log::open(Arc::new(copy), options.clone()) else {
            return;
        };
        let Ok(mut cursor) = log.reader().cursor(None) else {
            return;
        };
        while let Ok(Some(group)) = cursor.next_group() {
            for record in &group.records {
                if let Some(place) = record.content {
                    let _ = log.content().get(place);
                }
            }
        }
    });
}

#[test]
fn rows_of_the_index() {
    let mut samples = Vec::new();
    for state in states() {
        let body = row::body_encode(&state, &local());
        let names = {
            let mut names = mirror_core::Names::new();
            names.insert(at(ObjectId::ROOT.0, b"a"));
            names.insert(at(5, b"b"));
            names
        };
        samples.push(row::object_encode(&names, &body));
        samples.push(row::entry_inline(ObjectId(7), &body));
        samples.push(body);
    }
    samples.push(row::entry_reference(ObjectId(7)));
    samples.push(row::entry_key(ObjectId(1 << 44), b"name"));
    let mut understood = 0u64;
    run("rows", |random| {
        let bytes = random.changed(&samples);
        if let Ok(object) = row::object_decode(&bytes) {
            understood += 1;
            let Object {
                state,
                local,
                names,
            } = object;
            let again = row::object_encode(&names, &row::body_encode(&state, &local));
            let read = row::object_decode(&again).unwrap();
            assert_eq!((read.state, read.names), (state, names));
        }
        let _ = row::entry_split(&bytes);
        let _ = row::body_decode(&bytes);
        let _ = row::body_inode(&bytes);
        let _ = row::body_is_dir(&bytes);
        if let Ok(at) = row::entry_key_decode(&bytes) {
            assert_eq!(row::entry_key_at(&at), bytes);
        }
    });
    assert!(understood > 10);
}

#[test]
fn what_people_write() {
    let samples: Vec<Vec<u8>> = [
        "version = 1\nsource = \"u@host:2222:/srv/www\"\ndst = \"/backup/www\"\nignore = [\"*.tmp\", \"/x\"]\nowners = \"record\"\n\
         on_mass_change = \"hold\"\nbwlimit = \"10M\"\ntimeout = \"15s\"\ncross = [\"a/b\"]\nverify_every = \"1d\"\n",
        "[limits]\nbytes_max = \"10G\"\ninodes_max = 5\n[[hook]]\non = \"applied\"\nrun = [\"true\"]\n[tree.blog]\nsource = \"mirror://h/blog\"\n",
        "mk1:abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrst",
        "pos:1.17",
        "{\"scans\":1,\"failed\":[{\"path\":\"a\\\\x1b\",\"reason\":\"x\",\"since\":\"2026-11-22T18:04:00Z\",\"tries\":1}],\
         \"last_change\":{\"at\":\"2026-11-22T18:04:00Z\",\"path\":\"p\"},\"notices\":[\"n\"],\"notices_total\":18446744073709551615}",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    let dir = tempfile::tempdir().unwrap();
    let file = crate::cli::config::Config::path(dir.path());
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    let (mut refused, mut turn) = (0u64, 0u64);
    run("texts", |random| {
        let bytes = random.changed(&samples);
        turn += 1;
        if turn.is_multiple_of(20) {
            std::fs::write(&file, &bytes).unwrap();
            if let Err(e) = crate::cli::config::Config::load(dir.path()) {
                refused += 1;
                let text = e.to_string();
                assert!(
                    text.contains(&name) && !text.contains(mirror_core::is_tricky),
                    "{text:?}"
                );
            }
        }
        let Ok(text) = std::str::from_utf8(&bytes) else {
            return;
        };
        let mut problems = crate::engine::service::settings::Problems::default();
        let file = Arc::new(std::path::PathBuf::from("x.toml"));
        let _ = crate::engine::service::settings::parse(file, text, &mut problems);
        let _ = text.parse::<crate::net::keys::Fingerprint>();
        let _ = text.parse::<crate::net::pair::Token>();
        let _ = crate::engine::status::parse_position(text);
        if let Ok(report) = crate::link::report::parse::<crate::link::report::Report>(text) {
            assert!(
                report
                    .notices
                    .iter()
                    .all(|n| !n.contains(mirror_core::is_tricky))
            );
        }
    });
    assert!(refused > 0);
}
