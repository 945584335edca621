//! Wires the loops: a mirror on one host, a follower over a link, the worker's daemon.
//!
//! What a person asked for comes in as [`options::MirrorOptions`]; what happens goes out as [`event::Event`]s to a
//! [`event::Ui`], as a [`status::Status`] to whoever asks, and through [`control`] to the other commands.

pub mod adopt;
pub mod applied;
pub mod applying;
pub mod aside;
pub mod back_off;
pub mod confine;
pub mod control;
pub mod differing;
mod dry_run;
pub mod event;
pub mod follower;
pub mod going;
pub mod local;
mod lost;
pub mod options;
mod reserve;
pub mod rotating;
pub(crate) mod seed;
pub mod service;
pub mod serving;
pub mod session;
pub(crate) mod soon;
pub mod status;
mod stopped;
mod verify;
pub mod worker;

pub use event::{Event, RunEnd, RunError, Ui};
pub use options::MirrorOptions;
pub use stopped::verify;

/// Runs a mirror until it is done (`once`), stopped, or can't go on.
pub fn run_mirror(options: MirrorOptions, ui: std::sync::Arc<dyn Ui>) -> Result<RunEnd, RunError> {
    match &options.source {
        options::SourceSpec::Local(_) => local::run(options, ui),
        options::SourceSpec::Ssh { .. } | options::SourceSpec::Service { .. } => {
            follower::run(options, ui)
        }
    }
}
