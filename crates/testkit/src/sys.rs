//! The system calls that rustix does not wrap. All `unsafe` of this crate is here.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::Command;

use libc::{c_int, c_long, c_ulong, c_void};

const FS_IOC_GETFLAGS: c_ulong = 0x8008_6601;
const FS_IOC_SETFLAGS: c_ulong = 0x4008_6602;
const FS_IOC_FSGETXATTR: c_ulong = 0x801c_581f;
const FS_IOC_FSSETXATTR: c_ulong = 0x401c_5820;
const FS_IOC_FIEMAP: c_ulong = 0xc020_660b;
const FS_IOC_SHUTDOWN: c_ulong = 0x8004_587d;
const LOOP_CTL_GET_FREE: c_ulong = 0x4c82;
const LOOP_CONFIGURE: c_ulong = 0x4c0a;
const LOOP_FLAGS_AUTOCLEAR: u32 = 4;
const FILE_GETATTR: c_long = 468;

fn done(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Inode flags (`FS_*_FL`), unmasked.
pub fn flags(fd: impl AsFd) -> io::Result<u32> {
    let mut flags: u64 = 0;
    // SAFETY: the kernel writes an int into `flags`, which is large enough for the `long` of the definition.
    done(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_GETFLAGS, &mut flags) })?;
    Ok(flags as u32)
}

pub fn set_flags(fd: impl AsFd, flags: u32) -> io::Result<()> {
    let flags = u64::from(flags);
    // SAFETY: the kernel reads an int from `flags`.
    done(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_SETFLAGS, &flags) }).map(drop)
}

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

pub fn project(fd: impl AsFd) -> io::Result<u32> {
    let mut attr = FsXattr::default();
    // SAFETY: the kernel fills one `struct fsxattr`.
    done(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_FSGETXATTR, &mut attr) })?;
    Ok(attr.projid)
}

pub fn set_project(fd: impl AsFd, project: u32) -> io::Result<()> {
    let mut attr = FsXattr::default();
    // SAFETY: the kernel fills one `struct fsxattr`.
    done(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_FSGETXATTR, &mut attr) })?;
    attr.projid = project;
    // SAFETY: the kernel reads one `struct fsxattr`.
    done(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_FSSETXATTR, &attr) }).map(drop)
}

/// Project id of whatever an `O_PATH` descriptor stands for (symlinks and special files; Linux 6.17 and later).
pub fn project_of_any(fd: impl AsFd) -> io::Result<u32> {
    /// `struct file_attr`.
    #[repr(C)]
    #[derive(Default)]
    struct FileAttr {
        xflags: u64,
        extsize: u32,
        nextents: u32,
        projid: u32,
        cowextsize: u32,
    }
    let mut attr = FileAttr::default();
    // SAFETY: the path is a C string, and the kernel writes at most the size given.
    let result = unsafe {
        libc::syscall(
            FILE_GETATTR,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            &mut attr as *mut FileAttr,
            size_of::<FileAttr>(),
            libc::AT_EMPTY_PATH,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(attr.projid)
    }
}

/// Blocks of a file.
pub struct Extent {
    pub start: u64,
    pub length: u64,
    /// Only reserved: they read as zeros, and file systems call them data or hole as their caches happen to be.
    pub unwritten: bool,
}

/// Where a file has blocks, in order.
pub fn extents(fd: impl AsFd) -> io::Result<Vec<Extent>> {
    #[repr(C)]
    #[derive(Default, Clone, Copy)]
    struct Raw {
        logical: u64,
        physical: u64,
        length: u64,
        reserved64: [u64; 2],
        flags: u32,
        reserved: [u32; 3],
    }
    const EXTENTS: usize = 64;
    const LAST: u32 = 1;
    const SYNC: u32 = 1;
    const UNWRITTEN: u32 = 0x800;
    #[repr(C)]
    struct Request {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        count: u32,
        reserved: u32,
        extents: [Raw; EXTENTS],
    }
    let mut found = Vec::new();
    let mut start = 0;
    loop {
        let mut request = Request {
            start,
            length: u64::MAX - start,
            flags: SYNC,
            mapped: 0,
            count: EXTENTS as u32,
            reserved: 0,
            extents: [Raw::default(); EXTENTS],
        };
        // SAFETY: the kernel fills at most `count` extents behind the header, and there is room for them.
        done(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_FIEMAP, &mut request) })?;
        let got = &request.extents[..(request.mapped as usize).min(EXTENTS)];
        found.extend(got.iter().map(|extent| Extent {
            start: extent.logical,
            length: extent.length,
            unwritten: extent.flags & UNWRITTEN != 0,
        }));
        match got.last() {
            Some(last) if last.flags & LAST == 0 && last.logical + last.length > start => {
                start = last.logical + last.length;
            }
            _ => return Ok(found),
        }
    }
}

