//! Bodies: one struct for each kind of record, fields by number. A newer writer may add fields at the end of any
//! struct; an older reader skips them. Field numbers are never used again.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::vec::Vec;

use minicbor::{Decode, Decoder, Encode, Encoder};

use super::{CodecError, frame, limits};
use crate::record::{Change, Fork, Note, Who};
use crate::types::*;

#[derive(Encode, Decode)]
struct WhoBody<'a> {
    #[n(0)]
    pid: Option<u32>,
    #[n(1)]
    uid: Option<u32>,
    #[cbor(b(2), with = "minicbor::bytes")]
    exe: Option<&'a [u8]>,
}

#[derive(Encode, Decode)]
struct AtBody<'a> {
    #[n(0)]
    parent: u64,
    #[cbor(b(1), with = "minicbor::bytes")]
    name: &'a [u8],
}

#[derive(Encode, Decode)]
struct MetaBody<'a> {
    #[n(0)]
    mode: u16,
    #[n(1)]
    uid: u32,
    #[n(2)]
    gid: u32,
    #[n(3)]
    mtime_seconds: i64,
    #[n(4)]
    mtime_nanos: u32,
    #[n(5)]
    flags: u32,
    #[n(6)]
    project: u32,
    #[cbor(b(7), with = "xattrs")]
    xattrs: Cow<'a, [Xattr]>,
}

#[derive(Encode, Decode)]
struct ContentBody<'a> {
    #[n(0)]
    bytes: u64,
    #[cbor(b(1), with = "minicbor::bytes")]
    digest: &'a [u8],
    #[n(2)]
    marks: u8,
    #[cbor(b(3), with = "ranges")]
    data: Cow<'a, [(u64, u64)]>,
}

const MARK_PROVEN: u8 = 1;
const MARK_FUZZY: u8 = 2;

#[derive(Encode, Decode)]
struct StateBody<'a> {
    #[n(0)]
    kind: u8,
    #[b(1)]
    meta: MetaBody<'a>,
    #[b(2)]
    content: Option<ContentBody<'a>>,
    #[cbor(b(3), with = "minicbor::bytes")]
    target: Option<&'a [u8]>,
    #[n(4)]
    major: Option<u32>,
    #[n(5)]
    minor: Option<u32>,
}

const STATE_DIR: u8 = 1;
const STATE_FILE: u8 = 2;
const STATE_SYMLINK: u8 = 3;
const STATE_BLOCK: u8 = 4;
const STATE_CHARACTER: u8 = 5;
const STATE_FIFO: u8 = 6;
const STATE_SOCKET: u8 = 7;

#[derive(Encode, Decode)]
struct ForkBody<'a> {
    #[n(0)]
    epoch: u32,
    #[n(1)]
    sequence: u64,
    #[cbor(b(2), with = "minicbor::bytes")]
    head: &'a [u8],
}

#[derive(Encode, Decode)]
struct OpenBody<'a> {
    #[cbor(b(0), with = "minicbor::bytes")]
    tree: &'a [u8],
    #[cbor(b(1), with = "minicbor::bytes")]
    claim: &'a [u8],
    #[b(2)]
    parent: Option<ForkBody<'a>>,
}

#[derive(Encode, Decode)]
struct CreateBody<'a> {
    #[n(0)]
    object: u64,
    #[b(1)]
    at: AtBody<'a>,
    #[b(2)]
    state: StateBody<'a>,
}

/// Of `Link` and `Unlink`.
#[derive(Encode, Decode)]
struct NameBody<'a> {
    #[n(0)]
    object: u64,
    #[b(1)]
    at: AtBody<'a>,
}

#[derive(Encode, Decode)]
struct MoveBody<'a> {
    #[n(0)]
    object: u64,
    #[b(1)]
    from: AtBody<'a>,
    #[b(2)]
    to: AtBody<'a>,
}

#[derive(Encode, Decode)]
struct UpdateBody<'a> {
    #[n(0)]
    object: u64,
    #[b(1)]
    at: Option<AtBody<'a>>,
    #[b(2)]
    meta: Option<MetaBody<'a>>,
    #[b(3)]
    content: Option<ContentBody<'a>>,
}

