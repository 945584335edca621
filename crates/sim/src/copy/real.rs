//! The real applier on a real directory (in memory where there is one), killed where the script says.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mirror::apply::{Applier, Contents, Options, Store};
use mirror_core::{Digest, Kind, Position, Record, escape};

use super::{Applied, Copy, SimStore};
use crate::tree::{Ino, SimTree};

/// What a kill unwinds with.
struct Kill;

pub struct RealCopy {
    dir: tempfile::TempDir,
    durable: SimStore,
    applier: Option<Applier<SimStore>>,
    /// Things done to the tree until the kill; `u32::MAX`: never.
    until_kill: Arc<AtomicU32>,
}

impl RealCopy {
    /// `None`, with a printed reason, where it can't be.
    pub fn new() -> Option<RealCopy> {
        let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        if !root {
            println!("skipped: an exact copy needs root");
            return None;
        }
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        let mut copy = RealCopy {
            dir: dir.ok()?,
            durable: SimStore::default(),
            applier: None,
            until_kill: Arc::new(AtomicU32::new(u32::MAX)),
        };
        match copy.open() {
            Ok(()) => Some(copy),
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("copy")
    }

    fn open(&mut self) -> Result<(), String> {
        let count = self.until_kill.clone();
        let options = Options {
            threads: 1,
            checkpoint_every: Duration::from_secs(1 << 30),
            checkpoint_batches_max: u32::MAX,
            trace: Some(Arc::new(move |_| {
                let left = count.load(Ordering::Relaxed);
                if left == 0 {
                    resume_unwind(Box::new(Kill));
                }
                if left != u32::MAX {
                    count.store(left - 1, Ordering::Relaxed);
                }
            })),
            ..Options::default()
        };
        let state = self.dir.path().join("state");
        let applier = Applier::open(&self.root(), &state, self.durable.clone(), options);
        self.applier = Some(applier.map_err(|error| format!("{error:?}"))?);
        Ok(())
    }

    fn applier(&mut self) -> Result<&mut Applier<SimStore>, String> {
        self.applier.as_mut().ok_or("the applier is down".into())
    }
}

impl Copy for RealCopy {
    fn position(&self) -> Option<Position> {
        self.applier.as_ref()?.store().position()
    }

    fn replay_until(&self) -> Option<Position> {
        self.applier.as_ref()?.replay_until()
    }

    fn log_ends(&mut self, end: Option<Position>) {
        if let Some(applier) = &mut self.applier {
            applier.log_ends(end);
        }
    }

    fn apply(
        &mut self,
        groups: &[Record],
        head: Digest,
        contents: &dyn Contents,
        kill: Option<u32>,
    ) -> Applied {
        self.until_kill
            .store(kill.unwrap_or(u32::MAX), Ordering::Relaxed);
        let Some(applier) = &mut self.applier else {
            return Applied::Failed("the applier is down".into());
        };
        let done = catch_unwind(AssertUnwindSafe(|| applier.apply(groups, head, contents)));
        self.until_kill.store(u32::MAX, Ordering::Relaxed);
        match done {
            Ok(Ok(_)) => Applied::Done,
            Ok(Err(error)) => Applied::Failed(format!("{error:?}")),
            Err(payload) if payload.is::<Kill>() => {
                self.applier = None;
                match self.open() {
                    Ok(()) => Applied::Killed,
                    Err(error) => Applied::Failed(error),
                }
            }
            Err(payload) => resume_unwind(payload),
        }
    }

    fn checkpoint(&mut self) -> Result<(), String> {
        self.applier()?
            .checkpoint()
            .map_err(|error| format!("{error:?}"))
    }

    fn retry(&mut self, contents: &dyn Contents) -> Result<Option<String>, String> {
        let applier = self.applier()?;
        applier
            .retry(contents)
            .map_err(|error| format!("{error:?}"))?;
        Ok(applier
            .failed()
            .first()
            .map(|failure| format!("{failure:?}")))
    }

    fn crash(&mut self) -> Result<(), String> {
        self.applier = None;
        self.open()
    }

    fn adopted(&self) -> u64 {
        let adopted = self.dir.path().join("state/adopted");
        std::fs::read_dir(adopted).map_or(0, |listed| listed.count() as u64)
    }

