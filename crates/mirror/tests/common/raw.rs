//! System calls that neither the standard library nor rustix wraps, for tests.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn done(result: libc::c_long) -> io::Result<i64> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub fn cstring(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// Sets an extended attribute of the entry itself, symlinks included.
pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::lsetxattr(
        path,
        name,
        value,
        rustix::fs::XattrFlags::empty(),
    )?)
}

/// A shared writable mapping. Stores go through raw pointers, as other programs' do.
pub struct Map {
    start: *mut u8,
    length: usize,
}

// SAFETY: a mapping may be used and unmapped by any thread.
unsafe impl Send for Map {}

impl Map {
    pub fn new(file: &File, length: usize) -> io::Result<Map> {
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Map {
            start: start.cast(),
            length,
        })
    }
    pub fn store(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length);
        // SAFETY: inside the mapping, which no reference points into; nobody truncates the file meanwhile.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(offset), bytes.len())
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range that mmap returned.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}

/// One write by the old asynchronous interface (`libaio`).
pub fn aio_write(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[repr(C)]
    #[derive(Default)]
    struct Iocb {
        data: u64,
        key: u32,
        rw_flags: i32,
        opcode: u16,
        priority: i16,
        fd: u32,
        buffer: u64,
        bytes: u64,
        offset: i64,
        reserved: u64,
        flags: u32,
        resfd: u32,
    }
    const PWRITE: u16 = 1;
    let mut context: u64 = 0;
    // SAFETY: the kernel fills `context`.
    done(unsafe { libc::syscall(libc::SYS_io_setup, 1, &mut context) })?;
    let mut iocb = Iocb {
        opcode: PWRITE,
        fd: file.as_raw_fd() as u32,
        buffer: bytes.as_ptr() as u64,
        bytes: bytes.len() as u64,
        offset: offset as i64,
        ..Iocb::default()
    };
    let mut list = [&mut iocb as *mut Iocb];
    let mut events = [[0u64; 4]; 1];
    // SAFETY: one control block, one event, both alive until the event came.
    let result = done(unsafe { libc::syscall(libc::SYS_io_submit, context, 1, list.as_mut_ptr()) })
        .and_then(|_| {
            // SAFETY: as above.
            done(unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    context,
                    1,
                    1,
                    events.as_mut_ptr(),
                    std::ptr::null::<libc::timespec>(),
                )
            })
        });
    // SAFETY: the context of above.
    unsafe { libc::syscall(libc::SYS_io_destroy, context) };
    result?;
    let written = events[0][2] as i64;
    if written < 0 {
        return Err(io::Error::from_raw_os_error(-written as i32));
    }
    assert_eq!(written as usize, bytes.len());
    Ok(())
}

/// One write by io_uring.
pub fn uring_write(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    // `struct io_uring_params`: entries, sizes and where in the rings things are.
    #[repr(C)]
    #[derive(Default)]
    struct Params {
        sq_entries: u32,
        cq_entries: u32,
        flags: u32,
        thread: [u32; 2],
        features: u32,
        wq: u32,
        reserved: [u32; 3],
        /// head, tail, ring_mask, ring_entries, flags, dropped, array, reserved, (user_addr: u64)
        sq: [u32; 10],
        /// head, tail, ring_mask, ring_entries, overflow, cqes, flags, reserved, (user_addr: u64)
        cq: [u32; 10],
    }
    const OP_WRITE: u8 = 23;
    const ENTER_GETEVENTS: u32 = 1;
    const RING_BYTES: usize = 4096;
    let mut params = Params::default();
    // SAFETY: the kernel fills one `struct io_uring_params`.
    let ring = done(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &mut params) })? as i32;
    let map = |offset: i64| -> io::Result<*mut u8> {
        // SAFETY: a mapping of the ring's own memory.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RING_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                ring,
                offset,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(at.cast())
    };
    let (sq, cq, sqes) = (map(0)?, map(0x800_0000)?, map(0x1000_0000)?);
    // SAFETY: one entry of 64 bytes at the start of `sqes`, laid out as `struct io_uring_sqe`; the offsets of the rings
    // are the kernel's, within the mapped page (one entry each).
    let written = unsafe {
        sqes.write_bytes(0, 64);
        sqes.write(OP_WRITE);
        sqes.add(4).cast::<i32>().write(file.as_raw_fd());
        sqes.add(8).cast::<u64>().write(offset);
        sqes.add(16).cast::<u64>().write(bytes.as_ptr() as u64);
        sqes.add(24).cast::<u32>().write(bytes.len() as u32);
        sq.add(params.sq[6] as usize).cast::<u32>().write(0);
        let tail = sq
            .add(params.sq[1] as usize)
            .cast::<std::sync::atomic::AtomicU32>();
        (*tail).fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        done(libc::syscall(
            libc::SYS_io_uring_enter,
            ring,
            1,
            1,
            ENTER_GETEVENTS,
            std::ptr::null::<libc::sigset_t>(),
            0,
        ))?;
        cq.add(params.cq[5] as usize + 8).cast::<i32>().read()
    };
    // SAFETY: what was mapped and opened above.
    unsafe {
        for at in [sq, cq, sqes] {
            libc::munmap(at.cast(), RING_BYTES);
        }
        libc::close(ring);
    }
    if written < 0 {
        return Err(io::Error::from_raw_os_error(-written));
    }
    assert_eq!(written as usize, bytes.len());
    Ok(())
}

