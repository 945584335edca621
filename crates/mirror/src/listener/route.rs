//! Who is told of what: decided of one batch of the kernel's records at a time, with what a [`World`] finds out.
//!
//! Law (`docs/decisions/0010-one-listener.md`): a tree is told of each record of a directory that lies below its root
//! when the record's event comes, or of a rename, as *entered*, of a directory that brings it there afterwards.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::sys::fanotify::{HandleRef, Record, Records, mask};

/// A tree's process, or a session of one.
pub type Tree = u32;
/// Sorted, each once.
pub type Trees = Arc<[Tree]>;

/// For so long a rename of a directory may have been seen before its event, and the other way round.
const RECENT_MS: u64 = 2000;
/// Renames of directories remembered for that. Where there are more, all trees look at everything.
const RECENT_MAX: usize = 4096;

/// Where a directory lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Below (or at) the roots of these.
    Below(Trees),
    Gone,
    Unknown,
}

/// Where a file's names are, beside the one that was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    Gone,
    /// It has the told one alone.
    Told,
    /// Its only name is another one, below these.
    Other(Trees),
    /// It has more, or nobody can tell.
    Any,
}

/// A file system as it is now.
pub trait World {
    /// `anew`: nothing that was found out before counts.
    fn dir(&mut self, dir: HandleRef<'_>, anew: bool) -> Place;
    fn file(&mut self, file: HandleRef<'_>, told: Option<(HandleRef<'_>, &[u8])>) -> Names;
    /// The trees with this very directory as root.
    fn root(&self, dir: HandleRef<'_>) -> Option<Trees>;
    /// Directories lie elsewhere now.
    fn forget(&mut self);
}

/// Who is told of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    These(Trees),
    Every,
}

/// What goes out.
#[derive(Debug, PartialEq, Eq)]
pub enum Out<'a> {
    Record {
        to: &'a To,
        entered: bool,
        bytes: &'a [u8],
    },
    /// All that comes after what every tree was told before may have been lost.
    Lost,
}

struct Planned {
    bytes: Range<usize>,
    to: To,
    entered: bool,
    /// Of a directory; `None`: not a rename.
    renamed: Option<bool>,
}

/// A batch of which is known who is to be told, if nothing crossed meanwhile.
pub struct Plan {
    records: Vec<Planned>,
    lost: bool,
    crossing: bool,
}

#[derive(Default)]
pub struct Router {
    /// A crossing was seen in what is the next batch.
    crossing: bool,
    recent: VecDeque<(u64, Box<[u8]>)>,
    /// When there were too many to remember.
    forgot_ms: Option<u64>,
}

/// In one or the other.
pub fn union(a: &Trees, b: &Trees) -> Trees {
    if b.is_empty() || a == b {
        return a.clone();
    }
    if a.is_empty() {
        return b.clone();
    }
    let mut all: Vec<Tree> = a.iter().chain(b.iter()).copied().collect();
    all.sort_unstable();
    all.dedup();
    all.into()
}

impl To {
    fn and(self, more: &Trees) -> To {
        match self {
            To::These(trees) => To::These(union(&trees, more)),
            To::Every => To::Every,
        }
    }
    fn and_names(self, names: Names) -> To {
        match names {
            Names::Gone | Names::Told => self,
            Names::Other(trees) => self.and(&trees),
            Names::Any => To::Every,
        }
    }
    fn of(place: Place) -> To {
        match place {
            Place::Below(trees) => To::These(trees),
            // What a directory held that is gone matters to nobody; that it went is told where it was.
            Place::Gone => To::These(Trees::default()),
            Place::Unknown => To::Every,
        }
    }
}

/// Of a directory: whether its rename may have brought it below another root, or away from one. Else the roots.
fn crosses(world: &mut impl World, record: &Record<'_>) -> Result<Trees, ()> {
    let (Some((old, _)), Some((new, _))) = (&record.old, &record.new) else {
        return Err(());
    };
    match (world.dir(*old, true), world.dir(*new, true)) {
        (Place::Below(from), Place::Below(to)) if from == to => Ok(to),
        _ => Err(()),
    }
}

fn is_rename(record: &Record<'_>) -> bool {
    record.mask & mask::RENAME != 0 || record.old.is_some() || record.new.is_some()
}

