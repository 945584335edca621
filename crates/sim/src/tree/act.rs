//! Operations, what they do and which events they raise.

use mirror_core::Name;
use mirror_core::hints::{Hint, HintName};

use super::*;

impl SimTree {
    /// Runs one operation of an actor. Its events stay in the actor's pocket until [`Queue::arrive`].
    /// False: it could not be done.
    pub fn act(&mut self, actor: usize, op: &Op) -> bool {
        self.queue.arrive(actor);
        self.now_ns += 1000;
        self.try_act(actor, op).is_some()
    }

    fn try_act(&mut self, actor: usize, op: &Op) -> Option<()> {
        match op {
            Op::Write(path, byte) => self.write(actor, path, *byte),
            Op::Forge(path, byte) => {
                let (dir, name, ino) = self.file(path)?;
                let inode = self.inodes.get_mut(&ino)?;
                let mtime = inode.mtime;
                let Node::File(bytes) = &mut inode.node else {
                    return None;
                };
                *bytes.first_mut()? = *byte;
                self.wrote(actor, (dir, name.clone()), ino, true);
                let stamp = self.stamp();
                let inode = self.inodes.get_mut(&ino)?;
                inode.mtime = mtime;
                inode.ctime = stamp;
                let hint = self.hint(dir, &name, ino);
                self.queue.raise(actor, hint);
                Some(())
            }
            Op::Truncate(path) => {
                let (dir, name, ino) = self.file(path)?;
                if let Node::File(bytes) = &mut self.inodes.get_mut(&ino)?.node {
                    bytes.clear();
                }
                self.wrote(actor, (dir, name), ino, false);
                Some(())
            }
            Op::Mkdir(path) => self.create(actor, path, dir_node(None), 0o755),
            Op::Symlink(path, target) => self.create(
                actor,
                path,
                Node::Symlink(format!("to {target}").into_bytes().into()),
                0o777,
            ),
            Op::Special(path, which) => {
                let node = match which % 4 {
                    0 => Node::Fifo,
                    1 => Node::Socket,
                    2 => Node::Device {
                        block: true,
                        major: 7,
                        minor: u32::from(*which),
                    },
                    _ => Node::Device {
                        block: false,
                        major: 1,
                        minor: u32::from(*which),
                    },
                };
                self.create(actor, path, node, 0o600)
            }
            Op::Link(from, to) => {
                let (_, _, ino) = self.find(from)?;
                let (dir, name) = self.vacant(to)?;
                self.link(actor, ino, dir, name)
            }
            Op::Unlink(path) => {
                let (dir, name, _) = self.file_or_other(path)?;
                self.unlink(actor, dir, &name)
            }
            Op::Rmdir(path) => {
                let (dir, name, ino) = self.find(path)?;
                self.rmdir(actor, dir, &name, ino)
            }
            Op::Remove(path) => {
                let (dir, name, ino) = self.find(path)?;
                self.remove_all(actor, dir, &name, ino)
            }
            Op::Rename(from, to) => {
                let (from_dir, from_name, _) = self.find(from)?;
                let (to_dir, to_name) = self.place(to)?;
                self.rename(actor, (from_dir, from_name), (to_dir, to_name))
            }
            Op::Exchange(a, b) => self.exchange(actor, a, b),
            Op::Whiteout(from, to) => {
                let (from_dir, from_name, ino) = self.find(from)?;
                let (to_dir, to_name) = self.place(to)?;
                if (from_dir, &from_name) == (to_dir, &to_name) {
                    return None;
                }
                self.rename(actor, (from_dir, from_name.clone()), (to_dir, to_name))?;
                // A rename onto its own twin does nothing at all.
                if self.entries(from_dir)?.get(&from_name) == Some(&ino) {
                    return None;
                }
                let node = Node::Device {
                    block: false,
                    major: 0,
                    minor: 0,
                };
                let device = self.make(node, 0);
                self.enter(from_dir, from_name, device);
                Some(())
            }
            Op::Invert(path) => self.invert(actor, path),
            Op::Chmod(path, mode) => {
                // The mode of a symlink can't be changed, as on Linux.
                if let Some((_, _, ino)) = self.find(path)
                    && matches!(self.inodes.get(&ino)?.node, Node::Symlink(_))
                {
                    return None;
                }
                self.attributes(actor, path, |inode| inode.mode = *mode)
            }
            Op::Chown(path, uid) => self.attributes(actor, path, |inode| inode.uid = *uid),
            Op::Utimes(path, ns) => {
                let mtime = time(*ns);
                self.attributes(actor, path, |inode| inode.mtime = mtime)
            }
            // Only files and directories take user attributes.
            Op::Xattr(path, ..)
                if self.find(path).is_some_and(|(_, _, ino)| {
                    !matches!(self.inodes[&ino].node, Node::File(_) | Node::Dir { .. })
                }) =>
            {
                None
            }
            Op::Xattr(path, key, value) => self.attributes(actor, path, |inode| {
                let key: Box<[u8]> = format!("user.{key}").into_bytes().into();
                if *value == 0 {
                    inode.xattrs.remove(&key);
                } else {
                    inode.xattrs.insert(key, [*value].into());
                }
            }),
            Op::Open(path, slot) => {
                let (dir, name, ino) = self.file(path)?;
                self.close(actor, *slot);
                self.open_slot(actor, *slot, ino, (dir, name))
            }
            Op::OpenUnnamed(path, slot) => {
                let dir = self.dir(path)?;
                self.close(actor, *slot);
                let ino = self.make(Node::File(b"unnamed".to_vec()), 0o600);
                let dead = Name::new(format!("#{ino}").as_bytes()).ok()?;
                self.open_slot(actor, *slot, ino, (dir, dead))
            }
            Op::LinkOpen(slot, path) => {
                let ino = self.slot(actor, *slot)?.ino;
                let (dir, name) = self.vacant(path)?;
                self.link(actor, ino, dir, name)
            }
            Op::WriteOpen(slot, byte) => {
                let open = self.slot(actor, *slot)?.clone();
                self.store(open.ino, *byte)?;
                let stamp = self.stamp();
                let inode = self.inodes.get_mut(&open.ino)?;
                inode.mtime = stamp;
                inode.ctime = stamp;
                let hint = Hint {
                    contents: true,
                    ..self.hint_open(&open)
                };
                self.queue.raise(actor, hint);
                Some(())
            }
            Op::Store(slot, byte) => {
                let open = self.slot_mut(actor, *slot)?;
                let fault = !std::mem::replace(&mut open.mapped, true);
                let ino = open.ino;
                if fault {
                    let stamp = self.stamp();
                    let inode = self.inodes.get_mut(&ino)?;
                    inode.mtime = stamp;
                    inode.ctime = stamp;
                }
                self.store(ino, *byte)
            }
            Op::FlyBegin(slot, byte) => {
                let stamp = self.stamp();
                let open = self.slot_mut(actor, *slot)?;
                open.flying.get_or_insert_default().push(*byte);
                let ino = open.ino;
                let inode = self.inodes.get_mut(&ino)?;
                inode.mtime = stamp;
                inode.ctime = stamp;
                Some(())
            }
            Op::FlyEnd(slot) => {
                let open = self.slot_mut(actor, *slot)?;
                let bytes = open.flying.take()?;
                let open = open.clone();
                for byte in bytes {
                    self.store(open.ino, byte)?;
                }
                let hint = Hint {
                    contents: true,
                    ..self.hint_open(&open)
                };
                self.queue.raise(actor, hint);
                Some(())
            }
            Op::ChmodOpen(slot, mode) => {
                let open = self.slot(actor, *slot)?.clone();
                let stamp = self.stamp();
                let inode = self.inodes.get_mut(&open.ino)?;
                inode.mode = *mode;
                inode.ctime = stamp;
                let hint = self.hint_open(&open);
                self.queue.raise(actor, hint);
                Some(())
            }
            Op::Close(slot) => self.close(actor, *slot),
            Op::WriteNameless(path, byte) => {
                let (_, _, ino) = self.file(path)?;
                self.store(ino, *byte)?;
                let stamp = self.stamp();
                let inode = self.inodes.get_mut(&ino)?;
                inode.mtime = stamp;
                inode.ctime = stamp;
                let hint = Hint {
                    contents: true,
                    closed: true,
                    ..self.hint_object(ino)
                };
                self.queue.raise(actor, hint);
                Some(())
            }
            Op::MoveRoot(path) => {
                let (dir, name) = self.vacant(path)?;
                let (root, up) = (self.root, self.up(self.root)?);
                let old = self.name_of(root)?;
                self.rename(actor, (up, old), (dir, name))
            }
        }
    }

