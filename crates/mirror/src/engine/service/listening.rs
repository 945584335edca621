//! The door of a service: other hosts follow its trees through it, a worker's as well as a backup's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::backup::user_of;
use crate::engine::serving::socket::{self, Way};
use crate::link::message::Cause;
use crate::net::door::{Door, DoorSetup, Trees};
use crate::net::trust::Address;
use crate::net::{Program, config_dir};
use crate::sync::lock;

/// After it could not be opened.
const AGAIN_AFTER: Duration = Duration::from_secs(30);
/// Whom the door becomes where nothing else is said: the package makes this user; without him it is nobody.
const OWN_USER: &str = "_mirrord";
/// How long who asks for a tree waits for its process.
const STARTS_WITHIN: Duration = Duration::from_secs(3);

/// Where each tree's process can be reached.
#[derive(Default)]
struct Places(Mutex<BTreeMap<String, PathBuf>>);

impl Places {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, PathBuf>> {
        lock(&self.0)
    }
}

impl Trees for Places {
    fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn open(&self, tree: &str) -> Result<UnixStream, (Cause, String)> {
        let Some(state) = self.lock().get(tree).cloned() else {
            return Err((Cause::Usage, format!("there is no tree {tree} here")));
        };
        let until = Instant::now() + STARTS_WITHIN;
        loop {
            match socket::connect(&state, Way::Door) {
                Ok(Some(stream)) => return Ok(stream),
                // Its process is being started, say.
                Ok(None) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Ok(None) => {
                    let why = format!("tree {tree} has nothing to serve yet");
                    return Err((Cause::Failed, why));
                }
                Err(e) => {
                    let why = format!("tree {tree} can't be reached: {e}");
                    return Err((Cause::Failed, why));
                }
            }
        }
    }
}

/// What a door is wanted for.
#[derive(Clone, PartialEq)]
struct Wanted {
    listen: Vec<SocketAddr>,
    connect_to: Vec<Address>,
    user: Option<String>,
}

impl Wanted {
    fn is_none(&self) -> bool {
        self.listen.is_empty() && self.connect_to.is_empty()
    }
}

/// The door, if one is wanted; opened again when it could not be. When what is wanted changes it goes on with who follows already.
pub struct Listening {
    program: Program,
    log: fn(&str),
    places: Arc<Places>,
    /// Where our trees' processes ask for connections that were offered here.
    offers: Option<PathBuf>,
    /// As it was opened.
    is: Option<Wanted>,
    door: Option<Door>,
    /// It does not do yet what is wanted.
    behind: bool,
    /// Why it is not open.
    pub problem: Option<String>,
    tried: Option<Instant>,
}

impl Listening {
    pub fn new(program: Program, log: fn(&str), offers: Option<PathBuf>) -> Listening {
        Listening {
            program,
            log,
            places: Arc::default(),
            offers,
            is: None,
            door: None,
            behind: false,
            problem: None,
            tried: None,
        }
    }

    /// These trees can be asked for: their names, and the state directories of their processes.
    pub fn trees(&self, trees: impl Iterator<Item = (String, PathBuf)>) {
        *self.places.lock() = trees.collect();
    }

    /// To be called now and then.
    pub fn tick(&mut self, listen: &[SocketAddr], connect_to: &[Address], user: Option<&str>) {
        let wanted = Wanted {
            listen: listen.to_vec(),
            connect_to: connect_to.to_vec(),
            user: user.map(str::to_owned),
        };
        if self.is.as_ref() != Some(&wanted) {
            if wanted.is_none() {
                self.door = None;
            } else if self.door.is_some()
                && self.is.as_ref().is_some_and(|is| is.user != wanted.user)
            {
                // Only a new process could be somebody else, and it would not have the connections.
                (self.log)(
                    "user is taken over when the service is started again: who follows goes on",
                );
            }
            self.behind = self.door.is_some();
            self.tried = None;
            self.problem = None;
            self.is = Some(wanted.clone());
        }
        let waits = self
            .tried
            .is_some_and(|tried| tried.elapsed() < AGAIN_AFTER);
        if (self.door.is_some() && !self.behind) || wanted.is_none() || waits {
            return;
        }
        self.tried = Some(Instant::now());
        let before = self.door.as_ref().map(Door::addresses);
        let opened = match self.door.take() {
            Some(mut door) => {
                let changed = door.change(&wanted.listen, &wanted.connect_to);
                self.door = Some(door);
                changed.map_err(|e| crate::cli::exit::chain(&e))
            }
            None => self.open(&wanted).map(|door| self.door = Some(door)),
        };
        if let Some(door) = &self.door {
            let now = door.addresses();
            if !now.is_empty() && before.as_ref() != Some(&now) {
                let at: Vec<String> = now.iter().map(SocketAddr::to_string).collect();
                let (at, key) = (at.join(", "), door.fingerprint());
                (self.log)(&format!("listening on {at}, key {key}"));
            }
        }
        match opened {
            Ok(()) => {
                self.behind = false;
                self.problem = None;
            }
            Err(why) => {
                let line = format!("cannot listen: {why}");
                if self.problem.as_ref() != Some(&line) {
                    (self.log)(&format!(
                        "{line}; trying again every {} s",
                        AGAIN_AFTER.as_secs()
                    ));
                }
                self.problem = Some(line);
            }
        }
    }

    fn open(&self, wanted: &Wanted) -> Result<Door, String> {
        let (program, listen) = (self.program, wanted.listen.clone());
        let mut setup = DoorSetup::new(program, listen, config_dir(program)?);
        setup.connect_to.clone_from(&wanted.connect_to);
        if let Some(name) = &wanted.user {
            let user = user_of(name).ok_or_else(|| format!("there is no user {name} here"))?;
            setup.user = Some((user.uid, user.gid));
        } else if setup.user.is_some()
            && let Some(user) = user_of(OWN_USER)
        {
            // Nobody is shared with others, who could look into a process of his.
            setup.user = Some((user.uid, user.gid));
        }
        setup.offers.clone_from(&self.offers);
        setup.log = Arc::new(self.log);
        Door::open(setup, self.places.clone()).map_err(|e| crate::cli::exit::chain(&e))
    }
}
