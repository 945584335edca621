//! What reconcile needs to see of the source tree. The kernel is one implementation (`mirror::capture`), the
//! simulator another.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use crate::record::Who;
use crate::types::*;

/// What a look at one inode showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub handle: Handle,
    pub ino: u64,
    /// `st_mode`, type included.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub bytes: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub rdev: (u32, u32),
    pub mtime: Time,
    pub ctime: Time,
    pub btime: Time,
}

/// The type bits of `st_mode`.
pub const S_IFMT: u32 = 0o170000;
pub const S_IFDIR: u32 = 0o040000;
pub const S_IFREG: u32 = 0o100000;
pub const S_IFLNK: u32 = 0o120000;

impl Seen {
    pub fn is_dir(&self) -> bool {
        self.mode & S_IFMT == S_IFDIR
    }
    pub fn is_file(&self) -> bool {
        self.mode & S_IFMT == S_IFREG
    }
    pub fn is_symlink(&self) -> bool {
        self.mode & S_IFMT == S_IFLNK
    }
    pub fn local(&self) -> Local {
        Local {
            handle: Some(self.handle.clone()),
            ino: self.ino,
            ctime: self.ctime,
            btime: self.btime,
        }
    }
    /// The same type of inode as `kind` stands for.
    pub fn is_kind(&self, kind: &Kind) -> bool {
        let bits = match kind {
            Kind::Dir => S_IFDIR,
            Kind::File(_) => S_IFREG,
            Kind::Symlink(_) => S_IFLNK,
            Kind::Device { block: true, .. } => 0o060000,
            Kind::Device { block: false, .. } => 0o020000,
            Kind::Fifo => 0o010000,
            Kind::Socket => 0o140000,
        };
        self.mode & S_IFMT == bits
    }
}

/// Something could not be read; it is listed with its reason and tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was tried: `open`, `read`, `stat`, `list`, `read attributes of`.
    pub step: &'static str,
    /// The system's reason.
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    Absent,
    /// The directory itself is gone.
    Stale,
    /// A mount point or another file system: not part of the tree.
    Foreign,
    Failed(Failure),
    Seen(Seen),
}

/// Where a directory, found by its handle, stands now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whereabouts {
    Root,
    Outside,
    Gone,
    Inside { parent: Handle, name: Name },
}

/// Where the bytes went that a read hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// No content was asked for, or it is held nowhere: whoever needs it asks for it again.
    None,
    /// Small content, in memory.
    Bytes(Vec<u8>),
    /// Handed to a sink under this token.
    Token(u64),
}

/// An inode read as one: attributes as of one moment, and content if it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// With a `ctime` of zero when that stamp is so young that a later change may get the same one (kernels with
    /// tick-grained times): then it never proves that nothing changed.
    pub seen: Seen,
    pub meta: Meta,
    /// For a file whose content was not asked for: `None`. Every other kind: complete.
    pub kind: Option<Kind>,
    pub body: Body,
    /// Somebody has the file open for writing, or mapped: it belongs on the hot list. Asked also when the content is
    /// not.
    pub busy: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "taken apart at once; most are the large one"
)]
pub enum ReadEnd {
    Done(Reading),
    /// The name stands for another inode now, or for none: look again.
    Moved,
    Failed(Failure),
    /// The bytes are too many to be read now: the name stays as it is, is in [`super::Outcome::later`], and is looked at
    /// again once they were read.
    Later,
}

/// A directory of the source, as reconcile names it to the edge.
pub struct Dir<'a> {
    pub handle: &'a Handle,
    /// Names from the root down, for a source that can't open by handle ([`Source::wants_trail`]).
    pub trail: Option<Vec<Name>>,
}

pub trait Source {
    fn look(&mut self, dir: &Dir<'_>, name: &Name) -> Look;
    /// As [`Source::look`], of a name that was seen as `then` just now: while the inode's number, birth and times are
    /// the same its identity need not be asked again.
    fn look_again(&mut self, dir: &Dir<'_>, name: &Name, then: &Seen) -> Look {
        let _ = then;
        self.look(dir, name)
    }
    /// The directory itself.
    fn look_dir(&mut self, dir: &Dir<'_>) -> Look;
    /// All names of a directory, or `None` when there are more than `max`.
    fn list(&mut self, dir: &Dir<'_>, max: usize) -> Result<Option<Vec<Name>>, Failure>;
    /// Reads attributes and, when `content`, the bytes. `name` is `None` for the directory itself.
    fn read(&mut self, dir: &Dir<'_>, name: Option<&Name>, seen: &Seen, content: bool) -> ReadEnd;
    /// Whether the bytes of this inode are being read because of an earlier look.
    fn is_reading(&self, file: &Handle) -> bool {
        let _ = file;
        false
    }
    fn locate(&mut self, dir: &Handle) -> Whereabouts;
    /// More hints that are queued already, when an object lost its last known name but still has links. Resolve
    /// these hints again after the group was applied ([`crate::hints`] says why).
    fn more(&mut self) -> Vec<(At, Dirty)>;
    fn wants_trail(&self) -> bool;
    /// Whether hints tell the object they are about, and come from directories that nobody looked at yet. Where they
    /// don't (a watch for each directory), what was written by a name and moved away before it was looked at is told
    /// under that name only.
    fn tells_objects(&self) -> bool {
        true
    }
    /// Whether a filter leaves this name out. `trail` is only asked for when there are filters.
    fn ignored(&mut self, trail: &mut dyn FnMut() -> Vec<Name>, name: &Name, is_dir: bool) -> bool;
}

/// Why a name is to be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dirty {
    /// The bytes may have changed even where the stat says they did not.
    pub contents: bool,
    /// Found by a scan, not told by an event: nothing explains a moved ctime, so the bytes are read again.
    pub doubt: bool,
    /// Something is switched by it: no content that was dirty before it may come after it.
    pub switch: bool,
    pub who: Option<Who>,
    /// Known objects that were written under this name, or one of its aliases: they are read wherever they are found,
    /// even when this name stands for something else by now.
    pub wrote: BTreeSet<ObjectId>,
    /// Known objects that something happened to: they are looked at under one of their names at least.
    pub about: BTreeSet<ObjectId>,
}

impl Dirty {
    pub fn merge(&mut self, other: Dirty) {
        self.contents |= other.contents;
        self.doubt |= other.doubt;
        self.switch |= other.switch;
        if other.who.is_some() {
            self.who = other.who;
        }
        self.wrote.extend(other.wrote);
        self.about.extend(other.about);
    }
}
