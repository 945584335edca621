//! What happened to the history as a whole: where it begins, what was given a name. `STATE/catalogue/events`: frames as in
//! the catalogue, each with one event as JSON; read whole. Each is written to `events.spare`, too: whichever of both is
//! intact makes the other one again.

use std::io;
use std::sync::Arc;

use mirror_core::Digest;
use mirror_core::history::Moment;
use mirror_core::history::retention::{Era, Lock, MirrorTime, Policy};
use serde::{Deserialize, Serialize};

use super::format::{self, FRAME, FrameKind};
use crate::disk::{Disk, DiskFile, read_file, replace_file};

const NAME: &str = "catalogue/events";
const SPARE: &str = "catalogue/events.spare";
/// More is damage.
const BYTES_MAX: usize = 64 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// From here on all is written down; what was before is not known.
    Begin {
        moment: u64,
        there_ns: u64,
        here_ns: u64,
        why: Why,
    },
    /// A position got a name.
    Snapshot {
        name: String,
        moment: u64,
        /// The worker's clock at that position.
        there_ns: u64,
        /// When it was named.
        here_ns: u64,
        /// Nothing but `snapshot rm` lets it go.
        #[serde(default, skip_serializing_if = "is_false")]
        keep: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    },
    Removed {
        name: String,
        here_ns: u64,
    },
    /// Nothing older can be had any more.
    Pruned {
        moment: u64,
        here_ns: u64,
    },
    /// Versions went that `governance` had promised: somebody said so.
    Forced {
        here_ns: u64,
        versions: u64,
    },
    /// From here on this is kept, and so it is promised.
    Policy {
        here_ns: u64,
        lock: String,
        every: String,
        hourly: String,
        daily: String,
        weekly: String,
        monthly: String,
        timezone: String,
    },
    /// Very much changed at once; until it is cleared nothing is rotated or pruned.
    Alarm {
        /// The last position before it.
        moment: u64,
        here_ns: u64,
        what: String,
    },
    Cleared {
        here_ns: u64,
    },
    #[serde(other)]
    Unknown,
}

impl Event {
    pub fn policy(policy: &Policy, lock: Lock, here_ns: u64) -> Event {
        let [every, hourly, daily, weekly, monthly] = policy.settings().map(|(_, text)| text);
        Event::Policy {
            here_ns,
            lock: lock.name().into(),
            every,
            hourly,
            daily,
            weekly,
            monthly,
            timezone: policy.timezone.clone(),
        }
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Why history begins somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The copy was made.
    New,
    /// The copy was compared anew: what happened in between is not known.
    Compared,
    /// None was kept for a while.
    WasOff,
    /// Some of what was written down was damaged, and nothing was left to make it from.
    Damaged,
}

/// A position with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub name: String,
    pub moment: Moment,
    pub there_ns: u64,
    pub here_ns: u64,
    pub keep: bool,
    pub note: Option<String>,
}

/// See the module.
pub struct Events {
    files: [Arc<dyn DiskFile>; 2],
    head: Digest,
    pub all: Vec<Event>,
    broken: bool,
    /// What was damaged, to be told.
    pub told: Vec<String>,
    /// Some of them are lost: what is not known, nobody can say.
    pub lost: bool,
}

/// What one of both files holds.
#[derive(Default)]
struct Read {
    /// Up to where it is intact.
    bytes: Vec<u8>,
    all: Vec<Event>,
    head: Option<Digest>,
    /// It ends in something else.
    bad: bool,
    /// And after that more follows.
    hole: bool,
    is_there: bool,
    whole: Vec<u8>,
}

fn read(disk: &dyn Disk, name: &str) -> io::Result<Read> {
    let whole = match read_file(disk, name, BYTES_MAX) {
        Ok(whole) => whole,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Read::default()),
        Err(e) if super::catalogue::is_damage(&e) || e.kind() == io::ErrorKind::FileTooLarge => {
            return Ok(Read {
                bad: true,
                hole: true,
                is_there: true,
                ..Read::default()
            });
        }
        Err(e) => return Err(e),
    };
    let mut read = Read {
        is_there: true,
        ..Read::default()
    };
    let (mut at, mut head) = (0, Digest([0; 32]));
    while let Some(rest) = whole.get(at..).filter(|rest| !rest.is_empty()) {
        let header = format::header(rest).filter(|_| format::is_intact(rest));
        let header = header.filter(|_| format::continues(rest, &head));
        let event = header.and_then(|header| {
            let body = rest.get(FRAME..FRAME + header.body)?;
            match header.kind {
                FrameKind::Event => Some((header, Some(serde_json::from_slice(body).ok()?))),
                _ => Some((header, None)),
            }
        });
        let Some((header, event)) = event else {
            read.bad = true;
            // The last one may not have been flushed; one in the middle was.
            let later = rest.windows(4).enumerate().skip(1);
            let mut later = later.filter(|(_, magic)| *magic == b"FSMc");
            read.hole = later.any(|(at, _)| rest.get(at..).is_some_and(format::is_intact));
            break;
        };
        read.all.extend(event);
        (at, head) = (at + FRAME + header.body, header.head);
    }
    read.bytes = whole.get(..at).unwrap_or_default().to_vec();
    read.head = Some(head);
    read.whole = whole;
    Ok(read)
}

