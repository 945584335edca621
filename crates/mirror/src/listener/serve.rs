//! The listener's process: one group a file system, a connection a tree. It ends with the service that started it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, chmodat, unlinkat};
use rustix::net::{SocketFlags, accept_with, bind, listen};

use super::places::Places;
use super::route::{Out, Router, To, Tree};
use super::wire::{Ask, BYTES_MAX, Told, records_head};
use super::{SOCKET, ear};
use crate::engine::service::pulse;
use crate::sys::fanotify::{self, Fsid, Group, Queue};
use crate::sys::{Errno, descriptors, pass};

/// The pause after a read, in which the kernel merges what belongs together. Who asks for a sync ends it.
const WINDOW: Duration = Duration::from_millis(1);
const BUFFER_BYTES: usize = 256 << 10;
/// Read before it is looked at. The kernel's queue of usual length is a fifth of it.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Kept for a tree that does not take it.
const BEHIND_BYTES_MAX: usize = 16 << 20;
const BACKLOG: i32 = 512;
/// Taken from one tree, or of new ones, at a time.
const ASKS_MAX: usize = 16;
const TREES_MAX: usize = 8192;
/// Who has not said what he wants within so long is sent away.
const BEGINS_WITHIN: Duration = Duration::from_secs(10);

struct Client {
    socket: OwnedFd,
    since: Instant,
    begun: bool,
    behind: VecDeque<Vec<u8>>,
    behind_bytes: usize,
    /// A message of records that is not full yet.
    filling: Vec<u8>,
    /// Asked for, and not answered yet.
    sync: Option<u64>,
    synced: u64,
    over: bool,
}

struct System {
    fsid: Fsid,
    group: Group,
    places: Places,
    router: Router,
    trees: BTreeSet<Tree>,
    /// Read while the batch before it was looked at.
    next: Vec<u8>,
    quiet_until: Instant,
}

struct Listener {
    socket: OwnedFd,
    clients: BTreeMap<Tree, Client>,
    systems: Vec<System>,
    last: Tree,
    began: Instant,
    buffer: Vec<u8>,
}

/// Until it is ended.
pub fn run(base: &Path) -> Result<(), String> {
    rustix::process::umask(Mode::from_raw_mode(0o077));
    descriptors::max();
    let socket = open(base).map_err(|e| format!("cannot open its socket: {e}"))?;
    let mut listener = Listener {
        socket,
        clients: BTreeMap::new(),
        systems: Vec::new(),
        last: 0,
        began: Instant::now(),
        buffer: vec![0; BUFFER_BYTES],
    };
    pulse::begin();
    loop {
        pulse::beat();
        listener.turn().map_err(|e| format!("cannot wait: {e}"))?;
    }
}

