//! A model of directories that move, and of trees that believe what they were told: nobody who is concerned is left out.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::*;
use crate::sys::fanotify::written;

type Dir = u8;
const TOP: Dir = 0;

/// Numbers that are the same in each run.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % n
    }
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

// ---- records as the kernel writes them ----

fn info(kind: u8, dir: Dir, name: Option<&[u8]>) -> Vec<u8> {
    written::fid(kind, &[dir, 0, 0, 0], name)
}

fn event(mask: u64, infos: &[Vec<u8>]) -> Vec<u8> {
    written::event_of(mask, 7, infos)
}

fn in_dir(mask: u64, dir: Dir, object: Dir) -> Vec<u8> {
    let named = info(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, dir, Some(b"n"));
    let object = info(libc::FAN_EVENT_INFO_TYPE_FID, object, None);
    event(mask, &[named, object])
}

fn renamed(flags: u64, from: Dir, to: Dir, object: Dir) -> Vec<u8> {
    event(
        mask::RENAME | flags,
        &[
            info(libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME, from, Some(b"n")),
            info(libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME, to, Some(b"n")),
            info(libc::FAN_EVENT_INFO_TYPE_FID, object, None),
        ],
    )
}

// ---- the model ----

/// What happened, as a tree understands it.
#[derive(Debug, Clone, Copy)]
enum Said {
    In(Dir),
    Moved { from: Dir, to: Dir, dir: Dir },
}

fn said(bytes: &[u8]) -> Said {
    let record = Records::parse(bytes).next().unwrap().unwrap();
    let dir = |handle: HandleRef<'_>| handle.bytes[0];
    match (record.old, record.new) {
        (Some((from, _)), Some((to, _))) => Said::Moved {
            from: dir(from),
            to: dir(to),
            dir: dir(record.object.unwrap()),
        },
        _ => Said::In(dir(record.dir.unwrap())),
    }
}

struct Model {
    random: Seeded,
    /// Of each directory that is there; the top's is itself.
    parents: BTreeMap<Dir, Dir>,
    /// How often something happened in it.
    versions: BTreeMap<Dir, u32>,
    roots: BTreeMap<Dir, Trees>,
    known: HashMap<Dir, Trees>,
    /// The kernel's queue, and what is done and not queued yet.
    queue: Vec<u8>,
    late: VecDeque<Vec<u8>>,
    /// Things may still happen.
    busy: bool,
}

impl Model {
    fn is_below(&self, dir: Dir, above: Dir) -> bool {
        let mut here = dir;
        loop {
            if here == above {
                return true;
            }
            match self.parents.get(&here) {
                Some(&up) if up != here => here = up,
                _ => return false,
            }
        }
    }

    fn place(&self, dir: Dir) -> Place {
        if !self.parents.contains_key(&dir) {
            return Place::Gone;
        }
        let roots = self
            .roots
            .iter()
            .filter(|(root, _)| self.is_below(dir, **root));
        let empty = Trees::default();
        Place::Below(roots.fold(empty, |all, (_, trees)| union(&all, trees)))
    }

    fn any(&mut self) -> Dir {
        let n = self.random.below(self.parents.len());
        *self.parents.keys().nth(n).unwrap()
    }

    fn happened(&mut self, dirs: &[Dir], bytes: Vec<u8>) {
        for dir in dirs {
            *self.versions.entry(*dir).or_default() += 1;
        }
        // Done; told a little later.
        self.late.push_back(bytes);
        while !self.late.is_empty() && !self.random.one_in(4) {
            self.queue.extend(self.late.pop_front().unwrap());
        }
    }

