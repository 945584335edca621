//! A seeded simulator: a source tree with two racing processes, the engine's pure parts, and a copy that crashes.
//!
//! Everything comes from a seed and a script: no threads, no wall clock, so every failure can be had again.

pub mod ahead;
pub mod capture;
pub mod check;
pub mod copy;
pub mod engine;
pub mod eye;
pub mod index_run;
pub mod journal;
pub mod script;
pub mod tree;
pub mod world;

pub use tree::SimTree;
