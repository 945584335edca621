//! Crash points and planted defects, under the names that are used here.

pub use crate::planted::{is as planted, point};
