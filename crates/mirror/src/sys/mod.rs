//! The kernel's edges: thin, safe wrappers, each with a test against the real kernel. All `unsafe` of the project is here.
//!
//! Names are single components as raw bytes, always relative to a directory descriptor. An empty name means the
//! descriptor itself, where a function says so. Nothing here follows a symlink. What `rustix::fs` has plainly
//! (openat, unlinkat, fsync, ...) is used from there and not wrapped again.
//! This module never decides anything and keeps no state but "this kernel lacks that call".

pub mod behind;
pub mod confine;
pub mod descriptors;
pub mod dir;
pub mod extents;
pub mod fanotify;
pub mod flags;
pub mod handle;
pub mod holes;
pub mod inotify;
pub mod lease;
pub mod mounts;
pub mod open;
pub mod pass;
pub mod polite;
mod raw;
pub mod sched;
pub mod signal;
pub mod stat;
pub mod stop_signals;
pub mod target;
pub mod tree;
pub mod who;
pub mod xattr;

pub use rustix::io::{Errno, Result};
