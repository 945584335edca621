//! File handles: the identity of an inode that survives renames and tells a number used again.
//!
//! The bytes are the file system's own and the same as in fanotify records. Where a file system has none, a
//! synthetic one from (inode, birth time) stands in: it compares, but can't be opened.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use mirror_core::types::{Handle, Time};
use rustix::fs::OFlags;

use super::stat::Stat;
use super::{Errno, Result, raw};

/// `Handle::kind` of a synthetic handle; the kernel's kinds are never negative.
pub const SYNTHETIC: i32 = -1;

/// The kernel's limit (`MAX_HANDLE_SZ`).
pub const BYTES_MAX: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub handle: Handle,
    pub mount_id: i32,
    /// False: only compares (`AT_HANDLE_FID`), `open_by_handle` will refuse it.
    pub openable: bool,
}

#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    data: [u8; BYTES_MAX],
}

/// Of `name` in `dir`, an empty name is `dir` itself; never follows. `EOPNOTSUPP`: this file system has none.
pub fn name_to_handle(dir: impl AsFd, name: &[u8]) -> Result<Found> {
    match ask(&dir, name, 0) {
        Ok((handle, mount_id)) => Ok(Found {
            handle,
            mount_id,
            openable: true,
        }),
        Err(Errno::OPNOTSUPP) => match ask(&dir, name, libc::AT_HANDLE_FID) {
            Ok((handle, mount_id)) => Ok(Found {
                handle,
                mount_id,
                openable: false,
            }),
            // A kernel before 6.5 does not know the flag.
            Err(Errno::INVAL) => Err(Errno::OPNOTSUPP),
            Err(e) => Err(e),
        },
        Err(e) => Err(e),
    }
}

fn ask(dir: &impl AsFd, name: &[u8], flags: i32) -> Result<(Handle, i32)> {
    let name = raw::component_or_self(name)?;
    let flags = if name.is_empty() {
        flags | libc::AT_EMPTY_PATH
    } else {
        flags
    };
    let mut found = RawHandle {
        bytes: BYTES_MAX as u32,
        kind: 0,
        data: [0; BYTES_MAX],
    };
    let mut mount_id = 0;
    raw::with_c_str(name, |name| {
        // SAFETY: `found` has the layout of `struct file_handle` with room for the `bytes` it announces, and it,
        // `name` and `mount_id` live through the call.
        let r = unsafe {
            libc::name_to_handle_at(
                dir.as_fd().as_raw_fd(),
                name.as_ptr(),
                (&raw mut found).cast(),
                &mut mount_id,
                flags,
            )
        };
        raw::check(r.into())
    })?;
    let bytes = found
        .data
        .get(..found.bytes as usize)
        .ok_or(Errno::OVERFLOW)?;
    Ok((
        Handle {
            kind: found.kind,
            bytes: bytes.into(),
        },
        mount_id,
    ))
}

/// The stand-in for a file system without handles. Without a birth time a number used again goes unseen, so what an
/// inode can't change is in it too: its type and device number (and see [`synthetic_at`]). The device it is on is not:
/// many of these file systems get another number with each mount.
pub fn synthetic(stat: &Stat) -> Handle {
    let mut bytes = Vec::with_capacity(40);
    bytes.extend_from_slice(&stat.ino.to_le_bytes());
    bytes.extend_from_slice(&stat.btime.seconds.to_le_bytes());
    bytes.extend_from_slice(&stat.btime.nanos.to_le_bytes());
    bytes.extend_from_slice(&stat.file_type().as_raw_mode().to_le_bytes());
    bytes.extend_from_slice(&stat.rdev.0.to_le_bytes());
    bytes.extend_from_slice(&stat.rdev.1.to_le_bytes());
    Handle {
        kind: SYNTHETIC,
        bytes: bytes.into(),
    }
}

/// The synthetic handle of `name` in `dir`, which `stat` is of. A symlink never changes its target: where there is no birth
/// time the target tells two symlinks with the same number apart.
pub fn synthetic_at(dir: impl AsFd, name: &[u8], stat: &Stat) -> Result<Handle> {
    let mut handle = synthetic(stat);
    if stat.file_type().is_symlink() && stat.btime == Time::default() {
        let target = super::target::read_symlink(dir, name)?;
        let digest = blake3::hash(&target);
        let (first, _) = digest.as_bytes().split_at(8);
        handle.bytes = [&handle.bytes, first].concat().into();
    }
    Ok(handle)
}

/// The file system's handle, or else the synthetic one of `stat` (which must be of the same name).
pub fn name_to_handle_or_synthetic(dir: impl AsFd, name: &[u8], stat: &Stat) -> Result<Handle> {
    match name_to_handle(&dir, name) {
        Ok(found) => Ok(found.handle),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::OVERFLOW) => synthetic_at(dir, name, stat),
        Err(e) => Err(e),
    }
}

