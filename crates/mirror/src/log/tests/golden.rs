//! The sample log of format 1, checked in, opened forever. A new format gets a sample of its own beside it.

use std::path::{Path, PathBuf};

use mirror_core::{Fork, Time, Xattr};

use super::*;

fn sample_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format1")
}

const SMALL: &[u8] = b"<?php // a small content\n";

fn at(parent: ObjectId, name: &[u8]) -> At {
    At {
        parent,
        name: Name::new(name).unwrap(),
    }
}

fn id(sequence: u64) -> ObjectId {
    ObjectId::at(Position { epoch: 1, sequence }).unwrap()
}

/// Every kind of record and of object; one group each.
fn groups(small: ContentRef, large: ContentRef) -> Vec<Vec<Draft>> {
    let meta = Meta {
        mode: 0o6755,
        uid: 1000,
        gid: 4_000_000_000,
        mtime: Time {
            seconds: -1,
            nanos: 999_999_999,
        },
        xattrs: vec![
            Xattr {
                name: b"security.capability"[..].into(),
                value: vec![1, 0, 0, 2].into(),
            },
            Xattr {
                name: b"user.empty"[..].into(),
                value: [].into(),
            },
        ],
        flags: 0x10,
        project: 42,
    };
    let plain = Meta {
        mode: 0o755,
        ..Meta::default()
    };
    let dense = |content: ContentRef| Content {
        bytes: u64::from(content.length),
        digest: Digest([0xab; 32]),
        data: Vec::new(),
        proven: true,
        fuzzy: false,
    };
    let sparse = Content {
        bytes: 1 << 40,
        digest: Digest([0xcd; 32]),
        data: vec![(0, 4096), (1 << 30, 8192)],
        proven: false,
        fuzzy: true,
    };
    let create = |parent, name: &[u8], object, kind, meta: &Meta| Draft {
        change: Change::Create {
            at: at(parent, name),
            object,
            state: State {
                kind,
                meta: meta.clone(),
            },
        },
        who: None,
        local: None,
        content: None,
    };
    let plainly = |change| Draft {
        change,
        who: None,
        local: None,
        content: None,
    };
    let local = Local {
        handle: Some(Handle {
            kind: 1,
            bytes: vec![1, 2, 3, 4, 5, 6, 7, 8].into(),
        }),
        ino: 12,
        ctime: Time {
            seconds: 1_700_000_000,
            nanos: 5,
        },
        btime: Time::default(),
    };
    let who = Who {
        pid: Some(4711),
        uid: Some(33),
        exe: Some(b"/usr/bin/php"[..].into()),
    };
    let dir = id(2);
    vec![
        vec![
            create(ObjectId::ROOT, b"dir", dir, Kind::Dir, &plain),
            Draft {
                who: Some(who),
                local: Some(local.clone()),
                content: Some(small),
                ..create(
                    dir,
                    b"raw \xff\n name",
                    id(3),
                    Kind::File(dense(small)),
                    &meta,
                )
            },
        ],
        vec![
            create(dir, b"sparse", id(4), Kind::File(sparse.clone()), &plain),
            create(
                dir,
                b"link",
                id(5),
                Kind::Symlink(b"../to/nowhere"[..].into()),
                &plain,
            ),
            create(
                dir,
                b"block",
                id(6),
                Kind::Device {
                    block: true,
                    major: 8,
                    minor: 1,
                },
                &plain,
            ),
            create(
                dir,
                b"char",
                id(7),
                Kind::Device {
                    block: false,
                    major: 1,
                    minor: 3,
                },
                &plain,
            ),
            create(dir, b"fifo", id(8), Kind::Fifo, &plain),
            create(dir, b"socket", id(9), Kind::Socket, &plain),
        ],
        vec![plainly(Change::Link {
            at: at(ObjectId::ROOT, b"second"),
            object: id(3),
        })],
        vec![plainly(Change::Move {
            object: dir,
            from: at(ObjectId::ROOT, b"dir"),
            to: at(ObjectId::ROOT, b"moved"),
        })],
        vec![
            Draft {
                content: Some(large),
                local: Some(Local {
                    handle: None,
                    ..local
                }),
                ..plainly(Change::Update {
                    object: id(3),
                    at: Some(at(ObjectId::ROOT, b"second")),
                    meta: None,
                    content: Some(dense(large)),
                })
            },
            plainly(Change::Update {
                object: ObjectId::ROOT,
                at: None,
                meta: Some(meta),
                content: None,
            }),
        ],
        vec![plainly(Change::Unlink {
            at: at(dir, b"fifo"),
            object: id(8),
        })],
        vec![plainly(Change::Void {
            of: Position {
                epoch: 1,
                sequence: 4,
            },
            object: id(4),
        })],
        [
            Note::Overflow,
            Note::ScanBegin,
            Note::ScanEnd,
            Note::Hold,
            Note::Release,
        ]
        .map(|note| plainly(Change::Note(note)))
        .into(),
    ]
}

