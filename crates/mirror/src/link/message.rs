//! What the two sides say to each other. The kind is in the frame, the body is a CBOR array of the fields below:
//! fields are only ever added at the end, and a body that lacks a field of a later version has its empty value.
//!
//! F: said by the follower, W: by the worker.

use minicbor::{Decode, Encode};
use mirror_core::{Digest, Position};

use super::frame::{self, BODY_BYTES_MAX, FrameError, Head};
use crate::log::End;

/// The protocol of this program, and the oldest one it still speaks.
pub const PROTOCOL: u32 = 1;
pub const PROTOCOL_MIN: u32 = 1;
/// Bytes of records in one `Records`, and of a content in one `Piece`.
pub const PIECE_BYTES: usize = 256 << 10;
/// Contents gathered into one `Contents` before it is sent; one content more may be in it.
pub const CONTENTS_BYTES: usize = 256 << 10;
/// Contents that may travel before the records that need them, all together.
pub const AHEAD_BYTES_MAX: u64 = 256 << 20;
/// A content up to here travels before its record; a larger one is asked for.
pub const SMALL_BYTES_MAX: u64 = 256 << 10;

/// In `features`: the tree can be sent, and taken, as [`Seed`].
pub const FEATURE_SEED: u64 = 1;
/// Likewise: as [`SeedList`] first, of which only what is [`SeedWant`]ed travels.
pub const FEATURE_LIST: u64 = 16;
/// Groups in one [`SeedList`], and in all of them.
pub const LIST_GROUPS: usize = 8 << 10;
pub const LIST_GROUPS_MAX: usize = 8 << 20;
/// [`Taken`] is said, and heeded.
pub const FEATURE_TAKEN: u64 = 2;
/// [`Request::from`] is understood.
pub const FEATURE_FROM: u64 = 8;
/// [`Packed`] is sent, and taken; [`Came`] and [`Pace`] are said, and heeded.
pub const FEATURE_PACKED: u64 = 4;
/// W: no [`Order`] is taken over this connection.
pub const FEATURE_NO_ORDERS: u64 = 32;

/// A position and the head hash after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct At {
    #[n(0)]
    pub epoch: u32,
    #[n(1)]
    pub sequence: u64,
    #[cbor(n(2), with = "minicbor::bytes")]
    pub head: [u8; 32],
}

impl From<End> for At {
    fn from(end: End) -> At {
        At {
            epoch: end.position.epoch,
            sequence: end.position.sequence,
            head: end.head.0,
        }
    }
}

impl From<At> for End {
    fn from(at: At) -> End {
        End {
            position: Position {
                epoch: at.epoch,
                sequence: at.sequence,
            },
            head: Digest(at.head),
        }
    }
}

/// A position alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Place {
    #[n(0)]
    pub epoch: u32,
    #[n(1)]
    pub sequence: u64,
}

impl From<Position> for Place {
    fn from(position: Position) -> Place {
        Place {
            epoch: position.epoch,
            sequence: position.sequence,
        }
    }
}

impl From<Place> for Position {
    fn from(place: Place) -> Position {
        Position {
            epoch: place.epoch,
            sequence: place.sequence,
        }
    }
}

/// F: the first thing that is said.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Newest and oldest protocol it speaks.
    #[n(0)]
    pub protocol: u32,
    #[n(1)]
    pub protocol_min: u32,
    /// Bits ([`FEATURE_SEED`]); unknown ones are passed over.
    #[n(2)]
    pub features: u64,
    /// `follower`; others are refused.
    #[n(3)]
    pub role: String,
    /// Name and version of the program, for people.
    #[n(4)]
    pub program: String,
    /// The tree as it was typed.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub tree: Vec<u8>,
    /// Silence after which it takes the worker for dead, and wants to be taken for dead itself.
    #[n(6)]
    pub timeout_ms: u64,
    /// gitignore patterns.
    #[n(7)]
    pub ignore: Vec<String>,
    /// `fanotify`, `inotify`, `scan`, or empty: the best.
    #[n(8)]
    pub detector: String,
    /// The replica's name, for the worker's `status`.
    #[n(9)]
    pub name: String,
    /// Mounts below the tree that belong to it, relative.
    #[n(10)]
    pub cross: Vec<minicbor::bytes::ByteVec>,
    /// The follower's id in chains: 16 bytes, or nothing.
    #[cbor(n(11), with = "minicbor::bytes", default)]
    pub replica: Vec<u8>,
}