#[derive(Encode, Decode)]
struct VoidBody {
    #[n(0)]
    object: u64,
    #[n(1)]
    epoch: u32,
    #[n(2)]
    sequence: u64,
}

#[derive(Encode, Decode)]
struct NoteBody {
    #[n(0)]
    code: u8,
}

#[derive(Encode, Decode)]
struct LocalBody<'a> {
    #[b(0)]
    object: Option<ObjectBody<'a>>,
    #[n(1)]
    content: Option<RefBody>,
}

#[derive(Encode, Decode)]
struct ObjectBody<'a> {
    #[n(0)]
    ino: u64,
    #[n(1)]
    ctime_seconds: i64,
    #[n(2)]
    ctime_nanos: u32,
    #[n(3)]
    btime_seconds: i64,
    #[n(4)]
    btime_nanos: u32,
    #[n(5)]
    handle_kind: Option<i32>,
    #[cbor(b(6), with = "minicbor::bytes")]
    handle: Option<&'a [u8]>,
}

#[derive(Encode, Decode)]
struct RefBody {
    #[n(0)]
    segment: u64,
    #[n(1)]
    block: u32,
    #[n(2)]
    start: u32,
    #[n(3)]
    length: u32,
}

/// Names and values in turn.
mod xattrs {
    use super::*;
    use minicbor::{decode::Error as Bad, encode as en};

    pub fn encode<C, W: en::Write>(
        list: &Cow<'_, [Xattr]>,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), en::Error<W::Error>> {
        e.array(list.len() as u64 * 2)?;
        for xattr in list.iter() {
            e.bytes(&xattr.name)?.bytes(&xattr.value)?;
        }
        Ok(())
    }

    pub fn decode<'b, C>(d: &mut Decoder<'b>, _: &mut C) -> Result<Cow<'b, [Xattr]>, Bad> {
        let count = d
            .array()?
            .filter(|n| n % 2 == 0)
            .ok_or(Bad::end_of_input())?
            / 2;
        let mut list = Vec::new();
        for _ in 0..count {
            let (name, value) = (Box::from(d.bytes()?), Box::from(d.bytes()?));
            list.push(Xattr { name, value });
        }
        Ok(Cow::Owned(list))
    }
}

/// Gap before the range and length of the range in turn.
mod ranges {
    use super::*;
    use minicbor::{decode::Error as Bad, encode as en};

    pub fn encode<C, W: en::Write>(
        list: &Cow<'_, [(u64, u64)]>,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), en::Error<W::Error>> {
        e.array(list.len() as u64 * 2)?;
        let mut end = 0u64;
        for (offset, length) in list.iter() {
            // `limits::content` has checked the order before.
            e.u64(offset.wrapping_sub(end))?.u64(*length)?;
            end = offset.wrapping_add(*length);
        }
        Ok(())
    }

    pub fn decode<'b, C>(d: &mut Decoder<'b>, _: &mut C) -> Result<Cow<'b, [(u64, u64)]>, Bad> {
        let count = d
            .array()?
            .filter(|n| n % 2 == 0)
            .ok_or(Bad::end_of_input())?
            / 2;
        let mut list = Vec::new();
        let mut end = 0u64;
        for _ in 0..count {
            let (gap, length) = (d.u64()?, d.u64()?);
            let offset = end.checked_add(gap).ok_or(Bad::end_of_input())?;
            end = offset.checked_add(length).ok_or(Bad::end_of_input())?;
            list.push((offset, length));
        }
        Ok(Cow::Owned(list))
    }
}

const BODY: CodecError = CodecError::BadValue("body");

fn put<T: Encode<()>>(out: &mut Vec<u8>, value: &T) -> Result<(), CodecError> {
    minicbor::encode(value, out).map_err(|_| BODY)
}

fn get<'a, T: Decode<'a, ()>>(d: &mut Decoder<'a>) -> Result<T, CodecError> {
    d.decode().map_err(|_| BODY)
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], CodecError> {
    bytes
        .try_into()
        .map_err(|_| CodecError::BadValue("length of an id or digest"))
}

