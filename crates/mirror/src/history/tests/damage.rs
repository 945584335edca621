//! What is written down of the past survives crashes at every step, and damage in any of its files: found, named, made
//! again or refused, never answered wrongly.

use std::collections::BTreeSet;
use std::sync::Arc;

use mirror_core::history::asof::{NameWas, ObjectWas};
use mirror_core::history::{Group, Moment, Row, Then, Was};
use mirror_core::{At, Content, Digest, Kind as FileKind, Local, Meta, Name, ObjectId, State, Who};

use crate::disk::{Disk, Fault, SimDisk};
use crate::history::catalogue::{Catalogue, Known};
use crate::history::events::{Event, Events, Why};
use crate::history::format::Dated;
use crate::history::{HistoryError, Kind, written};

const TREE: [u8; 16] = [9; 16];
const SEGMENT: u64 = 2 << 10;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }
}

fn name(n: u64) -> Name {
    // Some are long, so that few of them fill a frame.
    let long = "x".repeat(if n < 1000 { 0 } else { 200 });
    Name::new(format!("name{n}{long}").as_bytes()).unwrap()
}

const NAMES: u64 = 12;
const OBJECTS: u64 = 9;

fn group(moment: u64, random: &mut Random) -> Dated {
    let mut rows = Vec::new();
    let mut seen = BTreeSet::new();
    // Now and then more than a frame takes.
    let many = random.below(12) == 0;
    for _ in 0..1 + random.below(4) {
        let object = ObjectId(2 + random.below(OBJECTS));
        if seen.insert(object) {
            let content = Content {
                bytes: moment,
                digest: Digest([moment as u8; 32]),
                data: Vec::new(),
                proven: true,
                fuzzy: false,
            };
            let state = State {
                kind: FileKind::File(content),
                meta: Meta::default(),
            };
            let then = [Then::Meta, Then::Content, Then::Gone][random.below(3) as usize];
            let was = Was::Object {
                object,
                state,
                local: Local::default(),
                then,
            };
            rows.push(Row { was, who: Some(0) });
        }
    }
    for n in 0..if many { 250 } else { random.below(4) } {
        let at = At {
            parent: ObjectId(1),
            name: name(if many { 1000 + n } else { random.below(NAMES) }),
        };
        if many
            || rows
                .iter()
                .all(|row| !matches!(&row.was, Was::Name { at: a, .. } if *a == at))
        {
            let before = Some(ObjectId(2 + random.below(OBJECTS)));
            let was = Was::Name {
                at,
                before,
                after: None,
            };
            rows.push(Row { was, who: None });
        }
    }
    let who = Who {
        pid: Some(moment as u32),
        uid: None,
        exe: None,
    };
    Dated {
        group: Group {
            moment: Moment(moment),
            time_ns: moment * 10,
            rows,
            who: vec![who],
        },
        here_ns: moment * 10 + 1,
    }
}

fn all_groups(count: u64, seed: u64) -> Vec<Dated> {
    let mut random = Random(seed);
    (1..=count).map(|n| group(n * 3, &mut random)).collect()
}

/// Groups as they can be read, in whole.
fn read(catalogue: &Catalogue) -> Vec<(Moment, usize)> {
    let mut found: Vec<(Moment, usize)> = Vec::new();
    let each = &mut |dated: Dated| {
        let (moment, rows) = (dated.group.moment, dated.group.rows.len());
        match found.last_mut() {
            Some((last, count)) if *last == moment => *count += rows,
            _ => found.push((moment, rows)),
        }
        true
    };
    catalogue.groups((Moment(0), Moment::MAX), each).unwrap();
    found
}

fn shape(groups: &[Dated]) -> Vec<(Moment, usize)> {
    let of = |dated: &Dated| (dated.group.moment, dated.group.rows.len());
    groups.iter().map(of).collect()
}

fn open(disk: &SimDisk, known: Option<Known>) -> Result<(Events, Catalogue), HistoryError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    written(disk, TREE, SEGMENT, known)
}

fn begin(moment: u64, why: Why) -> Event {
    Event::Begin {
        moment,
        there_ns: 0,
        here_ns: 0,
        why,
    }
}

