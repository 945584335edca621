//! Directories that a scan still has to visit: last in, first out, so that the walk stays in one place. Packed, and
//! beyond some megabytes in a file without a name, so that a directory of a million directories costs no memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mirror_core::{Handle, Name, ObjectId};
use rustix::fs::{CWD, Mode, OFlags, openat};

/// Packed bytes held in memory; when there are more, the oldest half goes to the file.
const HELD_BYTES_MAX: usize = 8 << 20;

/// Names from the root down, shared by all below.
pub struct Trail {
    pub name: Name,
    above: Option<Arc<Trail>>,
}

impl Trail {
    pub fn below(above: &Option<Arc<Trail>>, name: Name) -> Option<Arc<Trail>> {
        Some(Arc::new(Trail {
            name,
            above: above.clone(),
        }))
    }
}

pub fn names(trail: &Option<Arc<Trail>>) -> Vec<Name> {
    let mut names = Vec::new();
    let mut at = trail;
    while let Some(step) = at {
        names.push(step.name.clone());
        at = &step.above;
    }
    names.reverse();
    names
}

/// A directory to visit.
pub struct Item {
    pub handle: Handle,
    pub trail: Option<Arc<Trail>>,
    /// The object, if the index knows it; else it is new: the parent's handle, and seen there under this name.
    pub known: Result<ObjectId, Handle>,
}

/// Directories found in one directory, in the order in which they are to be visited.
#[derive(Default)]
pub struct Brood {
    bytes: Vec<u8>,
    /// Bytes taken already.
    taken: usize,
    count: usize,
}

/// No object has this number.
const UNKNOWN: u64 = 0;

impl Brood {
    pub fn push(&mut self, name: &Name, handle: &Handle, known: Option<ObjectId>) {
        let (name, bytes) = (name.as_bytes(), &*handle.bytes);
        let (Ok(name_length), Ok(length)) = (u8::try_from(name.len()), u8::try_from(bytes.len()))
        else {
            return;
        };
        self.bytes.push(name_length);
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(&handle.kind.to_le_bytes());
        self.bytes.push(length);
        self.bytes.extend_from_slice(bytes);
        let known = known.map_or(UNKNOWN, |id| id.0);
        self.bytes.extend_from_slice(&known.to_le_bytes());
        self.count += 1;
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.taken >= self.bytes.len()
    }

    /// `None`: there is nothing, or nothing sound.
    fn take(&mut self) -> Option<(Name, Handle, Option<ObjectId>)> {
        let rest = self.bytes.get(self.taken..)?;
        let (&length, rest) = rest.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(length))?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let (&length, rest) = rest.split_first()?;
        let (bytes, rest) = rest.split_at_checked(usize::from(length))?;
        let (known, rest) = rest.split_first_chunk::<8>()?;
        let found = (
            Name::new(name).ok()?,
            Handle {
                kind: i32::from_le_bytes(*kind),
                bytes: bytes.into(),
            },
            Some(u64::from_le_bytes(*known))
                .filter(|id| *id != UNKNOWN)
                .map(ObjectId),
        );
        self.taken = self.bytes.len() - rest.len();
        Some(found)
    }
}

struct Children {
    /// Of the directory they were found in.
    trail: Option<Arc<Trail>>,
    parent: Handle,
    brood: Brood,
}

/// Children whose bytes are in the file.
struct Spilled {
    trail: Option<Arc<Trail>>,
    parent: Handle,
    start: u64,
    length: usize,
}

pub struct Queue {
    first: Vec<Item>,
    spilled: Vec<Spilled>,
    held: VecDeque<Children>,
    held_bytes: usize,
    held_bytes_max: usize,
    place: Option<PathBuf>,
    file: Option<File>,
}

impl Queue {
    /// `place`: a directory on a disk, for the file. Without it all is held in memory.
    pub fn new(first: Vec<Item>, place: Option<PathBuf>) -> Queue {
        Queue {
            first,
            spilled: Vec::new(),
            held: VecDeque::new(),
            held_bytes: 0,
            held_bytes_max: HELD_BYTES_MAX,
            place,
            file: None,
        }
    }

    /// What was found in the directory `of`.
    pub fn push(&mut self, of: &Item, brood: Brood) {
        if brood.is_empty() {
            return;
        }
        self.held_bytes += brood.bytes.len();
        self.held.push_back(Children {
            trail: of.trail.clone(),
            parent: of.handle.clone(),
            brood,
        });
        if self.held_bytes > self.held_bytes_max {
            self.spill();
        }
    }

