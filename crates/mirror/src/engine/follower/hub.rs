//! What the threads of a follower, and the other commands, know of it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use mirror_core::{Position, escape};

use super::let_go::LetGo;
use super::verify;
use super::wire::{Covered, Link, Links};
use crate::engine::applying::{
    AGAIN_ROUNDS, Applied, ApplyOrder, ApplyOrders, going, past, try_again,
};
use crate::engine::aside;
use crate::engine::confine::Confinement;
use crate::engine::control::{
    Against, Control, ControlError, ReleaseReport, Stop, Until, VerifyEnd, VerifyLine,
    VerifyOptions, WaitReport,
};
use crate::engine::event::{Event, Ui};
use crate::engine::local::outer::{RELEASED_WITHIN, released_alarm, space};
use crate::engine::lost;
use crate::engine::service::pulse;
use crate::engine::serving::{Chain, Followers};
use crate::engine::status::{
    DetectorStatus, FAILED_MAX, Hold, HoldReason, Lag, Positions, Stamp, State, Status,
};
use crate::history::ask::{Answer, Ask};
use crate::link::conn::HEARTBEAT;
use crate::link::message::{self as say, Welcome};
use crate::link::report::{self, Cut, Report};
use crate::link::serve::now_ns;
use crate::link::{LinkError, Outgoing};
use crate::log::{End, Tail};
use crate::sync::lock;

/// How long a question waits for a link that is down.
const LINK_WAIT: Duration = Duration::from_secs(15);
/// A heartbeat that is later than this is missed.
const LATE: Duration = Duration::from_secs(2);

/// The copy, while a session has it open.
#[derive(Clone)]
pub struct Handles {
    pub apply_orders: ApplyOrders,
    pub applied: Arc<Applied>,
    pub tail: Tail,
    pub dst: PathBuf,
    /// What an adopted copy held and the source does not is out of the way.
    pub adopted: Arc<AtomicBool>,
}

/// What was asked for.
#[derive(Default)]
pub struct Want {
    pub paused: bool,
    pub stop: bool,
}

struct Known {
    status: Status,
    report: Report,
    /// Notices of the worker that were shown.
    notices_seen: Option<u64>,
    said: Said,
    started: bool,
    /// Following now; since when not.
    connected: bool,
    since: Stamp,
    /// In this run.
    ever: bool,
    /// Also in vain.
    tried: bool,
    reason: String,
    /// The worker's end and clock, as last heard.
    end: Option<End>,
    heard: Option<Instant>,
    /// The worker's clock less ours.
    offset_ns: i64,
    /// When everything known was applied.
    caught_up: Instant,
    handles: Option<Handles>,
    /// The first copy or comparison is done, but perhaps for what failed.
    arrived: bool,
    /// When the worker last said anything but that it is there.
    news: Instant,
    /// The worker was told that what it holds may go on.
    let_through: bool,
    let_go: LetGo,
    /// What we follow is the primary, not a mirror of it.
    direct: bool,
    /// The source takes orders from us.
    may_order: bool,
}

impl Known {
    /// A time of ours by the primary's clock.
    fn there(&self, ns: u64) -> u64 {
        ns.saturating_add_signed(self.offset_ns)
    }
}

/// What a worker may have us tell in a minute, notices and holds that come and go.
const SAID_A_MINUTE_MAX: u32 = 60;

/// A worker that says very much fills no terminal and no journal.
#[derive(Default)]
struct Said {
    since: Option<Instant>,
    told: u32,
    left_out: u64,
}

impl Said {
    fn let_pass(&mut self, events: Vec<Event>, host: &str) -> Vec<Event> {
        let mut pass = Vec::new();
        if self
            .since
            .is_none_or(|since| since.elapsed() >= Duration::from_secs(60))
        {
            let left_out = std::mem::take(&mut self.left_out);
            if left_out > 0 {
                let host = escape(host.as_bytes());
                pass.push(Event::Notice(format!("{host} said {left_out} lines more")));
            }
            (self.since, self.told) = (Some(Instant::now()), 0);
        }
        for event in events {
            if self.told < SAID_A_MINUTE_MAX {
                self.told += 1;
                pass.push(event);
            } else {
                self.left_out = self.left_out.saturating_add(1);
            }
        }
        pass
    }
}

