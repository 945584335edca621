//! Parsing what fanotify writes (`struct fanotify_event_metadata` and the info records behind it). Every length is
//! checked; bytes that make no sense are an error, never a panic and never a guess.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use mirror_core::types::Handle;

use super::mask;
use crate::sys::handle::BYTES_MAX;

const METADATA_BYTES: usize = 24;
const METADATA_VERSION: u8 = 3;

/// The bytes are not what fanotify(7) describes. Something is out of step: look at everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("fanotify record is malformed: {0}")]
pub struct Malformed(pub &'static str);

/// A file system, as `statfs` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fsid(pub [i32; 2]);

/// A file handle inside the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HandleRef<'a> {
    pub kind: i32,
    pub bytes: &'a [u8],
}

impl HandleRef<'_> {
    pub fn to_handle(self) -> Handle {
        Handle {
            kind: self.kind,
            bytes: self.bytes.into(),
        }
    }
}

/// One event. Merged ones carry several bits, and their order is lost.
#[derive(Debug, Default)]
pub struct Record<'a> {
    /// Bits of [`mask`].
    pub mask: u64,
    /// As this pid namespace sees it. `None`: unknown, or from outside it.
    pub pid: Option<u32>,
    pub fsid: Option<Fsid>,
    /// The directory it happened in, with `name`. Of a change to a directory itself: that directory, and `.`.
    pub dir: Option<HandleRef<'a>>,
    /// One component; may be dead by now.
    pub name: Option<&'a [u8]>,
    /// The object itself. The only thing told about an inode whose name is not known.
    pub object: Option<HandleRef<'a>>,
    /// Both sides of a rename.
    pub old: Option<(HandleRef<'a>, &'a [u8])>,
    pub new: Option<(HandleRef<'a>, &'a [u8])>,
    /// Records after this one were dropped: all that is marked must be looked at, after reading this.
    pub overflow: bool,
    /// The process, where the group asked for it and it still was there.
    pub pidfd: Option<OwnedFd>,
}

impl Record<'_> {
    pub fn is_dir(&self) -> bool {
        self.mask & mask::ONDIR != 0
    }
    /// The bytes of a file may have changed.
    pub fn is_content(&self) -> bool {
        self.mask & (mask::MODIFY | mask::CLOSE_WRITE) != 0
    }
    /// About the directory `dir` itself.
    pub fn is_self(&self) -> bool {
        self.name == Some(b".")
    }
}

/// The records in a buffer, oldest first. Stops after the first malformed one: what follows has no known start.
#[derive(Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    /// The bytes are the kernel's, so the pidfds in `rest` are open, and ours.
    live: bool,
}

