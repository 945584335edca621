//! The index against [`mirror_core::MemRows`], and under crashes, damage and foreign files.

mod crash;
mod damage;
mod rows;
mod same;
mod world;
