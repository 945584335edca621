//! What is packed on a connection, and what is not, to followers that know of it and to those of before.

use std::time::{Duration, Instant};

use crate::engine::options::Compress;
use crate::link::message::{self as say, FEATURE_PACKED, FEATURE_TAKEN, Message};
use crate::link::report::{self, Report};

use super::pair::{Fake, Hand, own_log};

const WITHIN: Duration = Duration::from_secs(60);

fn script(n: usize) -> Vec<u8> {
    let line = |k: usize| format!("  $value[{k}] = get_option('name_{}');\n", n * 7919 % 1000);
    (0..40).flat_map(|k| line(k).into_bytes()).collect()
}

fn hears_packed(fake: &std::sync::Arc<Fake>, packing: u8) -> Hand {
    let mut hand = Hand::connect(fake);
    let welcome = hand.hello_with(0, FEATURE_PACKED);
    assert_ne!(welcome.features & FEATURE_PACKED, 0);
    hand.incoming.unpacks();
    let bwlimit = 0;
    hand.out.send(say::Pace { bwlimit, packing }).unwrap();
    hand
}

fn piece_bytes(hand: &mut Hand) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        match hand.hear() {
            Message::Piece(piece) => bytes.extend_from_slice(&piece.bytes),
            Message::PieceEnd(end) => {
                assert_eq!(end.end, 0);
                return bytes;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_comes_packed_is_the_same_and_less_of_it_comes() {
    let fake = Fake::new();
    for n in 0..500 {
        fake.file(&format!("{n}.php"), &script(n), n % 2 == 0, false);
    }
    let large: Vec<u8> = (0..300).flat_map(script).collect();
    let (large_id, digest) = fake.file("large", &large, false, false);
    let mut came = Vec::new();
    let slow = say::Came {
        bytes: 1_000_000,
        waited_us: 900_000,
    };
    for (packing, told) in [
        (Compress::On, None),
        (Compress::Off, Some(slow)),
        (Compress::Auto, None),
        (Compress::Auto, Some(slow)),
    ] {
        let mut hand = hears_packed(&fake, packing.code());
        if let Some(came) = told {
            hand.out.send(came).unwrap();
        }
        let packs = packing == Compress::On || (packing == Compress::Auto && told.is_some());
        let (_dir, mut log) = own_log();
        hand.follow(None);
        let contents = hand.take(&mut log, fake.end());
        assert_eq!(contents.len(), 500 + came.len().min(1));
        for n in 0..500 {
            let digest = *blake3::hash(&script(n)).as_bytes();
            assert_eq!(contents[&digest], (n % 2 == 0, script(n)));
        }
        hand.out
            .send(say::Request {
                id: 9,
                object: large_id.0,
                digest: digest.0,
                from: None,
            })
            .unwrap();
        assert!(piece_bytes(&mut hand) == large);
        let arrived = hand.incoming.arrived();
        assert_eq!(arrived.comes_packed(), packs);
        came.push((packs, arrived.bytes(), arrived.saved()));
        // Live, alone: too little to shrink much, and whole all the same.
        fake.file("live", &script(777), true, false);
        let contents = hand.take(&mut log, fake.end());
        assert!(contents.values().any(|(_, bytes)| *bytes == script(777)));
        let _ = hand.ended();
    }
    let plain = came[1].1;
    for &(packs, bytes, saved) in &came {
        // By itself nothing is packed where nobody tells of a slow link.
        let right = match packs {
            true => bytes < plain / 3 && saved > plain / 2,
            false => bytes > plain * 9 / 10 && saved == 0,
        };
        assert!(right, "{came:?}");
    }
}

#[test]
fn a_follower_of_before_is_sent_nothing_packed_whatever_is_wanted() {
    let fake = Fake::new();
    *fake.compress.lock().unwrap() = Compress::On;
    for n in 0..100 {
        fake.file(&format!("{n}.php"), &script(n), true, false);
    }
    // A message of a kind that it does not know would end the test.
    let mut hand = Hand::connect(&fake);
    hand.hello_with(0, FEATURE_TAKEN);
    let (_dir, mut log) = own_log();
    hand.follow(None);
    assert_eq!(hand.take(&mut log, fake.end()).len(), 100);
    // And of one that knows it is asked what it does not want.
    for (packing, packed) in [(Compress::Off, false), (Compress::Auto, true)] {
        let mut hand = hears_packed(&fake, packing.code());
        let (_dir, mut log) = own_log();
        hand.follow(None);
        hand.take(&mut log, fake.end());
        assert_eq!(hand.incoming.arrived().saved() > 0, packed);
    }
}

#[test]
fn another_pace_holds_at_once_and_what_holds_back_is_told() {
    let fake = Fake::new();
    let bytes: Vec<u8> = blake3::hash(b"noise").as_bytes().repeat(5000);
    let (object, digest) = fake.file("large", &bytes, false, false);
    let mut hand = hears_packed(&fake, 1);
    let (_dir, mut log) = own_log();
    hand.follow(None);
    hand.take(&mut log, fake.end());
    let pace = |bwlimit, packing| say::Pace { bwlimit, packing };
    // At this rate it takes a day.
    hand.out.send(pace(2, 1)).unwrap();
    let request = say::Request {
        id: 1,
        object: object.0,
        digest: digest.0,
        from: None,
    };
    hand.out.send(request).unwrap();
    let until = Instant::now() + WITHIN;
    let mut some = 0;
    loop {
        match hand.incoming.next_message().unwrap() {
            Message::Report(said) => {
                let report: Report = report::parse(&said.json).unwrap();
                if report.held_to == Some(2) {
                    break;
                }
            }
            Message::Piece(piece) => some += piece.bytes.len(),
            _ => {}
        }
        assert!(Instant::now() < until, "it is not said what holds it back");
    }
    hand.out.send(pace(0, 1)).unwrap();
    assert_eq!(piece_bytes(&mut hand).len() + some, bytes.len());
    loop {
        if let Message::Report(said) = hand.incoming.next_message().unwrap()
            && report::parse::<Report>(&said.json)
                .unwrap()
                .held_to
                .is_none()
        {
            break;
        }
        assert!(Instant::now() < until, "it is said for ever");
    }
    // A limit counts what goes over the wire: this shrinks from minutes to a moment.
    let text = script(1).repeat(1600);
    let (object, digest) = fake.file("text", &text, false, false);
    hand.take(&mut log, fake.end());
    hand.out.send(pace(text.len() as u64 / 80, 2)).unwrap();
    hand.out
        .send(say::Request {
            id: 2,
            object: object.0,
            digest: digest.0,
            from: None,
        })
        .unwrap();
    let began = Instant::now();
    assert!(piece_bytes(&mut hand) == text);
    assert!(began.elapsed() < WITHIN, "{:?}", began.elapsed());
}
