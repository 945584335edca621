//! The bytes of two files of one size, and where they have none.

use std::os::fd::BorrowedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::sys;

/// Holes are compared by blocks of this size, whatever the file systems' own are.
const BLOCK: u64 = 4096;
const XFS_MAGIC: u64 = 0x5846_5342;

/// Ranges [start, end) in order, apart from each other. In [`data`] and [`surplus`]: multiples of [`BLOCK`].
pub type Ranges = Vec<(u64, u64)>;

/// Which blocks the file says hold data.
pub fn data(fd: BorrowedFd<'_>, size: u64) -> Result<Ranges, Errno> {
    let mut found = Ranges::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                return Ok(vec![(0, size.next_multiple_of(BLOCK))]);
            }
            Err(e) => return Err(e),
        };
        let end = match rustix::fs::seek(fd, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e),
        };
        if end <= start {
            break;
        }
        found.push((start / BLOCK * BLOCK, end.next_multiple_of(BLOCK)));
        at = end;
    }
    Ok(union(found))
}

/// Blocks that `right` takes up where `left` has neither data nor blocks. Not asked of xfs, which allocates ahead.
pub fn surplus(
    left: BorrowedFd<'_>,
    right: BorrowedFd<'_>,
    left_data: &Ranges,
    size: u64,
) -> Ranges {
    if rustix::fs::fstatfs(right).is_ok_and(|fs| fs.f_type as u64 == XFS_MAGIC) {
        return Ranges::new();
    }
    let Ok(taken) = sys::extents(right) else {
        return Ranges::new();
    };
    let mut allowed = left_data.clone();
    allowed.extend(whole_blocks(sys::extents(left).unwrap_or_default()));
    let end = size.next_multiple_of(BLOCK);
    subtract(&union(whole_blocks(taken)), &union(allowed))
        .into_iter()
        .filter(|range| range.0 < end)
        .map(|(start, stop)| (start, stop.min(end)))
        .collect()
}

/// The offset of the first byte that differs, looking only where one of the two has data.
pub fn first_difference(
    left: BorrowedFd<'_>,
    right: BorrowedFd<'_>,
    ranges: Ranges,
    size: u64,
    buffers: &mut (Vec<u8>, Vec<u8>),
) -> Result<Option<u64>, Errno> {
    let (a, b) = buffers;
    for (start, end) in union(ranges) {
        let mut at = start;
        let end = end.min(size);
        while at < end {
            let want = (end - at).min(a.len() as u64) as usize;
            let got = read_full(left, &mut a[..want], at)?;
            let other = read_full(right, &mut b[..want], at)?;
            let both = got.min(other);
            if a[..both] != b[..both] {
                let offset = a[..both].iter().zip(&b[..both]).position(|(x, y)| x != y);
                return Ok(Some(at + offset.unwrap_or(0) as u64));
            }
            if got != other {
                return Ok(Some(at + both as u64));
            }
            if got < want {
                // Both became shorter while we looked.
                break;
            }
            at += want as u64;
        }
    }
    Ok(None)
}

fn read_full(fd: BorrowedFd<'_>, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::pread(fd, &mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Whether both have data in the same blocks, but for blocks called data that were never written: room that is only
/// reserved (`fallocate`, or ahead of a shared block's copy on xfs) is data while the page cache knows the bytes, which
/// reading brings about, and a hole again later.
pub fn same_data(
    left: BorrowedFd<'_>,
    right: BorrowedFd<'_>,
    left_data: &Ranges,
    right_data: &Ranges,
) -> bool {
    let only_cached = |fd, data: &Ranges, other: &Ranges| {
        let apart = subtract(data, other);
        let Ok(extents) = sys::extents(fd) else {
            return apart.is_empty();
        };
        let written = union(whole_blocks(
            extents.into_iter().filter(|extent| !extent.unwritten),
        ));
        subtract(&apart, &written) == apart
    };
    left_data == right_data
        || (only_cached(left, left_data, right_data) && only_cached(right, right_data, left_data))
}

fn whole_blocks(extents: impl IntoIterator<Item = sys::Extent>) -> Ranges {
    let blocks = |extent: sys::Extent| {
        let end = extent.start.saturating_add(extent.length);
        (
            extent.start / BLOCK * BLOCK,
            end.div_ceil(BLOCK).saturating_mul(BLOCK),
        )
    };
    extents.into_iter().map(blocks).collect()
}

pub fn union(mut ranges: Ranges) -> Ranges {
    ranges.sort_unstable();
    let mut out = Ranges::new();
    for (start, end) in ranges {
        match out.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => out.push((start, end)),
        }
    }
    out
}

/// What of `from` no range of `without` covers. Both are unions.
fn subtract(from: &Ranges, without: &Ranges) -> Ranges {
    let mut out = Ranges::new();
    for &(mut start, end) in from {
        for &(covered, to) in without {
            if to <= start {
                continue;
            }
            if covered >= end {
                break;
            }
            if covered > start {
                out.push((start, covered));
            }
            start = to;
        }
        if start < end {
            out.push((start, end));
        }
    }
    out
}

/// Ranges for a person, the first few.
pub fn show(ranges: &Ranges) -> String {
    let mut out: Vec<String> = ranges
        .iter()
        .take(8)
        .map(|(start, end)| format!("{start}..{end}"))
        .collect();
    if ranges.len() > 8 {
        out.push(format!("and {} more", ranges.len() - 8));
    }
    if out.is_empty() {
        "nothing".into()
    } else {
        out.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_and_part() {
        assert_eq!(
            union(vec![(8, 9), (0, 2), (2, 4), (1, 3)]),
            vec![(0, 4), (8, 9)]
        );
        assert_eq!(
            subtract(&vec![(0, 10), (20, 30)], &vec![(2, 3), (8, 25)]),
            vec![(0, 2), (3, 8), (25, 30)]
        );
        assert_eq!(subtract(&vec![(0, 10)], &vec![(0, 10)]), vec![]);
    }
}
