//! A worker that does not mean well: what it sends is bounded, and a mirror says what is wrong and ends.

mod ssh_support;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mirror::disk::RealDisk;
use mirror::link::message::{self as say, Message};
use mirror::log::{Draft, Log, LogOptions};
use mirror_core::{At, Change, Content, Digest, Kind, Meta, Name, ObjectId, State};
use ssh_support::*;
use testkit::proc::Program;

const TREE: [u8; 16] = [7; 16];

/// Things a worker says, in order, to a follower with an empty log; to another only the first two. `rest` is shell that
/// goes on after them.
fn worker(bed: &Bed, messages: &[Message], rest: &str) {
    let greeting = messages.get(..2).unwrap_or_default();
    worker_to(bed, (messages, 1), (greeting, 1), rest);
}

/// Likewise, and what it says to a follower that has a log; each with where its answers say that all is.
fn worker_to(bed: &Bed, new: (&[Message], u64), known: (&[Message], u64), rest: &str) {
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

fn welcome() -> Message {
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
    }
    .into()
}

fn report() -> Message {
    say::Report {
        json: "{\"scans\":1}".into(),
    }
    .into()
}

/// A log with these changes, each a group, as it travels.
fn records(changes: impl FnOnce(&mut dyn FnMut(Change) -> ObjectId)) -> Message {
    let bytes = groups(changes).concat();
    say::Records { whole: true, bytes }.into()
}

fn groups(changes: impl FnOnce(&mut dyn FnMut(Change) -> ObjectId)) -> Vec<Vec<u8>> {
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

fn at(parent: ObjectId, name: &str) -> At {
    let name = Name::new(name.as_bytes()).unwrap();
    At { parent, name }
}

fn file(bytes: &[u8]) -> State {
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

fn bytes_below(dir: &std::path::Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
        _ => entry.metadata().map_or(0, |found| found.len()),
    });
    sizes.sum()
}

fn state(bed: &Bed) -> std::path::PathBuf {
    bed.path("dst.fs_mirror")
}

fn once(bed: &Bed) -> (i32, String, Duration) {
    let began = Instant::now();
    let (code, said) = bed.mirror_once(&[]);
    (code, said, began.elapsed())
}

#[test]
fn heartbeats_alone_are_no_handshake() {
    std::thread::scope(|scope| {
        for said in [vec![], vec![welcome()]] {
            scope.spawn(move || {
                let bed = Bed::new();
                worker(&bed, &said, "BEATS");
                let (code, text, took) = once(&bed);
                assert_eq!(code, 6, "{text}");
                let line = text.lines().last().unwrap_or_default();
                assert!(
                    line.contains("far") && line.contains("within 30 s"),
                    "{text}"
                );
                assert!(took < Duration::from_secs(50), "{took:?} {text}");
            });
        }
    });
}

#[test]
fn a_question_that_is_not_answered_comes_to_an_end() {
    let nothing = vec![welcome(), report()];
    // Records, and never the last of what the barrier would cover.
    let records = records(|change| {
        let object = ObjectId(ObjectId::ROOT.0 + 1);
        let at = at(ObjectId::ROOT, "d");
        let state = State {
            kind: Kind::Dir,
            meta: Meta::default(),
        };
        change(Change::Create { at, object, state });
    });
    for said in [nothing, vec![welcome(), report(), records]] {
        let bed = Bed::new();
        worker(&bed, &said, "BEATS");
        let began = Instant::now();
        let (code, text) = bed.mirror_once(&["--timeout", "1s"]);
        assert_eq!(code, 6, "{text}");
        let line = text.lines().last().unwrap_or_default();
        assert!(
            line.contains("far does not answer: only heartbeats came for 8 s (8 times --timeout)"),
            "{text}"
        );
        let took = began.elapsed();
        assert!(took < Duration::from_secs(30), "{took:?} {text}");
        // Another one tells it, and asks again.
        let mut follower = bed.mirror(&["--timeout", "1s"]);
        let found = follower.wait_stderr("does not answer", LONG);
        assert!(found.is_ok(), "{}", follower.stderr());
        stop(follower);
    }
}

