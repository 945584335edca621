//! What fs_mirror decides, and nothing it does: no files, sockets, clock, threads or randomness.
//!
//! The crate is `no_std`, so that the wall is the compiler's, not a habit. Everything here runs in a
//! seeded simulator and in microseconds. The edges (kernel, disk, network) live in the `mirror` crate.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod codec;
pub mod doubt;
pub mod filter;
pub mod guard;
pub mod hints;
pub mod history;
pub mod model;
pub mod names;
pub mod passing;
pub mod plan;
pub mod reads;
pub mod reconcile;
pub mod record;
pub mod rows;
pub mod settle;
pub mod types;

pub use names::Names;
pub use record::{Change, Fork, Note, Record, Who};
pub use rows::{MemRows, Object, Rows};
pub use types::*;
