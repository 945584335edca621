//! What is mounted where: mountinfo of this thread's mount namespace (all threads share one, but in tests), and word
//! of a change in it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{Errno, Result, stat, tree};

/// One line of mountinfo, octal escapes undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub id: u64,
    pub parent: u64,
    /// Major and minor.
    pub dev: (u32, u32),
    /// What of the file system is mounted: `/`, or a bind mount's directory, or a btrfs subvolume's path.
    pub root: Vec<u8>,
    /// Mount point.
    pub at: Vec<u8>,
    pub options: Vec<u8>,
    pub fs_type: Vec<u8>,
    pub source: Vec<u8>,
    pub super_options: Vec<u8>,
}

impl Mount {
    pub fn is_read_only(&self) -> bool {
        [&self.options, &self.super_options]
            .iter()
            .any(|o| o.split(|&b| b == b',').any(|o| o == b"ro"))
    }
    /// A btrfs mount that does not show the top volume: fanotify refuses to mark it (`EXDEV`).
    pub fn is_btrfs_subvolume(&self) -> bool {
        self.fs_type == b"btrfs"
            && !self
                .super_options
                .split(|&b| b == b',')
                .any(|o| o == b"subvolid=5")
    }
}

/// All mounts, in the order they were made.
pub fn read() -> io::Result<Vec<Mount>> {
    parse(&std::fs::read("/proc/thread-self/mountinfo")?).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "cannot understand /proc/thread-self/mountinfo",
        )
    })
}

/// `None`: not the format of proc(5).
pub fn parse(text: &[u8]) -> Option<Vec<Mount>> {
    text.split(|&b| b == b'\n')
        .filter(|line| !line.is_empty())
        .map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|&b| b == b' ');
    let mut word = || words.next();
    let id = number(word()?)?;
    let parent = number(word()?)?;
    let mut dev = word()?.splitn(2, |&b| b == b':');
    let dev = (
        u32::try_from(number(dev.next()?)?).ok()?,
        u32::try_from(number(dev.next()?)?).ok()?,
    );
    let (root, at, options) = (word()?, word()?, word()?);
    // Any number of optional fields, then a dash.
    while word()? != b"-" {}
    let (fs_type, source) = (word()?, word()?);
    // Old kernels left this one out where it was empty.
    let super_options = word().unwrap_or_default();
    Some(Mount {
        id,
        parent,
        dev,
        root: unescape(root),
        at: unescape(at),
        options: unescape(options),
        fs_type: unescape(fs_type),
        source: unescape(source),
        super_options: unescape(super_options),
    })
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Undoes `\NNN`, three octal digits; any other backslash stays.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        if let [
            b'\\',
            a @ b'0'..=b'3',
            b @ b'0'..=b'7',
            c @ b'0'..=b'7',
            tail @ ..,
        ] = rest
        {
            out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = tail;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

/// Is `path` strictly below `dir`? Both canonical.
fn is_below(path: &[u8], dir: &[u8]) -> bool {
    match path.strip_prefix(dir) {
        _ if dir == b"/" => path.len() > 1 && path.starts_with(b"/"),
        Some(rest) => rest.len() > 1 && rest.starts_with(b"/"),
        None => false,
    }
}

/// The mounts strictly below a canonical path.
pub fn below<'a>(mounts: &'a [Mount], path: &'a [u8]) -> impl Iterator<Item = &'a Mount> {
    mounts.iter().filter(move |mount| is_below(&mount.at, path))
}

/// The mount that a canonical path is on: the deepest mount point, of several at one point the one on top.
pub fn of_path<'a>(mounts: &'a [Mount], path: &[u8]) -> Option<&'a Mount> {
    let on = mounts
        .iter()
        .filter(|mount| mount.at == path || is_below(path, &mount.at));
    // max_by_key gives the last of equals: the one mounted last.
    on.max_by_key(|mount| mount.at.len())
}

/// The mount that an open file is on; `None`: unmounted, a private clone, or of another namespace.
pub fn of_fd(mounts: &[Mount], fd: impl AsFd) -> Result<Option<&Mount>> {
    let fd = fd.as_fd();
    match stat::fstat(fd)?.mount_id {
        Some(id) => Ok(mounts.iter().find(|mount| mount.id == id)),
        // Before Linux 5.8.
        None => Ok(of_path(mounts, &tree::readlink_fd(fd)?)),
    }
}

