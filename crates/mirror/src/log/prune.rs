//! Dropping old segments, records and contents in step.

use mirror_core::Position;

use super::segment::{self, Header};
use super::{LogError, PruneLimits, PruneStats, Shared, io_error, lock, recover};

/// A content is put before the record that names it: content segments before the one that a log segment began with
/// are kept by this number.
const CONTENT_SEGMENTS_EARLY: u64 = 1;

/// The first content segment that records from this log segment on may name.
fn content_from(header: &Header) -> u64 {
    header.content_from.saturating_sub(CONTENT_SEGMENTS_EARLY)
}

pub fn prune(
    shared: &Shared,
    keep_from: Position,
    limits: &PruneLimits,
) -> Result<PruneStats, LogError> {
    let mut stats = PruneStats::default();
    let headers: Vec<Header> = lock(&shared.segments).values().copied().collect();
    let mut sizes = Vec::new();
    for header in &headers {
        let len = recover::open(&*shared.disk, header.first)?.len();
        sizes.push(len.map_err(|error| io_error("read", &segment::name(header.first), error))?);
    }
    let contents = shared.content.sizes()?;
    let mut log_bytes: u64 = sizes.iter().sum();
    let mut keep_content = headers.first().map_or(0, content_from);
    for (pair, size) in headers.windows(2).zip(sizes) {
        let [old, next] = pair else {
            break;
        };
        let content_bytes: u64 = contents.range(keep_content..).map(|(_, bytes)| bytes).sum();
        let over = limits.log_bytes_max.is_some_and(|max| log_bytes > max)
            || limits
                .content_bytes_max
                .is_some_and(|max| content_bytes > max)
            || limits
                .oldest_time_ns
                .is_some_and(|oldest| next.time_ns < oldest);
        if !over || next.first > keep_from {
            break;
        }
        let name = segment::name(old.first);
        // Readers are told first. Names go one by one, so that a crash can't leave a hole.
        lock(&shared.segments).remove(&old.first);
        shared
            .disk
            .remove(&name)
            .map_err(|error| io_error("remove", &name, error))?;
        shared
            .disk
            .flush_dir(segment::DIR)
            .map_err(|error| io_error("flush", segment::DIR, error))?;
        stats.log_segments += 1;
        stats.bytes += size;
        log_bytes -= size;
        keep_content = content_from(next);
    }
    for (number, bytes) in contents.range(..keep_content) {
        shared.content.remove(*number)?;
        stats.content_segments += 1;
        stats.bytes += bytes;
    }
    if stats.content_segments > 0 {
        shared.content.flush_names()?;
    }
    Ok(stats)
}
