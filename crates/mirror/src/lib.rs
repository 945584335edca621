//! What fs_mirror does: the kernel's edges, the log, the index, and the loops between them.
//! What it decides is in `mirror_core`. Map: `docs/ARCHITECTURE.md`; bytes: `docs/FORMAT.md`.

pub mod apply;
pub mod capture;
pub mod cli;
pub mod disk;
pub mod engine;
pub mod filter;
#[cfg(test)]
mod fuzz;
pub mod history;
pub mod index;
pub mod link;
pub mod listener;
pub mod log;
pub mod net;
mod planted;
mod sync;
pub mod sys;
