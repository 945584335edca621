//! Scripts: what two processes do, and when the engine looks. Made from a seed, kept as data.

use testkit::rng::Rng;

use crate::tree::{ACTORS, Base, NAMES, Op, Path, SLOTS, SimTree, name};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Do {
        actor: usize,
        op: Op,
        /// The event stays on its way until the actor's next operation.
        late: bool,
    },
    /// The engine reads up to `events` hints and looks at up to `names` names, while before every single look the
    /// script goes on with this chance (in percent).
    Pump {
        events: usize,
        names: usize,
        race: u8,
    },
    /// Time passes.
    Wait(u64),
    /// The log is made durable, and perhaps the index.
    Flush { index: bool },
    /// Up to so many durable groups go to the copy, which is killed after so many things done to it.
    Apply { groups: usize, kill: Option<u32> },
    /// The copy's rows are made durable.
    Checkpoint,
    /// Everything is killed, by a loss of power when `power` seeds it, and comes back after `down` operations.
    Crash { power: Option<u64>, down: usize },
    /// From the so-manieth next write on the log's disk fails, until the worker starts over.
    Fault { after: u64, full: bool },
}

/// Puts what the whole engine does between the steps of a script.
pub fn with_engine(rng: &mut Rng, script: Vec<Step>) -> Vec<Step> {
    let flush = rng.unit() * 0.3;
    let apply = rng.unit() * 0.3;
    let crash = rng.unit() * rng.unit() * 0.05;
    let fault = if rng.chance(0.3) { 0.01 } else { 0.0 };
    let mut steps = Vec::with_capacity(script.len() * 2);
    for step in script {
        steps.push(step);
        if rng.chance(flush) {
            steps.push(Step::Flush {
                index: rng.chance(0.3),
            });
        }
        if rng.chance(apply) {
            steps.push(Step::Apply {
                groups: rng.range(1, 5) as usize,
                kill: rng.chance(crash * 4.0).then(|| rng.below(40) as u32),
            });
        }
        if rng.chance(apply * 0.3) {
            steps.push(Step::Checkpoint);
        }
        if rng.chance(crash) {
            steps.push(Step::Crash {
                power: rng.chance(0.5).then(|| rng.below(1 << 32)),
                down: if rng.chance(0.5) {
                    0
                } else {
                    rng.below(20) as usize
                },
            });
        }
        if rng.chance(fault) {
            steps.push(Step::Fault {
                after: rng.below(10),
                full: rng.chance(0.5),
            });
        }
    }
    steps
}

/// How a run is set up, beside its script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    pub queue_limit: usize,
    /// Grain of file times; 0: every stamp is new.
    pub grain_ns: u64,
    /// The source opens directories by their path, as where handles can't be opened.
    pub by_trail: bool,
    /// A group grows no further than this by listing.
    pub group_records_max: usize,
    /// Scans read new directories ahead.
    pub ahead: bool,
    /// From here on an object has so many names that hints lead to one of them only.
    pub names_max: usize,
}

impl Setup {
    pub fn random(rng: &mut Rng) -> Setup {
        let mut setup = Setup {
            queue_limit: *rng.pick(&[12, 40, 40, 16_384]),
            grain_ns: if rng.chance(0.25) { 4_000_000 } else { 0 },
            by_trail: rng.chance(0.2),
            group_records_max: if rng.chance(0.2) { 3 } else { 10_000 },
            ahead: false,
            names_max: 16,
        };
        let mut more = rng.clone();
        setup.ahead = more.chance(0.5) && !setup.by_trail;
        if more.chance(0.3) {
            setup.names_max = 1;
        }
        setup
    }
}

/// A script of about `ops` operations.
pub fn random(rng: &mut Rng, ops: usize) -> Vec<Step> {
    let mut steps = Vec::with_capacity(ops + ops / 4);
    // Some runs look often, some seldom; some scripts use few names.
    let pump = rng.unit() * rng.unit() * 0.5 + 0.005;
    let race = rng.below(60) as u8;
    let wide = Wide {
        names: rng.range(2, NAMES.len() as u64) as u8,
        depth: rng.range(2, 5) as usize,
    };
    // Where the script has come, so that most of it can be done.
    let mut tree = SimTree::new(0);
    let late = rng.unit() * 0.5;
    let slow = *rng.pick(&[0.0, 0.2, 0.9]);
    while steps.len() < ops {
        let actor = rng.below(ACTORS as u64) as usize;
        for op in ops_random(rng, &tree, &wide) {
            tree.act(actor, &op);
            steps.push(Step::Do {
                actor,
                op,
                late: rng.chance(late),
            });
            if rng.chance(pump) {
                steps.push(Step::Pump {
                    events: if rng.chance(slow) { 3 } else { 10_000 },
                    names: if rng.chance(0.2) { 2 } else { 10_000 },
                    race,
                });
            }
            if rng.chance(0.1) {
                let long = if rng.chance(0.1) { 3000 } else { 40 };
                steps.push(Step::Wait(rng.below(long)));
            }
        }
    }
    steps
}

