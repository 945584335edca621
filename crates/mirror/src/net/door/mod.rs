//! The door: the one process that listens, and how its supervisor keeps it.
//!
//! The door's process ends TLS, reads one message, asks its supervisor who may what, and copies bytes between a peer and
//! the process that serves the tree. It is this same program, started with the listening sockets and the private key in hand; it
//! then gives up its user, its capabilities and every path ([`shed`]). The supervisor, in here, decides: `trusted.toml` and
//! the pairing tokens never reach the door. `docs/decisions/0007-the-service.md`.

mod answers;
mod ask;
mod child;
mod connection;
mod gate;
mod offered;
mod offers;
mod shed;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use serde::{Deserialize, Serialize};

use self::answers::Answers;
use self::ask::{Ask, Told};
use super::Program;
use super::files::NetFileError;
use super::keys::{Fingerprint, KeyPair};
use super::trust::Address;
use crate::cli::places::show;
use crate::engine::back_off::BackOff;
use crate::link::message::Cause;
use crate::sync::lock;
use crate::sys::pass;

pub use child::{asked, run};
pub use offers::{ENV as OFFERED_AT, ask_for};

/// Listening sockets of one door.
pub const LISTEN_MAX: usize = 16;
/// How long the door may be busy with something else when it is told something.
const TELL_MAX: Duration = Duration::from_secs(5);
/// How long the door's process may take to end.
const END_MAX: Duration = Duration::from_secs(2);
/// A door that ran for so long ended for another reason than the one before.
const RAN_WELL: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(500);

/// The trees behind a door.
pub trait Trees: Send + Sync {
    /// All that can be asked for.
    fn names(&self) -> Vec<String>;
    /// A new connection to whoever serves the tree (its `door.sock`), to which the peer's Hello is passed on. Only asked for
    /// keys that may follow it. May take some seconds; several are asked for at once.
    fn open(&self, tree: &str) -> Result<UnixStream, (Cause, String)>;
}

/// How much a door takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Connections of whom nothing is known yet: all, and of one address.
    pub unknown: usize,
    pub unknown_per_address: usize,
    /// Connections that follow: all, and of one key.
    pub all: usize,
    pub per_key: usize,
    pub first_frame_bytes: usize,
    /// From the connection to the end of the first frame.
    pub handshake_ms: u64,
    /// A door's process that says nothing for so long, although it was asked, hangs: another one takes its place.
    pub silent_ms: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            unknown: 128,
            unknown_per_address: 32,
            all: 1024,
            per_key: 64,
            first_frame_bytes: 64 << 10,
            handshake_ms: 10_000,
            silent_ms: 15_000,
        }
    }
}

/// What a door is to be. [`DoorSetup::new`] has what is usual.
#[derive(Clone)]
pub struct DoorSetup {
    pub program: Program,
    pub listen: Vec<SocketAddr>,
    /// Key, `trusted.toml` and pairing tokens are there.
    pub config_dir: PathBuf,
    /// Services that are offered connections to our trees, because they can't dial us. They must be known (`known.toml`).
    pub connect_to: Vec<Address>,
    /// A local socket where followers of this host get the connections that were offered here ([`OFFERED_AT`] tells them).
    pub offers: Option<PathBuf>,
    /// Whom the door's process becomes; `None`: it stays who we are.
    pub user: Option<(u32, u32)>,
    pub limits: Limits,
    /// What the door's process runs: this very program.
    pub executable: PathBuf,
    /// One line for the log.
    pub log: Arc<dyn Fn(&str) + Send + Sync>,
}

/// Nobody, on every system.
const NOBODY: u32 = 65534;

