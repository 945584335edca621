//! The control socket's server: a thread a client, all of them bounded. A client that dies, floods or falls asleep
//! harms only itself.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, Mode, chmodat, unlinkat};

use super::stop::timespec;
use super::wire::{REQUEST_BYTES_MAX, Reply, Request, SOCKET, SocketPlace};
use super::{Control, ControlError, LogLine, Stop, Until, VerifyLine};
use crate::engine::status::parse_position;

const CLIENTS_MAX: usize = 64;
/// A client that has not sent its request, or not taken its answer, by then is dropped.
const CLIENT_SILENT_S_MAX: u64 = 30;

/// Serves until dropped.
pub struct Handle {
    place: SocketPlace,
    stop: Stop,
    accepting: Option<thread::JoinHandle<()>>,
    clients: Arc<AtomicUsize>,
    /// Why the socket has no file: commands on this host find it all the same.
    pub without_a_file: Option<io::Error>,
}

/// Opens `control.sock` in the state directory, whose [`super::StateLock`] the caller holds: a socket found there is a
/// dead process's.
pub fn serve(state_dir: &Path, control: Arc<dyn Control>) -> io::Result<Handle> {
    let place = SocketPlace::open_private(state_dir)?;
    match unlinkat(place.dir(), SOCKET, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let mut without_a_file = None;
    let listener = match UnixListener::bind(place.path()) {
        Ok(listener) => {
            let ours = Mode::RUSR | Mode::WUSR;
            chmodat(place.dir(), SOCKET, ours, AtFlags::empty())?;
            listener
        }
        // A socket needs an inode, and for that some file systems need blocks.
        Err(e) if is_no_room(&e) => {
            let listener = place.bind_without_a_file()?;
            without_a_file = Some(e);
            listener
        }
        Err(e) => return Err(e),
    };
    listener.set_nonblocking(true)?;
    let stop = Stop::new();
    let clients = Arc::new(AtomicUsize::new(0));
    let accepting = thread::Builder::new().name("control".into()).spawn({
        let (stop, clients) = (stop.clone(), clients.clone());
        move || accept(&listener, &stop, &clients, &control)
    })?;
    Ok(Handle {
        place,
        stop,
        accepting: Some(accepting),
        clients,
        without_a_file,
    })
}

fn is_no_room(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.request();
        let _ = unlinkat(self.place.dir(), SOCKET, AtFlags::empty());
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        // Waits of clients end at once; an order that is being carried out gets a moment, then is left to itself.
        let until = Instant::now() + Duration::from_secs(2);
        while self.clients.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Counts a client for as long as it lives.
struct Seat(Arc<AtomicUsize>);

impl Seat {
    fn take(clients: &Arc<AtomicUsize>) -> Option<Seat> {
        if clients.fetch_add(1, Ordering::SeqCst) >= CLIENTS_MAX {
            clients.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        Some(Seat(clients.clone()))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn accept(
    listener: &UnixListener,
    stop: &Stop,
    clients: &Arc<AtomicUsize>,
    control: &Arc<dyn Control>,
) {
    loop {
        let stop_fd = stop.fd();
        let mut fds = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(&stop_fd, PollFlags::IN),
        ];
        let _ = poll(&mut fds, None);
        if stop.requested() {
            return;
        }
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            // Out of descriptors, say: the client waits in the queue.
            Err(_) => {
                stop.wait(Duration::from_millis(100));
                continue;
            }
        };
        let mut client = Client {
            stream,
            stop: stop.clone(),
        };
        if client.prepare().is_err() || !client.is_ours() {
            continue;
        }
        let Some(seat) = Seat::take(clients) else {
            client.say(&Reply::Error(ControlError::Busy(format!(
                "{CLIENTS_MAX} commands are already waiting here"
            ))));
            continue;
        };
        let control = control.clone();
        // A thread that can't be started drops the client, which sees its connection end.
        let _ = thread::Builder::new()
            .name("control client".into())
            .spawn(move || {
                let _seat = seat;
                client.run(control.as_ref());
            });
    }
}

struct Client {
    stream: UnixStream,
    stop: Stop,
}

impl Client {
    fn prepare(&self) -> io::Result<()> {
        self.stream.set_nonblocking(false)?;
        self.stream
            .set_read_timeout(Some(Duration::from_secs(CLIENT_SILENT_S_MAX)))?;
        self.stream
            .set_write_timeout(Some(Duration::from_secs(CLIENT_SILENT_S_MAX)))
    }

    /// The socket is 0600, this is the second lock on the door: only root and our own user.
    fn is_ours(&self) -> bool {
        rustix::net::sockopt::socket_peercred(self.stream.as_fd())
            .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
    }

    /// Requests one after the other until the client goes.
    fn run(&mut self, control: &dyn Control) {
        let mut pending = Vec::new();
        while let Some(line) = self.request(&mut pending) {
            let reply = match serde_json::from_slice::<Request>(&line) {
                Ok(request) => self.answer(request, control),
                Err(e) => Reply::Error(ControlError::Refused(format!(
                    "not a request of this version: {e}"
                ))),
            };
            if !self.say(&reply) {
                return;
            }
        }
    }

    /// The next line; `None`: the client is gone, silent, or sends what is no request.
    fn request(&mut self, pending: &mut Vec<u8>) -> Option<Vec<u8>> {
        let until = Instant::now() + Duration::from_secs(CLIENT_SILENT_S_MAX);
        loop {
            if let Some(end) = pending.iter().position(|&b| b == b'\n') {
                let rest = pending.split_off(end + 1);
                return Some(std::mem::replace(pending, rest));
            }
            if pending.len() > REQUEST_BYTES_MAX {
                self.say(&Reply::Error(ControlError::Refused(
                    "the request is too long".into(),
                )));
                return None;
            }
            let stop = self.stop.fd();
            let mut fds = [
                PollFd::new(&self.stream, PollFlags::IN),
                PollFd::new(&stop, PollFlags::IN),
            ];
            let left = until.saturating_duration_since(Instant::now());
            let _ = poll(&mut fds, Some(&timespec(left)));
            if self.stop.requested() || left.is_zero() {
                return None;
            }
            let mut buffer = [0u8; 4096];
            match rustix::net::recv(
                &self.stream,
                &mut buffer[..],
                rustix::net::RecvFlags::DONTWAIT,
            ) {
                Ok((_, 0)) => return None,
                Ok((_, n)) => pending.extend_from_slice(buffer.get(..n)?),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }

    fn answer(&mut self, request: Request, control: &dyn Control) -> Reply {
        let done =
            |result: Result<(), ControlError>| result.map_or_else(Reply::Error, |()| Reply::Done);
        match request {
            Request::Status => Reply::Status(Box::new(control.status())),
            Request::WaitIdle { timeout_ms } => {
                let gone = || self.gone();
                let until = Until {
                    at: deadline(timeout_ms),
                    gone: &gone,
                };
                control
                    .wait_idle(&until)
                    .map_or_else(Reply::Error, Reply::Waited)
            }
            Request::WaitPosition {
                position,
                timeout_ms,
            } => {
                let Some(position) = parse_position(&position) else {
                    return Reply::Error(ControlError::Refused("a position is EPOCH.SEQ".into()));
                };
                let gone = || self.gone();
                let until = Until {
                    at: deadline(timeout_ms),
                    gone: &gone,
                };
                control
                    .wait_position(position, &until)
                    .map_or_else(Reply::Error, Reply::Waited)
            }
            Request::WaitReplicas {
                stage,
                replicas,
                timeout_ms,
            } => {
                let gone = || self.gone();
                let until = Until {
                    at: deadline(timeout_ms),
                    gone: &gone,
                };
                control
                    .wait_replicas(stage, replicas, &until)
                    .map_or_else(Reply::Error, Reply::Waited)
            }
            Request::Pause => done(control.pause()),
            Request::Resume => done(control.resume()),
            Request::Release { yes } => control
                .release(yes)
                .map_or_else(Reply::Error, Reply::Release),
            Request::Forget { replica } => control
                .forget(&replica)
                .map_or_else(Reply::Error, Reply::Forgotten),
            Request::Verify { options } => {
                let mut listening = true;
                let mut line = |line: VerifyLine| {
                    listening = listening && !self.stop.requested() && self.say(&Reply::Line(line));
                    listening
                };
                control
                    .verify(options, &mut line)
                    .map_or_else(Reply::Error, Reply::Verified)
            }
            Request::Log { lines, follow } => {
                let mut line = |line: LogLine| {
                    if line == LogLine::default() {
                        return !self.gone();
                    }
                    !self.stop.requested() && self.say(&Reply::Record(line))
                };
                done(control.log(lines, follow, &mut line))
            }
            Request::Past { ask } => control
                .past(ask)
                .map_or_else(Reply::Error, |answer| Reply::Past(Box::new(answer))),
            Request::Stop => {
                control.stop();
                Reply::Done
            }
        }
    }

    /// The client hung up, or we are closing.
    fn gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let hung_up = matches!(poll(&mut fds, Some(&timespec(Duration::ZERO))), Ok(n) if n > 0);
        hung_up || self.stop.requested()
    }

    /// False: nobody hears it.
    fn say(&mut self, reply: &Reply) -> bool {
        let Ok(mut bytes) = serde_json::to_vec(reply) else {
            return false;
        };
        bytes.push(b'\n');
        self.stream.write_all(&bytes).is_ok()
    }
}

fn deadline(timeout_ms: Option<u64>) -> Option<Instant> {
    timeout_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)))
}
