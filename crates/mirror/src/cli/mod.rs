//! The two programs' commands: what a person types, and what they get to see. No decision about files is made here.

pub mod config;
pub mod exit;
pub mod find;
pub mod parse;
pub mod places;
pub mod screen;
pub mod show;
pub mod text;
pub mod ui;