    /// The oldest go to the file. What can't be written stays.
    fn spill(&mut self) {
        if self.file.is_none()
            && let Some(place) = self.place.take()
        {
            self.file = unnamed(&place).ok();
        }
        let Some(file) = &self.file else { return };
        while self.held_bytes > self.held_bytes_max / 2
            && self.held.len() > 1
            && let Some(oldest) = self.held.front()
        {
            let start = self
                .spilled
                .last()
                .map_or(0, |last| last.start + last.length as u64);
            let bytes = oldest.brood.bytes.get(oldest.brood.taken..);
            let bytes = bytes.unwrap_or_default();
            if file.write_all_at(bytes, start).is_err() {
                // A full disk: from here on memory has to do.
                if self.spilled.is_empty() {
                    self.file = None;
                }
                return;
            }
            self.held_bytes = self.held_bytes.saturating_sub(oldest.brood.bytes.len());
            let length = bytes.len();
            let Some(oldest) = self.held.pop_front() else {
                return;
            };
            self.spilled.push(Spilled {
                trail: oldest.trail,
                parent: oldest.parent,
                start,
                length,
            });
        }
    }

    /// The next directory, if there is one now.
    pub fn pop(&mut self) -> io::Result<Option<Item>> {
        loop {
            if let Some(children) = self.held.back_mut() {
                if let Some((name, handle, known)) = children.brood.take() {
                    let known = known.ok_or_else(|| children.parent.clone());
                    return Ok(Some(Item {
                        handle,
                        trail: Trail::below(&children.trail, name),
                        known,
                    }));
                }
                let damaged = !children.brood.is_empty();
                self.held_bytes = self.held_bytes.saturating_sub(children.brood.bytes.len());
                self.held.pop_back();
                if damaged {
                    return Err(io::Error::other("the scan's queue can't be read back"));
                }
                continue;
            }
            let Some(newest) = self.spilled.pop() else {
                return Ok(self.first.pop());
            };
            let mut bytes = vec![0; newest.length];
            match &self.file {
                Some(file) => file.read_exact_at(&mut bytes, newest.start)?,
                None => return Err(io::Error::other("the scan's queue is gone")),
            }
            self.held_bytes += bytes.len();
            self.held.push_back(Children {
                trail: newest.trail,
                parent: newest.parent,
                brood: Brood {
                    bytes,
                    taken: 0,
                    count: 0,
                },
            });
        }
    }
}

fn unnamed(place: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    Ok(openat(CWD, place, flags, Mode::RUSR | Mode::WUSR)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(n: u32) -> Handle {
        Handle {
            kind: 1,
            bytes: n.to_le_bytes().into(),
        }
    }
    fn name(n: u32) -> Name {
        Name::new(format!("{n}").as_bytes()).unwrap()
    }
    fn top() -> Item {
        Item {
            handle: handle(0),
            trail: None,
            known: Ok(ObjectId::ROOT),
        }
    }

    fn walk(held_bytes_max: usize, place: Option<PathBuf>) -> Vec<Vec<Name>> {
        let mut queue = Queue {
            held_bytes_max,
            ..Queue::new(vec![top()], place)
        };
        let mut seen = Vec::new();
        while let Some(item) = queue.pop().unwrap() {
            let trail = names(&item.trail);
            if trail.len() < 3 {
                for part in 0..3 {
                    let mut brood = Brood::default();
                    for n in 0..4 {
                        let n: u32 = part * 4 + n;
                        let known = (n.is_multiple_of(2)).then_some(ObjectId(7 + u64::from(n)));
                        brood.push(&name(n), &handle(n), known);
                    }
                    queue.push(&item, brood);
                }
            }
            if let Some(last) = trail.last() {
                let n: u32 = last.to_string().parse().unwrap();
                assert_eq!(item.handle, handle(n));
                assert_eq!(item.known.is_ok(), n.is_multiple_of(2));
            }
            seen.push(trail);
        }
        seen
    }

    #[test]
    fn the_file_makes_no_difference() {
        let t = tempfile::tempdir().unwrap();
        let want = walk(usize::MAX, None);
        assert_eq!(want.len(), 1 + 12 + 144 + 1728);
        for bytes in [1, 100, 1000] {
            assert_eq!(walk(bytes, Some(t.path().into())), want);
        }
        // No place for a file: memory has to do.
        assert_eq!(walk(1, Some(t.path().join("none"))), want);
        assert_eq!(std::fs::read_dir(t.path()).unwrap().count(), 0);
    }
}
