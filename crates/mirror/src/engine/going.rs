//! What records will take away from the copy, and bring to it: what the mass-change guard counts, and what `release`
//! shows. Only reads the copy's rows, which are as they were before the records.
//!
//! All records are shown to [`Tally::learn`] first, then to [`Tally::count`]: a removed directory counts with all below it,
//! so what is removed inside of it must not count again.

use std::collections::{BTreeMap, BTreeSet};

use mirror_core::guard::Flow;
use mirror_core::{At, Change, Name, ObjectId, Record, Rows};

use super::status::PathText;

/// Paths that [`Tally::sample`] holds.
pub const SAMPLE_MAX: usize = 100;
/// Names that were given, remembered to tell a name that went from one that was replaced. Beyond, both are counted.
const PLACED_MAX: usize = 200_000;
/// A directory that moves to another first-level one is counted up to here.
const MOVED_MAX: u64 = 100_000;
/// Directories whose place is remembered.
const PLACES_MAX: usize = 50_000;
const CHILDREN_MAX: usize = 256;

pub struct Tally<'a, R: Rows> {
    rows: &'a R,
    detail: bool,
    /// Directories that lose their name for good.
    removed: BTreeSet<ObjectId>,
    /// Directories that are new, and where.
    made: BTreeMap<ObjectId, At>,
    placed: BTreeSet<At>,
    places: BTreeMap<ObjectId, Place>,
    /// By first-level directory; `None`: in the root itself.
    pub flows: BTreeMap<Option<Name>, Flow>,
    /// Names that went and came again within these records.
    replaced: u64,
    rescued: u64,
    pub changed: u64,
    /// Some of what goes, topmost paths.
    pub sample: Vec<PathText>,
}

/// Where the entries of a directory are.
#[derive(Debug, Clone, Default)]
struct Place {
    /// `None`: in the root.
    first: Option<Name>,
    /// A directory above goes, and all with it.
    goes: bool,
}

