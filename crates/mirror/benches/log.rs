//! Time to append, flush and read groups: `cargo bench -p mirror --bench log [-- DIR]`; DIR on the disk to measure, else
//! the directory for temporary files.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mirror::disk::RealDisk;
use mirror::log::{Draft, Log, LogOptions};
use mirror_core::*;

fn draft(position: Position, content: Option<ContentRef>) -> Draft {
    let name = format!("wp-content-{}.php", position.sequence);
    let content_of = Content {
        bytes: 4096,
        digest: Digest([7; 32]),
        data: Vec::new(),
        proven: true,
        fuzzy: false,
    };
    Draft {
        change: Change::Create {
            at: At {
                parent: ObjectId((1 << 44) | 77),
                name: Name::new(name.as_bytes()).unwrap(),
            },
            object: ObjectId::at(position).unwrap(),
            state: State {
                kind: Kind::File(content_of),
                meta: Meta {
                    mode: 0o644,
                    uid: 33,
                    gid: 33,
                    ..Meta::default()
                },
            },
        },
        who: None,
        local: Some(Local::default()),
        content,
    }
}

/// Appends `groups` groups of `records`, each flushed, with contents of `bytes` if not 0.
fn write(log: &mut Log, groups: usize, records: usize, bytes: &[u8]) -> (Duration, Duration) {
    let mut flushes = Vec::new();
    let begin = Instant::now();
    for _ in 0..groups {
        let mut position = log.next_position();
        let mut drafts = Vec::new();
        for _ in 0..records {
            let content = (!bytes.is_empty()).then(|| log.content().put(bytes).unwrap());
            drafts.push(draft(position, content));
            position.sequence += 1;
        }
        log.append(drafts, 1).unwrap();
        let flush = Instant::now();
        log.flush().unwrap();
        flushes.push(flush.elapsed());
    }
    flushes.sort();
    (begin.elapsed(), flushes[flushes.len() / 2])
}

fn main() {
    let dir = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let dir = match dir {
        Some(dir) => tempfile::tempdir_in(dir).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    let disk = Arc::new(RealDisk::open(dir.path()).unwrap());
    let mut log = Log::create(disk.clone(), LogOptions::default(), [1; 16], [2; 16], 1).unwrap();
    let text: Vec<u8> = (0..4096u32).map(|n| (n / 5 * 7) as u8).collect();
    let mut total = 1;
    let cases = [
        (500, 1, 0),
        (500, 1, 4096),
        (200, 100, 0),
        (200, 100, 4096),
        (10, 20_000, 0),
    ];
    for (groups, records, bytes) in cases {
        let (all, flush) = write(
            &mut log,
            groups,
            records,
            text.get(..bytes).unwrap_or_default(),
        );
        let each = all.as_nanos() as f64 / (groups * records) as f64 / 1000.0;
        println!(
            "groups of {records:6} with {bytes:4} bytes each: {each:9.2} us a record, flush p50 {flush:?}"
        );
        total += groups * records;
    }
    let begin = Instant::now();
    let mut cursor = log.reader().cursor(None).unwrap();
    let mut read = 0;
    while let Some(group) = cursor.next_group().unwrap() {
        read += group.records.len();
    }
    assert_eq!(read, total);
    println!(
        "reading: {:.2} us a record",
        begin.elapsed().as_nanos() as f64 / read as f64 / 1000.0
    );
    drop(log);
    let begin = Instant::now();
    Log::open(disk, LogOptions::default()).unwrap();
    println!("opening: {:?}", begin.elapsed());
}
