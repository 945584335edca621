//! The catalogue's bytes: frames, groups, rows. Chapter "Catalogue" of `docs/FORMAT.md`.

use mirror_core::history::{Group, Moment, Row, Then, Unkept, Was};
use mirror_core::{At, Digest, Name, ObjectId, Who};

use crate::index::row::{BadRow, Input, body_decode, body_encode, put_varint};

pub const FRAME: usize = 48;
/// A body is closed once it has so many bytes; a row is at most about 1.1 MiB (its extended attributes).
pub const BODY_CLOSE: usize = 32 << 10;
/// More is no frame of ours.
pub const BODY_MAX: usize = 8 << 20;
const MAGIC: [u8; 4] = *b"FSMc";
const VERSION: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    Groups,
    /// One thing that happened to the history, as JSON.
    Event,
    Unknown,
}

/// What a frame's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: FrameKind,
    /// The last group in it has more rows in the next frame.
    pub goes_on: bool,
    pub body: usize,
    crc: u32,
    pub head: Digest,
}

/// A frame, and the hash chain after it.
pub fn frame(kind: FrameKind, goes_on: bool, body: &[u8], before: &Digest) -> (Vec<u8>, Digest) {
    let mut out = Vec::with_capacity(FRAME + body.len());
    out.extend_from_slice(&MAGIC);
    let kind = match kind {
        FrameKind::Groups => 1,
        FrameKind::Event => 2,
        FrameKind::Unknown => 0,
    };
    out.extend_from_slice(&[VERSION, kind, u8::from(goes_on), 0]);
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let head = chain(before, &out, body);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out), &head.0);
    let crc = crc32c::crc32c_append(crc, body);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&head.0);
    out.extend_from_slice(body);
    (out, head)
}

fn chain(before: &Digest, first: &[u8], body: &[u8]) -> Digest {
    let mut hash = blake3::Hasher::new();
    hash.update(&before.0).update(first).update(body);
    Digest(*hash.finalize().as_bytes())
}

/// `None`: no frame begins like this.
pub fn header(bytes: &[u8]) -> Option<Header> {
    let bytes = bytes.first_chunk::<FRAME>()?;
    if bytes[..4] != MAGIC || bytes[4] != VERSION {
        return None;
    }
    let number =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let body = number(8) as usize;
    let kind = match bytes[5] {
        1 => FrameKind::Groups,
        2 => FrameKind::Event,
        _ => FrameKind::Unknown,
    };
    let mut head = [0; 32];
    head.copy_from_slice(&bytes[16..48]);
    (body <= BODY_MAX).then_some(Header {
        kind,
        goes_on: bytes[6] & 1 != 0,
        body,
        crc: number(12),
        head: Digest(head),
    })
}

/// Whether a frame is as it was written.
pub fn is_intact(bytes: &[u8]) -> bool {
    let Some(header) = header(bytes) else {
        return false;
    };
    let Some(body) = bytes.get(FRAME..FRAME + header.body) else {
        return false;
    };
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &header.head.0);
    crc32c::crc32c_append(crc, body) == header.crc
}

/// Whether an intact frame follows what came before.
pub fn continues(bytes: &[u8], before: &Digest) -> bool {
    header(bytes).is_some_and(|header| {
        let body = bytes.get(FRAME..FRAME + header.body);
        body.is_some_and(|body| chain(before, &bytes[..12], body) == header.head)
    })
}

/// A group, and when it was applied by this host's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dated {
    pub group: Group,
    pub here_ns: u64,
}

/// A row in a body that is being written.
pub struct Placed<'a> {
    pub row: &'a Row,
    pub moment: Moment,
    pub offset: u32,
}

/// A body that was packed.
pub struct Packed<'a> {
    pub bytes: &'a [u8],
    /// Its rows, with their offsets in it.
    pub placed: &'a [Placed<'a>],
    /// The groups that it has rows of: moment, the worker's clock, ours.
    pub groups: &'a [(Moment, u64, u64)],
    /// The last of these has more rows in the next one.
    pub goes_on: bool,
}