    fn act(&mut self) {
        let (dir, other) = (self.any(), self.any());
        match self.random.below(6) {
            0 | 1 => {
                let bytes = in_dir(mask::CREATE, dir, 255);
                self.happened(&[dir], bytes);
            }
            2 | 3 => {
                let up = self.parents[&dir];
                if dir == TOP || self.is_below(other, dir) || up == other {
                    return;
                }
                self.parents.insert(dir, other);
                self.happened(&[up, other], renamed(mask::ONDIR, up, other, dir));
            }
            4 => {
                let new = (1..60).find(|new| !self.versions.contains_key(new));
                let Some(new) = new else { return };
                self.parents.insert(new, dir);
                self.versions.insert(new, 0);
                self.happened(&[dir], in_dir(mask::CREATE | mask::ONDIR, dir, new));
            }
            _ => {
                let empty = !self.parents.iter().any(|(d, up)| *up == dir && *d != dir);
                if dir == TOP || !empty || self.roots.contains_key(&dir) || dir < 12 {
                    return;
                }
                let up = self.parents.remove(&dir).unwrap();
                self.happened(&[up], in_dir(mask::DELETE | mask::ONDIR, up, dir));
            }
        }
    }
}

impl World for Model {
    fn dir(&mut self, dir: HandleRef<'_>, anew: bool) -> Place {
        // The world does not stand still while it is looked at.
        if self.busy && self.random.one_in(5) {
            self.act();
        }
        let dir = dir.bytes[0];
        if !anew && let Some(trees) = self.known.get(&dir) {
            return Place::Below(trees.clone());
        }
        let place = self.place(dir);
        if let Place::Below(trees) = &place {
            self.known.insert(dir, trees.clone());
        }
        place
    }
    fn file(&mut self, _: HandleRef<'_>, _: Option<(HandleRef<'_>, &[u8])>) -> Names {
        Names::Told
    }
    fn root(&self, dir: HandleRef<'_>) -> Option<Trees> {
        self.roots.get(&dir.bytes[0]).cloned()
    }
    fn forget(&mut self) {
        self.known.clear();
    }
}

/// A tree's process: what it believes, and what it was told and has not looked at yet.
struct Believer {
    root: Dir,
    /// Where it believes a directory to be, and which version it has seen.
    dirs: BTreeMap<Dir, (Dir, u32)>,
    told: VecDeque<(Said, bool)>,
    doubt: bool,
}

impl Believer {
    fn inside(&self, model: &Model, dir: Dir) -> bool {
        model.parents.contains_key(&dir) && model.is_below(dir, self.root)
    }

    fn see(&mut self, model: &Model, dir: Dir) {
        let seen = (model.parents[&dir], model.versions[&dir]);
        self.dirs.insert(dir, seen);
    }

    /// What is not known is seen with all that is in it; what is known only stands elsewhere.
    fn attach(&mut self, model: &Model, dir: Dir) {
        if let Some((up, _)) = self.dirs.get_mut(&dir) {
            *up = model.parents[&dir];
            if !self.doubt {
                return;
            }
            return self.scan(model, dir);
        }
        self.see(model, dir);
        for below in children(model, dir) {
            self.attach(model, below);
        }
    }

    fn scan(&mut self, model: &Model, dir: Dir) {
        self.see(model, dir);
        for below in children(model, dir) {
            self.scan(model, below);
        }
    }

    fn detach(&mut self, dir: Dir) {
        self.dirs.remove(&dir);
        let below = self.dirs.iter().filter(|(_, (up, _))| *up == dir);
        let below: Vec<Dir> = below.map(|(dir, _)| *dir).filter(|d| *d != dir).collect();
        for dir in below {
            self.detach(dir);
        }
    }

    fn look_in(&mut self, model: &Model, dir: Dir) {
        if self.inside(model, dir) && self.dirs.contains_key(&dir) {
            self.see(model, dir);
            for below in children(model, dir) {
                if self.dirs.get(&below).is_none_or(|(up, _)| *up != dir) {
                    self.attach(model, below);
                }
            }
        }
        let believed = self.dirs.iter().filter(|(_, (up, _))| *up == dir);
        let believed: Vec<Dir> = believed.map(|(dir, _)| *dir).collect();
        for below in believed {
            if below != self.root && !self.inside(model, below) {
                self.detach(below);
            }
        }
    }

