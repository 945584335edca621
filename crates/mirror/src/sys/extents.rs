//! Blocks that a file has, but that nobody ever wrote (`fallocate`): they read as zeros.

use std::os::fd::{AsFd, AsRawFd};

use super::{Errno, Result, raw};

const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;
/// Write back what is in the cache first.
const FIEMAP_FLAG_SYNC: u32 = 1;
const EXTENT_LAST: u32 = 1;
const EXTENT_UNWRITTEN: u32 = 0x800;
/// Asked for at once.
const EXTENTS: usize = 64;
/// What lies behind this many unwritten extents counts as written.
const UNWRITTEN_MAX: usize = 65_536;

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// Of the first `bytes` bytes those in blocks that were never written: (offset, length), in order. `sync`: the cache
/// is written back first; without it, blocks that were written and wait for that are among them.
/// Nothing where the file system can't tell.
pub fn unwritten(fd: impl AsFd, bytes: u64, sync: bool) -> Result<Vec<(u64, u64)>> {
    let fd = fd.as_fd();
    let mut found = Vec::new();
    let mut start = 0;
    while start < bytes && found.len() < UNWRITTEN_MAX {
        let mut request = Request {
            start,
            length: bytes - start,
            flags: if sync { FIEMAP_FLAG_SYNC } else { 0 },
            mapped: 0,
            count: EXTENTS as u32,
            reserved: 0,
            extents: [Extent::default(); EXTENTS],
        };
        // SAFETY: the kernel fills at most `count` extents behind the header, and there is room for them.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FIEMAP, &mut request) };
        match raw::check(done.into()) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(e @ (Errno::IO | Errno::NOMEM)) => return Err(e),
            Err(_) => return Ok(found),
        }
        let mapped = (request.mapped as usize).min(EXTENTS);
        let mut next = bytes;
        for extent in request.extents.iter().take(mapped) {
            let end = extent.logical.saturating_add(extent.length);
            let (from, to) = (extent.logical.max(start), end.min(bytes));
            if extent.flags & EXTENT_UNWRITTEN != 0 && from < to {
                found.push((from, to - from));
            }
            next = if extent.flags & EXTENT_LAST != 0 {
                bytes
            } else {
                end
            };
        }
        if next <= start {
            break;
        }
        start = next;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_was_never_written_is_told_and_what_was_is_not() {
        let f = tempfile::tempfile().unwrap();
        f.write_all_at(&[1; 4096], 0).unwrap();
        let keep = rustix::fs::FallocateFlags::empty();
        if rustix::fs::fallocate(&f, keep, 4096, 1 << 20).is_err() {
            println!("skipped: no preallocation here");
            return;
        }
        f.sync_all().unwrap();
        let size = f.metadata().unwrap().len();
        let told = unwritten(&f, size, false).unwrap();
        if told.is_empty() {
            println!("skipped: nobody tells here");
            return;
        }
        assert_eq!(told.first(), Some(&(4096, 1 << 20)));
        f.write_all_at(&[0; 4096], 8192).unwrap();
        let told = unwritten(&f, size, true).unwrap();
        assert_eq!(told, [(4096, 4096), (12_288, (1 << 20) - 8192)]);
        assert_eq!(unwritten(&f, 5000, true).unwrap(), [(4096, 904)]);
    }
}