/// The service has one listener at a time: what is found there is a dead one's.
fn open(base: &Path) -> io::Result<OwnedFd> {
    let (dir, address) = ear::address(base)?;
    match unlinkat(&dir, SOCKET, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let socket = ear::socket()?;
    bind(&socket, &address)?;
    chmodat(&dir, SOCKET, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

impl Listener {
    fn turn(&mut self) -> Result<(), Errno> {
        let now = Instant::now();
        let (mut due, mut asked) = (BTreeSet::new(), BTreeSet::new());
        let come = self.wait(now, &mut due, &mut asked)?;
        if come {
            self.accept();
        }
        for tree in asked {
            self.hear(tree);
        }
        let now = Instant::now();
        let late = |client: &Client| !client.begun && now > client.since + BEGINS_WITHIN;
        for client in self.clients.values_mut().filter(|client| late(client)) {
            client.over = true;
        }
        self.drop_gone();
        let syncs: BTreeSet<Tree> = self
            .clients
            .iter()
            .filter(|(_, client)| client.sync.is_some())
            .map(|(tree, _)| *tree)
            .collect();
        let now_ms = self.began.elapsed().as_millis() as u64;
        for (at, system) in self.systems.iter_mut().enumerate() {
            if due.contains(&at) || !system.trees.is_disjoint(&syncs) {
                system.pump(&mut self.clients, &mut self.buffer, now_ms);
                system.quiet_until = Instant::now() + WINDOW;
            }
        }
        for client in self.clients.values_mut() {
            if let Some(n) = client.sync.take() {
                client.synced = n;
                client.say(&Told::Synced(n));
            }
            client.send();
        }
        self.drop_gone();
        Ok(())
    }

    /// Which file systems are to be read, and who asks for something. True: somebody comes.
    fn wait(
        &self,
        now: Instant,
        due: &mut BTreeSet<usize>,
        asked: &mut BTreeSet<Tree>,
    ) -> Result<bool, Errno> {
        let mut fds = vec![PollFd::new(&self.socket, PollFlags::IN)];
        for client in self.clients.values() {
            let out = match client.behind.is_empty() {
                true => PollFlags::empty(),
                false => PollFlags::OUT,
            };
            fds.push(PollFd::new(&client.socket, PollFlags::IN | out));
        }
        let mut timeout = Duration::from_secs(1);
        let mut read: Vec<usize> = Vec::new();
        for (at, system) in self.systems.iter().enumerate() {
            let quiet = system.quiet_until.saturating_duration_since(now);
            if !quiet.is_zero() {
                timeout = timeout.min(quiet);
            } else if !system.next.is_empty() {
                due.insert(at);
                timeout = Duration::ZERO;
            } else {
                fds.push(PollFd::from_borrowed_fd(
                    system.group.as_fd(),
                    PollFlags::IN,
                ));
                read.push(at);
            }
        }
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(false),
            Err(e) => return Err(e),
        }
        let mut ready = fds.iter().map(|fd| fd.revents());
        let come = ready.next().is_some_and(|events| !events.is_empty());
        for (tree, _) in self.clients.iter() {
            // Room to send is found when it is sent.
            if ready
                .next()
                .is_some_and(|events| !events.difference(PollFlags::OUT).is_empty())
            {
                asked.insert(*tree);
            }
        }
        for at in read {
            if ready.next().is_some_and(|events| !events.is_empty()) {
                due.insert(at);
            }
        }
        Ok(come)
    }

    fn accept(&mut self) {
        for _ in 0..ASKS_MAX {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let Ok(socket) = accept_with(&self.socket, flags) else {
                return;
            };
            if self.clients.len() >= TREES_MAX || !ear::is_ours(&socket) {
                continue;
            }
            self.last = self.last.wrapping_add(1);
            let client = Client {
                socket,
                since: Instant::now(),
                begun: false,
                behind: VecDeque::new(),
                behind_bytes: 0,
                filling: Vec::new(),
                sync: None,
                synced: 0,
                over: false,
            };
            self.clients.insert(self.last, client);
        }
    }

    fn hear(&mut self, tree: Tree) {
        let mut buffer = [0; 64];
        for _ in 0..ASKS_MAX {
            let Some(client) = self.clients.get_mut(&tree) else {
                return;
            };
            let (length, roots) = match pass::receive(&client.socket, &mut buffer) {
                Ok((0, _)) => {
                    client.over = true;
                    return;
                }
                Ok(heard) => heard,
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    client.over = true;
                    return;
                }
            };
            match buffer.get(..length).and_then(Ask::parse) {
                Some(Ask::Sync(n)) if client.begun => client.sync = Some(n),
                Some(Ask::Begin) if !client.begun && !roots.is_empty() => {
                    let begun = self.begin(tree, &roots);
                    let Some(client) = self.clients.get_mut(&tree) else {
                        return;
                    };
                    match begun {
                        Ok(()) => {
                            client.begun = true;
                            client.say(&Told::Marked);
                        }
                        Err(why) => {
                            client.say(&Told::Refused(&why));
                            client.send();
                            client.over = true;
                        }
                    }
                }
                _ => client.over = true,
            }
        }
    }

    /// Marks what is not marked yet.
    fn begin(&mut self, tree: Tree, roots: &[OwnedFd]) -> Result<(), String> {
        for root in roots {
            let fsid = fanotify::fsid(root).map_err(|e| e.to_string())?;
            let at = match self.systems.iter().position(|system| system.fsid == fsid) {
                Some(at) => at,
                None => {
                    self.systems.push(System::new(root, fsid)?);
                    self.systems.len() - 1
                }
            };
            let Some(system) = self.systems.get_mut(at) else {
                continue;
            };
            system.trees.insert(tree);
            system
                .places
                .add(tree, root)
                .map_err(|e| format!("its root can't be found again: {e}"))?;
        }
        Ok(())
    }

    fn drop_gone(&mut self) {
        let over: Vec<Tree> = self
            .clients
            .iter()
            .filter(|(_, client)| client.over)
            .map(|(tree, _)| *tree)
            .collect();
        for tree in over {
            self.clients.remove(&tree);
            for system in &mut self.systems {
                if system.trees.remove(&tree) {
                    system.places.remove(tree);
                }
            }
        }
        // A group keeps its file system busy.
        self.systems.retain(|system| !system.trees.is_empty());
    }
}

impl System {
    fn new(root: &OwnedFd, fsid: Fsid) -> Result<System, String> {
        let group = Group::new(Queue::Limited).map_err(fanotify::explain)?;
        if !group.has_target {
            return Err("one listener for several trees needs Linux 5.17".into());
        }
        let places = Places::whole(root, fsid)?;
        group
            .mark_filesystem(places.view())
            .map_err(fanotify::explain)?;
        Ok(System {
            fsid,
            group,
            places,
            router: Router::default(),
            trees: BTreeSet::new(),
            next: Vec::new(),
            quiet_until: Instant::now(),
        })
    }

    /// Reads what the kernel has queued by now onto `into`. False: not all of it, or something failed.
    fn read(&self, into: &mut Vec<u8>, buffer: &mut [u8]) -> Result<bool, Errno> {
        // What comes meanwhile is for the next time: it may come without end.
        let mut owed = self.group.pending()?;
        while owed > 0 {
            if into.len() >= BATCH_BYTES_MAX {
                return Ok(false);
            }
            let length = self.group.read_bytes(buffer)?;
            let read = buffer.get(..length).unwrap_or_default();
            if read.is_empty() {
                break;
            }
            into.extend_from_slice(read);
            owed = owed.saturating_sub(fanotify::Records::parse(read).count() as u64);
        }
        Ok(true)
    }

    /// Passes on all that the kernel has queued by now.
    fn pump(&mut self, clients: &mut BTreeMap<Tree, Client>, buffer: &mut [u8], now_ms: u64) {
        loop {
            let mut batch = std::mem::take(&mut self.next);
            let read = self.read(&mut batch, buffer);
            if batch.is_empty() && read == Ok(true) {
                return;
            }
            let mut plan = self.router.plan(&mut self.places, &batch);
            let mut next = Vec::new();
            match self.read(&mut next, buffer) {
                Ok(true) => self.router.ahead(&mut self.places, &mut plan, &next),
                _ => self.router.doubt(&mut plan),
            }
            self.next = next;
            let trees = &self.trees;
            let mut each = |out: Out<'_>| match out {
                Out::Record { to, entered, bytes } => match to {
                    To::Every => {
                        for tree in trees {
                            record(clients, *tree, entered, bytes);
                        }
                    }
                    To::These(trees) => {
                        for tree in trees.iter() {
                            record(clients, *tree, entered, bytes);
                        }
                    }
                },
                Out::Lost => {
                    for tree in trees {
                        if let Some(client) = clients.get_mut(tree) {
                            client.say(&Told::Lost);
                        }
                    }
                }
            };
            self.router
                .pass(&mut self.places, plan, &batch, now_ms, &mut each);
            match read {
                Ok(true) => return,
                // What was queued before is still there.
                Ok(false) => {}
                Err(_) => {
                    // No memory: what was not read may be lost.
                    each(Out::Lost);
                    return;
                }
            }
        }
    }
}

