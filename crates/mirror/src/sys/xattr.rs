//! Extended attributes of an inode, ACLs and capabilities included, as raw bytes.
//!
//! By (directory, name) without opening the file, so of symlinks and special files too; an empty name is the
//! descriptor itself, `O_PATH` included. The *at calls of Linux 6.13 where present, else a path through
//! `/proc/self/fd`. A file system without attributes reads as "none".

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use mirror_core::types::Xattr;

use super::raw::{self, Call};
use super::{Errno, Result};

/// The kernel's limits for a list of names and for a value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
pub const LIST_BYTES_MAX: usize = 64 * 1024;
pub const VALUE_BYTES_MAX: usize = 64 * 1024;

/// Most lists and values fit here.
const SMALL_BYTES: usize = 512;

const SYS_SETXATTRAT: libc::c_long = 463;
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;
const SYS_REMOVEXATTRAT: libc::c_long = 466;

static AT_CALLS: Call = Call::new();

/// Whether attributes of names are set without a path through `/proc`.
pub(super) fn has_at_calls() -> bool {
    let none = AT_CALLS.attempt(|| {
        // SAFETY: the kernel reads two C strings; no descriptor has this number.
        raw::check(unsafe {
            libc::syscall(SYS_REMOVEXATTRAT, -1, c"".as_ptr(), 0, c"user.x".as_ptr())
        })
        .map(drop)
    });
    none.is_some()
}

#[repr(C, align(8))]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// All attributes, sorted by name. One that vanishes while we read is left out.
pub fn read(dir: impl AsFd, name: &[u8]) -> Result<Vec<Xattr>> {
    read_of(&What::new(dir.as_fd(), name)?)
}

fn read_of(what: &What<'_>) -> Result<Vec<Xattr>> {
    let names = match grow(LIST_BYTES_MAX, |buffer| what.list(buffer)) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for name in names.split_inclusive(|&b| b == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::IO)?;
        match grow(VALUE_BYTES_MAX, |buffer| what.get(name, buffer)) {
            Ok(value) => found.push(Xattr {
                name: name.to_bytes().into(),
                value: value.into(),
            }),
            Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    found.sort_unstable();
    found.dedup_by(|a, b| a.name == b.name);
    Ok(found)
}

/// One attribute; `None`: not there, or a file system without attributes.
pub fn get(dir: impl AsFd, name: &[u8], xattr: &[u8]) -> Result<Option<Vec<u8>>> {
    let what = What::new(dir.as_fd(), name)?;
    raw::with_c_str(xattr, |xattr| {
        match grow(VALUE_BYTES_MAX, |buffer| what.get(xattr, buffer)) {
            Ok(value) => Ok(Some(value)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(e) => Err(e),
        }
    })
}

/// Makes one, or replaces its value. Mind the order: `security.capability` is lost by chown and by writing,
/// `system.posix_acl_access` and the mode change each other.
pub fn set(dir: impl AsFd, name: &[u8], xattr: &Xattr) -> Result<()> {
    let what = What::new(dir.as_fd(), name)?;
    raw::with_c_str(&xattr.name, |name| what.set(name, &xattr.value))
}

/// Takes one away; fine when it is not there.
pub fn remove(dir: impl AsFd, name: &[u8], xattr: &[u8]) -> Result<()> {
    let what = What::new(dir.as_fd(), name)?;
    match raw::with_c_str(xattr, |xattr| what.remove(xattr)) {
        Err(Errno::NODATA) => Ok(()),
        done => done,
    }
}

/// `read(buffer)` into a small buffer, and into one of `bytes_max` when that was too small.
fn grow(bytes_max: usize, read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut small = [0; SMALL_BYTES];
    match read(&mut small) {
        Ok(length) => Ok(small.get(..length).ok_or(Errno::RANGE)?.to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; bytes_max];
            let length = read(&mut large)?;
            large.truncate(length);
            large.shrink_to_fit();
            Ok(large)
        }
        Err(e) => Err(e),
    }
}

/// Whose attributes.
struct What<'a> {
    dir: BorrowedFd<'a>,
    name: &'a [u8],
    /// Never the *at calls.
    only_by_path: bool,
}

