//! The door of the backup service: other hosts follow our trees through it, as they would follow a worker's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::command::user_of;
use super::config::{General, Tree};
use super::supervisor::log;
use crate::engine::serving::socket;
use crate::link::message::Cause;
use crate::net::door::{Door, DoorSetup, Trees};
use crate::net::{Program, config_dir};

/// After it could not be opened.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Where each tree's process can be reached.
#[derive(Default)]
struct Places(Mutex<BTreeMap<String, PathBuf>>);

impl Places {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trees for Places {
    fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn open(&self, tree: &str) -> Result<UnixStream, (Cause, String)> {
        let Some(state) = self.lock().get(tree).cloned() else {
            return Err((Cause::Usage, format!("no tree {tree} is followed here")));
        };
        match socket::connect(&state) {
            Ok(Some(stream)) => Ok(stream),
            Ok(None) => Err((
                Cause::Failed,
                format!("tree {tree} has nothing to serve yet"),
            )),
            Err(e) => Err((Cause::Failed, format!("tree {tree} can't be reached: {e}"))),
        }
    }
}

/// The door, if one is wanted; opened again when it could not be, or when what is wanted changes.
#[derive(Default)]
pub struct Listening {
    places: Arc<Places>,
    /// Where our trees' processes ask for connections that were offered here.
    offers: PathBuf,
    /// As it was opened.
    is: Option<(Vec<SocketAddr>, Option<String>)>,
    door: Option<Door>,
    /// Why it is not open.
    pub problem: Option<String>,
    tried: Option<Instant>,
}

impl Listening {
    pub fn new(offers: PathBuf) -> Listening {
        Listening {
            offers,
            ..Listening::default()
        }
    }

    /// These trees can be asked for.
    pub fn trees<'a>(&self, trees: impl Iterator<Item = &'a Tree>) {
        *self.places.lock() = trees
            .map(|tree| (tree.name.clone(), tree.state_dir()))
            .collect();
    }

    /// To be called now and then.
    pub fn tick(&mut self, general: &General) {
        let wanted = (general.listen.clone(), general.user.clone());
        if self.is.as_ref() != Some(&wanted) {
            // Its addresses may be wanted again.
            self.door = None;
            self.tried = None;
            self.problem = None;
            self.is = Some(wanted);
        }
        let waits = self
            .tried
            .is_some_and(|tried| tried.elapsed() < AGAIN_AFTER);
        if self.door.is_some() || general.listen.is_empty() || waits {
            return;
        }
        self.tried = Some(Instant::now());
        match self.open(general) {
            Ok(door) => {
                let at: Vec<String> = door.addresses().iter().map(SocketAddr::to_string).collect();
                log(&format!(
                    "listening on {}, key {}",
                    at.join(", "),
                    door.fingerprint()
                ));
                self.door = Some(door);
                self.problem = None;
            }
            Err(why) => {
                let line = format!("cannot listen: {why}");
                if self.problem.as_ref() != Some(&line) {
                    log(&format!(
                        "{line}; trying again every {} s",
                        AGAIN_AFTER.as_secs()
                    ));
                }
                self.problem = Some(line);
            }
        }
    }

    fn open(&self, general: &General) -> Result<Door, String> {
        let mut setup = DoorSetup::new(
            Program::FsMirror,
            general.listen.clone(),
            config_dir(Program::FsMirror)?,
        );
        if let Some(name) = &general.user {
            let user = user_of(name).ok_or_else(|| format!("there is no user {name} here"))?;
            setup.user = Some((user.uid, user.gid));
        }
        setup.offers = Some(self.offers.clone());
        setup.log = Arc::new(log);
        Door::open(setup, self.places.clone()).map_err(|e| crate::cli::exit::chain(&e))
    }
}
