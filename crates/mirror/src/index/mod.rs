//! The index: the tree as of a position of the log, as [`Rows`], for millions of entries in bounded memory.
//!
//! Changes gather in an overlay in memory, are spilled into a store on disk when they grow too large, and become
//! durable, with the position they stand for, when the caller flushes. Bytes: `docs/FORMAT.md`, chapter "Index". The
//! log is the authority; the index is derived from it, so a lost or damaged one is moved aside and built again. This
//! module never looks at a tree and never reads the log.

mod backend;
mod error;
mod header;
mod many;
mod overlay;
pub(crate) mod row;
mod scan;
mod store;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

pub use error::IndexError;
use header::Header;
use many::Many;
use mirror_core::{At, Digest, Handle, Name, Names, Object, ObjectId, Position, Rows};
use overlay::Overlay;
use row::BadRow;
pub use store::Flush;
use store::{Part, Store};

use crate::sync::lock;

#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of the store's pages kept in memory.
    pub cache_bytes: usize,
    /// Bytes of changes kept in memory before they are spilled into the store (while a flush is on its way, up to
    /// three times as many).
    pub overlay_bytes_max: usize,
    /// Verify the whole file's checksums while opening. Without it, damage done while the index was closed shows late
    /// or never; after a crash the file is always verified.
    pub check: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            cache_bytes: 16 << 20,
            overlay_bytes_max: 8 << 20,
            check: true,
        }
    }
}

/// The last record that the index contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub position: Position,
    pub head: Digest,
}

/// What was found when the index was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// There was no file: it is new and empty.
    pub created: bool,
    pub tree: Option<[u8; 16]>,
    /// `None`: it contains no record yet.
    pub mark: Option<Mark>,
    pub stats: Stats,
}

/// Exact counts of what the index holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Names; the root has none.
    pub entries: u64,
    /// Objects, the root included once it is put.
    pub objects: u64,
    /// Of the objects, how many are regular files and directories.
    pub files: u64,
    pub dirs: u64,
    /// Sum of the sizes of the regular files.
    pub bytes: u64,
}

/// One entry of a directory with its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    pub name: Name,
    pub id: ObjectId,
    pub object: Object,
}

/// What tells whether one entry of a directory is still the inode it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildInode {
    pub id: ObjectId,
    pub is_dir: bool,
    pub proven: bool,
    /// How many names the object has.
    pub names: usize,
    pub ino: u64,
    pub mtime: mirror_core::Time,
    pub ctime: mirror_core::Time,
    pub btime: mirror_core::Time,
    /// The kind of its handle, if it is known.
    pub handle_kind: Option<i32>,
    /// Of a directory only.
    pub handle: Option<Handle>,
}

/// Moves a damaged or outdated index out of the way (`index` -> `index.damaged-1`), so that [`Index::open`] starts
/// empty. Returns where it went.
pub fn move_aside(path: &Path) -> Result<PathBuf, IndexError> {
    let failed = |source| IndexError::io("move aside", path, source);
    for n in 1..1000 {
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".damaged-{n}"));
        let aside = PathBuf::from(aside);
        if aside.symlink_metadata().is_ok() {
            continue;
        }
        return match std::fs::rename(path, &aside) {
            Ok(()) => Ok(aside),
            Err(e) => Err(failed(e)),
        };
    }
    Err(failed(std::io::Error::other("too many of them beside it")))
}

/// See the module. A crash, and dropping it, leave exactly the rows and the mark of the last [`Index::flush`]: so flush
/// only between groups, after [`Index::set_position`]. After an error of a writing call it takes no more changes.
pub struct Index {
    store: Store,
    overlay: Overlay,
    many: Mutex<Many>,
    /// Objects that list a name which was given to another one since.
    robbed: BTreeSet<ObjectId>,
    overlay_bytes_max: usize,
    header: Header,
    /// The header says something that the store doesn't hold yet.
    header_new: bool,
    /// A writing call stopped half way: what is in memory must not be flushed.
    broken: bool,
}

impl Index {
    /// Opens the index at `path`; a missing file is a new, empty index.
    pub fn open(path: &Path, options: Options) -> Result<(Index, Opened), IndexError> {
        let (store, header, created) = Store::open(path, &options)?;
        Index::with(store, header, created, &options)
    }

    fn with(
        store: Store,
        header: Header,
        created: bool,
        options: &Options,
    ) -> Result<(Index, Opened), IndexError> {
        let opened = Opened {
            created,
            tree: header.tree,
            mark: header.mark,
            stats: header.stats,
        };
        let mut index = Index {
            store,
            overlay: Overlay::default(),
            many: Mutex::default(),
            robbed: BTreeSet::new(),
            overlay_bytes_max: options.overlay_bytes_max,
            header,
            header_new: false,
            broken: false,
        };
        let robbed = index.meta_get(write::ROBBED)?.unwrap_or_default();
        for id in robbed.chunks(8) {
            index.robbed.insert(index.id_from(id)?);
        }
        Ok((index, opened))
    }

    /// The tree it is of, once that was said.
    pub fn tree(&self) -> Option<[u8; 16]> {
        self.header.tree
    }
    pub fn set_tree(&mut self, tree: [u8; 16]) {
        self.header.tree = Some(tree);
        self.header_new = true;
    }
    /// The last record contained, changes not flushed included.
    pub fn mark(&self) -> Option<Mark> {
        self.header.mark
    }
    /// Says that the rows now contain every record up to this one.
    pub fn set_position(&mut self, position: Position, head: Digest) {
        self.header.mark = Some(Mark { position, head });
        self.header_new = true;
    }
    /// Exact, changes not flushed included.
    pub fn stats(&self) -> Stats {
        self.header.stats
    }

