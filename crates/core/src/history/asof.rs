//! The tree as of a position: the present, corrected by the rows that came after.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::rows::{Moment, Then, Unkept};
use crate::plan::same_inode_kind;
use crate::rows::Rows;
use crate::types::*;

/// Of a name: what the first row after a moment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameWas {
    pub moment: Moment,
    pub before: Option<ObjectId>,
}

/// Of an object: what the first row after a moment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectWas {
    pub moment: Moment,
    pub state: State,
    pub then: Then,
}

/// Rows of the past, by what they are about.
pub trait Past {
    type Error;
    /// The first row of the name after `moment`.
    fn name_after(&self, at: &At, moment: Moment) -> Result<Option<NameWas>, Self::Error>;
    /// For each name of the directory that has rows after `moment` the first of them, in order of names, after `after`, at
    /// most `max`.
    fn names_after(
        &self,
        dir: ObjectId,
        moment: Moment,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, NameWas)>, Self::Error>;
    /// The first row of the object's state after `moment`.
    fn object_after(&self, id: ObjectId, moment: Moment) -> Result<Option<ObjectWas>, Self::Error>;
    /// Whether the bytes that the object had until `moment` are kept, or why not.
    fn kept(&self, id: ObjectId, until: Moment) -> Result<Result<(), Unkept>, Self::Error>;
}

/// Where the bytes of a version are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bytes {
    /// It is no file, or one that stores nothing: what is known of it is all.
    Nothing,
    /// In the copy, under any of the object's present names.
    Live,
    /// Kept when they were replaced here.
    Kept(Moment),
    /// Kept nowhere.
    Unkept(Moment, Unkept),
}

/// A tree as of `moment`, of the rows of the present and those of the past.
pub struct AsOf<'a, R, P> {
    pub rows: &'a R,
    pub past: &'a P,
    pub moment: Moment,
}

/// Either side failed.
#[derive(Debug)]
pub enum AsOfError<A, B> {
    Rows(A),
    Past(B),
}

type Answer<T, R, P> = Result<T, AsOfError<<R as Rows>::Error, <P as Past>::Error>>;

impl<R: Rows, P: Past> AsOf<'_, R, P> {
    /// What a name stood for.
    pub fn name(&self, at: &At) -> Answer<Option<ObjectId>, R, P> {
        let was = self.past.name_after(at, self.moment);
        match was.map_err(AsOfError::Past)? {
            Some(was) => Ok(was.before),
            None => self.rows.name(at).map_err(AsOfError::Rows),
        }
    }

    /// In what state an object was that had a name then.
    pub fn state(&self, id: ObjectId) -> Answer<Option<State>, R, P> {
        let was = self.past.object_after(id, self.moment);
        match was.map_err(AsOfError::Past)? {
            Some(was) => Ok(Some(was.state)),
            None => {
                let row = self.rows.object(id).map_err(AsOfError::Rows)?;
                Ok(row.map(|row| row.state))
            }
        }
    }

    /// Names in a directory in byte order, after `after`, about `max` of them; the name to go on after, unless that was all.
    pub fn children(
        &self,
        dir: ObjectId,
        after: Option<&Name>,
        max: usize,
    ) -> Answer<(Vec<(Name, ObjectId)>, Option<Name>), R, P> {
        let now = self.rows.children(dir, after, max);
        let now = now.map_err(AsOfError::Rows)?;
        let was = self.past.names_after(dir, self.moment, after, max);
        let was = was.map_err(AsOfError::Past)?;
        let last = |full: bool, name: Option<&Name>| if full { name.cloned() } else { None };
        let now_end = last(now.len() >= max, now.last().map(|(name, _)| name));
        let was_end = last(was.len() >= max, was.last().map(|(name, _)| name));
        let end = match (now_end, was_end) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let within = |name: &Name| end.as_ref().is_none_or(|end| name <= end);
        let mut found: BTreeMap<Name, Option<ObjectId>> = now
            .into_iter()
            .filter(|(name, _)| within(name))
            .map(|(name, id)| (name, Some(id)))
            .collect();
        for (name, was) in was {
            if within(&name) {
                found.insert(name, was.before);
            }
        }
        let found = found.into_iter();
        let found = found.filter_map(|(name, id)| id.map(|id| (name, id)));
        Ok((found.collect(), end))
    }

    /// Where the bytes are that an object had.
    pub fn bytes(&self, id: ObjectId) -> Answer<Option<Bytes>, R, P> {
        let Some(state) = self.state(id)? else {
            return Ok(None);
        };
        if state
            .kind
            .content()
            .is_none_or(|content| content.stored_bytes() == 0)
        {
            return Ok(Some(Bytes::Nothing));
        }
        let mut from = self.moment;
        loop {
            let was = self.past.object_after(id, from);
            let Some(was) = was.map_err(AsOfError::Past)? else {
                break;
            };
            if was.then.ends_bytes() {
                let kept = self.past.kept(id, was.moment).map_err(AsOfError::Past)?;
                return Ok(Some(match kept {
                    Ok(()) => Bytes::Kept(was.moment),
                    Err(why) => Bytes::Unkept(was.moment, why),
                }));
            }
            from = was.moment;
        }
        let row = self.rows.object(id).map_err(AsOfError::Rows)?;
        let live = row.is_some_and(|row| same_inode_kind(&row.state.kind, &state.kind));
        Ok(Some(match live {
            true => Bytes::Live,
            false => Bytes::Unkept(from, Unkept::Missing),
        }))
    }
}
