//! Listing a directory: `getdents64` with a large buffer.

use std::convert::Infallible;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::fs::{FileType, RawDir, SeekFrom};

use super::Result;

const BUFFER_BYTES: usize = 32 * 1024;

/// Calls `f(name, type, inode)` for each entry but `.` and `..`, in the directory's own order, from its start.
/// The type may be `Unknown`; both come from the directory, so look (`statx`) before you trust them: of a mount
/// point the number is of the hidden directory. `fd` must not be `O_PATH`. A name that moves while this runs may
/// be missed or come twice.
pub fn list(fd: impl AsFd, mut f: impl FnMut(&[u8], FileType, u64)) -> Result<()> {
    let done = try_list(fd, |name, kind, ino| {
        f(name, kind, ino);
        Ok::<(), Infallible>(())
    })?;
    match done {
        Ok(()) => Ok(()),
    }
}

/// As [`list`], until `f` fails; the inner result is what `f` said.
pub fn try_list<E>(
    fd: impl AsFd,
    mut f: impl FnMut(&[u8], FileType, u64) -> std::result::Result<(), E>,
) -> Result<std::result::Result<(), E>> {
    let fd = fd.as_fd();
    rustix::fs::seek(fd, SeekFrom::Start(0))?;
    let mut buffer = [const { MaybeUninit::<u8>::uninit() }; BUFFER_BYTES];
    let mut entries = RawDir::new(fd, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        if let Err(stop) = f(name, entry.file_type(), entry.ino()) {
            return Ok(Err(stop));
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::ffi::OsStr;
    use std::fs::File;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn lists_every_name_once_and_again() {
        let t = tempfile::tempdir().unwrap();
        let mut want = BTreeSet::new();
        for i in 0..5000 {
            let mut name = format!("{i:0>50}").into_bytes();
            name.push(0xff);
            std::fs::write(t.path().join(OsStr::from_bytes(&name)), b"").unwrap();
            want.insert(name);
        }
        let fd = File::open(t.path()).unwrap();
        for _ in 0..2 {
            let mut got = BTreeSet::new();
            list(&fd, |name, kind, ino| {
                assert!(kind.is_file() && ino != 0);
                assert!(got.insert(name.to_vec()));
            })
            .unwrap();
            assert_eq!(got, want);
        }
    }

    #[test]
    fn stops_when_told() {
        let t = tempfile::tempdir().unwrap();
        std::fs::write(t.path().join("a"), b"").unwrap();
        std::fs::write(t.path().join("b"), b"").unwrap();
        let mut calls = 0;
        let stopped = try_list(File::open(t.path()).unwrap(), |_, _, _| {
            calls += 1;
            Err("enough")
        });
        assert_eq!((stopped.unwrap(), calls), (Err("enough"), 1));
    }
}