    /// Closes everything: the actors are done.
    pub fn close_all(&mut self) {
        for actor in 0..ACTORS {
            for slot in 0..SLOTS {
                self.act(actor, &Op::FlyEnd(slot));
                self.act(actor, &Op::Close(slot));
            }
        }
        self.queue.arrive_all();
    }

    // Paths.

    fn base(&self, base: Base) -> Ino {
        match base {
            Base::Root => self.root,
            Base::Out => self.out,
        }
    }

    fn dir(&self, path: &Path) -> Option<Ino> {
        let mut at = self.base(path.base);
        for n in &path.names {
            at = *self.entries(at)?.get(&name(*n))?;
        }
        self.entries(at).map(|_| at)
    }

    /// The directory and the name in it that a path stands for, whatever is there.
    fn place(&self, path: &Path) -> Option<(Ino, Name)> {
        let (last, above) = path.names.split_last()?;
        let dir = self.dir(&Path {
            base: path.base,
            names: above.to_vec(),
        })?;
        Some((dir, name(*last)))
    }

    fn vacant(&self, path: &Path) -> Option<(Ino, Name)> {
        let (dir, name) = self.place(path)?;
        (!self.entries(dir)?.contains_key(&name)).then_some((dir, name))
    }

    fn find(&self, path: &Path) -> Option<(Ino, Name, Ino)> {
        let (dir, name) = self.place(path)?;
        let ino = *self.entries(dir)?.get(&name)?;
        Some((dir, name, ino))
    }

