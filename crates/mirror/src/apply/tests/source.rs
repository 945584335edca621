//! A source tree, looked at in the simplest way: list everything, compare with what was seen last, say what changed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use mirror_core::{
    At, Change, Content, ContentRef, Digest, Kind, Meta, Name, ObjectId, Position, Record, State,
};
use rustix::fs::FileType;

use crate::apply::{Contents, Fetched};
use crate::sys::stat::{fstat, statx};
use crate::sys::{dir, flags, holes, open, target, xattr};

type Inode = (u64, i64, u32);

#[derive(Debug, Clone)]
struct Seen {
    state: State,
    names: Vec<At>,
}

/// See the module.
pub struct Source {
    pub path: PathBuf,
    ids: HashMap<Inode, ObjectId>,
    seen: BTreeMap<ObjectId, Seen>,
    sequence: u64,
    pub contents: Kept,
}

/// Every content ever seen, by digest.
#[derive(Default)]
pub struct Kept {
    bytes: Mutex<HashMap<[u8; 32], Vec<u8>>>,
    pub fetched: Mutex<Vec<ObjectId>>,
    /// What to answer instead, by object.
    pub instead: Mutex<HashMap<ObjectId, &'static str>>,
    /// Contents of so many bytes travel, until they are there.
    pub travel_from: Mutex<Option<u64>>,
    pub there: Mutex<HashSet<Digest>>,
    /// The source has these no more.
    pub gone: Mutex<HashSet<Digest>>,
}

impl Contents for Kept {
    fn fetch(&self, object: ObjectId, content: &Content, _: Option<ContentRef>) -> Fetched {
        self.fetched.lock().unwrap().push(object);
        match self.instead.lock().unwrap().get(&object).copied() {
            Some("gone") => return Fetched::Gone,
            Some("wrong") => return Fetched::Bytes(vec![b'!'; content.bytes as usize].into()),
            Some(reason) => return Fetched::Failed(reason.into()),
            None => {}
        }
        if self.gone.lock().unwrap().contains(&content.digest) {
            return Fetched::Gone;
        }
        let travels = |from| content.bytes >= from;
        if self.travel_from.lock().unwrap().is_some_and(travels)
            && !self.there.lock().unwrap().contains(&content.digest)
        {
            return Fetched::Travels;
        }
        match self.bytes.lock().unwrap().get(&content.digest.0) {
            Some(bytes) if bytes.len() > 100_000 => {
                Fetched::Reader(Box::new(std::io::Cursor::new(bytes.clone())))
            }
            Some(bytes) => Fetched::Bytes(bytes.clone().into()),
            None => Fetched::Gone,
        }
    }
}

impl Source {
    pub fn new(path: &Path) -> Source {
        std::fs::create_dir_all(path).unwrap();
        Source {
            path: path.into(),
            ids: HashMap::new(),
            seen: BTreeMap::new(),
            sequence: 0,
            contents: Kept::default(),
        }
    }

    /// The next records, and ids, are numbered from here.
    #[cfg(feature = "planted")]
    pub fn begin_at(&mut self, sequence: u64) {
        if self.sequence > 0 {
            self.sequence = sequence;
        }
    }

    fn record(&mut self, change: Change, end: bool) -> Record {
        self.sequence += 1;
        let position = Position {
            epoch: 1,
            sequence: self.sequence,
        };
        Record {
            position,
            time_ns: 0,
            end,
            who: None,
            change,
            local: None,
            content: None,
        }
    }

