//! A file may have 65,000 links. What a change of some of them costs may grow with their number, but not with its square:
//! here work is counted, as bytes asked of the allocator and as rows read, for n links and for 2n.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;

use mirror_core::model::apply_group;
use mirror_core::plan::{Seen as Slots, merge, order};
use mirror_core::reconcile::{
    Body, Dir, Dirty, Failure, Limits, Look, ReadEnd, Reading, Seen, Source, Whereabouts, reconcile,
};
use mirror_core::*;

thread_local! {
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = BYTES.try_with(|bytes| bytes.set(bytes.get() + layout.size() as u64));
        // SAFETY: the caller's promise is ours.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is ours.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Rows that count how often they are asked.
struct Asked<'a> {
    rows: &'a MemRows,
    count: Cell<u64>,
}

impl Rows for Asked<'_> {
    type Error = Infallible;
    fn name(&self, at: &At) -> Result<Option<ObjectId>, Infallible> {
        self.count.set(self.count.get() + 1);
        self.rows.name(at)
    }
    fn object(&self, id: ObjectId) -> Result<Option<Object>, Infallible> {
        self.count.set(self.count.get() + 1);
        self.rows.object(id)
    }
    fn by_handle(&self, handle: &Handle) -> Result<Option<ObjectId>, Infallible> {
        self.count.set(self.count.get() + 1);
        self.rows.by_handle(handle)
    }
    fn children(
        &self,
        dir: ObjectId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, ObjectId)>, Infallible> {
        self.rows.children(dir, after, max)
    }
    fn put(&mut self, _: ObjectId, _: Object) -> Result<(), Infallible> {
        panic!("only read")
    }
    fn remove(&mut self, _: ObjectId) -> Result<(), Infallible> {
        panic!("only read")
    }
}

const FILE: ObjectId = ObjectId((1 << 44) | 2);

fn at(n: u64) -> At {
    At {
        parent: ObjectId::ROOT,
        name: Name::new(format!("name {n:06}").as_bytes()).unwrap(),
    }
}

fn handle(n: u8) -> Handle {
    Handle {
        kind: 1,
        bytes: [n; 8].into(),
    }
}

/// A root, and a FIFO (which has no content to speak of) under so many names.
fn tree(links: u64) -> MemRows {
    let mut rows = MemRows::default();
    let object = |kind, n, names: Names| Object {
        state: State {
            kind,
            meta: Meta::default(),
        },
        local: Local {
            handle: Some(handle(n)),
            ino: n.into(),
            ..Local::default()
        },
        names,
    };
    let Ok(()) = rows.put(ObjectId::ROOT, object(Kind::Dir, 1, Names::new()));
    let Ok(()) = rows.put(FILE, object(Kind::Fifo, 2, (0..links).map(at).collect()));
    rows
}

fn group(changes: Vec<Change>) -> Vec<Record> {
    let count = changes.len();
    let records = changes.into_iter().enumerate();
    records
        .map(|(n, change)| Record {
            position: Position {
                epoch: 1,
                sequence: 1_000_000 + n as u64,
            },
            time_ns: 0,
            end: n + 1 == count,
            who: None,
            change,
            local: None,
            content: None,
        })
        .collect()
}

/// What is done to a file of n links: so many names go, so many come.
fn change(gone: std::ops::Range<u64>, new: std::ops::Range<u64>) -> Vec<Record> {
    let gone = gone.map(|n| Change::Unlink {
        at: at(n),
        object: FILE,
    });
    let new = new.map(|n| Change::Link {
        at: at(n),
        object: FILE,
    });
    group(gone.chain(new).collect())
}

