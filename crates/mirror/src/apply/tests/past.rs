//! The tree as of any position is the tree that was there then: bytes, names, links and all metadata, also after crashes.

use std::path::{Path, PathBuf};

use mirror_core::history::Moment;
use mirror_core::{ObjectId, State};
use testkit::workload::{self, Workload};

use super::*;
use crate::history::checkout::{Checkout, Progress};
use crate::history::events::Why;
use crate::history::tree::{Entry, Here, PastError, PastTree, Where};
use crate::sys::open;

const TREE: [u8; 16] = [7; 16];

/// Of a mirror whose process is this one.
pub struct Local<'a> {
    pub here: Here<'a, mirror_core::plan::Overlay<'a, Memory>>,
    pub dst: PathBuf,
}

impl PastTree for Local<'_> {
    fn root(&mut self) -> Result<State, PastError> {
        self.here.root_state()
    }
    fn page(
        &mut self,
        dir: ObjectId,
        after: Option<&Name>,
    ) -> Result<(Vec<Entry>, Option<Name>), PastError> {
        self.here.page(dir, after)
    }
    fn entry(&mut self, at: &At) -> Result<Option<Entry>, PastError> {
        self.here.entry(at)
    }
    fn open(&mut self, entry: &Entry) -> Result<std::os::fd::OwnedFd, PastError> {
        let lost = |e: crate::sys::Errno| PastError::Unknown(e.to_string());
        match &entry.bytes {
            Where::Kept(slot) => self.here.history.slots.open_file(*slot).map_err(lost),
            Where::Live(path) => {
                let top = open::dir_at_path(self.dst.join(path).parent().unwrap()).map_err(lost)?;
                use std::os::unix::ffi::OsStrExt;
                open::file(&top, path.file_name().unwrap().as_bytes()).map_err(lost)
            }
            other => panic!("{other:?} has no file"),
        }
    }
}

pub struct NoneLost;

impl Progress for NoneLost {
    fn lost(&mut self, path: &[u8], why: &str) -> bool {
        panic!("{}: {why}", String::from_utf8_lossy(path));
    }
}

/// A pair that keeps history, and copies of how the source was.
pub struct Kept {
    pub pair: Pair,
    pub was: Vec<(Moment, PathBuf)>,
    pub base: tempfile::TempDir,
}

fn history(pair: &Pair) -> crate::history::History {
    let known = pair.applier.as_ref().unwrap().known().unwrap();
    crate::history::History::open(&pair.state, TREE, Some(known)).unwrap()
}

impl Kept {
    pub fn new(options: Options) -> Kept {
        let mut pair = pair_with(options);
        pair.step();
        let mut history = history(&pair);
        history.begin(pair.applier().moment(), 0, Why::New).unwrap();
        pair.applier().set_history(Some(history));
        Kept {
            pair,
            was: Vec::new(),
            base: tempfile::tempdir().unwrap(),
        }
    }

    fn id_of(&mut self, path: &str) -> ObjectId {
        let store = self.pair.applier().store();
        path.split('/').fold(ObjectId::ROOT, |parent, name| {
            let name = Name::new(name.as_bytes()).unwrap();
            store.name(&At { parent, name }).unwrap().unwrap()
        })
    }

    /// How the source is now, kept for later.
    pub fn remember(&mut self, moment: Moment) {
        let to = self.base.path().join(format!("was{}", self.was.len()));
        copy(&self.pair.source.path, &to);
        self.was.push((moment, to));
    }

    pub fn crash(&mut self) {
        self.pair.crash();
        let history = history(&self.pair);
        self.pair.applier().set_history(Some(history));
    }

    /// The tree as of each position that was kept, made anew and compared.
    pub fn check_all(&mut self) {
        for (n, (moment, was)) in self.was.iter().enumerate() {
            let to = self.base.path().join("as-of");
            std::fs::create_dir(&to).unwrap();
            let top = open::dir_at_path(&to).unwrap();
            let rules = crate::apply::meta::Rules::probe(&top, Owners::Apply).unwrap();
            let applier = self.pair.applier.as_ref().unwrap();
            let rows = applier.logical().unwrap();
            let history = applier.history().unwrap();
            let mut tree = Local {
                here: Here::new(&rows, history, *moment),
                dst: self.pair.dst.clone(),
            };
            let root = tree.root().unwrap();
            let mut progress = NoneLost;
            let mut checkout = Checkout::new(&mut tree, &rules, &mut progress, top);
            if let Err(e) = checkout.fill_top(ObjectId::ROOT, &root) {
                panic!("state {n}, as of {moment:?}: {e}: {e:?}");
            }
            testkit::compare::assert_equal(was, &to, &but_for_holes());
            remove(&to);
        }
    }

