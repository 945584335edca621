//! What the supervisor answers its door: who may follow what, and the connections it gave out.
//!
//! The door is believed in nothing it could gain by: limits are counted here, and a connection of a key that is not trusted
//! any more is ended at our end of it.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mirror_core::escape;

use super::ask::{self, Ask, Told};
use super::offers::Offers;
use super::{DoorSetup, Trees, lock};
use crate::engine::applying::chain;
use crate::engine::status::Stamp;
use crate::link::message::Cause;
use crate::link::serve::hostname;
use crate::net::files::NetFileError;
use crate::net::keys::Fingerprint;
use crate::net::pair::{Between, Side, TokenError, Tokens};
use crate::net::trust::{self, Trees as Which, Trusted};

/// Connections to one tree that are being made; a tree that does not answer holds up no other.
const OPENING_PER_TREE_MAX: usize = 16;
/// How often a change of `trusted.toml` is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Lines of the door's doing in the log: so many at once, then one each so often.
const LINES_MAX: u32 = 60;
const LINE_EVERY: Duration = Duration::from_secs(2);
const TEXT_BYTES_MAX: usize = 300;
/// Of a text that a peer made up, in a line of ours.
const SHOWN_CHARS_MAX: usize = 64;
/// How often those whom nobody trusts are worth a line.
const UNKNOWN_EVERY: Duration = Duration::from_secs(60);

pub struct Answers {
    pub setup: DoorSetup,
    pub offers: Offers,
    /// To the door's process that runs now.
    link: Mutex<Option<Arc<OwnedFd>>>,
    /// The key of this host.
    own: Fingerprint,
    trees: Arc<dyn Trees>,
    trust: Mutex<Trust>,
    given: Mutex<HashMap<u64, Given>>,
    lines: Mutex<Lines>,
    unknown: Mutex<Unknown>,
}

/// Those who asked for something and are trusted with nothing.
#[derive(Default)]
struct Unknown {
    count: u64,
    said: Option<Instant>,
}

struct Trust {
    trusted: Arc<Trusted>,
    /// Of the file it was read from.
    stamp: Option<Version>,
    looked: Instant,
}

/// What a file that was changed does not keep.
type Version = (u64, u64, i64, i64, i64, i64);

/// A connection that was asked for.
struct Given {
    key: Fingerprint,
    tree: String,
    name: String,
    from: String,
    /// It came from the one who serves the tree, not from a follower.
    offered: bool,
    /// `None`: it is being made.
    stream: Option<UnixStream>,
}

/// A budget of lines.
struct Lines {
    left: u32,
    filled: Instant,
    dropped: u64,
}

impl Answers {
    pub fn new(
        setup: &DoorSetup,
        own: Fingerprint,
        trees: Arc<dyn Trees>,
    ) -> Result<Answers, NetFileError> {
        let stamp = stamp(setup);
        let trusted = Arc::new(Trusted::load(&setup.config_dir)?);
        Ok(Answers {
            setup: setup.clone(),
            offers: Offers::default(),
            link: Mutex::default(),
            own,
            trees,
            trust: Mutex::new(Trust {
                trusted,
                stamp,
                looked: Instant::now(),
            }),
            given: Mutex::default(),
            lines: Mutex::new(Lines {
                left: LINES_MAX,
                filled: Instant::now(),
                dropped: 0,
            }),
            unknown: Mutex::default(),
        })
    }

    pub fn link(&self) -> Option<Arc<OwnedFd>> {
        lock(&self.link).clone()
    }

    pub fn set_link(&self, link: Option<Arc<OwnedFd>>) {
        *lock(&self.link) = link;
    }

    /// A line that no stranger can cause.
    pub fn log(&self, line: &str) {
        (self.setup.log)(line);
    }

    /// The trees this key may follow.
    pub fn trees_of(&self, key: &Fingerprint) -> Vec<String> {
        self.look_at_trust(true);
        let trusted = self.trusted();
        let mut trees = self.trees.names();
        trees.retain(|tree| trusted.may(key, tree).is_some());
        trees
    }

    /// A line that strangers can cause.
    fn say(&self, line: &str) {
        let mut lines = lock(&self.lines);
        let more = lines.filled.elapsed().as_secs() / LINE_EVERY.as_secs();
        if more > 0 {
            let more = u32::try_from(more).unwrap_or(LINES_MAX);
            lines.left = lines.left.saturating_add(more).min(LINES_MAX);
            lines.filled = Instant::now();
        }
        if lines.left == 0 {
            lines.dropped += 1;
            return;
        }
        lines.left -= 1;
        let dropped = std::mem::take(&mut lines.dropped);
        drop(lines);
        if dropped > 0 {
            (self.setup.log)(&format!("door: {dropped} lines more were left out"));
        }
        (self.setup.log)(&format!("door: {line}"));
    }