fn changes(n: u64) -> [(&'static str, Vec<Record>); 5] {
    [
        ("one more", change(0..0, n..n + 1)),
        ("one less", change(n / 2..n / 2 + 1, 0..0)),
        ("as many more", change(0..0, n..2 * n)),
        ("half of them go", change(0..n / 2, 0..0)),
        ("all are renamed", change(0..n, n..2 * n)),
    ]
}

/// Bytes and rows that `work` takes of 4,000 and of 8,000 links: the second may be little more than twice the first.
fn must_be_linear(what: &str, mut work: impl FnMut(u64) -> (u64, u64)) {
    let ((bytes, rows), (bytes_2, rows_2)) = (work(4000), work(8000));
    println!("{what}: {bytes} and {bytes_2} bytes, {rows} and {rows_2} rows");
    assert!(
        bytes_2 <= bytes * 5 / 2 + 10_000,
        "{what}: {bytes} bytes became {bytes_2}"
    );
    assert!(
        rows_2 <= rows * 5 / 2 + 10,
        "{what}: {rows} rows became {rows_2}"
    );
}

fn counted(rows: &MemRows, work: impl FnOnce(&Asked)) -> (u64, u64) {
    let asked = Asked {
        rows,
        count: Cell::new(0),
    };
    let before = BYTES.get();
    work(&asked);
    (BYTES.get() - before, asked.count.get())
}

#[test]
fn planning_costs_as_much_as_there_are_names() {
    for case in 0..changes(1).len() {
        let what = changes(1)[case].0;
        must_be_linear(what, |n| {
            let (rows, records) = (tree(n), &changes(n)[case].1);
            counted(&rows, |rows| {
                let merged = merge(rows, &BTreeMap::new(), records, false).unwrap();
                let Ok(plan) = order(rows, &merged, &Slots::default());
                assert!(plan.stuck.is_empty() && !plan.steps.is_empty());
            })
        });
    }
}

#[test]
fn a_group_costs_as_much_as_there_are_names() {
    for case in 0..changes(1).len() {
        let what = changes(1)[case].0;
        must_be_linear(what, |n| {
            let (mut rows, records) = (tree(n), &changes(n)[case].1);
            let before = BYTES.get();
            apply_group(&mut rows, records).unwrap();
            (BYTES.get() - before, 0)
        });
    }
}

/// A source that shows one inode under every name but some.
struct Shown {
    absent: std::ops::Range<u64>,
    links: u32,
    looks: u64,
}

impl Shown {
    fn seen(&self, n: u8) -> Seen {
        Seen {
            handle: handle(n),
            ino: n.into(),
            mode: if n == 1 { 0o040000 } else { 0o010000 },
            nlink: self.links,
            uid: 0,
            gid: 0,
            bytes: 0,
            blocks: 0,
            rdev: (0, 0),
            mtime: Time::default(),
            ctime: Time::default(),
            btime: Time::default(),
        }
    }
}

impl Source for Shown {
    fn look(&mut self, _: &Dir<'_>, name: &Name) -> Look {
        self.looks += 1;
        match self.absent.clone().any(|n| at(n).name == *name) {
            true => Look::Absent,
            false => Look::Seen(self.seen(2)),
        }
    }
    fn look_dir(&mut self, _: &Dir<'_>) -> Look {
        Look::Seen(self.seen(1))
    }
    fn list(&mut self, _: &Dir<'_>, _: usize) -> Result<Option<Vec<Name>>, Failure> {
        Ok(None)
    }
    fn read(&mut self, _: &Dir<'_>, _: Option<&Name>, seen: &Seen, _: bool) -> ReadEnd {
        ReadEnd::Done(Reading {
            seen: seen.clone(),
            meta: Meta::default(),
            kind: Some(Kind::Fifo),
            body: Body::None,
            busy: false,
        })
    }
    fn locate(&mut self, _: &Handle) -> Whereabouts {
        Whereabouts::Gone
    }
    fn more(&mut self) -> Vec<(At, Dirty)> {
        Vec::new()
    }
    fn wants_trail(&self) -> bool {
        false
    }
    fn ignored(&mut self, _: &mut dyn FnMut() -> Vec<Name>, _: &Name, _: bool) -> bool {
        false
    }
}

/// Looks at these names of a tree of n links; returns what it cost, how many looks, and how many records.
fn looked(
    n: u64,
    dirty: impl Iterator<Item = At>,
    absent: std::ops::Range<u64>,
    links: u64,
) -> ((u64, u64), u64, usize) {
    let rows = tree(n);
    let dirty: Vec<_> = dirty.map(|at| (at, Dirty::default())).collect();
    let mut source = Shown {
        absent,
        links: links as u32,
        looks: 0,
    };
    let next = Position {
        epoch: 1,
        sequence: 1_000_000,
    };
    let limits = Limits {
        group_records_max: 10_000,
        in_doubt: false,
    };
    let mut records = 0;
    let cost = counted(&rows, |rows| {
        let Ok(outcome) = reconcile(rows, &mut source, dirty, &[], next, limits);
        records = outcome.group.len();
    });
    (cost, source.looks, records)
}

#[test]
fn looking_costs_as_much_as_there_are_names() {
    must_be_linear("as many more", |n| {
        let (cost, looks, records) = looked(n, (n..2 * n).map(at), 0..0, 2 * n);
        assert_eq!((looks, records as u64), (n, n));
        cost
    });
    for n in [4000, 8000] {
        let ((bytes, _), looks, records) = looked(n, [at(n)].into_iter(), 0..0, n + 1);
        assert_eq!((looks, records), (1, 1), "a link more");
        assert!(bytes < 100_000, "{n} links, one more: {bytes} bytes");
    }
}

#[test]
fn a_renamed_link_is_one_move_and_two_looks() {
    let first = At {
        parent: ObjectId::ROOT,
        name: Name::new(b"a name").unwrap(),
    };
    // The new one is seen first: for a moment there are more names than links.
    let both = [first.clone(), at(17)].into_iter();
    let ((bytes, _), looks, records) = looked(8000, both, 17..18, 8000);
    assert_eq!((looks, records), (2, 1));
    assert!(bytes < 100_000, "{bytes} bytes");
    // Nobody told of the old one: all are looked at, the new one twice.
    let (_, looks, records) = looked(500, [first].into_iter(), 17..18, 500);
    assert_eq!((looks, records), (502, 1));
}
