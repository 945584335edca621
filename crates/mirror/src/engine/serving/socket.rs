//! The local sockets through which followers reach whoever serves a tree, however long the path of the state directory:
//! one for those who have an account here (ssh), and one for those who come through the door, who may give no orders.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::sys::tree;
use rustix::fs::{AtFlags, Mode, OFlags, chmodat, open, unlinkat};

/// Through which of the two somebody comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Account,
    Door,
}

impl Way {
    fn socket(self) -> &'static str {
        match self {
            Way::Account => "serve.sock",
            Way::Door => "door.sock",
        }
    }
}

/// Both, with who comes through which.
pub struct Listening {
    pub account: UnixListener,
    pub door: UnixListener,
}

impl Listening {
    pub fn both(&self) -> [(&UnixListener, Way); 2] {
        [(&self.account, Way::Account), (&self.door, Way::Door)]
    }
}

fn dir(state_dir: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(below(open(state_dir, flags, Mode::empty())?, state_dir))
}

/// Likewise, in a view of its own: a socket that is bound keeps its mount from being unmounted.
fn private_dir(state_dir: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    match tree::private_clone(state_dir) {
        Ok(dir) => Ok(below(dir, state_dir)),
        Err(_) => dir(state_dir),
    }
}

fn below(dir: OwnedFd, state_dir: &Path) -> (OwnedFd, PathBuf) {
    // A socket's path may have only 107 bytes.
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    let path = if short.exists() {
        short
    } else {
        state_dir.to_path_buf()
    };
    (dir, path)
}

/// The caller holds the state's lock: a socket found there is a dead process's.
pub fn listen(state_dir: &Path) -> io::Result<Listening> {
    let (dir, path) = private_dir(state_dir)?;
    let listen = |way: Way| {
        match unlinkat(&dir, way.socket(), AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let listener = UnixListener::bind(path.join(way.socket()))?;
        let mode = Mode::RUSR | Mode::WUSR;
        chmodat(&dir, way.socket(), mode, AtFlags::empty())?;
        listener.set_nonblocking(true)?;
        Ok::<_, io::Error>(listener)
    };
    Ok(Listening {
        account: listen(Way::Account)?,
        door: listen(Way::Door)?,
    })
}

pub fn remove(state_dir: &Path) {
    if let Ok((dir, _)) = dir(state_dir) {
        for way in [Way::Account, Way::Door] {
            let _ = unlinkat(&dir, way.socket(), AtFlags::empty());
        }
    }
}

/// `None`: nobody listens there.
pub fn connect(state_dir: &Path, way: Way) -> io::Result<Option<UnixStream>> {
    let (_dir, path) = match dir(state_dir) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    match UnixStream::connect(path.join(way.socket())) {
        Ok(stream) => Ok(Some(stream)),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// The other end is root or our own user.
pub fn is_ours(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream.as_fd())
        .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}
