//! Objects of many names, as they were last read from the store or written to it: reading one anew costs as much as it
//! has names, and a walk meets it under each of them.

use std::collections::BTreeMap;

use mirror_core::{Object, ObjectId};

/// With fewer names an object is read again each time.
const NAMES_MIN: usize = 16;
/// All names kept, but for an object that alone has more.
const NAMES_MAX: usize = 1 << 18;

/// Law: what is here is what the store has.
#[derive(Default)]
pub struct Many {
    objects: BTreeMap<ObjectId, Object>,
    names: usize,
}

impl Many {
    pub fn get(&self, id: ObjectId) -> Option<Object> {
        self.objects.get(&id).cloned()
    }
    pub fn keep(&mut self, id: ObjectId, object: &Object) {
        let names = object.names.len();
        if names < NAMES_MIN {
            return;
        }
        self.forget(id);
        if self.names + names > NAMES_MAX {
            *self = Many::default();
        }
        self.names += names;
        self.objects.insert(id, object.clone());
    }
    pub fn forget(&mut self, id: ObjectId) {
        if let Some(object) = self.objects.remove(&id) {
            self.names -= object.names.len();
        }
    }
}
