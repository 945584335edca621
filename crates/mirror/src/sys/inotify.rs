//! inotify: a watch on each directory. The way where fanotify can't be used; new directories must be watched, then
//! listed again, by the caller.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::{Errno, Result};

/// Bits of [`Record::mask`].
pub mod mask {
    pub const MODIFY: u32 = libc::IN_MODIFY;
    pub const ATTRIB: u32 = libc::IN_ATTRIB;
    pub const CLOSE_WRITE: u32 = libc::IN_CLOSE_WRITE;
    pub const MOVED_FROM: u32 = libc::IN_MOVED_FROM;
    pub const MOVED_TO: u32 = libc::IN_MOVED_TO;
    pub const CREATE: u32 = libc::IN_CREATE;
    pub const DELETE: u32 = libc::IN_DELETE;
    pub const DELETE_SELF: u32 = libc::IN_DELETE_SELF;
    pub const MOVE_SELF: u32 = libc::IN_MOVE_SELF;
    /// The file system was unmounted.
    pub const UNMOUNT: u32 = libc::IN_UNMOUNT;
    pub const OVERFLOW: u32 = libc::IN_Q_OVERFLOW;
    /// The watch is gone and its number free: forget it.
    pub const IGNORED: u32 = libc::IN_IGNORED;
    pub const ISDIR: u32 = libc::IN_ISDIR;
}

/// A queue of records of the directories watched for it.
#[derive(Debug)]
pub struct Group {
    fd: OwnedFd,
}

impl Group {
    /// `EMFILE`: `fs.inotify.max_user_instances`.
    pub fn new() -> Result<Group> {
        Ok(Group {
            fd: inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?,
        })
    }

    /// Watches an open directory (`O_PATH` is enough) and returns the watch's number: the same one again for the
    /// same inode, under whatever name. `ENOSPC`: `fs.inotify.max_user_watches`. Pins the inode in memory.
    pub fn add(&self, dir: impl AsFd) -> Result<i32> {
        let flags = WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let path = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
        inotify::add_watch(&self.fd, path.as_str(), flags)
    }

    /// A record with `IGNORED` follows. Fine when the watch is gone.
    pub fn remove(&self, wd: i32) -> Result<()> {
        match inotify::remove_watch(&self.fd, wd) {
            Err(Errno::INVAL) => Ok(()),
            done => done,
        }
    }

    /// Waits until there is something to read. False: `timeout` passed (`None`: never), or a signal came.
    pub fn poll(&self, timeout: Option<&Timespec>) -> Result<bool> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The records waiting now, as many as fit; none when there are none. At least 272 bytes of buffer.
    pub fn read<'a>(&self, buffer: &'a mut [u8]) -> Result<Records<'a>> {
        let length = match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut *buffer)) {
            Ok(length) => length,
            Err(Errno::AGAIN) => 0,
            Err(e) => return Err(e),
        };
        Ok(Records::parse(buffer.get(..length).ok_or(Errno::IO)?))
    }

    /// How many bytes of records wait.
    pub fn pending_bytes(&self) -> Result<u64> {
        rustix::io::ioctl_fionread(&self.fd)
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// -1 of an overflow.
    pub wd: i32,
    pub mask: u32,
    /// Ties `MOVED_FROM` and `MOVED_TO`; 0 otherwise.
    pub cookie: u32,
    /// `None`: about the watched directory itself.
    pub name: Option<&'a [u8]>,
}

impl Record<'_> {
    /// Records after this one were dropped.
    pub fn overflow(&self) -> bool {
        self.mask & mask::OVERFLOW != 0
    }
    pub fn is_dir(&self) -> bool {
        self.mask & mask::ISDIR != 0
    }
    pub fn is_content(&self) -> bool {
        self.mask & (mask::MODIFY | mask::CLOSE_WRITE) != 0
    }
}

/// The bytes are not what inotify(7) describes. Something is out of step: look at everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("inotify record is malformed: {0}")]
pub struct Malformed(pub &'static str);

/// The records in a buffer, oldest first. Stops after the first malformed one.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    pub fn parse(bytes: &'a [u8]) -> Records<'a> {
        Records { rest: bytes }
    }
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
    /// Bytes of the records not taken yet.
    pub fn bytes(&self) -> u64 {
        self.rest.len() as u64
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = std::result::Result<Record<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match record(self.rest) {
            Ok((record, rest)) => {
                self.rest = rest;
                Some(Ok(record))
            }
            Err(e) => {
                self.rest = &[];
                Some(Err(e))
            }
        }
    }
}

