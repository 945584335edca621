//! The rows on disk: a redb file. Only this file and `backend` know which store it is.
//!
//! A spill is a commit that isn't durable: a crash takes it back. A flush is one that is, and makes all before it so.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::backends::FileBackend;
use redb::{
    AccessGuard, Builder, CursorError, Database, Durability, Range, ReadOnlyTable,
    ReadableDatabase, StorageBackend, StorageError, Table, TableDefinition, TableError,
    TransactionError, WriteTransaction,
};

use super::backend::{Gate, Gated};
use super::header::{FORMAT, Header};
use super::overlay::{Overlay, Slot};
use super::{IndexError, Options, row};

type Bytes = &'static [u8];
pub type Row = AccessGuard<'static, Bytes>;
pub type Rows = Range<'static, Bytes, Bytes>;
type ReadTable = ReadOnlyTable<Bytes, Bytes>;

/// `format` (u32, little endian) and `header` ([`Header`]).
const HEADER: TableDefinition<&str, Bytes> = TableDefinition::new("header");
/// Entry key -> entry row.
const ENTRIES: TableDefinition<Bytes, Bytes> = TableDefinition::new("entries");
/// Object id, big endian -> object row.
const OBJECTS: TableDefinition<Bytes, Bytes> = TableDefinition::new("objects");
/// Handle key -> object id, big endian.
const HANDLES: TableDefinition<Bytes, Bytes> = TableDefinition::new("handles");
/// UTF-8 key -> what another part put there.
const META: TableDefinition<Bytes, Bytes> = TableDefinition::new("meta");
/// Object id, big endian -> packed block hashes.
const BLOCKS: TableDefinition<Bytes, Bytes> = TableDefinition::new("blocks");

pub struct Store {
    path: PathBuf,
    // Declared before the database: reading must end before it closes.
    view: Option<View>,
    database: Database,
    gate: Gate,
    /// Number of the last commit, and of the last one that is durable.
    commits: u64,
    durable: Arc<AtomicU64>,
}

/// The durable half of a flush, which waits for the disk; may be done on another thread.
#[must_use = "nothing is durable before it is finished"]
pub struct Flush {
    write: WriteTransaction,
    commit: u64,
    durable: Arc<AtomicU64>,
    path: PathBuf,
}

impl Flush {
    /// Makes durable what the index held when the flush was started.
    pub fn finish(self) -> Result<(), IndexError> {
        let done = self.write.commit();
        done.map_err(|e| IndexError::store("flush", &self.path, e))?;
        self.durable.fetch_max(self.commit, Ordering::AcqRel);
        Ok(())
    }
}

/// The tables as of the last commit.
struct View {
    entries: ReadTable,
    objects: ReadTable,
    handles: ReadTable,
    meta: ReadTable,
    blocks: ReadTable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Entries,
    Objects,
    Handles,
    Meta,
    Blocks,
}

