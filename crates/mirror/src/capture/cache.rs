//! A few open directories, so that a busy one is not opened for every name in it.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mirror_core::Handle;

/// Least recently used goes first. Small on purpose: an open directory pins its inode.
pub struct Dirs {
    max: usize,
    clock: u64,
    open: HashMap<Handle, (u64, Arc<OwnedFd>)>,
    used: BTreeMap<u64, Handle>,
}

impl Dirs {
    pub fn new(max: usize) -> Dirs {
        Dirs {
            max,
            clock: 0,
            open: HashMap::new(),
            used: BTreeMap::new(),
        }
    }

    pub fn get(&mut self, handle: &Handle) -> Option<Arc<OwnedFd>> {
        let (used, fd) = self.open.get_mut(handle)?;
        let fd = fd.clone();
        self.clock += 1;
        if let Some(key) = self.used.remove(used) {
            self.used.insert(self.clock, key);
        }
        *used = self.clock;
        Some(fd)
    }

    pub fn put(&mut self, handle: &Handle, fd: Arc<OwnedFd>) {
        self.remove(handle);
        self.clock += 1;
        self.open.insert(handle.clone(), (self.clock, fd));
        self.used.insert(self.clock, handle.clone());
        while self.open.len() > self.max
            && let Some((_, oldest)) = self.used.pop_first()
        {
            self.open.remove(&oldest);
        }
    }

    pub fn remove(&mut self, handle: &Handle) {
        if let Some((used, _)) = self.open.remove(handle) {
            self.used.remove(&used);
        }
    }

    pub fn clear(&mut self) {
        self.open.clear();
        self.used.clear();
    }
}
