//! Rows as bytes: compact, bounds-checked, no allocation beyond the bytes that are there. `docs/FORMAT.md`, "Index".
//!
//! A *body* is an object's state and local part. It stands in the row of the object's name when the object has just
//! one (so that a directory is read in one range), else in the row of the object.

use mirror_core::{
    At, Content, Digest, Handle, Kind, Local, Meta, Name, Names, Object, ObjectId, State, Time,
    Xattr,
};

/// Why bytes are not a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadRow;

/// First byte of a row in `entries`: the body follows the id.
pub const ENTRY_INLINE: u8 = 0x10;
/// The body is in the object's row.
pub const ENTRY_REFERENCE: u8 = 0x11;
/// First byte of a row in `objects`: the key of the one entry, which has the body.
pub const OBJECT_INLINE: u8 = 0x20;
/// The names and the body.
pub const OBJECT_WHOLE: u8 = 0x21;

// The first byte of a body: what it is, and the commonest flags.
const KIND: u8 = 0x07;
const HAS_HANDLE: u8 = 0x08;
const INO_IN_HANDLE: u8 = 0x10;
const HAS_EXTRA: u8 = 0x20;
const PROVEN: u8 = 0x40;
const FUZZY: u8 = 0x80;
// The second byte.
const HAS_HOLES: u8 = 0x01;
const CTIME_IS_MTIME: u8 = 0x02;
const BTIME_ZERO: u8 = 0x04;
const BTIME_IS_CTIME: u8 = 0x08;
const OWNER_ROOT: u8 = 0x10;
/// The handle is of kind 1 and has 8 bytes, as on ext4 and XFS.
const HANDLE_PLAIN: u8 = 0x20;
const SECOND_KNOWN: u8 = 0x3f;

const DIR: u8 = 0;
const FILE: u8 = 1;
const SYMLINK: u8 = 2;
const BLOCK: u8 = 3;
const CHAR: u8 = 4;
const FIFO: u8 = 5;
const SOCKET: u8 = 6;

/// Key of an entry: the parent's id, big endian, and the name, so that a directory is a range in order of names.
pub fn entry_key(parent: ObjectId, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(8 + name.len());
    key.extend_from_slice(&parent.0.to_be_bytes());
    key.extend_from_slice(name);
    key
}

pub fn entry_key_at(at: &At) -> Vec<u8> {
    entry_key(at.parent, at.name.as_bytes())
}

/// The parent and the name's bytes.
pub fn entry_key_parts(key: &[u8]) -> Result<(ObjectId, &[u8]), BadRow> {
    let (parent, name) = key.split_first_chunk::<8>().ok_or(BadRow)?;
    Ok((ObjectId(u64::from_be_bytes(*parent)), name))
}

pub fn entry_key_decode(key: &[u8]) -> Result<At, BadRow> {
    let (parent, name) = entry_key_parts(key)?;
    let name = Name::new(name).map_err(|_| BadRow)?;
    Ok(At { parent, name })
}

/// Key of a handle: its kind, and its bytes with each word of four turned round, which puts the handles of
/// neighbouring inodes side by side (they begin with a little-endian number).
pub fn handle_key(handle: &Handle) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + handle.bytes.len());
    put_zigzag(&mut key, i64::from(handle.kind));
    for word in handle.bytes.chunks(4) {
        key.extend(word.iter().rev());
    }
    key
}

/// `OBJECT_WHOLE`: the names, then the body.
pub fn object_encode(names: &Names, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + 32 * names.len() + body.len());
    out.push(OBJECT_WHOLE);
    put_varint(&mut out, names.len() as u64);
    for at in names {
        put_varint(&mut out, at.parent.0);
        put_bytes(&mut out, at.name.as_bytes());
    }
    out.extend_from_slice(body);
    out
}

pub fn body_encode(state: &State, local: &Local) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    put_body(&mut out, state, local);
    out
}

pub fn object_decode(bytes: &[u8]) -> Result<Object, BadRow> {
    let mut input = Input(bytes);
    let names = take_names(&mut input)?;
    let (state, local) = body_decode(input.0)?;
    Ok(Object {
        state,
        local,
        names,
    })
}

