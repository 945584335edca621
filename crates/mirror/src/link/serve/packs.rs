//! What is sent packed, and what as it is.

use std::time::Instant;

use super::Connection;
use crate::link::LinkError;
use crate::link::batches::{Made, Part};
use crate::link::message::Message;
use crate::sync::lock;

impl Connection<'_> {
    pub(super) fn packs_now(&self) -> bool {
        let limit = self.outgoing.rate();
        self.outgoing.packing.pays(limit, Instant::now())
    }

    /// One frame packed, if that is worth it.
    pub(super) fn pack(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let (began, packed) = {
            let mut packer = lock(&self.packer);
            (Instant::now(), packer.pack(&[frame]))
        };
        let now = Instant::now();
        let length = packed.as_ref().map_or(frame.len(), Vec::len);
        let saved = frame.len().saturating_sub(length) as u64;
        let (took, limit) = (now - began, self.outgoing.rate());
        let packing = &self.outgoing.packing;
        packing.packed(frame.len(), saved, took, limit, now);
        packed
    }

    pub(super) fn send_bulk(&self, message: impl Into<Message>) -> Result<(), LinkError> {
        let frame = message.into().encoded()?;
        let packed = if self.packs_now() {
            self.pack(&frame)
        } else {
            None
        };
        self.outgoing.send_encoded(&packed.unwrap_or(frame))
    }

    pub(super) fn send_batch(&self, made: &Made) -> Result<(), LinkError> {
        for part in &made.parts {
            let packed = if self.packs_now() {
                self.packed(part)
            } else {
                None
            };
            match packed {
                Some(packed) => self.outgoing.send_encoded(packed)?,
                None => {
                    for frame in part.frames() {
                        self.outgoing.send_encoded(frame)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn packed<'p>(&self, part: &'p Part) -> Option<&'p Vec<u8>> {
        let (packed, took) = part.packed(&self.packer);
        let raw = part.bytes();
        let saved = raw.saturating_sub(packed.map_or(raw, Vec::len)) as u64;
        let packing = &self.outgoing.packing;
        match took {
            Some(took) => {
                let (now, limit) = (Instant::now(), self.outgoing.rate());
                packing.packed(raw, saved, took, limit, now);
            }
            None => packing.saved(saved),
        }
        packed
    }
}
