//! Reading directories: the store's range and the overlay's, merged in order of names.

use std::collections::btree_map;
use std::ops::Bound;

use mirror_core::{At, Handle, Name, Names, Object, ObjectId, Rows};

use super::overlay::Slot;
use super::{Child, ChildInode, Index, IndexError, row};

/// How many children one step of a walk down the tree holds.
const WALK_MAX: usize = 4096;

impl Index {
    /// Like [`Rows::children`], with each child's state, in one range read.
    pub fn scan(
        &self,
        dir: ObjectId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<Child>, IndexError> {
        let mut out = Vec::new();
        self.visit(dir, after, max, |name, id, body| {
            let name = self.good(Name::new(name).map_err(|_| row::BadRow))?;
            let object = match body {
                Some(body) => {
                    let (state, local) = self.good(row::body_decode(body))?;
                    let names = Names::one(At {
                        parent: dir,
                        name: name.clone(),
                    });
                    Object {
                        state,
                        local,
                        names,
                    }
                }
                None => match self.object(id)? {
                    Some(object) => object,
                    None => return Err(self.bad("an entry's object is missing")),
                },
            };
            out.push(Child { name, id, object });
            Ok(())
        })?;
        Ok(out)
    }

    /// Like [`Index::scan`], but only what a comparison needs of each: some have a million entries to compare.
    pub fn scan_inodes(
        &self,
        dir: ObjectId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, ChildInode)>, IndexError> {
        let mut out = Vec::new();
        self.visit(dir, after, max, |name, id, body| {
            let name = self.good(Name::new(name).map_err(|_| row::BadRow))?;
            let inode = match body {
                Some(body) => {
                    let inode = self.good(row::body_inode(body))?;
                    let handle = inode.handle.filter(|_| inode.is_dir);
                    ChildInode {
                        id,
                        is_dir: inode.is_dir,
                        proven: inode.proven || !inode.is_file,
                        names: 1,
                        ino: inode.ino,
                        mtime: inode.mtime,
                        ctime: inode.ctime,
                        btime: inode.btime,
                        handle_kind: inode.handle.map(|(kind, _)| kind),
                        handle: handle.map(|(kind, bytes)| Handle {
                            kind,
                            bytes: bytes.into(),
                        }),
                    }
                }
                None => {
                    let Some(object) = self.object(id)? else {
                        return Err(self.bad("an entry's object is missing"));
                    };
                    let (kind, local) = (&object.state.kind, object.local);
                    ChildInode {
                        id,
                        is_dir: kind.is_dir(),
                        proven: kind.content().is_none_or(|content| content.proven),
                        names: object.names.len(),
                        ino: local.ino,
                        mtime: object.state.meta.mtime,
                        ctime: local.ctime,
                        btime: local.btime,
                        handle_kind: local.handle.as_ref().map(|handle| handle.kind),
                        handle: local.handle.filter(|_| kind.is_dir()),
                    }
                }
            };
            out.push((name, inode));
            Ok(())
        })?;
        Ok(out)
    }

    pub(super) fn list(
        &self,
        dir: ObjectId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, ObjectId)>, IndexError> {
        let mut out = Vec::new();
        self.visit(dir, after, max, |name, id, _| {
            let name = self.good(Name::new(name).map_err(|_| row::BadRow))?;
            out.push((name, id));
            Ok(())
        })?;
        Ok(out)
    }

    /// The name after this one, of all there are: by their directories' numbers, then in order of names.
    pub fn entry_after(&self, at: Option<&At>) -> Result<Option<(At, ObjectId)>, IndexError> {
        let key = at.map(row::entry_key_at);
        let low = key.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let changed = self.overlay.names.range::<[u8], _>((low, Bound::Unbounded));
        let changed = changed
            .filter_map(|(key, slot)| Some((key, slot.value?)))
            .next();
        let found = |key: &[u8], id| {
            let at = self.good(row::entry_key_decode(key))?;
            Ok(Some((at, id)))
        };
        for stored in self.store.entries(low, Bound::Unbounded)? {
            let stored = stored.map_err(|e| IndexError::store("read", self.store.path(), e));
            let (key, value) = stored?;
            let key = key.value();
            if let Some((before, id)) = changed.filter(|(before, _)| before.as_ref() <= key) {
                return found(before, id);
            }
            // Gone, or given to another since.
            if self.overlay.names.contains_key(key) {
                continue;
            }
            let (id, _) = self.good(row::entry_split(value.value()))?;
            return found(key, id);
        }
        changed.map_or(Ok(None), |(key, id)| found(key, id))
    }

    /// How many names there are below a directory, at any depth. Reads them all.
    pub fn count_below(&self, dir: ObjectId) -> Result<u64, IndexError> {
        let mut count = 0;
        let mut dirs = vec![dir];
        while let Some(dir) = dirs.pop() {
            let mut after: Option<Name> = None;
            loop {
                let mut last = None;
                let mut seen = 0;
                self.visit(dir, after.as_ref(), WALK_MAX, |name, id, body| {
                    seen += 1;
                    last = Some(name.to_vec());
                    let is_dir = match body {
                        Some(body) => self.good(row::body_is_dir(body))?,
                        None => self.object(id)?.is_some_and(|o| o.state.kind.is_dir()),
                    };
                    if is_dir {
                        dirs.push(id);
                    }
                    Ok(())
                })?;
                count += seen as u64;
                if count > self.stats().entries {
                    return Err(self.bad("directories contain each other"));
                }
                match last {
                    Some(last) if seen == WALK_MAX => {
                        after = Some(self.good(Name::new(&last).map_err(|_| row::BadRow))?);
                    }
                    _ => break,
                }
            }
        }
        Ok(count)
    }

    /// Calls `each` with the name, object and, where it stands in the name's row, body of the children after `after`,
    /// in order, `max` of them.
    fn visit(
        &self,
        dir: ObjectId,
        after: Option<&Name>,
        max: usize,
        mut each: impl FnMut(&[u8], ObjectId, Option<&[u8]>) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        let low = row::entry_key(dir, after.map_or(b"", |name| name.as_bytes()));
        let high = dir.0.checked_add(1).map(u64::to_be_bytes);
        let low = Bound::Excluded(low.as_slice());
        let high = match &high {
            Some(high) => Bound::Excluded(high.as_slice()),
            None => Bound::Unbounded,
        };
        let mut changed = self.overlay.names.range::<[u8], _>((low, high)).peekable();
        let mut left = max;
        for stored in self.store.entries(low, high)? {
            if left == 0 {
                return Ok(());
            }
            let stored = stored.map_err(|e| IndexError::store("read", self.store.path(), e));
            let (key, value) = stored?;
            let key = key.value();
            // What the overlay has before and at this key comes first, and in its place.
            while let Some(before) = changed.next_if(|(k, _)| k.as_ref() < key) {
                left -= self.visit_changed(before, &mut each)?;
                if left == 0 {
                    return Ok(());
                }
            }
            if let Some(instead) = changed.next_if(|(k, _)| k.as_ref() == key) {
                left -= self.visit_changed(instead, &mut each)?;
                continue;
            }
            let (_, name) = self.good(row::entry_key_parts(key))?;
            let (id, body) = self.good(row::entry_split(value.value()))?;
            each(name, id, body)?;
            left -= 1;
        }
        for rest in changed {
            if left == 0 {
                break;
            }
            left -= self.visit_changed(rest, &mut each)?;
        }
        Ok(())
    }

    /// Returns how many were visited: one, or none if the name is gone.
    fn visit_changed(
        &self,
        (key, slot): ChangedName,
        each: &mut impl FnMut(&[u8], ObjectId, Option<&[u8]>) -> Result<(), IndexError>,
    ) -> Result<usize, IndexError> {
        let Some(id) = slot.value else {
            return Ok(0);
        };
        let (_, name) = self.good(row::entry_key_parts(key))?;
        each(name, id, None)?;
        Ok(1)
    }
}

type ChangedName<'a> = <btree_map::Range<'a, Box<[u8]>, Slot<ObjectId>> as Iterator>::Item;
