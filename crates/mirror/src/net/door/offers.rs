//! Connections the other way round, at the supervisor: those it has its door offer (`connect_to`), and those that were
//! offered to it, which followers of this host ask for at a local socket.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use mirror_core::escape;
use serde::{Deserialize, Serialize};

use super::answers::Answers;
use super::ask::Told;
use super::lock;
use crate::engine::applying::chain;
use crate::engine::back_off::BackOff;
use crate::engine::serving::socket;
use crate::engine::soon::Soon;
use crate::link::Message;
use crate::link::message::{self as say, Cause};
use crate::net::dial::{self, DialError};
use crate::net::keys::Fingerprint;
use crate::net::trust::{Address, Known};

/// Connections that wait to be taken: all, and of one key.
const KEPT_MAX: usize = 256;
const KEPT_OF_KEY_MAX: usize = 64;
/// How long a follower waits for one. It waits 30 s for its welcome.
const TAKE_MAX: Duration = Duration::from_secs(20);
const REQUEST_BYTES_MAX: usize = 2000;
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// Followers that wait.
const WANTED_MAX: usize = 256;
/// For a connection that is to be offered.
const CONNECT_MAX: Duration = Duration::from_secs(10);
const AGAIN_MS_MIN: u64 = 1000;
const AGAIN_MS_MAX: u64 = 30_000;
/// One that was offered for so long ended for another reason than those before.
const OFFERED_WELL: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(200);
/// Numbers of connections that begin here, apart from those that begin in the door.
const OURS: u64 = 1 << 63;

/// Tells a follower's process where it gets connections that were offered.
pub const ENV: &str = "FS_MIRROR_OFFERED_AT";

/// A follower's word at the local socket, on one line.
#[derive(Serialize, Deserialize)]
struct Wanted {
    name: String,
    tree: String,
}

#[derive(Default)]
pub struct Offers {
    /// Oldest first.
    kept: Mutex<VecDeque<Kept>>,
    more: Condvar,
    wanted: AtomicU64,
    /// Those we offer, until they are taken or ended.
    offered: Mutex<HashMap<u64, Sender<Result<(), String>>>>,
    next: AtomicU64,
}

#[derive(Clone)]
struct Kept {
    id: u64,
    key: Fingerprint,
    name: String,
}

impl Offers {
    /// One more may stay.
    pub fn check_room(&self, key: &Fingerprint) -> Result<(), (Cause, String)> {
        let kept = lock(&self.kept);
        let of_key = kept.iter().filter(|one| one.key == *key).count();
        if of_key >= KEPT_OF_KEY_MAX || kept.len() >= KEPT_MAX {
            let why = "more connections are offered here than anybody takes".to_owned();
            return Err((Cause::Failed, why));
        }
        Ok(())
    }

    /// A connection that stays until somebody takes it, which may be at once.
    pub fn keep(&self, id: u64, key: Fingerprint, name: &str) {
        let mut kept = lock(&self.kept);
        kept.push_back(Kept {
            id,
            key,
            name: name.into(),
        });
        drop(kept);
        self.more.notify_all();
    }

    /// It ended. False: it was not kept.
    pub fn gone(&self, id: u64) -> bool {
        let mut kept = lock(&self.kept);
        let before = kept.len();
        kept.retain(|one| one.id != id);
        kept.len() < before
    }

    /// Those of keys that nobody is called by any more.
    pub fn drop_unless(&self, known: impl Fn(&Fingerprint) -> bool) -> Vec<u64> {
        let mut kept = lock(&self.kept);
        let gone = kept.iter().filter(|one| !known(&one.key)).map(|one| one.id);
        let gone: Vec<u64> = gone.collect();
        kept.retain(|one| !gone.contains(&one.id));
        gone
    }

    /// The door's process is gone.
    pub fn forget_all(&self) {
        lock(&self.kept).clear();
        for (_, told) in lock(&self.offered).drain() {
            let _ = told.try_send(Err("the door's process ended".into()));
        }
    }

    /// What became of one that we offered.
    pub fn over(&self, id: u64, how: Result<(), String>) {
        if let Some(told) = lock(&self.offered).remove(&id) {
            let _ = told.try_send(how);
        }
    }