/// Packs groups into bodies.
pub fn pack(
    groups: &[Dated],
    mut each: impl FnMut(Packed<'_>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut body = Body::default();
    for dated in groups {
        let mut rows = dated.group.rows.as_slice();
        while !rows.is_empty() {
            let taken = body.take(dated, rows);
            rows = &rows[taken..];
            if body.rows.len() >= BODY_CLOSE {
                body.close(!rows.is_empty(), &mut each)?;
            }
        }
    }
    body.close(false, &mut each)
}

#[derive(Default)]
struct Body<'a> {
    who: Vec<&'a Who>,
    /// Of each group: its header, and rows.
    rows: Vec<u8>,
    placed: Vec<Placed<'a>>,
    groups: Vec<(Moment, u64, u64)>,
}

impl<'a> Body<'a> {
    /// As many rows of one group as fit; at least one.
    fn take(&mut self, dated: &'a Dated, rows: &'a [Row]) -> usize {
        let group = &dated.group;
        let mut part = Vec::new();
        let mut offsets = Vec::new();
        for row in rows {
            if !offsets.is_empty() && self.rows.len() + part.len() >= BODY_CLOSE {
                break;
            }
            offsets.push(part.len());
            let who = group.who_of(row).map(|who| {
                let known = self.who.iter().rposition(|known| *known == who);
                known.unwrap_or_else(|| {
                    self.who.push(who);
                    self.who.len() - 1
                })
            });
            put_row(&mut part, &row.was, who);
        }
        put_varint(&mut self.rows, group.moment.0);
        put_varint(&mut self.rows, group.time_ns);
        put_varint(&mut self.rows, dated.here_ns);
        put_varint(&mut self.rows, offsets.len() as u64);
        let base = self.rows.len();
        let placed = rows.iter().zip(&offsets).map(|(row, offset)| Placed {
            row,
            moment: group.moment,
            offset: (base + offset) as u32,
        });
        self.placed.extend(placed);
        self.rows.extend_from_slice(&part);
        self.groups
            .push((group.moment, group.time_ns, dated.here_ns));
        offsets.len()
    }

    fn close(
        &mut self,
        goes_on: bool,
        each: &mut impl FnMut(Packed<'_>) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        if self.groups.is_empty() {
            return Ok(());
        }
        let mut body = Vec::with_capacity(self.rows.len() + 64);
        put_varint(&mut body, self.who.len() as u64);
        for who in &self.who {
            put_who(&mut body, who);
        }
        put_varint(&mut body, self.groups.len() as u64);
        let before = body.len() as u32;
        body.extend_from_slice(&self.rows);
        for placed in &mut self.placed {
            placed.offset += before;
        }
        each(Packed {
            bytes: &body,
            placed: &self.placed,
            groups: &self.groups,
            goes_on,
        })?;
        *self = Body::default();
        Ok(())
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_who(out: &mut Vec<u8>, who: &Who) {
    let flag = |bit: u8, known: bool| if known { bit } else { 0 };
    out.push(flag(1, who.pid.is_some()) | flag(2, who.uid.is_some()) | flag(4, who.exe.is_some()));
    for number in [who.pid, who.uid].into_iter().flatten() {
        put_varint(out, u64::from(number));
    }
    if let Some(exe) = &who.exe {
        put_bytes(out, exe);
    }
}

fn take_who(input: &mut Input<'_>) -> Result<Who, BadRow> {
    let flags = input.byte()?;
    let number = |input: &mut Input<'_>, bit| match flags & bit {
        0 => Ok(None),
        _ => input.varint_u32().map(Some),
    };
    let pid = number(input, 1)?;
    let uid = number(input, 2)?;
    let exe = match flags & 4 {
        0 => None,
        _ => Some(take_bytes(input)?.into()),
    };
    Ok(Who { pid, uid, exe })
}

fn take_bytes<'a>(input: &mut Input<'a>) -> Result<&'a [u8], BadRow> {
    let count = usize::try_from(input.varint()?).map_err(|_| BadRow)?;
    input.take(count)
}

const NAME: u8 = 1;
const OBJECT: u8 = 2;
const UNKEPT: u8 = 3;