    /// A line about somebody whom nobody trusts: one a minute, with how many more there were. Each may have a key of its own.
    fn say_unknown(&self, line: &str) {
        let mut unknown = lock(&self.unknown);
        let rests = |said: Instant| said.elapsed() < UNKNOWN_EVERY;
        if unknown.said.is_some_and(rests) {
            unknown.count += 1;
            return;
        }
        let more = std::mem::take(&mut unknown.count);
        unknown.said = Some(Instant::now());
        drop(unknown);
        match more {
            0 => self.say(line),
            _ => self.say(&format!(
                "{line} ({more} more like that since the last line)"
            )),
        }
    }

    /// Reads `trusted.toml` again if it was changed, and ends what is not allowed any more. A file that can't be read
    /// changes nothing, and is said.
    pub fn look_at_trust(&self, at_once: bool) {
        {
            let mut trust = lock(&self.trust);
            if !at_once && trust.looked.elapsed() < LOOK_EVERY {
                return;
            }
            trust.looked = Instant::now();
            let stamp = stamp(&self.setup);
            if stamp == trust.stamp {
                return;
            }
            trust.stamp = stamp;
            match Trusted::load(&self.setup.config_dir) {
                Ok(trusted) => trust.trusted = Arc::new(trusted),
                Err(e) => {
                    let line = format!("{}: who was trusted before still is", chain(&e));
                    (self.setup.log)(&line);
                    return;
                }
            }
        }
        let trusted = self.trusted();
        let known = |key: &Fingerprint| trusted.peer(key).is_some();
        for id in self.offers.drop_unless(known) {
            if let Some(link) = self.link() {
                tell(&link, &Told::Take { id }, None);
            }
        }
        for given in lock(&self.given).values() {
            let may = if given.offered {
                known(&given.key)
            } else {
                trusted.may(&given.key, &given.tree).is_some()
            };
            if !may && let Some(stream) = &given.stream {
                let _ = stream.shutdown(Shutdown::Both);
                let Given { name, tree, .. } = given;
                let tree = escape(tree.as_bytes());
                (self.setup.log)(&format!(
                    "door: {name} may not follow {tree} any more: its connection is ended"
                ));
            }
        }
    }

    fn trusted(&self) -> Arc<Trusted> {
        lock(&self.trust).trusted.clone()
    }