/// W: the answer to `Hello`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    /// What both speak from here on.
    #[n(0)]
    pub protocol: u32,
    #[n(1)]
    pub features: u64,
    #[n(2)]
    pub program: String,
    #[cbor(n(3), with = "minicbor::bytes")]
    pub tree: [u8; 16],
    /// Of the served tree, canonical.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub path: Vec<u8>,
    #[n(5)]
    pub detector: String,
    #[n(6)]
    pub why: String,
    /// The first record that is still there, and the durable end.
    #[n(7)]
    pub first: Option<Place>,
    #[n(8)]
    pub end: Option<At>,
    #[n(9)]
    pub host: String,
    /// Ids (16 bytes each) of the hosts that the tree comes through, the primary first, the one that speaks last.
    #[cbor(n(10), default)]
    pub chain: Vec<minicbor::bytes::ByteVec>,
}

/// Why somebody is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// What was asked for can't be: no such tree, another protocol.
    Usage,
    /// It may not.
    Forbidden,
    /// Not now.
    Failed,
    /// The log does not reach back to where the follower stands.
    Pruned,
    /// The follower's last record is not in this log.
    Forked,
}

impl Cause {
    pub fn code(self) -> u8 {
        match self {
            Cause::Usage => 1,
            Cause::Forbidden => 2,
            Cause::Failed => 3,
            Cause::Pruned => 4,
            Cause::Forked => 5,
        }
    }
    /// What is not known is a plain failure.
    pub fn of(code: u8) -> Cause {
        match code {
            1 => Cause::Usage,
            2 => Cause::Forbidden,
            4 => Cause::Pruned,
            5 => Cause::Forked,
            _ => Cause::Failed,
        }
    }
}

/// W: no, and why, in words. Of `Pruned` and `Forked` the follower may say `Follow` again, else this is the end.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Refused {
    #[n(0)]
    pub cause: u8,
    #[n(1)]
    pub reason: String,
}

/// F: send me what comes after this (`None`: all).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Follow {
    #[n(0)]
    pub after: Option<At>,
    /// Bytes a second of records and contents; 0: no limit.
    #[n(1)]
    pub bwlimit: u64,
    /// No contents, please.
    #[n(2)]
    pub records_only: bool,
    /// Much of the tree is known here: a list of it first, please.
    #[cbor(n(3), default)]
    pub listed: bool,
    /// It makes one copy: no barrier waits for it once it is gone.
    #[cbor(n(4), default)]
    pub once: bool,
}

/// One small content.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Block {
    #[cbor(n(0), with = "minicbor::bytes")]
    pub digest: [u8; 32],
    /// Of a file with holes: the bytes of its data ranges, in order.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

/// W: contents of records that follow. `kept`: the worker keeps them beside its log, and the follower should.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Contents {
    #[n(0)]
    pub kept: bool,
    #[n(1)]
    pub blocks: Vec<Block>,
}

/// W: frames of the log as `Group::to_wire` gives them, cut anywhere. `whole`: with this piece, whole groups.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Records {
    #[n(0)]
    pub whole: bool,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

/// W: in place of a log that does not reach back to its beginning: records that make the tree as of [`SeedEnd`], in
/// frames as in `Records`, chained from nothing. Each group is whole at a piece's end where `whole` says so.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Seed {
    #[n(0)]
    pub whole: bool,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

/// W: that was the tree, as of here. The follower makes it, then says `Follow` after this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct SeedEnd {
    #[n(0)]
    pub at: At,
}

/// W: the groups that [`Seed`] would send, each by the first 16 bytes of blake3 of its frames, chained from nothing, each
/// group for itself. The tree is as of `at`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SeedList {
    #[n(0)]
    pub at: At,
    #[n(1)]
    pub last: bool,
    #[cbor(n(2), with = "minicbor::bytes")]
    pub hashes: Vec<u8>,
}

/// F: of that list it needs these groups, in their order; after the last ones come [`Seed`] and [`SeedEnd`] as ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct SeedWant {
    #[n(0)]
    pub from: u64,
    #[n(1)]
    pub count: u64,
    #[n(2)]
    pub last: bool,
}