/// The kind number of a change, and its flags but the end of group.
pub(super) fn kind(change: &Change) -> (u8, u16) {
    let must = frame::FLAG_MUST_UNDERSTAND;
    match change {
        Change::Open { .. } => (frame::KIND_OPEN, must),
        Change::Create { .. } => (frame::KIND_CREATE, must),
        Change::Link { .. } => (frame::KIND_LINK, must),
        Change::Unlink { .. } => (frame::KIND_UNLINK, must),
        Change::Move { .. } => (frame::KIND_MOVE, must),
        Change::Update { .. } => (frame::KIND_UPDATE, must),
        Change::Void { .. } => (frame::KIND_VOID, must),
        Change::Note(_) => (frame::KIND_NOTE, 0),
    }
}

/// Appends the shared body: who, then the struct of the kind.
pub(super) fn put_shared(
    change: &Change,
    who: Option<&Who>,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let who = who.map(who_body).transpose()?;
    put(out, &who)?;
    match change {
        Change::Open {
            tree,
            claim,
            parent,
        } => {
            let parent = parent.as_ref().map(|fork| ForkBody {
                epoch: fork.position.epoch,
                sequence: fork.position.sequence,
                head: &fork.head.0,
            });
            put(
                out,
                &OpenBody {
                    tree,
                    claim,
                    parent,
                },
            )
        }
        Change::Create { at, object, state } => {
            let (at, state) = (at_body(at), state_body(state)?);
            put(
                out,
                &CreateBody {
                    object: object.0,
                    at,
                    state,
                },
            )
        }
        Change::Link { at, object } | Change::Unlink { at, object } => put(
            out,
            &NameBody {
                object: object.0,
                at: at_body(at),
            },
        ),
        Change::Move { object, from, to } => put(
            out,
            &MoveBody {
                object: object.0,
                from: at_body(from),
                to: at_body(to),
            },
        ),
        Change::Update {
            object,
            at,
            meta,
            content,
        } => put(
            out,
            &UpdateBody {
                object: object.0,
                at: at.as_ref().map(at_body),
                meta: meta.as_ref().map(meta_body).transpose()?,
                content: content.as_ref().map(content_body).transpose()?,
            },
        ),
        Change::Void { of, object } => put(
            out,
            &VoidBody {
                object: object.0,
                epoch: of.epoch,
                sequence: of.sequence,
            },
        ),
        Change::Note(note) => {
            let code = match note {
                Note::Overflow => 1,
                Note::ScanBegin => 2,
                Note::ScanEnd => 3,
                Note::Hold => 4,
                Note::Release => 5,
                Note::Unknown => return Err(CodecError::BadValue("a note of a newer version")),
            };
            put(out, &NoteBody { code })
        }
    }
}

/// What a shared body says.
pub(super) fn get_shared(
    kind: u8,
    flags: u16,
    shared: &[u8],
) -> Result<(Change, Option<Who>), CodecError> {
    let mut d = Decoder::new(shared);
    if kind == frame::KIND_SEAL {
        return Err(CodecError::BadValue("a seal is no record"));
    }
    if !(frame::KIND_OPEN..=frame::KIND_NOTE).contains(&kind) {
        return if flags & frame::FLAG_MUST_UNDERSTAND != 0 {
            Err(CodecError::UnknownKind { kind })
        } else {
            Ok((Change::Note(Note::Unknown), None))
        };
    }
    let who = get::<Option<WhoBody>>(&mut d)?
        .map(|body| who(&body))
        .transpose()?;
    let change = match kind {
        frame::KIND_OPEN => {
            let body: OpenBody = get(&mut d)?;
            let parent = match body.parent {
                Some(fork) => Some(Fork {
                    position: Position {
                        epoch: fork.epoch,
                        sequence: fork.sequence,
                    },
                    head: Digest(array(fork.head)?),
                }),
                None => None,
            };
            Change::Open {
                tree: array(body.tree)?,
                claim: array(body.claim)?,
                parent,
            }
        }
        frame::KIND_CREATE => {
            let body: CreateBody = get(&mut d)?;
            Change::Create {
                at: at(&body.at)?,
                object: ObjectId(body.object),
                state: state(body.state)?,
            }
        }
        frame::KIND_LINK | frame::KIND_UNLINK => {
            let body: NameBody = get(&mut d)?;
            let (at, object) = (at(&body.at)?, ObjectId(body.object));
            if kind == frame::KIND_LINK {
                Change::Link { at, object }
            } else {
                Change::Unlink { at, object }
            }
        }
        frame::KIND_MOVE => {
            let body: MoveBody = get(&mut d)?;
            Change::Move {
                object: ObjectId(body.object),
                from: at(&body.from)?,
                to: at(&body.to)?,
            }
        }
        frame::KIND_UPDATE => {
            let body: UpdateBody = get(&mut d)?;
            Change::Update {
                object: ObjectId(body.object),
                at: body.at.as_ref().map(at).transpose()?,
                meta: body.meta.map(meta).transpose()?,
                content: body.content.map(content).transpose()?,
            }
        }
        frame::KIND_VOID => {
            let body: VoidBody = get(&mut d)?;
            let of = Position {
                epoch: body.epoch,
                sequence: body.sequence,
            };
            Change::Void {
                of,
                object: ObjectId(body.object),
            }
        }
        _ => Change::Note(match get::<NoteBody>(&mut d)?.code {
            1 => Note::Overflow,
            2 => Note::ScanBegin,
            3 => Note::ScanEnd,
            4 => Note::Hold,
            5 => Note::Release,
            _ => Note::Unknown,
        }),
    };
    Ok((change, who))
}

