//! Commands about the past: what they share. Questions go to the process that has the mirror, or, if none has it, to its
//! files; bytes are read from the copy and its history directly.

pub mod back;
pub mod diff;
pub mod find;
pub mod get;
pub mod log;
pub mod prune;
pub mod rotate;
pub mod snapshot;
pub mod verify;
pub mod view;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use jiff::tz::TimeZone;
use mirror_core::history::Moment;
use mirror_core::{Name, ObjectId, Position, escape};

use crate::cli::args::Which;
use crate::cli::exit::{CliError, Exit, chain};
use crate::cli::find::find;
use crate::cli::places::show;
use crate::cli::text;
use crate::engine::control::{Client, ClientError, StateLock};
use crate::engine::options::{Owners, SourceSpec};
use crate::engine::status::Stamp;
use crate::history::ask::{Answer, Ask, Known, TimeOf, Window};
use crate::history::asked::{self, AsOf, Asks, Places, odd};
use crate::history::parts;
use crate::history::publish_settings::PublishSettings;
use crate::history::settings::Settings;
use crate::history::stopped::Stopped;
use crate::history::times::{self, When};
use crate::history::tree::{PastError, PastTree, Where};

enum Asked {
    Running(Client),
    Stopped(Box<Stopped>),
}

/// How an error says that something is too long ago.
const BEFORE: &str = "is before what is kept";
const NO_NAME: &str = "is no snapshot and no time";

/// A mirror's past.
pub struct Past {
    asked: Asked,
    pub dst: PathBuf,
    pub state_dir: PathBuf,
    source: SourceSpec,
    pub publish: Option<PublishSettings>,
    pub owners: Owners,
    pub zone: TimeZone,
    /// Where this part's files are.
    part_dir: PathBuf,
    /// Earlier parts, oldest first.
    parts: Vec<u32>,
    /// The part after this one: what was in the copy at this one's end is where it begins.
    later: Option<Box<Past>>,
    keeping: Settings,
}

/// A position that a person named, and when that was.
#[derive(Debug, Clone)]
pub struct Stand {
    pub moment: Moment,
    /// The last change that is in it.
    pub at: Option<TimeOf>,
    /// The first one that is not.
    pub next: Option<TimeOf>,
}

impl From<PastError> for CliError {
    fn from(e: PastError) -> CliError {
        match e {
            PastError::Unknown(text) => CliError::usage(text),
            e => CliError::failed(chain(&e)),
        }
    }
}

fn asking(e: ClientError) -> PastError {
    match e {
        ClientError::Told(crate::engine::control::ControlError::Refused(text)) => {
            PastError::Unknown(text)
        }
        e => PastError::Asking(chain(&e)),
    }
}

impl Asks for Past {
    fn ask(&mut self, ask: &Ask) -> Result<Answer, PastError> {
        match &mut self.asked {
            Asked::Running(client) => client.past(ask).map_err(asking),
            Asked::Stopped(stopped) => stopped.ask(ask),
        }
    }
    fn later(&mut self, path: &Path, content: &mirror_core::Content) -> Option<OwnedFd> {
        self.in_later(path, content)
    }
}

impl Past {
    pub fn ask(&mut self, ask: &Ask) -> Result<Answer, PastError> {
        Asks::ask(self, ask)
    }

    pub fn open(which: &Which) -> Result<Past, CliError> {
        let found = find(which.mirror.as_deref())?;
        let config = found.config()?;
        let state_dir = found.state_dir;
        let asked = match Client::connect(&state_dir) {
            Ok(client) => Asked::Running(client),
            Err(ClientError::NotRunning) => {
                let lock = StateLock::take(&state_dir)?;
                Asked::Stopped(Box::new(Stopped::open(&state_dir, Some(lock))?))
            }
            Err(e) => return Err(e.into()),
        };
        Ok(Past {
            asked,
            dst: config.dst,
            part_dir: state_dir.clone(),
            parts: parts::all(&state_dir),
            state_dir,
            source: config.source,
            publish: config.publish,
            owners: config.owners,
            zone: TimeZone::system(),
            later: None,
            keeping: config.keeping,
        })
    }

    pub fn source(&self) -> &SourceSpec {
        &self.source
    }

    /// Earlier parts, oldest first.
    pub fn parts(&self) -> &[u32] {
        &self.parts
    }

    /// Which earlier part this is; `None`: the present one.
    pub fn part(&self) -> Option<u32> {
        self.later.as_ref()?;
        self.part_dir.file_name()?.to_str()?.parse().ok()
    }

