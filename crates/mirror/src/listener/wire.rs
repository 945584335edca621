//! What the listener and a tree's process say to each other, over a socket that keeps the bounds of messages. Both are
//! this very program, started by one service: another version on the other end is refused and not understood.

use crate::sys::pass;

/// Changes whenever a message does.
const VERSION: u8 = 1;
/// Of any message: a record of the kernel has less than a tenth of it.
pub const BYTES_MAX: usize = 32 << 10;
/// Of a tree; more crossed mounts than that have a mark of their own.
pub const ROOTS_MAX: usize = pass::DESCRIPTORS_MAX;
/// Of a reason.
const TEXT_BYTES_MAX: usize = 1024;

/// From a tree.
#[derive(Debug, PartialEq, Eq)]
pub enum Ask {
    /// With its roots as descriptors.
    Begin,
    /// What the kernel has queued until now is to come before the answer.
    Sync(u64),
}

/// To a tree.
#[derive(Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// From now on its events come.
    Marked,
    Refused(&'a str),
    /// As the kernel wrote them. `entered`: what they renamed may have come from where nobody listened for this tree.
    Records {
        entered: bool,
        bytes: &'a [u8],
    },
    /// Records were dropped.
    Lost,
    /// All before this sync was sent.
    Synced(u64),
}

impl Ask {
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Ask::Begin => vec![1, VERSION],
            Ask::Sync(n) => [&[2][..], &n.to_le_bytes()].concat(),
        }
    }

    pub fn parse(bytes: &[u8]) -> Option<Ask> {
        match bytes {
            [1, VERSION] => Some(Ask::Begin),
            [2, n @ ..] => Some(Ask::Sync(u64::from_le_bytes(n.try_into().ok()?))),
            _ => None,
        }
    }
}

/// The first byte of records, so that a message can be filled up.
pub const fn records_head(entered: bool) -> u8 {
    if entered { 4 } else { 3 }
}

impl<'a> Told<'a> {
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Told::Marked => vec![1],
            Told::Refused(text) => {
                let text = text.as_bytes();
                [
                    &[2][..],
                    text.get(..TEXT_BYTES_MAX.min(text.len()))
                        .unwrap_or_default(),
                ]
                .concat()
            }
            Told::Records { entered, bytes } => [&[records_head(*entered)][..], bytes].concat(),
            Told::Lost => vec![5],
            Told::Synced(n) => [&[6][..], &n.to_le_bytes()].concat(),
        }
    }

    pub fn parse(bytes: &'a [u8]) -> Option<Told<'a>> {
        Some(match bytes {
            [1] => Told::Marked,
            [2, text @ ..] => Told::Refused(std::str::from_utf8(text).ok()?),
            [head @ (3 | 4), bytes @ ..] => Told::Records {
                entered: *head == records_head(true),
                bytes,
            },
            [5] => Told::Lost,
            [6, n @ ..] => Told::Synced(u64::from_le_bytes(n.try_into().ok()?)),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        for ask in [Ask::Begin, Ask::Sync(7)] {
            assert_eq!(Ask::parse(&ask.to_bytes()), Some(ask));
        }
        let records = |entered| Told::Records {
            entered,
            bytes: b"xy",
        };
        for told in [
            Told::Marked,
            Told::Refused("no"),
            records(false),
            records(true),
            Told::Lost,
            Told::Synced(u64::MAX),
        ] {
            assert_eq!(Told::parse(&told.to_bytes()), Some(told));
        }
        for bad in [&b""[..], b"\x01\x63", b"\x02\x01", b"\x09"] {
            assert_eq!(Ask::parse(bad), None);
        }
        for bad in [&b""[..], b"\x01\x01", b"\x06\x01", b"\x02\xff", b"\x09"] {
            assert_eq!(Told::parse(bad), None);
        }
    }
}
