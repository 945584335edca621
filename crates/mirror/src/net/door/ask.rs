//! What the door asks its supervisor, and what it is told. Both are the same program, so the bytes are nobody else's concern.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::Limits;
use crate::sys::pass;

/// One message.
pub const BYTES_MAX: usize = 128 << 10;

/// From the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum Told {
    /// First of all, with the listening sockets.
    Begin {
        secret: Vec<u8>,
        user: Option<(u32, u32)>,
        limits: Limits,
    },
    /// With one more listening socket. One that nobody wants any more is shut, which both processes see.
    Listen,
    /// Say that you are there.
    There,
    /// It may; the tree is being opened.
    Wait {
        id: u64,
    },
    /// With the connection to who serves the tree.
    Opened {
        id: u64,
        name: String,
    },
    Refused {
        id: u64,
        cause: u8,
        reason: String,
    },
    Names {
        id: u64,
        trees: Vec<String>,
    },
    /// The connection that is offered may stay.
    Kept {
        id: u64,
    },
    /// A follower of this host wants it, and this is its end; without one: nobody will.
    Take {
        id: u64,
    },
    /// Offer this connection to whoever has that key.
    Offer {
        id: u64,
        key: [u8; 32],
    },
    Paired {
        id: u64,
        proof: [u8; 32],
        trees: Vec<String>,
        name: String,
        host: String,
    },
}

impl Told {
    /// Which question this answers.
    pub fn id(&self) -> Option<u64> {
        match self {
            // These begin something.
            Told::Begin { .. } | Told::Listen | Told::There | Told::Offer { .. } => None,
            Told::Wait { id }
            | Told::Opened { id, .. }
            | Told::Refused { id, .. }
            | Told::Names { id, .. }
            | Told::Kept { id }
            | Told::Take { id }
            | Told::Paired { id, .. } => Some(*id),
        }
    }
}

/// From the door. `from` is the peer's address, for people.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    Follow {
        id: u64,
        key: [u8; 32],
        tree: String,
        from: String,
    },
    List {
        id: u64,
        key: [u8; 32],
    },
    Pair {
        id: u64,
        key: [u8; 32],
        from: String,
        token: [u8; 16],
        exported: [u8; 32],
        proof: [u8; 32],
        name: String,
    },
    /// Somebody offers a connection to trees of its own.
    Offer {
        id: u64,
        key: [u8; 32],
        from: String,
    },
    /// The connection that was to be offered is used by a follower there.
    Taken {
        id: u64,
    },
    /// Or it came to nothing.
    Ended {
        id: u64,
        why: String,
    },
    /// What `Opened` brought is not used any more.
    Closed {
        id: u64,
    },
    Log {
        text: String,
    },
    /// The answer to [`Told::There`].
    Here,
}

pub fn send<T: Serialize>(
    to: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > BYTES_MAX {
        return Err(std::io::Error::other(
            "a message to or from the door is too long",
        ));
    }
    Ok(pass::send(to, &bytes, fds)?)
}

/// `None`: the other side is gone.
pub fn receive<T: serde::de::DeserializeOwned>(
    from: impl AsFd,
    buffer: &mut Vec<u8>,
) -> std::io::Result<Option<(T, Vec<OwnedFd>)>> {
    buffer.resize(BYTES_MAX, 0);
    let (n, fds) = pass::receive(from, buffer)?;
    if n == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(buffer.get(..n).unwrap_or_default())?;
    Ok(Some((message, fds)))
}
