//! The past as whoever asks for it sees it: questions go to the process that has the mirror, or to its files; bytes are
//! read from the copy and its history directly.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use mirror_core::history::Moment;
use mirror_core::{At, Content, Name, ObjectId, State, escape};

use super::ask::{ASKED_MAX, Answer, Ask, Hex, Known, state_of};
use super::tree::{Entry, PastError, PastTree, Where};
use crate::sys::open;

/// Whoever answers.
pub trait Asks {
    fn ask(&mut self, ask: &Ask) -> Result<Answer, PastError>;
    /// Bytes that were in the copy under this path when this part of the history ended, by the part after it.
    fn later(&mut self, path: &Path, content: &Content) -> Option<OwnedFd> {
        let _ = (path, content);
        None
    }
}

pub fn odd<T>() -> Result<T, PastError> {
    Err(PastError::Asking(
        "the answer is not of this version".into(),
    ))
}

/// Where a mirror has its bytes.
#[derive(Debug, Clone)]
pub struct Places {
    pub dst: PathBuf,
    pub state_dir: PathBuf,
}

fn show(path: &Path) -> String {
    escape(path.as_os_str().as_bytes())
}

impl Places {
    pub fn file(&self, bytes: &Where) -> Result<OwnedFd, PastError> {
        let failed = |path: &Path, e: crate::sys::Errno| {
            let e = std::io::Error::from(e);
            PastError::Unknown(format!(
                "what is kept of it can't be read ({}: {e})",
                show(path)
            ))
        };
        match bytes {
            Where::Kept(slot) => {
                let path = self.state_dir.join(slot.path());
                open_below(&self.state_dir, Path::new(&slot.path())).map_err(|e| failed(&path, e))
            }
            Where::Live(path) => {
                open_below(&self.dst, path).map_err(|e| failed(&self.dst.join(path), e))
            }
            Where::Unkept(why) => Err(PastError::Unknown(
                crate::history::checkout::why_unkept(*why).into(),
            )),
            Where::Nothing => Err(PastError::Unknown("it holds no bytes".into())),
        }
    }
}

/// Objects as of a moment, in the order asked for.
pub fn objects(
    asks: &mut dyn Asks,
    moment: Moment,
    ids: &[ObjectId],
) -> Result<Vec<Option<Known>>, PastError> {
    let mut out = Vec::new();
    for some in ids.chunks(ASKED_MAX) {
        let ask = Ask::Objects {
            moment: moment.0,
            ids: some.iter().map(|id| id.0).collect(),
        };
        match asks.ask(&ask)? {
            Answer::Objects(found) if found.len() == some.len() => {
                for (id, object) in some.iter().zip(found) {
                    out.push(object.map(|object| object.known(*id)).transpose()?);
                }
            }
            _ => return odd(),
        }
    }
    Ok(out)
}

/// States of objects as of a moment, of those that ever were.
pub fn states(
    asks: &mut dyn Asks,
    moment: Moment,
    ids: &[ObjectId],
) -> Result<Vec<Option<State>>, PastError> {
    let mut out = Vec::new();
    for some in ids.chunks(ASKED_MAX) {
        let ask = Ask::States {
            moment: moment.0,
            ids: some.iter().map(|id| id.0).collect(),
        };
        match asks.ask(&ask)? {
            Answer::States(found) if found.len() == some.len() => {
                for state in found {
                    out.push(state.as_ref().map(state_of).transpose()?);
                }
            }
            _ => return odd(),
        }
    }
    Ok(out)
}

/// All names that objects had at a moment, in the order asked for.
pub fn names_of(
    asks: &mut dyn Asks,
    moment: Moment,
    ids: &[ObjectId],
) -> Result<Vec<Vec<At>>, PastError> {
    let mut out = Vec::new();
    for some in ids.chunks(ASKED_MAX) {
        let ask = Ask::NamesOf {
            moment: moment.0,
            ids: some.iter().map(|id| id.0).collect(),
        };
        let Answer::NamesOf(found) = asks.ask(&ask)? else {
            return odd();
        };
        if found.len() != some.len() {
            return odd();
        }
        for names in found {
            let at = |(parent, name): (u64, Hex)| {
                let name = Name::new(&name.0).or_else(|_| odd())?;
                let parent = ObjectId(parent);
                Ok(At { parent, name })
            };
            out.push(
                names
                    .into_iter()
                    .map(at)
                    .collect::<Result<_, PastError>>()?,
            );
        }
    }
    Ok(out)
}