fn take_names(input: &mut Input) -> Result<Names, BadRow> {
    if input.byte()? != OBJECT_WHOLE {
        return Err(BadRow);
    }
    let count = input.count(3)?;
    let mut names = Vec::with_capacity(count);
    for _ in 0..count {
        let parent = ObjectId(input.varint()?);
        let name = Name::new(input.bytes()?).map_err(|_| BadRow)?;
        names.push(At { parent, name });
    }
    Ok(names.into())
}

pub fn entry_inline(id: ObjectId, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(9 + body.len());
    out.push(ENTRY_INLINE);
    put_varint(&mut out, id.0);
    out.extend_from_slice(body);
    out
}

pub fn entry_reference(id: ObjectId) -> Vec<u8> {
    let mut out = Vec::with_capacity(9);
    out.push(ENTRY_REFERENCE);
    put_varint(&mut out, id.0);
    out
}

/// The object of an entry's row, and its body when it stands there.
pub fn entry_split(bytes: &[u8]) -> Result<(ObjectId, Option<&[u8]>), BadRow> {
    let mut input = Input(bytes);
    let form = input.byte()?;
    let id = ObjectId(input.varint()?);
    match form {
        ENTRY_INLINE => Ok((id, Some(input.0))),
        ENTRY_REFERENCE if input.0.is_empty() => Ok((id, None)),
        _ => Err(BadRow),
    }
}

/// Whether a body is a directory's, from its first byte.
pub fn body_is_dir(body: &[u8]) -> Result<bool, BadRow> {
    Ok(body.first().ok_or(BadRow)? & KIND == DIR)
}

fn put_body(out: &mut Vec<u8>, state: &State, local: &Local) {
    let State { kind, meta } = state;
    let extra = !meta.xattrs.is_empty() || meta.flags != 0 || meta.project != 0;
    let mut first = match kind {
        Kind::Dir => DIR,
        Kind::File(_) => FILE,
        Kind::Symlink(_) => SYMLINK,
        Kind::Device { block: true, .. } => BLOCK,
        Kind::Device { block: false, .. } => CHAR,
        Kind::Fifo => FIFO,
        Kind::Socket => SOCKET,
    };
    let mut second = 0;
    if extra {
        first |= HAS_EXTRA;
    }
    if let Some(handle) = &local.handle {
        first |= HAS_HANDLE;
        if ino_in_handle(&handle.bytes) == Some(local.ino) {
            first |= INO_IN_HANDLE;
        }
        if handle.kind == 1 && handle.bytes.len() == 8 {
            second |= HANDLE_PLAIN;
        }
    }
    if let Kind::File(content) = kind {
        if content.proven {
            first |= PROVEN;
        }
        if content.fuzzy {
            first |= FUZZY;
        }
        if !content.data.is_empty() {
            second |= HAS_HOLES;
        }
    }
    if local.ctime == meta.mtime {
        second |= CTIME_IS_MTIME;
    }
    if local.btime == Time::default() {
        second |= BTIME_ZERO;
    } else if local.btime == local.ctime {
        second |= BTIME_IS_CTIME;
    }
    if meta.uid == 0 && meta.gid == 0 {
        second |= OWNER_ROOT;
    }
    out.extend_from_slice(&[first, second]);

    put_varint(out, u64::from(meta.mode));
    if second & OWNER_ROOT == 0 {
        put_varint(out, u64::from(meta.uid));
        put_varint(out, u64::from(meta.gid));
    }
    put_time(out, meta.mtime, 0);
    if second & CTIME_IS_MTIME == 0 {
        put_time(out, local.ctime, meta.mtime.seconds);
    }
    if second & (BTIME_ZERO | BTIME_IS_CTIME) == 0 {
        put_time(out, local.btime, local.ctime.seconds);
    }
    if let Some(handle) = &local.handle {
        if second & HANDLE_PLAIN == 0 {
            put_zigzag(out, i64::from(handle.kind));
            put_varint(out, handle.bytes.len() as u64);
        }
        out.extend_from_slice(&handle.bytes);
    }
    if first & INO_IN_HANDLE == 0 {
        put_varint(out, local.ino);
    }
    match kind {
        Kind::Dir | Kind::Fifo | Kind::Socket => {}
        Kind::File(content) => {
            put_varint(out, content.bytes);
            out.extend_from_slice(&content.digest.0);
            if !content.data.is_empty() {
                put_varint(out, content.data.len() as u64);
                let mut end = 0u64;
                for &(offset, length) in &content.data {
                    put_varint(out, offset.wrapping_sub(end));
                    put_varint(out, length);
                    end = offset.wrapping_add(length);
                }
            }
        }
        Kind::Symlink(target) => put_bytes(out, target),
        Kind::Device { major, minor, .. } => {
            put_varint(out, u64::from(*major));
            put_varint(out, u64::from(*minor));
        }
    }
    if extra {
        put_varint(out, u64::from(meta.flags));
        put_varint(out, u64::from(meta.project));
        put_varint(out, meta.xattrs.len() as u64);
        for xattr in &meta.xattrs {
            put_bytes(out, &xattr.name);
            put_bytes(out, &xattr.value);
        }
    }
}

