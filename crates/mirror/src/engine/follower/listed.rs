//! A tree that comes whole to somebody who knows much of it: the worker lists its groups by their hashes, those that our own
//! rows make, too, are taken from there, and only the others travel.
//!
//! What comes is hostile: groups that are not the listed ones are refused, and all of it is compared with the copy anyway.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::engine::seed::{self, Chained, GroupHash, Owed, Spooled};
use crate::index::{self, Index};
use crate::link::LinkError;
use crate::link::Outgoing;
use crate::link::message::{self as say, LIST_GROUPS_MAX};
use crate::link::serve::WANTS_MAX;
use crate::log::End;

const HASH_BYTES: usize = size_of::<GroupHash>();

/// What was known of the copy before it began anew.
pub struct Known {
    rows: Index,
    state_dir: PathBuf,
}

impl Known {
    /// `None`: the rows can't be used, and the tree comes whole.
    pub fn open(rows: &Path, state_dir: &Path) -> Option<Known> {
        if !rows.is_file() {
            return None;
        }
        let (rows, opened) = Index::open(rows, index::Options::default()).ok()?;
        (!opened.created && rows.mark().is_some()).then(|| Known {
            rows,
            state_dir: state_dir.to_path_buf(),
        })
    }
}

/// A list that is coming, or has come.
#[derive(Default)]
pub struct Listed {
    at: Option<End>,
    hashes: Vec<GroupHash>,
    ours: Option<Ours>,
    /// The group that comes next, of all of them.
    next: usize,
}

struct Ours {
    spooled: Spooled,
    by_hash: HashMap<GroupHash, usize>,
}

impl Ours {
    fn find(&self, hash: &GroupHash) -> Option<usize> {
        self.by_hash.get(hash).copied()
    }
}

/// How much of a list was not known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Differs {
    pub groups: u64,
    pub of: u64,
}

impl std::fmt::Display for Differs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Differs { groups, of } = self;
        write!(
            f,
            "{groups} of {of} parts of the list of the tree are not known here, and come from the source"
        )
    }
}

impl Listed {
    /// Takes a part of the list; with the last one says what of it is wanted. `Ok(None)`: more comes.
    pub fn take(
        &mut self,
        list: &say::SeedList,
        known: &Known,
        tree: [u8; 16],
        outgoing: &Outgoing,
    ) -> Result<Option<Differs>, LinkError> {
        let nonsense = |what: &str| Err(LinkError::Nonsense(what.into()));
        if self.ours.is_some() {
            return nonsense("a list goes on after its end");
        }
        if *self.at.get_or_insert(list.at.into()) != list.at.into() {
            return nonsense("a list of two positions");
        }
        let (hashes, rest) = list.hashes.as_chunks::<HASH_BYTES>();
        if !rest.is_empty() || self.hashes.len() + hashes.len() > LIST_GROUPS_MAX {
            return nonsense("a list that can't be");
        }
        self.hashes.extend_from_slice(hashes);
        if !list.last {
            return Ok(None);
        }
        let of = (tree, list.at.into());
        let spooled = seed::spool_rows(
            &known.rows,
            &Owed::new(),
            of,
            &known.state_dir,
            Chained::Apart,
        );
        // Rows that can't be read are worth nothing: then all of it is wanted.
        let ours = spooled.map_or(None, |spooled| {
            let hashes = spooled.groups.iter().map(|group| group.hash);
            let by_hash = hashes.enumerate().map(|(n, hash)| (hash, n)).collect();
            Some(Ours { spooled, by_hash })
        });
        let ranges = ranges(&self.hashes, |hash| {
            ours.as_ref().is_some_and(|ours| ours.find(hash).is_some())
        });
        self.ours = ours;
        let differs = Differs {
            groups: ranges.iter().map(|(_, count)| count).sum(),
            of: self.hashes.len() as u64,
        };
        for (n, (from, count)) in ranges.iter().enumerate() {
            outgoing.send(say::SeedWant {
                from: *from,
                count: *count,
                last: n + 1 == ranges.len(),
            })?;
        }
        Ok(Some(differs))
    }

    /// A group came: writes what is known before it, then the group itself.
    pub fn put(&mut self, group: &[u8], to: &mut impl Write) -> Result<(), PutError> {
        self.put_known(to)?;
        match self.hashes.get(self.next) {
            Some(wanted) if *wanted == seed::hash(group) => {}
            _ => return Err(PutError::NotListed),
        }
        self.next += 1;
        Ok(seed::put_group(to, group)?)
    }

    /// That was all: writes the rest.
    pub fn finish(&mut self, at: End, to: &mut impl Write) -> Result<(), PutError> {
        self.put_known(to)?;
        if self.next != self.hashes.len() || self.at != Some(at) {
            return Err(PutError::NotListed);
        }
        Ok(())
    }

    fn put_known(&mut self, to: &mut impl Write) -> Result<(), PutError> {
        let Some(ours) = &self.ours else {
            return Ok(());
        };
        while let Some(n) = self.hashes.get(self.next).and_then(|hash| ours.find(hash)) {
            let group = ours.spooled.group(n).map_err(std::io::Error::other)?;
            seed::put_group(to, &group)?;
            self.next += 1;
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PutError {
    #[error("groups came that are not the listed ones")]
    NotListed,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// From and how many: what is not known, in its order. At least one, which may be of nothing.
fn ranges(hashes: &[GroupHash], known: impl Fn(&GroupHash) -> bool) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (n, hash) in hashes.iter().enumerate() {
        if known(hash) {
            continue;
        }
        let n = n as u64;
        match ranges.last_mut() {
            Some((from, count)) if *from + *count == n => *count += 1,
            _ => ranges.push((n, 1)),
        }
    }
    match ranges.len() {
        0 => vec![(hashes.len() as u64, 0)],
        many if many > WANTS_MAX / 2 => vec![(0, hashes.len() as u64)],
        _ => ranges,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_asked_for_in_ranges() {
        let hash = |n: u8| [n; HASH_BYTES];
        let hashes: Vec<GroupHash> = (0..10).map(hash).collect();
        let want = |unknown: &[u8]| ranges(&hashes, |hash| !unknown.contains(&hash[0]));
        assert_eq!(want(&[]), [(10, 0)]);
        assert_eq!(want(&[0, 1, 5, 9]), [(0, 2), (5, 1), (9, 1)]);
        assert_eq!(want(&(0..10).collect::<Vec<u8>>()), [(0, 10)]);
        let many: Vec<GroupHash> = (0..2 * WANTS_MAX as u64)
            .map(|n| {
                let mut hash = [0; HASH_BYTES];
                hash[..8].copy_from_slice(&n.to_le_bytes());
                hash
            })
            .collect();
        assert_eq!(
            ranges(&many, |hash| hash[0] % 2 == 0),
            [(0, many.len() as u64)]
        );
    }
}