impl<'a> Records<'a> {
    /// Over bytes of any origin. Pidfds in them are ignored.
    pub fn parse(bytes: &'a [u8]) -> Records<'a> {
        Records {
            rest: bytes,
            live: false,
        }
    }

    /// # Safety
    /// `bytes` is what one `read` of a fanotify group returned, and only one `Records` is ever made of it.
    pub(super) unsafe fn from_kernel(bytes: &'a [u8]) -> Records<'a> {
        Records {
            rest: bytes,
            live: true,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Bytes behind the record that came last.
    pub fn left(&self) -> usize {
        self.rest.len()
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match event(self.rest) {
            Ok((mut record, pidfd, rest)) => {
                self.rest = rest;
                if self.live {
                    // SAFETY: live bytes hold open descriptors of ours, and `rest` has just left this one behind.
                    record.pidfd = pidfd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                }
                Some(Ok(record))
            }
            Err(e) => {
                self.rest = &[];
                Some(Err(e))
            }
        }
    }
}

impl Drop for Records<'_> {
    /// Closes the pidfds of records nobody looked at.
    fn drop(&mut self) {
        if self.live {
            for record in self {
                drop(record);
            }
        }
    }
}

/// One event: the record, its pidfd, and the bytes behind it.
fn event(bytes: &[u8]) -> Result<(Record<'_>, Option<RawFd>, &[u8]), Malformed> {
    let mut head = Reader(bytes);
    let event_length = head.u32()? as usize;
    let version = head.u8()?;
    head.u8()?;
    let head_length = usize::from(head.u16()?);
    let mask = head.u64()?;
    let _fd = head.i32()?;
    let pid = head.i32()?;
    if version != METADATA_VERSION {
        return Err(Malformed("unknown version"));
    }
    if head_length < METADATA_BYTES || event_length < head_length {
        return Err(Malformed("event shorter than its head"));
    }
    let (event, rest) = bytes
        .split_at_checked(event_length)
        .ok_or(Malformed("event longer than the buffer"))?;
    let mut infos = event.get(head_length..).unwrap_or_default();
    let mut record = Record {
        mask,
        pid: u32::try_from(pid).ok().filter(|&pid| pid != 0),
        overflow: mask & mask::OVERFLOW != 0,
        ..Record::default()
    };
    let mut pidfd = None;
    while !infos.is_empty() {
        let mut reader = Reader(infos);
        let kind = reader.u8()?;
        reader.u8()?;
        let length = usize::from(reader.u16()?);
        if length < 4 {
            return Err(Malformed("info shorter than its head"));
        }
        let (whole, behind) = infos
            .split_at_checked(length)
            .ok_or(Malformed("info longer than its event"))?;
        infos = behind;
        info(
            kind,
            Reader(whole.get(4..).unwrap_or_default()),
            &mut record,
            &mut pidfd,
        )?;
    }
    Ok((record, pidfd, rest))
}

fn info<'a>(
    kind: u8,
    mut body: Reader<'a>,
    record: &mut Record<'a>,
    pidfd: &mut Option<RawFd>,
) -> Result<(), Malformed> {
    match kind {
        libc::FAN_EVENT_INFO_TYPE_FID => record.object = body.fid(record)?,
        libc::FAN_EVENT_INFO_TYPE_DFID => record.dir = body.fid(record)?,
        libc::FAN_EVENT_INFO_TYPE_DFID_NAME => {
            record.dir = body.fid(record)?;
            record.name = Some(body.name()?);
        }
        libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME => {
            record.old = body.fid(record)?.zip(Some(body.name()?))
        }
        libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME => {
            record.new = body.fid(record)?.zip(Some(body.name()?))
        }
        // FAN_NOPIDFD, FAN_EPIDFD: it is gone, or we have no descriptors left.
        libc::FAN_EVENT_INFO_TYPE_PIDFD => *pidfd = Some(body.i32()?).filter(|&fd| fd >= 0),
        // A newer kernel's; nothing of what we asked for.
        _ => {}
    }
    Ok(())
}

/// Takes fields off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(Malformed("cut short"))?;
        self.0 = rest;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed("cut short"))?;
        self.0 = rest;
        Ok(*taken)
    }
    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_ne_bytes(self.array()?))
    }
    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_ne_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_ne_bytes(self.array()?))
    }
    fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_ne_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_ne_bytes(self.array()?))
    }

    /// `fsid` and `struct file_handle`; `None`: the file system could not encode one.
    fn fid(&mut self, record: &mut Record<'a>) -> Result<Option<HandleRef<'a>>, Malformed> {
        record.fsid = Some(Fsid([self.i32()?, self.i32()?]));
        let length = self.u32()? as usize;
        let kind = self.i32()?;
        if length > BYTES_MAX {
            return Err(Malformed("handle too long"));
        }
        let bytes = self.bytes(length)?;
        Ok((length > 0).then_some(HandleRef { kind, bytes }))
    }

    /// A C string, padded with NULs.
    fn name(&mut self) -> Result<&'a [u8], Malformed> {
        let end = self
            .0
            .iter()
            .position(|&b| b == 0)
            .ok_or(Malformed("name without end"))?;
        let name = self.bytes(end)?;
        let sound = !name.is_empty() && name.len() <= 255 && name != b".." && !name.contains(&b'/');
        if sound {
            Ok(name)
        } else {
            Err(Malformed("not a name"))
        }
    }
}

/// Records as the kernel writes them.
#[cfg(test)]
pub mod written {
    /// Of the file system 7, 8.
    pub fn fid(kind: u8, handle: &[u8], name: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![7, 0, 0, 0, 8, 0, 0, 0];
        body.extend((handle.len() as u32).to_ne_bytes());
        body.extend(1i32.to_ne_bytes());
        body.extend(handle);
        if let Some(name) = name {
            body.extend(name);
            body.push(0);
        }
        body.resize(body.len().next_multiple_of(4), 0);
        let mut out = vec![kind, 0];
        out.extend((body.len() as u16 + 4).to_ne_bytes());
        out.extend(body);
        out
    }

