//! Random operations on a live tree.

use std::path::{Path, PathBuf};

#[derive(Debug, Clone)]
pub struct Params {
    pub seed: u64,
    pub ops: u64,
    /// A directory beside the tree, on the same file system: things move in and out.
    pub outside: Option<PathBuf>,
    /// Operations a second at most. `None`: as fast as it goes.
    pub rate: Option<f64>,
    /// Also change inode flags, of which no kernel tells.
    pub flags: bool,
    /// Also keep mappings open and store through them long after.
    pub mappings: bool,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            seed: 1,
            ops: 1000,
            outside: None,
            rate: None,
            flags: false,
            mappings: true,
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    pub ops: u64,
    /// Operations of which every step succeeded.
    pub succeeded: u64,
}

/// Runs a whole workload in this process and thread; then every descriptor and mapping is closed.
pub fn run(tree: &Path, params: &Params) -> anyhow::Result<Done> {
    let _ = (tree, params);
    anyhow::bail!("not built yet")
}

/// Workloads that run in processes of their own.
#[derive(Debug)]
pub struct Churn {}

/// Starts `processes` workloads, with seeds made from `params.seed`, in forked processes.
pub fn start(tree: &Path, params: &Params, processes: u32) -> anyhow::Result<Churn> {
    let _ = (tree, params, processes);
    anyhow::bail!("not built yet")
}

impl Churn {
    pub fn is_running(&mut self) -> bool {
        false
    }
    /// Waits until all have ended.
    pub fn wait(self) -> anyhow::Result<()> {
        Ok(())
    }
}