/// Appends by and by, flushes now and then, until it fails. What was flushed.
fn script(
    disk: &SimDisk,
    groups: &[Dated],
    known: Option<Known>,
    random: &mut Random,
) -> Option<Moment> {
    let mut flushed = known.and_then(|known| known.last);
    let Ok((mut events, mut catalogue)) = open(disk, known) else {
        return flushed;
    };
    if events.begins().next().is_none() && events.add(begin(0, Why::New)).is_err() {
        return flushed;
    }
    let mut rest = groups;
    while !rest.is_empty() {
        let count = (1 + random.below(5) as usize).min(rest.len());
        if catalogue.append(&rest[..count]).is_err() {
            return flushed;
        }
        rest = &rest[count..];
        if random.below(3) == 0 {
            if catalogue.flush().is_err() {
                return flushed;
            }
            flushed = catalogue.last();
        }
        if random.below(20) == 0 {
            let removed = Event::Removed {
                name: "x".into(),
                here_ns: 1,
            };
            if events.add(removed).is_err() {
                return flushed;
            }
        }
    }
    flushed
}

#[test]
fn a_crash_at_any_step_leaves_whole_groups_and_all_that_were_flushed() {
    let groups = all_groups(40, 5);
    let full = shape(&groups);
    let whole = SimDisk::new();
    script(&whole, &groups, None, &mut Random(1));
    let steps = whole.steps();
    assert!(steps > 60, "{steps}");
    for step in 0..steps {
        for seed in 0..4 {
            let disk = SimDisk::new();
            disk.fail_after(step, [Fault::Io, Fault::Full][(seed % 2) as usize]);
            let flushed = script(&disk, &groups, None, &mut Random(1));
            disk.crash(step * 31 + seed);
            let known = Known {
                now: flushed.unwrap_or_default(),
                last: flushed,
            };
            let (mut events, mut catalogue) = open(&disk, Some(known)).unwrap();
            assert_eq!(
                catalogue.told(),
                Vec::<String>::new(),
                "step {step}, seed {seed}"
            );
            for told in &events.told {
                assert!(
                    told.contains("as a crash"),
                    "step {step}, seed {seed}: {told}"
                );
            }
            let begins = events.begins().filter(|begins| begins.1 != Why::New);
            assert_eq!(begins.count(), 0, "step {step}, seed {seed}");
            let found = read(&catalogue);
            assert_eq!(found, full[..found.len()], "step {step}, seed {seed}");
            assert!(catalogue.last() >= flushed, "step {step}, seed {seed}");
            // What comes again is as if nothing had been.
            catalogue.append(&groups).unwrap();
            catalogue.flush().unwrap();
            assert_eq!(read(&catalogue), full);
            for number in catalogue.numbers() {
                assert_eq!(catalogue.check(number, false).unwrap(), []);
            }
            events
                .add(Event::Removed {
                    name: "y".into(),
                    here_ns: 2,
                })
                .unwrap();
        }
    }
}

#[test]
fn a_write_that_failed_is_done_again() {
    let groups = all_groups(60, 5);
    for step in 0..120 {
        let disk = SimDisk::new();
        let (_, mut catalogue) = open(&disk, None).unwrap();
        catalogue.append(&groups[..10]).unwrap();
        disk.fail_after(step, Fault::Full);
        let mut done = catalogue.append(&groups[10..]);
        disk.heal();
        if done.is_err() {
            done = catalogue.append(&groups);
        }
        // A failed flush is never tried again.
        if done.is_ok() {
            assert_eq!(read(&catalogue), shape(&groups), "step {step}");
            catalogue.append(&groups).unwrap();
            if catalogue.flush().is_err() {
                continue;
            }
            drop(catalogue);
            let (_, catalogue) = open(&disk, None).unwrap();
            assert_eq!(read(&catalogue), shape(&groups), "step {step}");
        }
    }
}

type Answers = Vec<(u64, Option<NameWas>, Vec<Option<ObjectWas>>)>;

