//! Makes a tree as of a position somewhere else: exact copies; or, for who asks for that (`links`), links where an inode is
//! exactly what is wanted.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use mirror_core::{Name, ObjectId, State};

use super::links::{Links, Stands};
use super::tree::{Entry, PastError, PastTree, Where};
use crate::apply::meta::{LATE_FLAGS, Rules};
use crate::apply::{content, make_special};
use crate::sys::{Errno, open, target};

/// What was made.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Made {
    pub files: u64,
    pub dirs: u64,
    pub others: u64,
    pub bytes: u64,
    /// Of files that have several names, all but the first.
    pub links: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckoutError {
    #[error(transparent)]
    Past(#[from] PastError),
    #[error("cannot {what} {path}")]
    Io {
        what: &'static str,
        path: String,
        source: std::io::Error,
    },
    #[error("{path}: {why}")]
    Lost { path: String, why: String },
}

/// What is heard on the way.
pub trait Progress {
    /// An entry is there.
    fn made(&mut self, path: &[u8], state: &State) {
        let _ = (path, state);
    }
    /// One that can't be had: go on without it?
    fn lost(&mut self, path: &[u8], why: &str) -> bool;
}

/// Makes trees in one file system.
pub struct Checkout<'a> {
    pub tree: &'a mut dyn PastTree,
    pub rules: &'a Rules,
    pub progress: &'a mut dyn Progress,
    pub made: Made,
    /// `None`: whatever is made is nobody else's.
    pub links: Option<&'a mut Links>,
    /// Where the first name of a file with several of them was made: a descriptor of its directory can be had again by path.
    first: HashMap<ObjectId, (Vec<Name>, Name)>,
    top: OwnedFd,
}

fn io(what: &'static str, path: &[Name]) -> impl FnOnce(Errno) -> CheckoutError {
    let path = show(path);
    move |e| CheckoutError::Io {
        what,
        path,
        source: e.into(),
    }
}

fn bytes_of(path: &[Name]) -> Vec<u8> {
    let names: Vec<&[u8]> = path.iter().map(Name::as_bytes).collect();
    names.join(&b'/')
}

fn show(path: &[Name]) -> String {
    mirror_core::escape(&bytes_of(path))
}

