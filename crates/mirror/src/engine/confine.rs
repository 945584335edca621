//! What the threads of a follower may do that take a stranger's bytes and make them into files: only what that needs.
//!
//! Capabilities, Landlock and seccomp are of one thread and of all that it starts. So the threads that receive, apply and look
//! the copy over go behind these walls when they begin. The main thread keeps its rights: it holds lock and sockets, and opens
//! DST anew when its disk comes back. Programs (ssh) are started by a thread of their own, which takes no word of the far end.
//!
//! The walls are the second line. The first is that apply has no way to say a path: names in directories that are open,
//! nothing followed. A kernel that lacks a wall is told of once, and all goes on.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::options::Owners;
use crate::sys::confine::{self, Landlocked};

/// To make any file as it is told, whoever owns it or the directory.
const APPLY: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::LINUX_IMMUTABLE);

/// Our own files, wherever a person wants them.
const RECEIVE: CapabilitySet = CapabilitySet::DAC_OVERRIDE;

/// Which walls stand, as `status --json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Confinement {
    /// Of `capabilities`, `landlock`, `no_new_privileges` and `seccomp`, those that stand.
    pub holds: Vec<String>,
    /// The others, each with its reason.
    pub lacks: BTreeMap<String, String>,
}

impl Confinement {
    fn put(&mut self, wall: &str, stands: Result<(), String>) {
        match stands {
            Ok(()) => self.holds.push(wall.into()),
            Err(why) => {
                self.lacks.insert(wall.into(), why);
            }
        }
    }

    /// What two threads are both behind.
    #[must_use]
    pub fn and(mut self, other: &Confinement) -> Confinement {
        self.holds.retain(|wall| other.holds.contains(wall));
        self.lacks.extend(other.lacks.clone());
        self
    }
}

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Receive,
    Apply,
}

/// Where the threads of one session may be.
pub struct Confine {
    dst: OwnedFd,
    state: OwnedFd,
    random: Option<OwnedFd>,
    apply: CapabilitySet,
}

impl Confine {
    /// `dst` and `state` exist.
    pub fn new(dst: &Path, state: &Path, owners: Owners) -> std::io::Result<Confine> {
        let place = |path: &Path| {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            openat(CWD, path, flags, Mode::empty())
        };
        Ok(Confine {
            dst: place(dst)?,
            state: place(state)?,
            random: place(Path::new("/dev/urandom")).ok(),
            apply: match owners {
                // Attributes of `trusted.` and most of `security.` ask for no less.
                Owners::Apply => APPLY.union(CapabilitySet::SYS_ADMIN),
                Owners::Record => APPLY,
            },
        })
    }

    /// The calling thread goes behind all walls that this kernel has.
    pub fn enter(&self, part: Part) -> Confinement {
        let mut done = Confinement::default();
        let told =
            |set: crate::sys::Result<()>| set.map_err(|e| std::io::Error::from(e).to_string());
        done.put("no_new_privileges", told(confine::no_new_privileges()));
        let readable = self.random.as_slice();
        let landlocked = confine::only_beneath(&[&self.dst, &self.state], readable);
        done.put(
            "landlock",
            match landlocked {
                Landlocked::Yes => Ok(()),
                Landlocked::No(why) => Err(why.into()),
            },
        );
        let keep = match part {
            Part::Receive => RECEIVE,
            Part::Apply => self.apply,
        };
        done.put("capabilities", told(confine::keep_capabilities(keep)));
        done.put("seccomp", told(confine::deny_system_calls()));
        done.holds.sort_unstable();
        done
    }
}
