//! Random operations on a live tree: what programs and people do to files, and what they hardly ever do.
//!
//! One process with one seed does the same on the same tree each time (but for times of day). Several processes race;
//! what fails because of that is left as it is. Nothing is ever done outside the tree and its `outside` directory:
//! symlinks never lead out, and no operation follows them on the way.

mod files;
mod names;
mod place;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::rng::Rng;
use crate::sys::{self, Mapping};

#[derive(Debug, Clone)]
pub struct Params {
    pub seed: u64,
    pub ops: u64,
    /// A directory beside the tree, on the same file system: things move in and out, and are linked across.
    pub outside: Option<PathBuf>,
    /// Operations a second at most. `None`: as fast as it goes.
    pub rate: Option<f64>,
    /// Also work on names that were there before, not only on the workload's own few.
    pub existing: bool,
    /// Also change inode flags, of which the kernel tells nobody.
    pub flags: bool,
    /// Also store through mappings long after the file was closed.
    pub mappings: bool,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            seed: 1,
            ops: 1000,
            outside: None,
            rate: None,
            existing: false,
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
    /// By operation: how often it was tried, and how often every step of it succeeded.
    pub by_op: BTreeMap<&'static str, (u64, u64)>,
}

/// Runs a whole workload in this process and thread; then every descriptor and mapping is closed.
pub fn run(tree: &Path, params: &Params) -> anyhow::Result<Done> {
    let mut workload = Workload::new(tree, params)?;
    let start = Instant::now();
    for number in 0..params.ops {
        if let Some(rate) = params.rate.filter(|&rate| rate > 0.0) {
            let due = start + Duration::from_secs_f64(number as f64 / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        // What fails is counted.
        let _ = workload.step();
    }
    Ok(workload.finish())
}

/// A workload that is stepped by its caller. Dropping it closes what it holds.
pub struct Workload {
    rng: Rng,
    tree: PathBuf,
    outside: Option<PathBuf>,
    params: Params,
    privileged: bool,
    /// Files kept open, whatever happens to their names.
    held: Vec<File>,
    mapped: Vec<Mapping>,
    /// Bytes to write, and the same as a file, for stores through mappings.
    bytes: Vec<u8>,
    bytes_file: File,
    serial: u64,
    done: Done,
}

type Op = fn(&mut Workload) -> io::Result<()>;

/// How often (weights), what it is called, and what it is.
const OPS: &[(u32, &str, Op)] = &[
    (90, "append", Workload::append),
    (40, "overwrite", Workload::overwrite),
    (25, "write big", Workload::write_big),
    (25, "truncate", Workload::truncate),
    (25, "save by rename", Workload::save_by_rename),
    (15, "save with backup", Workload::save_with_backup),
    (12, "rewrite, same size and time", Workload::rewrite_unseen),
    (30, "fallocate", Workload::fallocate),
    (12, "copy range", Workload::copy_range),
    (15, "map and store", Workload::map_and_store),
    (12, "store through held mapping", Workload::store_held),
    (25, "hold open", Workload::hold),
    (40, "write to held", Workload::write_held),
    (10, "unlink and write to held", Workload::unlink_held),
    (25, "tmpfile and link", Workload::tmpfile),
    (80, "mkdir", Workload::mkdir),
    (
        20,
        "mkdir -p, write, rename parent",
        Workload::mkdir_write_rename,
    ),
    (130, "rename", Workload::rename),
    (25, "exchange", Workload::exchange),
    (15, "rename with whiteout", Workload::whiteout),
    (15, "swap in three steps", Workload::swap),
    (8, "parent and child change places", Workload::invert),
    (50, "link", Workload::link),
    (10, "link, rename, link", Workload::link_rename_link),
    (60, "unlink", Workload::unlink),
    (25, "rmdir", Workload::rmdir),
    (10, "rm -rf", Workload::remove_all),
    (8, "burst", Workload::burst),
    (25, "symlink", Workload::symlink),
    (15, "retarget symlink", Workload::retarget),
    (15, "node", Workload::node),
    (25, "change type", Workload::change_type),
    (30, "chmod", Workload::chmod),
    (15, "chown", Workload::chown),
    (20, "utimens", Workload::utimens),
    (25, "xattr", Workload::xattr),
    (12, "acl", Workload::acl),
    (8, "capability", Workload::capability),
    (6, "flags", Workload::flags),
];

impl Workload {
    pub fn new(tree: &Path, params: &Params) -> anyhow::Result<Workload> {
        let mut bytes = vec![0; 1 << 20];
        Rng::new(params.seed ^ 0xb17e5).fill(&mut bytes);
        let bytes_file = sys::memory_file()?;
        bytes_file.write_all_at(&bytes, 0)?;
        Ok(Workload {
            rng: Rng::new(params.seed),
            tree: tree.canonicalize()?,
            outside: params
                .outside
                .as_ref()
                .map(|dir| dir.canonicalize())
                .transpose()?,
            params: params.clone(),
            privileged: crate::is_root(),
            held: Vec::new(),
            mapped: Vec::new(),
            bytes,
            bytes_file,
            serial: 0,
            done: Done::default(),
        })
    }

    /// One operation: its name and how it ended.
    pub fn step(&mut self) -> (&'static str, io::Result<()>) {
        let total: u32 = OPS.iter().map(|op| op.0).sum();
        let mut at = self.rng.below(total.into()) as u32;
        let mut chosen = OPS[0];
        for op in OPS {
            if at < op.0 {
                chosen = *op;
                break;
            }
            at -= op.0;
        }
        let (_, name, op) = chosen;
        let result = op(self);
        let count = self.done.by_op.entry(name).or_default();
        count.0 += 1;
        count.1 += u64::from(result.is_ok());
        self.done.ops += 1;
        self.done.succeeded += u64::from(result.is_ok());
        (name, result)
    }

    /// Closes all that is held.
    pub fn finish(self) -> Done {
        self.done
    }
}

/// Workloads in processes of their own. Dropping this kills those that still run.
#[derive(Debug)]
pub struct Churn {
    pids: Vec<i32>,
    failed: u32,
}

/// Starts `processes` forked processes, each with `params.ops` operations and a seed of its own made from `params.seed`.
pub fn start(tree: &Path, params: &Params, processes: u32) -> anyhow::Result<Churn> {
    let mut churn = Churn {
        pids: Vec::new(),
        failed: 0,
    };
    for number in 0..processes {
        let params = Params {
            seed: params.seed.wrapping_mul(1000).wrapping_add(number.into()),
            ..params.clone()
        };
        churn
            .pids
            .push(sys::fork(|| i32::from(run(tree, &params).is_err()))?);
    }
    Ok(churn)
}

impl Churn {
    pub fn is_running(&mut self) -> bool {
        self.reap(WaitOptions::NOHANG);
        !self.pids.is_empty()
    }
    /// Waits until all have ended.
    pub fn wait(mut self) -> anyhow::Result<()> {
        self.reap(WaitOptions::empty());
        anyhow::ensure!(self.failed == 0, "{} of the workloads failed", self.failed);
        Ok(())
    }
    /// kill -9, in the middle of whatever they do.
    pub fn kill(mut self) {
        self.kill_all();
    }

    fn reap(&mut self, options: WaitOptions) {
        let mut failed = 0;
        self.pids
            .retain(|&pid| match waitpid(Pid::from_raw(pid), options) {
                Ok(None) => true,
                Ok(Some((_, status))) => {
                    failed += u32::from(status.exit_status() != Some(0));
                    false
                }
                Err(_) => false,
            });
        self.failed += failed;
    }
    fn kill_all(&mut self) {
        for pid in &self.pids {
            if let Some(pid) = Pid::from_raw(*pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        self.reap(WaitOptions::empty());
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.kill_all();
    }
}