/// Learns of mounts and unmounts in this namespace.
pub struct Watch {
    fd: OwnedFd,
}

impl Watch {
    pub fn new() -> Result<Watch> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Watch {
            fd: openat(CWD, c"/proc/thread-self/mountinfo", flags, Mode::empty())?,
        })
    }

    /// What to poll for in a loop of one's own; asking is what resets it, nothing has to be read.
    pub fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        (self.fd.as_fd(), PollFlags::PRI | PollFlags::ERR)
    }

    /// Has anything changed since the last time we asked? Waits up to `timeout` (`None`: forever).
    pub fn changed(&self, timeout: Option<&Timespec>) -> Result<bool> {
        let (fd, interest) = self.interest();
        let mut fds = [PollFd::from_borrowed_fd(fd, interest)];
        match poll(&mut fds, timeout) {
            Ok(_) => Ok(fds.iter().any(|fd| fd.revents().intersects(interest))),
            Err(Errno::INTR) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n\
        30 22 0:25 /@home /srv/a\\040b\\134c rw master:3 propagate_from:2 - btrfs /dev/sdb ro,subvolid=256,subvol=/@home\n\
        31 22 0:26 / /srv/a\\040b\\134cd rw - tmpfs none rw\n\
        32 30 0:27 /x /srv/a\\040b\\134c/deep rw - fuse.sshfs h:\\134 rw\n\
        33 22 0:28 / /srv/a\\040b\\134c rw - tmpfs top rw\n\
        34 22 0:29 / /empty rw - proc proc \n";

    #[test]
    fn every_field_is_read() {
        let mounts = parse(SAMPLE).unwrap();
        let [root, home, _, deep, ..] = mounts.as_slice() else {
            panic!("{mounts:?}")
        };
        assert_eq!((root.id, root.parent, root.dev), (22, 1, (8, 1)));
        assert_eq!(
            (root.fs_type.as_slice(), root.source.as_slice()),
            (&b"ext4"[..], &b"/dev/sda1"[..])
        );
        assert_eq!(home.at, b"/srv/a b\\c");
        assert_eq!(home.root, b"/@home");
        assert!(home.is_read_only() && home.is_btrfs_subvolume());
        assert!(!root.is_read_only() && !root.is_btrfs_subvolume());
        assert_eq!(deep.source, b"h:\\");
    }

    #[test]
    fn below_means_whole_components() {
        let mounts = parse(SAMPLE).unwrap();
        let ids = |path: &[u8]| below(&mounts, path).map(|m| m.id).collect::<Vec<_>>();
        assert_eq!(ids(b"/srv/a b\\c"), [32]);
        assert_eq!(ids(b"/srv"), [30, 31, 32, 33]);
        assert_eq!(ids(b"/"), [30, 31, 32, 33, 34]);
        assert!(ids(b"/sr").is_empty());
        let on = |path: &[u8]| of_path(&mounts, path).map(|m| m.id);
        assert_eq!(on(b"/srv/a b\\c"), Some(33));
        assert_eq!(on(b"/srv/a b\\c/deep/er"), Some(32));
        assert_eq!(on(b"/srv/a b"), Some(22));
        assert_eq!(on(b"/"), Some(22));
    }

    #[test]
    fn what_is_no_mountinfo_is_refused() {
        for text in [
            &b"x"[..],
            b"1 2 3 / / rw - a b c",
            b"1 2 3:4 / / rw a b c",
            b"1 2 3:x / / rw - a b c",
        ] {
            assert_eq!(parse(text), None);
        }
        assert_eq!(unescape(b"\\04\\400\\"), b"\\04\\400\\");
    }

    #[test]
    fn knows_the_mounts_of_this_machine() {
        let mounts = read().unwrap();
        let proc = std::fs::File::open("/proc").unwrap();
        let mount = of_fd(&mounts, &proc).unwrap().unwrap();
        assert_eq!(mount.fs_type, b"proc");
        assert_eq!(of_path(&mounts, b"/proc").map(|m| m.id), Some(mount.id));
    }
}
