//! Where a file has data, by `SEEK_DATA` and `SEEK_HOLE`.

use std::os::fd::AsFd;

use rustix::fs::{SeekFrom, seek};

use super::{Errno, Result};

/// The data of the first `bytes` bytes as (offset, length), in the form of `mirror_core::types::Content::data`:
/// empty for a file without holes, one range (`bytes`, 0) for a file that is one hole. Ask only where
/// `Stat::may_have_holes`. Moves the descriptor's offset: read with `pread`.
/// After `ranges_max` ranges the last one runs to the end: no byte is lost, only the holes behind it.
/// A file system that can't tell says "no holes".
pub fn data_ranges(fd: impl AsFd, bytes: u64, ranges_max: usize) -> Result<Vec<(u64, u64)>> {
    let fd = fd.as_fd();
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
    fn on_the_temp_directory() {
        check(&std::env::temp_dir());
    }
    #[test]
    fn on_shared_memory() {
        check(Path::new("/dev/shm"));
    }
}
