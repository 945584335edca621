//! Where a file has data: `SEEK_DATA` and `SEEK_HOLE`, less what was never written.
//!
//! A range that was allocated ahead and never written holds zeros. The kernel calls it a hole until somebody reads it,
//! and data from then on, as long as it is in the cache. Here it is a hole, whoever read it: [`written_ranges`].

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{SeekFrom, seek};
use rustix::io::{pread, retry_on_intr};

use super::extents::unwritten;
use super::{Errno, Result};

/// Zeros are looked for in pieces of this size, aligned.
const BLOCK: u64 = 4096;

/// The data of the first `bytes` bytes as (offset, length), in the form of `mirror_core::types::Content::data`:
/// empty for a file without holes, one range (`bytes`, 0) for a file that is one hole. Ask only where
/// `Stat::may_have_holes`. Moves the descriptor's offset: read with `pread`.
/// After `ranges_max` ranges the last one runs to the end: no byte is lost, only the holes behind it.
/// A file system that can't tell says "no holes".
pub fn data_ranges(fd: impl AsFd, bytes: u64, ranges_max: usize) -> Result<Vec<(u64, u64)>> {
    let fd = fd.as_fd();
    // Most files have none, and one question tells.
    if matches!(seek(fd, SeekFrom::Hole(0)), Ok(end) if end >= bytes) {
        return Ok(Vec::new());
    }
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < bytes {
        let start = match seek(fd, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) if ranges.is_empty() => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        if start >= bytes {
            break;
        }
        let end = if ranges.len() + 1 >= ranges_max {
            bytes
        } else {
            match seek(fd, SeekFrom::Hole(start)) {
                // A file that shrank meanwhile: the look will be repeated, only stay in bounds.
                Err(Errno::NXIO) => bytes,
                Ok(end) if end > start => end.min(bytes),
                Ok(_) => bytes,
                Err(e) => return Err(e),
            }
        };
        ranges.push((start, end - start));
        at = end;
    }
    match ranges.as_slice() {
        [] if bytes > 0 => Ok(vec![(bytes, 0)]),
        [(0, length)] if *length == bytes => Ok(Vec::new()),
        _ => Ok(ranges),
    }
}

/// [`data_ranges`], without what was allocated and never written. Where that could be meant, it reads and, when it
/// finds zeros, has the file written back: what waits for that looks the same.
pub fn written_ranges(fd: impl AsFd, bytes: u64, ranges_max: usize) -> Result<Vec<(u64, u64)>> {
    let fd = fd.as_fd();
    let data = data_ranges(fd, bytes, ranges_max)?;
    let told = match data.as_slice() {
        [] if bytes == 0 => return Ok(data),
        [] => vec![(0, bytes)],
        _ => data.clone(),
    };
    let never = unwritten(fd, bytes, false)?;
    if never.is_empty() {
        return Ok(data);
    }
    let zeros = zeros_in(fd, &both(&told, &never))?;
    if zeros.is_empty() {
        return Ok(data);
    }
    let zeros = both(&zeros, &unwritten(fd, bytes, true)?);
    let written = without(&told, &zeros);
    if written.len() > ranges_max {
        return Ok(data);
    }
    Ok(match written.as_slice() {
        [] => vec![(bytes, 0)],
        [(0, length)] if *length == bytes => Vec::new(),
        _ => written,
    })
}

/// Whether there is an aligned block of zeros in bytes that lie at `offset` in their file.
pub fn has_zero_block(mut bytes: &[u8], mut offset: u64) -> bool {
    while !bytes.is_empty() {
        let length =
            usize::try_from(BLOCK - offset % BLOCK).map_or(bytes.len(), |n| n.min(bytes.len()));
        let (block, rest) = bytes.split_at(length);
        if block.iter().all(|&b| b == 0) {
            return true;
        }
        offset += length as u64;
        bytes = rest;
    }
    false
}

/// The blocks of these ranges that hold nothing but zeros.
fn zeros_in(fd: BorrowedFd<'_>, ranges: &[(u64, u64)]) -> Result<Vec<(u64, u64)>> {
    let mut zeros: Vec<(u64, u64)> = Vec::new();
    let mut buffer = [0; BLOCK as usize];
    for &(start, length) in ranges {
        let (mut at, end) = (start, start + length);
        while at < end {
            let want = (BLOCK - at % BLOCK).min(end - at);
            let block = buffer.get_mut(..want as usize).unwrap_or_default();
            let got = retry_on_intr(|| pread(fd, &mut *block, at))?;
            if got as u64 == want && block.iter().all(|&b| b == 0) {
                match zeros.last_mut() {
                    Some((from, length)) if *from + *length == at => *length += want,
                    _ => zeros.push((at, want)),
                }
            }
            at += want;
        }
    }
    Ok(zeros)
}

