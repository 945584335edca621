//! Inodes of the simulated file system.

use std::collections::BTreeMap;

use mirror_core::{Handle, Name, Time};

/// Number of an inode. Used again at once, as ext4 does; a handle carries a generation as well.
pub type Ino = u64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Dir {
        entries: BTreeMap<Name, Ino>,
        /// The directory this one lies in; `None` for the top of the file system.
        up: Option<Ino>,
    },
    File(Vec<u8>),
    Symlink(Box<[u8]>),
    Device {
        block: bool,
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    pub ino: Ino,
    pub generation: u64,
    pub node: Node,
    pub nlink: u32,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    pub ctime: Time,
    pub btime: Time,
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
    /// Descriptors open for writing.
    pub writers: u32,
}

impl Inode {
    pub fn handle(&self) -> Handle {
        let mut bytes = Vec::with_capacity(16);
        bytes.extend(self.ino.to_le_bytes());
        bytes.extend(self.generation.to_le_bytes());
        Handle {
            kind: 1,
            bytes: bytes.into(),
        }
    }
    pub fn is_dir(&self) -> bool {
        matches!(self.node, Node::Dir { .. })
    }
    pub fn type_bits(&self) -> u32 {
        match self.node {
            Node::Dir { .. } => 0o040000,
            Node::File(_) => 0o100000,
            Node::Symlink(_) => 0o120000,
            Node::Device { block: true, .. } => 0o060000,
            Node::Device { block: false, .. } => 0o020000,
            Node::Fifo => 0o010000,
            Node::Socket => 0o140000,
        }
    }
}

/// The inode number and generation inside a handle of ours.
pub fn parts(handle: &Handle) -> Option<(Ino, u64)> {
    let ino = handle.bytes.get(..8)?.try_into().ok()?;
    let generation = handle.bytes.get(8..16)?.try_into().ok()?;
    Some((u64::from_le_bytes(ino), u64::from_le_bytes(generation)))
}
