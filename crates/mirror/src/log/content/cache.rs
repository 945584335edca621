//! The blocks unpacked last.

use std::collections::VecDeque;
use std::sync::Arc;

/// Segment and offset of a block.
pub type Key = (u64, u32);

pub struct Cache {
    bytes_max: usize,
    bytes: usize,
    /// Least recently used first.
    blocks: VecDeque<(Key, Arc<Vec<u8>>)>,
}

impl Cache {
    pub fn new(bytes_max: usize) -> Cache {
        Cache {
            bytes_max,
            bytes: 0,
            blocks: VecDeque::new(),
        }
    }

    pub fn get(&mut self, key: Key) -> Option<Arc<Vec<u8>>> {
        // Few enough to look at each: 64 with the default limit.
        let place = self.blocks.iter().rposition(|(other, _)| *other == key)?;
        let found = self.blocks.remove(place)?;
        let block = found.1.clone();
        self.blocks.push_back(found);
        Some(block)
    }

    pub fn put(&mut self, key: Key, block: Arc<Vec<u8>>) {
        self.bytes += block.len();
        self.blocks.push_back((key, block));
        while self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.blocks.pop_front() else {
                break;
            };
            self.bytes -= oldest.len();
        }
    }

    pub fn forget_segment(&mut self, segment: u64) {
        self.blocks.retain(|(key, _)| key.0 != segment);
        self.bytes = self.blocks.iter().map(|(_, block)| block.len()).sum();
    }
}