    pub fn event_of(mask: u64, pid: i32, infos: &[Vec<u8>]) -> Vec<u8> {
        let infos = infos.concat();
        let mut out = (24 + infos.len() as u32).to_ne_bytes().to_vec();
        out.extend([3, 0]);
        out.extend(24u16.to_ne_bytes());
        out.extend(mask.to_ne_bytes());
        out.extend((-1i32).to_ne_bytes());
        out.extend(pid.to_ne_bytes());
        out.extend(infos);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::written::{event_of, fid};
    use super::*;
    use proptest::prelude::*;

    fn pidfd(fd: i32) -> Vec<u8> {
        let mut out = vec![libc::FAN_EVENT_INFO_TYPE_PIDFD, 0];
        out.extend(8u16.to_ne_bytes());
        out.extend(fd.to_ne_bytes());
        out
    }

    fn sample() -> Vec<u8> {
        [
            event_of(
                mask::CREATE,
                17,
                &[
                    fid(2, b"dirhandl", Some(b"name")),
                    fid(1, b"objectha", None),
                ],
            ),
            event_of(
                mask::RENAME | mask::ONDIR,
                0,
                &[
                    fid(10, b"old_old_", Some(b"a")),
                    fid(12, b"new_new_", Some(b"\xff\n")),
                    fid(1, b"objectha", None),
                ],
            ),
            event_of(mask::ATTRIB, 1, &[fid(1, b"x", None), pidfd(5)]),
            event_of(mask::OVERFLOW, 0, &[]),
        ]
        .concat()
    }

    #[test]
    fn every_field_is_read() {
        let bytes = sample();
        let records: Vec<_> = Records::parse(&bytes).map(Result::unwrap).collect();
        let [create, rename, attrib, overflow] = records.as_slice() else {
            panic!("{records:?}")
        };
        assert_eq!(
            (create.mask, create.pid, create.fsid),
            (mask::CREATE, Some(17), Some(Fsid([7, 8])))
        );
        assert_eq!(
            create.dir,
            Some(HandleRef {
                kind: 1,
                bytes: b"dirhandl"
            })
        );
        assert_eq!(create.name, Some(&b"name"[..]));
        assert_eq!(create.object.map(|o| o.bytes), Some(&b"objectha"[..]));
        assert!(rename.is_dir() && rename.pid.is_none() && rename.dir.is_none());
        assert_eq!(
            rename.old,
            Some((
                HandleRef {
                    kind: 1,
                    bytes: b"old_old_"
                },
                &b"a"[..]
            ))
        );
        assert_eq!(
            rename.new,
            Some((
                HandleRef {
                    kind: 1,
                    bytes: b"new_new_"
                },
                &b"\xff\n"[..]
            ))
        );
        assert!(attrib.dir.is_none() && attrib.object.is_some() && attrib.pidfd.is_none());
        assert!(overflow.overflow && overflow.object.is_none() && overflow.fsid.is_none());
    }

    #[test]
    fn a_zero_length_handle_is_none() {
        let bytes = event_of(mask::MODIFY, 1, &[fid(1, b"", None)]);
        let record = Records::parse(&bytes).next().unwrap().unwrap();
        assert_eq!(record.object, None);
    }

    #[test]
    fn wrong_bytes_are_named() {
        let said = |bytes: &[u8]| Records::parse(bytes).find_map(Result::err).map(|e| e.0);
        let good = event_of(mask::CREATE, 1, &[fid(2, b"d", Some(b"n"))]);
        assert_eq!(said(&good), None);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        assert_eq!(said(&with(4, 2)), Some("unknown version"));
        assert_eq!(said(&with(0, 200)), Some("event longer than the buffer"));
        assert_eq!(said(&with(0, 5)), Some("event shorter than its head"));
        assert_eq!(said(&with(6, 3)), Some("event shorter than its head"));
        assert_eq!(said(&with(26, 3)), Some("info shorter than its head"));
        assert_eq!(said(&with(26, 200)), Some("info longer than its event"));
        assert_eq!(said(&with(36, 129)), Some("handle too long"));
        assert_eq!(said(&with(36, 90)), Some("cut short"));
        assert_eq!(
            said(&event_of(0, 1, &[fid(2, b"d", Some(b".."))])),
            Some("not a name")
        );
        assert_eq!(
            said(&event_of(0, 1, &[fid(2, b"d", Some(b"a/b"))])),
            Some("not a name")
        );
        assert_eq!(
            said(&event_of(0, 1, &[fid(2, b"dirh", None)])),
            Some("name without end")
        );
        assert_eq!(
            said(&good[..good.len() - 1]),
            Some("event longer than the buffer")
        );
        assert_eq!(said(&good[..10]), Some("cut short"));
    }

    fn walk(bytes: &[u8]) {
        let mut records = Records::parse(bytes);
        let mut count = 0;
        while let Some(record) = records.next() {
            count += 1;
            if let Ok(record) = record {
                for handle in [record.dir, record.object].into_iter().flatten() {
                    assert!(handle.bytes.len() <= 128);
                }
                assert!(record.name.is_none_or(|n| !n.is_empty() && n.len() <= 255));
            } else {
                assert!(records.next().is_none());
            }
        }
        assert!(count <= bytes.len() / METADATA_BYTES + 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            walk(&bytes);
        }
        #[test]
        fn changed_bytes_never_panic(
            changes in proptest::collection::vec((0usize..400, any::<u8>()), 1..6),
            cut in 0usize..400,
        ) {
            let mut bytes = sample();
            for (at, byte) in changes {
                let length = bytes.len();
                bytes[at % length] = byte;
            }
            bytes.truncate(cut.max(1));
            walk(&bytes);
        }
    }
}
