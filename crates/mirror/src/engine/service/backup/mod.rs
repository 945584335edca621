//! `fs_mirror serve`: many trees followed by one service, a process a tree.

pub mod command;
pub mod config;
pub mod deadman;
pub mod load;