pub struct Hub {
    stop: Stop,
    pub ui: Arc<dyn Ui>,
    want: Mutex<Want>,
    changed: Condvar,
    known: Mutex<Known>,
    pub links: Links,
    /// What lies in `adopted/`.
    pub aside: aside::Watch,
    outgoing: Mutex<Option<Arc<Outgoing>>>,
    /// There is no room for what would come.
    full: AtomicBool,
    /// Through whom the tree comes.
    pub chain: Chain,
    /// Who follows us.
    pub followers: Followers,
    state_dir: PathBuf,
}

impl Hub {
    pub fn new(
        stop: Stop,
        ui: Arc<dyn Ui>,
        status: Status,
        chain: Chain,
        state_dir: PathBuf,
    ) -> Hub {
        Hub {
            state_dir,
            stop,
            ui,
            chain,
            followers: Followers::default(),
            want: Mutex::default(),
            changed: Condvar::new(),
            known: Mutex::new(Known {
                status,
                report: Report::default(),
                notices_seen: None,
                said: Said::default(),
                started: false,
                connected: false,
                since: Stamp::now(),
                ever: false,
                tried: false,
                reason: "not connected yet".into(),
                end: None,
                heard: None,
                offset_ns: 0,
                caught_up: Instant::now(),
                handles: None,
                arrived: false,
                news: Instant::now(),
                let_through: false,
                let_go: LetGo::default(),
                direct: true,
                may_order: true,
            }),
            links: Links::default(),
            aside: aside::Watch::default(),
            outgoing: Mutex::new(None),
            full: AtomicBool::new(false),
        }
    }

    /// A thread went behind its walls. What this kernel lacks is told once.
    pub fn confined(&self, behind: &Confinement) {
        let mut known = lock(&self.known);
        let before = known.status.confinement.take();
        let now = match &before {
            Some(before) => behind.clone().and(before),
            None => behind.clone(),
        };
        let new = |wall: &&String| before.as_ref().is_none_or(|b| !b.lacks.contains_key(*wall));
        let told: Vec<String> = now
            .lacks
            .keys()
            .filter(new)
            .filter_map(|wall| Some(format!("{wall} ({})", now.lacks.get(wall)?)))
            .collect();
        known.status.confinement = Some(now);
        drop(known);
        if !told.is_empty() {
            self.ui.event(Event::Notice(format!(
                "what comes from the source is applied without {}: our own checks alone keep it in DST",
                told.join(", ")
            )));
        }
    }

    // ---- said by the receiving thread ----

    pub fn set_outgoing(&self, outgoing: Option<Arc<Outgoing>>) {
        *lock(&self.outgoing) = outgoing;
    }

    /// While it is so there is no connection. True: it was otherwise.
    pub fn set_full(&self, full: bool) -> bool {
        let changed = self.full.swap(full, Ordering::AcqRel) != full;
        if full {
            self.hang_up();
        }
        changed
    }
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Ends the connection, whatever it is at.
    pub fn hang_up(&self) {
        if let Some(outgoing) = &*lock(&self.outgoing) {
            outgoing.close();
        }
    }

    pub fn connected(&self, link: &Arc<Link>, welcome: &Welcome, host: &str) {
        {
            let mut known = lock(&self.known);
            known.connected = true;
            known.ever = true;
            if known.handles.is_none() {
                known.status.state = State::Starting;
            }
            known.since = Stamp::now();
            known.reason.clear();
            known.end = welcome.end.map(End::from);
            known.direct = welcome.chain.len() <= 1;
            known.may_order = welcome.features & say::FEATURE_NO_ORDERS == 0;
            known.heard = Some(Instant::now());
            known.news = Instant::now();
        }
        self.links.set(Some(link.clone()));
        self.changed.notify_all();
        self.ui.event(Event::Connected {
            peer: format!(
                "{}:{} ({})",
                escape(host.as_bytes()),
                escape(&welcome.path),
                escape(welcome.program.as_bytes())
            ),
        });
    }