    fn hear(&mut self, model: &Model) {
        let Some((said, entered)) = self.told.pop_front() else {
            return;
        };
        match said {
            Said::In(dir) => self.look_in(model, dir),
            Said::Moved { from, to, dir } => {
                self.doubt |= entered;
                self.look_in(model, from);
                self.look_in(model, to);
                if self.inside(model, dir) {
                    self.attach(model, dir);
                }
            }
        }
    }
}

fn children(model: &Model, dir: Dir) -> Vec<Dir> {
    let below = model
        .parents
        .iter()
        .filter(|(d, up)| **up == dir && **d != dir);
    below.map(|(dir, _)| *dir).collect()
}

/// What is wrong at the end, if something is. `entered`: as decided, or a defect that must be found.
fn run(seed: u64, defect: bool) -> Option<String> {
    let mut model = Model {
        random: Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        parents: (0..12)
            .map(|dir| (dir, if dir < 5 { TOP } else { dir - 4 }))
            .collect(),
        versions: (0..12).map(|dir| (dir, 0)).collect(),
        // Three trees, of which one lies in another.
        roots: [(1, [0].into()), (2, [1].into()), (5, [2].into())].into(),
        known: HashMap::new(),
        queue: Vec::new(),
        late: VecDeque::new(),
        busy: true,
    };
    let mut trees: Vec<Believer> = [1, 2, 5]
        .into_iter()
        .map(|root| {
            let mut tree = Believer {
                root,
                dirs: BTreeMap::new(),
                told: VecDeque::new(),
                doubt: false,
            };
            tree.scan(&model, root);
            tree
        })
        .collect();
    let mut router = Router::default();
    let mut next: Vec<u8> = Vec::new();
    for step in 0..400u64 {
        model.busy = step < 300;
        if model.busy {
            for _ in 0..model.random.below(3) {
                model.act();
            }
        } else {
            let late: Vec<u8> = model.late.drain(..).flatten().collect();
            model.queue.extend(late);
        }
        if model.random.one_in(2) {
            let mut batch = std::mem::take(&mut next);
            batch.extend(std::mem::take(&mut model.queue));
            let mut plan = router.plan(&mut model, &batch);
            next = std::mem::take(&mut model.queue);
            router.ahead(&mut model, &mut plan, &next);
            let mut each = |out: Out<'_>| {
                let Out::Record { to, entered, bytes } = out else {
                    panic!("nothing is lost here");
                };
                for (n, tree) in trees.iter_mut().enumerate() {
                    let told = match to {
                        To::Every => true,
                        To::These(these) => these.contains(&(n as Tree)),
                    };
                    if told {
                        tree.told.push_back((said(bytes), entered && !defect));
                    }
                }
            };
            router.pass(&mut model, plan, &batch, step, &mut each);
        }
        for tree in &mut trees {
            for _ in 0..model.random.below(4) {
                tree.hear(&model);
            }
            if tree.told.is_empty() && model.random.one_in(8) && model.queue.is_empty() {
                tree.doubt &= !next.is_empty() || !model.late.is_empty();
            }
            while step > 380 && !tree.told.is_empty() {
                tree.hear(&model);
            }
        }
    }
    assert!(model.queue.is_empty() && next.is_empty());
    for tree in &trees {
        let there: BTreeSet<Dir> = model.parents.keys().copied().collect();
        for dir in there.into_iter().filter(|dir| tree.inside(&model, *dir)) {
            let seen = tree.dirs.get(&dir).map(|(_, version)| *version);
            if seen != Some(model.versions[&dir]) {
                return Some(format!(
                    "seed {seed}: the tree at {} has seen {seen:?} of {dir}, which is at {}",
                    tree.root, model.versions[&dir]
                ));
            }
        }
    }
    None
}

#[test]
fn nobody_who_is_concerned_is_left_out() {
    let wrong: Vec<String> = (1..=300).filter_map(|seed| run(seed, false)).collect();
    assert!(wrong.is_empty(), "{} of them, as {}", wrong.len(), wrong[0]);
    // The model can tell.
    assert!((1..=1500).any(|seed| run(seed, true).is_some()));
}
