//! What a host that serves a tree has besides the tree: the socket followers come in through, those that are there, and
//! for whom the log is kept. The same for a worker's daemon and for a mirror that others follow.

pub mod chain;
mod followers;
pub mod keep;
mod lag;
mod seats;
pub mod socket;

pub use chain::Chain;
pub use followers::Followers;
pub use seats::{FOLLOWERS_MAX, Seats};
