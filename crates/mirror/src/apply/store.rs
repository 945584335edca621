//! The rows of the copy with the position they stand for: what the applier needs of an index.

use mirror_core::{Digest, Object, ObjectId, Position, Rows};

use crate::index::{Index, IndexError};

/// Rows are as of `position` after each `advance`; a crash falls back to the last `flush`, rows, position and small
/// values together.
pub trait Store: Rows<Error: std::error::Error + Send + Sync + 'static> {
    fn position(&self) -> Option<Position>;
    fn advance(&mut self, position: Position, head: Digest);
    /// [`Rows::put`] of an object that is not there, under names that no other object has.
    fn put_new(&mut self, id: ObjectId, object: Object) -> Result<(), Self::Error> {
        self.put(id, object)
    }
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Self::Error>;
    /// `None` removes.
    fn set(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), Self::Error>;
    fn flush(&mut self) -> Result<(), Self::Error>;
}

impl Store for Index {
    fn position(&self) -> Option<Position> {
        self.mark().map(|mark| mark.position)
    }
    fn advance(&mut self, position: Position, head: Digest) {
        self.set_position(position, head);
    }
    fn put_new(&mut self, id: ObjectId, object: Object) -> Result<(), IndexError> {
        Index::put_new(self, id, object)
    }
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
        self.meta_get(key)
    }
    fn set(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), IndexError> {
        match value {
            Some(value) => self.meta_put(key, value),
            None => self.meta_remove(key),
        }
    }
    fn flush(&mut self) -> Result<(), IndexError> {
        Index::flush(self)
    }
}