/// The tree as of one moment.
pub struct AsOf<'a> {
    asks: &'a mut dyn Asks,
    places: Places,
    pub moment: Moment,
    /// What was opened last: asked for again, it is somewhere else by now.
    opened: Option<ObjectId>,
}

impl<'a> AsOf<'a> {
    pub fn new(asks: &'a mut dyn Asks, places: Places, moment: Moment) -> AsOf<'a> {
        AsOf {
            asks,
            places,
            moment,
            opened: None,
        }
    }

    /// The entry at a path; of the root a made-up one. `None`: nothing was there.
    pub fn find(&mut self, path: &[Name]) -> Result<Option<Entry>, PastError> {
        let state = self.root()?;
        let mut found = Entry {
            name: Name::new(b"root").map_err(|_| PastError::Unknown("no name".into()))?,
            id: ObjectId::ROOT,
            state,
            bytes: Where::Nothing,
            inode: None,
        };
        for name in path {
            let at = At {
                parent: found.id,
                name: name.clone(),
            };
            match self.entry(&at)? {
                Some(entry) => found = entry,
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }
}

/// Follows no symlink on the way.
pub fn open_below(top: &Path, path: &Path) -> crate::sys::Result<OwnedFd> {
    let (Some(name), above) = (path.file_name(), path.parent()) else {
        return Err(crate::sys::Errno::INVAL);
    };
    let dir = dir_below(top, above.unwrap_or(Path::new("")))?;
    open::file(&dir, name.as_bytes())
}

/// The same of a directory.
pub fn dir_below(top: &Path, path: &Path) -> crate::sys::Result<OwnedFd> {
    let mut dir = open::dir_at_path(top)?;
    for part in path.components() {
        if let Component::Normal(part) = part {
            dir = open::dir(&dir, part.as_bytes())?;
        }
    }
    Ok(dir)
}

impl PastTree for AsOf<'_> {
    fn root(&mut self) -> Result<State, PastError> {
        let moment = self.moment.0;
        match self.asks.ask(&Ask::Root { moment })? {
            Answer::State(state) => state_of(&state),
            _ => odd(),
        }
    }
    fn page(
        &mut self,
        dir: ObjectId,
        after: Option<&Name>,
    ) -> Result<(Vec<Entry>, Option<Name>), PastError> {
        let ask = Ask::Page {
            moment: self.moment.0,
            dir: dir.0,
            after: after.map(|name| Hex(name.as_bytes().to_vec())),
        };
        match self.asks.ask(&ask)? {
            Answer::Page { entries, next } => {
                let entries: Result<Vec<Entry>, PastError> =
                    entries.into_iter().map(|entry| entry.entry()).collect();
                let next = next.map(|name| Name::new(&name.0)).transpose();
                Ok((entries?, next.or_else(|_| odd())?))
            }
            _ => odd(),
        }
    }
    fn entry(&mut self, at: &At) -> Result<Option<Entry>, PastError> {
        let ask = Ask::Entry {
            moment: self.moment.0,
            dir: at.parent.0,
            name: Hex(at.name.as_bytes().to_vec()),
        };
        match self.asks.ask(&ask)? {
            Answer::Entry(entry) => entry.map(|entry| entry.entry()).transpose(),
            _ => odd(),
        }
    }
    fn open(&mut self, entry: &Entry) -> Result<OwnedFd, PastError> {
        let again = self.opened == Some(entry.id);
        self.opened = Some(entry.id);
        if !again && let Ok(fd) = self.places.file(&entry.bytes) {
            return Ok(fd);
        }
        if let (Where::Live(path), Some(content)) = (&entry.bytes, entry.state.kind.content())
            && let Some(fd) = self.asks.later(path, content)
        {
            return Ok(fd);
        }
        let known = objects(self.asks, self.moment, &[entry.id])?;
        match known.into_iter().next().flatten() {
            Some(known) => self.places.file(&known.bytes),
            None => Err(PastError::Unknown("nothing is known of it".into())),
        }
    }
}