    /// Goes back to the part after this one. False: this is the present one.
    pub fn go_on(&mut self) -> bool {
        match self.later.take() {
            Some(later) => {
                *self = *later;
                true
            }
            None => false,
        }
    }

    /// Turns to the part before this one. False: there is none.
    fn earlier(&mut self) -> Result<bool, PastError> {
        let Some(part) = self.parts.pop() else {
            return Ok(false);
        };
        let part_dir = parts::dir(&self.state_dir, part);
        let named = |e: PastError| match e {
            PastError::Unknown(text) => PastError::Unknown(format!(
                "part {part} of the history, {}: {text}",
                show(&part_dir)
            )),
            e => e,
        };
        let stopped = Stopped::open_part(&part_dir).map_err(named)?;
        let earlier = Past {
            asked: Asked::Stopped(Box::new(stopped)),
            dst: self.dst.clone(),
            state_dir: self.state_dir.clone(),
            source: self.source.clone(),
            publish: self.publish.clone(),
            owners: self.owners,
            zone: self.zone.clone(),
            keeping: self.keeping.clone(),
            part_dir,
            parts: std::mem::take(&mut self.parts),
            later: None,
        };
        let later = std::mem::replace(self, earlier);
        self.later = Some(Box::new(later));
        Ok(true)
    }

    /// Of a path that was in the copy when this part ended: its bytes, by the part after this one.
    fn in_later(&mut self, path: &Path, content: &mirror_core::Content) -> Option<OwnedFd> {
        let later = self.later.as_mut()?;
        let begins = Moment(later.window().ok()?.begins?.moment);
        let names: Result<Vec<Name>, _> = path
            .components()
            .map(|part| Name::new(part.as_os_str().as_bytes()))
            .collect();
        let mut tree = later.tree(begins);
        let entry = tree.find(&names.ok()?).ok()??;
        let same = entry
            .state
            .kind
            .content()
            .is_some_and(|now| now.same(content));
        same.then(|| tree.open(&entry).ok()).flatten()
    }

    pub fn window(&mut self) -> Result<Window, PastError> {
        match self.ask(&Ask::Window)? {
            Answer::Window(window) => Ok(window),
            _ => odd(),
        }
    }

    /// The position that a person means. One in an earlier part of the history turns to that.
    pub fn stand(&mut self, text: &str) -> Result<Stand, CliError> {
        let mut first = None;
        loop {
            match self.stand_here(text) {
                // A name may be of an earlier part, too; the first answer says what there is.
                Err(e)
                    if (e.line.contains(BEFORE) || e.line.contains(NO_NAME))
                        && !self.parts.is_empty() =>
                {
                    first.get_or_insert(e);
                    self.earlier()?;
                }
                Err(e) => return Err(first.unwrap_or(e)),
                done => return done,
            }
        }
    }

