//! A scan worker as `mirror::capture::scan` has them: it reads new directories ahead of the capture loop, in its own
//! time, and the loop takes what it read later, through the real [`Prepared`].

use std::collections::{HashMap, VecDeque};

use mirror::capture::prepared::{PreparedDir, PreparedOwn};
use mirror_core::reconcile::{Look, ReadEnd, Seen};
use mirror_core::{Handle, MemRows, Name, ObjectId, Rows, Time};

use crate::world::World;

/// A directory that no row knows: found in this one, under this name.
struct Item {
    handle: Handle,
    parent: Handle,
    name: Name,
}

#[derive(Default)]
pub struct Ahead {
    items: VecDeque<Item>,
    pub read: VecDeque<PreparedDir>,
}

impl Ahead {
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.read.is_empty()
    }

    pub fn clear(&mut self) {
        self.items.clear();
        self.read.clear();
    }

    /// A name that the rows do not have, met in a known directory. False: leave it to the loop.
    pub fn new_name(
        &mut self,
        world: &World,
        rows: &MemRows,
        dir: &Handle,
        name: &Name,
        unread: &mut Vec<(Name, Seen)>,
    ) -> bool {
        let Look::Seen(seen) = world.tree.look(dir, None, name) else {
            return true;
        };
        if rows.by_handle(&seen.handle) != Ok(None) {
            return false;
        }
        if seen.is_dir() {
            self.items.push_back(Item {
                handle: seen.handle,
                parent: dir.clone(),
                name: name.clone(),
            });
        } else {
            unread.push((name.clone(), seen));
        }
        true
    }

    /// New names of a known directory are read.
    pub fn read_known(&mut self, world: &mut World, dir: &Handle, unread: Vec<(Name, Seen)>) {
        if !unread.is_empty() {
            let prepared = read_some(world, dir, unread, None);
            self.read.push_back(prepared);
        }
    }

    /// The worker's turn: one new directory.
    pub fn work(&mut self, world: &mut World, rows: &MemRows) {
        let Some(item) = self.items.pop_front() else {
            return;
        };
        let Some(prepared) = self.ingest(world, rows, &item) else {
            return;
        };
        self.read.push_back(prepared);
    }

    fn ingest(&mut self, world: &mut World, rows: &MemRows, item: &Item) -> Option<PreparedDir> {
        world.race();
        let Look::Seen(before) = world.tree.look_dir(&item.handle, None) else {
            return None;
        };
        world.race();
        let listed = world.tree.list(&item.handle, None)?;
        world.race();
        let ReadEnd::Done(mut reading) = world.tree.read(&item.handle, None, None, &before, false)
        else {
            return None;
        };
        if (before.ctime, before.mtime) != (reading.seen.ctime, reading.seen.mtime) {
            reading.seen.ctime = Time::default();
        }
        let own = PreparedOwn {
            parent: item.parent.clone(),
            name: item.name.clone(),
            reading,
        };
        let mut unread = Vec::new();
        let mut others = Vec::new();
        for name in listed {
            world.race();
            let Look::Seen(seen) = world.tree.look(&item.handle, None, &name) else {
                continue;
            };
            if !seen.is_dir() {
                unread.push((name, seen));
            } else if rows.by_handle(&seen.handle) == Ok(None) {
                self.items.push_back(Item {
                    handle: seen.handle,
                    parent: item.handle.clone(),
                    name,
                });
            } else {
                others.push(name);
            }
        }
        let mut prepared = read_some(world, &item.handle, unread, Some(own));
        prepared.others.extend(others);
        Some(prepared)
    }

    /// What was read and can be taken now: known directories, and new ones whose parent comes with or before them.
    /// Returns the batch, and for each part of it the object, when it is known.
    pub fn batch(&mut self, rows: &MemRows, max: usize) -> Vec<(Option<ObjectId>, PreparedDir)> {
        let mut batch: Vec<(Option<ObjectId>, PreparedDir)> = Vec::new();
        while batch.len() < max {
            let Some(dir) = self.read.pop_front() else {
                break;
            };
            if batch.iter().any(|(_, other)| other.handle == dir.handle) {
                self.read.push_front(dir);
                break;
            }
            let Ok(known) = rows.by_handle(&dir.handle);
            let placed = match (&known, &dir.own) {
                (Some(_), _) => true,
                (None, Some(own)) => {
                    rows.by_handle(&own.parent) != Ok(None)
                        || batch.iter().any(|(_, other)| other.handle == own.parent)
                }
                (None, None) => false,
            };
            if placed {
                batch.push((known, dir));
            }
        }
        batch
    }
}

fn read_some(
    world: &mut World,
    dir: &Handle,
    unread: Vec<(Name, Seen)>,
    own: Option<PreparedOwn>,
) -> PreparedDir {
    let mut entries = HashMap::new();
    let mut others = Vec::new();
    for (name, seen) in unread {
        if seen.nlink != 1 {
            others.push(name);
            continue;
        }
        world.race();
        match world.tree.read(dir, None, Some(&name), &seen, true) {
            ReadEnd::Done(reading) => {
                entries.insert(name, reading);
            }
            _ => others.push(name),
        }
    }
    PreparedDir {
        handle: dir.clone(),
        own,
        entries,
        others,
        token: None,
    }
}