impl Router {
    /// Looks up whom the records of a batch concern now. Then read what came meanwhile, and [`Router::ahead`] of that.
    pub fn plan(&mut self, world: &mut impl World, bytes: &[u8]) -> Plan {
        let mut plan = Plan {
            records: Vec::new(),
            lost: false,
            crossing: std::mem::take(&mut self.crossing),
        };
        let mut records = Records::parse(bytes);
        let mut at = 0;
        while let Some(record) = records.next() {
            let end = bytes.len() - records.left();
            let Ok(record) = record else {
                plan.lost = true;
                break;
            };
            let range = at..end;
            at = end;
            if record.overflow {
                plan.lost = true;
                continue;
            }
            let renamed = is_rename(&record).then(|| record.is_dir());
            let (to, entered) = if renamed == Some(true) {
                match crosses(world, &record) {
                    Ok(trees) => (To::These(trees), false),
                    Err(()) => {
                        plan.crossing = true;
                        (To::Every, true)
                    }
                }
            } else {
                concerned(world, &record)
            };
            let own = record.object.filter(|_| record.is_dir());
            let to = match own.and_then(|dir| world.root(dir)) {
                Some(trees) => to.and(&trees),
                None => to,
            };
            plan.records.push(Planned {
                bytes: range,
                to,
                entered,
                renamed,
            });
        }
        plan
    }

    /// What came while the batch was looked at: a crossing in it makes what was looked up doubtful.
    pub fn ahead(&mut self, world: &mut impl World, plan: &mut Plan, bytes: &[u8]) {
        for record in Records::parse(bytes) {
            let crossing = match record {
                Ok(record) if record.overflow => true,
                Ok(record) => {
                    is_rename(&record) && record.is_dir() && crosses(world, &record).is_err()
                }
                Err(_) => true,
            };
            if crossing {
                return self.doubt(plan);
            }
        }
    }

    /// Not all that came meanwhile is known, or there is a crossing in it.
    pub fn doubt(&mut self, plan: &mut Plan) {
        plan.crossing = true;
        self.crossing = true;
    }

    /// Passes the batch on, in its order.
    pub fn pass(
        &mut self,
        world: &mut impl World,
        plan: Plan,
        bytes: &[u8],
        now_ms: u64,
        each: &mut dyn FnMut(Out<'_>),
    ) {
        while let Some((at, _)) = self.recent.front()
            && at + RECENT_MS < now_ms
        {
            self.recent.pop_front();
        }
        let crossing = plan.crossing || plan.lost;
        if crossing {
            world.forget();
            for (_, bytes) in &self.recent {
                let to = &To::Every;
                each(Out::Record {
                    to,
                    entered: true,
                    bytes,
                });
            }
            if self
                .forgot_ms
                .take()
                .is_some_and(|at| at + RECENT_MS >= now_ms)
            {
                each(Out::Lost);
            }
            self.recent.clear();
        }
        for planned in &plan.records {
            let Some(bytes) = bytes.get(planned.bytes.clone()) else {
                continue;
            };
            if planned.renamed == Some(true) {
                if self.recent.len() >= RECENT_MAX {
                    self.recent.clear();
                    self.forgot_ms = Some(now_ms);
                }
                self.recent.push_back((now_ms, bytes.into()));
            }
            let (to, entered) = match crossing {
                true => (&To::Every, planned.renamed.is_some()),
                false => (&planned.to, planned.entered),
            };
            each(Out::Record { to, entered, bytes });
        }
        if plan.lost {
            each(Out::Lost);
        }
    }
}

/// Of all but directories that are renamed.
fn concerned(world: &mut impl World, record: &Record<'_>) -> (To, bool) {
    const NAME_ONLY: u64 = mask::CREATE | mask::DELETE;
    if let (Some((old, _)), Some((new, name))) = (&record.old, &record.new) {
        let (from, to) = (world.dir(*old, false), world.dir(*new, false));
        let entered = from != to || !matches!(to, Place::Below(_));
        let all = match To::of(from) {
            To::These(trees) => To::of(to).and(&trees),
            To::Every => To::Every,
        };
        let names = match record.object {
            Some(file) => world.file(file, Some((*new, name))),
            None => Names::Any,
        };
        return (all.and_names(names), entered);
    }
    let to = match (record.dir, record.object) {
        _ if is_rename(record) => return (To::Every, true),
        (None, None) => To::Every,
        (None, Some(dir)) if record.is_dir() => To::of(world.dir(dir, false)),
        // Nobody knows by which name it was reached, or how many it had.
        (None, Some(file)) => match world.file(file, None) {
            Names::Gone => To::These(Trees::default()),
            _ => To::Every,
        },
        (Some(dir), _) if record.is_dir() => To::of(world.dir(dir, false)),
        (Some(dir), object) => {
            let to = To::of(world.dir(dir, false));
            // That it has a name more or less comes as a change of the file itself, too.
            if record.mask & !NAME_ONLY == 0 {
                to
            } else {
                match (object, record.name) {
                    (Some(file), Some(name)) => to.and_names(world.file(file, Some((dir, name)))),
                    (Some(file), None) => to.and_names(world.file(file, None)),
                    (None, _) => To::Every,
                }
            }
        }
    };
    (to, false)
}

#[cfg(test)]
mod tests;