fn put_row(out: &mut Vec<u8>, was: &Was, who: Option<usize>) {
    let who = who.map_or(0, |who| who as u64 + 1);
    let id = |id: &Option<ObjectId>| id.map_or(0, |id| id.0);
    match was {
        Was::Name { at, before, after } => {
            out.push(NAME);
            put_varint(out, who);
            put_varint(out, at.parent.0);
            put_bytes(out, at.name.as_bytes());
            put_varint(out, id(before));
            put_varint(out, id(after));
        }
        Was::Object {
            object,
            state,
            local,
            then,
        } => {
            out.push(OBJECT);
            put_varint(out, who);
            put_varint(out, object.0);
            out.push(match then {
                Then::Meta => 0,
                Then::Content => 1,
                Then::Gone => 2,
            });
            let local = mirror_core::Local {
                handle: None,
                ..local.clone()
            };
            put_bytes(out, &body_encode(state, &local));
        }
        Was::Unkept { object, why } => {
            out.push(UNKEPT);
            put_varint(out, who);
            put_varint(out, object.0);
            out.push(match why {
                Unkept::Policy => 0,
                Unkept::Interval => 1,
                Unkept::Void => 2,
                Unkept::Missing => 3,
            });
        }
    }
}

fn take_row(input: &mut Input<'_>) -> Result<Row, BadRow> {
    let kind = input.byte()?;
    let who = match input.varint()? {
        0 => None,
        who => Some(u32::try_from(who - 1).map_err(|_| BadRow)?),
    };
    let id = |input: &mut Input<'_>| Ok(Some(ObjectId(input.varint()?)).filter(|id| id.0 != 0));
    let was = match kind {
        NAME => {
            let parent = ObjectId(input.varint()?);
            let name = Name::new(take_bytes(input)?).map_err(|_| BadRow)?;
            Was::Name {
                at: At { parent, name },
                before: id(input)?,
                after: id(input)?,
            }
        }
        OBJECT => {
            let object = ObjectId(input.varint()?);
            let then = match input.byte()? {
                0 => Then::Meta,
                1 => Then::Content,
                2 => Then::Gone,
                _ => return Err(BadRow),
            };
            let (state, local) = body_decode(take_bytes(input)?)?;
            Was::Object {
                object,
                state,
                local,
                then,
            }
        }
        UNKEPT => {
            let object = ObjectId(input.varint()?);
            let why = match input.byte()? {
                0 => Unkept::Policy,
                1 => Unkept::Interval,
                2 => Unkept::Void,
                3 => Unkept::Missing,
                _ => return Err(BadRow),
            };
            Was::Unkept { object, why }
        }
        _ => return Err(BadRow),
    };
    Ok(Row { was, who })
}

fn take_table(input: &mut Input<'_>) -> Result<Vec<Who>, BadRow> {
    let count = input.varint()?;
    let mut who = Vec::new();
    for _ in 0..count {
        who.push(take_who(input)?);
    }
    Ok(who)
}

/// One row of a body, and who did it.
pub fn row_at(body: &[u8], offset: u32) -> Result<(Row, Option<Who>), BadRow> {
    let row = take_row(&mut Input(body.get(offset as usize..).ok_or(BadRow)?))?;
    let who = match row.who {
        None => None,
        Some(who) => take_table(&mut Input(body))?.into_iter().nth(who as usize),
    };
    Ok((row, who))
}

/// All of a body, each row with its offset.
pub fn unpack(body: &[u8]) -> Result<Vec<(Dated, Vec<u32>)>, BadRow> {
    let mut input = Input(body);
    let who = take_table(&mut input)?;
    let mut groups = Vec::new();
    for _ in 0..input.varint()? {
        let moment = Moment(input.varint()?);
        let time_ns = input.varint()?;
        let here_ns = input.varint()?;
        let (mut rows, mut offsets) = (Vec::new(), Vec::new());
        for _ in 0..input.varint()? {
            offsets.push((body.len() - input.0.len()) as u32);
            rows.push(take_row(&mut input)?);
        }
        let group = Group {
            moment,
            time_ns,
            rows,
            who: who.clone(),
        };
        groups.push((Dated { group, here_ns }, offsets));
    }
    match input.0.is_empty() {
        true => Ok(groups),
        false => Err(BadRow),
    }
}
