//! Published trees are the state of their position, and stay so whatever the copy does later; a recycled one is as a fresh one.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use mirror_core::history::Moment;
use testkit::workload::{self, Workload};

use super::past::{Kept, NoneLost, but_for_holes, remove, rounds};
use super::*;
use crate::apply::meta::Rules;
use crate::history::ask::{Answer, Ask, answer, state_of};
use crate::history::asked::{Asks, Places};
use crate::history::checkout::Made;
use crate::history::publish::Publish;
use crate::history::publish_settings::{Every, PublishSettings};
use crate::history::rotate::{Done, Rotation};
use crate::history::tree::PastError;
use crate::sys::open;

struct Asked<'a>(&'a mut Applier<Memory>);

impl Asks for Asked<'_> {
    fn ask(&mut self, ask: &Ask) -> Result<Answer, PastError> {
        let now = self.0.moment();
        let done = self
            .0
            .with_past(|rows, history| answer(rows, history.unwrap(), now, ask));
        done.unwrap()
    }
}

/// A tree that was made, and of which state.
struct Tree {
    moment: Moment,
    was: PathBuf,
    path: PathBuf,
}

struct Shelf {
    kept: Kept,
    trees: Vec<Tree>,
    made: u64,
    work: OwnedFd,
    rules: Rules,
}

impl Shelf {
    fn new(options: Options) -> Shelf {
        let kept = Kept::new(options);
        let work = kept.base.path().join("work");
        std::fs::create_dir(&work).unwrap();
        let work = open::dir_at_path(&work).unwrap();
        Shelf {
            rules: Rules::probe(&work, Owners::Apply).unwrap(),
            kept,
            trees: Vec::new(),
            made: 0,
            work,
        }
    }

    fn publish<T>(&mut self, f: impl FnOnce(&mut Publish<'_>) -> T) -> T {
        let places = Places {
            dst: self.kept.pair.dst.clone(),
            state_dir: self.kept.pair.state.clone(),
        };
        let mut asked = Asked(self.kept.pair.applier());
        f(&mut Publish {
            asks: &mut asked,
            places,
            rules: &self.rules,
            progress: &mut NoneLost,
            work: &self.work,
            durable: false,
        })
    }

    /// The last state that was remembered, which is the copy's.
    fn whole(&mut self, n: usize) -> Made {
        let (moment, was) = self.kept.was[n].clone();
        self.made += 1;
        let path = self.kept.base.path().join(format!("tree{}", self.made));
        std::fs::create_dir(&path).unwrap();
        let top = open::dir_at_path(&path).unwrap();
        let made = self.publish(|publish| {
            let root = Ask::Root { moment: moment.0 };
            let Answer::State(root) = publish.asks.ask(&root).unwrap() else {
                panic!();
            };
            let root = state_of(&root).unwrap();
            publish.whole(moment, (ObjectId::ROOT, &root, b""), &top)
        });
        self.trees.push(Tree { moment, was, path });
        made.unwrap()
    }

    fn recycle(&mut self, tree: usize, n: usize) -> Made {
        let (moment, was) = self.kept.was[n].clone();
        let from = self.trees[tree].moment;
        let top = open::dir_at_path(&self.trees[tree].path).unwrap();
        let made = self.publish(|publish| publish.recycled((from, moment), &top));
        let tree = &mut self.trees[tree];
        (tree.moment, tree.was) = (moment, was);
        made.unwrap()
    }

    #[track_caller]
    fn check(&self) {
        for tree in &self.trees {
            testkit::compare::assert_equal(&tree.was, &tree.path, &but_for_holes());
        }
    }

    /// Changes the source, and the copy follows.
    fn step(&mut self) -> Option<usize> {
        let found = self.kept.pair.source.look();
        let moment = Moment::of(found.last()?.position);
        self.kept.remember(moment);
        self.kept.pair.records.extend(found.iter().cloned());
        let outcome = self.kept.pair.apply(&found);
        assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
        Some(self.kept.was.len() - 1)
    }
}

fn campaign(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut random = super::same::Random(seed + 77);
        let options = Options {
            flush: Flush::Never,
            ..Options::default()
        };
        let mut shelf = Shelf::new(options);
        let outside = shelf.kept.base.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        let params = workload::Params {
            seed,
            outside: Some(outside),
            mappings: false,
            ..workload::Params::default()
        };
        let mut work = Workload::new(&shelf.kept.pair.source.path, &params).unwrap();
        for _ in 0..25 {
            for _ in 0..1 + random.below(12) {
                let _ = work.step();
            }
            let Some(last) = shelf.step() else { continue };
            if random.below(5) == 0 {
                shelf.kept.crash();
                let position = shelf.kept.pair.applier().store().position();
                if position < shelf.kept.pair.records.last().map(|r| r.position) {
                    shelf.kept.pair.catch_up();
                }
            }
            match random.below(3) {
                0 if shelf.trees.len() < 4 => {
                    let n = random.below(last as u64 + 1) as usize;
                    shelf.whole(n);
                }
                1 if !shelf.trees.is_empty() => {
                    let tree = random.below(shelf.trees.len() as u64) as usize;
                    let from = shelf.trees[tree].moment;
                    let after = shelf.kept.was.iter().filter(|(moment, _)| *moment < from);
                    let first = after.count();
                    let n = first + random.below((last - first) as u64 + 1) as usize;
                    shelf.recycle(tree, n);
                    let tree = &shelf.trees[tree];
                    println!("seed {seed}: {:?} -> {:?}", from, tree.moment);
                    testkit::compare::assert_equal(&tree.was, &tree.path, &but_for_holes());
                }
                _ => {}
            }
        }
        let (src, dst) = (&shelf.kept.pair.source.path, &shelf.kept.pair.dst);
        testkit::compare::assert_equal(src, dst, &but_for_holes());
        shelf.check();
        for tree in &shelf.trees {
            remove(&tree.path);
        }
        for (_, was) in &shelf.kept.was {
            remove(was);
        }
    }
}

