//! The words of the project as types: names, objects, positions, and what an entry stands for.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// One name in a directory: raw bytes, 1 to 255 of them, no `/`, no NUL, not `.` or `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

/// Why bytes are not a [`Name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadName;

impl Name {
    pub fn new(bytes: &[u8]) -> Result<Name, BadName> {
        let ok = !bytes.is_empty()
            && bytes.len() <= 255
            && bytes != b"."
            && bytes != b".."
            && !bytes.iter().any(|&b| b == b'/' || b == 0);
        if ok {
            Ok(Name(bytes.into()))
        } else {
            Err(BadName)
        }
    }
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", escape(&self.0))
    }
}
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

/// Bytes as one line of text: UTF-8 stays, control characters, backslashes and stray bytes become `\xNN`.
pub fn escape(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' || is_tricky(c) {
                let mut buffer = [0u8; 4];
                for byte in c.encode_utf8(&mut buffer).bytes() {
                    let _ = write!(out, "\\x{byte:02x}");
                }
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// Characters that a terminal obeys, or that reorder or hide the text around them.
pub fn is_tricky(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The identity of an inode, given once by the primary and never used again: it is the position of the
/// record that created the object (20 bits of epoch, 44 bits of sequence), so it is unique over epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub u64);

impl ObjectId {
    /// The root of the tree: the record that opens the first epoch creates it.
    pub const ROOT: ObjectId = ObjectId((1 << 44) | 1);

    /// `None` when the epoch (over 2^20) or the sequence (over 2^44) does not fit.
    pub fn at(position: Position) -> Option<ObjectId> {
        let epoch = u64::from(position.epoch);
        (epoch < 1 << 20 && position.sequence < 1 << 44)
            .then_some(ObjectId((epoch << 44) | position.sequence))
    }
}

/// Where a record stands: the branch, and the number in it. The sequence never restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub epoch: u32,
    pub sequence: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.sequence)
    }
}

/// blake3. Of a file without holes: of its bytes. Of a file with holes: see [`Content::data`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for b in &self.0[..6] {
            write!(f, "{b:02x}")?;
        }
        Ok(())
    }
}

/// Seconds and nanoseconds since 1970, as the file system keeps them (seconds may be negative).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    pub seconds: i64,
    pub nanos: u32,
}

/// A file handle as `name_to_handle_at` gives it: local to one file system, never sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle {
    pub kind: i32,
    /// At most 128 bytes.
    pub bytes: Box<[u8]>,
}

/// A name in the tree. Paths exist only where a person types or reads them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    pub parent: ObjectId,
    pub name: Name,
}

/// One extended attribute, ACLs and capabilities included, as raw bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xattr {
    pub name: Box<[u8]>,
    pub value: Box<[u8]>,
}

/// What an inode carries beside its content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission, set-id and sticky bits: `st_mode & 0o7777`. Of a symlink: 0o777.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// Sorted by name, each name once.
    pub xattrs: Vec<Xattr>,
    /// Inode flags a person can set (`FS_IOC_GETFLAGS`), masked to [`Meta::FLAGS_KEPT`].
    pub flags: u32,
    /// Project (quota) id; 0 is none.
    pub project: u32,
}

impl Meta {
    /// secrm, undelete, compr, sync, immutable, append, nodump, noatime, notail, dirsync, nocow, projinherit.
    /// Left out: what the file system itself sets (extents, inline data, indexed directories, verity, encryption).
    pub const FLAGS_KEPT: u32 = 0x1
        | 0x2
        | 0x4
        | 0x8
        | 0x10
        | 0x20
        | 0x40
        | 0x80
        | 0x8000
        | 0x1_0000
        | 0x80_0000
        | 0x2000_0000;
}

/// What a regular file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub bytes: u64,
    /// Dense file: blake3 of the bytes. Sparse file: blake3 of `"fs_mirror sparse 1"`, `bytes`, the number of
    /// ranges, each range (all u64, little endian), then the bytes of the ranges in order.
    pub digest: Digest,
    /// The ranges that hold data (offset, length), in order, when the file has holes. Empty for a dense file;
    /// a file that is one hole has the one range (bytes, 0).
    pub data: Vec<(u64, u64)>,
    /// The bytes were read as one whole while nobody could write them (lease probe granted, stat stable, ctime
    /// older than the clock's grain). A restart trusts an equal stat only then. Never part of equality of bytes.
    pub proven: bool,
    /// The file would not stop changing: these bytes are as read, and a whole version follows.
    pub fuzzy: bool,
}

impl Content {
    /// Same bytes and same holes.
    pub fn same(&self, other: &Content) -> bool {
        self.bytes == other.bytes && self.digest == other.digest && self.data == other.data
    }

    /// What is stored, and travels: all but the holes.
    pub fn stored_bytes(&self) -> u64 {
        if self.data.is_empty() {
            return self.bytes;
        }
        let lengths = self.data.iter().map(|(_, length)| *length);
        lengths.fold(0, u64::saturating_add)
    }
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Dir,
    File(Content),
    Symlink(Box<[u8]>),
    /// Block or character device.
    Device {
        block: bool,
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
}

impl Kind {
    pub fn is_dir(&self) -> bool {
        matches!(self, Kind::Dir)
    }
    pub fn content(&self) -> Option<&Content> {
        match self {
            Kind::File(content) => Some(content),
            _ => None,
        }
    }
}

/// An inode's state, as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub kind: Kind,
    pub meta: Meta,
}

/// What only this host knows of an object: how to find its inode again, and what it looked like then.
/// On the worker it is the source inode, on a replica the copy. Never sent, never part of the hash chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Local {
    /// `None`: not known (yet); learned again by path and equality.
    pub handle: Option<Handle>,
    pub ino: u64,
    pub ctime: Time,
    /// Birth time, where the file system has one, else zero.
    pub btime: Time,
}

/// How far a replica has come. `None`: nothing yet. Always `received >= durable >= applied`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    pub received: Option<Position>,
    pub durable: Option<Position>,
    pub applied: Option<Position>,
}

/// Where the bytes of a content lie on this host. Local, like [`Local`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRef {
    /// Number of the content segment.
    pub segment: u64,
    /// Byte offset of the block's frame in the segment.
    pub block: u32,
    /// Offset and length inside the unpacked block.
    pub start: u32,
    pub length: u32,
}