/// A body up to what depends on the kind.
struct Head<'a> {
    first: u8,
    second: u8,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: Time,
    ctime: Time,
    btime: Time,
    handle: Option<(i32, &'a [u8])>,
    ino: u64,
}

fn take_head<'a>(input: &mut Input<'a>) -> Result<Head<'a>, BadRow> {
    let first = input.byte()?;
    let second = input.byte()?;
    if second & !SECOND_KNOWN != 0 {
        return Err(BadRow);
    }
    let mode = u16::try_from(input.varint()?).map_err(|_| BadRow)?;
    let (uid, gid) = match second & OWNER_ROOT {
        0 => (input.varint_u32()?, input.varint_u32()?),
        _ => (0, 0),
    };
    let mtime = input.time(0)?;
    let ctime = match second & CTIME_IS_MTIME {
        0 => input.time(mtime.seconds)?,
        _ => mtime,
    };
    let btime = match second & (BTIME_ZERO | BTIME_IS_CTIME) {
        0 => input.time(ctime.seconds)?,
        BTIME_ZERO => Time::default(),
        BTIME_IS_CTIME => ctime,
        _ => return Err(BadRow),
    };
    let handle = match (first & HAS_HANDLE, second & HANDLE_PLAIN) {
        (0, 0) => None,
        (0, _) => return Err(BadRow),
        (_, 0) => {
            let kind = i32::try_from(input.zigzag()?).map_err(|_| BadRow)?;
            Some((kind, input.bytes()?))
        }
        _ => Some((1, input.take(8)?)),
    };
    let ino = match (first & INO_IN_HANDLE, &handle) {
        (0, _) => input.varint()?,
        (_, Some((_, bytes))) => ino_in_handle(bytes).ok_or(BadRow)?,
        (_, None) => return Err(BadRow),
    };
    Ok(Head {
        first,
        second,
        mode,
        uid,
        gid,
        mtime,
        ctime,
        btime,
        handle,
        ino,
    })
}

pub fn body_decode(body: &[u8]) -> Result<(State, Local), BadRow> {
    let mut input = Input(body);
    let Head {
        first,
        second,
        mode,
        uid,
        gid,
        mtime,
        ctime,
        btime,
        handle,
        ino,
    } = take_head(&mut input)?;
    let handle = handle.map(|(kind, bytes)| Handle {
        kind,
        bytes: bytes.into(),
    });
    let kind = match first & KIND {
        DIR => Kind::Dir,
        FILE => {
            let bytes = input.varint()?;
            let digest = Digest(*input.take(32)?.first_chunk().ok_or(BadRow)?);
            let data = match second & HAS_HOLES {
                0 => Vec::new(),
                _ => input.ranges()?,
            };
            Kind::File(Content {
                bytes,
                digest,
                data,
                proven: first & PROVEN != 0,
                fuzzy: first & FUZZY != 0,
            })
        }
        SYMLINK => Kind::Symlink(input.bytes()?.into()),
        kind @ (BLOCK | CHAR) => Kind::Device {
            block: kind == BLOCK,
            major: input.varint_u32()?,
            minor: input.varint_u32()?,
        },
        FIFO => Kind::Fifo,
        SOCKET => Kind::Socket,
        _ => return Err(BadRow),
    };
    let mut meta = Meta {
        mode,
        uid,
        gid,
        mtime,
        ..Meta::default()
    };
    if first & HAS_EXTRA != 0 {
        meta.flags = input.varint_u32()?;
        meta.project = input.varint_u32()?;
        let count = input.count(2)?;
        meta.xattrs.reserve_exact(count);
        for _ in 0..count {
            let name = input.bytes()?.into();
            let value = input.bytes()?.into();
            meta.xattrs.push(Xattr { name, value });
        }
    }
    if !input.0.is_empty() {
        return Err(BadRow);
    }
    let local = Local {
        handle,
        ino,
        ctime,
        btime,
    };
    Ok((State { kind, meta }, local))
}

