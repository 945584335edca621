//! What the wrappers share: errno, names as C strings, and remembering that a system call is missing.

use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Errno, Result};

/// The result of a libc call that returns -1 and sets errno.
pub fn check(returned: libc::c_long) -> Result<libc::c_long> {
    if returned == -1 {
        Err(errno())
    } else {
        Ok(returned)
    }
}

fn errno() -> Errno {
    let code = std::io::Error::last_os_error().raw_os_error();
    Errno::from_raw_os_error(code.unwrap_or(libc::EIO))
}

/// Calls `f` with `bytes` as a C string, without allocating for a name. NUL inside: `EINVAL`.
pub fn with_c_str<T>(bytes: &[u8], f: impl FnOnce(&CStr) -> Result<T>) -> Result<T> {
    let mut small = [0u8; 256];
    match small.get_mut(..bytes.len()) {
        Some(room) if bytes.len() < 256 => {
            room.copy_from_slice(bytes);
            let text = CStr::from_bytes_until_nul(&small).map_err(|_| Errno::INVAL)?;
            if text.count_bytes() != bytes.len() {
                return Err(Errno::INVAL);
            }
            f(text)
        }
        _ => f(&CString::new(bytes).map_err(|_| Errno::INVAL)?),
    }
}

/// `name` when it is one component and can't lead elsewhere, else `EINVAL`.
pub fn component(name: &[u8]) -> Result<&[u8]> {
    let bad = name.is_empty()
        || name == b"."
        || name == b".."
        || name.iter().any(|&b| b == b'/' || b == 0);
    if bad { Err(Errno::INVAL) } else { Ok(name) }
}

/// As [`component`], but an empty name, for the descriptor itself, is fine too.
pub fn component_or_self(name: &[u8]) -> Result<&[u8]> {
    if name.is_empty() {
        Ok(name)
    } else {
        component(name)
    }
}

/// A system call that this kernel, or a sandbox around us, may lack.
pub struct Call {
    missing: AtomicBool,
}

impl Call {
    pub const fn new() -> Call {
        Call {
            missing: AtomicBool::new(false),
        }
    }
    /// `None`: the call is not there, use the other way.
    pub fn attempt<T>(&self, f: impl FnOnce() -> Result<T>) -> Option<Result<T>> {
        if self.missing.load(Ordering::Relaxed) {
            return None;
        }
        match f() {
            Err(Errno::NOSYS) => {
                self.missing.store(true, Ordering::Relaxed);
                None
            }
            done => Some(done),
        }
    }
}