    /// Whether it was connected until now.
    pub fn disconnected(&self, reason: &str) -> bool {
        let mut known = lock(&self.known);
        let was = std::mem::replace(&mut known.connected, false);
        if was {
            known.since = Stamp::now();
        }
        known.tried = true;
        if known.handles.is_none() {
            known.status.state = State::Disconnected {
                since: known.since,
                reason: reason.to_owned(),
            };
        }
        known.reason = reason.to_owned();
        was
    }

    /// What the log was left for is read again.
    pub fn look_for_forks(&self, state_dir: &std::path::Path) {
        let forks = lost::forks(state_dir);
        lock(&self.known).status.forks = forks;
    }

    pub fn set_reason(&self, reason: String) {
        lock(&self.known).reason = reason;
    }
    pub fn last_reason(&self) -> String {
        lock(&self.known).reason.clone()
    }
    pub fn is_connected(&self) -> bool {
        lock(&self.known).connected
    }
    pub fn was_connected(&self) -> bool {
        lock(&self.known).ever
    }

    pub fn heard(&self, time_ns: u64, end: Option<End>) {
        let mut known = lock(&self.known);
        known.heard = Some(Instant::now());
        known.offset_ns = (i128::from(time_ns) - i128::from(now_ns()))
            .clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
        if let Some(end) = end
            && known.end.is_none_or(|known| known.position < end.position)
        {
            known.end = Some(end);
        }
    }

    pub fn received(&self, end: End) {
        let mut known = lock(&self.known);
        known.heard = Some(Instant::now());
        if known.end.is_none_or(|known| known.position < end.position) {
            known.end = Some(end);
        }
        drop(known);
        self.changed.notify_all();
    }

    pub fn report(&self, json: &str, host: &str) -> Result<(), LinkError> {
        let mut report: Report =
            report::parse(json).map_err(|e| LinkError::Nonsense(format!("its report: {e}")))?;
        let mut events = Vec::new();
        let mut known = lock(&self.known);
        // What it said before we came is in its own log.
        let seen = known.notices_seen.unwrap_or(report.notices_total);
        let new = usize::try_from(report.notices_total.saturating_sub(seen)).unwrap_or(0);
        let first = report.notices.len().saturating_sub(new);
        for text in report.notices.iter().skip(first) {
            events.push(Event::Notice(format!(
                "{}: {}",
                escape(host.as_bytes()),
                report::line(text)
            )));
        }
        known.notices_seen = Some(report.notices_total);
        if let Some(detector) = &report.detector
            && !known.started
        {
            known.started = true;
            events.push(Event::Started {
                detector: detector.uses,
                why: detector.why.clone(),
                not_mirrored: report.not_mirrored.clone(),
            });
        }
        report.hold = known.let_go.holds(report.hold, Instant::now());
        match (&known.report.hold, &report.hold) {
            (None, Some(hold)) => events.push(Event::Held(hold.clone())),
            (Some(_), None) => events.push(Event::Released),
            _ => {}
        }
        if known.report != report {
            known.news = Instant::now();
        }
        known.report = report;
        let events = known.said.let_pass(events, host);
        drop(known);
        self.changed.notify_all();
        for event in events {
            self.ui.event(event);
        }
        Ok(())
    }

    // ---- asked by the main loop ----

    pub fn with<T>(&self, ask: impl FnOnce(&Want) -> T) -> T {
        ask(&lock(&self.want))
    }

    fn order(&self, change: impl FnOnce(&mut Want)) {
        change(&mut lock(&self.want));
        self.changed.notify_all();
    }

    /// Waits while this holds. True: stop.
    pub fn wait_while(&self, holds: impl Fn(&Want) -> bool, mut meanwhile: impl FnMut()) -> bool {
        loop {
            pulse::beat();
            meanwhile();
            if self.stop.requested() || self.with(|want| want.stop) {
                return true;
            }
            if !self.with(&holds) {
                return false;
            }
            self.stop.wait(Duration::from_millis(50));
        }
    }

    pub fn open(&self, handles: Handles) {
        lock(&self.known).handles = Some(handles);
        self.changed.notify_all();
    }