    fn stand_here(&mut self, text: &str) -> Result<Stand, CliError> {
        let now = jiff::Timestamp::now();
        let when = times::parse(text, &now.to_zoned(self.zone.clone())).map_err(CliError::usage)?;
        let window = self.window()?;
        let stand = |answer| match answer {
            Answer::Stand { at, next } => Ok((at, next)),
            _ => odd(),
        };
        let (moment, asked) = match when {
            // The source's clock may be ahead of ours.
            When::Time(_) if text.trim() == "now" => {
                let moment = window.moment;
                let asked = stand(self.ask(&Ask::StandAt { moment })?)?;
                (Some(moment), asked)
            }
            When::Time(ns) if i128::from(ns) > now.as_nanosecond() + 1_000_000_000 => {
                return Err(CliError::usage(format!(
                    "{} is in the future: {}",
                    escape(text.as_bytes()),
                    self.available(&window)
                )));
            }
            When::Time(ns) => {
                let there_ns = u64::try_from(ns).unwrap_or(0);
                let (at, next) = stand(self.ask(&Ask::Stand { there_ns })?)?;
                let begins = window.begins.filter(|begins| begins.there_ns <= there_ns);
                let moment = at
                    .map(|at| at.moment)
                    .max(begins.map(|begins| begins.moment));
                (moment, (at, next))
            }
            When::Position(position) => {
                let moment = Moment::of(position).0;
                let (at, next) = stand(self.ask(&Ask::StandAt { moment })?)?;
                if moment > window.moment {
                    return Err(CliError::usage(format!(
                        "position {position} is not in the copy yet: {}",
                        self.available(&window)
                    )));
                }
                (Some(moment), (at, next))
            }
            When::Name(ref name) | When::Before(ref name) => {
                let known = window.snapshots.iter().find(|known| known.name == *name);
                let Some(known) = known else {
                    let names: Vec<&str> =
                        window.snapshots.iter().map(|s| s.name.as_str()).collect();
                    let have = match names.len() {
                        0 => "there are no snapshots".to_owned(),
                        n if n > 20 => {
                            format!("there are {n} snapshots: see `fs_mirror snapshot list`")
                        }
                        _ => format!("there are {}", names.join(", ")),
                    };
                    return Err(CliError::usage(format!(
                        "{} {NO_NAME}: {have}; {}",
                        escape(text.as_bytes()),
                        times::FORMS
                    )));
                };
                let before = matches!(when, When::Before(_));
                let moment = known.moment.saturating_sub(u64::from(before));
                let asked = stand(self.ask(&Ask::StandAt { moment })?)?;
                (Some(moment), asked)
            }
        };
        let begins = window.begins.map_or(u64::MAX, |begins| begins.moment);
        if let Some(moment) = moment.filter(|moment| *moment >= begins) {
            self.must_be_whole(text, moment, asked.0, &window)?;
        }
        match moment {
            Some(moment) if moment >= begins => Ok(Stand {
                moment: Moment(moment),
                at: asked.0,
                next: asked.1,
            }),
            _ => Err(CliError::usage(format!(
                "{} {BEFORE}: {}",
                escape(text.as_bytes()),
                self.available(&window)
            ))),
        }
    }

    /// Of a position between which and the present versions went, not every file can be had any more.
    fn must_be_whole(
        &self,
        text: &str,
        moment: u64,
        at: Option<TimeOf>,
        window: &Window,
    ) -> Result<(), CliError> {
        let Some(from) = window.all_from.filter(|from| moment < from.moment) else {
            return Ok(());
        };
        let at = at.map_or(moment, |at| at.moment);
        if window.whole.iter().any(|whole| whole.moment == at) {
            return Ok(());
        }
        let when = |time: &TimeOf| {
            format!(
                "{} (position {})",
                self.time(time.there_ns),
                position(time.moment)
            )
        };
        let n = window.whole.partition_point(|whole| whole.moment < at);
        let near = [n.checked_sub(1), Some(n)].into_iter().flatten();
        let mut near: Vec<String> = near.filter_map(|n| window.whole.get(n)).map(when).collect();
        near.push(format!("anything from {} on", when(&from)));
        Err(CliError::usage(format!(
            "{}: not every file of that moment is kept any more; whole are {}",
            escape(text.as_bytes()),
            near.join(", and ")
        )))
    }

    /// What can be asked for instead.
    fn available(&self, window: &Window) -> String {
        let Some(begins) = window.begins else {
            return "nothing is kept yet".into();
        };
        let whole = window.whole.first().copied().or(window.all_from);
        let begins = whole.unwrap_or(begins);
        let last = window.last.map_or(begins, |last| last);
        format!(
            "history goes from {} (position {}) to {} (position {})",
            self.time(begins.there_ns),
            position(begins.moment),
            self.time(last.there_ns),
            position(window.moment),
        )
    }

    pub fn time(&self, ns: u64) -> String {
        let stamp = Stamp {
            ms: (ns / 1_000_000) as i64,
        };
        format!(
            "{}.{:03}",
            text::stamp(stamp, &self.zone),
            ns / 1_000_000 % 1000
        )
    }

    /// One line: as of what.
    pub fn around(&self, stand: &Stand) -> String {
        let mut line = match stand.at {
            Some(at) => format!(
                "as of {} (position {})",
                self.time(at.there_ns),
                position(stand.moment.0)
            ),
            None => format!("as of position {}", position(stand.moment.0)),
        };
        match stand.next {
            Some(next) => line.push_str(&format!(
                ", the next change is of {} ({})",
                self.time(next.there_ns),
                position(next.moment)
            )),
            None => line.push_str(", nothing has changed since"),
        }
        line
    }

