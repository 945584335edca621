//! `mirror --dry-run` over ssh: the worker's records without contents, compared with what DST holds now.
//!
//! The records go into an index of our own in the system's temporary directory. By type, size, time, mode, owner and
//! link target, as a first look does; bytes are not read.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Metadata};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use mirror_core::model::apply_group;
use mirror_core::{Digest, Kind, Name, Object, ObjectId, Position, Record, codec, escape};

use super::far::{Far, Peer};
use super::receive::{RECORDS_BYTES_MAX, TYPING, handshake_max, hello, timeout_ms};
use crate::engine::applying::chain;
use crate::engine::event::{Event, RunEnd, RunError, Ui};
use crate::engine::options::{MirrorOptions, Owners};
use crate::engine::session::random_id;
use crate::engine::status::PathText;
use crate::index::{self, Index};
use crate::link::conn::{Incoming, escaped, silence};
use crate::link::message::{self as say, Cause, Message};
use crate::link::serve::now_ns;
use crate::link::{LinkError, Pulse};

/// Rows read at once.
const ROWS: usize = 256;

pub fn run(options: &MirrorOptions, far: &Far, ui: &dyn Ui) -> Result<RunEnd, RunError> {
    let scratch = Scratch::new()?;
    let failed = |e: index::IndexError| RunError::Failed(anyhow::anyhow!("{}", chain(&e)));
    let (mut rows, _) =
        Index::open(&scratch.0.join("index"), index::Options::default()).map_err(failed)?;
    let mut peer = far
        .connect()
        .map_err(|unreached| RunError::Unreachable(unreached.why))?;
    let Some(incoming) = peer.incoming.take() else {
        return Err(RunError::Unreachable("there is no stream".into()));
    };
    let done = fetch(options, far, &peer, incoming, &mut rows);
    let unlisted = match done {
        Ok(unlisted) => unlisted,
        Err(Stopped::Run(error)) => return Err(error),
        Err(Stopped::Asked) => {
            return Ok(RunEnd {
                stopped: true,
                ..RunEnd::default()
            });
        }
        Err(Stopped::Link(error)) => {
            return Err(RunError::Unreachable(far.why(&error, &mut peer)));
        }
    };
    drop(peer);
    compare(options, &rows, ui).map_err(failed)?;
    Ok(RunEnd {
        failed: unlisted,
        ..RunEnd::default()
    })
}

