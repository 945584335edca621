//! The worker: `mirrord stdio`, the daemon that it starts or joins, and where that keeps its state.
//!
//! The daemon owns capture, log and index of one tree, and outlives the links by `linger`. `stdio` checks what was
//! asked for, reaches the daemon's socket, and from then on only passes bytes on.

mod barrier;
mod capture;
pub mod config;
mod control;
mod daemon;
pub mod floor;
pub mod names;
mod stdio;
mod tell;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::control::Stop;
use crate::engine::event::RunError;
use crate::engine::options::Detector;

/// What `mirrord stdio` was asked for.
#[derive(Debug, Clone)]
pub struct StdioOptions {
    /// The tree this login may read; the request of another one is refused.
    pub tree: PathBuf,
    /// Where worker states are kept; `None`: the usual place.
    pub state: Option<PathBuf>,
    pub detector: Option<Detector>,
    /// How long capture outlives the last link.
    pub linger: Duration,
    /// Bytes the log may take; contents four times as much.
    pub log_max: Option<u64>,
    pub stop: Stop,
}

/// Speaks the protocol on stdin and stdout until the other end goes away.
pub fn stdio(options: StdioOptions) -> Result<(), RunError> {
    match config::asked()? {
        Some(config) => daemon::run(config, options),
        None => stdio::run(options),
    }
}

/// The state directory of a tree on this worker (`control.sock`, `lock` and `status.json` are in it). `state`: as in
/// [`StdioOptions`]. It need not exist.
pub fn state_dir(state: Option<&Path>, tree: &Path) -> Result<PathBuf, RunError> {
    names::of(state, tree, &names::Variant::default())
}

/// The directory with all states, which is the service's.
pub fn state_base(state: Option<&Path>) -> Result<PathBuf, RunError> {
    names::base(state)
}

/// The state directories of all trees this worker knows, sorted.
pub fn state_dirs(state: Option<&Path>) -> Result<Vec<PathBuf>, RunError> {
    names::all(state)
}