/// Appends the local body, if there is anything to say.
pub(super) fn put_local(
    local: Option<&Local>,
    content: Option<&ContentRef>,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    if local.is_none() && content.is_none() {
        return Ok(());
    }
    let object = local.map(|local| {
        limits::time(local.ctime)?;
        limits::time(local.btime)?;
        if let Some(handle) = &local.handle {
            limits::handle(&handle.bytes)?;
        }
        Ok(ObjectBody {
            ino: local.ino,
            ctime_seconds: local.ctime.seconds,
            ctime_nanos: local.ctime.nanos,
            btime_seconds: local.btime.seconds,
            btime_nanos: local.btime.nanos,
            handle_kind: local.handle.as_ref().map(|handle| handle.kind),
            handle: local.handle.as_ref().map(|handle| &*handle.bytes),
        })
    });
    let content = content.map(|at| RefBody {
        segment: at.segment,
        block: at.block,
        start: at.start,
        length: at.length,
    });
    put(
        out,
        &LocalBody {
            object: object.transpose()?,
            content,
        },
    )
}

pub(super) fn get_local(bytes: &[u8]) -> Result<(Option<Local>, Option<ContentRef>), CodecError> {
    if bytes.is_empty() {
        return Ok((None, None));
    }
    let body: LocalBody = get(&mut Decoder::new(bytes))?;
    let local = match body.object {
        Some(object) => {
            let handle = match (object.handle_kind, object.handle) {
                (Some(kind), Some(bytes)) => {
                    limits::handle(bytes)?;
                    Some(Handle {
                        kind,
                        bytes: bytes.into(),
                    })
                }
                (None, None) => None,
                _ => return Err(CodecError::BadValue("handle")),
            };
            Some(Local {
                handle,
                ino: object.ino,
                ctime: time(object.ctime_seconds, object.ctime_nanos)?,
                btime: time(object.btime_seconds, object.btime_nanos)?,
            })
        }
        None => None,
    };
    let content = body.content.map(|at| ContentRef {
        segment: at.segment,
        block: at.block,
        start: at.start,
        length: at.length,
    });
    Ok((local, content))
}

fn who_body(who: &Who) -> Result<WhoBody<'_>, CodecError> {
    if let Some(exe) = &who.exe {
        limits::exe(exe)?;
    }
    Ok(WhoBody {
        pid: who.pid,
        uid: who.uid,
        exe: who.exe.as_deref(),
    })
}

fn who(body: &WhoBody) -> Result<Who, CodecError> {
    if let Some(exe) = body.exe {
        limits::exe(exe)?;
    }
    Ok(Who {
        pid: body.pid,
        uid: body.uid,
        exe: body.exe.map(Box::from),
    })
}

