//! What a process does to the tree, as data: it can be printed, dropped from a script and run again.

use mirror_core::Name;

/// Descriptors an actor can hold.
pub const SLOTS: usize = 3;

/// Names the scripts use. Few, so that operations meet; odd, so that nobody reads them as text.
pub const NAMES: [&[u8]; 7] = [
    b"a",
    b"b",
    b"c",
    b"d (deleted)",
    b"#5",
    b"\xff\n\x01",
    &[b'e'; 255],
];

/// A name by number; beyond [`NAMES`] are those of the fixed directories.
pub fn name(n: u8) -> Name {
    let bytes = match n {
        250 => b"root".as_slice(),
        251 => b"out",
        n => NAMES[usize::from(n) % NAMES.len()],
    };
    Name::new(bytes).expect("a good name")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Below the mirrored directory.
    Root,
    /// Below the directory beside it.
    Out,
}

/// Names from a base down, by number.
#[derive(Clone, PartialEq, Eq)]
pub struct Path {
    pub base: Base,
    pub names: Vec<u8>,
}

impl std::fmt::Debug for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.base)?;
        self.names.iter().try_for_each(|n| write!(f, "/{n}"))
    }
}

/// One operation. What can't be done (no such name, not empty) does nothing, so any subset of a script runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// open(O_CREAT), write, close.
    Write(Path, u8),
    /// Same size, then the old mtime is put back.
    Forge(Path, u8),
    Truncate(Path),
    Mkdir(Path),
    Symlink(Path, u8),
    Special(Path, u8),
    Link(Path, Path),
    Unlink(Path),
    Rmdir(Path),
    /// rm -rf
    Remove(Path),
    Rename(Path, Path),
    Exchange(Path, Path),
    Whiteout(Path, Path),
    /// x/y becomes y/x: two directories change places, one in the other.
    Invert(Path),
    Chmod(Path, u16),
    Chown(Path, u32),
    Utimes(Path, u64),
    /// Value 0 removes.
    Xattr(Path, u8, u8),
    Open(Path, usize),
    /// O_TMPFILE.
    OpenUnnamed(Path, usize),
    LinkOpen(usize, Path),
    WriteOpen(usize, u8),
    /// A store through a mapping. The first is a fault, which stamps the time; then the page is dirty: no event, no time.
    Store(usize, u8),
    /// A write begins: the time is stamped, the bytes are not there.
    FlyBegin(usize, u8),
    /// The bytes are there, the event is raised; the time does not move again.
    FlyEnd(usize),
    ChmodOpen(usize, u16),
    Close(usize),
    /// A write by the handle, as an NFS server does: the event has no name.
    WriteNameless(Path, u8),
    /// The root itself gets another name.
    MoveRoot(Path),
}
