//! A worker that is made up: what it says is written down beforehand and played by the script that stands for ssh.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mirror::disk::RealDisk;
use mirror::link::message::{self as say, Message};
use mirror::log::{Draft, Log, LogOptions};
use mirror_core::{
    At, Change, Content, Digest, Kind, Meta, Name, ObjectId, Position, Record, State, codec,
};

use super::Bed;

pub const TREE: [u8; 16] = [7; 16];

/// Things a worker says, in order, to a follower with an empty log; to another only the first two. `rest` is shell that
/// goes on after them.
pub fn worker(bed: &Bed, messages: &[Message], rest: &str) {
    let greeting = messages.get(..2).unwrap_or_default();
    worker_to(bed, (messages, 1), (greeting, 1), rest);
}

/// Likewise, and what it says to a follower that has a log; each with where its answers say that all is.
pub fn worker_to(bed: &Bed, new: (&[Message], u64), known: (&[Message], u64), rest: &str) {
    let put = |name: &str, messages: &[Message]| {
        let mut bytes = Vec::new();
        for message in messages {
            message.encode(&mut bytes).unwrap();
        }
        fs::write(bed.path(name), bytes).unwrap();
        bed.path(name).display().to_string()
    };
    let said = put("said", new.0);
    let greeting = put("greeting", known.0);
    let beat = say::Heartbeat {
        time_ns: 1,
        end: None,
    };
    let beat = put("beat", &[beat.into()]);
    let rest = rest.replace("BEATS", &format!("while cat {beat}; do sleep 0.2; done"));
    // All is told, whatever is asked.
    let answers = |name: &str, sequence: u64| {
        let all = (1..2000).flat_map(|id| {
            let position = Some(say::Place { epoch: 1, sequence });
            let report = "{}".into();
            let done = Message::from(say::BarrierDone {
                id,
                position,
                report,
            });
            // Whatever content is asked for can't be had.
            let (end, reason) = (1, String::new());
            [done, say::PieceEnd { id, end, reason }.into()]
        });
        put(name, &all.collect::<Vec<_>>())
    };
    let (to_new, to_known) = (answers("to new", new.1), answers("to known", known.1));
    let rest = rest.replace(
        "ANSWERS",
        &format!("while sleep 0.5; do cat {beat} \"$answers\" || exit; done"),
    );
    let log = state(bed).join("log");
    bed.script(&format!(
        "if [ $(cat {}/* 2>/dev/null | wc -c) -gt 128 ]; then cat {greeting}; answers='{to_known}'\n\
         else cat {said}; answers='{to_new}'; fi || exit 1\n{rest}",
        log.display()
    ));
}

pub fn welcome() -> Message {
    say::Welcome {
        protocol: 1,
        features: 0,
        program: "made up".into(),
        tree: TREE,
        path: b"/made/up".to_vec(),
        detector: "fanotify".into(),
        why: "made up".into(),
        first: Some(say::Place {
            epoch: 1,
            sequence: 1,
        }),
        end: None,
        host: "far".into(),
        chain: Vec::new(),
    }
    .into()
}

pub fn report() -> Message {
    say::Report {
        json: "{\"scans\":1}".into(),
    }
    .into()
}

/// A log with these changes, each a group, as it travels.
pub fn records(changes: impl FnOnce(&mut dyn FnMut(Change) -> ObjectId)) -> Message {
    let bytes = groups(changes).concat();
    say::Records { whole: true, bytes }.into()
}

pub fn groups(changes: impl FnOnce(&mut dyn FnMut(Change) -> ObjectId)) -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::open(dir.path()).unwrap());
    let mut log = Log::create(disk, LogOptions::default(), TREE, [1; 16], 1).unwrap();
    changes(&mut |change| {
        let at = ObjectId::at(log.next_position()).unwrap();
        let draft = Draft {
            change,
            who: None,
            local: None,
            content: None,
        };
        log.append(vec![draft], 5).unwrap();
        at
    });
    log.flush().unwrap();
    let mut cursor = log.reader().cursor(None).unwrap();
    let mut groups = Vec::new();
    while let Some(group) = cursor.next_group().unwrap() {
        let mut bytes = Vec::new();
        group.to_wire(&mut bytes);
        groups.push(bytes);
    }
    groups
}

pub fn at(parent: ObjectId, name: &str) -> At {
    let name = Name::new(name.as_bytes()).unwrap();
    At { parent, name }
}

pub fn file(bytes: &[u8]) -> State {
    State {
        kind: Kind::File(Content {
            bytes: bytes.len() as u64,
            digest: Digest(*blake3::hash(bytes).as_bytes()),
            data: Vec::new(),
            proven: true,
            fuzzy: false,
        }),
        meta: Meta::default(),
    }
}

pub fn bytes_below(dir: &std::path::Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
        _ => entry.metadata().map_or(0, |found| found.len()),
    });
    sizes.sum()
}

pub fn state(bed: &Bed) -> std::path::PathBuf {
    bed.path("dst.fs_mirror")
}