/// F: how far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Ack {
    #[n(0)]
    pub received: Option<Place>,
    #[n(1)]
    pub durable: Option<Place>,
    #[n(2)]
    pub applied: Option<Place>,
    /// Paths that could not be applied.
    #[n(3)]
    pub failed: Option<u64>,
    /// Why nothing is applied, if it is on hold.
    #[n(4)]
    pub held: Option<String>,
}

/// F: send me this content of this object.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Request {
    #[n(0)]
    pub id: u64,
    #[n(1)]
    pub object: u64,
    #[cbor(n(2), with = "minicbor::bytes")]
    pub digest: [u8; 32],
    /// So many bytes of it are there already: they are left out. Only if both have [`FEATURE_FROM`].
    #[n(3)]
    pub from: Option<u64>,
}

/// W: frames that carry much, packed ([`super::packed`]).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Packed {
    /// Bytes of the frames in it.
    #[n(0)]
    pub raw: u64,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

/// F: what came since the connection began, so that a slow link is told from a slow follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Came {
    #[n(0)]
    pub bytes: u64,
    /// Microseconds that it waited for the rest of a frame that had begun.
    #[n(1)]
    pub waited_us: u64,
}

/// F: so fast from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Pace {
    /// As in [`Follow`].
    #[n(0)]
    pub bwlimit: u64,
    /// Packed as the worker finds best (0), never (1), always (2). What is not known is 0.
    #[n(1)]
    pub packing: u8,
}

/// F: bytes of pieces that were taken since the connection began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Taken {
    #[n(0)]
    pub bytes: u64,
}

/// W: the next bytes of a requested content.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Piece {
    #[n(0)]
    pub id: u64,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

/// W: no more pieces come. Only with `end` 0 they are the content.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PieceEnd {
    #[n(0)]
    pub id: u64,
    /// 0: complete; 1: void, can't be had any more; 2: not now.
    #[n(1)]
    pub end: u8,
    #[n(2)]
    pub reason: String,
}

/// F: no more pieces of this are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Cancel {
    #[n(0)]
    pub id: u64,
}

/// F: tell me when all that happened before this is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Barrier {
    #[n(0)]
    pub id: u64,
}

/// W: it is, up to here. `report` is JSON of `report::BarrierReport`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct BarrierDone {
    #[n(0)]
    pub id: u64,
    #[n(1)]
    pub position: Option<Place>,
    #[n(2)]
    pub report: String,
}

/// W: how capture is doing, when it changes. `json` is of `report::Report`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Report {
    #[n(0)]
    pub json: String,
}

/// Both: I am here. From the worker with the log's durable end; the time is in ns since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Heartbeat {
    #[n(0)]
    pub time_ns: u64,
    #[n(1)]
    pub end: Option<At>,
}

/// F: an order to capture: 1 look at everything, 2 let a hold go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Order {
    #[n(0)]
    pub what: u8,
}

impl Order {
    pub const RESCAN: u8 = 1;
    pub const RELEASE: u8 = 2;
}

/// F: read the tree again and compare it with your index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Verify {
    #[n(0)]
    pub id: u64,
    /// Objects that differ are looked at again, so that records come.
    #[n(1)]
    pub repair: bool,
}

/// W: one difference.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct VerifyFound {
    #[n(0)]
    pub id: u64,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub path: Vec<u8>,
    #[n(2)]
    pub what: String,
}

/// W: all was compared, unless `error` says something.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct VerifyDone {
    #[n(0)]
    pub id: u64,
    #[n(1)]
    pub entries: u64,
    #[n(2)]
    pub bytes: u64,
    #[n(3)]
    pub different: u64,
    #[n(4)]
    pub unknown: u64,
    #[n(5)]
    pub error: String,
}

/// To a door, in place of `Hello`: trust the key of this connection, for I know a token's secret.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Pair {
    /// Which token.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub token: [u8; 16],
    #[cbor(n(1), with = "minicbor::bytes")]
    pub proof: [u8; 32],
    /// What the one who asks would like to be called: its host.
    #[n(2)]
    pub name: String,
    #[n(3)]
    pub program: String,
}

/// From a door: done.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Paired {
    /// The door knows the secret, too.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub proof: [u8; 32],
    /// The trees that may be followed; `*`: all.
    #[n(1)]
    pub trees: Vec<String>,
    /// What the one who asked is called there.
    #[n(2)]
    pub name: String,
    #[n(3)]
    pub program: String,
    #[n(4)]
    pub host: String,
}

