//! Capture: tree -> log. Hints come in, the tree is looked at, records go out.
//!
//! [`watch`] hears the kernel, [`tree`] and [`read`] look, [`scan`] looks at everything, [`run`] ties them
//! together and is the only writer of the log and of the worker's index. What a look means is decided in
//! `mirror_core::reconcile`. Nothing here ever writes below the source.

mod cache;
pub mod dirs;
mod far;
pub mod kernel;
mod names;
pub mod part;
pub mod prepared;
mod queue;
pub mod read;
pub mod readers;
pub mod run;
pub mod scan;
pub mod sink;
pub mod state;
pub mod tree;
pub mod watch;
