//! The structs of the bodies: fields by number. A newer writer may add fields at the end of any struct; an older
//! reader skips them. A field number is never used again.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::vec::Vec;

use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::types::Xattr;

#[derive(Encode, Decode)]
pub(super) struct WhoBody<'a> {
    #[n(0)]
    pub(super) pid: Option<u32>,
    #[n(1)]
    pub(super) uid: Option<u32>,
    #[cbor(b(2), with = "minicbor::bytes")]
    pub(super) exe: Option<&'a [u8]>,
}

#[derive(Encode, Decode)]
pub(super) struct AtBody<'a> {
    #[n(0)]
    pub(super) parent: u64,
    #[cbor(b(1), with = "minicbor::bytes")]
    pub(super) name: &'a [u8],
}

#[derive(Encode, Decode)]
pub(super) struct MetaBody<'a> {
    #[n(0)]
    pub(super) mode: u16,
    #[n(1)]
    pub(super) uid: u32,
    #[n(2)]
    pub(super) gid: u32,
    #[n(3)]
    pub(super) mtime_seconds: i64,
    #[n(4)]
    pub(super) mtime_nanos: u32,
    #[n(5)]
    pub(super) flags: u32,
    #[n(6)]
    pub(super) project: u32,
    #[cbor(b(7), with = "xattrs")]
    pub(super) xattrs: Cow<'a, [Xattr]>,
}

#[derive(Encode, Decode)]
pub(super) struct ContentBody<'a> {
    #[n(0)]
    pub(super) bytes: u64,
    #[cbor(b(1), with = "minicbor::bytes")]
    pub(super) digest: &'a [u8],
    #[n(2)]
    pub(super) marks: u8,
    #[cbor(b(3), with = "ranges")]
    pub(super) data: Cow<'a, [(u64, u64)]>,
}

pub(super) const MARK_PROVEN: u8 = 1;
pub(super) const MARK_FUZZY: u8 = 2;

#[derive(Encode, Decode)]
pub(super) struct StateBody<'a> {
    #[n(0)]
    pub(super) kind: u8,
    #[b(1)]
    pub(super) meta: MetaBody<'a>,
    #[b(2)]
    pub(super) content: Option<ContentBody<'a>>,
    #[cbor(b(3), with = "minicbor::bytes")]
    pub(super) target: Option<&'a [u8]>,
    #[n(4)]
    pub(super) major: Option<u32>,
    #[n(5)]
    pub(super) minor: Option<u32>,
}

pub(super) const STATE_DIR: u8 = 1;
pub(super) const STATE_FILE: u8 = 2;
pub(super) const STATE_SYMLINK: u8 = 3;
pub(super) const STATE_BLOCK: u8 = 4;
pub(super) const STATE_CHARACTER: u8 = 5;
pub(super) const STATE_FIFO: u8 = 6;
pub(super) const STATE_SOCKET: u8 = 7;

#[derive(Encode, Decode)]
pub(super) struct ForkBody<'a> {
    #[n(0)]
    pub(super) epoch: u32,
    #[n(1)]
    pub(super) sequence: u64,
    #[cbor(b(2), with = "minicbor::bytes")]
    pub(super) head: &'a [u8],
}

#[derive(Encode, Decode)]
pub(super) struct OpenBody<'a> {
    #[cbor(b(0), with = "minicbor::bytes")]
    pub(super) tree: &'a [u8],
    #[cbor(b(1), with = "minicbor::bytes")]
    pub(super) claim: &'a [u8],
    #[b(2)]
    pub(super) parent: Option<ForkBody<'a>>,
}

#[derive(Encode, Decode)]
pub(super) struct CreateBody<'a> {
    #[n(0)]
    pub(super) object: u64,
    #[b(1)]
    pub(super) at: AtBody<'a>,
    #[b(2)]
    pub(super) state: StateBody<'a>,
}

/// Of `Link` and `Unlink`.
#[derive(Encode, Decode)]
pub(super) struct NameBody<'a> {
    #[n(0)]
    pub(super) object: u64,
    #[b(1)]
    pub(super) at: AtBody<'a>,
}

#[derive(Encode, Decode)]
pub(super) struct MoveBody<'a> {
    #[n(0)]
    pub(super) object: u64,
    #[b(1)]
    pub(super) from: AtBody<'a>,
    #[b(2)]
    pub(super) to: AtBody<'a>,
}

#[derive(Encode, Decode)]
pub(super) struct UpdateBody<'a> {
    #[n(0)]
    pub(super) object: u64,
    #[b(1)]
    pub(super) at: Option<AtBody<'a>>,
    #[b(2)]
    pub(super) meta: Option<MetaBody<'a>>,
    #[b(3)]
    pub(super) content: Option<ContentBody<'a>>,
}

#[derive(Encode, Decode)]
pub(super) struct VoidBody {
    #[n(0)]
    pub(super) object: u64,
    #[n(1)]
    pub(super) epoch: u32,
    #[n(2)]
    pub(super) sequence: u64,
}

#[derive(Encode, Decode)]
pub(super) struct NoteBody {
    #[n(0)]
    pub(super) code: u8,
}

#[derive(Encode, Decode)]
pub(super) struct LocalBody<'a> {
    #[b(0)]
    pub(super) object: Option<ObjectBody<'a>>,
    #[n(1)]
    pub(super) content: Option<RefBody>,
}

#[derive(Encode, Decode)]
pub(super) struct ObjectBody<'a> {
    #[n(0)]
    pub(super) ino: u64,
    #[n(1)]
    pub(super) ctime_seconds: i64,
    #[n(2)]
    pub(super) ctime_nanos: u32,
    #[n(3)]
    pub(super) btime_seconds: i64,
    #[n(4)]
    pub(super) btime_nanos: u32,
    #[n(5)]
    pub(super) handle_kind: Option<i32>,
    #[cbor(b(6), with = "minicbor::bytes")]
    pub(super) handle: Option<&'a [u8]>,
}

#[derive(Encode, Decode)]
pub(super) struct RefBody {
    #[n(0)]
    pub(super) segment: u64,
    #[n(1)]
    pub(super) block: u32,
    #[n(2)]
    pub(super) start: u32,
    #[n(3)]
    pub(super) length: u32,
}

/// Names and values in turn.
mod xattrs {
    use super::*;
    use minicbor::{decode::Error as Bad, encode as en};

    #[allow(clippy::ptr_arg)] // What the derived code hands over.
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

    #[allow(clippy::ptr_arg)] // What the derived code hands over.
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
