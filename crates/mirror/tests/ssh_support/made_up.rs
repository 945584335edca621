//! A worker that is made up: what it says is written down beforehand and played by the script that stands for ssh.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mirror::disk::RealDisk;
use mirror::link::message::{self as say, Message};
use mirror::log::{Draft, Log, LogOptions};
use mirror_core::{At, Change, Content, Digest, Kind, Meta, Name, ObjectId, State};

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
        let all = (1..20).map(|id| {
            let position = Some(say::Place { epoch: 1, sequence });
            let report = "{}".into();
            Message::from(say::BarrierDone {
                id,
                position,
                report,
            })
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
