//! A tree's end of the listener: hands in the roots, takes records, asks that nothing is left in the kernel's queue.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt,
};

use super::SOCKET;
use super::wire::{Ask, BYTES_MAX, ROOTS_MAX, Told};
use crate::sys::{Errno, pass};

/// For a listener that is only just being started.
pub const COMES_WITHIN: Duration = Duration::from_secs(10);
/// For any answer of one that is there.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What was heard.
pub enum Heard<'a> {
    Records { entered: bool, bytes: &'a [u8] },
    Lost,
}

/// Why there is no listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deaf {
    /// It says so itself, or it can't be spoken with: no use in asking again.
    Refused(String),
    /// It went away: another one may come.
    Ended,
    /// It does not answer.
    Silent,
}

impl std::fmt::Display for Deaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Deaf::Refused(why) => f.write_str(why),
            Deaf::Ended => f.write_str("it is not there"),
            Deaf::Silent => f.write_str("it does not answer"),
        }
    }
}

fn failed(e: impl std::fmt::Display) -> Deaf {
    Deaf::Refused(e.to_string())
}

/// A connection; the marks are there.
pub struct Ear {
    socket: OwnedFd,
    asked: u64,
    answered: u64,
    buffer: Vec<u8>,
}

impl Ear {
    /// `base`: where the states of the service are.
    pub fn open(
        base: &Path,
        roots: &[BorrowedFd<'_>],
        comes_within: Duration,
        stop: &dyn Fn() -> bool,
    ) -> Result<Ear, Deaf> {
        if roots.len() > ROOTS_MAX {
            return Err(Deaf::Refused(format!(
                "the tree has more than {ROOTS_MAX} mounts"
            )));
        }
        let until = Instant::now() + comes_within;
        loop {
            match Ear::begin(base, roots) {
                // It is being started, or ends just now.
                Err(Deaf::Ended) if Instant::now() < until && !stop() => {
                    std::thread::sleep(LOOK_EVERY);
                }
                done => return done,
            }
        }
    }

    fn begin(base: &Path, roots: &[BorrowedFd<'_>]) -> Result<Ear, Deaf> {
        let socket = reach(base).map_err(gone)?;
        pass::send(&socket, &Ask::Begin.to_bytes(), roots).map_err(gone)?;
        let mut ear = Ear {
            socket,
            asked: 0,
            answered: 0,
            buffer: vec![0; BYTES_MAX],
        };
        match ear.next(Instant::now() + ANSWERS_WITHIN)? {
            Some(Told::Marked) => {}
            Some(Told::Refused(why)) => return Err(Deaf::Refused(why.into())),
            // It is told of nothing before.
            Some(_) => return Err(failed("it says what makes no sense")),
            None => return Err(Deaf::Silent),
        }
        Ok(ear)
    }

    /// All that waits to be read.
    pub fn take(&mut self, each: &mut dyn FnMut(Heard<'_>)) -> Result<(), Deaf> {
        // What comes without end is for the next time.
        for _ in 0..MESSAGES_MAX {
            if self.one(None, each)?.is_none() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// All that the kernel had queued before the call.
    pub fn sync(&mut self, each: &mut dyn FnMut(Heard<'_>)) -> Result<(), Deaf> {
        let until = Instant::now() + ANSWERS_WITHIN;
        self.asked += 1;
        let ask = Ask::Sync(self.asked).to_bytes();
        while let Err(e) = pass::send(&self.socket, &ask, &[]) {
            if e != Errno::AGAIN || Instant::now() >= until {
                return Err(gone(e));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        while self.answered < self.asked {
            if self.one(Some(until), each)?.is_none() {
                return Err(Deaf::Silent);
            }
        }
        Ok(())
    }

    fn one(
        &mut self,
        until: Option<Instant>,
        each: &mut dyn FnMut(Heard<'_>),
    ) -> Result<Option<()>, Deaf> {
        let mut answered = None;
        let asked = self.asked;
        let told = match until {
            Some(until) => self.next(until)?,
            None => self.next(Instant::now())?,
        };
        match told {
            None => return Ok(None),
            Some(Told::Records { entered, bytes }) => each(Heard::Records { entered, bytes }),
            Some(Told::Lost) => each(Heard::Lost),
            Some(Told::Synced(n)) if n <= asked => answered = Some(n),
            Some(_) => return Err(failed("it says what makes no sense")),
        }
        if let Some(n) = answered {
            self.answered = self.answered.max(n);
        }
        Ok(Some(()))
    }

    /// The next message; `None`: none came by then.
    fn next(&mut self, until: Instant) -> Result<Option<Told<'_>>, Deaf> {
        let length = loop {
            match pass::receive(&self.socket, &mut self.buffer) {
                Ok((0, _)) => return Err(Deaf::Ended),
                Ok((length, _)) => break length,
                Err(Errno::AGAIN) => {}
                Err(e) => return Err(gone(e)),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(failed(e)),
            }
        };
        let told = self.buffer.get(..length).and_then(Told::parse);
        told.map(Some)
            .ok_or_else(|| failed("it says what makes no sense"))
    }
}

/// Taken at a time.
const MESSAGES_MAX: usize = 1024;

impl AsFd for Ear {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn gone(e: Errno) -> Deaf {
    match e {
        Errno::PIPE | Errno::CONNRESET | Errno::CONNREFUSED | Errno::NOTCONN | Errno::NOENT => {
            Deaf::Ended
        }
        Errno::AGAIN => Deaf::Silent,
        e => failed(e),
    }
}

/// A socket's path may have only 107 bytes.
pub(super) fn address(base: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = open(base, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
    let address = SocketAddrUnix::new(path.as_str())?;
    Ok((dir, address))
}

pub(super) fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// The other end is root or our own user.
pub(super) fn is_ours(socket: &OwnedFd) -> bool {
    sockopt::socket_peercred(socket)
        .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

fn reach(base: &Path) -> Result<OwnedFd, Errno> {
    let (_dir, address) =
        address(base).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    let socket = socket()?;
    connect(&socket, &address)?;
    if is_ours(&socket) {
        Ok(socket)
    } else {
        Err(Errno::PERM)
    }
}
