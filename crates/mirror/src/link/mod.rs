//! The link: frames and messages over any byte stream, the worker's serving side, and what both sides share.
//!
//! Bytes: `docs/FORMAT.md`, chapter "Wire". Nothing here knows how the stream came to be (ssh, a local socket, later
//! TLS), and nothing the other side sends can make it panic or take more memory than its limits say.

pub mod batches;
pub mod bucket;
pub mod cache;
pub mod conn;
pub mod frame;
pub mod message;
pub mod packed;
pub mod packing;
pub mod report;
pub mod serve;
pub mod spool;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod window;

pub use conn::{Closer, Incoming, LinkError, Outgoing, Pulse};
pub use message::Message;
