//! Is somebody writing? A read lease, set and given back at once: never held, so no writer waits.

use std::os::fd::{AsFd, AsRawFd};

use super::{Errno, Result, raw};

/// Ignores SIGIO: a writer that opens the file inside the microsecond of a probe would raise it, and it kills by default.
/// Call once, before the first probe.
pub fn init() {
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
}

/// True while anybody (ourselves too) has this regular file open for writing or mapped shared and writable, even
/// with the descriptor closed. `fd` must be open for reading only. `EACCES`: neither owner nor `CAP_LEASE`;
/// `EINVAL`: this file system has no leases: nothing is known then. On overlay mappings are not seen.
pub fn writable_by_anyone(fd: impl AsFd) -> Result<bool> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: both calls take an integer and touch no memory of ours.
    match raw::check(unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) }.into()) {
        Ok(_) => {
            // SAFETY: as above.
            raw::check(unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) }.into())?;
            Ok(false)
        }
        Err(Errno::AGAIN) => Ok(true),
        Err(e) => Err(e),
    }
}

/// Starts writing back dirty pages, which makes them read-only in every mapping: the next store moves ctime again
/// (not on tmpfs). Works on a descriptor open for reading.
pub fn write_protect(fd: impl AsFd) -> Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: takes integers only.
    raw::check(unsafe { libc::sync_file_range(fd.as_fd().as_raw_fd(), 0, 0, flags) }.into())
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::stat;
    use std::fs::{File, OpenOptions};
    use std::path::Path;

    fn check(base: &Path) {
        init();
        let t = tempfile::tempdir_in(base).unwrap();
        let path = t.path().join("f");
        std::fs::write(&path, [0; 8192]).unwrap();
        let reader = File::open(&path).unwrap();
        assert!(!writable_by_anyone(&reader).unwrap());
        let writer = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        assert!(writable_by_anyone(&reader).unwrap());
        let map = map(&writer);
        drop(writer);
        assert!(writable_by_anyone(&reader).unwrap());
        // SAFETY: unmaps exactly what `map` mapped, and nobody points into it.
        unsafe { libc::munmap(map.cast(), 8192) };
        assert!(!writable_by_anyone(&reader).unwrap());
        // The probe is not held: a writer gets in at once.
        OpenOptions::new().write(true).open(&path).unwrap();
    }

    fn map(file: &File) -> *mut u8 {
        // SAFETY: a fresh mapping at an address the kernel picks.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                8192,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        at.cast()
    }

    #[test]
    fn sees_writers_and_mappings() {
        check(&std::env::temp_dir());
        check(Path::new("/dev/shm"));
    }

    #[test]
    fn a_store_after_write_protect_moves_ctime() {
        let t = tempfile::tempdir().unwrap();
        let path = t.path().join("f");
        std::fs::write(&path, [0; 8192]).unwrap();
        let writer = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let map = map(&writer);
        let reader = File::open(&path).unwrap();
        // SAFETY: inside the mapping, and the file is long enough.
        let store = |value| unsafe { map.write_volatile(value) };
        store(1);
        let first = stat::fstat(&reader).unwrap().ctime;
        std::thread::sleep(std::time::Duration::from_millis(20));
        store(2);
        assert_eq!(
            stat::fstat(&reader).unwrap().ctime,
            first,
            "a store to a dirty page is not stamped"
        );
        write_protect(&reader).unwrap();
        store(3);
        assert_ne!(stat::fstat(&reader).unwrap().ctime, first);
        // SAFETY: unmaps exactly what `map` mapped, and nobody points into it.
        unsafe { libc::munmap(map.cast(), 8192) };
    }
}