/// A path that leads somewhere: along names that exist, ending in one (`there`) or in any.
fn path(rng: &mut Rng, tree: &SimTree, wide: &Wide, there: bool) -> Path {
    let base = if rng.chance(0.2) {
        Base::Out
    } else {
        Base::Root
    };
    let mut at = match base {
        Base::Root => tree.root,
        Base::Out => tree.out,
    };
    let mut names = Vec::new();
    loop {
        let entries = tree.entries(at);
        let known: Vec<(u8, bool)> = (0..wide.names)
            .filter_map(|n| {
                let ino = *entries?.get(&name(n))?;
                Some((n, tree.entries(ino).is_some()))
            })
            .collect();
        let down: Vec<u8> = known
            .iter()
            .filter(|(_, dir)| *dir)
            .map(|(n, _)| *n)
            .collect();
        if !down.is_empty() && names.len() + 1 < wide.depth && rng.chance(0.6) {
            let n = *rng.pick(&down);
            names.push(n);
            let Some(below) = entries.and_then(|entries| entries.get(&name(n))) else {
                break;
            };
            at = *below;
            continue;
        }
        if there && !known.is_empty() && rng.chance(0.95) {
            names.push(rng.pick(&known).0);
        } else {
            names.push(rng.below(u64::from(wide.names)) as u8);
        }
        break;
    }
    Path { base, names }
}

/// How many names, and how deep.
struct Wide {
    names: u8,
    depth: usize,
}

/// One operation, or a few that belong together.
fn ops_random(rng: &mut Rng, tree: &SimTree, wide: &Wide) -> Vec<Op> {
    // A name that is there, one that may be, and one that perhaps is not.
    let mut a = path(rng, tree, wide, true);
    let b = path(rng, tree, wide, true);
    let new = path(rng, tree, wide, false);
    let to = if rng.chance(0.5) {
        new.clone()
    } else {
        b.clone()
    };
    let byte = rng.below(256) as u8;
    let slot = rng.below(SLOTS as u64) as usize;
    let one = match rng.below(100) {
        0..10 => Op::Write(if rng.chance(0.5) { a } else { new }, byte),
        10..13 => Op::Forge(a, byte),
        13..14 => Op::Truncate(a),
        14..27 => Op::Mkdir(new),
        27..30 => Op::Symlink(new, byte),
        30..32 => Op::Special(new, byte),
        32..38 => Op::Link(a, new),
        38..44 => Op::Unlink(a),
        44..47 => Op::Rmdir(a),
        47..48 => Op::Remove(a),
        48..63 => Op::Rename(a, to),
        63..66 => Op::Exchange(a, b),
        66..67 => Op::Whiteout(a, to),
        67..69 => Op::Invert(a),
        69..72 => {
            if rng.chance(0.1) {
                a.names.clear();
            }
            Op::Chmod(a, 0o600 | (byte & 0o77) as u16)
        }
        72..73 => Op::Chown(a, u32::from(byte)),
        73..75 => Op::Utimes(a, u64::from(byte) * 1_000_000_007),
        75..76 => Op::Xattr(a, byte % 3, byte / 64),
        76..80 => Op::Open(a, slot),
        80..81 => Op::OpenUnnamed(a, slot),
        81..82 => Op::LinkOpen(slot, new),
        82..86 => Op::WriteOpen(slot, byte),
        86..88 => Op::Store(slot, byte),
        88..89 => Op::FlyBegin(slot, byte),
        89..90 => Op::FlyEnd(slot),
        90..91 => Op::ChmodOpen(slot, 0o600 | (byte & 0o77) as u16),
        92..94 => Op::Close(slot),
        94..95 => Op::WriteNameless(a, byte),
        95..96 if rng.chance(0.1) => Op::MoveRoot(Path {
            base: Base::Out,
            names: vec![0],
        }),
        // mkdir -p, write, rename the parent.
        96..97 => {
            let mut inner = new.clone();
            inner.names.push(0);
            return vec![
                Op::Mkdir(new.clone()),
                Op::Write(inner, byte),
                Op::Rename(new, b),
            ];
        }
        // Given another mode and name, and written with its times put back.
        91..92 => {
            return vec![
                Op::Chmod(a.clone(), 0o600 | (byte & 0o77) as u16),
                Op::Rename(a, to.clone()),
                Op::Forge(to, byte),
            ];
        }
        // A file saved beside and renamed over.
        97..98 => {
            let mut beside = a.clone();
            if let Some(last) = beside.names.last_mut() {
                *last = (*last + 1) % wide.names;
            }
            return vec![Op::Write(beside.clone(), byte), Op::Rename(beside, a)];
        }
        // link x, rename x to y, link x.
        98..99 => {
            let other = path(rng, tree, wide, false);
            return vec![
                Op::Link(a.clone(), new.clone()),
                Op::Rename(new.clone(), other),
                Op::Link(a, new),
            ];
        }
        // Gone and made again under one name.
        _ => return vec![Op::Unlink(a.clone()), Op::Write(a, byte)],
    };
    vec![one]
}
