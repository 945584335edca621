//! A large file on its way to the disk while it is still being written, so that never much of it waits in memory: a flush of
//! somebody else's small file would wait for all of it, in the journal or in the disk's queue.
//!
//! Nothing is durable by this: whoever needs that flushes at the end, and finds little left to do.

use std::os::fd::{AsRawFd, OwnedFd};

/// So much is written at once. Twice this is under way, at most.
const CHUNK_BYTES: u64 = 1 << 20;

/// For one file that is written from its beginning to its end.
#[derive(Debug, Default)]
pub struct Behind {
    /// All before this is on the disk, what is from there to the next is on its way.
    there: u64,
    begun: u64,
}

impl Behind {
    /// The file is written up to here.
    pub fn wrote(&mut self, file: &OwnedFd, end: u64) {
        if end.saturating_sub(self.begun) < CHUNK_BYTES {
            return;
        }
        let wait = libc::SYNC_FILE_RANGE_WAIT_BEFORE;
        range(file, self.there, self.begun, wait);
        range(file, self.begun, end, libc::SYNC_FILE_RANGE_WRITE);
        (self.there, self.begun) = (self.begun, end);
    }
}

/// An error is left for the flush to tell, which the kernel tells it again.
fn range(file: &OwnedFd, from: u64, to: u64, how: libc::c_uint) {
    let (Ok(offset), Ok(bytes)) = (i64::try_from(from), i64::try_from(to.saturating_sub(from)))
    else {
        return;
    };
    // No bytes would mean all of it.
    if bytes > 0 {
        // SAFETY: a descriptor that is open, and numbers.
        unsafe { libc::sync_file_range(file.as_raw_fd(), offset, bytes, how) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn all_but_the_last_is_under_way() {
        let mut file = tempfile::tempfile().unwrap();
        let owned = OwnedFd::from(file.try_clone().unwrap());
        let mut behind = Behind::default();
        let piece = vec![7u8; 300 << 10];
        let mut end = 0;
        for _ in 0..20 {
            file.write_all(&piece).unwrap();
            end += piece.len() as u64;
            behind.wrote(&owned, end);
            assert!(end - behind.begun < CHUNK_BYTES);
            assert!(behind.begun - behind.there <= CHUNK_BYTES + piece.len() as u64);
        }
        // From its beginning again, and far ahead over a hole.
        let mut behind = Behind::default();
        behind.wrote(&owned, 1 << 40);
        behind.wrote(&owned, 100);
        assert_eq!(behind.begun, 1 << 40);
        std::io::Seek::rewind(&mut file).unwrap();
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        assert!(all.len() as u64 == end && all.iter().all(|byte| *byte == 7));
    }
}
