//! What the daemon is to do, as whoever starts it leaves it in the state directory: `mirrord stdio` for a login in
//! `daemon.json`, `mirrord serve` in `service.json`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::control::StateLock;
use super::super::event::RunError;
use super::super::options::{Compress, Detector};
use super::super::service::rate::Rates;
use super::super::session::show;
use super::floor::Floor;
use crate::disk::{RealDisk, read_file, replace_file};

/// Names the state directory to the daemon.
pub const ENV: &str = "MIRRORD_CAPTURE";
/// Set, whatever it says: the service started it.
pub const ENV_SERVICE: &str = "MIRRORD_SERVICE";
const DAEMON: &str = "daemon.json";
const SERVICE: &str = "service.json";
const BYTES_MAX: usize = 1 << 20;

/// What the daemon is to do.
#[derive(Debug, Clone)]
pub struct Config {
    pub tree: PathBuf,
    pub state_dir: PathBuf,
    pub ignore: Vec<String>,
    pub cross: Vec<PathBuf>,
    pub detector: Option<Detector>,
    /// Without a service: how long it outlives the last link.
    pub linger: Duration,
    /// As in [`super::StdioOptions`].
    pub log_max: Option<u64>,
    /// It runs as long as the service wants it.
    pub service: Option<InService>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InService {
    /// The tree's name.
    pub name: String,
    /// The setting that found its directory among others, if one did.
    pub found_by: Option<String>,
    /// The service has a listener for its trees.
    #[serde(default)]
    pub listener: bool,
    pub live: LiveSettings,
}

/// What a running daemon takes up within a second.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LiveSettings {
    pub min_free: Floor,
    /// Of all that is sent to the followers of the tree together.
    pub bwlimit: Rates,
    /// Whether it is packed.
    #[serde(default)]
    pub compress: Compress,
}

/// Raw bytes of paths survive as JSON numbers.
#[derive(Serialize, Deserialize)]
struct Written {
    tree: Vec<u8>,
    ignore: Vec<String>,
    cross: Vec<Vec<u8>>,
    detector: Option<Detector>,
    linger_ms: u64,
    #[serde(default)]
    log_max: Option<u64>,
    #[serde(default)]
    service: Option<InService>,
}

fn bytes_of(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

fn file_of(service: bool) -> &'static str {
    if service { SERVICE } else { DAEMON }
}

impl Config {
    /// Leaves it where the daemon finds it.
    pub fn write(&self) -> std::io::Result<()> {
        let disk = RealDisk::open(&self.state_dir)?;
        let written = Written {
            tree: bytes_of(&self.tree),
            ignore: self.ignore.clone(),
            cross: self.cross.iter().map(|path| bytes_of(path)).collect(),
            detector: self.detector,
            linger_ms: u64::try_from(self.linger.as_millis()).unwrap_or(u64::MAX),
            log_max: self.log_max,
            service: self.service.clone(),
        };
        let file = file_of(self.service.is_some());
        replace_file(&disk, file, &serde_json::to_vec(&written)?)
    }

    fn read(state_dir: &Path, service: bool) -> std::io::Result<Config> {
        let disk = RealDisk::open(state_dir)?;
        let bytes = read_file(&disk, file_of(service), BYTES_MAX)?;
        let written: Written = serde_json::from_slice(&bytes)?;
        if written.service.is_some() != service {
            return Err(std::io::Error::other("it is of another kind of daemon"));
        }
        Ok(Config {
            tree: path_of(written.tree),
            state_dir: state_dir.to_path_buf(),
            ignore: written.ignore,
            cross: written.cross.into_iter().map(path_of).collect(),
            detector: written.detector,
            linger: Duration::from_millis(written.linger_ms),
            log_max: written.log_max,
            service: written.service,
        })
    }
}

/// Whether this process was started to be the daemon.
pub fn asked() -> Result<Option<Config>, RunError> {
    let Some(state_dir) = std::env::var_os(ENV).map(PathBuf::from) else {
        return Ok(None);
    };
    let service = std::env::var_os(ENV_SERVICE).is_some();
    let config = Config::read(&state_dir, service).map_err(|e| {
        let file = state_dir.join(file_of(service));
        RunError::Failed(anyhow::anyhow!("cannot read {}: {e}", show(&file)))
    })?;
    Ok(Some(config))
}

/// What the service last wanted of the tree with this state; `None`: nothing.
pub fn of_service(state_dir: &Path) -> Option<Config> {
    Config::read(state_dir, true).ok()
}

/// A service runs that has the tree with this state: it starts its process, nobody else.
pub fn is_served(state_dir: &Path) -> bool {
    let runs = |base: &Path| matches!(StateLock::holder(base), Ok(Some(_)));
    of_service(state_dir).is_some() && state_dir.parent().is_some_and(runs)
}

/// The service has nothing to do with this state any more. What is in it stays.
pub fn forget_service(state_dir: &Path) {
    let _ = std::fs::remove_file(state_dir.join(SERVICE));
}

/// Sees when the service has left other settings.
#[derive(Default)]
pub struct Watcher {
    seen: Option<(std::time::SystemTime, u64)>,
}

impl Watcher {
    /// The settings, if the file is not the one it was.
    pub fn look(&mut self, state_dir: &Path) -> Option<LiveSettings> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(state_dir.join(SERVICE)).ok()?;
        let seen = (meta.modified().ok()?, meta.ino());
        if self.seen == Some(seen) {
            return None;
        }
        let config = Config::read(state_dir, true).ok()?;
        self.seen = Some(seen);
        config.service.map(|service| service.live)
    }
}
