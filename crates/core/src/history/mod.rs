//! The past of a tree: what is written down of each change, how the tree as of a position follows from that, and for how
//! long what is kept.

pub mod asof;
pub mod interval;
pub mod retention;
pub mod rows;
#[cfg(test)]
mod tests;
pub mod trace;

pub use asof::{AsOf, Bytes, Past};
pub use rows::{Group, Moment, Row, Then, Unkept, Was};
pub use trace::{Passing, Trace};