fn large() -> Vec<u8> {
    (0..20_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect()
}

fn options() -> LogOptions {
    LogOptions {
        segment_bytes_max: 1500,
        ..LogOptions::default()
    }
}

/// Writes the sample; returns its records and end.
fn write(disk: Arc<dyn Disk>) -> (Vec<Record>, End) {
    let mut log = Log::create(disk, options(), TREE, CLAIM, 1_700_000_000_000_000_000).unwrap();
    let refs = [
        log.content().put(SMALL).unwrap(),
        log.content().put(&large()).unwrap(),
    ];
    for (n, group) in groups(refs[0], refs[1]).into_iter().enumerate() {
        log.append(group, 1_700_000_000_000_000_001 + n as u64)
            .unwrap();
        log.flush().unwrap();
    }
    let position = log.end().unwrap().position;
    let parent = Some(Fork {
        position,
        head: Digest([0xef; 32]),
    });
    log.append_open(3, [9; 16], parent, 0).unwrap();
    log.flush().unwrap();
    let written = (read_all(&log).unwrap(), log.end().unwrap());
    log.finish().unwrap();
    written
}

/// Run by hand, once for each format: `cargo test -p mirror --lib golden -- --ignored`.
#[test]
#[ignore = "writes the checked-in sample"]
fn write_the_sample() {
    std::fs::create_dir_all(sample_dir()).unwrap();
    write(Arc::new(RealDisk::open(&sample_dir()).unwrap()));
}

#[test]
fn the_sample_of_format_1_opens() {
    // Opening writes: on a copy.
    let disk = SimDisk::new();
    for dir in ["log", "content"] {
        disk.make_dir(dir).unwrap();
        for entry in std::fs::read_dir(sample_dir().join(dir)).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{dir}/{}", entry.file_name().to_str().unwrap());
            let file = disk.create(&name).unwrap();
            file.append(&std::fs::read(entry.path()).unwrap()).unwrap();
        }
    }
    assert!(log_files(&disk).len() > 1);
    let (log, recovered) = Log::open(Arc::new(disk), options()).unwrap();
    let (records, end) = write(Arc::new(SimDisk::new()));
    assert_eq!(
        recovered,
        Recovered {
            tree: TREE,
            end: Some(end),
            cut_bytes: 0
        }
    );
    assert_eq!(
        format!(
            "{}",
            end.head
                .0
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        ),
        HEAD,
        "the hash chain is part of the format"
    );
    let read = read_all(&log).unwrap();
    // Where a content lies may differ with the packer's version.
    assert_eq!(read.len(), records.len());
    for (read, written) in read.iter().zip(&records) {
        assert_eq!(
            Record {
                content: written.content,
                ..read.clone()
            },
            *written
        );
    }
    let contents: Vec<_> = read.iter().filter_map(|record| record.content).collect();
    assert_eq!(log.content().get(contents[0]).unwrap(), SMALL);
    assert_eq!(log.content().get(contents[1]).unwrap(), large());
}

const HEAD: &str = "69fd79150136e6bc5991c9247c92bc1646e2f690b3fda4a89494bd68f8363885";