    fn differences(&mut self, tree: &SimTree) -> Vec<String> {
        let root = self.root();
        let mut compare = Compare {
            tree,
            found: Vec::new(),
            inodes: BTreeMap::new(),
            back: BTreeMap::new(),
        };
        compare.object(tree.root, &root);
        compare.dir(tree.root, &root);
        let mut found = compare.found;
        let verified = self.applier().and_then(|applier| {
            let mut differences = Vec::new();
            applier
                .verify(true, &mut |difference| differences.push(difference))
                .map_err(|error| format!("{error:?}"))?;
            Ok(differences)
        });
        match verified {
            Ok(differences) => found.extend(differences.iter().map(|d| format!("verify: {d:?}"))),
            Err(error) => found.push(error),
        }
        found
    }
}

struct Compare<'a> {
    tree: &'a SimTree,
    found: Vec<String>,
    inodes: BTreeMap<Ino, u64>,
    back: BTreeMap<u64, Ino>,
}

impl Compare<'_> {
    fn say(&mut self, path: &Path, what: impl std::fmt::Display) {
        let path = escape(path.as_os_str().as_bytes());
        self.found.push(format!("copy {path}: {what}"));
    }

    fn dir(&mut self, ino: Ino, path: &Path) {
        let mut there: BTreeMap<Vec<u8>, PathBuf> = BTreeMap::new();
        match std::fs::read_dir(path) {
            Ok(listed) => {
                for entry in listed.flatten() {
                    there.insert(entry.file_name().as_bytes().to_vec(), entry.path());
                }
            }
            Err(error) => return self.say(path, error),
        }
        let wanted = self.tree.entries(ino).cloned().unwrap_or_default();
        for (name, child) in wanted {
            let Some(below) = there.remove(name.as_bytes()) else {
                self.say(path, format!("{name} is missing"));
                continue;
            };
            self.object(child, &below);
            if self.tree.entries(child).is_some() {
                self.dir(child, &below);
            }
        }
        for below in there.values() {
            self.say(below, "is too much");
        }
    }

    fn object(&mut self, ino: Ino, path: &Path) {
        let (Some(state), Ok(meta)) = (self.tree.state(ino), std::fs::symlink_metadata(path))
        else {
            return self.say(path, "can't be looked at");
        };
        if *self.inodes.entry(ino).or_insert(meta.ino()) != meta.ino()
            || *self.back.entry(meta.ino()).or_insert(ino) != ino
        {
            self.say(path, "hard links are grouped otherwise");
        }
        let kind = meta.mode() & 0o170000;
        let rdev = || {
            let rdev = meta.rdev();
            (rustix::fs::major(rdev), rustix::fs::minor(rdev))
        };
        let same = match &state.kind {
            Kind::Dir => kind == 0o040000,
            Kind::File(_) => {
                kind == 0o100000 && std::fs::read(path).ok().as_deref() == self.tree.bytes(ino)
            }
            Kind::Symlink(target) => {
                kind == 0o120000
                    && std::fs::read_link(path)
                        .is_ok_and(|link| link.as_os_str().as_bytes() == &**target)
            }
            Kind::Device {
                block,
                major,
                minor,
            } => kind == if *block { 0o060000 } else { 0o020000 } && rdev() == (*major, *minor),
            Kind::Fifo => kind == 0o010000,
            Kind::Socket => kind == 0o140000,
        };
        if !same {
            self.say(path, format!("is not {:?}", state.kind));
        }
        let want = &state.meta;
        let have = (
            (meta.mode() & 0o7777) as u16,
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
        );
        let wanted = (
            want.mode,
            want.uid,
            want.gid,
            want.mtime.seconds,
            i64::from(want.mtime.nanos),
        );
        if have != wanted {
            self.say(path, format!("metadata is {have:?}, not {wanted:?}"));
        }
        let parent = path.parent().and_then(|dir| std::fs::File::open(dir).ok());
        if let (Some(parent), Some(name)) = (parent, path.file_name()) {
            match mirror::sys::xattr::read(&parent, name.as_bytes()) {
                Ok(xattrs) if xattrs == want.xattrs => {}
                other => self.say(path, format!("attributes are {other:?}")),
            }
        }
    }
}