    /// One group, or two the first time, that leads from the last look to now.
    pub fn look(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        if self.sequence == 0 {
            let open = Change::Open {
                tree: [1; 16],
                claim: [2; 16],
                parent: None,
            };
            records.push(self.record(open, true));
            let state = State {
                kind: Kind::Dir,
                meta: Meta::default(),
            };
            self.seen.insert(
                ObjectId::ROOT,
                Seen {
                    state,
                    names: Vec::new(),
                },
            );
        }
        let root = open::dir_at_path(&self.path).unwrap();
        let mut now: BTreeMap<ObjectId, Seen> = BTreeMap::new();
        let mut ids = HashMap::new();
        let mut created = Vec::new();
        let mut next = self.sequence;
        let stat = fstat(&root).unwrap();
        ids.insert(
            (stat.ino, stat.btime.seconds, stat.btime.nanos),
            ObjectId::ROOT,
        );
        let state = self.state_of(&root, b"");
        now.insert(
            ObjectId::ROOT,
            Seen {
                state,
                names: Vec::new(),
            },
        );
        let mut todo = vec![(ObjectId::ROOT, root)];
        while let Some((parent, fd)) = todo.pop() {
            let mut names = Vec::new();
            dir::list(&fd, |name, _, _| names.push(name.to_vec())).unwrap();
            names.sort();
            for name in names {
                let stat = statx(&fd, &name).unwrap();
                let inode = (stat.ino, stat.btime.seconds, stat.btime.nanos);
                let at = At {
                    parent,
                    name: Name::new(&name).unwrap(),
                };
                let known = ids.get(&inode).or(self.ids.get(&inode)).copied();
                let id = known.unwrap_or_else(|| {
                    next += 1;
                    let id = ObjectId((1 << 44) | next);
                    created.push(id);
                    id
                });
                ids.insert(inode, id);
                match now.get_mut(&id) {
                    Some(seen) => seen.names.push(at),
                    None => {
                        let state = self.state_of(&fd, &name);
                        now.insert(
                            id,
                            Seen {
                                state,
                                names: vec![at],
                            },
                        );
                    }
                }
                if stat.is_dir() {
                    todo.push((id, open::dir(&fd, &name).unwrap()));
                }
            }
        }
        now.values_mut().for_each(|seen| seen.names.sort());
        let mut changes = Vec::new();
        for (id, seen) in &self.seen {
            if !now.contains_key(id) {
                for at in seen.names.iter().filter(|at| now.contains_key(&at.parent)) {
                    changes.push(Change::Unlink {
                        at: at.clone(),
                        object: *id,
                    });
                }
            }
        }
        let mut later = Vec::new();
        for (id, seen) in &now {
            let Some(old) = self.seen.get(id) else {
                continue;
            };
            let mut lost: Vec<At> = old
                .names
                .iter()
                .filter(|at| !seen.names.contains(at))
                .cloned()
                .collect();
            for to in seen.names.iter().filter(|at| !old.names.contains(at)) {
                later.push(match lost.pop() {
                    Some(from) => Change::Move {
                        object: *id,
                        from,
                        to: to.clone(),
                    },
                    None => Change::Link {
                        at: to.clone(),
                        object: *id,
                    },
                });
            }
            changes.extend(
                lost.into_iter()
                    .map(|at| Change::Unlink { at, object: *id }),
            );
            let content = seen
                .state
                .kind
                .content()
                .filter(|c| old.state.kind.content().is_none_or(|o| !o.same(c)));
            let meta = (seen.state.meta != old.state.meta).then(|| seen.state.meta.clone());
            if content.is_some() || meta.is_some() {
                let content = content.cloned();
                later.push(Change::Update {
                    object: *id,
                    at: seen.names.first().cloned(),
                    meta,
                    content,
                });
            }
        }
        for id in &created {
            let seen = &now[id];
            for (i, at) in seen.names.iter().enumerate() {
                let (at, object) = (at.clone(), *id);
                match i {
                    0 => changes.push(Change::Create {
                        at,
                        object,
                        state: seen.state.clone(),
                    }),
                    _ => later.push(Change::Link { at, object }),
                }
            }
        }
        changes.extend(later);
        let count = changes.len();
        for (i, change) in changes.into_iter().enumerate() {
            let record = self.record(change, i + 1 == count);
            records.push(record);
        }
        self.sequence = self.sequence.max(next);
        self.ids = ids;
        self.seen = now;
        records
    }

    fn state_of(&self, fd: &OwnedFd, name: &[u8]) -> State {
        let stat = statx(fd, name).unwrap();
        let mut meta = Meta {
            mode: stat.permissions(),
            uid: stat.uid,
            gid: stat.gid,
            mtime: stat.mtime,
            xattrs: xattr::read(fd, name).unwrap(),
            flags: 0,
            project: 0,
        };
        if stat.is_dir() || stat.is_file() {
            let open = if name.is_empty() {
                rustix::io::fcntl_dupfd_cloexec(fd, 0).unwrap()
            } else if stat.is_dir() {
                open::dir(fd, name).unwrap()
            } else {
                open::file(fd, name).unwrap()
            };
            if let Some(found) = flags::get(&open).unwrap() {
                meta.flags = found.flags & Meta::FLAGS_KEPT;
                meta.project = found.project;
            }
        }
        let kind = match stat.file_type() {
            FileType::Directory => Kind::Dir,
            FileType::RegularFile => Kind::File(self.content_of(&open::file(fd, name).unwrap())),
            FileType::Symlink => Kind::Symlink(target::read_symlink(fd, name).unwrap().into()),
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            kind => Kind::Device {
                block: kind == FileType::BlockDevice,
                major: stat.rdev.0,
                minor: stat.rdev.1,
            },
        };
        State { kind, meta }
    }

    fn content_of(&self, file: &OwnedFd) -> Content {
        let stat = fstat(file).unwrap();
        let data = if stat.may_have_holes() {
            holes::data_ranges(file, stat.bytes, 1 << 20).unwrap()
        } else {
            Vec::new()
        };
        let mut content = Content {
            bytes: stat.bytes,
            digest: Digest([0; 32]),
            data,
            proven: true,
            fuzzy: false,
        };
        let mut bytes = Vec::new();
        for (offset, length) in crate::apply::content::ranges(&content) {
            let mut part = vec![0; length as usize];
            let mut done = 0;
            while done < part.len() {
                done += rustix::io::pread(file, &mut part[done..], offset + done as u64).unwrap();
            }
            bytes.extend(part);
        }
        let mut hasher = crate::apply::content::hasher(&content);
        hasher.update(&bytes);
        content.digest = Digest(*hasher.finalize().as_bytes());
        self.contents
            .bytes
            .lock()
            .unwrap()
            .insert(content.digest.0, bytes);
        content
    }

    /// The id of what has this path now.
    pub fn id(&self, path: &str) -> ObjectId {
        let mut id = ObjectId::ROOT;
        for name in path.split('/') {
            let at = At {
                parent: id,
                name: Name::new(name.as_bytes()).unwrap(),
            };
            id = *self
                .seen
                .iter()
                .find(|(_, seen)| seen.names.contains(&at))
                .unwrap()
                .0;
        }
        id
    }
}