impl<'a, R: Rows> Tally<'a, R> {
    /// `detail`: totals and sample are wanted too.
    pub fn new(rows: &'a R, detail: bool) -> Tally<'a, R> {
        Tally {
            rows,
            detail,
            removed: BTreeSet::new(),
            made: BTreeMap::new(),
            placed: BTreeSet::new(),
            places: BTreeMap::new(),
            flows: BTreeMap::new(),
            replaced: 0,
            rescued: 0,
            changed: 0,
            sample: Vec::new(),
        }
    }

    pub fn of(rows: &'a R, detail: bool, records: &[Record]) -> Result<Tally<'a, R>, R::Error> {
        let mut tally = Tally::new(rows, detail);
        for record in records {
            tally.learn(record)?;
        }
        for record in records {
            tally.count(record)?;
        }
        Ok(tally)
    }

    pub fn learn(&mut self, record: &Record) -> Result<(), R::Error> {
        match &record.change {
            Change::Create { at, object, state } => {
                if state.kind.is_dir() {
                    self.made.insert(*object, at.clone());
                }
                self.place(at);
            }
            Change::Link { at, .. } => self.place(at),
            Change::Move { object, to, .. } => {
                if self.made.contains_key(object) {
                    self.made.insert(*object, to.clone());
                }
                self.place(to);
            }
            Change::Unlink { object, .. } => {
                if self.is_dir(*object)? {
                    self.removed.insert(*object);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn place(&mut self, at: &At) {
        if self.detail && self.placed.len() < PLACED_MAX {
            self.placed.insert(at.clone());
        }
    }

    pub fn count(&mut self, record: &Record) -> Result<(), R::Error> {
        match &record.change {
            Change::Create { at, object, .. } | Change::Link { at, object } => {
                let (dir, _) = self.first(at, *object)?;
                self.flow(dir).new += 1;
            }
            Change::Unlink { at, object } => {
                let (dir, goes) = self.first(at, *object)?;
                let known = self.rows.object(*object)?.is_some();
                // What was made and removed within these records counts once each way.
                if goes && known {
                    return Ok(());
                }
                let below = count_below(self.rows, *object, u64::MAX)?;
                self.flow(dir).gone += 1 + below;
                if !known || self.placed.contains(at) {
                    self.replaced += 1;
                } else if self.detail
                    && self.sample.len() < SAMPLE_MAX
                    && let Some(path) = path_at(self.rows, at)?
                {
                    self.sample.push(PathText::new(&path));
                }
            }
            Change::Move { object, from, to } => {
                let (source, goes) = self.first(from, *object)?;
                let (target, _) = self.first(to, *object)?;
                let renamed = from.parent == ObjectId::ROOT && to.parent == ObjectId::ROOT;
                let entries = || count_below(self.rows, *object, MOVED_MAX).map(|below| 1 + below);
                if goes {
                    // It leaves a directory that goes, and was counted with it.
                    let entries = entries()?;
                    self.rescued += entries;
                    let flow = self.flow(source.clone());
                    flow.new += entries;
                    flow.moved_out += if source == target { 0 } else { entries };
                    if source != target {
                        self.flow(target).moved_in += entries;
                    }
                } else if source != target && !renamed {
                    let entries = entries()?;
                    self.flow(source).moved_out += entries;
                    self.flow(target).moved_in += entries;
                }
            }
            Change::Update { .. } => self.changed += 1,
            _ => {}
        }
        Ok(())
    }

    /// Entries that are gone in the end, and new ones; neither counts what is replaced.
    pub fn totals(&self) -> (u64, u64) {
        let mut all = Flow::default();
        for flow in self.flows.values() {
            all.add(*flow);
        }
        // What leaves a directory that goes was counted both ways.
        let both = self.replaced + self.rescued;
        (all.gone.saturating_sub(both), all.new.saturating_sub(both))
    }

    fn flow(&mut self, dir: Option<Name>) -> &mut Flow {
        self.flows.entry(dir).or_default()
    }

    fn is_dir(&self, object: ObjectId) -> Result<bool, R::Error> {
        if self.made.contains_key(&object) {
            return Ok(true);
        }
        Ok(self
            .rows
            .object(object)?
            .is_some_and(|known| known.state.kind.is_dir()))
    }

    /// The first-level directory a name counts for, and whether a directory above it goes.
    fn first(&mut self, at: &At, object: ObjectId) -> Result<(Option<Name>, bool), R::Error> {
        if at.parent == ObjectId::ROOT {
            let dir = self.is_dir(object)?;
            return Ok((dir.then(|| at.name.clone()), false));
        }
        let place = self.place_of(at.parent)?;
        Ok((place.first, place.goes))
    }

    /// Of what is directly in this directory.
    fn place_of(&mut self, dir: ObjectId) -> Result<Place, R::Error> {
        let mut place = Place::default();
        let mut climbed = Vec::new();
        let mut here = dir;
        // Rows that contain each other would never end.
        while here != ObjectId::ROOT && climbed.len() < 100_000 {
            if let Some(known) = self.places.get(&here) {
                place.first.clone_from(&known.first);
                place.goes |= known.goes;
                break;
            }
            climbed.push(here);
            place.goes |= self.removed.contains(&here);
            let name = match self.rows.object(here)? {
                Some(known) => known.names.first().cloned(),
                None => self.made.get(&here).cloned(),
            };
            let Some(name) = name else { break };
            if name.parent == ObjectId::ROOT {
                place.first = Some(name.name);
                break;
            }
            here = name.parent;
        }
        if self.places.len() >= PLACES_MAX {
            self.places.clear();
        }
        self.places.insert(dir, place.clone());
        Ok(place)
    }
}

/// Entries below an object, counted up to `max`.
pub fn count_below<R: Rows>(rows: &R, object: ObjectId, max: u64) -> Result<u64, R::Error> {
    count_below_but(rows, object, max, |_| false)
}

/// Likewise, without these and all below them.
pub fn count_below_but<R: Rows>(
    rows: &R,
    object: ObjectId,
    max: u64,
    without: impl Fn(&ObjectId) -> bool,
) -> Result<u64, R::Error> {
    let mut count = 0u64;
    let mut dirs = vec![object];
    while let Some(dir) = dirs.pop() {
        let mut after: Option<Name> = None;
        loop {
            let found = rows.children(dir, after.as_ref(), CHILDREN_MAX)?;
            let counted = || found.iter().filter(|(_, child)| !without(child));
            count += counted().count() as u64;
            if count >= max {
                return Ok(max);
            }
            for (_, child) in counted() {
                if rows.object(*child)?.is_some_and(|c| c.state.kind.is_dir()) {
                    dirs.push(*child);
                }
            }
            match found.last() {
                Some((name, _)) if found.len() == CHILDREN_MAX => after = Some(name.clone()),
                _ => break,
            }
        }
    }
    Ok(count)
}

/// The path of a name below the root, by the rows.
pub fn path_at<R: Rows>(rows: &R, at: &At) -> Result<Option<Vec<u8>>, R::Error> {
    let mut names = vec![at.name.clone()];
    let mut dir = at.parent;
    while dir != ObjectId::ROOT {
        let up = rows.object(dir)?.and_then(|o| o.names.first().cloned());
        let Some(up) = up else { return Ok(None) };
        dir = up.parent;
        names.push(up.name);
    }
    let names: Vec<&[u8]> = names.iter().rev().map(Name::as_bytes).collect();
    Ok(Some(names.join(&b'/')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_core::model::apply_group;
    use mirror_core::{Kind, MemRows, Meta, Position, State};

    const OLD: u64 = ObjectId::ROOT.0;

    fn at(parent: u64, name: &str) -> At {
        At {
            parent: ObjectId(parent),
            name: Name::new(name.as_bytes()).unwrap(),
        }
    }
    fn record(change: Change) -> Record {
        Record {
            position: Position {
                epoch: 1,
                sequence: 1,
            },
            time_ns: 0,
            end: true,
            who: None,
            change,
            local: None,
            content: None,
        }
    }
    fn make(object: u64, at: At, kind: Kind) -> Record {
        let state = State {
            kind,
            meta: Meta::default(),
        };
        let object = ObjectId(object);
        record(Change::Create { at, object, state })
    }
    fn unlink(object: u64, at: At) -> Record {
        let object = ObjectId(object);
        record(Change::Unlink { at, object })
    }
    fn moved(object: u64, from: At, to: At) -> Record {
        let object = ObjectId(object);
        record(Change::Move { object, from, to })
    }

    /// `a/b/c/f0..f9`, `d/` and `top`; ids are 10, 11, 12, 100.., 20, 30.
    fn rows() -> MemRows {
        let mut rows = MemRows::default();
        let mut group = vec![
            make(10, at(OLD, "a"), Kind::Dir),
            make(11, at(10, "b"), Kind::Dir),
            make(12, at(11, "c"), Kind::Dir),
            make(20, at(OLD, "d"), Kind::Dir),
            make(30, at(OLD, "top"), Kind::Fifo),
        ];
        for n in 0..10 {
            group.push(make(100 + n, at(12, &format!("f{n}")), Kind::Fifo));
        }
        let root = record(Change::Open {
            tree: [1; 16],
            claim: [2; 16],
            parent: None,
        });
        apply_group(&mut rows, &[root]).unwrap();
        let last = group.len() - 1;
        for (n, record) in group.iter_mut().enumerate() {
            record.end = n == last;
        }
        apply_group(&mut rows, &group).unwrap();
        rows
    }

    /// `(directory, gone, new, moved in, moved out)` and `(gone, new)` in the end.
    fn tally(records: &[Record]) -> (Vec<(String, [u64; 4])>, (u64, u64), Vec<String>) {
        let rows = rows();
        let tally = Tally::of(&rows, true, records).unwrap();
        let flows = tally.flows.iter().map(|(dir, f)| {
            let dir = dir.as_ref().map_or("/".into(), Name::to_string);
            (dir, [f.gone, f.new, f.moved_in, f.moved_out])
        });
        let sample = tally.sample.iter().map(PathText::to_string).collect();
        (flows.collect(), tally.totals(), sample)
    }

    #[test]
    fn a_removed_tree_counts_once() {
        let mut all: Vec<Record> = (0..10)
            .map(|n| unlink(100 + n, at(12, &format!("f{n}"))))
            .collect();
        all.push(unlink(12, at(11, "c")));
        all.push(unlink(11, at(10, "b")));
        let want = (
            vec![("a".to_string(), [12, 0, 0, 0])],
            (12, 0),
            vec!["a/b".to_string()],
        );
        assert_eq!(tally(&all), want);
        // Whether it is told name by name or as a whole.
        assert_eq!(tally(&[unlink(11, at(10, "b"))]), want);
    }

    #[test]
    fn what_is_replaced_or_only_passes_by_is_not_gone() {
        let replaced = [
            make(200, at(12, "tmp"), Kind::Fifo),
            moved(200, at(12, "tmp"), at(12, "f0")),
            unlink(100, at(12, "f0")),
        ];
        let (flows, totals, sample) = tally(&replaced);
        assert_eq!(flows, [("a".to_string(), [1, 1, 0, 0])]);
        assert_eq!((totals, sample.len()), ((0, 0), 0));
        let passing = [
            make(200, at(OLD, "tmp"), Kind::Fifo),
            unlink(200, at(OLD, "tmp")),
        ];
        assert_eq!(tally(&passing).1, (0, 0));
    }

    #[test]
    fn moves_are_no_loss() {
        // Out of a directory that goes.
        let (flows, totals, _) =
            tally(&[moved(12, at(11, "c"), at(20, "c")), unlink(11, at(10, "b"))]);
        assert_eq!(
            flows,
            [
                ("a".to_string(), [12, 11, 0, 11]),
                ("d".to_string(), [0, 0, 11, 0])
            ]
        );
        assert_eq!(totals, (1, 0));
        // A first-level directory under a new name.
        let (flows, totals, _) = tally(&[moved(10, at(OLD, "a"), at(OLD, "z"))]);
        assert_eq!((flows.len(), totals), (0, (0, 0)));
        let (flows, totals, _) = tally(&[moved(100, at(12, "f0"), at(20, "f0"))]);
        assert_eq!(
            flows,
            [
                ("a".to_string(), [0, 0, 0, 1]),
                ("d".to_string(), [0, 0, 1, 0])
            ]
        );
        assert_eq!(totals, (0, 0));
    }
}
