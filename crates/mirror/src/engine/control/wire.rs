//! What goes over the control socket: one JSON object a line, each request answered by lines of which the last is
//! not a `line`. Also where the socket is, however long its path.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use serde::{Deserialize, Serialize};

use super::{
    ControlError, LogLine, ReleaseReport, Stage, VerifyEnd, VerifyLine, VerifyOptions, WaitReport,
};
use crate::engine::status::Status;
use crate::history::ask::{Answer, Ask};
use crate::sys::tree;

/// A request longer than this is refused.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;

pub(super) const SOCKET: &str = "control.sock";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Status,
    WaitIdle {
        timeout_ms: Option<u64>,
    },
    WaitPosition {
        /// `EPOCH.SEQ`
        position: String,
        timeout_ms: Option<u64>,
    },
    WaitReplicas {
        stage: Stage,
        replicas: Option<u32>,
        timeout_ms: Option<u64>,
    },
    Pause,
    Resume,
    Release {
        yes: bool,
    },
    /// Of a worker.
    Forget {
        replica: String,
    },
    Verify {
        options: VerifyOptions,
    },
    Log {
        lines: usize,
        follow: bool,
    },
    Past {
        ask: Ask,
    },
    Stop,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Status(Box<Status>),
    Waited(WaitReport),
    Done,
    Release(ReleaseReport),
    Forgotten(Vec<String>),
    /// More follows.
    Line(VerifyLine),
    /// Likewise.
    Record(LogLine),
    Verified(VerifyEnd),
    Past(Box<Answer>),
    Error(ControlError),
}

/// The state directory, held open so that its socket can be named in few bytes: a socket's path may have only 107.
pub(super) struct SocketPlace {
    dir: OwnedFd,
    state_dir: PathBuf,
}

impl SocketPlace {
    pub fn open(state_dir: &Path) -> io::Result<SocketPlace> {
        let dir = open(
            state_dir,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(SocketPlace {
            dir,
            state_dir: state_dir.into(),
        })
    }
    /// Through a private view, where that is possible: a socket bound there keeps nobody from unmounting it.
    pub fn open_private(state_dir: &Path) -> io::Result<SocketPlace> {
        match tree::private_clone(state_dir) {
            Ok(dir) => Ok(SocketPlace {
                dir,
                state_dir: state_dir.into(),
            }),
            Err(_) => SocketPlace::open(state_dir),
        }
    }
    pub fn dir(&self) -> &OwnedFd {
        &self.dir
    }
    /// Only good while `self` lives.
    pub fn path(&self) -> PathBuf {
        let short = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()));
        let dir = if short.exists() {
            short
        } else {
            self.state_dir.clone()
        };
        dir.join(SOCKET)
    }

    /// The name of a socket without a file, told by the directory: for the day when there is no inode left.
    fn without_a_file(&self) -> io::Result<SocketAddr> {
        let dir = fstat(&self.dir)?;
        SocketAddr::from_abstract_name(format!("fs_mirror/{:x}/{:x}", dir.st_dev, dir.st_ino))
    }
    pub fn bind_without_a_file(&self) -> io::Result<UnixListener> {
        UnixListener::bind_addr(&self.without_a_file()?)
    }
    /// Anybody may take that name: only root's, our own and the directory's owner's is answered.
    pub fn connect_without_a_file(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect_addr(&self.without_a_file()?)?;
        let (peer, dir) = (socket_peercred(&stream)?, fstat(&self.dir)?);
        let ours = peer.uid == rustix::process::geteuid() || peer.uid.as_raw() == dir.st_uid;
        if !peer.uid.is_root() && !ours {
            return Err(Errno::CONNREFUSED.into());
        }
        Ok(stream)
    }
}
