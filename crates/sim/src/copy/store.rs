//! Rows of a copy in memory, with a durable layer beneath.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use mirror::apply::Store;
use mirror_core::{At, Digest, Handle, MemRows, Name, Object, ObjectId, Position, Rows};

#[derive(Clone, Default)]
struct Layer {
    rows: MemRows,
    position: Option<Position>,
    values: BTreeMap<String, Vec<u8>>,
}

/// Clones share what is durable; each begins with it.
#[derive(Default)]
pub struct SimStore {
    now: Layer,
    durable: Arc<Mutex<Layer>>,
}

impl Clone for SimStore {
    fn clone(&self) -> SimStore {
        let now = self
            .durable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        SimStore {
            now,
            durable: self.durable.clone(),
        }
    }
}

impl SimStore {
    pub fn rows(&self) -> &MemRows {
        &self.now.rows
    }
}

impl Rows for SimStore {
    type Error = Infallible;
    fn name(&self, at: &At) -> Result<Option<ObjectId>, Infallible> {
        self.now.rows.name(at)
    }
    fn object(&self, id: ObjectId) -> Result<Option<Object>, Infallible> {
        self.now.rows.object(id)
    }
    fn by_handle(&self, handle: &Handle) -> Result<Option<ObjectId>, Infallible> {
        self.now.rows.by_handle(handle)
    }
    fn children(
        &self,
        dir: ObjectId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, ObjectId)>, Infallible> {
        self.now.rows.children(dir, after, max)
    }
    fn put(&mut self, id: ObjectId, object: Object) -> Result<(), Infallible> {
        self.now.rows.put(id, object)
    }
    fn remove(&mut self, id: ObjectId) -> Result<(), Infallible> {
        self.now.rows.remove(id)
    }
}

impl Store for SimStore {
    fn position(&self) -> Option<Position> {
        self.now.position
    }
    fn advance(&mut self, position: Position, _head: Digest) {
        self.now.position = Some(position);
    }
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.now.values.get(key).cloned())
    }
    fn set(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), Infallible> {
        match value {
            Some(value) => self.now.values.insert(key.to_owned(), value.to_vec()),
            None => self.now.values.remove(key),
        };
        Ok(())
    }
    fn flush(&mut self) -> Result<(), Infallible> {
        *self.durable.lock().unwrap_or_else(PoisonError::into_inner) = self.now.clone();
        Ok(())
    }
}
