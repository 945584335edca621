//! Bodies: between what a record says and the structs of [`super::fields`], checked both ways.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::vec::Vec;

use minicbor::{Decode, Decoder, Encode};

use super::fields::*;
use super::{CodecError, frame, limits};
use crate::record::{Change, Fork, Note, Who};
use crate::types::*;

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
