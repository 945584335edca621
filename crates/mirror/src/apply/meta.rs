//! Metadata of the copy: what it should be on this host, reading it, and setting it in the order that keeps it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mirror_core::{Content, Digest, Kind, Meta, State, Time, Xattr};
use rustix::fs::FileType;

use super::{Owners, Recorded, crash};
use crate::sys::stat::{Stat, fstat, statx};
use crate::sys::{Errno, Result, flags, open, target, xattr};

const CAPABILITY: &[u8] = b"security.capability";
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// Immutable and append-only: with them an inode can't be renamed, so they come after its names.
pub const LATE_FLAGS: u32 = flags::IMMUTABLE | flags::APPEND;

/// Farther than any file system tells times; it answers with its own end.
const FAR_SECONDS: i64 = 1 << 55;

/// What can be kept on this host, in this file system, by us. Found out once, by trying.
#[derive(Debug, Clone)]
pub struct Rules {
    pub owners: Owners,
    pub uid: u32,
    pub gid: u32,
    user_xattrs: bool,
    trusted_xattrs: bool,
    acls: bool,
    capabilities: bool,
    flags: u32,
    projects: bool,
    /// Of a time stamp.
    grain_ns: u32,
    /// The earliest and the latest second it can tell.
    seconds: (i64, i64),
    umask: u16,
}

