//! Time to encode and to decode a typical record: `cargo bench -p mirror-core`.

use std::hint::black_box;
use std::time::Instant;

use mirror_core::codec::{self, GENESIS};
use mirror_core::*;

const RECORDS: u64 = 200_000;
const ROUNDS: usize = 7;

/// A small file made by a web server, on a host that knows its handle.
fn record(sequence: u64) -> Record {
    let position = Position { epoch: 1, sequence };
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&sequence.to_le_bytes());
    let name = format!("wp-content-{sequence}.php");
    let time = Time {
        seconds: 1_790_000_000 + sequence as i64,
        nanos: 123_456_789,
    };
    Record {
        position,
        time_ns: 1_790_000_000_000_000_000 + sequence,
        end: true,
        who: Some(Who {
            pid: Some(4711),
            uid: Some(33),
            exe: None,
        }),
        change: Change::Create {
            at: At {
                parent: ObjectId((1 << 44) | 77),
                name: Name::new(name.as_bytes()).unwrap(),
            },
            object: ObjectId::at(position).unwrap(),
            state: State {
                kind: Kind::File(Content {
                    bytes: 4096,
                    digest: Digest(digest),
                    data: Vec::new(),
                    proven: true,
                    fuzzy: false,
                }),
                meta: Meta {
                    mode: 0o644,
                    uid: 33,
                    gid: 33,
                    mtime: time,
                    ..Meta::default()
                },
            },
        },
        local: Some(Local {
            handle: Some(Handle {
                kind: 1,
                bytes: sequence.to_le_bytes()[..].into(),
            }),
            ino: sequence,
            ctime: time,
            btime: time,
        }),
        content: Some(ContentRef {
            segment: 3,
            block: 70_000,
            start: 8192,
            length: 4096,
        }),
    }
}

/// The best of some rounds, in nanoseconds for each record.
fn best(mut round: impl FnMut()) -> f64 {
    let times = (0..ROUNDS).map(|_| {
        let begin = Instant::now();
        round();
        begin.elapsed().as_nanos() as f64 / RECORDS as f64
    });
    times.fold(f64::INFINITY, f64::min)
}

fn main() {
    let records: Vec<Record> = (1..=RECORDS).map(record).collect();
    let mut bytes = Vec::with_capacity(300 * RECORDS as usize);
    let encode = best(|| {
        bytes.clear();
        let mut head = GENESIS;
        for record in &records {
            head = codec::encode(black_box(record), &head, &mut bytes).unwrap();
        }
    });
    let decode = best(|| {
        let (mut rest, mut head) = (bytes.as_slice(), GENESIS);
        while !rest.is_empty() {
            let (record, next, len) = codec::decode(rest, &head).unwrap();
            black_box(record);
            (rest, head) = (&rest[len..], next);
        }
    });
    println!("{} bytes a record", bytes.len() / records.len());
    println!("encode {encode:6.0} ns a record");
    println!("decode {decode:6.0} ns a record");
    let parts = |part: &dyn Fn(&codec::Frame)| {
        best(|| {
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let frame = codec::Frame::parse(rest).unwrap();
                part(&frame);
                rest = &rest[frame.bytes.len()..];
            }
        })
    };
    let checksum = parts(&|_| {});
    let chain = parts(&|frame| {
        black_box(frame.continues(&GENESIS));
    }) - checksum;
    let bodies = parts(&|frame| drop(black_box(codec::record(frame)))) - checksum;
    println!("       of it checksum {checksum:.0}, chain {chain:.0}, bodies {bodies:.0}");
}