    fn file(&self, path: &Path) -> Option<(Ino, Name, Ino)> {
        self.find(path)
            .filter(|(_, _, ino)| matches!(self.inodes[ino].node, Node::File(_)))
    }

    fn file_or_other(&self, path: &Path) -> Option<(Ino, Name, Ino)> {
        self.find(path)
            .filter(|(_, _, ino)| !self.inodes[ino].is_dir())
    }

    // Names.

    fn create(&mut self, actor: usize, path: &Path, node: Node, mode: u16) -> Option<()> {
        let (dir, name) = self.vacant(path)?;
        let ino = self.make(node, mode);
        self.enter(dir, name.clone(), ino);
        let hint = Hint {
            created: true,
            ..self.hint(dir, &name, ino)
        };
        self.queue.raise(actor, hint);
        Some(())
    }

    fn link(&mut self, actor: usize, ino: Ino, dir: Ino, name: Name) -> Option<()> {
        if self.inodes.get(&ino)?.is_dir() {
            return None;
        }
        self.enter(dir, name.clone(), ino);
        let counted = self.hint_object(ino);
        self.queue.raise(actor, counted);
        let hint = Hint {
            created: true,
            ..self.hint(dir, &name, ino)
        };
        self.queue.raise(actor, hint);
        Some(())
    }

    fn unlink(&mut self, actor: usize, dir: Ino, name: &Name) -> Option<()> {
        let ino = *self.entries(dir)?.get(name)?;
        let counted = self.hint_object(ino);
        let gone = self.hint(dir, name, ino);
        self.leave(dir, name);
        self.queue.raise(actor, counted);
        self.queue.raise(actor, gone);
        self.release(ino);
        Some(())
    }

    fn rmdir(&mut self, actor: usize, dir: Ino, name: &Name, ino: Ino) -> Option<()> {
        if !self.entries(ino)?.is_empty() || ino == self.root || ino == self.out {
            return None;
        }
        let gone = self.hint(dir, name, ino);
        self.leave(dir, name);
        self.queue.raise(actor, gone);
        self.release(ino);
        Some(())
    }