/// Page-aligned bytes, as O_DIRECT wants them.
#[repr(C, align(4096))]
pub struct Page(pub [u8; 4096]);

/// Changes the generation of an inode (ext4): its handle is another one then.
pub fn set_generation(file: &File, generation: u32) -> io::Result<()> {
    const EXT4_IOC_SETVERSION: libc::c_ulong = 0x4008_6604;
    let generation = u64::from(generation);
    // SAFETY: the kernel reads an int.
    done(unsafe { libc::ioctl(file.as_raw_fd(), EXT4_IOC_SETVERSION, &generation) }.into())
        .map(drop)
}

/// A file handle, as a network server keeps one.
pub struct FileHandle {
    /// `struct file_handle` with room for its bytes.
    buffer: [u64; 18],
}

impl FileHandle {
    pub fn of(path: &Path) -> io::Result<FileHandle> {
        let mut buffer = [0u64; 18];
        buffer[0] = 128;
        let mut mount = 0;
        done(
            // SAFETY: the header says how much room there is.
            unsafe {
                libc::name_to_handle_at(
                    libc::AT_FDCWD,
                    cstring(path).as_ptr(),
                    buffer.as_mut_ptr().cast(),
                    &mut mount,
                    0,
                )
            }
            .into(),
        )?;
        Ok(FileHandle { buffer })
    }
    /// Opens it for reading and writing, on the file system of `mount`.
    pub fn open(&self, mount: &File) -> io::Result<File> {
        use std::os::fd::FromRawFd;
        // SAFETY: the handle is one that the kernel made; the descriptor is ours.
        let fd = done(
            unsafe {
                libc::open_by_handle_at(
                    mount.as_raw_fd(),
                    self.buffer.as_ptr().cast_mut().cast(),
                    libc::O_RDWR | libc::O_CLOEXEC,
                )
            }
            .into(),
        )?;
        // SAFETY: as above.
        Ok(unsafe { File::from_raw_fd(fd as i32) })
    }
}

/// Tells the kernel that two ranges may share their blocks if they are equal.
pub fn dedupe(from: &File, to: &File, length: u64) -> io::Result<()> {
    #[repr(C)]
    #[derive(Default)]
    struct Range {
        offset: u64,
        length: u64,
        count: u16,
        reserved: [u16; 3],
        fd: i64,
        to_offset: u64,
        deduped: u64,
        status: i32,
        reserved2: u32,
    }
    const FIDEDUPERANGE: libc::c_ulong = 0xc018_9436;
    let mut range = Range {
        length,
        count: 1,
        fd: to.as_raw_fd().into(),
        ..Range::default()
    };
    // SAFETY: `struct file_dedupe_range` with one `file_dedupe_range_info` behind it.
    done(unsafe { libc::ioctl(from.as_raw_fd(), FIDEDUPERANGE, &mut range) }.into()).map(drop)
}