#[test]
fn a_published_tree_is_its_position_and_a_recycled_one_is_as_a_fresh_one() {
    if !testkit::is_root() {
        testkit::print_skip("needs root: owners and devices");
        return;
    }
    let threads: Vec<_> = (0..2)
        .map(|n| std::thread::spawn(move || campaign(n * 1000..n * 1000 + rounds(6))))
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn files_are_links_and_what_differs_in_metadata_is_a_copy() {
    let mut shelf = Shelf::new(Options::default());
    shelf.kept.pair.write("a", b"one");
    shelf.kept.pair.write("b", b"two");
    shelf.step().unwrap();
    shelf.kept.pair.write("a", b"three");
    let n = shelf.step().unwrap();
    let made = shelf.whole(0);
    assert_eq!((made.files, made.bytes), (2, 0), "only links: {made:?}");
    let ino = |path: &Path| std::fs::metadata(path).unwrap().ino();
    let tree = shelf.trees[0].path.clone();
    assert_eq!(ino(&tree.join("b")), ino(&shelf.kept.pair.dst.join("b")));
    // In place, where nobody else sees it.
    let made = shelf.recycle(0, n);
    assert_eq!((made.files, made.bytes), (1, 0), "{made:?}");
    shelf.check();
    // A published inode is not changed in place.
    let path = shelf.kept.pair.source.path.join("b");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let n = shelf.step().unwrap();
    assert_ne!(ino(&tree.join("b")), ino(&shelf.kept.pair.dst.join("b")));
    shelf.check();
    shelf.whole(n);
    shelf.check();
}

const HOUR: u64 = 3_600_000_000_000;

impl Shelf {
    /// What is due so many hours from now.
    fn rotate(&mut self, settings: &str, hours: u64) -> Vec<Done> {
        let settings: toml::Table = settings.parse().unwrap();
        let settings = PublishSettings::from_toml(settings.get("publish").unwrap());
        let places = Places {
            dst: self.kept.pair.dst.clone(),
            state_dir: self.kept.pair.state.clone(),
        };
        let mut asked = Asked(self.kept.pair.applier());
        let settings = settings.unwrap().unwrap();
        let rotation = Rotation::open(&mut asked, places, Owners::Apply, settings);
        let now = crate::history::now_ns() + hours * HOUR;
        rotation.unwrap().rotate(Some(Every::Hour), now).unwrap()
    }

    fn names(&self, dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names
            .filter(|name| !name.starts_with('.') && !name.ends_with(".json"))
            .collect();
        names.sort();
        names
    }

    /// Another state, and the copy of it.
    fn change(&mut self, text: &str) -> PathBuf {
        self.kept.pair.write("a", text.as_bytes());
        let n = self.step().unwrap();
        self.kept.was[n].1.clone()
    }
}

#[track_caller]
fn equal(was: &Path, tree: &Path) {
    testkit::compare::assert_equal(was, tree, &but_for_holes());
}

#[test]
fn numbered_trees_move_on_as_rsnapshot_has_them() {
    let mut shelf = Shelf::new(Options::default());
    let settings = "publish = { trees = { hourly = 3 }, names = \"numbered\" }";
    std::fs::create_dir(shelf.kept.pair.source.path.join("d")).unwrap();
    for n in 0..200 {
        shelf.kept.pair.write(&format!("d/f{n}"), b"same");
    }
    let dir = shelf.kept.pair.state.join("snapshots");
    let mut was = Vec::new();
    for hour in 1..=5 {
        was.insert(0, shelf.change(&format!("hour {hour}")));
        let done = shelf.rotate(settings, hour);
        let [Done::Made(tree, path)] = done.as_slice() else {
            panic!("{done:?}");
        };
        assert_eq!(tree.recycled, hour > 3, "{tree:?}");
        assert_eq!(*path, dir.join("hourly.0"));
        assert_eq!(shelf.rotate(settings, hour), [Done::UpToDate(Every::Hour)]);
        was.truncate(3);
        for (n, was) in was.iter().enumerate() {
            equal(was, &dir.join(format!("hourly.{n}")));
        }
    }
    assert_eq!(shelf.names(&dir), ["hourly.0", "hourly.1", "hourly.2"]);
    // A change of names that was broken off: what is written down is found by the tree.
    std::fs::rename(dir.join("hourly.2"), dir.join("hourly.3")).unwrap();
    // Other names, and fewer.
    let done = shelf.rotate("publish = { trees = { hourly = 2 } }", 5);
    assert_eq!(done, [Done::UpToDate(Every::Hour)]);
    let names = shelf.names(&dir);
    assert!(
        names.len() == 2 && names.iter().all(|name| name.ends_with("00Z")),
        "{names:?}"
    );
    equal(&was[0], &dir.join(&names[1]));
}

#[test]
fn a_tree_that_somebody_changed_is_made_whole_again() {
    let mut shelf = Shelf::new(Options::default());
    let elsewhere = shelf.kept.base.path().join("published");
    std::fs::create_dir(&elsewhere).unwrap();
    let settings = format!(
        "publish = {{ trees = {{ hourly = 1 }}, dir = \"{}\" }}",
        elsewhere.display()
    );
    shelf.change("one");
    shelf.rotate(&settings, 1);
    let names = shelf.names(&elsewhere);
    std::fs::remove_file(elsewhere.join(&names[0]).join("a")).unwrap();
    // And what a crash left.
    let left = std::fs::read_dir(&elsewhere).unwrap().count();
    let was = shelf.change("two");
    let done = shelf.rotate(&settings, 2);
    let [Done::Made(tree, path)] = done.as_slice() else {
        panic!("{done:?}");
    };
    assert!(!tree.recycled);
    equal(&was, path);
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), left);
    // Somebody else's name is nobody's to take.
    assert!(matches!(
        shelf.rotate(&settings, 0).as_slice(),
        [Done::UpToDate(_)]
    ));
}