impl<'a> What<'a> {
    fn new(dir: BorrowedFd<'a>, name: &'a [u8]) -> Result<What<'a>> {
        Ok(What {
            dir,
            name: raw::component_or_self(name)?,
            only_by_path: false,
        })
    }

    /// One of the *at calls. `None`: take the path. The calls refuse an `O_PATH` descriptor itself, hence `EBADF`.
    fn at(
        &self,
        call: impl Fn(i32, *const libc::c_char, i32) -> libc::c_long,
    ) -> Option<Result<usize>> {
        if self.only_by_path {
            return None;
        }
        let flags = if self.name.is_empty() {
            libc::AT_EMPTY_PATH
        } else {
            libc::AT_SYMLINK_NOFOLLOW
        };
        let done = AT_CALLS.attempt(|| {
            raw::with_c_str(self.name, |name| {
                raw::check(call(self.dir.as_raw_fd(), name.as_ptr(), flags)).map(|n| n as usize)
            })
        });
        match done {
            Some(Err(Errno::BADF)) if self.name.is_empty() => None,
            done => done,
        }
    }

    /// The other way: a path through `/proc`. Of the descriptor itself the magic link must be followed, and it ends
    /// at the inode, be it a symlink.
    fn by_path<T>(&self, f: impl FnOnce(&CStr, bool) -> Result<T>) -> Result<T> {
        let mut path = format!("/proc/self/fd/{}", self.dir.as_raw_fd()).into_bytes();
        let follow = self.name.is_empty();
        if !follow {
            path.push(b'/');
            path.extend_from_slice(self.name);
        }
        raw::with_c_str(&path, |path| f(path, follow))
    }

    fn list(&self, buffer: &mut [u8]) -> Result<usize> {
        let (at, room) = (buffer.as_mut_ptr(), buffer.len());
        // SAFETY: the kernel writes at most `room` bytes at `at`, which `buffer` owns; `name` is a C string.
        let done = self.at(|dir, name, flags| unsafe {
            libc::syscall(SYS_LISTXATTRAT, dir, name, flags, at, room)
        });
        done.unwrap_or_else(|| {
            self.by_path(|path, follow| {
                let call = if follow {
                    libc::listxattr
                } else {
                    libc::llistxattr
                };
                // SAFETY: as above.
                let r = unsafe { call(path.as_ptr(), at.cast(), room) };
                raw::check(r as libc::c_long).map(|n| n as usize)
            })
        })
    }

    fn get(&self, xattr: &CStr, buffer: &mut [u8]) -> Result<usize> {
        let (at, room) = (buffer.as_mut_ptr(), buffer.len());
        let args = XattrArgs {
            value: at as u64,
            size: room as u32,
            flags: 0,
        };
        let done = self.at(|dir, name, flags| {
            // SAFETY: the kernel writes at most `room` bytes at `at`, which `buffer` owns; the rest is only read.
            unsafe {
                let size = size_of::<XattrArgs>();
                libc::syscall(
                    SYS_GETXATTRAT,
                    dir,
                    name,
                    flags,
                    xattr.as_ptr(),
                    &raw const args,
                    size,
                )
            }
        });
        done.unwrap_or_else(|| {
            self.by_path(|path, follow| {
                let call = if follow {
                    libc::getxattr
                } else {
                    libc::lgetxattr
                };
                // SAFETY: as above.
                let r = unsafe { call(path.as_ptr(), xattr.as_ptr(), at.cast(), room) };
                raw::check(r as libc::c_long).map(|n| n as usize)
            })
        })
    }

    fn set(&self, xattr: &CStr, value: &[u8]) -> Result<()> {
        let size = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
        let args = XattrArgs {
            value: value.as_ptr() as u64,
            size,
            flags: 0,
        };
        let done = self.at(|dir, name, flags| {
            // SAFETY: the kernel only reads: `value` through `args`, and two C strings.
            unsafe {
                let size = size_of::<XattrArgs>();
                libc::syscall(
                    SYS_SETXATTRAT,
                    dir,
                    name,
                    flags,
                    xattr.as_ptr(),
                    &raw const args,
                    size,
                )
            }
        });
        let done = done.unwrap_or_else(|| {
            self.by_path(|path, follow| {
                let call = if follow {
                    libc::setxattr
                } else {
                    libc::lsetxattr
                };
                // SAFETY: the kernel only reads.
                let r = unsafe {
                    call(
                        path.as_ptr(),
                        xattr.as_ptr(),
                        value.as_ptr().cast(),
                        value.len(),
                        0,
                    )
                };
                raw::check(r.into()).map(|n| n as usize)
            })
        });
        done.map(drop)
    }

    fn remove(&self, xattr: &CStr) -> Result<()> {
        let done = self.at(|dir, name, flags| {
            // SAFETY: the kernel only reads two C strings.
            unsafe { libc::syscall(SYS_REMOVEXATTRAT, dir, name, flags, xattr.as_ptr()) }
        });
        let done = done.unwrap_or_else(|| {
            self.by_path(|path, follow| {
                let call = if follow {
                    libc::removexattr
                } else {
                    libc::lremovexattr
                };
                // SAFETY: the kernel only reads two C strings.
                raw::check(unsafe { call(path.as_ptr(), xattr.as_ptr()) }.into())
                    .map(|n| n as usize)
            })
        });
        done.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::open;
    use rustix::fs::{FileType, Mode, OFlags};

    fn xattr(name: &[u8], value: &[u8]) -> Xattr {
        Xattr {
            name: name.into(),
            value: value.into(),
        }
    }

    /// Both ways must agree on everything.
    fn same(dir: impl AsFd, name: &[u8]) -> Vec<Xattr> {
        let dir = dir.as_fd();
        let found = read(dir, name).unwrap();
        let plain = What {
            dir,
            name,
            only_by_path: true,
        };
        assert_eq!(read_of(&plain).unwrap(), found);
        found
    }

    #[test]
    fn of_files_directories_symlinks_and_nodes_both_ways() {
        let t = tempfile::tempdir().unwrap();
        let dir = open::dir_at_path(t.path()).unwrap();
        std::fs::write(t.path().join("f"), b"x").unwrap();
        assert_eq!(same(&dir, b"f"), []);
        let user = [
            xattr(b"user.a", b""),
            xattr(b"user.b", &[7; 900]),
            xattr(b"user.c\xff", b"\0\n"),
        ];
        for one in user.iter().rev() {
            set(&dir, b"f", one).unwrap();
        }
        assert_eq!(same(&dir, b"f"), user);
        // The same inode by descriptors of both kinds.
        assert_eq!(same(open::file(&dir, b"f").unwrap(), b""), user);
        assert_eq!(same(open::path(&dir, b"f").unwrap(), b""), user);
        assert_eq!(get(&dir, b"f", b"user.a").unwrap(), Some(vec![]));
        assert_eq!(get(&dir, b"f", b"user.none").unwrap(), None);
        remove(&dir, b"f", b"user.b").unwrap();
        remove(&dir, b"f", b"user.b").unwrap();
        set(&dir, b"f", &xattr(b"user.a", b"new")).unwrap();
        assert_eq!(
            same(&dir, b"f"),
            [xattr(b"user.a", b"new"), xattr(b"user.c\xff", b"\0\n")]
        );
        set(&dir, b"", &xattr(b"user.d", b"dir")).unwrap();
        assert_eq!(same(&dir, b""), [xattr(b"user.d", b"dir")]);

        if !rustix::process::geteuid().is_root() {
            return println!("skipped symlinks and nodes: not root");
        }
        std::os::unix::fs::symlink("f", t.path().join("l")).unwrap();
        rustix::fs::mknodat(&dir, b"p".as_slice(), FileType::Fifo, Mode::RWXU, 0).unwrap();
        for name in [&b"l"[..], b"p"] {
            let want = xattr(b"trusted.t", name);
            set(&dir, name, &want).unwrap();
            assert_eq!(same(&dir, name), std::slice::from_ref(&want));
            let fd = rustix::fs::openat(&dir, name, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())
                .unwrap();
            assert_eq!(same(&fd, b""), [want]);
            remove(&fd, b"", b"trusted.t").unwrap();
            assert_eq!(same(&dir, name), []);
        }
        let plain = What {
            dir: dir.as_fd(),
            name: b"l",
            only_by_path: true,
        };
        plain.set(c"trusted.t", b"2").unwrap();
        assert_eq!(same(&dir, b"l"), [xattr(b"trusted.t", b"2")]);
        plain.remove(c"trusted.t").unwrap();
        assert_eq!(same(&dir, b"l"), []);
        assert_eq!(same(&dir, b"f").len(), 2, "the symlink was not followed");
    }

    #[test]
    fn a_list_and_a_value_larger_than_small() {
        let t = tempfile::tempdir_in("/dev/shm").unwrap();
        let dir = open::dir_at_path(t.path()).unwrap();
        let many: Vec<_> = (0..60)
            .map(|i| xattr(format!("trusted.{i:0>60}").as_bytes(), &[i; 3]))
            .collect();
        for one in &many {
            match set(&dir, b"", one) {
                Err(Errno::PERM | Errno::OPNOTSUPP) => {
                    return println!("skipped: no trusted.* here");
                }
                done => done.unwrap(),
            }
        }
        let large = xattr(b"trusted.z", &[9; VALUE_BYTES_MAX]);
        set(&dir, b"", &large).unwrap();
        let found = same(&dir, b"");
        assert_eq!(found.len(), 61);
        assert_eq!(found.last(), Some(&large));
        assert!(found.is_sorted());
    }

    #[test]
    fn a_file_system_without_attributes_has_none() {
        let dir = open::dir_at_path("/proc/sys".as_ref()).unwrap();
        assert_eq!(same(&dir, b"kernel"), []);
        assert_eq!(get(&dir, b"kernel", b"user.a").unwrap(), None);
    }
}