fn answers(catalogue: &Catalogue, from: Moment, to: u64) -> Result<Answers, String> {
    let mut all = Vec::new();
    for moment in (0..=to).step_by(5).filter(|moment| *moment >= from.0) {
        for n in 0..NAMES {
            let at = At {
                parent: ObjectId(1),
                name: name(n),
            };
            let was = catalogue.name_after(&at, Moment(moment));
            let was = was.map_err(|e| e.to_string())?;
            let mut objects = Vec::new();
            if n == 0 {
                for id in 0..OBJECTS {
                    let id = ObjectId(2 + id);
                    let found = catalogue.object_after(id, Kind::State, Moment(moment));
                    let found = found.map_err(|e| e.to_string())?;
                    objects.push(found.and_then(|found| found.object_was()));
                }
            }
            all.push((moment, was.and_then(|found| found.name_was()), objects));
        }
    }
    Ok(all)
}

struct Made {
    disk: SimDisk,
    known: Known,
    end: u64,
    right: Answers,
    shape: Vec<(Moment, usize)>,
    events: Vec<Event>,
}

fn made() -> Made {
    let disk = SimDisk::new();
    // The newest segment must hold something.
    let groups = all_groups(43, 11);
    let (mut events, mut catalogue) = open(&disk, None).unwrap();
    events.add(begin(0, Why::New)).unwrap();
    for some in groups.chunks(2) {
        catalogue.append(some).unwrap();
        catalogue.flush().unwrap();
    }
    for n in 0..3 {
        events
            .add(Event::Snapshot {
                name: format!("snapshot{n}"),
                moment: n * 7,
                there_ns: 0,
                here_ns: 0,
                keep: false,
                note: None,
            })
            .unwrap();
    }
    let end = groups.last().unwrap().group.moment.0;
    let known = Known {
        now: Moment(end),
        last: Some(Moment(end)),
    };
    assert!(catalogue.numbers().len() >= 4);
    Made {
        known,
        end,
        right: answers(&catalogue, Moment(0), end).unwrap(),
        shape: shape(&groups),
        events: events.all.clone(),
        disk,
    }
}

/// Opens it, asks everything, repairs it. What was found on the way, and since when all is known.
fn ask_all(made: &Made, disk: &SimDisk, what: &str) -> (usize, Moment) {
    let (mut events, catalogue) = match open(disk, Some(made.known)) {
        Ok(opened) => opened,
        Err(e) => panic!("{what}: {e}"),
    };
    let begins = events.begins().next_back().unwrap().0;
    let mut found = events.told.len();
    for event in &made.events {
        assert!(events.all.contains(event), "{what}: {event:?}");
    }
    let got = answers(&catalogue, begins, made.end);
    let got = got.unwrap_or_else(|e| panic!("{what}: {e}"));
    let right: Answers = made
        .right
        .iter()
        .filter(|(moment, ..)| *moment >= begins.0)
        .cloned()
        .collect();
    assert!(got == right, "{what}: another answer, after {begins:?}");
    found += catalogue.told().len();
    for number in catalogue.numbers() {
        for finding in catalogue.check(number, true).unwrap() {
            assert!(finding.repaired, "{what}: {finding:?}");
            found += 1;
        }
        assert_eq!(catalogue.check(number, false).unwrap(), [], "{what}");
    }
    if begins == Moment(0) {
        assert_eq!(read(&catalogue), made.shape, "{what}");
    }
    found += Events::check(disk).unwrap().len();
    // It takes more, and is found to be well.
    events
        .add(Event::Removed {
            name: "z".into(),
            here_ns: 3,
        })
        .unwrap();
    drop((events, catalogue));
    let (events, catalogue) = open(disk, Some(made.known)).unwrap();
    assert_eq!(events.told, Vec::<String>::new(), "{what}");
    assert_eq!(catalogue.told(), Vec::<String>::new(), "{what}");
    assert_eq!(events.begins().next_back().unwrap().0, begins, "{what}");
    (found, begins)
}

/// Places in a file: all of its beginning, and some of what follows.
fn places(len: usize, random: &mut Random) -> BTreeSet<usize> {
    let mut places: BTreeSet<usize> = (0..len.min(130)).step_by(6).collect();
    places.extend((0..16).map(|_| random.below(len as u64) as usize));
    places.insert(len - 1);
    places
}