#[test]
fn contents_without_records_are_bounded_and_go_with_the_link() {
    let bed = Bed::new();
    // Compressible by nobody, and each another one: 1 MiB, said again and again.
    let noise = |seed: u32| {
        let mut hash = blake3::Hasher::new();
        hash.update(&seed.to_le_bytes());
        let mut bytes = vec![0; 200_000];
        hash.finalize_xof().fill(&mut bytes);
        bytes
    };
    let blocks = |seed: u32| {
        let bytes = noise(seed);
        let digest = *blake3::hash(&bytes).as_bytes();
        vec![say::Block { digest, bytes }]
    };
    let mut said = vec![welcome(), report()];
    for seed in 0..200 {
        let blocks = blocks(seed);
        said.push(say::Contents { kept: true, blocks }.into());
    }
    let rest = format!("while cat {} ; do :; done", bed.path("more").display());
    worker(&bed, &said, &rest);
    // What goes on for ever.
    let mut more = Vec::new();
    for seed in 200..210 {
        let blocks = blocks(seed);
        let message = Message::from(say::Contents { kept: true, blocks });
        message.encode(&mut more).unwrap();
    }
    fs::write(bed.path("more"), more).unwrap();
    let (code, text, _) = once(&bed);
    assert_eq!(code, 1, "{text}");
    let line = text.lines().last().unwrap_or_default();
    assert!(
        line.contains(
            "the other side breaks the protocol: contents of 256 MiB come without their records"
        ),
        "{text}"
    );
    assert_eq!(bytes_below(&state(&bed).join("content")), 0);
    let left = bytes_below(&state(&bed));
    assert!(left < 8 << 20, "{left} bytes are left");
}

#[test]
fn a_content_that_is_not_what_its_record_says_is_not_kept() {
    let bed = Bed::new();
    let told = records(|change| {
        let object = ObjectId(ObjectId::ROOT.0 + 1);
        let at = at(ObjectId::ROOT, "f");
        let state = file(b"0123456789");
        change(Change::Create { at, object, state });
    });
    let digest = *blake3::hash(b"0123456789").as_bytes();
    let bytes = b"evil bytes".to_vec();
    let blocks = vec![say::Block { digest, bytes }];
    let contents = say::Contents { kept: true, blocks }.into();
    worker(&bed, &[welcome(), report(), contents, told], "BEATS");
    let (code, text, _) = once(&bed);
    assert_eq!(code, 1, "{text}");
    let line = text.lines().last().unwrap_or_default();
    assert!(
        line.contains("contents are not what their records say (1 of them)"),
        "{text}"
    );
    assert!(!bed.dst().join("f").exists());
    assert_eq!(bytes_below(&state(&bed).join("content")), 0);
}