/// What of a body tells whether an inode is still the same, without what else it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyInode<'a> {
    pub is_dir: bool,
    pub is_file: bool,
    pub proven: bool,
    pub ino: u64,
    pub mtime: Time,
    pub ctime: Time,
    pub btime: Time,
    pub handle: Option<(i32, &'a [u8])>,
}

pub fn body_inode(body: &[u8]) -> Result<BodyInode<'_>, BadRow> {
    let mut input = Input(body);
    let head = take_head(&mut input)?;
    Ok(BodyInode {
        is_dir: head.first & KIND == DIR,
        is_file: head.first & KIND == FILE,
        proven: head.first & PROVEN != 0,
        ino: head.ino,
        mtime: head.mtime,
        ctime: head.ctime,
        btime: head.btime,
        handle: head.handle,
    })
}

/// ext4's and XFS's handles begin with the inode number.
fn ino_in_handle(bytes: &[u8]) -> Option<u64> {
    bytes
        .first_chunk::<4>()
        .map(|b| u64::from(u32::from_le_bytes(*b)))
}

pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_time(out: &mut Vec<u8>, time: Time, base: i64) {
    put_zigzag(out, time.seconds.wrapping_sub(base));
    put_varint(out, u64::from(time.nanos));
}

/// Bytes still to be read.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn byte(&mut self) -> Result<u8, BadRow> {
        let (first, rest) = self.0.split_first().ok_or(BadRow)?;
        self.0 = rest;
        Ok(*first)
    }
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], BadRow> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(BadRow)?;
        self.0 = rest;
        Ok(head)
    }
    pub fn varint(&mut self) -> Result<u64, BadRow> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(BadRow);
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(BadRow)
    }
    pub fn varint_u32(&mut self) -> Result<u32, BadRow> {
        u32::try_from(self.varint()?).map_err(|_| BadRow)
    }
    fn zigzag(&mut self) -> Result<i64, BadRow> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }
    fn bytes(&mut self) -> Result<&'a [u8], BadRow> {
        let count = usize::try_from(self.varint()?).map_err(|_| BadRow)?;
        self.take(count)
    }
    /// A number of things that take at least `least` bytes each, so that no row makes us allocate more than it is.
    fn count(&mut self, least: usize) -> Result<usize, BadRow> {
        let count = usize::try_from(self.varint()?).map_err(|_| BadRow)?;
        if count > self.0.len() / least {
            return Err(BadRow);
        }
        Ok(count)
    }
    fn time(&mut self, base: i64) -> Result<Time, BadRow> {
        let seconds = self.zigzag()?.wrapping_add(base);
        let nanos = self.varint_u32()?;
        Ok(Time { seconds, nanos })
    }
    fn ranges(&mut self) -> Result<Vec<(u64, u64)>, BadRow> {
        let count = self.count(2)?;
        let mut data = Vec::with_capacity(count);
        let mut end = 0u64;
        for _ in 0..count {
            let offset = end.wrapping_add(self.varint()?);
            let length = self.varint()?;
            data.push((offset, length));
            end = offset.wrapping_add(length);
        }
        Ok(data)
    }
}
