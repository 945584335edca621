//! A worker that speaks the protocol and wants out of its copy: whatever it says, nothing outside changes.

mod names;
mod nonsense;
mod odd;
#[path = "../ssh_support/mod.rs"]
mod ssh_support;
mod told;
mod trial;
mod walls;
