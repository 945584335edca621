//! Test support, apart from what it tests: it shares no code with the engine, so that it can disagree with it.
//!
//! [`compare`] is the oracle of "exact", [`generate`] makes trees that hold everything a tree can hold,
//! [`workload`] changes a live tree at random, [`lab`] gives file systems of our own, [`proc`] runs and kills programs,
//! [`proxy`] is a bad link. The programs `treecmp`, `gentree`, `churn` and `linkproxy` are thin faces of them.

pub mod compare;
pub mod generate;
pub mod lab;
pub mod proc;
pub mod proxy;
pub mod rng;
pub mod workload;

mod sys;
mod text;

pub use compare::{Class, Difference, compare};
pub use lab::{Fs, Image, Lab, Skip};
pub use text::escape;

/// Ends a test that can't run here, and says why on the real stderr (the test harness does not hide it).
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::print_skip(&format!($($reason)*));
        return;
    }};
}

/// The value of a `Result<T, Skip>`, or the end of the test with the reason printed.
#[macro_export]
macro_rules! need {
    ($wanted:expr) => {
        match $wanted {
            Ok(value) => value,
            Err(reason) => $crate::skip!("{reason}"),
        }
    };
}

#[doc(hidden)]
pub fn print_skip(reason: &str) {
    use std::io::Write;
    let name = std::thread::current().name().unwrap_or("").to_owned();
    let _ = writeln!(std::io::stderr(), "skipped: {reason} [{name}]");
}

/// Whether we are root, with the capabilities that come with it.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Sets the project (quota) id of a file or directory.
pub fn set_project(path: &std::path::Path, project: u32) -> std::io::Result<()> {
    sys::set_project(std::fs::File::open(path)?, project)
}

/// Changes the inode flags of a file or directory: those in `clear` go, those in `set` come.
pub fn change_flags(path: &std::path::Path, clear: u32, set: u32) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    // A FIFO that came in its place must not make us wait.
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path)?;
    let flags = sys::flags(&file)?;
    sys::set_flags(&file, flags & !clear | set)
}