/// Intact ones of a damaged file, wherever they stand.
fn pick(whole: &[u8]) -> Vec<Event> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(rest) = whole.get(at..).filter(|rest| rest.len() >= FRAME) {
        at += 1;
        if let Some(header) = format::header(rest).filter(|_| format::is_intact(rest)) {
            let body = rest.get(FRAME..FRAME + header.body).unwrap_or_default();
            if header.kind == FrameKind::Event {
                found.extend(serde_json::from_slice(body).ok());
            }
            at += FRAME + header.body - 1;
        }
    }
    found
}

impl Events {
    /// Beside whoever has it open: only reads, and what is just being written is not there yet.
    pub fn look(disk: &dyn Disk) -> io::Result<Events> {
        let [a, b] = [read(disk, NAME)?, read(disk, SPARE)?];
        if [&a, &b].iter().all(|file| file.hole) {
            let text = format!("{NAME} is damaged, and so is its spare");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let best = if b.bytes.len() > a.bytes.len() { b } else { a };
        let head = best.head.unwrap_or(Digest([0; 32]));
        let mut events = Events::take(disk, (best.all, head), Vec::new(), false)?;
        events.broken = true;
        Ok(events)
    }

    pub fn open(disk: &dyn Disk) -> io::Result<Events> {
        disk.make_dir("catalogue")?;
        let both = [read(disk, NAME)?, read(disk, SPARE)?];
        let mut told = Vec::new();
        let holes = both.iter().all(|file| file.hole || !file.is_there);
        if holes && both.iter().any(|file| file.is_there) {
            // Nothing says what is missing: all that can be read, of the one that has more of it.
            for (name, file) in [NAME, SPARE].into_iter().zip(&both) {
                if file.is_there {
                    replace_file(disk, &format!("{name}.damaged"), &file.whole)?;
                }
            }
            let [a, b] = both.map(|file| pick(&file.whole));
            let most = if b.len() > a.len() { b } else { a };
            let (mut bytes, mut head) = (Vec::new(), Digest([0; 32]));
            for event in &most {
                let body = serde_json::to_vec(event).map_err(io::Error::other)?;
                let (frame, after) = format::frame(FrameKind::Event, false, &body, &head);
                bytes.extend_from_slice(&frame);
                head = after;
            }
            told.push(format!(
                "{NAME} was damaged, and so was its spare: both are set aside as {NAME}.damaged and {SPARE}.damaged"
            ));
            replace_file(disk, NAME, &bytes)?;
            replace_file(disk, SPARE, &bytes)?;
            return Events::take(disk, (most, head), told, true);
        }
        // The one that has more: a crash may have come between the two.
        let [a, b] = both;
        let (best, b_is_best) = match b.bytes.len() > a.bytes.len() {
            true => (b.bytes.clone(), true),
            false => (a.bytes.clone(), false),
        };
        for (name, file) in [(NAME, &a), (SPARE, &b)] {
            if file.is_there && !file.bad && file.bytes == best {
                continue;
            }
            replace_file(disk, name, &best)?;
            let end_only = !file.hole && best.starts_with(&file.bytes);
            match (end_only, file.bad) {
                // A crash came between the two.
                (true, false) => {}
                (true, true) => told.push(format!(
                    "{name} did not end as it must, as a crash may leave it: made again"
                )),
                (false, _) => told.push(format!(
                    "{name} was damaged: made again from its other copy"
                )),
            }
        }
        let best = if b_is_best { b } else { a };
        let head = best.head.unwrap_or(Digest([0; 32]));
        Events::take(disk, (best.all, head), told, false)
    }

    fn take(
        disk: &dyn Disk,
        (all, head): (Vec<Event>, Digest),
        told: Vec<String>,
        lost: bool,
    ) -> io::Result<Events> {
        Ok(Events {
            files: [disk.open(NAME)?, disk.open(SPARE)?],
            head,
            all,
            broken: false,
            told,
            lost,
        })
    }

    /// Durable on return.
    pub fn add(&mut self, event: Event) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("an earlier write failed"));
        }
        let body = serde_json::to_vec(&event).map_err(io::Error::other)?;
        let (frame, head) = format::frame(FrameKind::Event, false, &body, &self.head);
        self.broken = true;
        for file in &self.files {
            file.append(&frame)?;
            file.flush()?;
        }
        self.broken = false;
        self.head = head;
        self.all.push(event);
        Ok(())
    }

    /// Names of files that are not as they were written.
    pub fn check(disk: &dyn Disk) -> io::Result<Vec<&'static str>> {
        let mut found = Vec::new();
        let both = [read(disk, NAME)?, read(disk, SPARE)?];
        let [a, b] = &both;
        for (name, file) in [(NAME, a), (SPARE, b)] {
            let shorter = file.bytes.len() < a.bytes.len().max(b.bytes.len());
            if file.bad || shorter {
                found.push(name);
            }
        }
        Ok(found)
    }

    /// Oldest position first; of one name the last that got it.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        let mut found: Vec<Snapshot> = Vec::new();
        for event in &self.all {
            match event {
                Event::Snapshot {
                    name,
                    moment,
                    there_ns,
                    here_ns,
                    keep,
                    note,
                } => {
                    found.retain(|known| known.name != *name);
                    found.push(Snapshot {
                        name: name.clone(),
                        moment: Moment(*moment),
                        there_ns: *there_ns,
                        here_ns: *here_ns,
                        keep: *keep,
                        note: note.clone(),
                    });
                }
                Event::Removed { name, .. } => found.retain(|known| known.name != *name),
                _ => {}
            }
        }
        found.sort_by_key(|snapshot| snapshot.moment);
        found
    }

    /// What was in force, oldest first; the last one is. What can't be understood promised nothing we know of.
    pub fn policies(&self) -> Vec<Era> {
        let mut eras: Vec<Era> = Vec::new();
        for event in &self.all {
            let Event::Policy {
                here_ns,
                lock,
                every,
                hourly,
                daily,
                weekly,
                monthly,
                timezone,
            } = event
            else {
                continue;
            };
            let mut policy = Policy {
                timezone: timezone.clone(),
                ..Policy::default()
            };
            let pairs = [
                ("every", every),
                ("hourly", hourly),
                ("daily", daily),
                ("weekly", weekly),
                ("monthly", monthly),
            ];
            let set = pairs
                .into_iter()
                .all(|(key, text)| policy.set(key, text).is_ok());
            let Some(lock) = Lock::parse(lock).ok().filter(|_| set) else {
                continue;
            };
            let since = eras.last().map_or(MirrorTime(0), |era| era.since);
            let since = since.max(MirrorTime::of_ns(*here_ns));
            if let Some(era) = eras.last_mut() {
                era.until = Some(since);
            }
            eras.retain(|era| era.lock != Lock::Off);
            eras.push(Era {
                policy,
                lock,
                since,
                until: None,
            });
        }
        eras
    }

    /// The latest time of this host that is written down here.
    pub fn latest_ns(&self) -> Option<u64> {
        let here = |event: &Event| match event {
            Event::Begin { here_ns, .. }
            | Event::Snapshot { here_ns, .. }
            | Event::Removed { here_ns, .. }
            | Event::Pruned { here_ns, .. }
            | Event::Policy { here_ns, .. }
            | Event::Forced { here_ns, .. } => Some(*here_ns),
            Event::Alarm { here_ns, .. } | Event::Cleared { here_ns } => Some(*here_ns),
            Event::Unknown => None,
        };
        self.all.iter().filter_map(here).max()
    }

    /// Rows of groups up to here may be gone.
    pub fn dropped_until(&self) -> Moment {
        let moment = |event: &Event| match event {
            Event::Pruned { moment, .. } => Some(Moment(*moment)),
            _ => None,
        };
        self.all.iter().filter_map(moment).max().unwrap_or_default()
    }

    /// What nobody has looked at yet: when it was, here, the position before it, and what.
    pub fn alarm(&self) -> Option<(u64, Moment, &str)> {
        let last = self.all.iter().rev().find_map(|event| match event {
            Event::Alarm {
                moment,
                here_ns,
                what,
            } => Some(Some((*here_ns, Moment(*moment), what.as_str()))),
            Event::Cleared { .. } => Some(None),
            _ => None,
        });
        last.flatten()
    }

    /// Where history begins, newest last.
    pub fn begins(&self) -> impl DoubleEndedIterator<Item = (Moment, Why, u64, u64)> {
        self.all.iter().filter_map(|event| match event {
            Event::Begin {
                moment,
                why,
                there_ns,
                here_ns,
            } => Some((Moment(*moment), *why, *there_ns, *here_ns)),
            _ => None,
        })
    }
}
