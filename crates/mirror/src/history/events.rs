//! What happened to the history as a whole: where it begins, what was given a name. `STATE/catalogue/events`: frames as in
//! the catalogue, each with one event as JSON; read whole.

use std::io;
use std::sync::Arc;

use mirror_core::Digest;
use mirror_core::history::Moment;
use mirror_core::history::retention::{Era, Lock, MirrorTime, Policy};
use serde::{Deserialize, Serialize};

use super::format::{self, FRAME, FrameKind};
use crate::disk::{Disk, DiskFile};

const NAME: &str = "catalogue/events";
/// More is damage.
const BYTES_MAX: u64 = 64 << 20;

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
    file: Arc<dyn DiskFile>,
    len: u64,
    head: Digest,
    pub all: Vec<Event>,
    broken: bool,
}

impl Events {
    pub fn open(disk: &dyn Disk) -> io::Result<Events> {
        Events::read(disk, true)
    }

    /// Beside whoever has it open: only reads, and what is just being written is not there yet.
    pub fn look(disk: &dyn Disk) -> io::Result<Events> {
        Events::read(disk, false)
    }

    fn read(disk: &dyn Disk, mend: bool) -> io::Result<Events> {
        disk.make_dir("catalogue")?;
        let file = match disk.open(NAME) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let file = disk.create(NAME)?;
                disk.flush_dir("catalogue")?;
                file
            }
            Err(e) => return Err(e),
        };
        let len = file.len()?;
        let damaged = |at: u64| {
            let text = format!("{NAME} is damaged at byte {at}");
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        if len > BYTES_MAX {
            return Err(damaged(BYTES_MAX));
        }
        let mut bytes = vec![0; len as usize];
        let got = file.read_at(0, &mut bytes)?;
        bytes.truncate(got);
        let mut events = Events {
            file,
            len: 0,
            head: Digest([0; 32]),
            all: Vec::new(),
            broken: false,
        };
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let Some(header) = format::header(rest).filter(|_| format::is_intact(rest)) else {
                // The last one may not have been flushed; one in the middle was.
                let later = rest.windows(4).enumerate().skip(1);
                let mut later = later.filter(|(_, magic)| *magic == b"FSMc");
                if later.any(|(at, _)| rest.get(at..).is_some_and(format::is_intact)) {
                    return Err(damaged(events.len));
                }
                if mend {
                    events.file.truncate(events.len)?;
                }
                break;
            };
            if !format::continues(rest, &events.head) {
                return Err(damaged(events.len));
            }
            let end = FRAME + header.body;
            if header.kind == FrameKind::Event {
                let event = serde_json::from_slice(&rest[FRAME..end]);
                events.all.push(event.map_err(|_| damaged(events.len))?);
            }
            events.len += end as u64;
            events.head = header.head;
            rest = &rest[end..];
        }
        Ok(events)
    }

    /// Durable on return.
    pub fn add(&mut self, event: Event) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("an earlier write failed"));
        }
        let body = serde_json::to_vec(&event).map_err(io::Error::other)?;
        let (frame, head) = format::frame(FrameKind::Event, &body, &self.head);
        self.broken = true;
        self.file.append(&frame)?;
        self.file.flush()?;
        self.broken = false;
        self.len += frame.len() as u64;
        self.head = head;
        self.all.push(event);
        Ok(())
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
