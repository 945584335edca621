//! Who a host is in a chain of mirrors, and through whom its tree comes: `replica.json` in the state directory.
//!
//! Each state directory has a random id. A host that serves says the ids of all hosts that its tree comes through, the
//! primary's first, its own last; a follower that finds its own id there would follow itself, and does not. What was last
//! known is kept, so that a host that serves from its own log while it is cut off still says the truth.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::disk::{RealDisk, read_file, replace_file};
use crate::engine::session::random_id;
use crate::sync::lock;

pub type ReplicaId = [u8; 16];

const FILE: &str = "replica.json";
const FILE_BYTES_MAX: usize = 64 << 10;
/// Hosts in a chain, the primary and ourselves included.
pub const CHAIN_MAX: usize = 16;

#[derive(Serialize, Deserialize)]
struct Written {
    id: String,
    /// Before us, the primary first. `None`: not known yet.
    upstream: Option<Vec<String>>,
}

/// Why a chain can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error(
        "it gets its tree from this mirror{}: a chain of mirrors can't be a loop",
        match .hosts_between { 0 => String::new(), n => format!(", through {n} more") }
    )]
    Loop { hosts_between: usize },
    #[error("its tree came through {0} hosts already, and {CHAIN_MAX} in a chain are the most")]
    TooLong(usize),
    #[error("it names a host in a way this program does not know")]
    Strange,
}

pub struct Chain {
    state_dir: PathBuf,
    own: ReplicaId,
    known: Mutex<Known>,
}

struct Known {
    upstream: Option<Vec<ReplicaId>>,
    /// As it is on disk. A full disk keeps nobody from following.
    written: bool,
}

impl Chain {
    /// What was known; a new id where there is none, or where it can't be read.
    pub fn open(state_dir: &Path) -> std::io::Result<Chain> {
        let disk = RealDisk::open(state_dir)?;
        let known = match read_file(&disk, FILE, FILE_BYTES_MAX) {
            Ok(bytes) => parse(&bytes),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        let (own, upstream, written) = match known {
            Some((own, upstream)) => (own, upstream, true),
            None => (random_id()?, None, false),
        };
        let written = written || write(state_dir, &own, None);
        Ok(Chain {
            state_dir: state_dir.to_path_buf(),
            own,
            known: Mutex::new(Known { upstream, written }),
        })
    }

    pub fn own(&self) -> ReplicaId {
        self.own
    }

    /// All of it, ourselves last; `None` before anything was heard from upstream.
    pub fn whole(&self) -> Option<Vec<ReplicaId>> {
        let known = lock(&self.known);
        let mut whole = known.upstream.clone()?;
        whole.push(self.own);
        Some(whole)
    }

    /// What the host upstream says. True: it is another chain than was known.
    pub fn heard(&self, said: &[impl AsRef<[u8]>]) -> Result<bool, ChainError> {
        let said: Option<Vec<ReplicaId>> =
            said.iter().map(|id| id.as_ref().try_into().ok()).collect();
        let said = said.ok_or(ChainError::Strange)?;
        if let Some(at) = said.iter().position(|id| *id == self.own) {
            let hosts_between = said.len().saturating_sub(at + 2);
            return Err(ChainError::Loop { hosts_between });
        }
        if said.len() >= CHAIN_MAX {
            return Err(ChainError::TooLong(said.len()));
        }
        let mut known = lock(&self.known);
        let same = known.upstream.as_ref() == Some(&said);
        if !same || !known.written {
            known.written = write(&self.state_dir, &self.own, Some(&said));
        }
        known.upstream = Some(said);
        Ok(!same)
    }
}

fn write(state_dir: &Path, own: &ReplicaId, upstream: Option<&[ReplicaId]>) -> bool {
    let written = Written {
        id: hex(own),
        upstream: upstream.map(|ids| ids.iter().map(hex).collect()),
    };
    let put = || -> std::io::Result<()> {
        let bytes = serde_json::to_vec(&written)?;
        replace_file(&RealDisk::open(state_dir)?, FILE, &bytes)
    };
    put().is_ok()
}

/// The ids as they travel.
pub fn to_wire(chain: Vec<ReplicaId>) -> Vec<minicbor::bytes::ByteVec> {
    chain.into_iter().map(|id| id.to_vec().into()).collect()
}

fn parse(bytes: &[u8]) -> Option<(ReplicaId, Option<Vec<ReplicaId>>)> {
    let written: Written = serde_json::from_slice(bytes).ok()?;
    let upstream = match written.upstream {
        Some(ids) => Some(ids.iter().map(|id| unhex(id)).collect::<Option<Vec<_>>>()?),
        None => None,
    };
    Some((unhex(&written.id)?, upstream))
}

fn hex(id: &ReplicaId) -> String {
    format!("{:032x}", u128::from_be_bytes(*id))
}

fn unhex(text: &str) -> Option<ReplicaId> {
    let plain = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let number = plain.then(|| u128::from_str_radix(text, 16).ok())??;
    Some(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(ids: &[ReplicaId]) -> Vec<Vec<u8>> {
        ids.iter().map(|id| id.to_vec()).collect()
    }

    #[test]
    fn what_was_known_is_known_again() {
        let dir = tempfile::tempdir().unwrap();
        let chain = Chain::open(dir.path()).unwrap();
        assert_eq!(chain.whole(), None);
        let (a, b) = ([1; 16], [2; 16]);
        assert_eq!(chain.heard(&said(&[a, b])), Ok(true));
        assert_eq!(chain.heard(&said(&[a, b])), Ok(false));
        let own = chain.own();
        drop(chain);
        let again = Chain::open(dir.path()).unwrap();
        assert_eq!(again.whole(), Some(vec![a, b, own]));
        assert_eq!(again.heard(&said(&[a])), Ok(true));
        assert_eq!(again.whole(), Some(vec![a, own]));
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let lost = Chain::open(dir.path()).unwrap();
        assert!(lost.whole().is_none() && lost.own() != own);
    }

    #[test]
    fn loops_and_endless_chains_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let chain = Chain::open(dir.path()).unwrap();
        let (a, own) = ([1; 16], chain.own());
        let between = |hosts_between| Err(ChainError::Loop { hosts_between });
        assert_eq!(chain.heard(&said(&[a, own])), between(0));
        assert_eq!(chain.heard(&said(&[a, own, [3; 16]])), between(0));
        assert_eq!(chain.heard(&said(&[a, own, [3; 16], [4; 16]])), between(1));
        let long: Vec<ReplicaId> = (0..CHAIN_MAX as u8).map(|n| [n; 16]).collect();
        assert_eq!(chain.heard(&said(&long)), Err(ChainError::TooLong(16)));
        assert_eq!(chain.heard(&[vec![1u8; 3]]), Err(ChainError::Strange));
        assert_eq!(chain.whole(), None);
        assert_eq!(chain.heard(&said(&long[1..])), Ok(true));
    }
}
