//! Changes that are not in the store yet: what it must come to hold, in the order of its keys.

use std::collections::BTreeMap;

use mirror_core::{At, Names, Object, ObjectId};

use super::row;

/// What the store must come to hold under a key; `None`: nothing.
#[derive(Debug)]
pub struct Slot<T> {
    pub value: Option<T>,
    /// The store holds nothing under this key.
    pub fresh: bool,
}

/// An object in memory.
#[derive(Debug)]
pub struct Packed {
    pub names: Names,
    /// As `row::body_encode` packs it.
    pub body: Box<[u8]>,
}

impl Packed {
    pub fn new(object: &Object) -> Packed {
        Packed {
            names: object.names.clone(),
            body: row::body_encode(&object.state, &object.local).into(),
        }
    }
    pub fn object(&self) -> Result<Object, row::BadRow> {
        let (state, local) = row::body_decode(&self.body)?;
        let names = self.names.clone();
        Ok(Object {
            state,
            local,
            names,
        })
    }
    fn bytes(&self) -> usize {
        let name = self.names.first().map_or(0, |at| at.name.as_bytes().len());
        self.body.len() + self.names.len() * (size_of::<At>() + name)
    }
}

#[derive(Debug)]
pub struct ObjectSlot {
    pub value: Option<Packed>,
    pub fresh: bool,
    /// The store has the object's body in the row of its one name, and it still has just that name: so its own row
    /// stays as it is, unless the name is another's by now.
    pub stays: bool,
}

/// Laws: an object here is the truth about its state, local part and list of names; each of those names has a slot, or
/// the store has a row for it that refers to the object. A name or handle here is the truth about what it stands for.
/// A name's value has a slot in `objects`.
#[derive(Debug, Default)]
pub struct Overlay {
    /// By entry key.
    pub names: BTreeMap<Box<[u8]>, Slot<ObjectId>>,
    pub objects: BTreeMap<ObjectId, ObjectSlot>,
    /// By handle key.
    pub handles: BTreeMap<Box<[u8]>, Slot<ObjectId>>,
    pub meta: BTreeMap<Box<str>, Slot<Box<[u8]>>>,
    pub blocks: BTreeMap<ObjectId, Slot<Box<[u8]>>>,
    bytes: usize,
}

/// What a slot costs beside the bytes of its key and value: map node, allocator's rounding, pointers. Measured.
const NAME_BYTES: usize = 92;
const OBJECT_BYTES: usize = 100;
const HANDLE_BYTES: usize = 92;
const OTHER_BYTES: usize = 96;

impl Overlay {
    /// Estimate of the memory held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
            && self.objects.is_empty()
            && self.handles.is_empty()
            && self.meta.is_empty()
            && self.blocks.is_empty()
    }
    pub fn clear(&mut self) {
        *self = Overlay::default();
    }

    /// `fresh` counts only when the key has no slot yet.
    pub fn set_name(&mut self, key: &[u8], value: Option<ObjectId>, fresh: bool) {
        self.bytes += set(&mut self.names, key, value, fresh, NAME_BYTES + key.len());
    }
    pub fn set_handle(&mut self, key: &[u8], value: Option<ObjectId>, fresh: bool) {
        self.bytes += set(
            &mut self.handles,
            key,
            value,
            fresh,
            HANDLE_BYTES + key.len(),
        );
    }
    /// `fresh` counts only when the object has no slot yet; `stays` also must have been true before.
    pub fn set_object(&mut self, id: ObjectId, value: Option<Packed>, fresh: bool, stays: bool) {
        let length = value.as_ref().map_or(0, Packed::bytes);
        match self.objects.get_mut(&id) {
            Some(slot) if slot.fresh && value.is_none() => {
                self.objects.remove(&id);
            }
            Some(slot) => {
                let before = slot.value.as_ref().map_or(0, Packed::bytes);
                self.bytes += length.saturating_sub(before);
                slot.value = value;
                slot.stays &= stays;
            }
            None => {
                self.bytes += OBJECT_BYTES + length;
                let slot = ObjectSlot {
                    value,
                    fresh,
                    stays,
                };
                self.objects.insert(id, slot);
            }
        }
    }
    pub fn set_blocks(&mut self, id: ObjectId, value: Option<Vec<u8>>) {
        self.bytes += set_bytes(&mut self.blocks, id, value, OTHER_BYTES);
    }
    pub fn set_meta(&mut self, key: &str, value: Option<Vec<u8>>) {
        self.bytes += set_bytes(&mut self.meta, key.into(), value, OTHER_BYTES + key.len());
    }
}

/// Returns the bytes added. (A slot that goes again gives nothing back: the sum is a bound, and is reset by `clear`.)
fn set(
    map: &mut BTreeMap<Box<[u8]>, Slot<ObjectId>>,
    key: &[u8],
    value: Option<ObjectId>,
    fresh: bool,
    cost: usize,
) -> usize {
    match map.get_mut(key) {
        Some(slot) if slot.fresh && value.is_none() => {
            map.remove(key);
            0
        }
        Some(slot) => {
            slot.value = value;
            0
        }
        None if fresh && value.is_none() => 0,
        None => {
            map.insert(key.into(), Slot { value, fresh });
            cost
        }
    }
}

fn set_bytes<K: Ord>(
    map: &mut BTreeMap<K, Slot<Box<[u8]>>>,
    key: K,
    value: Option<Vec<u8>>,
    cost: usize,
) -> usize {
    let value = value.map(Vec::into_boxed_slice);
    let length = value.as_ref().map_or(0, |v| v.len());
    let fresh = false;
    match map.insert(key, Slot { value, fresh }) {
        Some(before) => length.saturating_sub(before.value.map_or(0, |v| v.len())),
        None => cost + length,
    }
}
