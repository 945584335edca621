//! What an observer sees of the tree, one look at a time. Every answer is true at one moment, and only then.

use mirror_core::reconcile::{Look, ReadEnd, Reading, Seen, Whereabouts};
use mirror_core::{Content, Digest, Handle, Kind, Meta, Name, State, Time, Xattr};

use super::*;

impl SimTree {
    /// The directory a handle or a trail of names leads to.
    fn live_dir(&self, handle: &Handle, trail: Option<&[Name]>) -> Option<Ino> {
        let ino = match trail {
            None => self.by_handle(handle)?.ino,
            Some(trail) => {
                let mut at = self.root;
                for name in trail {
                    at = *self.entries(at)?.get(name)?;
                }
                (self.inodes.get(&at)?.handle() == *handle).then_some(at)?
            }
        };
        self.entries(ino)?;
        (self.inodes[&ino].nlink > 0 || ino == self.root).then_some(ino)
    }

    pub fn seen(&self, ino: Ino) -> Option<Seen> {
        let inode = self.inodes.get(&ino)?;
        let bytes = match &inode.node {
            Node::File(bytes) => bytes.len() as u64,
            Node::Symlink(target) => target.len() as u64,
            _ => 0,
        };
        let rdev = match inode.node {
            Node::Device { major, minor, .. } => (major, minor),
            _ => (0, 0),
        };
        Some(Seen {
            handle: inode.handle(),
            ino,
            mode: inode.type_bits() | u32::from(inode.mode),
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            bytes,
            blocks: bytes.div_ceil(512),
            rdev,
            mtime: inode.mtime,
            ctime: inode.ctime,
            btime: inode.btime,
        })
    }

    pub fn look(&self, dir: &Handle, trail: Option<&[Name]>, name: &Name) -> Look {
        let Some(dir) = self.live_dir(dir, trail) else {
            return Look::Stale;
        };
        let found = self.entries(dir).and_then(|entries| entries.get(name));
        match found.and_then(|ino| self.seen(*ino)) {
            Some(seen) => Look::Seen(seen),
            None => Look::Absent,
        }
    }

    pub fn look_dir(&self, dir: &Handle, trail: Option<&[Name]>) -> Look {
        match self.live_dir(dir, trail).and_then(|ino| self.seen(ino)) {
            Some(seen) => Look::Seen(seen),
            None => Look::Stale,
        }
    }

    /// `None`: the directory is gone.
    pub fn list(&self, dir: &Handle, trail: Option<&[Name]>) -> Option<Vec<Name>> {
        let dir = self.live_dir(dir, trail)?;
        Some(self.entries(dir)?.keys().cloned().collect())
    }

    pub fn meta(&self, ino: Ino) -> Option<Meta> {
        let inode = self.inodes.get(&ino)?;
        Some(Meta {
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            xattrs: inode
                .xattrs
                .iter()
                .map(|(name, value)| Xattr {
                    name: name.clone(),
                    value: value.clone(),
                })
                .collect(),
            flags: 0,
            project: 0,
        })
    }

    pub fn kind(&self, ino: Ino) -> Option<Kind> {
        let inode = self.inodes.get(&ino)?;
        Some(match &inode.node {
            Node::Dir { .. } => Kind::Dir,
            Node::File(bytes) => Kind::File(Content {
                bytes: bytes.len() as u64,
                digest: digest(bytes),
                data: Vec::new(),
                proven: inode.writers == 0 && !self.is_racy(inode.ctime),
                fuzzy: false,
            }),
            Node::Symlink(target) => Kind::Symlink(target.clone()),
            Node::Device {
                block,
                major,
                minor,
            } => Kind::Device {
                block: *block,
                major: *major,
                minor: *minor,
            },
            Node::Fifo => Kind::Fifo,
            Node::Socket => Kind::Socket,
        })
    }

    pub fn state(&self, ino: Ino) -> Option<State> {
        Some(State {
            kind: self.kind(ino)?,
            meta: self.meta(ino)?,
        })
    }

    /// The bytes of a regular file.
    pub fn bytes(&self, ino: Ino) -> Option<&[u8]> {
        match &self.inodes.get(&ino)?.node {
            Node::File(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The inode that a read of this name reaches, if it is still the one that was seen.
    pub fn reach(
        &self,
        dir: &Handle,
        trail: Option<&[Name]>,
        name: Option<&Name>,
        seen: &Seen,
    ) -> Option<Ino> {
        let dir = self.live_dir(dir, trail)?;
        let ino = match name {
            Some(name) => *self.entries(dir)?.get(name)?,
            None => dir,
        };
        (self.inodes.get(&ino)?.handle() == seen.handle).then_some(ino)
    }

    /// Reads an inode as one.
    pub fn read(
        &self,
        dir: &Handle,
        trail: Option<&[Name]>,
        name: Option<&Name>,
        seen: &Seen,
        content: bool,
    ) -> ReadEnd {
        let reading = self.reach(dir, trail, name, seen).and_then(|ino| {
            let state = self.state(ino)?;
            let asked = content || !matches!(state.kind, Kind::File(_));
            let mut seen = self.seen(ino)?;
            if self.is_racy(seen.ctime) {
                // A later change may get the same stamp: it proves nothing.
                seen.ctime = Time::default();
            }
            Some(Reading {
                seen,
                meta: state.meta,
                kind: asked.then_some(state.kind),
                body: match self.bytes(ino) {
                    Some(bytes) if content => mirror_core::reconcile::Body::Bytes(bytes.to_vec()),
                    _ => mirror_core::reconcile::Body::None,
                },
                busy: self.inodes[&ino].writers > 0,
            })
        });
        reading.map_or(ReadEnd::Moved, ReadEnd::Done)
    }

    pub fn locate(&self, dir: &Handle) -> Whereabouts {
        let Some(ino) = self.live_dir(dir, None) else {
            return Whereabouts::Gone;
        };
        if ino == self.root {
            return Whereabouts::Root;
        }
        if !self.is_below(ino, self.root) {
            return Whereabouts::Outside;
        }
        match (self.up(ino), self.name_of(ino)) {
            (Some(up), Some(name)) => Whereabouts::Inside {
                parent: self.inodes[&up].handle(),
                name,
            },
            _ => Whereabouts::Gone,
        }
    }
}

pub fn digest(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}