    /// The oldest that this peer offered; waits for one.
    fn take(&self, name: &str, until: Instant) -> Option<Kept> {
        let mut kept = lock(&self.kept);
        loop {
            if let Some(at) = kept.iter().position(|one| one.name == name) {
                return kept.remove(at);
            }
            let left = until.checked_duration_since(Instant::now())?;
            kept = self
                .more
                .wait_timeout(kept, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// Keeps one connection offered to this address, until `closing`. Those that were taken are not concerned.
pub fn offering(answers: &Arc<Answers>, address: &Address, closing: &AtomicBool) {
    let mut back_off = BackOff::new(AGAIN_MS_MIN, AGAIN_MS_MAX);
    let mut soon = Soon::default();
    let mut said = String::new();
    while !closing.load(Ordering::Acquire) {
        let begun = Instant::now();
        let mut refused = false;
        match offer(answers, address, closing, &mut refused) {
            Ok(()) => {
                back_off.reset();
                said.clear();
            }
            Err(why) => {
                if why != said && !closing.load(Ordering::Acquire) {
                    answers.log(&format!("connect_to {address}: {why}; trying again"));
                    said = why;
                }
                let worked = begun.elapsed() >= OFFERED_WELL;
                if worked {
                    back_off.reset();
                }
                let until = Instant::now() + soon.next_wait(refused, worked, &mut back_off);
                while Instant::now() < until && !closing.load(Ordering::Acquire) {
                    std::thread::sleep(TICK);
                }
            }
        }
    }
}

/// Until somebody took it. `refused`: that host is up, and nothing listens there now.
fn offer(
    answers: &Arc<Answers>,
    address: &Address,
    closing: &AtomicBool,
    refused: &mut bool,
) -> Result<(), String> {
    let (program, config_dir) = (answers.setup.program, &answers.setup.config_dir);
    let known = Known::load(config_dir).map_err(|e| chain(&e))?;
    let key = known.key(address).ok_or_else(|| {
        format!(
            "its key is not known here: `fs_mirror pair --accept` there makes a token for `{program} pair {address} TOKEN \
             --tree NAME` here"
        )
    })?;
    if answers.trees_of(&key).is_empty() {
        return Err(format!(
            "it may follow no tree here: `{program} trust {key} --tree NAME` allows it"
        ));
    }
    let link = answers.link().ok_or("the door's process does not run")?;
    let deadline = Instant::now() + CONNECT_MAX;
    let socket = dial::connect(address, deadline, CONNECT_MAX).map_err(|e| {
        *refused = matches!(e, DialError::Refused(_));
        chain(&e)
    })?;
    let offers = &answers.offers;
    let id = OURS | offers.next.fetch_add(1, Ordering::Relaxed);
    let (tell, told) = bounded(1);
    lock(&offers.offered).insert(id, tell);
    let key = key.0;
    super::answers::tell(&link, &Told::Offer { id, key }, Some(socket.as_fd()));
    loop {
        match told.recv_timeout(TICK) {
            Ok(how) => return how,
            Err(RecvTimeoutError::Disconnected) => return Err("it was given up".into()),
            Err(RecvTimeoutError::Timeout) if closing.load(Ordering::Acquire) => {
                // It is not to be taken any more.
                let _ = socket.shutdown(Shutdown::Both);
                return Ok(());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Where followers of this host ask. Whatever lies there is replaced.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Gives followers what was offered, until `closing`.
pub fn giving(answers: &Arc<Answers>, listener: &UnixListener, closing: &AtomicBool) {
    while !closing.load(Ordering::Acquire) {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(TICK);
            continue;
        };
        let offers = &answers.offers;
        let is_fine = socket::is_ours(&stream) && stream.set_nonblocking(false).is_ok();
        if !is_fine || offers.wanted.load(Ordering::Acquire) >= WANTED_MAX as u64 {
            continue;
        }
        offers.wanted.fetch_add(1, Ordering::AcqRel);
        let answers = answers.clone();
        let give = move || {
            give(&answers, stream);
            answers.offers.wanted.fetch_sub(1, Ordering::AcqRel);
        };
        let thread = std::thread::Builder::new().name("give".into()).spawn(give);
        if thread.is_err() {
            offers.wanted.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn give(answers: &Arc<Answers>, mut stream: UnixStream) {
    let Some(wanted) = request(&mut stream) else {
        return;
    };
    let taken = answers.offers.take(&wanted.name, Instant::now() + TAKE_MAX);
    let given = match (taken, answers.link()) {
        (Some(kept), Some(link)) => {
            answers.give(kept.id, kept.key, &kept.name, &wanted.tree, &stream, &link)
        }
        _ => Err(format!(
            "{} offers no connection here: is `connect_to` set there, with this host's address, and are both paired \
             (`fs_mirror pair --accept` here)?",
            escape(wanted.name.as_bytes())
        )),
    };
    if let Err(reason) = given {
        let cause = Cause::Failed.code();
        let mut bytes = Vec::new();
        if Message::from(say::Refused { cause, reason })
            .encode(&mut bytes)
            .is_ok()
        {
            let _ = stream.write_all(&bytes);
        }
    }
}

/// One line; what follows it is not ours.
fn request(stream: &mut UnixStream) -> Option<Wanted> {
    stream.set_read_timeout(Some(REQUEST_MAX)).ok()?;
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < REQUEST_BYTES_MAX {
        stream.read_exact(&mut byte).ok()?;
        if byte == *b"\n" {
            stream.set_read_timeout(None).ok()?;
            return serde_json::from_slice(&line).ok();
        }
        line.extend(byte);
    }
    None
}

/// A follower's way to a connection that `name` offered to this host.
pub fn ask_for(at: &Path, name: &str, tree: &str) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(at)?;
    let mut line = serde_json::to_vec(&Wanted {
        name: name.into(),
        tree: tree.into(),
    })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    Ok(stream)
}