    fn remove_all(&mut self, actor: usize, dir: Ino, name: &Name, ino: Ino) -> Option<()> {
        if let Some(entries) = self.entries(ino) {
            let below: Vec<(Name, Ino)> = entries.iter().map(|(n, i)| (n.clone(), *i)).collect();
            for (name, child) in below {
                self.remove_all(actor, ino, &name, child)?;
            }
            self.rmdir(actor, dir, name, ino)
        } else {
            self.unlink(actor, dir, name)
        }
    }

    fn rename(&mut self, actor: usize, from: (Ino, Name), to: (Ino, Name)) -> Option<()> {
        let ino = *self.entries(from.0)?.get(&from.1)?;
        let victim = self.entries(to.0)?.get(&to.1).copied();
        if victim == Some(ino) {
            return None;
        }
        let is_dir = self.inodes.get(&ino)?.is_dir();
        if is_dir && self.is_below(to.0, ino) {
            return None;
        }
        if let Some(victim) = victim {
            let over_dir = self.inodes.get(&victim)?.is_dir();
            let fixed = victim == self.root || victim == self.out;
            if over_dir != is_dir || fixed || self.entries(victim).is_some_and(|e| !e.is_empty()) {
                return None;
            }
        }
        let hint = Hint {
            to: self.told(to.0, &to.1),
            renamed: true,
            ..self.hint(from.0, &from.1, ino)
        };
        let counted = victim
            .filter(|victim| !self.inodes[victim].is_dir())
            .map(|victim| self.hint_object(victim));
        if let Some(victim) = victim {
            self.leave(to.0, &to.1);
            self.release(victim);
        }
        self.leave(from.0, &from.1);
        self.enter(to.0, to.1.clone(), ino);
        self.follow_alias(ino, &from, &to);
        self.queue.raise(actor, hint);
        if let Some(counted) = counted {
            self.queue.raise(actor, counted);
        }
        Some(())
    }

    fn exchange(&mut self, actor: usize, a: &Path, b: &Path) -> Option<()> {
        let (a_dir, a_name, a_ino) = self.find(a)?;
        let (b_dir, b_name, b_ino) = self.find(b)?;
        if a_ino == b_ino || self.is_below(b_dir, a_ino) || self.is_below(a_dir, b_ino) {
            return None;
        }
        let (at_a, at_b) = ((a_dir, a_name), (b_dir, b_name));
        for (from, to, ino) in [(&at_a, &at_b, a_ino), (&at_b, &at_a, b_ino)] {
            let hint = Hint {
                to: self.told(to.0, &to.1),
                renamed: true,
                ..self.hint(from.0, &from.1, ino)
            };
            self.queue.raise(actor, hint);
        }
        self.leave(at_a.0, &at_a.1);
        self.leave(at_b.0, &at_b.1);
        self.enter(at_b.0, at_b.1.clone(), a_ino);
        self.enter(at_a.0, at_a.1.clone(), b_ino);
        self.follow_alias(a_ino, &at_a, &at_b);
        self.follow_alias(b_ino, &at_b, &at_a);
        Some(())
    }

    /// `path` is x/y, both directories: y takes x's place, and x goes into y.
    fn invert(&mut self, actor: usize, path: &Path) -> Option<()> {
        let (x, y_name, y) = self.find(path)?;
        if !self.inodes.get(&y)?.is_dir() || x == self.root || x == self.out {
            return None;
        }
        let (up, x_name) = (self.up(x)?, self.name_of(x)?);
        let aside = (0..)
            .map(name)
            .take(NAMES.len())
            .find(|n| !self.entries(up).is_some_and(|e| e.contains_key(n)))?;
        self.rename(actor, (x, y_name.clone()), (up, aside.clone()))?;
        self.rename(actor, (up, x_name.clone()), (y, y_name))?;
        self.rename(actor, (up, aside), (up, x_name))
    }

    /// An event of a descriptor: at the name it was opened by.
    fn hint_open(&self, open: &Open) -> Hint {
        Hint {
            at: Some(HintName {
                dir: open.alias_dir.clone(),
                name: Some(open.alias.1.clone()),
            }),
            ..self.hint_object(open.ino)
        }
    }

