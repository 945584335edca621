//! A worker that does not mean well: what it sends is bounded, and a mirror says what is wrong and ends.

mod ssh_support;

use std::fs;
use std::time::{Duration, Instant};

use mirror::link::message::{self as say, Message};
use mirror_core::{Change, Kind, Meta, ObjectId, State};
use ssh_support::made_up::{self, *};
use ssh_support::*;
use testkit::proc::Program;

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
fn what_unpacks_to_anything_but_what_was_said_is_refused() {
    let welcome = match welcome() {
        Message::Welcome(said) => Message::from(say::Welcome {
            features: say::FEATURE_PACKED,
            ..said
        }),
        other => other,
    };
    let zeros = vec![0u8; 256 << 20];
    let bomb = zstd::bulk::compress(&zeros, 1).unwrap();
    let bye = Message::from(say::Bye { reason: "x".into() });
    let mut inner = Vec::new();
    bye.encode(&mut inner).unwrap();
    let packed = |raw: u64, bytes: Vec<u8>| Message::from(say::Packed { raw, bytes });
    for (said, why) in [
        (
            packed(1 << 20, bomb.clone()),
            "do not unpack to what was said",
        ),
        (packed(256 << 20, bomb), "1048576 is the limit"),
        (packed(100, b"cut".to_vec()), "do not unpack"),
        (
            packed(inner.len() as u64, zstd::bulk::compress(&inner, 1).unwrap()),
            "a message of kind 20 came packed",
        ),
    ] {
        let bed = Bed::new();
        worker(&bed, &[welcome.clone(), report(), said], "BEATS");
        let (code, text, _) = once(&bed);
        assert_eq!(code, 1, "{text}");
        let line = text.lines().last().unwrap_or_default();
        assert!(
            line.contains("far broke: the other side breaks the protocol") && line.contains(why),
            "{text}"
        );
    }
    // Of one that never said that it packs it is not even looked at.
    let bed = Bed::new();
    let said = packed(1, b"x".to_vec());
    worker(&bed, &[made_up::welcome(), report(), said], "BEATS");
    let (code, text, _) = once(&bed);
    assert!(code == 1 && text.contains("messages of kind 30"), "{text}");
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
