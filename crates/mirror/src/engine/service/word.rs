//! What a service leaves for `status` and `check`: `service.json` in its state, written every few seconds.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::engine::control::{HEARTBEAT_MAX, StateLock};
use crate::engine::status::Stamp;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Service {
    pub pid: u32,
    /// As shown.
    pub config: String,
    /// When the loop that keeps the processes was last seen going round: another thread may write this.
    pub now: Stamp,
    pub trees: Vec<Process>,
    /// Of the configuration, as last read.
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    pub name: String,
    pub pid: Option<u32>,
    pub starts: u64,
    pub waits: Option<String>,
    /// The directory of its state, in the service's; of a worker's tree.
    #[serde(default)]
    pub state: Option<String>,
}

pub fn service_file(state: &Path) -> PathBuf {
    state.join("service.json")
}

impl Service {
    pub fn read(state: &Path) -> Option<Service> {
        let bytes = std::fs::read(service_file(state)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Of the service that runs with this state. One that has only just begun has written nothing yet: what is there is
    /// of the one before it.
    pub fn running(state: &Path) -> Option<Service> {
        let holder = StateLock::holder(state).ok()??;
        let own = Service::read(state).filter(|word| holder.pid == Some(word.pid));
        Some(own.unwrap_or_else(|| Service {
            pid: holder.pid.unwrap_or_default(),
            config: String::new(),
            now: Stamp::now(),
            trees: Vec::new(),
            problems: Vec::new(),
        }))
    }

    pub fn process(&self, name: &str) -> Option<&Process> {
        self.trees.iter().find(|process| process.name == name)
    }

    /// The loop that keeps the processes stands still: since when, in seconds.
    pub fn stands_still(&self) -> Option<f64> {
        let age = self.now.seconds_until(Stamp::now());
        (age > HEARTBEAT_MAX.as_secs_f64()).then_some(age)
    }
}