fn at_body(at: &At) -> AtBody<'_> {
    AtBody {
        parent: at.parent.0,
        name: at.name.as_bytes(),
    }
}

fn at(body: &AtBody) -> Result<At, CodecError> {
    let name = Name::new(body.name).map_err(|BadName| CodecError::BadValue("name"))?;
    Ok(At {
        parent: ObjectId(body.parent),
        name,
    })
}

fn meta_body(meta: &Meta) -> Result<MetaBody<'_>, CodecError> {
    limits::meta(meta)?;
    Ok(MetaBody {
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        mtime_seconds: meta.mtime.seconds,
        mtime_nanos: meta.mtime.nanos,
        flags: meta.flags,
        project: meta.project,
        xattrs: Cow::Borrowed(&meta.xattrs),
    })
}

fn meta(body: MetaBody) -> Result<Meta, CodecError> {
    let meta = Meta {
        mode: body.mode,
        uid: body.uid,
        gid: body.gid,
        mtime: Time {
            seconds: body.mtime_seconds,
            nanos: body.mtime_nanos,
        },
        xattrs: body.xattrs.into_owned(),
        flags: body.flags,
        project: body.project,
    };
    limits::meta(&meta)?;
    Ok(meta)
}

fn content_body(content: &Content) -> Result<ContentBody<'_>, CodecError> {
    limits::content(content)?;
    let proven = if content.proven { MARK_PROVEN } else { 0 };
    let fuzzy = if content.fuzzy { MARK_FUZZY } else { 0 };
    Ok(ContentBody {
        bytes: content.bytes,
        digest: &content.digest.0,
        marks: proven | fuzzy,
        data: Cow::Borrowed(&content.data),
    })
}

fn content(body: ContentBody) -> Result<Content, CodecError> {
    let content = Content {
        bytes: body.bytes,
        digest: Digest(array(body.digest)?),
        data: body.data.into_owned(),
        proven: body.marks & MARK_PROVEN != 0,
        fuzzy: body.marks & MARK_FUZZY != 0,
    };
    limits::content(&content)?;
    Ok(content)
}

fn state_body(state: &State) -> Result<StateBody<'_>, CodecError> {
    let mut body = StateBody {
        kind: STATE_DIR,
        meta: meta_body(&state.meta)?,
        content: None,
        target: None,
        major: None,
        minor: None,
    };
    match &state.kind {
        Kind::Dir => {}
        Kind::File(content) => {
            body.kind = STATE_FILE;
            body.content = Some(content_body(content)?);
        }
        Kind::Symlink(target) => {
            limits::target(target)?;
            body.kind = STATE_SYMLINK;
            body.target = Some(target);
        }
        Kind::Device {
            block,
            major,
            minor,
        } => {
            body.kind = if *block { STATE_BLOCK } else { STATE_CHARACTER };
            (body.major, body.minor) = (Some(*major), Some(*minor));
        }
        Kind::Fifo => body.kind = STATE_FIFO,
        Kind::Socket => body.kind = STATE_SOCKET,
    }
    Ok(body)
}

fn state(body: StateBody) -> Result<State, CodecError> {
    let kind = match (body.kind, body.content, body.target, body.major, body.minor) {
        (STATE_DIR, ..) => Kind::Dir,
        (STATE_FILE, Some(body), ..) => Kind::File(content(body)?),
        (STATE_SYMLINK, _, Some(target), ..) => {
            limits::target(target)?;
            Kind::Symlink(target.into())
        }
        (block @ (STATE_BLOCK | STATE_CHARACTER), _, _, Some(major), Some(minor)) => Kind::Device {
            block: block == STATE_BLOCK,
            major,
            minor,
        },
        (STATE_FIFO, ..) => Kind::Fifo,
        (STATE_SOCKET, ..) => Kind::Socket,
        _ => return Err(CodecError::BadValue("kind of object")),
    };
    Ok(State {
        kind,
        meta: meta(body.meta)?,
    })
}

fn time(seconds: i64, nanos: u32) -> Result<Time, CodecError> {
    let time = Time { seconds, nanos };
    limits::time(time)?;
    Ok(time)
}
