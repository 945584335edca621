//! One listener for all trees of a service on one file system: a process of its own that has the only fanotify group
//! there and passes on to each tree's process what may concern it.
//!
//! Why, and how no event is lost between the two: `docs/decisions/0010-one-listener.md`. [`serve`] is the process,
//! [`route`] decides who is told, [`places`] finds out where a directory lies, [`ear`] is the tree's end, [`wire`] what
//! they say. Nothing here looks into a file.

pub mod ear;
mod places;
pub mod route;
mod serve;
mod wire;

use std::path::PathBuf;

pub use serve::run;

/// Tells this program that it is to be the listener, and below which directory the states of the trees are.
pub const ENV: &str = "MIRROR_LISTENER";
/// Below the directory of all states.
const SOCKET: &str = "listener.sock";

/// Whether this process was started to be the listener.
pub fn asked() -> Option<PathBuf> {
    std::env::var_os(ENV).map(PathBuf::from)
}
