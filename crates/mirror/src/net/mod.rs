//! The network: keys, who trusts whom, TLS, dialing, and the door, the one process that listens.
//!
//! Bytes: `docs/FORMAT.md`, chapter "Wire"; who is which process and why: `docs/decisions/0007-the-service.md`. Over it goes
//! the protocol of [`crate::link`], as over ssh. Nothing here looks at a tree.

pub mod dial;
pub mod door;
mod files;
pub mod keys;
pub mod pair;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod trust;

use std::fmt;
use std::path::PathBuf;

pub use door::{Door, DoorError, DoorSetup, Limits, Trees};
pub use files::NetFileError;
pub use keys::{Fingerprint, KeyPair};
pub use trust::{Known, Trusted};

/// Where services listen and are looked for when nobody says otherwise.
pub const PORT: u16 = 8737;

/// Which of the two programs this is: each has keys and trust of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Mirrord,
    FsMirror,
}

impl Program {
    pub fn name(self) -> &'static str {
        match self {
            Program::Mirrord => "mirrord",
            Program::FsMirror => "fs_mirror",
        }
    }

    fn config_variable(self) -> &'static str {
        match self {
            Program::Mirrord => "MIRRORD_CONFIG_DIR",
            Program::FsMirror => "FS_MIRROR_CONFIG_DIR",
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where the program keeps its key, whom it trusts and whom it knows: what the environment names, else `/etc/PROGRAM` as
/// root, else the user's configuration directory. `Err`: one line.
pub fn config_dir(program: Program) -> Result<PathBuf, String> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(dir) = set(program.config_variable()) {
        return std::path::absolute(&dir)
            .map_err(|e| format!("{}: {e}", program.config_variable()));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/etc").join(program.name()));
    }
    if let Some(dir) = set("XDG_CONFIG_HOME").filter(|dir| dir.is_absolute()) {
        return Ok(dir.join(program.name()));
    }
    match set("HOME").filter(|home| home.is_absolute()) {
        Some(home) => Ok(home.join(".config").join(program.name())),
        None => Err(format!(
            "no place for keys: HOME is not set; name one with {}",
            program.config_variable()
        )),
    }
}