impl Store {
    /// Opens the file, or makes it. Says whether it was made.
    pub fn open(path: &Path, options: &Options) -> Result<(Store, Header, bool), IndexError> {
        let io = |step, source| IndexError::io(step, path, source);
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => {
                let (store, header) = Store::open_file(path, file, options)?;
                match header {
                    Some(header) => Ok((store, header, false)),
                    None => Err(IndexError::damaged(path, "it has no header")),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Beside it, and renamed when it has its header: no crash leaves half a file under the real name.
                let mut beside = path.as_os_str().to_owned();
                beside.push(".new");
                let beside = PathBuf::from(beside);
                match std::fs::remove_file(&beside) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io("create", e)),
                    _ => {}
                }
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&beside)
                    .map_err(|e| io("create", e))?;
                let (mut store, _) = Store::open_file(path, file, options)?;
                let header = Header::default();
                store.write(&Overlay::default(), &header, true)?;
                std::fs::rename(&beside, path).map_err(|e| io("create", e))?;
                let dir = path.parent().filter(|p| !p.as_os_str().is_empty());
                File::open(dir.unwrap_or(Path::new(".")))
                    .and_then(|dir| dir.sync_all())
                    .map_err(|e| io("create", e))?;
                Ok((store, header, true))
            }
            Err(e) => Err(io("open", e)),
        }
    }

    fn open_file(
        path: &Path,
        file: File,
        options: &Options,
    ) -> Result<(Store, Option<Header>), IndexError> {
        let backend = FileBackend::new(file).map_err(|e| IndexError::store("open", path, e))?;
        Store::open_backend(path, Box::new(backend), options)
    }

    /// No header: the backend was empty.
    pub fn open_backend(
        path: &Path,
        below: Box<dyn StorageBackend>,
        options: &Options,
    ) -> Result<(Store, Option<Header>), IndexError> {
        let gate = Gate::default();
        let gated = Gated {
            below,
            gate: gate.clone(),
        };
        let database = Builder::new()
            .set_cache_size(options.cache_bytes)
            .set_check_integrity_on_open(options.check)
            .create_with_backend(gated)
            .map_err(|e| IndexError::store("open", path, e))?;
        let header = match read_header(path, &database) {
            Ok(header) => header,
            Err(e) => {
                gate.shut();
                return Err(e);
            }
        };
        let mut store = Store {
            path: path.into(),
            view: None,
            database,
            gate,
            commits: 0,
            durable: Arc::default(),
        };
        if header.is_some() {
            store.view = Some(store.look()?);
        }
        Ok((store, header))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Whether there are commits since the last flush.
    pub fn is_loose(&self) -> bool {
        self.commits > self.durable.load(Ordering::Acquire)
    }
    /// Whether a commit can begin at once: no flush is on its way.
    pub fn is_free(&self) -> bool {
        let begun = self.database.try_begin_write();
        !matches!(begun, Err(TransactionError::WouldBlock))
    }

    pub fn get(&self, part: Part, key: &[u8]) -> Result<Option<Row>, IndexError> {
        self.table(part)?
            .get(key)
            .map_err(|e| IndexError::store("read", &self.path, e))
    }

    /// Entries from `low` to before `high`, in order of their keys.
    pub fn entries(&self, low: Bound<&[u8]>, high: Bound<&[u8]>) -> Result<Rows, IndexError> {
        self.table(Part::Entries)?
            .range::<&[u8]>((low, high))
            .map_err(|e| IndexError::store("read", &self.path, e))
    }

    fn table(&self, part: Part) -> Result<&ReadTable, IndexError> {
        let view = self.view.as_ref().ok_or_else(|| {
            let source = io::Error::other("writing to it failed before");
            IndexError::io("read", &self.path, source)
        })?;
        Ok(match part {
            Part::Entries => &view.entries,
            Part::Objects => &view.objects,
            Part::Handles => &view.handles,
            Part::Meta => &view.meta,
            Part::Blocks => &view.blocks,
        })
    }

    fn look(&self) -> Result<View, IndexError> {
        let open = || -> Result<View, redb::Error> {
            let read = self.database.begin_read()?;
            Ok(View {
                entries: read.open_table(ENTRIES)?,
                objects: read.open_table(OBJECTS)?,
                handles: read.open_table(HANDLES)?,
                meta: read.open_table(META)?,
                blocks: read.open_table(BLOCKS)?,
            })
        };
        open().map_err(|e| IndexError::store("read", &self.path, e))
    }

    /// Makes the store hold what the overlay and the header say, in one commit.
    pub fn write(
        &mut self,
        overlay: &Overlay,
        header: &Header,
        durable: bool,
    ) -> Result<(), IndexError> {
        // What the last view alone still sees can be overwritten.
        self.view = None;
        self.commits += 1;
        let step = if durable { "flush" } else { "spill" };
        let path = self.path.clone();
        self.commit(overlay, header, durable)
            .map_err(|e| IndexError::store(step, &path, e))?;
        if durable {
            self.durable.fetch_max(self.commits, Ordering::AcqRel);
        }
        self.view = Some(self.look()?);
        Ok(())
    }

    /// What was written so far can now be made durable, without this store in hand.
    pub fn start_flush(&self) -> Result<Flush, IndexError> {
        let error = |e: redb::Error| IndexError::store("flush", &self.path, e);
        let write = self.database.begin_write().map_err(|e| error(e.into()))?;
        Ok(Flush {
            write,
            commit: self.commits,
            durable: self.durable.clone(),
            path: self.path.clone(),
        })
    }

    fn commit(
        &mut self,
        overlay: &Overlay,
        header: &Header,
        durable: bool,
    ) -> Result<(), redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_durability(match durable {
            true => Durability::Immediate,
            false => Durability::None,
        })?;
        write_rows(&write, overlay)?;
        {
            let mut table = write.open_table(HEADER)?;
            table.insert("format", FORMAT.to_le_bytes().as_slice())?;
            table.insert("header", header.encode().as_slice())?;
        }
        write.commit()?;
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if self.is_loose() {
            self.gate.shut();
        }
    }
}

/// `None`: nothing was ever written.
fn read_header(path: &Path, database: &Database) -> Result<Option<Header>, IndexError> {
    let error = |e: redb::Error| IndexError::store("read", path, e);
    let read = database.begin_read().map_err(|e| error(e.into()))?;
    let table = match read.open_table(HEADER) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(e) => return Err(error(e.into())),
    };
    let get = |key| {
        let row = table.get(key).map_err(|e| error(e.into()))?;
        row.ok_or_else(|| IndexError::damaged(path, format!("it has no {key}")))
    };
    let format = get("format")?;
    let format: [u8; 4] = format
        .value()
        .try_into()
        .map_err(|_| IndexError::damaged(path, "its format is no number"))?;
    let (found, known) = (u32::from_le_bytes(format), FORMAT);
    let path_owned = || path.to_path_buf();
    use std::cmp::Ordering::{Equal, Greater, Less};
    match found.cmp(&known) {
        Greater => Err(IndexError::Newer {
            path: path_owned(),
            found,
            known,
        }),
        Less => Err(IndexError::Older {
            path: path_owned(),
            found,
            known,
        }),
        Equal => Header::decode(get("header")?.value())
            .map(Some)
            .map_err(|_| IndexError::damaged(path, "its header can't be read")),
    }
}