#[test]
fn who_contradicts_itself_does_not_say_what_goes() {
    let made = |change: &mut dyn FnMut(Change) -> ObjectId, name: &str, id| {
        let object = ObjectId(ObjectId::ROOT.0 + id);
        let at = at(ObjectId::ROOT, name);
        let state = file(b"");
        assert_eq!(change(Change::Create { at, object, state }), object);
    };
    let mut all = groups(|change| {
        made(change, "a", 1);
        made(change, "b", 2);
        made(change, "c", 3);
        change(Change::Unlink {
            at: at(ObjectId::ROOT, "x"),
            object: ObjectId(ObjectId::ROOT.0 + 77),
        });
    });
    let wrong = all.pop().unwrap();
    let all = Message::from(say::Records {
        whole: true,
        bytes: all.concat(),
    });
    let wrong = Message::from(say::Records {
        whole: true,
        bytes: wrong,
    });
    let bed = Bed::new();
    let greeted = [welcome(), report()];
    worker_to(
        &bed,
        (&[welcome(), report(), all], 4),
        (&greeted, 4),
        "ANSWERS",
    );
    let (code, text) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{text}");
    // It contradicts itself; then all is compared, and it has one file only.
    let less = records(|change| made(change, "b", 1));
    worker_to(
        &bed,
        (&[welcome(), report(), less], 2),
        (&[welcome(), report(), wrong], 5),
        "ANSWERS",
    );
    for _ in 0..2 {
        let (code, text) = bed.mirror_once(&[]);
        assert_eq!(code, 3, "{text}");
        assert!(text.contains("--yes"), "{text}");
        assert!(bed.dst().join("a").exists() && bed.dst().join("c").exists());
        worker_to(&bed, (&greeted, 2), (&greeted, 2), "ANSWERS");
    }
    let (code, text) = bed.mirror_once(&["--yes"]);
    assert_eq!(code, 0, "{text}");
    assert!(!bed.dst().join("a").exists() && bed.dst().join("b").exists());
    // Nothing of it is lost, and it is told.
    let (_, status) = bed.command(&["status", "--json"]);
    assert!(status.contains("\"entries\":2}"), "{status}");
    let (code, told) = bed.command(&["adopted"]);
    assert!(code == 0 && told.starts_with("2 entries"), "{code} {told}");
    let (code, told) = bed.command(&["adopted", "--empty"]);
    assert!(code == 1 && told.contains("--yes"), "{code} {told}");
    let (code, told) = bed.command(&["adopted", "--empty", "--yes", "--older-than", "1h"]);
    assert!(code == 0 && told.contains("nothing to remove"), "{told}");
    let (code, told) = bed.command(&["adopted", "--empty", "--yes"]);
    assert!(code == 0 && told.contains("removed: 2"), "{code} {told}");
    assert_eq!(
        fs::read_dir(state(&bed).join("adopted")).unwrap().count(),
        0
    );
}

#[test]
fn records_that_contradict_the_tree_end_a_mirror_that_runs_once_and_are_a_failure_of_another() {
    let nowhere = records(|change| {
        let object = ObjectId(ObjectId::ROOT.0 + 77);
        change(Change::Unlink {
            at: at(ObjectId::ROOT, "x"),
            object,
        });
    });
    let below_a_link = records(|change| {
        let object = ObjectId(ObjectId::ROOT.0 + 1);
        let state = State {
            kind: Kind::Symlink("/tmp".as_bytes().into()),
            meta: Meta::default(),
        };
        let link = change(Change::Create {
            at: at(ObjectId::ROOT, "link"),
            object,
            state,
        });
        assert_eq!(link, object);
        change(Change::Create {
            at: at(object, "pwn"),
            object: ObjectId(object.0 + 1),
            state: file(b""),
        });
    });
    let into_itself = records(|change| {
        let dir = |change: &mut dyn FnMut(Change) -> ObjectId, parent, name, object| {
            let state = State {
                kind: Kind::Dir,
                meta: Meta::default(),
            };
            let made = change(Change::Create {
                at: at(parent, name),
                object,
                state,
            });
            assert_eq!(made, object);
        };
        let (above, below) = (
            ObjectId(ObjectId::ROOT.0 + 1),
            ObjectId(ObjectId::ROOT.0 + 2),
        );
        dir(change, ObjectId::ROOT, "a", above);
        dir(change, above, "b", below);
        change(Change::Move {
            object: above,
            from: at(ObjectId::ROOT, "a"),
            to: at(below, "a"),
        });
    });
    for told in [nowhere, below_a_link, into_itself] {
        let bed = Bed::new();
        worker(&bed, &[welcome(), report(), told], "BEATS");
        let (code, text, took) = once(&bed);
        assert_eq!(code, 1, "{text}");
        let line = text.lines().last().unwrap_or_default();
        assert!(line.contains("the records do not fit the index"), "{text}");
        assert!(took < Duration::from_secs(60), "{took:?} {text}");
        // Compared anew once, not again and again.
        let aside = fs::read_dir(state(&bed).join("divergence")).unwrap();
        assert_eq!(aside.count(), 1);
        let follower: Program = bed.mirror(&[]);
        bed.wait("it says that it fails", || {
            let (_, status) = bed.command(&["status", "--json"]);
            let (code, _) = bed.command(&["check"]);
            status.contains("the records do not fit the index") && code == 2
        });
        stop(follower);
    }
}