/// Opens the inode through `mount`, any descriptor of that mount that is not `O_PATH`. Close-on-exec is added.
/// `ESTALE`: the inode is gone. `EPERM`: no `CAP_DAC_READ_SEARCH`. `EOPNOTSUPP`: a synthetic handle.
/// A symlink opens only with `O_PATH`; the descriptor then has no `O_NOFOLLOW` question to ask.
pub fn open_by_handle(mount: impl AsFd, handle: &Handle, flags: OFlags) -> Result<OwnedFd> {
    if handle.kind == SYNTHETIC {
        return Err(Errno::OPNOTSUPP);
    }
    let mut wanted = RawHandle {
        bytes: handle.bytes.len() as u32,
        kind: handle.kind,
        data: [0; BYTES_MAX],
    };
    wanted
        .data
        .get_mut(..handle.bytes.len())
        .ok_or(Errno::INVAL)?
        .copy_from_slice(&handle.bytes);
    let flags = (flags | OFlags::CLOEXEC).bits() as i32;
    // SAFETY: `wanted` has the layout of `struct file_handle` and lives through the call.
    let r = unsafe {
        libc::open_by_handle_at(mount.as_fd().as_raw_fd(), (&raw mut wanted).cast(), flags)
    };
    let fd = raw::check(r.into())?;
    // SAFETY: the kernel just gave us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::stat;
    use std::fs::File;

    fn root() -> bool {
        rustix::process::geteuid().is_root()
    }

    fn round_trip(base: &std::path::Path) {
        let t = tempfile::tempdir_in(base).unwrap();
        let dir = File::open(t.path()).unwrap();
        std::fs::write(t.path().join("f"), b"x").unwrap();
        std::os::unix::fs::symlink("f", t.path().join("l")).unwrap();
        let found = name_to_handle(&dir, b"f").unwrap();
        assert_eq!(
            found,
            name_to_handle(File::open(t.path().join("f")).unwrap(), b"").unwrap()
        );
        assert_ne!(found.handle, name_to_handle(&dir, b"l").unwrap().handle);
        std::fs::rename(t.path().join("f"), t.path().join("g")).unwrap();
        assert_eq!(found.handle, name_to_handle(&dir, b"g").unwrap().handle);
        if !root() {
            return println!("skipped the opening half: not root");
        }
        let fd = open_by_handle(&dir, &found.handle, OFlags::PATH).unwrap();
        assert!(
            stat::fstat(&fd)
                .unwrap()
                .same_inode(&stat::statx(&dir, b"g").unwrap())
        );
        drop(fd);
        let link = name_to_handle(&dir, b"l").unwrap().handle;
        let fd = open_by_handle(&dir, &link, OFlags::PATH).unwrap();
        assert!(stat::fstat(&fd).unwrap().file_type().is_symlink());
        std::fs::remove_file(t.path().join("g")).unwrap();
        assert_eq!(
            open_by_handle(&dir, &found.handle, OFlags::PATH).unwrap_err(),
            Errno::STALE
        );
    }

    #[test]
    fn round_trip_on_the_temp_directory() {
        round_trip(&std::env::temp_dir());
    }

    #[test]
    fn round_trip_on_shared_memory() {
        round_trip(std::path::Path::new("/dev/shm"));
    }

    #[test]
    fn a_reused_number_has_another_handle() {
        let t = tempfile::tempdir().unwrap();
        let dir = File::open(t.path()).unwrap();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..50 {
            std::fs::write(t.path().join("f"), b"x").unwrap();
            assert!(seen.insert(name_to_handle(&dir, b"f").unwrap().handle));
            std::fs::remove_file(t.path().join("f")).unwrap();
        }
    }

    #[test]
    fn symlinks_and_devices_with_one_number_are_told_apart() {
        let t = tempfile::tempdir().unwrap();
        let dir = File::open(t.path()).unwrap();
        let made = |target: &str, ino| {
            let _ = std::fs::remove_file(t.path().join("l"));
            std::os::unix::fs::symlink(target, t.path().join("l")).unwrap();
            let mut stat = stat::statx(&dir, b"l").unwrap();
            (stat.ino, stat.btime) = (ino, Time::default());
            synthetic_at(&dir, b"l", &stat).unwrap()
        };
        assert_eq!(made("a", 7), made("a", 7));
        assert_ne!(made("a", 7), made("b", 7));
        assert_ne!(made("a", 7), made("a", 8));
        let mut stat = stat::statx(&dir, b"").unwrap();
        let first = synthetic(&stat);
        stat.rdev = (1, 3);
        assert_ne!(first, synthetic(&stat));
    }

    #[test]
    fn a_file_system_without_handles_gets_a_synthetic_one() {
        let dir = File::open("/proc/sys").unwrap();
        let stat = stat::statx(&dir, b"kernel").unwrap();
        let handle = name_to_handle_or_synthetic(&dir, b"kernel", &stat).unwrap();
        assert_eq!(
            handle,
            name_to_handle_or_synthetic(&dir, b"kernel", &stat).unwrap()
        );
        let fake = synthetic(&stat);
        assert_eq!(
            open_by_handle(&dir, &fake, OFlags::PATH).unwrap_err(),
            Errno::OPNOTSUPP
        );
    }

    #[test]
    fn bytes_of_any_length_are_refused_not_trusted() {
        let dir = File::open("/tmp").unwrap();
        let long = Handle {
            kind: 1,
            bytes: vec![0; 129].into(),
        };
        assert_eq!(
            open_by_handle(&dir, &long, OFlags::PATH).unwrap_err(),
            Errno::INVAL
        );
    }
}
