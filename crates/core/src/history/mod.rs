//! History: what is kept of the tree as it was, and for how long.

pub mod interval;
pub mod retention;