/// To a door, in place of `Hello`: which trees may I follow?
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct List {
    #[n(0)]
    pub program: String,
}

/// To a door, in place of `Hello`: keep this connection until somebody on your side wants to follow a tree of mine. Then it
/// says `Hello`, and all goes on as if it had dialed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Offer {
    #[n(0)]
    pub program: String,
    #[n(1)]
    pub host: String,
}

/// From a door: these.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Names {
    #[n(0)]
    pub trees: Vec<String>,
}

/// Both: this is the end of the connection.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Bye {
    #[n(0)]
    pub reason: String,
}

/// Why a frame is no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a message of kind {kind} can't be understood: {what}")]
    Bad { kind: u8, what: String },
    #[error("a message of kind {0} came, which a newer version knows and this one must")]
    Unknown(u8),
}

macro_rules! messages {
    ($($kind:literal $must:literal $name:ident)*) => {
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Message { $($name($name),)* }

        impl Message {
            pub fn kind(&self) -> u8 {
                match self { $(Message::$name(_) => $kind,)* }
            }
            fn must_understand(&self) -> bool {
                match self { $(Message::$name(_) => $must,)* }
            }
            fn body(&self, out: &mut Vec<u8>) {
                let done = match self { $(Message::$name(body) => minicbor::encode(body, out),)* };
                assert!(done.is_ok(), "writing into memory can't fail");
            }
            pub(super) fn decode(head: Head, body: &[u8]) -> Result<Option<Message>, MessageError> {
                match head.kind {
                    $($kind => match minicbor::decode(body) {
                        Ok(body) => Ok(Some(Message::$name(body))),
                        Err(e) => Err(MessageError::Bad { kind: $kind, what: e.to_string() }),
                    },)*
                    kind if head.must_understand => Err(MessageError::Unknown(kind)),
                    _ => Ok(None),
                }
            }
        }

        $(impl From<$name> for Message {
            fn from(body: $name) -> Message { Message::$name(body) }
        })*
    };
}

messages! {
    1 true Hello
    2 true Welcome
    3 true Refused
    4 true Follow
    5 true Contents
    6 true Records
    7 false Ack
    8 true Request
    9 true Piece
    10 true PieceEnd
    11 false Cancel
    12 true Barrier
    13 true BarrierDone
    14 false Report
    15 false Heartbeat
    16 true Order
    17 true Verify
    18 true VerifyFound
    19 true VerifyDone
    20 true Bye
    21 true Seed
    22 true SeedEnd
    27 true SeedList
    28 true SeedWant
    23 true Pair
    24 true Paired
    25 true List
    26 true Names
    29 true Offer
    30 true Packed
    31 false Taken
    32 false Came
    33 true Pace
}

/// Messages that carry much, and that nobody waits for behind others.
pub fn may_be_packed(kind: u8) -> bool {
    matches!(kind, 5 | 6 | 9 | 21 | 27)
}

impl Message {
    /// Appends the message's frame. What would be longer than a frame is left out by whoever makes the message.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), MessageError> {
        let mut body = Vec::new();
        self.body(&mut body);
        if body.len() > BODY_BYTES_MAX {
            return Err(MessageError::Bad {
                kind: self.kind(),
                what: format!("{} bytes are too many", body.len()),
            });
        }
        frame::put(self.kind(), self.must_understand(), &body, out);
        Ok(())
    }

    /// The message's frame.
    pub fn encoded(&self) -> Result<Vec<u8>, MessageError> {
        let mut frame = Vec::new();
        self.encode(&mut frame)?;
        Ok(frame)
    }

    /// The next message; kinds that are unknown and may be passed over are.
    pub fn read(
        from: &mut impl std::io::Read,
        body: &mut Vec<u8>,
    ) -> Result<Message, MessageError> {
        Message::read_up_to(from, body, BODY_BYTES_MAX)
    }

    /// Likewise, when a body of more than `max` bytes can't be meant.
    pub fn read_up_to(
        from: &mut impl std::io::Read,
        body: &mut Vec<u8>,
        max: usize,
    ) -> Result<Message, MessageError> {
        loop {
            let head = frame::read_up_to(from, body, max)?;
            if let Some(message) = Message::decode(head, body)? {
                return Ok(message);
            }
        }
    }
}