impl<'a> Checkout<'a> {
    /// Into `top`, a directory of ours.
    pub fn new(
        tree: &'a mut dyn PastTree,
        rules: &'a Rules,
        progress: &'a mut dyn Progress,
        top: OwnedFd,
    ) -> Checkout<'a> {
        Checkout {
            tree,
            rules,
            progress,
            made: Made::default(),
            links: None,
            first: HashMap::new(),
            top,
        }
    }

    /// Fills `top` itself with what was in `dir`, and gives it that metadata.
    pub fn fill_top(&mut self, dir: ObjectId, state: &State) -> Result<(), CheckoutError> {
        let top = rustix::io::fcntl_dupfd_cloexec(&self.top, 0).map_err(io("open", &[]))?;
        self.fill(dir, state, &top, &mut Vec::new())
    }

    /// Makes one entry, with all below it, in `top` under its own name.
    pub fn entry(&mut self, entry: &Entry) -> Result<(), CheckoutError> {
        let top = rustix::io::fcntl_dupfd_cloexec(&self.top, 0).map_err(io("open", &[]))?;
        let mut path = Vec::new();
        self.make(entry, &top, &mut path)
    }

    fn fill(
        &mut self,
        dir: ObjectId,
        state: &State,
        fd: &OwnedFd,
        path: &mut Vec<Name>,
    ) -> Result<(), CheckoutError> {
        let mut after = None;
        loop {
            let (entries, next) = self.tree.page(dir, after.as_ref())?;
            for entry in entries {
                self.make(&entry, fd, path)?;
            }
            match next {
                Some(name) => after = Some(name),
                None => break,
            }
        }
        self.sure(false)?;
        let (here, _) = self.rules.here(state);
        let set = self.rules.make(fd, b"", &here.kind, &here.meta, false);
        set.map_err(io("set the metadata of", path))?;
        if here.meta.flags & LATE_FLAGS != 0 {
            let set = self.rules.adjust(fd, &here.kind, &here.meta, true);
            set.map_err(io("set the flags of", path))?;
        }
        Ok(())
    }

    fn make(
        &mut self,
        entry: &Entry,
        dir: &OwnedFd,
        path: &mut Vec<Name>,
    ) -> Result<(), CheckoutError> {
        path.push(entry.name.clone());
        let made = match &entry.state.kind {
            mirror_core::Kind::Dir => self.directory(entry, dir, path),
            _ => self.inode(entry, dir, path),
        };
        if let Ok(true) = made {
            self.progress.made(&bytes_of(path), &entry.state);
        }
        path.pop();
        made.map(drop)
    }

    fn directory(
        &mut self,
        entry: &Entry,
        dir: &OwnedFd,
        path: &mut Vec<Name>,
    ) -> Result<bool, CheckoutError> {
        let name = entry.name.as_bytes();
        match target::create_dir(dir, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(io("make", path)(e)),
        }
        let fd = open::dir(dir, name).map_err(io("open", path))?;
        self.made.dirs += 1;
        self.fill(entry.id, &entry.state, &fd, path)?;
        Ok(true)
    }

    fn inode(
        &mut self,
        entry: &Entry,
        dir: &OwnedFd,
        path: &[Name],
    ) -> Result<bool, CheckoutError> {
        let name = entry.name.as_bytes();
        if let Some((first, first_name)) = self.first.get(&entry.id).cloned() {
            let from = self.dir_of(&first)?;
            match target::link(&from, first_name.as_bytes(), dir, name) {
                Ok(()) => {
                    self.made.links += 1;
                    return Ok(true);
                }
                // As many as there can be, or it may not be linked any more: one more of its own.
                Err(Errno::MLINK | Errno::PERM) => {}
                Err(e) => return Err(io("link", path)(e)),
            }
        }
        let (here, _) = self.rules.here(&entry.state);
        if let Some(links) = &mut self.links {
            let stands = links.put(self.rules, entry, &here, (dir, name), path);
            match stands.map_err(io("link", path))? {
                Stands::Linked => {
                    self.made.files += 1;
                    return Ok(true);
                }
                Stands::Other => {}
            }
        }
        self.copy(entry, dir, &here, path)
    }

    /// Makes a name of anything but a directory, at a path below the top.
    pub fn put(&mut self, entry: &Entry, path: &[Name]) -> Result<bool, CheckoutError> {
        let above = path.split_last().map_or(path, |(_, above)| above);
        let dir = self.dir_of(above)?;
        let made = self.inode(entry, &dir, path)?;
        self.sure(false)?;
        Ok(made)
    }

    /// One of its own. False: it can't be had.
    fn copy(
        &mut self,
        entry: &Entry,
        dir: &OwnedFd,
        here: &State,
        path: &[Name],
    ) -> Result<bool, CheckoutError> {
        let name = entry.name.as_bytes();
        match entry.state.kind.content() {
            Some(_) => {
                if let Err(why) = self.file(entry, dir, here, path)? {
                    let text = show(path);
                    if self.progress.lost(&bytes_of(path), &why) {
                        return Ok(false);
                    }
                    return Err(CheckoutError::Lost { path: text, why });
                }
                self.made.files += 1;
            }
            None => {
                make_special(dir, name, &here.kind).map_err(io("make", path))?;
                let set = self.rules.make(dir, name, &here.kind, &here.meta, false);
                set.map_err(io("set the metadata of", path))?;
                self.made.others += 1;
            }
        }
        if let Some((own, above)) = path.split_last() {
            self.first.insert(entry.id, (above.to_vec(), own.clone()));
        }
        Ok(true)
    }

    /// `Err`: why it can't be had.
    fn file(
        &mut self,
        entry: &Entry,
        dir: &OwnedFd,
        here: &State,
        path: &[Name],
    ) -> Result<Result<(), String>, CheckoutError> {
        let Some(content) = here.kind.content() else {
            return Ok(Err("it is no file".into()));
        };
        if let Where::Unkept(why) = entry.bytes {
            return Ok(Err(why_unkept(why).into()));
        }
        // What it is may be replaced while it is opened and read; then it is somewhere else.
        for _ in 0..5 {
            let bytes: Box<dyn std::io::Read> = match entry.bytes {
                Where::Nothing => Box::new(std::io::empty()),
                _ => match self.tree.open(entry) {
                    Ok(fd) => Box::new(content::RangeReader::new(fd, content)),
                    Err(PastError::Unknown(why)) => return Ok(Err(why)),
                    Err(e) => return Err(e.into()),
                },
            };
            let file = target::create_file(dir, entry.name.as_bytes());
            let file = file.map_err(io("make", path))?;
            let mut bytes = bytes;
            let undo = || {
                let _ = target::unlink(dir, entry.name.as_bytes());
            };
            match content::write(&file, content, &mut bytes) {
                Ok(()) => {
                    let set = self.rules.make(&file, b"", &here.kind, &here.meta, false);
                    set.map_err(io("set the metadata of", path))?;
                    if here.meta.flags & LATE_FLAGS != 0 {
                        let set = self.rules.adjust(&file, &here.kind, &here.meta, true);
                        set.map_err(io("set the flags of", path))?;
                    }
                    if self.links.as_ref().is_some_and(|links| links.durable) {
                        // It is to stay, unlike what somebody made by hand.
                        rustix::fs::fdatasync(&file).map_err(io("flush", path))?;
                    }
                    self.made.bytes += content.bytes;
                    return Ok(Ok(()));
                }
                Err(content::WriteError::Write(e)) => {
                    undo();
                    return Err(io("write", path)(e));
                }
                Err(content::WriteError::Read(e)) => {
                    undo();
                    return Ok(Err(format!("it can't be read: {e}")));
                }
                Err(content::WriteError::Different) => undo(),
            }
        }
        Ok(Err(
            "what is kept of it is damaged: its bytes are not those of that version".into(),
        ))
    }

    /// Links that a batch of apply may still have changed are looked at again, once there are many of them, or now.
    pub fn sure(&mut self, now: bool) -> Result<(), CheckoutError> {
        let Some(links) = &mut self.links else {
            return Ok(());
        };
        if !links.many() && !now {
            return Ok(());
        }
        // Whoever answers is between two batches; the next one looks before it changes anything.
        self.tree.root()?;
        let again = links.look_again(self.rules, &self.top);
        for (path, entry) in again.map_err(io("look at", &[]))? {
            let Some((name, above)) = path.split_last() else {
                continue;
            };
            let dir = self.dir_of(above)?;
            let undone =
                super::links::undisturbed(&dir, |dir| target::unlink(dir, name.as_bytes()));
            undone.map_err(io("remove", &path))?;
            let (here, _) = self.rules.here(&entry.state);
            let mut made = Ok(false);
            super::links::undisturbed(&dir, |dir| {
                made = self.copy(&entry, dir, &here, &path);
                Ok(())
            })
            .map_err(io("write to", above))?;
            made?;
        }
        Ok(())
    }

    fn dir_of(&self, path: &[Name]) -> Result<OwnedFd, CheckoutError> {
        let mut fd = rustix::io::fcntl_dupfd_cloexec(&self.top, 0).map_err(io("open", path))?;
        for name in path {
            fd = open::dir(&fd, name.as_bytes()).map_err(io("open", path))?;
        }
        Ok(fd)
    }
}

/// For people.
pub fn why_unkept(why: mirror_core::history::Unkept) -> &'static str {
    use mirror_core::history::Unkept;
    match why {
        Unkept::Policy => "this version is not kept: the policy of its path is keep = \"none\"",
        Unkept::Interval => "this version is not kept: the file changed again within min_interval",
        Unkept::Void => "this version is not kept: the source replaced it before it could be read",
        Unkept::Missing => "this version is not kept: the copy never had it, or it was pruned",
    }
}
