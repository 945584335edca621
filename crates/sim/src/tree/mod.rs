//! A file system in memory that behaves like a Unix one: a mirrored directory, an area outside of it, and an event
//! queue as fanotify's file-system mark gives it. No threads, no wall clock: the same calls give the same tree.

mod act;
mod node;
mod op;
mod queue;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use mirror_core::hints::{Hint, HintName};
use mirror_core::{Handle, Name, Time};

pub use node::{Ino, Inode, Node, parts};
pub use op::{Base, NAMES, Op, Path, SLOTS, name};
pub use queue::{Event, Queue};
pub use view::digest;

/// Processes that change the tree.
pub const ACTORS: usize = 2;

/// A descriptor open for writing.
#[derive(Debug, Clone)]
struct Open {
    ino: Ino,
    /// The name it was opened by, which follows renames and stays when it is dead.
    alias: (Ino, Name),
    /// Of the alias's directory, which may be gone.
    alias_dir: Handle,
    /// A write that has stamped its time and not yet stored its bytes.
    flying: Option<Vec<u8>>,
    /// Something was stored through a mapping of it: its page is dirty.
    mapped: bool,
}

#[derive(Debug, Clone)]
pub struct SimTree {
    inodes: BTreeMap<Ino, Inode>,
    free: BTreeSet<Ino>,
    next_ino: Ino,
    next_generation: u64,
    /// The simulated clock.
    pub now_ns: u64,
    /// Grain of the times the file system keeps; 0: every stamp is new (multigrain).
    pub grain_ns: u64,
    last_stamp_ns: u64,
    top: Ino,
    pub root: Ino,
    pub out: Ino,
    open: Vec<Option<Open>>,
    pub queue: Queue,
}

impl SimTree {
    pub fn new(queue_limit: usize) -> SimTree {
        let mut tree = SimTree {
            inodes: BTreeMap::new(),
            free: BTreeSet::new(),
            next_ino: 2,
            next_generation: 1,
            now_ns: 1_700_000_000_000_000_000,
            grain_ns: 0,
            last_stamp_ns: 0,
            top: 0,
            root: 0,
            out: 0,
            open: vec![None; ACTORS * SLOTS],
            queue: Queue::new(queue_limit, ACTORS),
        };
        tree.top = tree.make(dir_node(None), 0o755);
        tree.root = tree.make(dir_node(Some(tree.top)), 0o755);
        tree.out = tree.make(dir_node(Some(tree.top)), 0o755);
        let (top, root, out) = (tree.top, tree.root, tree.out);
        tree.enter(top, name(250), root);
        tree.enter(top, name(251), out);
        tree
    }

    pub fn inode(&self, ino: Ino) -> Option<&Inode> {
        self.inodes.get(&ino)
    }

    /// The inode a handle stands for, if it still exists under a name or open.
    pub fn by_handle(&self, handle: &Handle) -> Option<&Inode> {
        let (ino, generation) = parts(handle)?;
        self.inodes
            .get(&ino)
            .filter(|inode| inode.generation == generation)
    }

    pub fn root_handle(&self) -> Handle {
        self.inodes[&self.root].handle()
    }

    pub fn entries(&self, dir: Ino) -> Option<&BTreeMap<Name, Ino>> {
        match &self.inodes.get(&dir)?.node {
            Node::Dir { entries, .. } => Some(entries),
            _ => None,
        }
    }

    pub fn up(&self, dir: Ino) -> Option<Ino> {
        match &self.inodes.get(&dir)?.node {
            Node::Dir { up, .. } => *up,
            _ => None,
        }
    }

    /// Whether `dir` is `above` or lies below it.
    pub fn is_below(&self, dir: Ino, above: Ino) -> bool {
        let mut at = Some(dir);
        while let Some(ino) = at {
            if ino == above {
                return true;
            }
            at = self.up(ino);
        }
        false
    }

    /// The name of a directory in the one above it.
    pub fn name_of(&self, dir: Ino) -> Option<Name> {
        self.entries(self.up(dir)?)?
            .iter()
            .find(|(_, ino)| **ino == dir)
            .map(|(name, _)| name.clone())
    }