/// What lies in ranges of both. All are in order and apart.
fn both(a: &[(u64, u64)], b: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    while let (Some(&&(x, n)), Some(&&(y, m))) = (a.peek(), b.peek()) {
        let (from, to) = (x.max(y), (x + n).min(y + m));
        if from < to {
            out.push((from, to - from));
        }
        if x + n <= y + m {
            a.next();
        } else {
            b.next();
        }
    }
    out
}

/// What of `ranges` lies in none of `holes`.
fn without(ranges: &[(u64, u64)], holes: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    let mut holes = holes.iter().peekable();
    for &(start, length) in ranges {
        let (mut at, end) = (start, start + length);
        while let Some(&&(hole, length)) = holes.peek() {
            if hole >= end {
                break;
            }
            if at < hole {
                out.push((at, hole - at));
            }
            at = at.max(hole + length);
            if hole + length > end {
                break;
            }
            holes.next();
        }
        if at < end {
            out.push((at, end - at));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    fn check(base: &Path) {
        let f = tempfile::tempfile_in(base).unwrap();
        let ask = |f: &File, max| data_ranges(f, f.metadata().unwrap().len(), max).unwrap();
        assert_eq!(ask(&f, 100), []);
        f.set_len(1 << 20).unwrap();
        assert_eq!(ask(&f, 100), [(1 << 20, 0)]);
        f.write_all_at(&[1; 4096], 0).unwrap();
        f.write_all_at(&[1; 4096], 1 << 19).unwrap();
        assert_eq!(ask(&f, 100), [(0, 4096), (1 << 19, 4096)]);
        assert_eq!(ask(&f, 1), []);
        f.write_all_at(&[1; 10], 1 << 20).unwrap();
        assert_eq!(ask(&f, 100), [(0, 4096), (1 << 19, 4096), (1 << 20, 10)]);
        assert_eq!(ask(&f, 2), [(0, 4096), (1 << 19, (1 << 19) + 10)]);
        // Only the announced bytes count.
        assert_eq!(data_ranges(&f, 8192, 100).unwrap(), [(0, 4096)]);
        f.write_all_at(&vec![1; 1 << 20], 0).unwrap();
        assert_eq!(ask(&f, 100), []);
    }

    #[test]
    fn ranges_are_cut() {
        let told = [(0, 10), (20, 10), (40, 5)];
        assert_eq!(without(&told, &[]), told);
        assert_eq!(
            without(&told, &[(2, 3), (8, 15), (28, 14)]),
            [(0, 2), (5, 3), (23, 5), (42, 3)]
        );
        assert_eq!(without(&told, &[(0, 100)]), []);
        assert_eq!(
            both(&told, &[(5, 20), (29, 1), (44, 9)]),
            [(5, 5), (20, 5), (29, 1), (44, 1)]
        );
    }

    #[test]
    fn a_block_of_zeros_is_found() {
        let mut bytes = vec![1; 10_000];
        assert!(!has_zero_block(&bytes, 0));
        bytes[4096..8192].fill(0);
        assert!(has_zero_block(&bytes, 0));
        assert!(!has_zero_block(&bytes, 10));
        assert!(has_zero_block(&bytes, 8192));
        assert!(has_zero_block(&[0; 5], 4090) && !has_zero_block(&[], 0));
    }

    #[test]
    fn what_was_never_written_is_a_hole_also_when_it_was_read() {
        let f = tempfile::tempfile().unwrap();
        f.write_all_at(&[1; 4096], 0).unwrap();
        let keep = rustix::fs::FallocateFlags::empty();
        if rustix::fs::fallocate(&f, keep, 4096, 1 << 16).is_err()
            || unwritten(&f, 1 << 17, true).unwrap().is_empty()
        {
            println!("skipped: no preallocation here");
            return;
        }
        let size = f.metadata().unwrap().len();
        let ask = || written_ranges(&f, size, 100).unwrap();
        assert_eq!(ask(), [(0, 4096)]);
        f.read_exact_at(&mut vec![0; size as usize], 0).unwrap();
        assert_eq!(
            data_ranges(&f, size, 100).unwrap(),
            [],
            "the kernel says data now"
        );
        assert_eq!(ask(), [(0, 4096)]);
        // Zeros that were written are data, also while they are in the cache alone.
        f.write_all_at(&[0; 4096], 8192).unwrap();
        f.write_all_at(&[2; 1], 20_000).unwrap();
        assert_eq!(ask(), [(0, 4096), (8192, 4096), (16_384, 4096)]);
    }

    #[test]
    fn on_the_temp_directory() {
        check(&std::env::temp_dir());
    }
    #[test]
    fn on_shared_memory() {
        check(Path::new("/dev/shm"));
    }
}