/// Cuts the file system off from its medium, as a power cut would. `how`: 0 flush all, 1 flush the log, 2 flush nothing.
pub fn shutdown(fd: impl AsFd, how: u32) -> io::Result<()> {
    // SAFETY: the kernel reads one u32.
    done(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_SHUTDOWN, &how) }).map(drop)
}

/// The number of a loop device that was free a moment ago.
pub fn loop_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: this request takes no argument.
    done(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) }).map(|number| number as u32)
}

/// Puts `file` behind the loop device; it is let go by itself when the last user closes it.
pub fn loop_attach(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    /// `struct loop_config` with `struct loop_info64` inside.
    #[repr(C)]
    struct Config {
        fd: u32,
        block_size: u32,
        info: Info,
        reserved: [u64; 8],
    }
    #[repr(C)]
    struct Info {
        device: u64,
        inode: u64,
        rdevice: u64,
        offset: u64,
        sizelimit: u64,
        number: u32,
        encrypt_type: u32,
        encrypt_key_size: u32,
        flags: u32,
        file_name: [u8; 64],
        crypt_name: [u8; 64],
        encrypt_key: [u8; 32],
        init: [u64; 2],
    }
    let config = Config {
        fd: file.as_raw_fd() as u32,
        block_size: 0,
        info: Info {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LOOP_FLAGS_AUTOCLEAR,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: the kernel reads one `struct loop_config`.
    done(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) }).map(drop)
}

/// Gives the calling thread, and what it starts from now on, a mount namespace of its own.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: changes only what paths of this thread mean; no memory is touched.
    done(unsafe { libc::unshare(libc::CLONE_NEWNS) }).map(drop)
}

/// Gives the calling thread, and what it starts from now on, a network namespace of its own.
pub fn unshare_net() -> io::Result<()> {
    // SAFETY: changes only which network this thread sees; no memory is touched.
    done(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Lets the command start in a mount namespace of its own, with private mounts.
pub fn in_new_mounts(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt;
    let enter = || {
        unshare_mounts()?;
        // SAFETY: constant C strings; the call touches no memory of ours.
        done(unsafe {
            libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            )
        })
        .map(drop)
    };
    // SAFETY: between fork and exec only two system calls are made; nothing is allocated and no lock taken.
    unsafe { command.pre_exec(enter) }
}

/// A shared, writable mapping of the beginning of a file.
pub struct Mapping {
    start: *mut c_void,
    length: usize,
}

impl Mapping {
    pub fn new(file: impl AsFd, length: usize) -> io::Result<Mapping> {
        // SAFETY: a fresh mapping at an address the kernel chooses; it is only ever used by `store`.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Mapping { start, length })
        }
    }

    /// Stores bytes from `from` (from its offset 0) through the mapping. The store is made by the kernel's copy to user
    /// memory, so a page that somebody has truncated away is an error (`EFAULT`), never a `SIGBUS`.
    pub fn store(&self, from: &File, offset: usize, length: usize) -> io::Result<usize> {
        let length = length.min(self.length.saturating_sub(offset));
        if length == 0 {
            return Ok(0);
        }
        // SAFETY: the range lies inside the mapping, which no Rust reference points into.
        let got = unsafe { libc::pread(from.as_raw_fd(), self.start.byte_add(offset), length, 0) };
        if got < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(got as usize)
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the one that mmap returned, and nothing uses it any more.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

/// Runs `child` in a forked process, which ends with the code it returns, and gives its process id.
///
/// Other threads' locks stay as they were at the fork, so `child` must not print, and must not use what this process's
/// other threads use. Its descriptors beyond stderr are closed. Memory allocation is safe (the C library takes care of its own locks).
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the child runs `child` only and then leaves without running this process's exit handlers.
    let pid = done(unsafe { libc::fork() })?;
    if pid == 0 {
        // What this process has open (locks, pipes, watches) must not live on in the child.
        // SAFETY: closes descriptors; `child` opens its own, and nothing else runs here.
        unsafe { libc::close_range(3, u32::MAX, 0) };
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(code) }
    }
    Ok(pid)
}

/// A file in memory.
pub fn memory_file() -> io::Result<File> {
    // SAFETY: the name is a C string; the descriptor is fresh and ours.
    let fd = done(unsafe { libc::memfd_create(c"testkit".as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: as above.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// A descriptor of its own for one that whoever started us left open under this number.
pub fn inherited(number: std::os::fd::RawFd) -> io::Result<std::os::fd::OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: borrowed for the one call, which finds out itself whether it is open.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    fd.try_clone_to_owned()
}
