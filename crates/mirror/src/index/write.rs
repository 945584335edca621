//! The writing half of the index: what a put or a remove means for names, handles and counts, spill and flush.

use mirror_core::{At, Kind, Names, Object, ObjectId};

use super::overlay::Packed;
use super::row;
use super::store::Part;
use super::{Flush, Index, IndexError};

/// Under this key in `meta`: objects that list a name which is another's by now, as in the middle of a group.
pub(super) const ROBBED: &str = "index.robbed";

/// What is known of a name's owner, unless the overlay says otherwise.
enum Known {
    Mine,
    Nobodys,
    Nothing,
}

impl Index {
    /// [`mirror_core::Rows::put`] of an object that is not in the index, under names and a handle that no object in it
    /// has: skips looking. When that isn't so, the index no longer tells the truth.
    pub fn put_new(&mut self, id: ObjectId, object: Object) -> Result<(), IndexError> {
        self.write(|index| index.put_object(id, object, true))
    }
    pub fn meta_put(&mut self, key: &str, value: &[u8]) -> Result<(), IndexError> {
        self.write(|index| {
            index.overlay.set_meta(key, Some(value.to_vec()));
            Ok(())
        })
    }
    pub fn meta_remove(&mut self, key: &str) -> Result<(), IndexError> {
        self.write(|index| {
            index.overlay.set_meta(key, None);
            Ok(())
        })
    }
    pub fn blocks_put(&mut self, id: ObjectId, blocks: &[u8]) -> Result<(), IndexError> {
        self.write(|index| {
            index.header.blocks = true;
            index.overlay.set_blocks(id, Some(blocks.to_vec()));
            Ok(())
        })
    }
    pub fn blocks_remove(&mut self, id: ObjectId) -> Result<(), IndexError> {
        self.write(|index| {
            index.forget_blocks(id);
            Ok(())
        })
    }

    /// Estimate of the memory that holds changes not yet in the store.
    pub fn overlay_bytes(&self) -> usize {
        self.overlay.bytes()
    }
    /// Moves the changes in memory into the store; not durable. Happens by itself when they grow too large.
    pub fn spill(&mut self) -> Result<(), IndexError> {
        self.usable()?;
        if self.overlay.is_empty() {
            return Ok(());
        }
        self.commit(false)
    }
    /// Makes everything durable, the mark included, in one step.
    pub fn flush(&mut self) -> Result<(), IndexError> {
        self.usable()?;
        if self.overlay.is_empty() && !self.header_new && !self.store.is_loose() {
            return Ok(());
        }
        self.commit(true)
    }
    /// The first half of a flush: quick, but for a flush still on its way, which it waits for. `finish` of what it
    /// returns is the second half, and may be done on another thread while the index is used and changed; what is
    /// changed meanwhile isn't part of it. Changes wait for it only when they pile up in memory, so the thread that
    /// changes the index must not hold it unfinished. `None`: everything is durable already.
    pub fn flush_start(&mut self) -> Result<Option<Flush>, IndexError> {
        self.usable()?;
        if !self.overlay.is_empty() || self.header_new {
            self.commit(false)?;
        } else if !self.store.is_loose() {
            return Ok(None);
        }
        self.store.start_flush().map(Some)
    }
    /// Flushes and closes. A dropped index keeps only what was flushed.
    pub fn close(mut self) -> Result<(), IndexError> {
        self.flush()
    }

    fn commit(&mut self, durable: bool) -> Result<(), IndexError> {
        self.broken = true;
        self.note_robbed()?;
        self.store.write(&self.overlay, &self.header, durable)?;
        self.broken = false;
        for (id, slot) in &self.overlay.objects {
            if let Some(packed) = &slot.value
                && packed.names.len() > 1
            {
                let object = self.good(packed.object())?;
                self.many().keep(*id, &object);
            }
        }
        self.overlay.clear();
        self.header_new = false;
        Ok(())
    }

