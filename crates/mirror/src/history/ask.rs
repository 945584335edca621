//! Questions about the past, as commands send them to the process that has the mirror, and the answers. One small question
//! is answered between two batches of apply; whatever takes long is many questions, about one position that does not move.

use std::path::PathBuf;

use mirror_core::history::{Moment, Unkept};
use mirror_core::{At, Name, ObjectId, Rows};
use serde::{Deserialize, Serialize};

use super::changes::{Change, Teller, merge_parts};
use super::events::{Event, Snapshot, Why};
use super::format::{self, Dated};
use super::prune::Report;
use super::slots::Slot;
use super::tree::{Entry, Here, PastError, Where};
use super::{History, HistoryError};
use crate::apply::Inode;
use crate::index::row::{body_decode, body_encode};

/// Rows of one answer, about.
pub const ROWS_MAX: usize = 4096;
/// Rows that are told at once: that takes longer.
const TOLD_MAX: usize = 1000;
/// Things asked for at once.
pub const ASKED_MAX: usize = 200;

/// Bytes as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hex(pub Vec<u8>);

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |n: u8| char::from(DIGITS[usize::from(n & 15)]);
        let text: String = self
            .0
            .iter()
            .flat_map(|b| [digit(b >> 4), digit(*b)])
            .collect();
        to.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Hex, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(from)?;
        let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
        let pairs = text.as_bytes().chunks(2);
        let byte = |pair: &[u8]| match pair {
            [a, b] => Some(digit(*a)? << 4 | digit(*b)?),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = pairs.map(byte).collect();
        bytes
            .map(Hex)
            .ok_or_else(|| serde::de::Error::custom("not hex"))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    Window,
    /// The last group at or before this time of the worker's clock, and the next one.
    Stand {
        there_ns: u64,
    },
    /// Likewise of a position.
    StandAt {
        moment: u64,
    },
    /// The same of this host's clock.
    StandHere {
        here_ns: u64,
    },
    Root {
        moment: u64,
    },
    Page {
        moment: u64,
        dir: u64,
        after: Option<Hex>,
    },
    Entry {
        moment: u64,
        dir: u64,
        name: Hex,
    },
    Objects {
        moment: u64,
        ids: Vec<u64>,
    },
    /// Their states alone, of those that ever were: cheaper.
    States {
        moment: u64,
        ids: Vec<u64>,
    },
    /// What names stood for.
    Names {
        moment: u64,
        at: Vec<(u64, Hex)>,
    },
    /// All names that objects had.
    NamesOf {
        moment: u64,
        ids: Vec<u64>,
    },
    /// What happened after one moment and up to another, oldest first, as much as fits.
    Changes {
        after: u64,
        until: u64,
    },
    /// What happened to what ever stood at this path, oldest first.
    ChangesOf {
        path: Vec<Hex>,
    },
    /// The same as rows.
    Groups {
        after: u64,
        until: u64,
    },
    Snapshot {
        name: String,
        moment: Option<u64>,
        keep: bool,
        note: Option<String>,
    },
    RemoveSnapshot {
        name: String,
    },
    /// Read a segment of the catalogue, the first after this one, and mend it.
    Check {
        after: u64,
        repair: bool,
    },
    /// Begin a pass that lets old versions go.
    Prune {
        force: bool,
    },
    /// How the one ended that began after so many.
    PruneEnd {
        after: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Window(Window),
    Stand {
        at: Option<TimeOf>,
        next: Option<TimeOf>,
    },
    State(Hex),
    Page {
        entries: Vec<SentEntry>,
        next: Option<Hex>,
    },
    Entry(Option<SentEntry>),
    Objects(Vec<Option<SentObject>>),
    States(Vec<Option<Hex>>),
    Names(Vec<Option<u64>>),
    NamesOf(Vec<Vec<(u64, Hex)>>),
    /// Bodies as in the catalogue; where to go on after, unless that was all.
    Groups {
        bodies: Vec<Hex>,
        next: Option<u64>,
    },
    /// Where to go on after, unless that was all.
    Changes {
        changes: Vec<Change>,
        next: Option<u64>,
    },
    Snapshot(SnapshotLine),
    /// `None`: there is no further one.
    Checked(Option<CheckedSegment>),
    /// After so many passes.
    PruneBegun(u64),
    /// Another one is under way: ask again.
    PruneBusy,
    /// `None`: it goes on.
    Pruned(Option<Report>),
    Done,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckedSegment {
    pub number: u64,
    /// Files, what is wrong with them, and whether that is mended.
    pub found: Vec<(String, String, bool)>,
}

/// What can be had.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Window {
    /// Where history begins, with its times.
    pub begins: Option<TimeOf>,
    /// Why it does not begin earlier.
    pub why: Option<Why>,
    /// The last change that is in the copy.
    pub last: Option<TimeOf>,
    /// The rows' position.
    pub moment: u64,
    pub snapshots: Vec<SnapshotLine>,
    pub catalogue_bytes: u64,
    /// Why no tree is to be published or removed now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation_held: Option<String>,
    /// From here on every position can be had whole; `None`: as far as history goes.
    #[serde(default)]
    pub all_from: Option<TimeOf>,
    /// Before that these can, oldest first.
    #[serde(default)]
    pub whole: Vec<TimeOf>,
    /// What time it is for retention.
    #[serde(default)]
    pub now_ns: u64,
}

/// A position and when it was: at the worker, and here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TimeOf {
    pub moment: u64,
    pub there_ns: u64,
    pub here_ns: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotLine {
    pub name: String,
    pub moment: u64,
    pub there_ns: u64,
    pub here_ns: u64,
    pub keep: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl From<Snapshot> for SnapshotLine {
    fn from(snapshot: Snapshot) -> SnapshotLine {
        SnapshotLine {
            name: snapshot.name,
            moment: snapshot.moment.0,
            there_ns: snapshot.there_ns,
            here_ns: snapshot.here_ns,
            keep: snapshot.keep,
            note: snapshot.note,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SentEntry {
    n: Hex,
    i: u64,
    /// As in the index.
    s: Hex,
    b: SentWhere,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    l: Option<Inode>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum SentWhere {
    N,
    L(Hex),
    K(u64),
    U(u8),
}

/// An object as of a position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SentObject {
    state: Hex,
    bytes: SentWhere,
    /// One of its paths then, if it had any.
    path: Option<Hex>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inode: Option<Inode>,
}

/// The same, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    pub state: mirror_core::State,
    pub bytes: Where,
    pub path: Option<Vec<u8>>,
    /// As in [`Entry`].
    pub inode: Option<Inode>,
}

fn put_where(bytes: &Where) -> SentWhere {
    match bytes {
        Where::Nothing => SentWhere::N,
        Where::Live(path) => {
            let path = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
            SentWhere::L(Hex(path.to_vec()))
        }
        Where::Kept(slot) => SentWhere::K(slot.until.0),
        Where::Unkept(why) => SentWhere::U(match why {
            Unkept::Policy => 0,
            Unkept::Interval => 1,
            Unkept::Void => 2,
            Unkept::Missing => 3,
        }),
    }
}

fn take_where(bytes: SentWhere, object: ObjectId) -> Where {
    match bytes {
        SentWhere::N => Where::Nothing,
        SentWhere::L(path) => {
            let path: std::ffi::OsString = std::os::unix::ffi::OsStringExt::from_vec(path.0);
            Where::Live(PathBuf::from(path))
        }
        SentWhere::K(until) => Where::Kept(Slot {
            until: Moment(until),
            object,
        }),
        SentWhere::U(why) => Where::Unkept(match why {
            0 => Unkept::Policy,
            1 => Unkept::Interval,
            2 => Unkept::Void,
            _ => Unkept::Missing,
        }),
    }
}

fn body(state: &mirror_core::State) -> Hex {
    Hex(body_encode(state, &mirror_core::Local::default()))
}

fn odd() -> PastError {
    PastError::Asking("the answer is not of this version".into())
}

impl SentEntry {
    fn of(entry: &Entry) -> SentEntry {
        SentEntry {
            n: Hex(entry.name.as_bytes().to_vec()),
            i: entry.id.0,
            s: body(&entry.state),
            b: put_where(&entry.bytes),
            l: entry.inode,
        }
    }
    pub fn entry(self) -> Result<Entry, PastError> {
        Ok(Entry {
            name: Name::new(&self.n.0).map_err(|_| odd())?,
            id: ObjectId(self.i),
            state: state_of(&self.s)?,
            bytes: take_where(self.b, ObjectId(self.i)),
            inode: self.l,
        })
    }
}

impl SentObject {
    pub fn known(self, id: ObjectId) -> Result<Known, PastError> {
        Ok(Known {
            state: state_of(&self.state)?,
            bytes: take_where(self.bytes, id),
            path: self.path.map(|path| path.0),
            inode: self.inode,
        })
    }
}

pub fn state_of(body: &Hex) -> Result<mirror_core::State, PastError> {
    body_decode(&body.0)
        .map(|(state, _)| state)
        .map_err(|_| odd())
}

/// Groups of an answer.
pub fn groups_of(bodies: &[Hex]) -> Result<Vec<Dated>, PastError> {
    let mut groups = Vec::new();
    for body in bodies {
        let unpacked = format::unpack(&body.0).map_err(|_| odd())?;
        groups.extend(unpacked.into_iter().map(|(dated, _)| dated));
    }
    Ok(groups)
}

fn name_of(name: &Hex) -> Result<Name, PastError> {
    Name::new(&name.0).map_err(|_| PastError::Unknown("that can't be a name".into()))
}

/// Answers one question. `now`: where the rows are.
pub fn answer<R: Rows<Error: std::fmt::Display>>(
    rows: &R,
    history: &mut History,
    now: Moment,
    ask: &Ask,
) -> Result<Answer, PastError> {
    let here = |history, moment: &u64| Here::new(rows, history, Moment(*moment));
    let catalogue = |e: super::catalogue::CatalogueError| PastError::History(e.into());
    match ask {
        Ask::Window => window(history, now).map(Answer::Window),
        Ask::Stand { there_ns } => {
            let at = history
                .catalogue
                .last_time(&|time| time.there_ns <= *there_ns && time.moment <= now);
            stand(history, at.map_err(catalogue)?)
        }
        Ask::StandAt { moment } => {
            let at = history
                .catalogue
                .last_time(&|time| time.moment.0 <= *moment);
            stand(history, at.map_err(catalogue)?)
        }
        Ask::StandHere { here_ns } => {
            let at = history
                .catalogue
                .last_time(&|time| time.here_ns <= *here_ns && time.moment <= now);
            stand(history, at.map_err(catalogue)?)
        }
        Ask::Root { moment } => {
            let state = here(history, moment).root_state()?;
            Ok(Answer::State(body(&state)))
        }
        Ask::Page { moment, dir, after } => {
            let after = after.as_ref().map(name_of).transpose()?;
            let mut here = here(history, moment);
            let (entries, next) = here.page(ObjectId(*dir), after.as_ref())?;
            Ok(Answer::Page {
                entries: entries.iter().map(SentEntry::of).collect(),
                next: next.map(|name| Hex(name.as_bytes().to_vec())),
            })
        }
        Ask::Entry { moment, dir, name } => {
            let at = At {
                parent: ObjectId(*dir),
                name: name_of(name)?,
            };
            let entry = here(history, moment).entry(&at)?;
            Ok(Answer::Entry(entry.as_ref().map(SentEntry::of)))
        }
        Ask::Objects { moment, ids } => {
            let mut here = here(history, moment);
            let mut found = Vec::new();
            for id in ids.iter().take(ASKED_MAX) {
                let known = here.object(ObjectId(*id))?;
                found.push(known.map(|(entry, path)| SentObject {
                    state: body(&entry.state),
                    bytes: put_where(&entry.bytes),
                    path: path.map(Hex),
                    inode: entry.inode,
                }));
            }
            Ok(Answer::Objects(found))
        }
        Ask::States { moment, ids } => {
            let here = here(history, moment);
            let mut found = Vec::new();
            for id in ids.iter().take(ASKED_MAX) {
                found.push(here.state(ObjectId(*id))?.as_ref().map(body));
            }
            Ok(Answer::States(found))
        }
        Ask::Names { moment, at } => {
            let here = here(history, moment);
            let mut found = Vec::new();
            for (dir, name) in at.iter().take(ASKED_MAX) {
                let at = At {
                    parent: ObjectId(*dir),
                    name: name_of(name)?,
                };
                found.push(here.name(&at)?.map(|id| id.0));
            }
            Ok(Answer::Names(found))
        }
        Ask::NamesOf { moment, ids } => {
            let here = here(history, moment);
            let mut found = Vec::new();
            for id in ids.iter().take(ASKED_MAX) {
                let names = here.names_then(ObjectId(*id))?;
                let sent = names
                    .into_iter()
                    .map(|at| (at.parent.0, Hex(at.name.as_bytes().to_vec())));
                found.push(sent.collect());
            }
            Ok(Answer::NamesOf(found))
        }
        Ask::Changes { after, until } => {
            let (groups, next) = groups_between(history, *after, *until, TOLD_MAX)?;
            let mut teller = Teller::new(rows, history);
            let mut changes = Vec::new();
            for dated in merge_parts(groups) {
                changes.extend(teller.tell(&dated)?);
            }
            Ok(Answer::Changes { changes, next })
        }
        Ask::ChangesOf { path } => {
            let path: Result<Vec<Name>, PastError> = path.iter().map(name_of).collect();
            let changes = Teller::new(rows, history).of_path(&path?)?;
            Ok(Answer::Changes {
                changes,
                next: None,
            })
        }
        Ask::Groups { after, until } => {
            let (groups, next) = groups_between(history, *after, *until, ROWS_MAX)?;
            let mut bodies = Vec::new();
            let packed = format::pack(&groups, |body| {
                bodies.push(Hex(body.bytes.to_vec()));
                Ok(())
            });
            packed.map_err(|e| PastError::Asking(e.to_string()))?;
            Ok(Answer::Groups { bodies, next })
        }
        Ask::Snapshot {
            name,
            moment,
            keep,
            note,
        } => snapshot(history, now, (name, *moment, *keep, note)).map(Answer::Snapshot),
        Ask::Check { after, repair } => {
            // What was dealt with when it was opened: this is where somebody asks.
            let told = history.told();
            let numbers = history.catalogue.numbers();
            let Some(number) = numbers.into_iter().find(|number| number > after) else {
                return Ok(Answer::Checked(None));
            };
            let found = history.catalogue.check(number, *repair);
            let found = found.map_err(|e| PastError::History(e.into()))?;
            let found = found.into_iter();
            let found = found.map(|found| (found.name, found.what, found.repaired));
            let told = told.into_iter().map(|text| {
                let is_lost = text.contains("can't be") || text.starts_with("the end of");
                ("catalogue".to_owned(), text, !is_lost)
            });
            let found = told.chain(found);
            Ok(Answer::Checked(Some(CheckedSegment {
                number,
                found: found.collect(),
            })))
        }
        Ask::Prune { .. } | Ask::PruneEnd { .. } => Err(odd()),
        Ask::RemoveSnapshot { name } => {
            if !history
                .events
                .snapshots()
                .iter()
                .any(|known| known.name == *name)
            {
                return Err(PastError::Unknown(format!("there is no snapshot {name}")));
            }
            let event = Event::Removed {
                name: name.clone(),
                here_ns: history.now_ns(),
            };
            history
                .events
                .add(event)
                .map_err(HistoryError::io("write"))?;
            Ok(Answer::Done)
        }
    }
}

/// Whole groups of about so many rows; where to go on after.
fn groups_between(
    history: &History,
    after: u64,
    until: u64,
    rows_max: usize,
) -> Result<(Vec<Dated>, Option<u64>), PastError> {
    // What was dropped can't be told from what never was.
    if history.events.dropped_until() > Moment(after) {
        let text = "what happened right after that is not kept any more";
        return Err(PastError::Unknown(text.into()));
    }
    let (mut groups, mut rows, mut next) = (Vec::new(), 0, None);
    let mut last = after;
    let between = (Moment(after), Moment(until));
    let read = history.catalogue.groups(between, &mut |dated| {
        let moment = dated.group.moment.0;
        if rows >= rows_max && moment != last {
            next = Some(last);
            return false;
        }
        rows += dated.group.rows.len();
        last = moment;
        groups.push(dated);
        true
    });
    read.map_err(|e| PastError::History(e.into()))?;
    Ok((groups, next))
}

fn time_of(time: &super::Time) -> TimeOf {
    TimeOf {
        moment: time.moment.0,
        there_ns: time.there_ns,
        here_ns: time.here_ns,
    }
}

fn stand(history: &History, at: Option<super::Time>) -> Result<Answer, PastError> {
    let after = at.map_or(Moment(0), |at| at.moment);
    let mut next = None;
    let between = (after, Moment::MAX);
    let read = history.catalogue.groups(between, &mut |dated| {
        next = Some(TimeOf {
            moment: dated.group.moment.0,
            there_ns: dated.group.time_ns,
            here_ns: dated.here_ns,
        });
        false
    });
    read.map_err(|e| PastError::History(e.into()))?;
    let at = at.as_ref().map(time_of);
    Ok(Answer::Stand { at, next })
}

impl History {
    /// The position of the last group up to here, with its times.
    fn at(&self, moment: Moment) -> super::Result<TimeOf> {
        let at = self.catalogue.last_time(&|time| time.moment <= moment)?;
        let begun = self.events.begins().rfind(|begin| begin.0 <= moment);
        let begun = begun.map(|(moment, _, there_ns, here_ns)| TimeOf {
            moment: moment.0,
            there_ns,
            here_ns,
        });
        let at = at.as_ref().map(time_of);
        Ok(at.max_by_moment(begun).unwrap_or_default())
    }

    /// From where on everything can be had, and what can be had before that.
    fn whole(&self) -> super::Result<(Option<TimeOf>, Vec<TimeOf>)> {
        let whole = super::whole::Whole::load(&*self.disk).map_err(HistoryError::io("read"))?;
        let begins = self.begins().unwrap_or_default();
        if whole.all_from <= begins {
            return Ok((None, Vec::new()));
        }
        let some = whole
            .some
            .iter()
            .filter(|at| **at >= begins && **at < whole.all_from);
        let some: super::Result<Vec<TimeOf>> = some.map(|at| self.at(*at)).collect();
        Ok((Some(self.at(whole.all_from)?), some?))
    }

    /// The oldest position that can be had.
    pub fn oldest(&self) -> super::Result<Option<TimeOf>> {
        let (all_from, some) = self.whole()?;
        match some.first().copied().or(all_from) {
            Some(oldest) => Ok(Some(oldest)),
            None => self.begins().map(|begins| self.at(begins)).transpose(),
        }
    }
}

trait MaxByMoment {
    fn max_by_moment(self, other: Self) -> Self;
}

impl MaxByMoment for Option<TimeOf> {
    fn max_by_moment(self, other: Self) -> Self {
        self.into_iter().chain(other).max_by_key(|at| at.moment)
    }
}

fn window(history: &mut History, now: Moment) -> Result<Window, PastError> {
    let (all_from, whole) = history.whole()?;
    let now_ns = history.now_ns();
    let last = history.catalogue.last_time(&|time| time.moment <= now);
    let last = last.map_err(|e| PastError::History(e.into()))?;
    let begins = history.events.begins().next_back();
    let snapshots = history.events.snapshots();
    Ok(Window {
        why: begins.map(|begins| begins.1),
        begins: begins.map(|(moment, _, there_ns, here_ns)| TimeOf {
            moment: moment.0,
            there_ns,
            here_ns,
        }),
        last: last.as_ref().map(time_of),
        moment: now.0,
        snapshots: snapshots.into_iter().map(SnapshotLine::from).collect(),
        catalogue_bytes: history.catalogue.bytes(),
        rotation_held: super::rotation_is_held(history),
        all_from,
        whole,
        now_ns,
    })
}

fn snapshot(
    history: &mut History,
    now: Moment,
    (name, moment, keep, note): (&str, Option<u64>, bool, &Option<String>),
) -> Result<SnapshotLine, PastError> {
    super::times::valid_name(name).map_err(PastError::Unknown)?;
    if history
        .events
        .snapshots()
        .iter()
        .any(|known| known.name == *name)
    {
        let text =
            format!("there is a snapshot {name} already: take another name, or remove it first");
        return Err(PastError::Unknown(text));
    }
    let moment = moment.map_or(now, Moment);
    let at = history.catalogue.last_time(&|time| time.moment <= moment);
    let at = at.map_err(|e| PastError::History(e.into()))?;
    let here_ns = history.now_ns();
    let begins = history.events.begins().next_back();
    let there_ns = at.map(|at| at.there_ns).or(begins.map(|begins| begins.2));
    let event = Event::Snapshot {
        name: name.into(),
        moment: moment.0,
        there_ns: there_ns.unwrap_or(here_ns),
        here_ns,
        keep,
        note: note.clone(),
    };
    // What it names must be as durable as the name is.
    history.flush()?;
    history
        .events
        .add(event)
        .map_err(HistoryError::io("write"))?;
    let found = history
        .events
        .snapshots()
        .into_iter()
        .find(|known| known.name == *name);
    found.map(SnapshotLine::from).ok_or_else(odd)
}