#[test]
fn a_changed_byte_anywhere_is_found_and_no_answer_is_wrong() {
    let made = made();
    let mut random = Random(3);
    let files = made.disk.list("catalogue").unwrap();
    let newest = files.iter().filter(|name| name.ends_with(".rows"));
    let newest = newest.max().unwrap().clone();
    for (n, file) in files.iter().enumerate() {
        // One of each kind, and the newest.
        let first = n < 6 || file.starts_with("events") || *file == newest;
        if !first {
            continue;
        }
        let path = format!("catalogue/{file}");
        let len = made.disk.open(&path).unwrap().len().unwrap() as usize;
        for place in places(len, &mut random) {
            let disk = made.disk.copy();
            let bit = 1u8 << random.below(8);
            disk.edit(&path, |bytes| bytes[place] ^= bit).unwrap();
            let what = format!("{file}, byte {place} of {len}");
            let (found, begins) = ask_all(&made, &disk, &what);
            assert!(found > 0, "{what}: not found");
            let is_aside = disk.list("catalogue").unwrap();
            let is_aside = is_aside.contains(&format!("{file}.damaged"));
            assert_eq!(is_aside, *file == newest, "{what}");
            assert_eq!(
                begins > Moment(0),
                *file == newest && place >= 128,
                "{what}"
            );
        }
    }
}

#[test]
fn files_cut_off_or_missing_are_made_again_or_told() {
    let made = made();
    let files = made.disk.list("catalogue").unwrap();
    let newest = files.iter().filter(|name| name.ends_with(".rows"));
    let newest = newest.max().unwrap().clone();
    for file in &files {
        let path = format!("catalogue/{file}");
        for cut in [0, 1, 2] {
            let disk = made.disk.copy();
            match cut {
                0 => disk.remove(&path).unwrap(),
                1 => disk
                    .edit(&path, |bytes| bytes.truncate(bytes.len() / 2))
                    .unwrap(),
                _ => disk
                    .edit(&path, |bytes| bytes.truncate(bytes.len() - 1))
                    .unwrap(),
            }
            let what = format!("{file}, cut {cut}");
            let (found, begins) = ask_all(&made, &disk, &what);
            // A file of events may be behind the other by what a crash cut off.
            assert!(found > 0 || file.starts_with("events"), "{what}: not found");
            assert_eq!(begins > Moment(0), *file == newest, "{what}");
        }
    }
}

#[test]
fn without_a_spare_history_begins_anew_after_what_is_lost() {
    let made = made();
    for (number, ends) in [(2u64, "rows"), (3, "rows"), (2, "all")] {
        let disk = made.disk.copy();
        let path = |ends: &str| format!("catalogue/{number:016x}.{ends}");
        disk.remove(&path("spare")).unwrap();
        disk.edit(&path("rows"), |bytes| {
            let place = bytes.len() / 2;
            bytes[place] ^= 4;
        })
        .unwrap();
        disk.remove(&path("keys")).unwrap();
        if ends == "all" {
            disk.remove(&path("rows")).unwrap();
        }
        let (found, begins) = ask_all(&made, &disk, &format!("{number} {ends}"));
        assert!(found > 0 && begins > Moment(0), "{begins:?}");
    }
    // Met while it is asked: refused by name, and dealt with when it is looked for.
    let disk = made.disk.copy();
    let rows = format!("catalogue/{:016x}.rows", 1);
    disk.remove(&format!("catalogue/{:016x}.spare", 1)).unwrap();
    disk.edit(&rows, |bytes| {
        bytes.iter_mut().skip(128).for_each(|b| *b ^= 1)
    })
    .unwrap();
    let (_, catalogue) = open(&disk, Some(made.known)).unwrap();
    let refused = answers(&catalogue, Moment(0), made.end).unwrap_err();
    assert!(refused.contains(&rows), "{refused}");
    let found = catalogue.check(1, true).unwrap();
    assert!(!found.is_empty() && !found[0].repaired, "{found:?}");
    drop(catalogue);
    let (_, begins) = ask_all(&made, &disk, "met while asked");
    assert!(begins > Moment(0));
}

