use super::*;
use alloc::vec;

fn at(name: &str) -> At {
    At {
        parent: ObjectId::ROOT,
        name: Name::new(name.as_bytes()).unwrap(),
    }
}
fn file(n: u8) -> Handle {
    Handle {
        kind: 1,
        bytes: [n].into(),
    }
}
fn wrote() -> Dirty {
    Dirty {
        contents: true,
        ..Dirty::default()
    }
}
fn names(names: &Names) -> Vec<alloc::string::String> {
    names
        .iter()
        .map(|(at, _)| alloc::format!("{}", at.name))
        .collect()
}
fn reads() -> Reads<u8> {
    Reads::new(ReadLimits::default())
}
fn may_read(reads: &Reads<u8>, now_ms: u64) -> bool {
    reads.turn(now_ms, u64::MAX).is_some()
}

#[test]
fn the_first_read_is_at_once_and_the_next_ones_are_apart() {
    let mut reads = reads();
    let log = file(1);
    reads.want(log.clone(), 9, at("log"), wrote(), 0);
    assert!(may_read(&reads, 0));
    reads.begin(&log, 0);
    assert!(!may_read(&reads, 0));
    // It takes two seconds, and the file never rests.
    for now in (0..2000).step_by(100) {
        reads.heard(&log, now);
    }
    assert_eq!(names(&reads.end(&log, 7, 2000).unwrap().0), ["log"]);
    assert_eq!(reads.in_hand(&log), Some(&7));
    reads.used(&log, vec![(at("x"), wrote())], 2001);
    let mut now = 2001;
    while !may_read(&reads, now) {
        now += 10;
        reads.heard(&log, now);
    }
    assert!((12_000..12_020).contains(&now), "{now}");
    // Once it rests it is read soon, but not more than half of the time.
    reads.begin(&log, now);
    reads.heard(&log, now + 1);
    reads.end(&log, 7, now + 2000).unwrap();
    reads.used(&log, vec![(at("x"), wrote())], now + 2000);
    reads.heard(&log, now + 2500);
    assert!(!may_read(&reads, now + 3999));
    assert!(may_read(&reads, now + 4000));
}

#[test]
fn what_takes_long_is_read_at_least_every_minute_and_at_most_half_of_the_time() {
    for (took, apart) in [(20_000, 60_000), (100_000, 100_000), (1000, 5000), (0, 0)] {
        let mut reads = reads();
        let db = file(1);
        reads.want(db.clone(), 9, at("db"), wrote(), 0);
        reads.begin(&db, 0);
        reads.end(&db, 7, took).unwrap();
        reads.used(&db, vec![(at("x"), wrote())], took);
        let mut now = took;
        reads.heard(&db, now);
        while !may_read(&reads, now) {
            now += 100;
            reads.heard(&db, now);
        }
        assert_eq!(now - took, apart, "{took}");
    }
}

#[test]
fn a_read_without_a_change_leaves_nothing() {
    let mut reads = reads();
    reads.want(file(1), 9, at("a"), wrote(), 0);
    reads.begin(&file(1), 0);
    reads.end(&file(1), 7, 5).unwrap();
    assert_eq!(reads.unused(|_| false), [file(1)]);
    assert!(reads.unused(|name| *name == at("a")).is_empty());
    reads.used(&file(1), vec![], 6);
    assert!(reads.is_idle() && reads.next_ms(u64::MAX).is_none() && reads.oldest_ms().is_none());
}