    pub fn close(&self) {
        self.refresh();
        lock(&self.known).handles = None;
        self.changed.notify_all();
    }

    pub fn set_state(&self, state: State) {
        let mut known = lock(&self.known);
        known.status.state = state;
        known.status.now = Stamp::now();
    }

    /// Nothing of what an adopted copy held is in the way any more, or a person wants it left.
    pub fn adopted(&self) {
        if let Some(handles) = &lock(&self.known).handles {
            handles.adopted.store(true, Ordering::Release);
        }
    }

    /// The first copy is done. What failed keeps it from being equal, and so does what an adopted copy holds besides.
    pub fn arrived(&self, extras: u64) -> Status {
        lock(&self.known).arrived = extras == 0;
        let mut status = self.refresh();
        if extras == 0 && status.failed_total == 0 && status.counters.fuzzy == 0 {
            // As of a moment after the start; what came since is on its way.
            status.equal_at = Some(Stamp::now());
            lock(&self.known).status.equal_at = status.equal_at;
        }
        status
    }

    /// The worker may go on with what it holds; what it finds then is not asked about once more here.
    pub fn let_through(&self) -> Result<(), ControlError> {
        let mut known = lock(&self.known);
        if !known.direct {
            return Err(ControlError::Refused(
                "the source holds: it is released there, or at the mirror that follows it directly"
                    .into(),
            ));
        }
        if !known.may_order {
            let at = "`mirrord release`, on its host";
            return Err(ControlError::Refused(format!(
                "the source holds: it is released there, with {at}"
            )));
        }
        known.let_through = true;
        let handles = known.handles.clone();
        drop(known);
        if let Some(handles) = &handles {
            let _ = handles.apply_orders.send(ApplyOrder::Look);
        }
        let what = say::Order::RELEASE;
        let sent = match &*lock(&self.outgoing) {
            Some(outgoing) => outgoing.send(say::Order { what }).is_ok(),
            None => false,
        };
        if sent {
            let mut known = lock(&self.known);
            if let Some(hold) = known.report.hold.take() {
                known.let_go.told(hold, Instant::now());
                drop(known);
                self.ui.event(Event::Released);
            }
            return Ok(());
        }
        if self.was_let_through()
            && let Some(handles) = &handles
        {
            let _ = handles.apply_orders.send(ApplyOrder::Looked(None));
        }
        Err(ControlError::Unreachable(format!(
            "the source holds, and is not connected: {}",
            self.last_reason()
        )))
    }

    /// Something came that is more than a heartbeat. Reports see to that themselves.
    pub fn news(&self) {
        lock(&self.known).news = Instant::now();
    }
    /// For how long nothing came that is.
    pub fn no_news_for(&self) -> Duration {
        lock(&self.known).news.elapsed()
    }

    /// True once.
    pub fn was_let_through(&self) -> bool {
        std::mem::take(&mut lock(&self.known).let_through)
    }

    pub fn known_report(&self) -> Report {
        lock(&self.known).report.clone()
    }

    /// The primary's clock, and where its log ends, as far as we know.
    pub fn primary_clock(&self) -> (u64, Option<End>) {
        let known = lock(&self.known);
        (known.there(now_ns()), known.end)
    }

    /// What those who follow us are told: the primary's report, and whether anything comes from there.
    pub fn passed_on(&self) -> Report {
        let paused = self.with(|want| want.paused);
        let known = lock(&self.known);
        let since_ns = known.there(known.since.ms.max(0) as u64 * 1_000_000);
        let cut = |why: String| Some(Cut { since_ns, why });
        let mut report = known.report.clone();
        report.held_to = report.held_to.filter(|_| known.connected);
        report.cut = if paused {
            cut("the mirror there is paused".into())
        } else if !known.connected {
            let reason = &known.reason;
            cut(format!(
                "the mirror there is not connected to its source: {reason}"
            ))
        } else {
            report.cut.take()
        };
        report
    }

    /// The end of the worker's log, as last heard.
    pub fn known_end(&self) -> Option<Position> {
        lock(&self.known).end.map(|end| end.position)
    }

