//! What a mirror was asked to do, parsed once into types that can't be wrong.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mirror_core::escape;
use serde::{Deserialize, Serialize};

use crate::engine::applying::Told;
use crate::engine::applying::limits::Bounds;
use crate::engine::control::{StateLock, Stop};
use crate::history::publish_settings::PublishSettings;
use crate::history::settings::Settings;

/// Everything `run_mirror` needs to know. Paths are absolute; they were checked by `cli::places`.
#[derive(Debug, Clone)]
pub struct MirrorOptions {
    pub source: SourceSpec,
    /// Holds the copy and nothing else. May not exist yet (its parent does): the engine makes it.
    pub dst: PathBuf,
    /// On the same file system as `dst`. Exists, 0700, unless this is a dry run.
    pub state_dir: PathBuf,
    /// Return when every entry is as it was at the start or later.
    pub once: bool,
    /// Tell what would be done, do nothing.
    pub dry_run: bool,
    /// DST may hold something that was never this mirror's: compare, copy what differs, move extras aside.
    pub adopt: bool,
    /// Every question is answered yes.
    pub yes: bool,
    /// gitignore patterns, checked (`filter::Filter::new` takes them).
    pub ignore: Vec<String>,
    /// Mount points below SRC that are part of the tree, as paths relative to SRC.
    pub cross: Vec<PathBuf>,
    pub owners: Owners,
    pub on_mass_change: OnMassChange,
    pub history: bool,
    /// What history keeps, and how long.
    pub keeping: Settings,
    /// `None`: the best that works here.
    pub detector: Option<Detector>,
    /// May change meanwhile.
    pub bwlimit: Speed,
    /// Of what comes over a link.
    pub compress: Compress,
    /// A link that says nothing for so long is dead.
    pub timeout: Option<Duration>,
    /// How often all of the copy is looked at; `None`: never.
    pub verify_every: Option<Duration>,
    /// What to run at the far end instead of `mirrord`.
    pub remote_command: Option<String>,
    /// Which plain trees of the past are made by themselves.
    pub publish: Option<PublishSettings>,
    /// What the copy may take; may change meanwhile.
    pub bounds: Arc<Bounds>,
    /// Told of what was applied.
    pub told: Option<Arc<dyn Told>>,
    /// Nobody watches who could mend it: a source that can't be reached at first is tried again, too.
    pub patient: bool,
    pub output: Output,
    /// Taken before the configuration was read. `None` (tests, dry run): `run_mirror` takes it if it needs it.
    pub lock: Option<StateLock>,
    /// Asks the run to end cleanly.
    pub stop: Stop,
}

impl MirrorOptions {
    /// A mirror of `source` in `dst` with everything else as a person gets it who gives no option.
    pub fn new(source: SourceSpec, dst: PathBuf) -> MirrorOptions {
        MirrorOptions {
            source,
            state_dir: default_state_dir(&dst),
            dst,
            once: false,
            dry_run: false,
            adopt: false,
            yes: false,
            ignore: Vec::new(),
            cross: Vec::new(),
            owners: Owners::default_here(),
            on_mass_change: OnMassChange::Auto,
            history: true,
            keeping: Settings::default(),
            detector: None,
            bwlimit: Speed::default(),
            compress: Compress::Auto,
            timeout: None,
            verify_every: Some(super::applying::VERIFY_EVERY),
            remote_command: None,
            publish: None,
            bounds: Arc::default(),
            told: None,
            patient: false,
            output: Output::default(),
            lock: None,
            stop: Stop::new(),
        }
    }
}

impl MirrorOptions {
    /// Whether apply waits for a person when very much goes at once.
    pub fn holds_mass_change(&self) -> bool {
        match self.on_mass_change {
            OnMassChange::Hold => true,
            OnMassChange::Follow => false,
            OnMassChange::Auto => !self.history,
        }
    }
}

/// Bytes per second at most; clones are one.
#[derive(Debug, Clone, Default)]
pub struct Speed(Arc<AtomicU64>);