/// A directory of our own that goes again.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch, RunError> {
        let failed = |e: std::io::Error| {
            RunError::Failed(anyhow::anyhow!("cannot make a temporary directory: {e}"))
        };
        let id = random_id().map_err(failed)?;
        let name: String = id.iter().map(|b| format!("{b:02x}")).collect();
        let path = std::env::temp_dir().join(format!("fs_mirror-dry-run-{name}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(failed)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

enum Stopped {
    Link(LinkError),
    Run(RunError),
    Asked,
}

impl From<LinkError> for Stopped {
    fn from(error: LinkError) -> Stopped {
        Stopped::Link(error)
    }
}

/// The whole tree as of now; how many entries could not be read there.
fn fetch(
    options: &MirrorOptions,
    far: &Far,
    peer: &Peer,
    mut incoming: Incoming,
    rows: &mut Index,
) -> Result<u64, Stopped> {
    let host = escape(far.host.as_bytes());
    let out = &peer.outgoing;
    let pulse = Pulse::start(out, &incoming, || {
        Some(Message::from(say::Heartbeat {
            time_ns: now_ns(),
            end: None,
        }))
    })
    .map_err(|_| LinkError::Closed)?;
    peer.limit(&pulse);
    if far.terminal {
        pulse.agree(TYPING);
        pulse.handshake(Some(TYPING));
    }
    let refused = |no: say::Refused| {
        let line = format!("{host}: {}", escaped(&no.reason));
        Stopped::Run(match Cause::of(no.cause) {
            Cause::Usage => RunError::Usage(line),
            Cause::Forbidden => RunError::Unreachable(line),
            _ => RunError::Failed(anyhow::anyhow!(line)),
        })
    };
    out.send(hello(options, far, &[]))?;
    let mut frames = Vec::new();
    let (mut head, mut reached) = (codec::GENESIS, None);
    let mut until: Option<(Option<Position>, u64)> = None;
    let mut welcome = false;
    loop {
        if options.stop.requested() {
            return Err(Stopped::Asked);
        }
        if let Some((wanted, unlisted)) = until
            && wanted.is_none_or(|wanted| reached >= Some(wanted))
        {
            return Ok(unlisted);
        }
        let message = incoming.next_message()?;
        if let Some(came) = incoming.came() {
            out.send(came)?;
        }
        if welcome && !matches!(message, Message::Heartbeat(_)) {
            pulse.handshake(None);
        }
        match message {
            Message::Welcome(said) => {
                if said.features & say::FEATURE_PACKED != 0 {
                    incoming.unpacks();
                }
                welcome = true;
                pulse.handshake(Some(handshake_max(options)));
                pulse.agree(silence(timeout_ms(options)));
                out.send(say::Follow {
                    after: None,
                    bwlimit: options.bwlimit.get().unwrap_or(0),
                    records_only: true,
                    listed: false,
                    once: false,
                })?;
                out.send(say::Barrier { id: 1 })?;
            }
            Message::Refused(no) => return Err(refused(no)),
            Message::Seed(seed) => {
                if frames.len() + seed.bytes.len() > RECORDS_BYTES_MAX {
                    return Err(LinkError::Nonsense("a group of records has no end".into()).into());
                }
                frames.extend_from_slice(&seed.bytes);
                if seed.whole {
                    take(&std::mem::take(&mut frames), &mut head, rows)?;
                }
            }
            Message::SeedEnd(end) => {
                let end = crate::log::End::from(end.at);
                (head, reached) = (end.head, Some(end.position));
                out.send(say::Follow {
                    after: Some(say::At::from(end)),
                    bwlimit: options.bwlimit.get().unwrap_or(0),
                    records_only: true,
                    listed: false,
                    once: false,
                })?;
            }
            Message::BarrierDone(done) => {
                let report: crate::link::report::BarrierReport =
                    crate::link::report::parse(&done.report)
                        .map_err(|e| LinkError::Nonsense(e.to_string()))?;
                until = Some((done.position.map(Position::from), report.failed_total));
            }
            Message::Records(records) => {
                if frames.len() + records.bytes.len() > RECORDS_BYTES_MAX {
                    return Err(LinkError::Nonsense("a group of records has no end".into()).into());
                }
                frames.extend_from_slice(&records.bytes);
                if records.whole {
                    reached = take(&std::mem::take(&mut frames), &mut head, rows)?.or(reached);
                }
            }
            Message::Report(report) => {
                let report: crate::link::report::Report = crate::link::report::parse(&report.json)
                    .map_err(|e| LinkError::Nonsense(e.to_string()))?;
                if let Some(hold) = report.hold {
                    return Err(Stopped::Run(RunError::Held(hold)));
                }
            }
            _ => {}
        }
    }
}

fn take(frames: &[u8], head: &mut Digest, rows: &mut Index) -> Result<Option<Position>, LinkError> {
    let mut rest = frames;
    let mut group: Vec<Record> = Vec::new();
    let mut reached = None;
    while !rest.is_empty() {
        let (record, after, len) = codec::decode(rest, head)
            .map_err(|e| LinkError::Nonsense(format!("a record: {e:?}")))?;
        *head = after;
        rest = rest.get(len..).unwrap_or_default();
        let (end, position) = (record.end, record.position);
        group.push(record);
        if end {
            apply_group(rows, &group)
                .map_err(|e| LinkError::Nonsense(format!("its records do not fit: {e:?}")))?;
            group.clear();
            reached = Some(position);
        }
    }
    Ok(reached)
}

fn compare(options: &MirrorOptions, rows: &Index, ui: &dyn Ui) -> Result<(), index::IndexError> {
    let owners = options.owners == Owners::Apply;
    let extra = if crate::engine::dry_run::adopts(options) {
        "moved aside"
    } else {
        "removed"
    };
    let mut dirs: Vec<(ObjectId, Vec<u8>)> = vec![(ObjectId::ROOT, Vec::new())];
    while let Some((dir, below)) = dirs.pop() {
        if options.stop.requested() {
            return Ok(());
        }
        let to = options.dst.join(OsStr::from_bytes(&below));
        let mut here = names(&to);
        let path_of = |name: &[u8]| {
            let mut path = below.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            path
        };
        let would = |what: &'static str, path: &[u8]| {
            let path = PathText::new(path);
            ui.event(Event::Would { what, path });
        };
        let mut after: Option<Name> = None;
        loop {
            let children = rows.scan(dir, after.as_ref(), ROWS)?;
            let Some(last) = children.last() else { break };
            after = Some(last.name.clone());
            for child in children {
                let name = child.name.as_bytes();
                let path = path_of(name);
                let what = match here.remove(name) {
                    None => Some("new"),
                    Some(copy) => differs(
                        &child.object,
                        &copy,
                        &to.join(OsStr::from_bytes(name)),
                        owners,
                    ),
                };
                if let Some(what) = what {
                    would(what, &path);
                }
                if child.object.state.kind.is_dir() {
                    dirs.push((child.id, path));
                }
            }
        }
        for name in here.keys() {
            would(extra, &path_of(name));
        }
    }
    Ok(())
}

fn names(dir: &Path) -> BTreeMap<Vec<u8>, Metadata> {
    let Ok(entries) = fs::read_dir(dir) else {
        return BTreeMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let meta = fs::symlink_metadata(entry.path()).ok()?;
            Some((entry.file_name().into_vec(), meta))
        })
        .collect()
}

fn differs(object: &Object, copy: &Metadata, path: &Path, owners: bool) -> Option<&'static str> {
    let (kind, meta) = (&object.state.kind, &object.state.meta);
    let found = copy.file_type();
    let same_kind = match kind {
        Kind::Dir => found.is_dir(),
        Kind::File(_) => found.is_file(),
        Kind::Symlink(_) => found.is_symlink(),
        Kind::Device { block: true, .. } => found.is_block_device(),
        Kind::Device { block: false, .. } => found.is_char_device(),
        Kind::Fifo => found.is_fifo(),
        Kind::Socket => found.is_socket(),
    };
    if !same_kind {
        return Some("replaced");
    }
    let same_time =
        copy.mtime() == meta.mtime.seconds && copy.mtime_nsec() == i64::from(meta.mtime.nanos);
    match kind {
        Kind::File(content) if content.bytes != copy.len() || !same_time => {
            return Some("changed");
        }
        Kind::Symlink(target) => {
            let now = fs::read_link(path).ok();
            if now.is_none_or(|now| now.as_os_str().as_bytes() != &**target) {
                return Some("changed");
            }
        }
        _ => {}
    }
    let mode = if owners { 0o7777 } else { 0o777 };
    let same = same_time
        && copy.mode() & mode == u32::from(meta.mode) & mode
        && (!owners || (copy.uid(), copy.gid()) == (meta.uid, meta.gid));
    (!same).then_some("attributes")
}