    /// What the worker is told of how far we are; `None`: there is nothing yet.
    pub fn ack(&self) -> Option<say::Ack> {
        let handles = lock(&self.known).handles.clone()?;
        let applied = handles.applied.lock();
        let place = |position: Option<Position>| position.map(say::Place::from);
        Some(say::Ack {
            received: place(handles.tail.appended().map(|end| end.position)),
            durable: place(handles.tail.durable().map(|end| end.position)),
            applied: place(applied.applied),
            failed: Some(applied.failed_total + applied.differing.total),
            held: applied.hold.as_ref().map(|hold| hold.what.clone()),
        })
    }

    pub fn snapshot(&self) -> Status {
        let mut status = lock(&self.known).status.clone();
        status.now = Stamp::now();
        status
    }

    /// Brings the status up to date.
    pub fn refresh(&self) -> Status {
        let mut guard = lock(&self.known);
        let known = &mut *guard;
        let status = &mut known.status;
        status.now = Stamp::now();
        let Some(handles) = known.handles.clone() else {
            return status.clone();
        };
        let applied = handles.applied.lock().clone();
        let durable = handles.tail.durable();
        let report = &known.report;
        status.alarm.clone_from(&applied.alarm);
        status.detector = report.detector.as_ref().map(|detector| DetectorStatus {
            uses: detector.uses,
            why: detector.why.clone(),
        });
        status.positions = Positions {
            received: handles.tail.appended().map(|end| end.position),
            durable: durable.map(|end| end.position),
            applied: applied.applied,
        };
        let end = known.end.max_by_position(durable);
        let sequence = |position: Option<Position>| position.map_or(0, |at| at.sequence);
        let behind =
            sequence(end.map(|end| end.position)).saturating_sub(sequence(applied.applied));
        let comes = known.connected && report.cut.is_none();
        // What happens at the source since the worker's last word nobody here knows.
        let unheard = known.heard.map_or(Duration::ZERO, |heard| heard.elapsed());
        let silent = !comes || unheard > HEARTBEAT + LATE;
        if behind == 0 && !silent {
            known.caught_up = Instant::now();
        }
        let seconds = match applied.waiting_since_ns {
            Some(since) if behind > 0 => {
                let there = i128::from(now_ns()) + i128::from(known.offset_ns);
                (there - i128::from(since)).max(0) as f64 / 1e9
            }
            // On its way, or nobody knows: since when all was well.
            _ if silent => known.caught_up.elapsed().max(unheard).as_secs_f64(),
            _ if behind > 0 => known.caught_up.elapsed().as_secs_f64(),
            _ => 0.0,
        };
        let unread = report.behind_since_ns.map_or(0.0, |since| {
            let there = i128::from(now_ns()) + i128::from(known.offset_ns);
            (there - i128::from(since)).max(0) as f64 / 1e9
        });
        let cut = report.cut.as_ref().map_or(0.0, |cut| {
            let there = i128::from(now_ns()) + i128::from(known.offset_ns);
            (there - i128::from(cut.since_ns)).max(0) as f64 / 1e9
        });
        status.lag = Lag {
            seconds: unread.max(seconds).max(cut),
            records: behind,
            bytes: 0,
        };
        if report.last_change.is_some() {
            status.last_change.clone_from(&report.last_change);
        }
        if report.scans > 0 || report.entries > 0 {
            (status.entries, status.files, status.bytes) =
                (report.entries, report.files, report.bytes);
        }
        let counters = &mut status.counters;
        *counters = report.counters;
        counters.adopted = applied.counts.adopted;
        counters.moved_aside = applied.counts.moved_aside;
        counters.repaired = counters.repaired.saturating_add(applied.repaired);
        counters.records = sequence(end.map(|end| end.position));
        let mut failed: Vec<_> = report
            .failed
            .iter()
            .chain(&applied.failed)
            .chain(&applied.differing.listed)
            .cloned()
            .collect();
        failed.sort_by_key(|failed| failed.since);
        failed.truncate(FAILED_MAX);
        status.failed = failed;
        status.failed_total = report
            .failed_total
            .saturating_add(applied.failed_total)
            .saturating_add(applied.differing.total);
        status.not_mirrored.clone_from(&report.not_mirrored);
        let recorded = &applied.recorded;
        status.recorded = [
            ("owners", recorded.owners),
            ("setid", recorded.setid),
            ("devices", recorded.devices),
            ("xattrs", recorded.xattrs),
            ("labels", recorded.labels),
            ("flags", recorded.flags),
            ("projects", recorded.projects),
            ("times", recorded.times),
        ]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| (what.to_string(), count))
        .collect();
        status.space = space(&handles.dst);
        status.aside = self.aside.known();
        status.rolling = applied.rolling;
        status.history = applied.history;
        status.replicas = self.followers.replicas(durable.map(|end| end.position));
        status.travelling = applied.travelling;
        status.link = self.links.get().map(|link| link.told());
        status.held_to = report.held_to.filter(|_| comes && behind > 0);
        let scanning = report.scan.is_some();
        let well = status.failed_total == 0 && status.counters.fuzzy == 0;
        let held = applied.hold.is_some() || report.hold.is_some();
        if known.arrived && comes && behind == 0 && !scanning && well && !held {
            status.equal_at = Some(status.now);
        }
        status.state = if let Some(hold) = applied.hold.as_ref().or(report.hold.as_ref()) {
            State::Hold(hold.clone())
        } else if let Some(reason) = &applied.waits {
            State::Failed {
                reason: reason.clone(),
            }
        } else if !known.connected && (known.ever || known.tried) {
            State::Disconnected {
                since: known.since,
                reason: known.reason.clone(),
            }
        } else if !known.connected {
            State::Starting
        } else if let Some(cut) = &report.cut {
            let here = cut
                .since_ns
                .saturating_add_signed(known.offset_ns.saturating_neg());
            State::Disconnected {
                since: Stamp::from_ns(here),
                reason: cut.why.clone(),
            }
        } else if !known.arrived {
            State::Seeding {
                files: applied.counts.created + applied.counts.adopted,
                files_total: (!scanning && report.scans > 0).then_some(report.entries),
                bytes: applied.counts.content_bytes,
                bytes_total: (!scanning && report.scans > 0).then_some(report.bytes),
                bytes_per_s: 0,
                eta_s: None,
            }
        } else {
            State::Following
        };
        status.clone()
    }

    /// How far the rows are, after a moment.
    pub fn passed(&self, moment: Duration) -> Option<Position> {
        let applied = lock(&self.known)
            .handles
            .as_ref()
            .map(|handles| handles.applied.clone());
        let Some(applied) = applied else {
            std::thread::sleep(moment);
            return None;
        };
        let state = applied.lock();
        applied.wait(state, moment).passed
    }

    /// The link, waited for a little.
    fn link(&self, until: &Until<'_>) -> Result<Arc<Link>, ControlError> {
        let patience = Instant::now() + LINK_WAIT;
        loop {
            if let Some(link) = self.links.get() {
                return Ok(link);
            }
            self.not_resting()?;
            if until.over() || Instant::now() >= patience {
                return Err(ControlError::Unreachable(format!(
                    "the source is not connected: {}",
                    self.last_reason()
                )));
            }
            self.links.wait(until.nap().min(Duration::from_millis(100)));
        }
    }

    fn not_resting(&self) -> Result<(), ControlError> {
        if self.with(|want| want.paused) {
            return Err(ControlError::Busy(
                "the mirror is paused: `fs_mirror resume` lets it go on".into(),
            ));
        }
        match self.held() {
            Some(hold) => Err(ControlError::Held(hold.what)),
            None => Ok(()),
        }
    }

    fn held(&self) -> Option<Hold> {
        match self.refresh().state {
            State::Hold(hold) => Some(hold),
            _ => None,
        }
    }

    fn handles(&self, until: &Until<'_>) -> Result<Handles, ControlError> {
        loop {
            if let Some(handles) = lock(&self.known).handles.clone() {
                return Ok(handles);
            }
            self.not_resting()?;
            if until.over() {
                return Err(ControlError::Timeout("the mirror is starting".into()));
            }
            std::thread::sleep(until.nap().min(Duration::from_millis(50)));
        }
    }

    /// What happened at the source before now is in the worker's log up to here.
    pub fn barrier(&self, until: &Until<'_>) -> Result<Covered, ControlError> {
        loop {
            let asked = self.link(until)?.barrier();
            let Ok(answer) = asked else { continue };
            loop {
                match answer.recv_timeout(until.nap()) {
                    Ok(covered) => {
                        if let Some(error) = covered.report.error {
                            return Err(ControlError::Failed(crate::link::conn::escaped(&error)));
                        }
                        return Ok(covered);
                    }
                    // The link broke: asked again on the next one.
                    Err(RecvTimeoutError::Disconnected) => break,
                    Err(RecvTimeoutError::Timeout) => {
                        self.not_resting()?;
                        if until.over() {
                            return Err(ControlError::Timeout(
                                "what was written before is not all in the log yet".into(),
                            ));
                        }
                    }
                }
            }
        }
    }

    fn wait_applied(
        &self,
        wanted: Option<Position>,
        until: &Until<'_>,
    ) -> Result<(), ControlError> {
        loop {
            let handles = self.handles(until)?;
            let state = handles.applied.lock();
            if let Some(hold) = &state.hold {
                return Err(ControlError::Held(hold.what.clone()));
            }
            if wanted.is_none_or(|wanted| state.applied >= Some(wanted)) {
                return Ok(());
            }
            if until.over() {
                let shown = |position: Option<Position>| {
                    position.map_or("nothing".to_string(), |position| position.to_string())
                };
                return Err(ControlError::Timeout(format!(
                    "applied {}, waiting for {}",
                    shown(state.applied),
                    shown(wanted)
                )));
            }
            let nap = until.nap().min(Duration::from_millis(50));
            drop(handles.applied.wait(state, nap));
        }
    }

    /// What had failed and is on its way now has come, or failed again.
    fn wait_again(&self, until: &Until<'_>) -> Result<(), ControlError> {
        loop {
            let handles = self.handles(until)?;
            let state = handles.applied.lock();
            if state.again == 0 {
                return Ok(());
            }
            if until.over() {
                let what = "what had failed before is still on its way";
                return Err(ControlError::Timeout(what.into()));
            }
            let nap = until.nap().min(Duration::from_millis(50));
            drop(handles.applied.wait(state, nap));
        }
    }

    /// Rows and tree of the copy durable.
    fn checkpoint(&self, until: &Until<'_>) -> Result<(), ControlError> {
        let handles = self.handles(until)?;
        let (done, answer) = bounded(1);
        let _ = handles.apply_orders.send(ApplyOrder::Checkpoint(done));
        loop {
            match answer.recv_timeout(until.nap()) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(text)) => return Err(ControlError::Failed(text)),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(ControlError::Busy("the mirror is restarting".into()));
                }
                Err(RecvTimeoutError::Timeout) if until.over() => {
                    return Err(ControlError::Timeout("saving the copy's index".into()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// The later of two ends.
trait Later {
    fn max_by_position(self, other: Option<End>) -> Option<End>;
}

impl Later for Option<End> {
    fn max_by_position(self, other: Option<End>) -> Option<End> {
        match (self, other) {
            (Some(a), Some(b)) if a.position < b.position => Some(b),
            (Some(a), _) => Some(a),
            (None, b) => b,
        }
    }
}

impl Control for Hub {
    fn status(&self) -> Status {
        self.refresh()
    }

    fn wait_idle(&self, until: &Until<'_>) -> Result<WaitReport, ControlError> {
        let mut rounds = 0;
        let covered = loop {
            let covered = self.barrier(until)?;
            self.wait_applied(covered.position, until)?;
            // What failed is tried again; what the source was asked about is in the log at the next barrier.
            let handles = self.handles(until)?;
            let failed = handles.applied.lock().failed_total;
            if failed == 0 || rounds == AGAIN_ROUNDS || !try_again(&handles.apply_orders, until) {
                break covered;
            }
            rounds += 1;
            self.wait_again(until)?;
        };
        while !self.handles(until)?.adopted.load(Ordering::Acquire) {
            self.wait_applied(covered.position, until)?;
            if until.over() {
                let what = "what the source does not have is being moved aside";
                return Err(ControlError::Timeout(what.into()));
            }
            std::thread::sleep(until.nap().min(Duration::from_millis(10)));
        }
        self.checkpoint(until)?;
        let status = self.refresh();
        Ok(WaitReport {
            positions: status.positions,
            failed: status.failed,
            failed_total: status.failed_total,
            fuzzy: covered.report.fuzzy,
            fuzzy_total: covered.report.fuzzy_total,
            ..WaitReport::default()
        })
    }

    fn past(&self, ask: Ask) -> Result<Answer, ControlError> {
        let until = Until {
            at: Some(Instant::now() + Duration::from_secs(5)),
            gone: &|| false,
        };
        past(&self.handles(&until)?.apply_orders, ask)
    }

    fn wait_position(
        &self,
        position: Position,
        until: &Until<'_>,
    ) -> Result<WaitReport, ControlError> {
        self.wait_applied(Some(position), until)?;
        let (status, report) = (self.refresh(), self.known_report());
        Ok(WaitReport {
            positions: status.positions,
            failed: status.failed,
            failed_total: status.failed_total,
            fuzzy: report.fuzzy,
            fuzzy_total: report.fuzzy_total,
            ..WaitReport::default()
        })
    }

    fn pause(&self) -> Result<(), ControlError> {
        self.order(|want| want.paused = true);
        for _ in 0..300 {
            {
                let known = lock(&self.known);
                if known.handles.is_none() && matches!(known.status.state, State::Paused { .. }) {
                    return Ok(());
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(ControlError::Timeout(
            "the mirror did not come to rest within 30 s".into(),
        ))
    }

    fn resume(&self) -> Result<(), ControlError> {
        self.order(|want| want.paused = false);
        Ok(())
    }

    fn release(&self, yes: bool) -> Result<ReleaseReport, ControlError> {
        let Some(hold) = self.held() else {
            let alarm = self.refresh().alarm;
            let handles = lock(&self.known).handles.clone();
            let orders = handles.map(|handles| handles.apply_orders);
            return Ok(released_alarm(alarm, orders, yes));
        };
        let mut report = ReleaseReport {
            gone: hold.gone.unwrap_or(0),
            hold: Some(hold.clone()),
            released: yes,
            ..ReleaseReport::default()
        };
        let ours = hold.reason == HoldReason::MassChange;
        let handles = lock(&self.known).handles.clone().filter(|_| ours);
        if let Some(going) = handles.as_ref().and_then(|h| going(&h.apply_orders)) {
            report.add(going);
        }
        if !yes || !hold.reason.can_be_released() {
            report.released = false;
            return Ok(report);
        }
        if ours {
            if let Some(handles) = handles {
                let _ = handles.apply_orders.send(ApplyOrder::Release);
                // Whoever asks next must not find it held any more.
                handles.applied.wait_released(RELEASED_WITHIN);
            }
            return Ok(report);
        }
        // The worker holds: it must hear it.
        self.let_through()?;
        Ok(report)
    }

    fn forget(&self, replica: &str) -> Result<Vec<String>, ControlError> {
        let names = self.followers.forget(replica, &self.state_dir);
        for name in &names {
            let name = escape(name.as_bytes());
            self.ui
                .event(Event::Notice(format!("no log is kept for {name} any more")));
        }
        Ok(names)
    }

    fn verify(
        &self,
        options: VerifyOptions,
        line: &mut dyn FnMut(VerifyLine) -> bool,
    ) -> Result<VerifyEnd, ControlError> {
        let forever = Until {
            at: None,
            gone: &|| false,
        };
        // What waits, or is held, does not matter to a comparison of the copy with its own index.
        if options.against == Against::Source {
            self.wait_idle(&forever)?;
        }
        let handles = self.handles(&forever)?;
        verify::verify(self, &handles, options, line)
    }

    fn stop(&self) {
        self.order(|want| want.stop = true);
    }
}