impl Rules {
    /// Tries everything out on a file and a directory in `dir`, which is ours.
    pub fn probe(dir: &OwnedFd, owners: Owners) -> Result<Rules> {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let file = target::create_file(dir, b"probe")?;
        target::create_dir(dir, b"probe.d")?;
        let sub = open::dir(dir, b"probe.d")?;
        let can = |name: &[u8], value: &[u8]| {
            let xattr = Xattr {
                name: name.into(),
                value: value.into(),
            };
            match xattr::set(&file, b"", &xattr) {
                // That says nothing of what can be kept once there is room.
                Err(e @ (Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::NOMEM)) => Err(e),
                set => Ok(set.is_ok()),
            }
        };
        // Empty sets of capabilities; read, write for the owner and a named user.
        let capability = [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut acl = vec![2, 0, 0, 0];
        for (tag, who) in [
            (1u16, u32::MAX),
            (2, 1),
            (4, u32::MAX),
            (0x10, u32::MAX),
            (0x20, u32::MAX),
        ] {
            acl.extend(tag.to_le_bytes());
            acl.extend(6u16.to_le_bytes());
            acl.extend(who.to_le_bytes());
        }
        let time = Time {
            seconds: 1_000_000_001,
            nanos: 123_456_789,
        };
        target::set_mtime(&file, b"", time)?;
        let got = fstat(&file)?.mtime.nanos;
        let grain = [1, 100, 1000, 1_000_000, 10_000_000];
        let grain_ns = grain
            .into_iter()
            .find(|g| time.nanos / g * g == got)
            .unwrap_or(1_000_000_000);
        let clamped = |seconds: i64| -> Result<i64> {
            target::set_mtime(&file, b"", Time { seconds, nanos: 0 })?;
            Ok(fstat(&file)?.mtime.seconds)
        };
        let seconds = (clamped(-FAR_SECONDS)?, clamped(FAR_SECONDS)?);
        let mut kept = 0;
        for bit in (0..32)
            .map(|n| 1u32 << n)
            .filter(|bit| Meta::FLAGS_KEPT & bit != 0)
        {
            for fd in [&file, &sub] {
                if matches!(flags::set_flags(fd, bit, bit), Ok(0)) {
                    kept |= bit;
                }
                let _ = flags::set_flags(fd, 0, bit);
            }
        }
        let rules = Rules {
            owners,
            uid,
            gid,
            user_xattrs: can(b"user.fs_mirror.probe", b"1")?,
            trusted_xattrs: can(b"trusted.fs_mirror.probe", b"1")?,
            capabilities: can(CAPABILITY, &capability)?,
            acls: can(ACL_ACCESS, &acl)?,
            flags: kept,
            projects: flags::set_project(&file, 1).is_ok(),
            grain_ns,
            seconds,
            umask: umask(),
        };
        target::unlink(dir, b"probe")?;
        target::remove_dir(dir, b"probe.d")?;
        Ok(rules)
    }

    /// What decides what [`Rules::here`] says. Version (1), owners (0 apply, 1 record), then little endian uid and gid (u32;
    /// 0 when owners are applied), what is possible (u8: 1 user, 2 trusted attributes, 4 ACLs, 8 capabilities, 16 projects),
    /// flags (u32), grain (u32), first and last second (i64).
    pub fn to_bytes(&self) -> Vec<u8> {
        let record = self.owners == Owners::Record;
        let (uid, gid) = if record { (self.uid, self.gid) } else { (0, 0) };
        let can = [
            self.user_xattrs,
            self.trusted_xattrs,
            self.acls,
            self.capabilities,
            self.projects,
        ];
        let bits = (0..).zip(can).map(|(n, can)| u8::from(can) << n).sum();
        let mut bytes = vec![1, u8::from(record)];
        bytes.extend(uid.to_le_bytes());
        bytes.extend(gid.to_le_bytes());
        bytes.push(bits);
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.grain_ns.to_le_bytes());
        bytes.extend(self.seconds.0.to_le_bytes());
        bytes.extend(self.seconds.1.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Rules> {
        let bytes: &[u8; 35] = bytes.try_into().ok()?;
        let i64_at = |at: usize| Some(i64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let can = |bit: u8| bytes[10] & bit != 0;
        let owners = match bytes[..2] {
            [1, 0] => Owners::Apply,
            [1, 1] => Owners::Record,
            _ => return None,
        };
        Some(Rules {
            owners,
            uid: u32_at(2)?,
            gid: u32_at(6)?,
            user_xattrs: can(1),
            trusted_xattrs: can(2),
            acls: can(4),
            capabilities: can(8),
            projects: can(16),
            flags: u32_at(11)?,
            grain_ns: u32_at(15)?.max(1),
            seconds: (i64_at(19)?, i64_at(27)?),
            umask: 0o777,
        })
    }

    /// What of an object is only recorded.
    pub fn recorded(&self, state: &State) -> Recorded {
        let meta = &state.meta;
        let plain = meta.xattrs.is_empty()
            && meta.flags == 0
            && meta.project == 0
            && self.time(meta.mtime) == meta.mtime;
        if plain && self.owners == Owners::Apply {
            return Recorded::default();
        }
        self.here(state).1
    }

    /// What an object is to look like here, and what of it is only recorded.
    pub fn here(&self, state: &State) -> (State, Recorded) {
        let mut recorded = Recorded::default();
        let mut here = state.clone();
        let record = self.owners == Owners::Record;
        let kind = &state.kind;
        if record && matches!(kind, Kind::Device { .. }) {
            recorded.devices = 1;
            let digest = Digest(*blake3::hash(b"").as_bytes());
            here.kind = Kind::File(Content {
                bytes: 0,
                digest,
                data: Vec::new(),
                proven: true,
                fuzzy: false,
            });
            here.meta.mode = 0o600;
        }
        let meta = &mut here.meta;
        if record {
            if (meta.uid, meta.gid) != (self.uid, self.gid) {
                recorded.owners = 1;
            }
            (meta.uid, meta.gid) = (self.uid, self.gid);
            if meta.mode & 0o6000 != 0 {
                recorded.setid = 1;
            }
            meta.mode &= !0o6000;
        }
        let mut labels = 0;
        let mut xattrs = 0;
        meta.xattrs.retain(|x| {
            let kept = match &*x.name {
                name if is_label(name) => {
                    labels = 1;
                    return false;
                }
                CAPABILITY => self.capabilities && !record,
                name if name.starts_with(b"trusted.") => self.trusted_xattrs && !record,
                name if name.starts_with(b"system.posix_acl_") => self.acls,
                // Only regular files and directories can have those.
                name if name.starts_with(b"user.") => self.user_xattrs,
                name => !name.starts_with(b"security.") || !record,
            };
            if !kept {
                xattrs = 1;
            }
            kept
        });
        (recorded.labels, recorded.xattrs) = (labels, xattrs);
        let flagged = matches!(here.kind, Kind::Dir | Kind::File(_))
            && !matches!(state.kind, Kind::Device { .. });
        let keep = if flagged { self.flags } else { 0 };
        if meta.flags & !keep != 0 {
            recorded.flags = 1;
        }
        meta.flags &= keep;
        if meta.project != 0 && (!self.projects || record || !flagged) {
            recorded.projects = 1;
            meta.project = 0;
        }
        let mtime = self.time(meta.mtime);
        recorded.times = u64::from(mtime != meta.mtime);
        meta.mtime = mtime;
        if matches!(here.kind, Kind::Symlink(_)) {
            meta.mode = 0o777;
        }
        (here, recorded)
    }

    /// What a time becomes here.
    fn time(&self, time: Time) -> Time {
        let (first, last) = self.seconds;
        let seconds = time.seconds.clamp(first, last.max(first));
        // So does the kernel at both ends.
        let nanos = if seconds == first || seconds == last {
            0
        } else {
            time.nanos - time.nanos % self.grain_ns
        };
        Time { seconds, nanos }
    }

    /// The mode `openat` must be asked for so that `mode` results; `None`: it needs a chmod.
    pub fn creation_mode(&self, meta: &Meta) -> Option<u16> {
        let plain = meta.mode & (self.umask | 0o7000) == 0;
        (plain && (self.uid == 0 || meta.xattrs.is_empty())).then_some(meta.mode)
    }

    /// All metadata but late flags of a new inode of ours, made without inheriting anything; `meta` is from
    /// [`Rules::here`]. `file`: it, open, when it is a regular file or directory.
    pub fn make(
        &self,
        dir: impl AsFd,
        name: &[u8],
        kind: &Kind,
        meta: &Meta,
        moded: bool,
    ) -> Result<()> {
        if (meta.uid, meta.gid) != (self.uid, self.gid) {
            target::set_owner(&dir, name, meta.uid, meta.gid)?;
        }
        // Without privilege attributes and flags need the permission to write, so the mode comes after them.
        let (after, before): (Vec<&Xattr>, Vec<&Xattr>) = match crash::planted("forget_xattr") {
            true => Default::default(),
            false => meta.xattrs.iter().partition(|xattr| goes_with_mode(xattr)),
        };
        for xattr in before {
            xattr::set(&dir, name, xattr)?;
        }
        let flagged = matches!(kind, Kind::Dir | Kind::File(_));
        if flagged && (meta.project != 0 || meta.flags & !LATE_FLAGS != 0) {
            with_open(&dir, name, kind, |fd| {
                if meta.project != 0 {
                    flags::set_project(fd, meta.project)?;
                }
                let early = meta.flags & !LATE_FLAGS;
                if early != 0 {
                    flags::set_flags(fd, early, early).map(drop)
                } else {
                    Ok(())
                }
            })?;
        }
        if !moded && !matches!(kind, Kind::Symlink(_)) {
            target::set_mode(&dir, name, meta.mode)?;
        }
        for xattr in after {
            xattr::set(&dir, name, xattr)?;
        }
        if !crash::planted("lose_mtime") {
            target::set_mtime(&dir, name, meta.mtime)?;
        }
        Ok(())
    }

    /// Makes the metadata of an existing inode be `meta` (from [`Rules::here`]), touching only what differs.
    /// True: something was set. With `late` false immutable and append-only are left off. By a descriptor alone, see
    /// [`hold`]: between two calls by name another inode may get it.
    pub fn adjust(&self, held: &OwnedFd, kind: &Kind, meta: &Meta, late: bool) -> Result<bool> {
        let (dir, name) = (held, &b""[..]);
        let (stat, have) = self.read(dir, name)?;
        let mut want = meta.clone();
        if !late {
            want.flags &= !LATE_FLAGS;
        }
        let flags_known = self.flags;
        if self.same(&have, &want) {
            return Ok(false);
        }
        let flagged = stat.is_dir() || stat.is_file();
        let only_late = Meta {
            flags: have.flags & !LATE_FLAGS | want.flags & LATE_FLAGS,
            ..have.clone()
        };
        if !self.same(&only_late, &want) || have.flags & LATE_FLAGS & !want.flags != 0 {
            if have.flags & LATE_FLAGS != 0 {
                with_open(dir, name, kind, |fd| {
                    flags::set_flags(fd, 0, LATE_FLAGS).map(drop)
                })?;
            }
            let chown = (have.uid, have.gid) != (want.uid, want.gid);
            if chown {
                target::set_owner(dir, name, want.uid, want.gid)?;
            }
            let symlink = stat.file_type().is_symlink();
            let others = have.xattrs != want.xattrs
                || have.flags != want.flags
                || have.project != want.project;
            // As in `make`: these need the permission to write.
            let opened = others && self.uid != 0 && !symlink && have.mode & 0o600 != 0o600;
            if opened {
                target::set_mode(dir, name, have.mode | 0o600)?;
            }
            for xattr in &have.xattrs {
                if !want.xattrs.iter().any(|x| x.name == xattr.name) {
                    xattr::remove(dir, name, &xattr.name)?;
                }
            }
            let (after, before): (Vec<&Xattr>, Vec<&Xattr>) =
                want.xattrs.iter().partition(|xattr| goes_with_mode(xattr));
            for xattr in before {
                if !have.xattrs.contains(xattr) {
                    xattr::set(dir, name, xattr)?;
                }
            }
            if flagged
                && (have.project != want.project || (have.flags ^ want.flags) & !LATE_FLAGS != 0)
            {
                with_open(dir, name, kind, |fd| {
                    if have.project != want.project {
                        flags::set_project(fd, want.project)?;
                    }
                    flags::set_flags(fd, want.flags, flags_known & !LATE_FLAGS).map(drop)
                })?;
            }
            if (chown || opened || have.mode != want.mode) && !symlink {
                target::set_mode(dir, name, want.mode)?;
            }
            for xattr in after {
                if chown || *xattr.name == *ACL_ACCESS || !have.xattrs.contains(xattr) {
                    xattr::set(dir, name, xattr)?;
                }
            }
            target::set_mtime(dir, name, want.mtime)?;
        }
        if flagged && want.flags & LATE_FLAGS != 0 {
            with_open(dir, name, kind, |fd| {
                flags::set_flags(fd, want.flags, LATE_FLAGS).map(drop)
            })?;
        }
        Ok(true)
    }

    /// Equal as far as it can be kept here; both from [`Rules::here`] or [`Rules::read`].
    pub fn same(&self, a: &Meta, b: &Meta) -> bool {
        a == b
    }

    /// All metadata of an inode, without security labels and flags that nobody can set.
    pub fn read(&self, dir: impl AsFd, name: &[u8]) -> Result<(Stat, Meta)> {
        let stat = statx(&dir, name)?;
        let mut xattrs = xattr::read(&dir, name)?;
        xattrs.retain(|x| !is_label(&x.name));
        let mut meta = Meta {
            mode: if stat.file_type().is_symlink() {
                0o777
            } else {
                stat.permissions()
            },
            uid: stat.uid,
            gid: stat.gid,
            mtime: stat.mtime,
            xattrs,
            flags: 0,
            project: 0,
        };
        if self.flags != 0 && (stat.is_dir() || stat.is_file()) {
            let found = match with_stat(&dir, name, &stat, |fd| flags::get(fd)) {
                Err(Errno::ACCESS) => match flags::peek(&dir, name) {
                    // Not through `O_PATH`.
                    Err(Errno::BADF) => Ok(None),
                    peeked => peeked,
                },
                found => found,
            };
            if let Some(found) = found? {
                meta.flags = found.flags & self.flags;
                meta.project = if self.projects { found.project } else { 0 };
            }
        }
        Ok((stat, meta))
    }
}

/// Kept in the rows only: they mean something to this host's own policy.
fn is_label(name: &[u8]) -> bool {
    matches!(
        name,
        b"security.selinux" | b"security.ima" | b"security.evm"
    )
}

/// Whether an inode that others than root could write to is to run with rights of its own. They may write to it after the last
/// look at its bytes, so another one must take its place.
pub fn exposed(stat: &Stat, old: &Meta, new: &Meta) -> bool {
    let capability = new.xattrs.iter().any(|xattr| *xattr.name == *CAPABILITY);
    let by_others = |uid: u32, mode: u16| uid != 0 || mode & 0o022 != 0;
    let writable = by_others(stat.uid, stat.mode) || by_others(old.uid, old.mode);
    old != new && writable && (new.mode & 0o6000 != 0 || capability)
}

/// What chown and chmod change or take away, so that it must come after them.
fn goes_with_mode(xattr: &Xattr) -> bool {
    *xattr.name == *CAPABILITY || *xattr.name == *ACL_ACCESS
}

/// The kind of an inode without its content, device number or target.
pub fn same_type(kind: &Kind, stat: &Stat) -> bool {
    let want = match kind {
        Kind::Dir => FileType::Directory,
        Kind::File(_) => FileType::RegularFile,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::Device { block: true, .. } => FileType::BlockDevice,
        Kind::Device { block: false, .. } => FileType::CharacterDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
    };
    stat.file_type() == want
}

/// An inode of the copy, whatever its name shows from now on.
pub struct Held {
    pub fd: OwnedFd,
    pub stat: Stat,
    /// A regular file or directory that we may read: open for that. Anything else is only `O_PATH`.
    pub open: bool,
}

pub fn hold(dir: impl AsFd, name: &[u8]) -> Result<Held> {
    let held = open::path(&dir, name)?;
    let stat = fstat(&held)?;
    let opened = match (stat.is_file(), stat.is_dir()) {
        (false, false) => Err(Errno::ACCESS),
        (file, _) => match open::again(&held) {
            // No /proc.
            Err(Errno::NOENT) if file => open::file(dir, name),
            Err(Errno::NOENT) => open::dir(dir, name),
            opened => opened,
        },
    };
    let (fd, open) = match opened {
        Ok(fd) => (fd, true),
        Err(Errno::ACCESS) => (held, false),
        Err(e) => return Err(e),
    };
    if open && !fstat(&fd)?.same_inode(&stat) {
        return Err(Errno::STALE);
    }
    Ok(Held { fd, stat, open })
}

/// On the descriptor, or on the same inode opened for reading where it is only `O_PATH`.
fn with_held<T>(held: impl AsFd, f: impl Fn(BorrowedFd<'_>) -> Result<T>) -> Result<T> {
    match f(held.as_fd()) {
        Err(Errno::BADF) => f(open::again(held)?.as_fd()),
        done => done,
    }
}

fn with_open<T>(
    dir: impl AsFd,
    name: &[u8],
    kind: &Kind,
    f: impl Fn(BorrowedFd<'_>) -> Result<T>,
) -> Result<T> {
    match kind {
        Kind::Dir | Kind::File(_) if name.is_empty() => with_held(dir, f),
        Kind::Dir => f(open::dir(dir, name)?.as_fd()),
        Kind::File(_) => {
            let fd = open::file(dir, name)?;
            if fstat(&fd)?.is_file() {
                f(fd.as_fd())
            } else {
                Err(Errno::INVAL)
            }
        }
        _ => Err(Errno::INVAL),
    }
}

fn with_stat<T>(
    dir: impl AsFd,
    name: &[u8],
    stat: &Stat,
    f: impl Fn(BorrowedFd<'_>) -> Result<T>,
) -> Result<T> {
    if name.is_empty() {
        return with_held(dir, f);
    }
    let fd = match stat.is_dir() {
        true => open::dir(dir, name)?,
        false => open::file(dir, name)?,
    };
    if !fstat(&fd)?.same_inode(stat) {
        return Err(Errno::STALE);
    }
    f(fd.as_fd())
}

fn umask() -> u16 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    // Not known: then every file gets its chmod.
    line.and_then(|text| u16::from_str_radix(text.trim(), 8).ok())
        .unwrap_or(0o777)
}