    fn follow_alias(&mut self, ino: Ino, from: &(Ino, Name), to: &(Ino, Name)) {
        let Some(dir) = self.inodes.get(&to.0).map(Inode::handle) else {
            return;
        };
        for open in self.open.iter_mut().flatten() {
            if open.ino == ino && open.alias == *from {
                open.alias = to.clone();
                open.alias_dir = dir.clone();
            }
        }
    }

    // Bytes.

    fn write(&mut self, actor: usize, path: &Path, byte: u8) -> Option<()> {
        if self.find(path).is_none() {
            self.create(actor, path, Node::File(Vec::new()), 0o644)?;
        }
        let (dir, name, ino) = self.file(path)?;
        self.store(ino, byte)?;
        self.wrote(actor, (dir, name), ino, true);
        Some(())
    }

    /// Changes the bytes and nothing else: some writes grow the file, some overwrite.
    fn store(&mut self, ino: Ino, byte: u8) -> Option<()> {
        let Node::File(bytes) = &mut self.inodes.get_mut(&ino)?.node else {
            return None;
        };
        match bytes.len() {
            len if len >= 64 || (byte.is_multiple_of(2) && len > 0) => {
                let at = usize::from(byte) % len;
                bytes[at] = bytes[at].wrapping_add(1).wrapping_add(byte);
            }
            _ => bytes.push(byte),
        }
        Some(())
    }

    fn wrote(&mut self, actor: usize, alias: (Ino, Name), ino: Ino, closed: bool) {
        let stamp = self.stamp();
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.mtime = stamp;
            inode.ctime = stamp;
        }
        let hint = Hint {
            contents: true,
            closed,
            ..self.hint(alias.0, &alias.1, ino)
        };
        self.queue.raise(actor, hint);
    }

    fn slot(&self, actor: usize, slot: usize) -> Option<&Open> {
        self.open.get(actor * SLOTS + slot % SLOTS)?.as_ref()
    }

    fn slot_mut(&mut self, actor: usize, slot: usize) -> Option<&mut Open> {
        self.open.get_mut(actor * SLOTS + slot % SLOTS)?.as_mut()
    }

    fn open_slot(&mut self, actor: usize, slot: usize, ino: Ino, alias: (Ino, Name)) -> Option<()> {
        let alias_dir = self.inodes.get(&alias.0)?.handle();
        self.inodes.get_mut(&ino)?.writers += 1;
        self.open[actor * SLOTS + slot % SLOTS] = Some(Open {
            ino,
            alias,
            alias_dir,
            flying: None,
            mapped: false,
        });
        Some(())
    }

    fn close(&mut self, actor: usize, slot: usize) -> Option<()> {
        let open = self.open.get_mut(actor * SLOTS + slot % SLOTS)?.take()?;
        let hint = Hint {
            contents: true,
            closed: true,
            ..self.hint_open(&open)
        };
        self.queue.raise(actor, hint);
        self.inodes.get_mut(&open.ino)?.writers -= 1;
        self.release(open.ino);
        Some(())
    }

    fn attributes(
        &mut self,
        actor: usize,
        path: &Path,
        change: impl FnOnce(&mut Inode),
    ) -> Option<()> {
        let (at, ino) = if path.names.is_empty() {
            (None, self.base(path.base))
        } else {
            let (dir, name, ino) = self.find(path)?;
            (Some((dir, name)), ino)
        };
        let stamp = self.stamp();
        let inode = self.inodes.get_mut(&ino)?;
        change(inode);
        inode.ctime = stamp;
        let hint = match at {
            Some((dir, name)) if !inode.is_dir() => self.hint(dir, &name, ino),
            // About itself a directory tells no name and no object.
            _ => Hint {
                at: Some(HintName {
                    dir: self.inodes.get(&ino)?.handle(),
                    name: None,
                }),
                on_dir: true,
                ..Hint::default()
            },
        };
        self.queue.raise(actor, hint);
        Some(())
    }
}
