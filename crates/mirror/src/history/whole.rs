//! Which positions can be had whole: all from one on, and single ones before that. `STATE/catalogue/whole`; written before
//! anything goes that makes it smaller. Chapter "Catalogue" of `docs/FORMAT.md`.

use std::collections::BTreeSet;
use std::io;

use mirror_core::history::Moment;
use mirror_core::history::retention::Version;

use crate::disk::{Disk, read_file, replace_file};

const FILE: &str = "catalogue/whole";
const FORMAT: &str = "fs_mirror whole 1";
/// Some thousands of positions.
const BYTES_MAX: usize = 4 << 20;
/// More are not promised: the oldest go first.
pub const POSITIONS_MAX: usize = 100_000;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Whole {
    /// From here on every position is whole, as far as history goes.
    pub all_from: Moment,
    /// Before that, these are.
    pub some: BTreeSet<Moment>,
}

impl Whole {
    /// Nothing was ever pruned where there is no such file.
    pub fn load(disk: &dyn Disk) -> io::Result<Whole> {
        match read_file(disk, FILE, BYTES_MAX) {
            Ok(bytes) => decode(&bytes).ok_or_else(|| {
                let text = format!("{FILE} is damaged: which positions are whole is not known");
                io::Error::new(io::ErrorKind::InvalidData, text)
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Whole::default()),
            Err(e) => Err(e),
        }
    }

    pub fn save(&self, disk: &dyn Disk) -> io::Result<()> {
        replace_file(disk, FILE, &self.encode())
    }

    /// `position`: of a group that history knows.
    pub fn has(&self, position: Moment) -> bool {
        position >= self.all_from || self.some.contains(&position)
    }

    /// A version goes: no position at which it was current is whole any more.
    pub fn lacks(&mut self, version: &Version) {
        self.all_from = self.all_from.max(version.z);
        let gone: Vec<Moment> = self
            .some
            .range(version.a..version.z.max(version.a))
            .copied()
            .collect();
        for position in gone {
            self.some.remove(&position);
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut text = format!("{FORMAT}\nall_from {:016x}\n", self.all_from.0);
        for position in self.some.iter().rev().take(POSITIONS_MAX).rev() {
            text.push_str(&format!("{:016x}\n", position.0));
        }
        let crc = crc32c::crc32c(text.as_bytes());
        format!("{text}crc {crc:08x}\n").into_bytes()
    }
}

fn decode(bytes: &[u8]) -> Option<Whole> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (body, crc) = text.strip_suffix('\n')?.rsplit_once("crc ")?;
    if u32::from_str_radix(crc, 16).ok()? != crc32c::crc32c(body.as_bytes()) {
        return None;
    }
    let mut lines = body.lines();
    if lines.next()? != FORMAT {
        return None;
    }
    let number = |text: &str| u64::from_str_radix(text, 16).ok().map(Moment);
    Some(Whole {
        all_from: number(lines.next()?.strip_prefix("all_from ")?)?,
        some: lines.map(number).collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_core::history::retention::MirrorTime;

    #[test]
    fn it_is_read_as_it_was_written_and_shrinks_by_what_goes() {
        let mut whole = Whole {
            all_from: Moment(70),
            some: [10, 20, 30, 60].map(Moment).into(),
        };
        let bytes = whole.encode();
        assert_eq!(decode(&bytes), Some(whole.clone()));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&bad), None, "byte {at}");
        }
        let version = |a, z| Version {
            from: MirrorTime(0),
            until: MirrorTime(1),
            a: Moment(a),
            z: Moment(z),
        };
        whole.lacks(&version(11, 30));
        assert_eq!(whole.some, [10, 30, 60].map(Moment).into());
        assert!(whole.has(Moment(70)) && !whole.has(Moment(69)) && whole.has(Moment(30)));
        whole.lacks(&version(60, 80));
        assert_eq!((whole.all_from, whole.some.len()), (Moment(80), 2));
    }
}