    /// What a name stands for, with its state.
    pub fn entry(&self, at: &At) -> Result<Option<(ObjectId, Object)>, IndexError> {
        let key = row::entry_key_at(at);
        let id = match self.overlay.names.get(key.as_slice()) {
            Some(slot) => slot.value,
            None => match self.store.get(Part::Entries, &key)? {
                None => None,
                Some(found) => match self.good(row::entry_split(found.value()))? {
                    (id, None) => Some(id),
                    (id, Some(body)) => {
                        let (state, local) = self.good(row::body_decode(body))?;
                        let names = Names::one(at.clone());
                        return Ok(Some((
                            id,
                            Object {
                                state,
                                local,
                                names,
                            },
                        )));
                    }
                },
            },
        };
        match id {
            Some(id) => Ok(self.object(id)?.map(|object| (id, object))),
            None => Ok(None),
        }
    }
    pub fn root(&self) -> Result<Option<Object>, IndexError> {
        self.object(ObjectId::ROOT)
    }

    /// Small things that other parts keep with the index; flushed with it.
    pub fn meta_get(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
        match self.overlay.meta.get(key) {
            Some(slot) => Ok(slot.value.as_ref().map(|v| v.to_vec())),
            None => self.get_plain(Part::Meta, key.as_bytes()),
        }
    }
    /// Packed block hashes of a large file. They go when the object is removed.
    pub fn blocks_get(&self, id: ObjectId) -> Result<Option<Vec<u8>>, IndexError> {
        match self.overlay.blocks.get(&id) {
            Some(slot) => Ok(slot.value.as_ref().map(|v| v.to_vec())),
            None if !self.header.blocks => Ok(None),
            None => self.get_plain(Part::Blocks, &id.0.to_be_bytes()),
        }
    }
    fn get_plain(&self, part: Part, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        let found = self.store.get(part, key)?;
        Ok(found.map(|row| row.value().to_vec()))
    }

    /// An object, and whether its body is known to stand in its one name's row of the store, and so to own that name.
    fn held(&self, id: ObjectId) -> Result<Option<(Object, bool)>, IndexError> {
        if let Some(slot) = self.overlay.objects.get(&id) {
            return match &slot.value {
                Some(packed) => Ok(Some((self.good(packed.object())?, false))),
                None => Ok(None),
            };
        }
        if id.0 > self.header.id_max {
            return Ok(None);
        }
        if let Some(object) = self.many().get(id) {
            return Ok(Some((object, false)));
        }
        let Some(found) = self.store.get(Part::Objects, &id.0.to_be_bytes())? else {
            return Ok(None);
        };
        let found = found.value();
        let Some((&row::OBJECT_INLINE, key)) = found.split_first() else {
            let object = self.good(row::object_decode(found))?;
            self.many().keep(id, &object);
            return Ok(Some((object, false)));
        };
        let at = self.good(row::entry_key_decode(key))?;
        let Some(entry) = self.store.get(Part::Entries, key)? else {
            return Err(self.bad("an object's entry is missing"));
        };
        let (owner, body) = self.good(row::entry_split(entry.value()))?;
        let Some(body) = body.filter(|_| owner == id) else {
            return Err(self.bad("an object's entry is another's"));
        };
        let (state, local) = self.good(row::body_decode(body))?;
        let names = Names::one(at);
        let object = Object {
            state,
            local,
            names,
        };
        Ok(Some((object, true)))
    }

    fn many(&self) -> MutexGuard<'_, Many> {
        lock(&self.many)
    }
    fn good<T>(&self, row: Result<T, BadRow>) -> Result<T, IndexError> {
        row.map_err(|BadRow| self.bad("a row can't be read"))
    }
    fn bad(&self, what: &str) -> IndexError {
        IndexError::damaged(self.store.path(), what)
    }
    fn id_from(&self, bytes: &[u8]) -> Result<ObjectId, IndexError> {
        match bytes.try_into() {
            Ok(bytes) => Ok(ObjectId(u64::from_be_bytes(bytes))),
            Err(_) => Err(self.bad("an object's id can't be read")),
        }
    }
}

impl Rows for Index {
    type Error = IndexError;
    fn name(&self, at: &At) -> Result<Option<ObjectId>, IndexError> {
        self.owner(&row::entry_key_at(at)).map(|(id, _)| id)
    }
    fn object(&self, id: ObjectId) -> Result<Option<Object>, IndexError> {
        Ok(self.held(id)?.map(|(object, _)| object))
    }
    fn by_handle(&self, handle: &Handle) -> Result<Option<ObjectId>, IndexError> {
        self.handle_owner(&row::handle_key(handle))
            .map(|(id, _)| id)
    }
    fn children(
        &self,
        dir: ObjectId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, ObjectId)>, IndexError> {
        self.list(dir, after, max)
    }
    fn put(&mut self, id: ObjectId, object: Object) -> Result<(), IndexError> {
        self.write(|index| index.put_object(id, object, false))
    }
    fn remove(&mut self, id: ObjectId) -> Result<(), IndexError> {
        self.write(|index| index.remove_object(id))
    }
}