    pub fn forget(&mut self) {
        for (_, path) in self.was.drain(..) {
            remove(&path);
        }
    }
}

/// The simple look, and `cp`, have their own mind about them.
pub fn but_for_holes() -> testkit::compare::Options {
    testkit::compare::Options::ignoring(&[testkit::compare::Class::Holes])
}

fn copy(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status();
    assert!(done.unwrap().success());
}

pub fn remove(path: &Path) {
    let done = std::process::Command::new("rm")
        .arg("-rf")
        .arg(path)
        .status();
    assert!(done.unwrap().success());
}

/// `FS_MIRROR_PAST` sets another number of rounds.
pub fn rounds(standard: u64) -> u64 {
    let asked = std::env::var("FS_MIRROR_PAST").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(standard)
}

fn campaign(seeds: std::ops::Range<u64>) -> usize {
    let mut positions = 0;
    for seed in seeds {
        let mut random = super::same::Random(seed + 1);
        let options = Options {
            flush: Flush::Never,
            checkpoint_every: std::time::Duration::from_secs(3600),
            checkpoint_batches_max: 1 + random.below(6) as u32,
            ..Options::default()
        };
        let mut kept = Kept::new(options);
        let outside = kept.base.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        let params = workload::Params {
            seed,
            outside: Some(outside),
            mappings: false,
            ..workload::Params::default()
        };
        let mut work = Workload::new(&kept.pair.source.path, &params).unwrap();
        let mut waiting = Vec::new();
        for _ in 0..40 {
            for _ in 0..1 + random.below(12) {
                let _ = work.step();
            }
            let found = kept.pair.source.look();
            let Some(last) = found.last() else { continue };
            let moment = Moment::of(last.position);
            kept.remember(moment);
            positions += 1;
            kept.pair.records.extend(found.iter().cloned());
            waiting.extend(found);
            // Several groups are applied at once, now and then.
            if random.below(3) == 0 {
                continue;
            }
            let outcome = kept.pair.apply(&std::mem::take(&mut waiting));
            assert!(
                outcome.failed.is_empty(),
                "seed {seed}: {:?}",
                outcome.failed
            );
            if random.below(5) == 0 {
                kept.crash();
                if kept.pair.applier().store().position()
                    < kept.pair.records.last().map(|r| r.position)
                {
                    kept.pair.catch_up();
                }
            }
        }
        if !waiting.is_empty() {
            kept.pair.apply(&waiting);
        }
        let (src, dst) = (&kept.pair.source.path, &kept.pair.dst);
        testkit::compare::assert_equal(src, dst, &but_for_holes());
        kept.pair.check_index();
        kept.check_all();
        kept.forget();
    }
    positions
}

#[test]
fn the_tree_as_of_any_position_is_what_the_source_was() {
    if !testkit::is_root() {
        testkit::print_skip("needs root: owners and devices");
        return;
    }
    let threads: Vec<_> = (0..2)
        .map(|n| std::thread::spawn(move || campaign(n * 1000..n * 1000 + rounds(30))))
        .collect();
    let positions: usize = threads.into_iter().map(|t| t.join().unwrap()).sum();
    println!("{positions} positions");
    assert!(rounds(30) < 30 || positions >= 2000, "{positions}");
}

#[test]
fn what_came_and_went_between_two_batches_is_kept() {
    let mut kept = Kept::new(Options::default());
    kept.pair.write("a", b"one");
    kept.pair.sync();
    let mut all = Vec::new();
    for text in ["two", "three", ""] {
        kept.pair.write("a", text.as_bytes());
        kept.pair.write("short", text.as_bytes());
        let found = kept.pair.source.look();
        kept.remember(Moment::of(found.last().unwrap().position));
        all.extend(found);
    }
    kept.pair.rm("short");
    let found = kept.pair.source.look();
    kept.remember(Moment::of(found.last().unwrap().position));
    all.extend(found);
    kept.pair.records.extend(all.iter().cloned());
    kept.pair.apply(&all);
    kept.pair.check();
    kept.check_all();
}

