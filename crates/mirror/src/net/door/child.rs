//! The door's process: takes connections, and passes on what its supervisor answers.

use std::collections::HashMap;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::io::Errno;
use rustls::ServerConfig;

use super::ask::{self, Ask, Told};
use super::gate::Gate;
use super::{Limits, connection, lock, offered, shed};
use crate::net::keys::KeyPair;
use crate::net::tls;

/// Tells this program that it is to be a door.
pub const ENV: &str = "MIRROR_DOOR";
/// What a thread that shakes hands needs, with room.
pub const STACK_BYTES: usize = 512 << 10;
/// Answers to one question.
const ANSWERS_MAX: usize = 4;
/// How often strangers are worth a line.
const STRANGERS_EVERY: Duration = Duration::from_secs(60);
/// What it waits when no connection can be taken.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

/// Whether this process was started to be a door.
pub fn asked() -> bool {
    std::env::var_os(ENV).is_some()
}

/// An answer and what came with it.
pub type Answer = (Told, Option<OwnedFd>);

pub struct Child {
    pub limits: Limits,
    pub gate: Arc<Gate>,
    pub tls: Arc<ServerConfig>,
    /// For connections that it offers.
    pub key: KeyPair,
    link: OwnedFd,
    /// Held while a question is written: they are short.
    asking: Mutex<()>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Sender<Answer>>>,
    strangers: Mutex<Strangers>,
}

/// Those who connected and were no followers.
struct Strangers {
    count: u64,
    said: Option<Instant>,
}

/// Until the supervisor goes away, which is how a door is closed.
pub fn run() -> Result<(), String> {
    let link = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)
        .map_err(|e| format!("no supervisor speaks here: {e}"))?;
    let mut buffer = Vec::new();
    let began = ask::receive::<Told>(&link, &mut buffer);
    let (secret, user, limits, sockets) = match began {
        Ok(Some((
            Told::Begin {
                secret,
                user,
                limits,
            },
            sockets,
        ))) => (secret, user, limits, sockets),
        _ => return Err("this is started by `serve` alone".into()),
    };
    let key = KeyPair::from_pkcs8(&secret).ok_or("the key can't be used")?;
    let tls = tls::server(&key).map_err(|e| e.to_string())?;
    drop(secret);
    buffer.fill(0);
    let descriptors = (limits.all * 4 + limits.unknown * 4 + 256) as u64;
    let not_shed = shed::shed(user, descriptors);
    let child = Arc::new(Child {
        limits,
        gate: Arc::new(Gate::new(limits.unknown, limits.unknown_per_address)),
        tls,
        key,
        link,
        asking: Mutex::default(),
        next: AtomicU64::new(1),
        waiting: Mutex::default(),
        strangers: Mutex::new(Strangers {
            count: 0,
            said: None,
        }),
    });
    for line in not_shed {
        child.log(line);
    }
    for socket in sockets {
        child.listen(socket).map_err(|e| e.to_string())?;
    }
    loop {
        match ask::receive::<Told>(&child.link, &mut buffer) {
            Ok(Some((told, fds))) => child.told(told, fds.into_iter().next()),
            Ok(None) => return Ok(()),
            Err(e) => return Err(format!("the supervisor can't be understood: {e}")),
        }
    }
}

pub fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = std::thread::Builder::new()
        .name(name.into())
        .stack_size(STACK_BYTES);
    thread.spawn(run).map(|_| ())
}

impl Child {
    fn listen(self: &Arc<Child>, socket: OwnedFd) -> io::Result<()> {
        let (child, listener) = (self.clone(), TcpListener::from(socket));
        thread("accept", move || child.accept(&listener))
    }

    fn accept(self: &Arc<Child>, listener: &TcpListener) {
        loop {
            let (socket, from) = match listener.accept() {
                Ok(taken) => taken,
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                // It was shut: nobody is to come in here any more.
                Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => return,
                Err(e) => {
                    self.stranger(|| format!("a connection can't be taken: {e}"));
                    std::thread::sleep(ACCEPT_WAIT);
                    continue;
                }
            };
            let until = Instant::now() + Duration::from_millis(self.limits.handshake_ms);
            let child = self.clone();
            let begun = self.gate.enter(from.ip(), &socket).and_then(|seat| {
                thread("peer", move || {
                    connection::serve(&child, socket, from, seat, until);
                })
            });
            if let Err(e) = begun {
                self.stranger(|| format!("a connection can't be taken: {e}"));
                std::thread::sleep(ACCEPT_WAIT);
            }
        }
    }

    fn told(self: &Arc<Child>, told: Told, with: Option<OwnedFd>) {
        if let Told::There = told {
            return self.say(&Ask::Here);
        }
        if let Told::Listen = told {
            if let Some(Err(e)) = with.map(|socket| self.listen(socket)) {
                self.log(format!("cannot start a thread: {e}"));
            }
            return;
        }
        if let Told::Offer { id, key } = told {
            let child = self.clone();
            let Some(socket) = with.map(TcpStream::from) else {
                return;
            };
            if let Err(e) = thread("offer", move || offered::offer(&child, socket, id, key)) {
                let why = format!("cannot start a thread: {e}");
                self.say(&Ask::Ended { id, why });
            }
            return;
        }
        let Some(id) = told.id() else { return };
        let sender = lock(&self.waiting).get(&id).cloned();
        match sender {
            Some(sender) => drop(sender.try_send((told, with))),
            // Nobody waits any more: what came is given back.
            None if with.is_some() => self.say(&Ask::Closed { id }),
            None => {}
        }
    }

    pub fn new_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Asks; the answers come until [`Child::answered`] is called.
    pub fn ask(&self, id: u64, question: &Ask) -> Receiver<Answer> {
        let (sender, receiver) = bounded(ANSWERS_MAX);
        lock(&self.waiting).insert(id, sender);
        self.say(question);
        receiver
    }

    /// No more answers are waited for.
    pub fn answered(&self, id: u64) {
        lock(&self.waiting).remove(&id);
    }

    pub fn say(&self, what: &Ask) {
        let _one = lock(&self.asking);
        // Without a supervisor there is no door: the other thread ends it.
        let _ = ask::send(self.link.as_fd(), what, &[]);
    }

    pub fn log(&self, text: String) {
        self.say(&Ask::Log { text });
    }

    /// Counts, and says one of many.
    pub fn stranger(&self, what: impl FnOnce() -> String) {
        let mut strangers = lock(&self.strangers);
        strangers.count += 1;
        if strangers
            .said
            .is_some_and(|said| said.elapsed() < STRANGERS_EVERY)
        {
            return;
        }
        let more = std::mem::take(&mut strangers.count) - 1;
        strangers.said = Some(Instant::now());
        drop(strangers);
        let ousted = self.gate.ousted();
        let mut text = what();
        if more > 0 || ousted > 0 {
            text.push_str(&format!(
                " ({more} more like that since the last line; {ousted} had to make room for others)"
            ));
        }
        self.log(text);
    }
}
