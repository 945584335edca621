//! The follower: records and contents come over the system's ssh, into a log of our own, and are applied to the copy.

use std::sync::Arc;

use crate::engine::event::{RunEnd, RunError, Ui};
use crate::engine::options::MirrorOptions;

/// Runs a mirror of a tree on another host until it is done (`once`), stopped, or can't go on.
pub fn run(options: MirrorOptions, ui: Arc<dyn Ui>) -> Result<RunEnd, RunError> {
    let _ = (options, ui);
    Err(RunError::Failed(anyhow::anyhow!(
        "the follower is not built into this program yet"
    )))
}