    /// The door's process is gone, and with it all that it was given.
    pub fn forget_all(&self) {
        self.offers.forget_all();
        for (_, given) in lock(&self.given).drain() {
            if let Some(stream) = given.stream {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    pub fn answer(self: &Arc<Answers>, question: Ask, link: &Arc<OwnedFd>) {
        let told = match question {
            Ask::Follow {
                id,
                key,
                tree,
                from,
            } => match self.follow(id, Fingerprint(key), tree, from, link) {
                Ok(()) => return,
                Err((cause, reason)) => Told::Refused {
                    id,
                    cause: cause.code(),
                    reason,
                },
            },
            Ask::List { id, key } => self.list(id, Fingerprint(key)),
            Ask::Pair {
                id,
                key,
                from,
                token,
                exported,
                proof,
                name,
            } => {
                let between = Between {
                    exported,
                    dialing: Fingerprint(key),
                    listening: self.own,
                };
                let done = self.pair(id, &between, &token, proof, &name);
                match done {
                    Ok((told, line)) => {
                        (self.setup.log)(&format!("door: {line} ({from})"));
                        told
                    }
                    Err((cause, reason)) => {
                        self.say(&format!(
                            "{} ({from}) is not paired: {reason}",
                            between.dialing
                        ));
                        Told::Refused {
                            id,
                            cause: cause.code(),
                            reason,
                        }
                    }
                }
            }
            Ask::Offer { id, key, from } => match self.keep(id, &Fingerprint(key), &from, link) {
                Ok(()) => return,
                Err((cause, reason)) => Told::Refused {
                    id,
                    cause: cause.code(),
                    reason,
                },
            },
            Ask::Taken { id } => return self.offers.over(id, Ok(())),
            Ask::Ended { id, why } => {
                let why: String = why.chars().take(TEXT_BYTES_MAX).collect();
                return self.offers.over(id, Err(escape(why.as_bytes())));
            }
            Ask::Closed { id } => {
                if self.offers.gone(id) {
                    return;
                }
                if let Some(given) = lock(&self.given).remove(&id) {
                    let Given { name, tree, .. } = given;
                    let tree = escape(tree.as_bytes());
                    self.say(&if given.offered {
                        format!("{tree} is not followed over a connection of {name} any more")
                    } else {
                        format!("{name} follows {tree} no more")
                    });
                }
                return;
            }
            // That it says anything at all is what counts.
            Ask::Here => return,
            Ask::Log { text } => {
                let text: String = text.chars().take(TEXT_BYTES_MAX).collect();
                self.say(&escape(text.as_bytes()));
                return;
            }
        };
        tell(link, &told, None);
    }

    fn list(&self, id: u64, key: Fingerprint) -> Told {
        self.look_at_trust(true);
        if self.trusted().peer(&key).is_some() {
            let trees = self.trees_of(&key);
            return Told::Names { id, trees };
        }
        Told::Refused {
            id,
            cause: Cause::Forbidden.code(),
            reason: format!(
                "the key {key} may follow nothing: on that host `{} trust {key} --tree NAME` allows it",
                self.setup.program
            ),
        }
    }

    /// A connection that somebody offers who is known here by a name.
    fn keep(
        &self,
        id: u64,
        key: &Fingerprint,
        from: &str,
        link: &Arc<OwnedFd>,
    ) -> Result<(), (Cause, String)> {
        self.look_at_trust(true);
        let trusted = self.trusted();
        let Some(peer) = trusted.peer(key) else {
            self.say_unknown(&format!(
                "{key} ({from}) offers a connection, and is not known here"
            ));
            let program = self.setup.program;
            let why = format!(
                "the key {key} is not known: on that host `{program} pair --accept` makes a token for it"
            );
            return Err((Cause::Forbidden, why));
        };
        self.offers.check_room(key)?;
        // Said before anybody can take it: a follower may wait already.
        tell(link, &Told::Kept { id }, None);
        self.offers.keep(id, *key, &peer.name);
        self.say(&format!("{} ({from}) offers a connection", peer.name));
        Ok(())
    }

    /// Gives a follower of this host a connection that was offered.
    pub fn give(
        &self,
        id: u64,
        key: Fingerprint,
        name: &str,
        tree: &str,
        stream: &UnixStream,
        link: &Arc<OwnedFd>,
    ) -> Result<(), String> {
        let ours = stream.try_clone().map_err(|e| e.to_string())?;
        let given = Given {
            key,
            tree: tree.into(),
            name: name.into(),
            from: name.into(),
            offered: true,
            stream: Some(ours),
        };
        lock(&self.given).insert(id, given);
        let shown = escape(tree.as_bytes());
        self.say(&format!(
            "{shown} is followed over a connection that {name} offered"
        ));
        tell(link, &Told::Take { id }, Some(stream.as_fd()));
        Ok(())
    }

    /// Trusts whoever has a good token. What the log says of it.
    fn pair(
        &self,
        id: u64,
        between: &Between,
        token: &[u8; 16],
        proof: [u8; 32],
        wanted: &str,
    ) -> Result<(Told, String), (Cause, String)> {
        let failed = |e: NetFileError| (Cause::Failed, chain(&e));
        let tokens = Tokens::new(self.setup.program, &self.setup.config_dir);
        let kept = tokens.redeem(token, between, proof, Stamp::now().ms);
        let kept = kept.map_err(|e| match e {
            TokenError::Files(e) => failed(e),
            TokenError::Refused(why) => (Cause::Forbidden, why),
        })?;
        let key = between.dialing;
        let trees = if kept.trees.iter().any(|tree| tree == "*") {
            Which::All
        } else {
            Which::named(kept.trees.iter().cloned())
        };
        let name = Trusted::edit(&self.setup.config_dir, |trusted| {
            let wanted = match (&kept.name, trusted.peer(&key)) {
                (Some(name), _) => Some(trusted.free_name(&key, name)),
                // It keeps the name it has.
                (None, Some(_)) => None,
                (None, None) => Some(trusted.free_name(&key, wanted)),
            };
            let added = trusted.add(key, trees, wanted.as_deref());
            added.map_err(|why| NetFileError::Unsafe {
                path: Trusted::path(&self.setup.config_dir),
                why,
            })
        });
        let name = name.map_err(failed)?;
        self.look_at_trust(true);
        let may = if kept.trees.is_empty() {
            "offer connections".to_owned()
        } else {
            format!("follow {}", escape(kept.trees.join(", ").as_bytes()))
        };
        let line = format!("{name} is paired and may {may}; its key is {key}");
        let told = Told::Paired {
            id,
            proof: kept.proof_key.prove(Side::Listening, between),
            trees: kept.trees,
            name,
            host: hostname(),
        };
        Ok((told, line))
    }

    fn follow(
        self: &Arc<Answers>,
        id: u64,
        key: Fingerprint,
        tree: String,
        from: String,
        link: &Arc<OwnedFd>,
    ) -> Result<(), (Cause, String)> {
        self.look_at_trust(true);
        let shown = shown(&tree);
        let trusted = self.trusted();
        // The same words for a tree that is there and one that is not.
        let Some(name) = trusted.may(&key, &tree).map(str::to_owned) else {
            let line =
                |who: &str| format!("{who} ({from}) asked for {shown}, which it may not follow");
            match trusted.peer(&key) {
                Some(peer) => self.say(&line(&format!("{} ({key})", peer.name))),
                None => self.say_unknown(&line(&key.to_string())),
            }
            let program = self.setup.program;
            let quoted = quoted(&tree);
            return Err((
                Cause::Forbidden,
                format!(
                    "the key {key} may not follow {shown}: on that host `{program} trust {key} --tree {quoted}` allows it"
                ),
            ));
        };
        {
            let mut given = lock(&self.given);
            let limits = &self.setup.limits;
            let of_key = given.values().filter(|one| one.key == key).count();
            if of_key >= limits.per_key {
                let why =
                    format!("{of_key} connections of {name} are open already, which is the limit");
                return Err((Cause::Failed, why));
            }
            if given.len() >= limits.all {
                let why = format!(
                    "{} connections are open here already, which is the limit",
                    given.len()
                );
                return Err((Cause::Failed, why));
            }
            if given.contains_key(&id) {
                return Err((Cause::Failed, "this was asked before".into()));
            }
            let opening = |one: &&Given| one.tree == tree && one.stream.is_none();
            if given.values().filter(opening).count() >= OPENING_PER_TREE_MAX {
                let why = format!("{shown} does not answer, and others wait for it already");
                return Err((Cause::Failed, why));
            }
            let one = Given {
                key,
                tree: tree.clone(),
                name: name.clone(),
                from,
                offered: false,
                stream: None,
            };
            given.insert(id, one);
        }
        tell(link, &Told::Wait { id }, None);
        let (answers, to) = (self.clone(), link.clone());
        let opening = std::thread::Builder::new()
            .name("open".into())
            .spawn(move || {
                if let Err((cause, reason)) = answers.open(id, &tree, name, &to) {
                    lock(&answers.given).remove(&id);
                    let cause = cause.code();
                    tell(&to, &Told::Refused { id, cause, reason }, None);
                }
            });
        opening.map(|_| ()).map_err(|e| {
            lock(&self.given).remove(&id);
            (Cause::Failed, format!("cannot start a thread: {e}"))
        })
    }

    /// A connection to the tree, given to the door.
    fn open(
        &self,
        id: u64,
        tree: &str,
        name: String,
        link: &Arc<OwnedFd>,
    ) -> Result<(), (Cause, String)> {
        let stream = self.trees.open(tree)?;
        let ours = stream
            .try_clone()
            .map_err(|e| (Cause::Failed, format!("no descriptor is left: {e}")))?;
        let (from, key) = match lock(&self.given).get_mut(&id) {
            Some(given) => {
                given.stream = Some(ours);
                (given.from.clone(), given.key)
            }
            // The door's process, or its peer, is gone.
            None => return Ok(()),
        };
        // It may have been taken away while the tree was opened.
        if self.trusted().may(&key, tree).is_none() {
            let why = format!("{name} may not follow this any more");
            return Err((Cause::Forbidden, why));
        }
        self.say(&format!(
            "{name} ({from}) follows {}",
            escape(tree.as_bytes())
        ));
        tell(link, &Told::Opened { id, name }, Some(stream.as_fd()));
        Ok(())
    }
}

/// A door that does not listen is found out by whoever reads from it.
pub fn tell(link: &Arc<OwnedFd>, told: &Told, with: Option<BorrowedFd<'_>>) {
    let fds: Vec<_> = with.into_iter().collect();
    if ask::send(link, told, &fds).is_err() {
        let _ = rustix::net::shutdown(link, rustix::net::Shutdown::Both);
    }
}

fn stamp(setup: &DoorSetup) -> Option<Version> {
    let meta = std::fs::metadata(Trusted::path(&setup.config_dir)).ok()?;
    Some((
        meta.ino(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    ))
}

/// A text that a peer made up, for a line: escaped, and cut.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        None => escape(text.as_bytes()),
        Some((at, _)) => {
            let begin = text.get(..at).unwrap_or_default();
            format!("{}... ({} bytes)", escape(begin.as_bytes()), text.len())
        }
    }
}

/// As a word for a shell.
fn quoted(tree: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if trust::check_tree(tree).is_err() || tree.chars().nth(SHOWN_CHARS_MAX).is_some() {
        return "NAME".into();
    }
    if tree.chars().all(plain) && !tree.starts_with('-') {
        return tree.into();
    }
    format!("'{}'", tree.replace('\'', r"'\''"))
}