pub fn once(bed: &Bed) -> (i32, String, Duration) {
    let began = Instant::now();
    let (code, said) = bed.mirror_once(&[]);
    (code, said, began.elapsed())
}

/// Records one after the other with a right chain, whatever they say.
pub struct Chain {
    pub head: Digest,
    /// Of the next record.
    pub position: Position,
    pub time_ns: u64,
    /// All of it so far.
    pub bytes: Vec<u8>,
    /// Where all before is applied first, and how many records that are.
    pub cuts: Vec<(usize, u64)>,
}

impl Chain {
    /// Begins with the record that every log begins with.
    pub fn new() -> Chain {
        let mut chain = Chain {
            head: codec::GENESIS,
            position: Position {
                epoch: 1,
                sequence: 1,
            },
            time_ns: 1,
            bytes: Vec::new(),
            cuts: Vec::new(),
        };
        let (tree, claim) = (TREE, [1; 16]);
        chain.group([Change::Open {
            tree,
            claim,
            parent: None,
        }]);
        chain
    }

    /// The id of what the next record creates.
    pub fn id(&self) -> ObjectId {
        ObjectId::at(self.position).unwrap_or(ObjectId(u64::MAX))
    }

    /// One group.
    pub fn group(&mut self, changes: impl IntoIterator<Item = Change>) {
        let mut changes = changes.into_iter().peekable();
        while let Some(change) = changes.next() {
            let end = changes.peek().is_none();
            self.record(change, end);
        }
    }

    pub fn record(&mut self, change: Change, end: bool) {
        let record = Record {
            position: self.position,
            time_ns: self.time_ns,
            end,
            who: None,
            change,
            local: None,
            content: None,
        };
        self.head = codec::encode(&record, &self.head, &mut self.bytes).unwrap();
        self.position.sequence += 1;
    }

    /// A group of one frame, checksum and chain right, its bodies whatever they are.
    pub fn raw(&mut self, kind: u8, flags: u16, shared: &[u8], local: &[u8]) {
        let mut frame = vec![0; 80];
        frame[..4].copy_from_slice(b"FSMr");
        frame[4] = 1;
        frame[8..12].copy_from_slice(&(shared.len() as u32).to_le_bytes());
        frame[12..16].copy_from_slice(&(local.len() as u32).to_le_bytes());
        frame[24..56].copy_from_slice(&self.head.0);
        frame[56..58].copy_from_slice(&flags.to_le_bytes());
        frame[58] = kind;
        frame[60..64].copy_from_slice(&self.position.epoch.to_le_bytes());
        frame[64..72].copy_from_slice(&self.position.sequence.to_le_bytes());
        frame[72..80].copy_from_slice(&self.time_ns.to_le_bytes());
        frame.extend_from_slice(shared);
        let head = blake3::hash(&frame[24..]);
        frame[24..56].copy_from_slice(head.as_bytes());
        frame.extend_from_slice(local);
        let sum = crc32c::crc32c_append(crc32c::crc32c(&frame[..20]), &frame[24..]);
        frame[20..24].copy_from_slice(&sum.to_le_bytes());
        self.head = Digest(*head.as_bytes());
        self.position.sequence += 1;
        self.bytes.extend_from_slice(&frame);
    }

    /// A new object with this name, in a group of its own.
    pub fn create(&mut self, parent: ObjectId, name: &[u8], kind: Kind, meta: Meta) -> ObjectId {
        let object = self.id();
        let at = At {
            parent,
            name: Name::new(name).unwrap(),
        };
        let state = State { kind, meta };
        self.group([Change::Create { at, object, state }]);
        object
    }

    /// What comes from here on is said once all before it is applied.
    pub fn cut(&mut self) {
        let cut = (self.bytes.len(), self.position.sequence - 1);
        if self.cuts.last() != Some(&cut) {
            self.cuts.push(cut);
        }
    }
}

/// Whole groups as messages.
pub fn records_of(bytes: &[u8]) -> Vec<Message> {
    let pieces: Vec<&[u8]> = bytes.chunks(900 << 10).collect();
    let last = pieces.len();
    let said = pieces.into_iter().zip(1..).map(|(piece, n)| {
        let (whole, bytes) = (n == last, piece.to_vec());
        say::Records { whole, bytes }.into()
    });
    said.collect()
}

/// Plays this log to a new follower up to each cut in turn and to its end, and says each time that this is all.
pub fn worker_with(bed: &Bed, chain: &mut Chain, mut run: impl FnMut()) {
    chain.cut();
    let mut before = 0;
    for &(at, last) in &chain.cuts {
        let greeting = vec![welcome(), report()];
        let more = records_of(chain.bytes.get(before..at).unwrap_or_default());
        let all = [greeting.clone(), more].concat();
        match before {
            0 => worker_to(bed, (&all, last), (&greeting, last), "ANSWERS"),
            _ => worker_to(bed, (&greeting, last), (&all, last), "ANSWERS"),
        }
        run();
        before = at;
    }
}

pub fn no_bytes() -> Kind {
    file(b"").kind
}