    fn stamp(&mut self) -> Time {
        let ns = if self.grain_ns > 0 {
            self.now_ns - self.now_ns % self.grain_ns
        } else {
            self.last_stamp_ns = self.now_ns.max(self.last_stamp_ns + 1);
            self.last_stamp_ns
        };
        time(ns)
    }

    /// Whether a stamp may be given again to a change that comes after this moment.
    pub fn is_racy(&self, stamp: Time) -> bool {
        self.grain_ns > 0 && {
            let tick = self.now_ns - self.now_ns % self.grain_ns;
            stamp >= time(tick)
        }
    }

    fn make(&mut self, node: Node, mode: u16) -> Ino {
        let ino = match self.free.pop_first() {
            Some(ino) => ino,
            None => {
                self.next_ino += 1;
                self.next_ino
            }
        };
        let stamp = self.stamp();
        self.next_generation += 1;
        let inode = Inode {
            ino,
            generation: self.next_generation,
            nlink: 0,
            mode,
            uid: 0,
            gid: 0,
            mtime: stamp,
            ctime: stamp,
            btime: stamp,
            xattrs: BTreeMap::new(),
            writers: 0,
            node,
        };
        self.inodes.insert(ino, inode);
        ino
    }

    /// Puts a name into a directory. The caller has made room.
    fn enter(&mut self, dir: Ino, name: Name, ino: Ino) {
        let stamp = self.stamp();
        let inode = self.inodes.get_mut(&ino).expect("a live inode");
        inode.nlink += 1;
        inode.ctime = stamp;
        if let Node::Dir { up, .. } = &mut inode.node {
            *up = Some(dir);
        }
        let parent = self.inodes.get_mut(&dir).expect("a live directory");
        parent.mtime = stamp;
        parent.ctime = stamp;
        if let Node::Dir { entries, .. } = &mut parent.node {
            let before = entries.insert(name, ino);
            assert_eq!(before, None, "the name was free");
        }
    }

    /// Takes a name out of a directory.
    fn leave(&mut self, dir: Ino, name: &Name) -> Ino {
        let stamp = self.stamp();
        let parent = self.inodes.get_mut(&dir).expect("a live directory");
        parent.mtime = stamp;
        parent.ctime = stamp;
        let Node::Dir { entries, .. } = &mut parent.node else {
            unreachable!("names are in directories")
        };
        let ino = entries.remove(name).expect("a name that exists");
        let inode = self.inodes.get_mut(&ino).expect("a live inode");
        inode.nlink -= 1;
        inode.ctime = stamp;
        ino
    }

    /// Frees an inode that nothing refers to any more.
    fn release(&mut self, ino: Ino) {
        if self
            .inodes
            .get(&ino)
            .is_some_and(|inode| inode.nlink == 0 && inode.writers == 0)
        {
            self.inodes.remove(&ino);
            self.free.insert(ino);
        }
    }

    fn told(&self, dir: Ino, name: &Name) -> Option<HintName> {
        Some(HintName {
            dir: self.inodes.get(&dir)?.handle(),
            name: Some(name.clone()),
        })
    }

    /// An event at a name, about the object there.
    fn hint(&self, dir: Ino, name: &Name, ino: Ino) -> Hint {
        Hint {
            at: self.told(dir, name),
            object: self.inodes.get(&ino).map(Inode::handle),
            on_dir: self.inodes.get(&ino).is_some_and(Inode::is_dir),
            ..Hint::default()
        }
    }

    /// An event about an object without a name: a link count that moved.
    fn hint_object(&self, ino: Ino) -> Hint {
        Hint {
            object: self.inodes.get(&ino).map(Inode::handle),
            ..Hint::default()
        }
    }
}

fn dir_node(up: Option<Ino>) -> Node {
    Node::Dir {
        entries: BTreeMap::new(),
        up,
    }
}

pub fn time(ns: u64) -> Time {
    Time {
        seconds: (ns / 1_000_000_000) as i64,
        nanos: (ns % 1_000_000_000) as u32,
    }
}