    /// A path as typed, as names below the root.
    pub fn path(&self, typed: &OsStr, named: bool) -> Result<Vec<Name>, CliError> {
        let path = Path::new(typed);
        let below = |base: &Path| path.strip_prefix(base).ok().map(Path::to_path_buf);
        let inside = if path.is_absolute() {
            let source = match &self.source {
                SourceSpec::Local(source) => below(source),
                SourceSpec::Ssh { path, .. } => below(Path::new(OsStr::from_bytes(path))),
                SourceSpec::Service { .. } => None,
            };
            let inside = below(&self.dst).or(source);
            inside.ok_or_else(|| {
                CliError::usage(format!(
                    "{} is not in this mirror, {}",
                    show(path),
                    show(&self.dst)
                ))
            })?
        } else {
            let here = std::env::current_dir().ok();
            let here =
                here.and_then(|here| here.strip_prefix(&self.dst).ok().map(Path::to_path_buf));
            match here {
                Some(here) if !named => here.join(path),
                _ => path.to_path_buf(),
            }
        };
        let mut names = Vec::new();
        for part in inside.components() {
            match part {
                Component::Normal(name) => {
                    let name = Name::new(name.as_bytes());
                    names.push(
                        name.map_err(|_| {
                            CliError::usage(format!("{} can't be a path", show(path)))
                        })?,
                    );
                }
                Component::ParentDir if names.pop().is_none() => {
                    return Err(CliError::usage(format!(
                        "{} leads out of the mirror",
                        show(path)
                    )));
                }
                _ => {}
            }
        }
        Ok(names)
    }

    pub fn tree(&mut self, moment: Moment) -> AsOf<'_> {
        let places = self.places();
        AsOf::new(self, places, moment)
    }

    pub fn places(&self) -> Places {
        Places {
            dst: self.dst.clone(),
            state_dir: self.part_dir.clone(),
        }
    }
}

/// A moment as people see it.
pub fn position(moment: u64) -> Position {
    Moment(moment).position()
}

/// A path for people.
pub fn shown(path: &[Name]) -> String {
    if path.is_empty() {
        return ".".into();
    }
    let names: Vec<&[u8]> = path.iter().map(Name::as_bytes).collect();
    escape(&names.join(&b'/'))
}

impl Past {
    pub fn objects(
        &mut self,
        moment: Moment,
        ids: &[ObjectId],
    ) -> Result<Vec<Option<Known>>, PastError> {
        asked::objects(self, moment, ids)
    }

    /// A file's bytes as of a moment, whole, if there are at most so many. `None`: more.
    pub fn bytes(
        &mut self,
        moment: Moment,
        id: ObjectId,
        most: u64,
    ) -> Result<Option<Vec<u8>>, PastError> {
        let mut tried = false;
        for _ in 0..3 {
            let Some(known) = self.objects(moment, &[id])?.into_iter().next().flatten() else {
                return Err(PastError::Unknown("it was not there then".into()));
            };
            let Some(content) = known.state.kind.content() else {
                return Err(PastError::Unknown("it was no file then".into()));
            };
            if content.bytes > most {
                return Ok(None);
            }
            if known.bytes == Where::Nothing {
                return Ok(Some(vec![0; content.bytes as usize]));
            }
            let later = match (&known.bytes, tried) {
                (Where::Live(path), true) => self.later(path, content),
                _ => None,
            };
            tried = true;
            let fd = match later {
                Some(fd) => fd,
                None => self.places().file(&known.bytes)?,
            };
            let mut reader = crate::apply::content::RangeReader::new(fd, content);
            let mut whole = vec![0u8; content.bytes as usize];
            let mut hasher = crate::apply::content::hasher(content);
            let mut good = true;
            for (offset, length) in crate::apply::content::ranges(content) {
                let (start, end) = (offset as usize, (offset + length) as usize);
                let Some(part) = whole.get_mut(start..end) else {
                    good = false;
                    break;
                };
                good &= std::io::Read::read_exact(&mut reader, part).is_ok();
                hasher.update(part);
            }
            if good && *hasher.finalize().as_bytes() == content.digest.0 {
                return Ok(Some(whole));
            }
            // It was just being replaced.
        }
        Err(PastError::Unknown(
            "what is kept of it is damaged: its bytes are not those of that version".into(),
        ))
    }
}

/// Said before the answer, where a person reads.
pub fn note(quiet: bool, json: bool, line: &str) {
    if !quiet && !json {
        crate::cli::ui::complain(line);
    }
}

/// Some paths could not be had.
pub fn some_failed(failed: u64) -> Exit {
    match failed {
        0 => Exit::Done,
        _ => Exit::SomeFailed,
    }
}