fn write_rows(write: &WriteTransaction, overlay: &Overlay) -> Result<(), redb::Error> {
    let owner = |key: &[u8]| overlay.names.get(key).and_then(|slot| slot.value);
    let entries = overlay.names.iter().map(|(key, slot)| {
        let value = match slot.value {
            None => None,
            Some(id) => Some(entry_row(overlay, id)?),
        };
        Ok((key.as_ref(), value, slot.fresh))
    });
    write_table(write.open_table(ENTRIES)?, entries)?;

    let objects = overlay.objects.iter().filter_map(|(id, slot)| {
        let row = match &slot.value {
            None => None,
            Some(packed) => match packed.names.first().map(row::entry_key_at) {
                Some(key) if packed.names.len() == 1 && owner(&key) == Some(*id) => {
                    if slot.stays {
                        return None;
                    }
                    Some([&[row::OBJECT_INLINE], key.as_slice()].concat())
                }
                _ => Some(row::object_encode(&packed.names, &packed.body)),
            },
        };
        Some(Ok((id.0.to_be_bytes(), row, slot.fresh)))
    });
    write_table(write.open_table(OBJECTS)?, objects)?;

    let handles = overlay.handles.iter().map(|(key, slot)| {
        let value = slot.value.map(|id| id.0.to_be_bytes().to_vec());
        Ok((key.as_ref(), value, slot.fresh))
    });
    write_table(write.open_table(HANDLES)?, handles)?;

    let meta = overlay.meta.iter();
    let meta = meta.map(|(key, slot)| Ok((key.as_bytes(), plain(slot), slot.fresh)));
    write_table(write.open_table(META)?, meta)?;
    let blocks = overlay.blocks.iter();
    let blocks = blocks.map(|(id, slot)| Ok((id.0.to_be_bytes(), plain(slot), slot.fresh)));
    write_table(write.open_table(BLOCKS)?, blocks)?;
    Ok(())
}

fn plain(slot: &Slot<Box<[u8]>>) -> Option<Vec<u8>> {
    slot.value.as_ref().map(|value| value.to_vec())
}

/// The row of a name of this object: with the body when it is the only name.
fn entry_row(overlay: &Overlay, id: mirror_core::ObjectId) -> Result<Vec<u8>, StorageError> {
    let packed = overlay
        .objects
        .get(&id)
        .and_then(|slot| slot.value.as_ref());
    let packed = packed.ok_or_else(|| {
        StorageError::Corrupted("a name in memory is of no object in memory".into())
    })?;
    Ok(match packed.names.len() {
        1 => row::entry_inline(id, &packed.body),
        _ => row::entry_reference(id),
    })
}

/// A run of fresh keys shorter than this isn't worth a cursor.
const RUN_MIN: u32 = 4;
/// After such a run, so many fresh keys are inserted one by one.
const SINGLE_KEYS: u32 = 64;

/// Rows come in order of their keys. Runs of keys that go into one gap are written through a cursor, which is about
/// three times faster.
fn write_table<K: AsRef<[u8]>>(
    mut table: Table<'_, Bytes, Bytes>,
    rows: impl Iterator<Item = Result<(K, Option<Vec<u8>>, bool), StorageError>>,
) -> Result<(), redb::Error> {
    let mut rows = rows.peekable();
    let mut single = 0u32;
    while let Some(row) = rows.next() {
        let (key, value, fresh) = row?;
        let Some(value) = value else {
            table.remove(key.as_ref())?;
            continue;
        };
        if !fresh || single > 0 {
            single = single.saturating_sub(1);
            table.insert(key.as_ref(), value.as_slice())?;
            continue;
        }
        // What the cursor refuses because the gap ends before it.
        let mut left = Some((key, value));
        let mut run = 0u32;
        {
            let low = left.as_ref().map(|(key, _)| key.as_ref());
            let low = low.map_or(Bound::Unbounded, Bound::Included);
            let mut cursor = table.lower_bound_mut(low)?;
            while let Some((key, value)) = left.take() {
                match cursor.insert_before(key.as_ref(), value.as_slice()) {
                    Ok(()) => run += 1,
                    Err(CursorError::UnorderedKey) => {
                        left = Some((key, value));
                        break;
                    }
                    Err(e) => return Err(e.into()),
                }
                let next = rows.next_if(|row| matches!(row, Ok((_, Some(_), true)) | Err(_)));
                if let Some(next) = next
                    && let (key, Some(value), _) = next?
                {
                    left = Some((key, value));
                }
            }
            cursor.close()?;
        }
        if let Some((key, value)) = left {
            table.insert(key.as_ref(), value.as_slice())?;
        }
        if run < RUN_MIN {
            single = SINGLE_KEYS;
        }
    }
    Ok(())
}
