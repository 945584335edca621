//! State files in memory, which crash and fail on demand.

/// A state directory in memory. Clones share it.
#[derive(Clone, Default)]
pub struct SimDisk {}