fn record(clients: &mut BTreeMap<Tree, Client>, tree: Tree, entered: bool, bytes: &[u8]) {
    if let Some(client) = clients.get_mut(&tree) {
        client.record(entered, bytes);
    }
}

impl Client {
    fn record(&mut self, entered: bool, bytes: &[u8]) {
        let head = records_head(entered);
        let fits = self.filling.len() + bytes.len() <= BYTES_MAX;
        if !(fits && self.filling.first() == Some(&head)) {
            self.fill_up();
            self.filling.push(head);
        }
        self.filling.extend_from_slice(bytes);
    }

    fn fill_up(&mut self) {
        if !self.filling.is_empty() {
            let message = std::mem::take(&mut self.filling);
            self.queue(message);
        }
    }

    fn say(&mut self, told: &Told<'_>) {
        self.fill_up();
        self.queue(told.to_bytes());
    }

    fn queue(&mut self, message: Vec<u8>) {
        self.behind_bytes += message.len();
        self.behind.push_back(message);
        if self.behind_bytes > BEHIND_BYTES_MAX {
            self.behind.clear();
            self.behind_bytes = 0;
            for told in [Told::Lost, Told::Synced(self.synced)] {
                let message = told.to_bytes();
                self.behind_bytes += message.len();
                self.behind.push_back(message);
            }
        }
    }

    /// As much as it takes.
    fn send(&mut self) {
        self.fill_up();
        while let Some(message) = self.behind.front() {
            match pass::send(&self.socket, message, &[]) {
                Ok(()) => {
                    self.behind_bytes -= message.len().min(self.behind_bytes);
                    self.behind.pop_front();
                }
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.over = true;
                    return;
                }
            }
        }
    }
}