#[test]
fn a_version_that_never_came_is_told_and_the_one_before_it_is_had() {
    let mut kept = Kept::new(Options::default());
    kept.pair.write("a", b"first");
    let before = kept.pair.step();
    assert!(before.failed.is_empty());
    kept.remember(kept.pair.applier.as_ref().unwrap().moment());
    kept.pair.write("a", b"never comes");
    let records = kept.pair.source.look();
    let id = records
        .iter()
        .find_map(|r| r.change.content().and(r.change.object()))
        .unwrap();
    let _ = kept
        .pair
        .source
        .contents
        .instead
        .lock()
        .unwrap()
        .insert(id, "gone");
    let outcome = kept.pair.apply(&records);
    assert_eq!(outcome.failed.len(), 1);
    let lost = kept.pair.applier().moment();
    kept.pair.source.contents.instead.lock().unwrap().clear();
    // Still in the copy, and at its position.
    kept.check_all();
    kept.pair.write("a", b"third");
    let outcome = kept.pair.step();
    assert!(outcome.failed.is_empty());
    kept.remember(kept.pair.applier.as_ref().unwrap().moment());
    kept.check_all();
    let applier = kept.pair.applier.as_ref().unwrap();
    let rows = applier.logical().unwrap();
    let mut here = Here::new(&rows, applier.history().unwrap(), lost);
    let at = At {
        parent: ObjectId::ROOT,
        name: Name::new(b"a").unwrap(),
    };
    let entry = here.entry(&at).unwrap().unwrap();
    assert!(matches!(entry.bytes, Where::Unkept(_)), "{entry:?}");
}

/// Versions of a file that are kept.
fn kept_of(kept: &mut Kept, name: &str) -> usize {
    let id = kept.id_of(name);
    let history = kept.pair.applier().history().unwrap();
    let groups = history.slots.groups().unwrap();
    let slots = groups
        .iter()
        .flat_map(|group| history.slots.in_group(*group).unwrap());
    slots.filter(|slot| slot.object == id).count()
}

#[test]
fn of_a_file_that_is_written_each_second_one_version_in_ten_seconds_is_kept() {
    use crate::history::settings::{PathRule, Settings};
    use mirror_core::history::interval::{BURST, Keep};
    use mirror_core::history::retention::MirrorTime;
    const S: u64 = 1_000_000_000;
    let mut kept = Kept::new(Options {
        flush: Flush::Never,
        ..Options::default()
    });
    let rule = |pattern: &str, keep| PathRule {
        patterns: vec![pattern.into()],
        keep,
    };
    let settings = Settings {
        paths: vec![
            rule("cache/", Keep::None),
            rule("*.all", Keep::All),
            rule("slow", Keep::Interval(600 * S)),
        ],
        ..Settings::default()
    };
    let history = kept.pair.applier().history_mut().unwrap();
    history.choose(&settings).unwrap();
    kept.pair.mkdir("cache");
    for name in ["hot", "slow", "x.all", "cache/x"] {
        kept.pair.write(name, b"begin");
    }
    kept.pair.step();
    const WRITES: u64 = 3600;
    // The others need not so many.
    const FEW: u64 = 700;
    for n in 1..=WRITES {
        let names = ["hot", "slow", "x.all", "cache/x"];
        for name in &names[..if n <= FEW { 4 } else { 1 }] {
            kept.pair.write(name, format!("{n:08}").as_bytes());
        }
        let history = kept.pair.applier().history_mut().unwrap();
        history.clock.set(MirrorTime::of_ns((1_000_000 + n) * S));
        let mut records = kept.pair.source.look();
        // The worker's clock stands still.
        records.iter_mut().for_each(|record| record.time_ns = 1);
        let outcome = kept.pair.apply(&records);
        assert!(outcome.failed.is_empty());
    }
    let hot = kept_of(&mut kept, "hot") as u64;
    assert_eq!(hot, BURST + (WRITES - 1) / 10, "of {WRITES}");
    assert_eq!(kept_of(&mut kept, "slow") as u64, BURST + (FEW - 1) / 600);
    assert_eq!(kept_of(&mut kept, "x.all") as u64, FEW);
    assert_eq!(kept_of(&mut kept, "cache/x"), 0);
    // What it was is told, not made up; and what is deleted is kept whole, but where nothing is.
    let id = kept.id_of("cache/x");
    for name in ["hot", "cache/x"] {
        kept.pair.rm(name);
    }
    let moment = kept.pair.applier().moment();
    kept.pair.step();
    let applier = kept.pair.applier.as_ref().unwrap();
    let rows = applier.logical().unwrap();
    let mut here = Here::new(&rows, applier.history().unwrap(), moment);
    let at = |name: &[u8]| At {
        parent: ObjectId::ROOT,
        name: Name::new(name).unwrap(),
    };
    let entry = here.entry(&at(b"hot")).unwrap().unwrap();
    assert!(matches!(entry.bytes, Where::Kept(_)), "{entry:?}");
    let bytes = here.object(id).unwrap().unwrap().0.bytes;
    assert_eq!(bytes, Where::Unkept(mirror_core::history::Unkept::Policy));
}
