//! What others read out of a copy: a content as it stands there, and what is still owed.

use std::os::fd::OwnedFd;

use mirror_core::{Content, Digest, Object, ObjectId};

use super::dirs::is_local;
use super::{Applier, ApplyError, Store, store_error};
use crate::sys::open;
use crate::sys::stat::fstat;

impl<S: Store> Applier<S> {
    /// The file that has this content by the rows, open for reading. `None`: it is not there (any more), or not as the
    /// rows know it. Its bytes may have been changed by hand: whoever reads them checks them.
    pub fn open_content(
        &self,
        object: ObjectId,
        digest: Digest,
    ) -> Result<Option<(Content, OwnedFd)>, ApplyError> {
        let Some(row) = self.store.object(object).map_err(store_error)? else {
            return Ok(None);
        };
        let Some(content) = row.state.kind.content().filter(|c| c.digest == digest) else {
            return Ok(None);
        };
        let mut way = Vec::new();
        let (mut id, mut here) = (object, row.clone());
        while id != ObjectId::ROOT {
            let Some(at) = here.names.first().cloned() else {
                return Ok(None);
            };
            way.push((at.name, here.local));
            id = at.parent;
            here = match self.store.object(id).map_err(store_error)? {
                Some(object) if way.len() < 1 << 16 => object,
                None if id == ObjectId::ROOT => break,
                _ => return Ok(None),
            };
        }
        // Nothing is followed, and each inode is the one the rows speak of.
        let mut dir: Option<OwnedFd> = None;
        while let Some((name, local)) = way.pop() {
            let above = dir.as_ref().unwrap_or(&self.area.root);
            let opened = match way.is_empty() {
                false => open::dir(above, name.as_bytes()),
                true => open::file(above, name.as_bytes()),
            };
            let Ok(fd) = opened else { return Ok(None) };
            let is_it = fstat(&fd).is_ok_and(|stat| {
                is_local(&stat, &local)
                    && stat.dev == self.area.root_stat.dev
                    && (stat.is_file() || !way.is_empty())
            });
            if !is_it {
                return Ok(None);
            }
            dir = Some(fd);
        }
        Ok(dir.map(|fd| (content.clone(), fd)))
    }

    /// What the log says of the objects that could not be brought to it yet; `None`: they are gone.
    pub fn owed(&self) -> impl Iterator<Item = (ObjectId, Option<Object>)> + '_ {
        let wanted = self.pending.wanted.iter();
        wanted.map(|(id, wanted)| (*id, wanted.want.clone()))
    }
}