#[test]
fn a_switch_waits_for_what_was_dirty_before_it_and_for_nothing_else() {
    let mut reads = reads();
    reads.want(file(1), 9, at("a"), wrote(), 0);
    reads.want(file(2), 9, at("b"), wrote(), 0);
    reads.begin(&file(1), 0);
    // Written again before the switch: the read under way is not enough. Twice it would never end.
    reads.heard(&file(1), 3);
    reads.hold_for_all(vec![(at("current"), Dirty::default())], 5);
    reads.want(file(3), 9, at("c"), wrote(), 6);
    assert!(reads.is_held(&at("current")) && !reads.is_held(&at("a")));
    assert!(reads.join(&[(at("current"), wrote()), (at("next"), wrote())]));
    assert!(!reads.join(&[(at("other"), wrote())]));
    assert_eq!(reads.end(&file(1), 7, 10), Err(7));
    reads.begin(&file(2), 11);
    assert!(reads.end(&file(2), 7, 12).unwrap().1.is_empty());
    reads.used(&file(2), vec![], 12);
    assert!(may_read(&reads, 20), "it is waited for");
    reads.begin(&file(1), 20);
    reads.heard(&file(1), 21);
    reads.hold_for_all(vec![(at("current"), wrote())], 22);
    assert!(reads.end(&file(1), 7, 30).unwrap().1.is_empty());
    assert!(reads.is_held(&at("current")));
    reads.begin(&file(3), 31);
    let free = reads.end(&file(3), 7, 32).unwrap().1;
    assert_eq!(names(&free), ["current", "next"]);
    // What is in hand is looked at before a switch anyway.
    reads.hold_for_all(vec![(at("current"), wrote())], 33);
    assert_eq!(names(&reads.overdue()), ["current"]);
}

#[test]
fn what_waits_for_a_file_that_is_gone_is_let_go() {
    let mut reads = reads();
    reads.want(file(1), 9, at("a"), wrote(), 0);
    reads.hold_for(vec![(at("a"), wrote()), (at("b"), wrote())], &file(1), 0);
    // The same name in another hold: both wait for both.
    reads.want(file(2), 9, at("x"), wrote(), 0);
    reads.hold_for(vec![(at("b"), wrote()), (at("y"), wrote())], &file(2), 0);
    let (in_hand, free) = reads.drop_file(&file(1));
    assert!(in_hand.is_none() && free.is_empty());
    assert_eq!(names(&reads.drop_file(&file(2)).1), ["a", "b", "y"]);
    assert!(reads.is_idle());
    // Nothing waits for what is not here.
    reads.hold_for(vec![(at("a"), wrote())], &file(9), 0);
    assert!(!reads.is_held(&at("a")));
    reads.hold_for_all(vec![(at("a"), wrote())], 0);
    assert_eq!(names(&reads.overdue()), ["a"]);
}

#[test]
fn a_barrier_waits_for_a_read_that_began_after_it() {
    let mut reads = reads();
    reads.want(file(1), 9, at("log"), wrote(), 0);
    reads.begin(&file(1), 1);
    reads.heard(&file(1), 4);
    assert!(!reads.covers(5, 5));
    reads.end(&file(1), 7, 8).unwrap();
    assert!(!reads.covers(5, 5), "in hand is not in the log");
    reads.used(&file(1), vec![(at("x"), wrote())], 8);
    assert!(!reads.covers(5, 5));
    assert!(!may_read(&reads, 8));
    reads.urge(5);
    assert!(may_read(&reads, 8));
    reads.begin(&file(1), 9);
    reads.heard(&file(1), 10);
    reads.end(&file(1), 7, 12).unwrap();
    reads.used(&file(1), vec![(at("x"), wrote())], 12);
    // It is being written again, which the barrier does not cover.
    assert!(reads.covers(5, 5) && !reads.covers(10, 10));
    reads.urge(5);
    assert!(!may_read(&reads, 13));
}

#[test]
fn what_was_read_for_nothing_covers_nothing() {
    let mut reads = reads();
    reads.want(file(1), 9, at("a"), wrote(), 0);
    reads.begin(&file(1), 6);
    reads.end(&file(1), 7, 8).unwrap();
    // It is not called so any more; by its other name it is found only later.
    assert_eq!(reads.drop_file(&file(1)).0, Some(7));
    reads.want(file(1), 9, at("b"), wrote(), 9);
    assert!(!reads.covers(5, 5));
    reads.urge(5);
    assert!(may_read(&reads, 9));
    reads.begin(&file(1), 9);
    reads.failed(&file(1), 10);
    reads.want(file(1), 9, at("b"), wrote(), 10);
    assert!(!reads.covers(5, 5));
}

#[test]
fn too_many_names_do_not_wait() {
    let mut reads: Reads<u8> = Reads::new(ReadLimits {
        held_max: 2,
        ..ReadLimits::default()
    });
    reads.want(file(1), 9, at("a"), wrote(), 0);
    let held = ["x", "y", "z"].map(|name| (at(name), wrote()));
    reads.hold_for_all(held.to_vec(), 0);
    assert_eq!(reads.overdue().len(), 3);
}