    fn note_robbed(&mut self) -> Result<(), IndexError> {
        let ids = self.robbed.iter().flat_map(|id| id.0.to_be_bytes());
        let ids = Some(ids.collect::<Vec<u8>>()).filter(|ids| !ids.is_empty());
        if self.meta_get(ROBBED)? != ids {
            self.overlay.set_meta(ROBBED, ids);
        }
        Ok(())
    }

    fn usable(&self) -> Result<(), IndexError> {
        if !self.broken {
            return Ok(());
        }
        let source = std::io::Error::other("a change of it failed before");
        Err(IndexError::io("change", self.store.path(), source))
    }

    /// Runs a change, then spills if the overlay is full, or at the latest when it is three times full.
    pub(super) fn write(
        &mut self,
        change: impl FnOnce(&mut Index) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        self.usable()?;
        self.broken = true;
        change(self)?;
        self.broken = false;
        let over = self.overlay.bytes().checked_div(self.overlay_bytes_max);
        match over.unwrap_or(usize::MAX) {
            0 => Ok(()),
            // While a flush is on its way, a spill would wait for the disk.
            1 | 2 if !self.store.is_free() => Ok(()),
            _ => self.commit(false),
        }
    }

    /// `new`: the caller knows that nothing of it is in the store.
    pub(super) fn put_object(
        &mut self,
        id: ObjectId,
        object: Object,
        new: bool,
    ) -> Result<(), IndexError> {
        let held = if new { None } else { self.held(id)? };
        let fresh = held.is_none();
        let stays = match &held {
            // Of one in the overlay the slot knows the rest.
            Some((old, inline)) => {
                (*inline || self.overlay.objects.contains_key(&id)) && old.names == object.names
            }
            None => false,
        };
        if let Some((old, inline)) = &held {
            for at in old.names.without(&object.names) {
                self.release_name(id, at, *inline)?;
            }
            if old.local.handle != object.local.handle {
                self.release_handle(id, old)?;
            }
            self.uncount(old);
        }
        // The rows of names that refer to it before and after stay as they are.
        let robbed = self.robbed.remove(&id);
        let several = |names: &Names| names.len() > 1;
        let kept = match &held {
            Some((old, _)) if several(&old.names) && several(&object.names) && !robbed => {
                old.names.clone()
            }
            _ => Names::new(),
        };
        for at in object.names.without(&kept) {
            let known = match &held {
                Some((old, true)) if old.names.contains(at) => Known::Mine,
                _ if new => Known::Nobodys,
                _ => Known::Nothing,
            };
            self.take_name(id, at, known, object.names.len() == 1)?;
        }
        if let Some(handle) = &object.local.handle {
            let key = row::handle_key(handle);
            if new && !self.overlay.handles.contains_key(key.as_slice()) {
                self.overlay.set_handle(&key, Some(id), true);
            } else {
                let (owner, absent) = self.handle_owner(&key)?;
                if owner != Some(id) {
                    self.overlay.set_handle(&key, Some(id), absent);
                }
            }
        }
        self.count(&object);
        self.many().forget(id);
        self.overlay
            .set_object(id, Some(Packed::new(&object)), fresh, stays);
        self.header.id_max = self.header.id_max.max(id.0);
        Ok(())
    }

    pub(super) fn remove_object(&mut self, id: ObjectId) -> Result<(), IndexError> {
        if let Some((old, inline)) = self.held(id)? {
            for at in &old.names {
                self.release_name(id, at, inline)?;
            }
            self.release_handle(id, &old)?;
            self.uncount(&old);
            self.overlay.set_object(id, None, false, false);
        }
        self.robbed.remove(&id);
        self.many().forget(id);
        self.forget_blocks(id);
        Ok(())
    }

    fn forget_blocks(&mut self, id: ObjectId) {
        if self.header.blocks {
            self.overlay.set_blocks(id, None);
        }
    }