impl DoorSetup {
    pub fn new(program: Program, listen: Vec<SocketAddr>, config_dir: PathBuf) -> DoorSetup {
        let is_root = rustix::process::geteuid().is_root();
        DoorSetup {
            program,
            listen,
            config_dir,
            connect_to: Vec::new(),
            offers: None,
            user: is_root.then_some((NOBODY, NOBODY)),
            limits: Limits::default(),
            executable: "/proc/self/exe".into(),
            log: Arc::new(|line| eprintln!("{line}")),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    #[error("{0} is in use: another program listens there (`ss -ltnp` says which)")]
    InUse(SocketAddr),
    #[error("{0} is no address of this host")]
    NoAddress(SocketAddr),
    #[error("cannot listen on {at}: {source}")]
    Listen { at: SocketAddr, source: io::Error },
    #[error("{0} addresses to listen on are too many: {LISTEN_MAX} at most")]
    TooMany(usize),
    #[error("cannot listen at {}: {source}", show(.path))]
    Local { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Files(#[from] NetFileError),
    #[error("cannot start the door's process: {0}")]
    Start(io::Error),
}

/// An open door. It is closed when this is dropped.
pub struct Door {
    keeper: Arc<Keeper>,
    fingerprint: Fingerprint,
    threads: Vec<JoinHandle<()>>,
    dialing: Vec<Dialing>,
}

/// A service that is offered connections.
struct Dialing {
    address: Address,
    over: Arc<AtomicBool>,
}

/// Where it listens.
struct Listener {
    /// As it was asked for: perhaps with no port.
    asked: SocketAddr,
    socket: TcpListener,
}

impl Listener {
    fn bind(asked: SocketAddr) -> Result<Listener, DoorError> {
        match TcpListener::bind(asked) {
            Ok(socket) => Ok(Listener { asked, socket }),
            Err(source) => Err(match source.kind() {
                io::ErrorKind::AddrInUse => DoorError::InUse(asked),
                io::ErrorKind::AddrNotAvailable => DoorError::NoAddress(asked),
                _ => DoorError::Listen { at: asked, source },
            }),
        }
    }

    /// For every process that has it; its address is free then. What came in by it is not concerned.
    fn end(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

/// Keeps a door's process running.
struct Keeper {
    setup: DoorSetup,
    key: KeyPair,
    /// Locked while a process is told of them.
    listeners: Mutex<Vec<Listener>>,
    closing: AtomicBool,
    /// Of the process that runs now; 0: none does.
    pid: AtomicU32,
    answers: Arc<Answers>,
}

impl Door {
    /// Listens, and starts the process that does. What is wrong with the addresses, the key or `trusted.toml` is found here;
    /// after that the door stays open whatever happens.
    pub fn open(setup: DoorSetup, trees: Arc<dyn Trees>) -> Result<Door, DoorError> {
        if setup.listen.len() > LISTEN_MAX {
            return Err(DoorError::TooMany(setup.listen.len()));
        }
        let mut listeners = Vec::new();
        for &at in &setup.listen {
            listeners.push(Listener::bind(at)?);
        }
        let local = match &setup.offers {
            Some(path) => Some(offers::listen(path).map_err(|source| DoorError::Local {
                path: path.clone(),
                source,
            })?),
            None => None,
        };
        let key = KeyPair::load_or_make(&setup.config_dir)?;
        let fingerprint = key.fingerprint();
        let answers = Arc::new(Answers::new(&setup, fingerprint, trees)?);
        let keeper = Arc::new(Keeper {
            setup,
            key,
            listeners: Mutex::new(listeners),
            closing: AtomicBool::new(false),
            pid: AtomicU32::new(0),
            answers,
        });
        let first = keeper.start().map_err(DoorError::Start)?;
        let mut door = Door {
            keeper: keeper.clone(),
            fingerprint,
            threads: Vec::new(),
            dialing: Vec::new(),
        };
        door.spawn("door", move |keeper| keeper.keep(first))?;
        if let Some(listener) = local {
            door.spawn("offers", move |keeper| {
                offers::giving(&keeper.answers, &listener, &keeper.closing);
            })?;
        }
        for address in &keeper.setup.connect_to {
            door.dial(address)?;
        }
        Ok(door)
    }

    fn dial(&mut self, address: &Address) -> Result<(), DoorError> {
        let over = Arc::new(AtomicBool::new(false));
        let one = Dialing {
            address: address.clone(),
            over: over.clone(),
        };
        let address = address.clone();
        self.spawn("connect", move |keeper| {
            offers::offering(&keeper.answers, &address, &over);
        })?;
        self.dialing.push(one);
        Ok(())
    }

    /// From now on it listens at these addresses and dials those. What did not change is not touched, and who follows already goes
    /// on, however he came. On an error all else was done; it may be tried again.
    pub fn change(
        &mut self,
        listen: &[SocketAddr],
        connect_to: &[Address],
    ) -> Result<(), DoorError> {
        if listen.len() > LISTEN_MAX {
            return Err(DoorError::TooMany(listen.len()));
        }
        let mut wrong = None;
        {
            let mut listeners = lock(&self.keeper.listeners);
            listeners.retain(|one| {
                let stays = listen.contains(&one.asked);
                if !stays {
                    one.end();
                }
                stays
            });
            for &at in listen {
                if listeners.iter().any(|one| one.asked == at) {
                    continue;
                }
                match Listener::bind(at) {
                    Ok(one) => {
                        if let Some(link) = self.keeper.answers.link() {
                            answers::tell(&link, &Told::Listen, Some(one.socket.as_fd()));
                        }
                        listeners.push(one);
                    }
                    Err(error) => drop(wrong.get_or_insert(error)),
                }
            }
        }
        self.dialing.retain(|one| {
            let stays = connect_to.contains(&one.address);
            one.over.fetch_or(!stays, Ordering::AcqRel);
            stays
        });
        self.threads.retain(|thread| !thread.is_finished());
        for address in connect_to {
            if self.dialing.iter().all(|one| one.address != *address) {
                self.dial(address)?;
            }
        }
        wrong.map_or(Ok(()), Err)
    }

    fn spawn(
        &mut self,
        name: &str,
        run: impl FnOnce(&Keeper) + Send + 'static,
    ) -> Result<(), DoorError> {
        let keeper = self.keeper.clone();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || run(&keeper))
            .map_err(DoorError::Start)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Where it listens: with the ports the kernel chose, where 0 was asked for.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let all = lock(&self.keeper.listeners);
        let all = all.iter().map(|one| one.socket.local_addr());
        all.filter_map(Result::ok).collect()
    }

    /// Of the key it shows.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Of the process that listens; `None`: it is being started again.
    pub fn pid(&self) -> Option<u32> {
        Some(self.keeper.pid.load(Ordering::Acquire)).filter(|pid| *pid > 0)
    }

    /// Ends every connection, and the process.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.keeper.closing.store(true, Ordering::Release);
        for one in &self.dialing {
            one.over.store(true, Ordering::Release);
        }
        if let Some(link) = self.keeper.answers.link() {
            let _ = rustix::net::shutdown(&link, rustix::net::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        if let Some(path) = &self.keeper.setup.offers {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.end();
    }
}

/// A door's process that runs.
struct Running {
    process: Child,
    link: Arc<OwnedFd>,
    since: Instant,
}

impl Keeper {
    fn say(&self, line: &str) {
        (self.setup.log)(line);
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    fn start(&self) -> io::Result<Running> {
        let (ours, theirs) = pass::pair()?;
        sockopt::set_socket_timeout(&ours, sockopt::Timeout::Send, Some(TELL_MAX))?;
        sockopt::set_socket_timeout(&ours, sockopt::Timeout::Recv, Some(TICK))?;
        let process = Command::new(&self.setup.executable)
            .arg0(format!("{}: door", self.setup.program))
            .env_clear()
            .env(child::ENV, "1")
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()?;
        let running = Running {
            process,
            link: Arc::new(ours),
            since: Instant::now(),
        };
        let begin = Told::Begin {
            secret: self.key.secret().to_vec(),
            user: self.setup.user,
            limits: self.setup.limits,
        };
        let listeners = lock(&self.listeners);
        let sockets: Vec<_> = listeners.iter().map(|one| one.socket.as_fd()).collect();
        if let Err(e) = ask::send(&running.link, &begin, &sockets) {
            end(running);
            return Err(e);
        }
        self.answers.set_link(Some(running.link.clone()));
        self.pid.store(running.process.id(), Ordering::Release);
        Ok(running)
    }

    /// Until the door is closed.
    fn keep(&self, first: Running) {
        let mut next = Some(first);
        let mut back_off = BackOff::default();
        while !self.is_closing() {
            let running = match next.take().map_or_else(|| self.start(), Ok) {
                Ok(running) => running,
                Err(e) => {
                    let wait = back_off.next_wait();
                    let s = wait.as_secs_f64();
                    self.say(&format!(
                        "cannot start the door's process: {e}; trying again in {s:.1} s"
                    ));
                    self.rest(wait);
                    continue;
                }
            };
            let since = running.since;
            let why = self.answer(&running.link);
            self.answers.set_link(None);
            self.pid.store(0, Ordering::Release);
            let ended = end(running);
            self.answers.forget_all();
            if self.is_closing() {
                return;
            }
            if since.elapsed() >= RAN_WELL {
                back_off.reset();
            }
            let wait = back_off.next_wait();
            let s = wait.as_secs_f64();
            self.say(&format!(
                "the door's process ended ({why}, {ended}): all its connections are gone; starting it again in {s:.1} s"
            ));
            self.rest(wait);
        }
        // A start that was under way while we were closed.
        if let Some(running) = next {
            end(running);
        }
    }

    fn rest(&self, at_most: Duration) {
        let until = Instant::now() + at_most;
        while Instant::now() < until && !self.is_closing() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Answers until there is nobody to answer. Why that is.
    fn answer(&self, link: &Arc<OwnedFd>) -> String {
        let mut buffer = Vec::new();
        // Silence is counted in rests of our own: who was stopped together with us is not to blame.
        let silent_max = self
            .setup
            .limits
            .silent_ms
            .div_ceil(TICK.as_millis() as u64)
            .max(2);
        let mut silent = 0;
        while !self.is_closing() {
            self.answers.look_at_trust(false);
            match ask::receive::<Ask>(link, &mut buffer) {
                Ok(Some((question, _))) => {
                    silent = 0;
                    self.answers.answer(question, link);
                }
                Ok(None) => return "it closed its socket".into(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    silent += 1;
                    if silent >= silent_max {
                        let ms = self.setup.limits.silent_ms;
                        return format!("it said nothing for {:.1} s", ms as f64 / 1000.0);
                    }
                    // A third of the time is enough to answer in, twice.
                    if silent % (silent_max / 3).max(1) == 0 {
                        answers::tell(link, &Told::There, None);
                    }
                }
                Err(e) => return format!("it can't be understood: {e}"),
            }
        }
        "closed".into()
    }
}

/// Ends the process, with a little patience. How it ended.
fn end(mut running: Running) -> String {
    let _ = rustix::net::shutdown(&running.link, rustix::net::Shutdown::Both);
    let until = Instant::now() + END_MAX;
    loop {
        match running.process.try_wait() {
            Ok(Some(status)) => return status.to_string(),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            _ => break,
        }
    }
    let _ = running.process.kill();
    match running.process.wait() {
        Ok(status) => status.to_string(),
        Err(e) => e.to_string(),
    }
}
