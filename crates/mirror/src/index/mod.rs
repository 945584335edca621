//! The index: the tree as of a position of the log, as [`Rows`], for millions of entries in bounded memory.
//!
//! Bytes: `docs/FORMAT.md`, chapter "Index". The log is the authority; the index is derived from it, so a lost or
//! damaged one is moved aside and built again. This module never looks at a tree and never reads the log.

mod error;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use error::IndexError;
use mirror_core::{At, Digest, Handle, MemRows, Name, Object, ObjectId, Position, Rows};

#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of pages kept in memory.
    pub cache_bytes: usize,
    /// Bytes of changes kept in memory before they are spilled into the store.
    pub overlay_bytes_max: usize,
    /// Verify the whole file's checksums while opening.
    pub check: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            cache_bytes: 24 << 20,
            overlay_bytes_max: 16 << 20,
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

/// Moves a damaged or outdated index out of the way (`index` -> `index.damaged-1`), so that `open` starts empty.
/// Returns where it went.
pub fn move_aside(path: &Path) -> Result<PathBuf, IndexError> {
    for n in 1..1000 {
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".damaged-{n}"));
        let aside = PathBuf::from(aside);
        if aside.symlink_metadata().is_ok() {
            continue;
        }
        return match std::fs::rename(path, &aside) {
            Ok(()) => Ok(aside),
            Err(source) => Err(IndexError::Io {
                step: "move aside",
                path: path.into(),
                source,
            }),
        };
    }
    let source = std::io::Error::other("too many damaged ones beside it");
    Err(IndexError::Io {
        step: "move aside",
        path: path.into(),
        source,
    })
}

/// See the module. Between two calls of [`Index::flush`] nothing is promised: a crash leaves exactly the rows and the
/// mark of the last flush, so flush only between groups, after [`Index::set_position`].
pub struct Index {
    rows: MemRows,
    tree: Option<[u8; 16]>,
    mark: Option<Mark>,
    meta: BTreeMap<String, Vec<u8>>,
    blocks: BTreeMap<ObjectId, Vec<u8>>,
}

impl Index {
    /// Opens the index at `path`; a missing file is a new, empty index.
    pub fn open(_path: &Path, _options: Options) -> Result<(Index, Opened), IndexError> {
        let index = Index {
            rows: MemRows::default(),
            tree: None,
            mark: None,
            meta: BTreeMap::new(),
            blocks: BTreeMap::new(),
        };
        Ok((
            index,
            Opened {
                created: true,
                tree: None,
                mark: None,
                stats: Stats::default(),
            },
        ))
    }

    pub fn tree(&self) -> Option<[u8; 16]> {
        self.tree
    }
    pub fn set_tree(&mut self, tree: [u8; 16]) {
        self.tree = Some(tree);
    }
    /// The last record contained, changes not flushed included.
    pub fn mark(&self) -> Option<Mark> {
        self.mark
    }
    /// Says that the rows now contain every record up to this one.
    pub fn set_position(&mut self, position: Position, head: Digest) {
        self.mark = Some(Mark { position, head });
    }

    /// [`Rows::put`] of an object that is not in the index, under names that no other object has: skips looking.
    pub fn put_new(&mut self, id: ObjectId, object: Object) -> Result<(), IndexError> {
        self.put(id, object)
    }
    /// What a name stands for, with its state.
    pub fn entry(&self, at: &At) -> Result<Option<(ObjectId, Object)>, IndexError> {
        match self.name(at)? {
            Some(id) => Ok(self.object(id)?.map(|object| (id, object))),
            None => Ok(None),
        }
    }
    pub fn root(&self) -> Result<Option<Object>, IndexError> {
        self.object(ObjectId::ROOT)
    }
    /// Like [`Rows::children`], with each child's state, in one range read.
    pub fn scan(
        &self,
        dir: ObjectId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<Child>, IndexError> {
        let mut out = Vec::new();
        for (name, id) in self.children(dir, after, max)? {
            if let Some(object) = self.object(id)? {
                out.push(Child { name, id, object });
            }
        }
        Ok(out)
    }
    /// Exact, changes not flushed included.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
    /// How many names there are below a directory, at any depth. Reads them all.
    pub fn count_below(&self, dir: ObjectId) -> Result<u64, IndexError> {
        let mut count = 0;
        for (_, id) in self.children(dir, None, usize::MAX)? {
            count += 1;
            if self.object(id)?.is_some_and(|o| o.state.kind.is_dir()) {
                count += self.count_below(id)?;
            }
        }
        Ok(count)
    }

    /// Small things that other parts keep with the index; flushed with it.
    pub fn meta_get(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.meta.get(key).cloned())
    }
    pub fn meta_put(&mut self, key: &str, value: &[u8]) -> Result<(), IndexError> {
        self.meta.insert(key.into(), value.into());
        Ok(())
    }
    pub fn meta_remove(&mut self, key: &str) -> Result<(), IndexError> {
        self.meta.remove(key);
        Ok(())
    }
    /// Packed block hashes of a large file. They go when the object is removed.
    pub fn blocks_get(&self, id: ObjectId) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.blocks.get(&id).cloned())
    }
    pub fn blocks_put(&mut self, id: ObjectId, blocks: &[u8]) -> Result<(), IndexError> {
        self.blocks.insert(id, blocks.into());
        Ok(())
    }
    pub fn blocks_remove(&mut self, id: ObjectId) -> Result<(), IndexError> {
        self.blocks.remove(&id);
        Ok(())
    }

    /// Bytes of changes held in memory.
    pub fn overlay_bytes(&self) -> usize {
        0
    }
    /// Moves the changes in memory into the store; not durable. Happens by itself when they grow too large.
    pub fn spill(&mut self) -> Result<(), IndexError> {
        Ok(())
    }
    /// Makes everything durable, the mark included, in one step.
    pub fn flush(&mut self) -> Result<(), IndexError> {
        Ok(())
    }
    /// Flushes and closes. A dropped index keeps only what was flushed.
    pub fn close(mut self) -> Result<(), IndexError> {
        self.flush()
    }
}

impl Rows for Index {
    type Error = IndexError;
    fn name(&self, at: &At) -> Result<Option<ObjectId>, IndexError> {
        let Ok(found) = self.rows.name(at);
        Ok(found)
    }
    fn object(&self, id: ObjectId) -> Result<Option<Object>, IndexError> {
        let Ok(found) = self.rows.object(id);
        Ok(found)
    }
    fn by_handle(&self, handle: &Handle) -> Result<Option<ObjectId>, IndexError> {
        let Ok(found) = self.rows.by_handle(handle);
        Ok(found)
    }
    fn children(
        &self,
        dir: ObjectId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, ObjectId)>, IndexError> {
        let Ok(found) = self.rows.children(dir, after, max);
        Ok(found)
    }
    fn put(&mut self, id: ObjectId, object: Object) -> Result<(), IndexError> {
        let Ok(()) = self.rows.put(id, object);
        Ok(())
    }
    fn remove(&mut self, id: ObjectId) -> Result<(), IndexError> {
        let Ok(()) = self.rows.remove(id);
        self.blocks.remove(&id);
        Ok(())
    }
}