    /// A name of an object goes, unless it is another's by now. `inline`: it is known to be its own in the store.
    fn release_name(&mut self, id: ObjectId, at: &At, inline: bool) -> Result<(), IndexError> {
        let key = row::entry_key_at(at);
        let owner = match self.overlay.names.get(key.as_slice()) {
            Some(slot) => slot.value,
            None if inline => Some(id),
            None => self.owner(&key)?.0,
        };
        if owner == Some(id) {
            self.overlay.set_name(&key, None, false);
            self.header.stats.entries = self.header.stats.entries.saturating_sub(1);
        }
        Ok(())
    }

    /// A name becomes this object's; `only`: it is its only one.
    fn take_name(
        &mut self,
        id: ObjectId,
        at: &At,
        known: Known,
        only: bool,
    ) -> Result<(), IndexError> {
        let key = row::entry_key_at(at);
        let (owner, absent) = match (self.overlay.names.get(key.as_slice()), known) {
            (Some(slot), _) => (slot.value, false),
            (None, Known::Mine) => (Some(id), false),
            (None, Known::Nobodys) => (None, true),
            (None, Known::Nothing) => match self.store.get(Part::Entries, &key)? {
                None => (None, true),
                Some(found) => match self.good(row::entry_split(found.value()))? {
                    // The row says it already, and stays what it is.
                    (owner, None) if owner == id && !only => return Ok(()),
                    (owner, _) => (Some(owner), false),
                },
            },
        };
        match owner {
            None => self.header.stats.entries += 1,
            Some(other) if other != id => self.dispossess(other)?,
            Some(_) => {}
        }
        self.overlay.set_name(&key, Some(id), absent);
        Ok(())
    }

    /// An object loses a name to another one: if its body stands in that name's row, it must move.
    fn dispossess(&mut self, other: ObjectId) -> Result<(), IndexError> {
        self.robbed.insert(other);
        if let Some((object, true)) = self.held(other)? {
            let packed = Packed::new(&object);
            self.overlay.set_object(other, Some(packed), false, false);
        }
        Ok(())
    }

    fn release_handle(&mut self, id: ObjectId, old: &Object) -> Result<(), IndexError> {
        if let Some(handle) = &old.local.handle {
            let key = row::handle_key(handle);
            if self.handle_owner(&key)?.0 == Some(id) {
                self.overlay.set_handle(&key, None, false);
            }
        }
        Ok(())
    }

    /// Whose a name is; and whether the store is known to have no row for it.
    pub(super) fn owner(&self, key: &[u8]) -> Result<(Option<ObjectId>, bool), IndexError> {
        if let Some(slot) = self.overlay.names.get(key) {
            return Ok((slot.value, false));
        }
        match self.store.get(Part::Entries, key)? {
            Some(found) => Ok((Some(self.good(row::entry_split(found.value()))?.0), false)),
            None => Ok((None, true)),
        }
    }
    pub(super) fn handle_owner(&self, key: &[u8]) -> Result<(Option<ObjectId>, bool), IndexError> {
        if let Some(slot) = self.overlay.handles.get(key) {
            return Ok((slot.value, false));
        }
        match self.store.get(Part::Handles, key)? {
            Some(found) => Ok((Some(self.id_from(found.value())?), false)),
            None => Ok((None, true)),
        }
    }

    fn count(&mut self, object: &Object) {
        let stats = &mut self.header.stats;
        stats.objects += 1;
        match &object.state.kind {
            Kind::Dir => stats.dirs += 1,
            Kind::File(content) => {
                stats.files += 1;
                stats.bytes = stats.bytes.wrapping_add(content.bytes);
            }
            _ => {}
        }
    }
    fn uncount(&mut self, object: &Object) {
        let stats = &mut self.header.stats;
        stats.objects = stats.objects.saturating_sub(1);
        match &object.state.kind {
            Kind::Dir => stats.dirs = stats.dirs.saturating_sub(1),
            Kind::File(content) => {
                stats.files = stats.files.saturating_sub(1);
                stats.bytes = stats.bytes.wrapping_sub(content.bytes);
            }
            _ => {}
        }
    }
}