fn record(bytes: &[u8]) -> std::result::Result<(Record<'_>, &[u8]), Malformed> {
    let (head, rest) = bytes
        .split_first_chunk::<16>()
        .ok_or(Malformed("cut short"))?;
    let [a, b, c, d] = [0, 1, 2, 3].map(|field| {
        let mut word = [0; 4];
        word.copy_from_slice(&head[field * 4..field * 4 + 4]);
        word
    });
    let length = u32::from_ne_bytes(d) as usize;
    let (padded, rest) = rest
        .split_at_checked(length)
        .ok_or(Malformed("name longer than the buffer"))?;
    let name = match padded {
        [] => None,
        _ => {
            let end = padded
                .iter()
                .position(|&b| b == 0)
                .ok_or(Malformed("name without end"))?;
            let name = padded.get(..end).unwrap_or_default();
            let sound = !name.is_empty()
                && name.len() <= 255
                && name != b"."
                && name != b".."
                && !name.contains(&b'/');
            Some(if sound {
                Ok(name)
            } else {
                Err(Malformed("not a name"))
            }?)
        }
    };
    let record = Record {
        wd: i32::from_ne_bytes(a),
        mask: u32::from_ne_bytes(b),
        cookie: u32::from_ne_bytes(c),
        name,
    };
    Ok((record, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;

    fn bytes_of(wd: i32, mask: u32, cookie: u32, name: &[u8], length: u32) -> Vec<u8> {
        let mut out = wd.to_ne_bytes().to_vec();
        out.extend(mask.to_ne_bytes());
        out.extend(cookie.to_ne_bytes());
        out.extend(length.to_ne_bytes());
        out.extend(name);
        out
    }

    #[test]
    fn every_field_is_read() {
        let bytes = [
            bytes_of(3, mask::MOVED_TO, 9, b"abc\0\0\0\0\0", 8),
            bytes_of(-1, mask::OVERFLOW, 0, b"", 0),
        ]
        .concat();
        let records: Vec<_> = Records::parse(&bytes)
            .map(std::result::Result::unwrap)
            .collect();
        assert_eq!(
            records[0],
            Record {
                wd: 3,
                mask: mask::MOVED_TO,
                cookie: 9,
                name: Some(b"abc")
            }
        );
        assert!(records[1].overflow() && records[1].name.is_none());
    }

    #[test]
    fn wrong_bytes_are_named() {
        let said = |bytes: &[u8]| {
            Records::parse(bytes)
                .find_map(std::result::Result::err)
                .map(|e| e.0)
        };
        assert_eq!(said(&[0; 15]), Some("cut short"));
        assert_eq!(
            said(&bytes_of(1, 1, 0, b"a\0\0\0", 8)),
            Some("name longer than the buffer")
        );
        assert_eq!(
            said(&bytes_of(1, 1, 0, b"abcd", 4)),
            Some("name without end")
        );
        assert_eq!(said(&bytes_of(1, 1, 0, b"..\0\0", 4)), Some("not a name"));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for record in Records::parse(&bytes).flatten() {
                prop_assert!(record.name.is_none_or(|n| !n.is_empty() && n.len() <= 255));
            }
        }
    }

    fn drain(group: &Group) -> Vec<(i32, u32, Option<Vec<u8>>)> {
        let mut buffer = vec![0; 4096];
        let mut out = Vec::new();
        loop {
            let records = group.read(&mut buffer).unwrap();
            if records.is_empty() {
                return out;
            }
            out.extend(
                records
                    .map(|r| r.unwrap())
                    .map(|r| (r.wd, r.mask, r.name.map(<[u8]>::to_vec))),
            );
        }
    }

    #[test]
    fn tells_of_changes_by_an_o_path_descriptor() {
        let t = tempfile::tempdir().unwrap();
        let group = Group::new().unwrap();
        let dir = crate::sys::open::path(File::open(t.path().parent().unwrap()).unwrap(), {
            use std::os::unix::ffi::OsStrExt;
            t.path().file_name().unwrap().as_bytes()
        });
        let dir = dir.unwrap();
        let wd = group.add(&dir).unwrap();
        assert_eq!(group.add(File::open(t.path()).unwrap()).unwrap(), wd);
        assert!(!group.poll(Some(&Timespec::default())).unwrap());
        std::fs::write(t.path().join("f"), b"x").unwrap();
        std::fs::rename(t.path().join("f"), t.path().join("g")).unwrap();
        assert!(group.poll(None).unwrap());
        assert!(group.pending_bytes().unwrap() > 0);
        let got = drain(&group);
        let name = |n: &[u8]| Some(n.to_vec());
        for want in [
            (wd, mask::CREATE, name(b"f")),
            (wd, mask::MODIFY, name(b"f")),
            (wd, mask::CLOSE_WRITE, name(b"f")),
            (wd, mask::MOVED_FROM, name(b"f")),
            (wd, mask::MOVED_TO, name(b"g")),
        ] {
            assert!(got.contains(&want), "{want:?} in {got:?}");
        }
        group.remove(wd).unwrap();
        assert_eq!(drain(&group), [(wd, mask::IGNORED, None)]);
        group.remove(wd).unwrap();
    }
}