#[test]
fn both_lists_of_events_damaged_is_a_new_beginning() {
    let made = made();
    let disk = made.disk.copy();
    for name in ["catalogue/events", "catalogue/events.spare"] {
        disk.edit(name, |bytes| bytes[60] ^= 1).unwrap();
    }
    let (events, _) = open(&disk, Some(made.known)).unwrap();
    assert!(!events.told.is_empty());
    // What could be read is there, and nothing before is claimed to be known.
    assert_eq!(events.snapshots().len(), 3);
    let last = events.begins().next_back().unwrap();
    assert_eq!((last.0, last.1), (made.known.now, Why::Damaged));
    drop(events);
    let (events, _) = open(&disk, Some(made.known)).unwrap();
    assert!(events.told.is_empty());
    assert_eq!(events.begins().next_back().unwrap().0, made.known.now);

    // Gone altogether: the rows of the present know that there was something.
    let disk = made.disk.copy();
    for name in ["catalogue/events", "catalogue/events.spare"] {
        disk.remove(name).unwrap();
    }
    let (events, _) = open(&disk, Some(made.known)).unwrap();
    assert_eq!(events.begins().next_back().unwrap().1, Why::Damaged);
}

#[test]
fn of_another_tree_or_a_newer_version_is_refused_and_nothing_changes() {
    let made = made();
    let other: Arc<dyn Disk> = Arc::new(made.disk.clone());
    let refused = written(other, [1; 16], SEGMENT, Some(made.known));
    let text = refused.err().unwrap().to_string();
    assert!(text.contains("another tree"), "{text}");
    let (_, catalogue) = open(&made.disk, Some(made.known)).unwrap();
    assert_eq!(read(&catalogue), made.shape);
}

#[test]
fn a_changed_bit_in_an_old_version_is_found_and_made_again_or_set_aside() {
    use crate::history::scrub::{Damaged, End, scrub};
    use crate::history::slots::Slot;

    let base = tempfile::tempdir().unwrap();
    let state_dir = base.path();
    let disk = crate::disk::RealDisk::open(state_dir).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let (_, mut catalogue) = written(disk.clone(), TREE, SEGMENT, None).unwrap();
    let mut slots = crate::history::slots::Slots::open(state_dir).unwrap();
    let texts = ["one", "two", "one"];
    let mut all = Vec::new();
    for (n, text) in texts.iter().enumerate() {
        let slot = Slot {
            until: Moment(10 + n as u64),
            object: ObjectId(5),
        };
        let content = Content {
            bytes: text.len() as u64,
            digest: Digest(*blake3::hash(text.as_bytes()).as_bytes()),
            data: Vec::new(),
            proven: true,
            fuzzy: false,
        };
        let state = State {
            kind: FileKind::File(content),
            meta: Meta::default(),
        };
        let was = Was::Object {
            object: slot.object,
            state,
            local: Local::default(),
            then: Then::Content,
        };
        let group = Group {
            moment: slot.until,
            time_ns: 0,
            rows: vec![Row { was, who: None }],
            who: Vec::new(),
        };
        catalogue.append(&[Dated { group, here_ns: 0 }]).unwrap();
        slots.place(slot).unwrap();
        std::fs::write(state_dir.join(slot.path()), text).unwrap();
        all.push(slot);
    }
    catalogue.flush().unwrap();
    let run = |repair| {
        let mut found = Vec::new();
        let done = scrub(&*disk, state_dir, repair, &mut || true, &mut |damaged| {
            found.push(damaged)
        });
        (done.unwrap().versions, found)
    };
    assert_eq!(run(true), (3, vec![]));
    let damaged = |n: usize, end| Damaged { slot: all[n], end };
    let path = |n: usize| state_dir.join(all[n].path());
    std::fs::write(path(0), "onf").unwrap();
    assert_eq!(run(false), (3, vec![damaged(0, End::Left)]));
    assert_eq!(run(true), (3, vec![damaged(0, End::Repaired)]));
    assert_eq!(std::fs::read(path(0)).unwrap(), b"one");
    std::fs::write(path(1), "tvo").unwrap();
    assert_eq!(run(true), (3, vec![damaged(1, End::SetAside)]));
    assert!(!path(1).exists());
    let aside = state_dir.join("history/damaged");
    let aside = aside.join(path(1).file_name().unwrap());
    assert_eq!(std::fs::read(aside).unwrap(), b"tvo");
    assert_eq!(run(true), (2, vec![]));
}