impl Speed {
    pub fn new(limit: Option<u64>) -> Speed {
        let speed = Speed::default();
        speed.set(limit);
        speed
    }
    /// `None`: no limit.
    pub fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }
    pub fn set(&self, limit: Option<u64>) {
        self.0.store(limit.unwrap_or(0), Ordering::Relaxed);
    }
}

/// `DST.fs_mirror`, beside DST.
pub fn default_state_dir(dst: &std::path::Path) -> PathBuf {
    let mut name = dst.as_os_str().to_owned();
    name.push(".fs_mirror");
    PathBuf::from(name)
}

/// Where the tree comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceSpec {
    Local(PathBuf),
    /// Over the system's ssh. `path` is raw bytes, as the far end reads them; relative ones start at its home.
    Ssh {
        user: Option<String>,
        host: String,
        port: Option<u16>,
        path: Vec<u8>,
    },
    /// A `mirrord serve` somewhere.
    Service {
        host: String,
        port: Option<u16>,
        name: String,
    },
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceSpec::Local(path) => f.write_str(&escape(path.as_os_str().as_bytes())),
            SourceSpec::Ssh {
                user,
                host,
                port,
                path,
            } => {
                let user = user
                    .as_ref()
                    .map(|u| format!("{}@", escape(u.as_bytes())))
                    .unwrap_or_default();
                let host = escape(host.as_bytes());
                let host = if host.contains(':') {
                    format!("[{host}]")
                } else {
                    host
                };
                let path = escape(path);
                match port {
                    Some(port) if path.starts_with('/') => {
                        write!(f, "ssh://{user}{host}:{port}{path}")
                    }
                    Some(port) => write!(f, "ssh://{user}{host}:{port}/~/{path}"),
                    None => write!(f, "{user}{host}:{path}"),
                }
            }
            SourceSpec::Service { host, port, name } => {
                let host = escape(host.as_bytes());
                let host = if host.contains(':') {
                    format!("[{host}]")
                } else {
                    host
                };
                match port {
                    Some(port) => write!(f, "mirror://{host}:{port}/{}", escape(name.as_bytes())),
                    None => write!(f, "mirror://{host}/{}", escape(name.as_bytes())),
                }
            }
        }
    }
}

/// What becomes of owners, set-id bits, devices and capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Owners {
    /// Set in the copy (needs root).
    Apply,
    /// Kept in the index; files in the copy are ours.
    Record,
}

impl Owners {
    /// What a person gets who says nothing: root applies, others record.
    pub fn default_here() -> Owners {
        if rustix::process::geteuid().is_root() {
            Owners::Apply
        } else {
            Owners::Record
        }
    }
}

/// What happens when very much goes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnMassChange {
    /// Follow where history keeps what goes, else hold.
    #[default]
    Auto,
    Hold,
    Follow,
}

/// Whether what goes over a link is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Compress {
    /// Where the link is slow and it shrinks.
    #[default]
    Auto,
    /// Wherever it shrinks.
    On,
    Off,
}

impl Compress {
    /// As one side tells the other; `docs/FORMAT.md`, Pace.
    pub fn code(self) -> u8 {
        match self {
            Compress::Auto => 0,
            Compress::Off => 1,
            Compress::On => 2,
        }
    }
    pub fn of_code(code: u8) -> Compress {
        match code {
            1 => Compress::Off,
            2 => Compress::On,
            _ => Compress::Auto,
        }
    }
}

impl fmt::Display for Compress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compress::Auto => "auto",
            Compress::On => "on",
            Compress::Off => "off",
        })
    }
}

/// How changes are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Detector {
    Fanotify,
    Inotify,
    Scan,
}

impl fmt::Display for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Detector::Fanotify => "fanotify",
            Detector::Inotify => "inotify",
            Detector::Scan => "scan",
        })
    }
}

/// How to talk to whoever started us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Output {
    /// One JSON object a line.
    pub json: bool,
    /// Errors only.
    pub quiet: bool,
    /// A line per path.
    pub verbose: bool,
    /// Standard error is a terminal.
    pub terminal: bool,
}
