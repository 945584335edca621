//! Letting go of old versions, and why each is kept. What would go is found here, in files that are only read; what goes is
//! let go by the process that has the mirror.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use mirror_core::history::Moment;
use mirror_core::history::retention::{Fate, MirrorTime};
use mirror_core::{ObjectId, escape};
use serde_json::json;

use crate::cli::args::PruneArgs;
use crate::cli::exit::{CliError, Exit, chain};
use crate::cli::past::{Asked, Past, odd};
use crate::cli::text::{bytes, counted};
use crate::cli::ui;
use crate::engine::local::outer::space;
use crate::history::ask::{Answer, Ask};
use crate::history::prune::{Judged, Orders, Pruner, Report, Zones};

/// Files that are named as the largest.
const TOP: usize = 10;
const ASK_EVERY: Duration = Duration::from_millis(100);

pub fn run(args: &PruneArgs) -> Result<Exit, CliError> {
    let mut past = Past::open(&args.which)?;
    if args.top {
        for line in top(&mut past, args.say.json)? {
            ui::say(&line);
        }
        return Ok(Exit::Done);
    }
    let report = match args.dry_run {
        true => look(&mut past, args)?,
        false => past.prune(args.force)?,
    };
    if args.say.json {
        let report = serde_json::to_value(&report).unwrap_or_default();
        ui::say(&json!({"dry_run": args.dry_run, "report": report}).to_string());
    } else if !args.say.quiet {
        ui::say(&line(&report, args.dry_run));
        if report.missing > 0 {
            let what = match report.locked {
                true => "what is left is locked",
                false => "the rest is held by snapshots with --keep, or is the catalogue",
            };
            ui::complain(&format!(
                "{} more than history may take: {what}",
                bytes(report.missing)
            ));
        }
    }
    Ok(Exit::Done)
}

fn line(report: &Report, dry_run: bool) -> String {
    let gone = counted(report.gone, "version", "versions");
    let goes = match dry_run {
        true => format!("{gone} would go, {} free", bytes(report.gone_bytes)),
        false => format!("{gone} went, {} free", bytes(report.gone_bytes)),
    };
    let mut out = format!(
        "{goes}; {} and {} of catalogue are there{}",
        counted(report.kept, "version", "versions"),
        bytes(report.catalogue_bytes),
        if dry_run { " now" } else { "" },
    );
    if report.for_space > 0 {
        out.push_str(&format!(
            "; {} of them for want of room",
            counted(report.for_space, "version", "versions")
        ));
    }
    out
}

/// One pass that only looks.
fn pass(
    past: &mut Past,
    force: bool,
    each: &mut dyn FnMut(&Judged<'_>),
) -> Result<Report, CliError> {
    let window = past.window()?;
    let failed = |e: &dyn std::error::Error| CliError::failed(chain(e));
    let zones = Zones::known(&past.state_dir, &past.keeping.policy.timezone);
    let mut pruner = Pruner::open(&past.state_dir, zones).map_err(|e| failed(&e))?;
    let space = || space(&past.dst).map(|space| (space.bytes_total, space.bytes_free));
    let orders = Orders {
        eras: pruner.eras(),
        budget: past.keeping.budget_of(space().map_or(0, |space| space.0)),
        now: MirrorTime::of_ns(window.now_ns),
        until: Moment(window.moment),
        force,
        dry_run: true,
    };
    let report = pruner.run(&orders, &space, &|| true, each);
    report.map_err(|e| failed(&e))
}

/// A version, and why it stays or goes.
struct Told {
    object: ObjectId,
    until: Moment,
    until_ns: u64,
    bytes: u64,
    fate: Fate,
    why: Vec<(&'static str, String)>,
}

impl Told {
    fn of(judged: &Judged<'_>) -> Told {
        let version = &judged.kept.version;
        let why = match judged.fate.drops() {
            true => Vec::new(),
            false => {
                let reasons = judged.rules.explain(version).into_iter();
                reasons.map(|why| (why.name(), why.to_string())).collect()
            }
        };
        Told {
            object: judged.kept.slot.object,
            until: version.z,
            until_ns: version.until.ns(),
            bytes: judged.bytes,
            fate: judged.fate,
            why,
        }
    }

    /// In one line.
    fn reason(&self) -> String {
        match self.fate {
            Fate::Keep => {
                let all: Vec<&str> = self.why.iter().map(|(_, text)| text.as_str()).collect();
                all.join("; ")
            }
            Fate::Drop => "no rule keeps it".into(),
            Fate::Forced => "promised, but --force".into(),
            Fate::ForSpace => "want of room".into(),
        }
    }
}

fn look(past: &mut Past, args: &PruneArgs) -> Result<Report, CliError> {
    // What goes for want of room is told again then.
    let mut told: BTreeMap<(Moment, ObjectId), Told> = BTreeMap::new();
    let report = pass(past, args.force, &mut |judged| {
        if args.explain {
            let slot = judged.kept.slot;
            told.insert((slot.until, slot.object), Told::of(judged));
        }
    })?;
    let told: Vec<Told> = told.into_values().collect();
    for some in told.chunk_by(|a, b| a.until == b.until) {
        let ids: Vec<ObjectId> = some.iter().map(|one| one.object).collect();
        let paths = paths(past, some.first().map_or(Moment(0), |one| one.until), &ids)?;
        for (one, path) in some.iter().zip(paths) {
            let word = if one.fate.drops() { "goes" } else { "stays" };
            if args.say.json {
                let rules: Vec<&str> = one.why.iter().map(|(name, _)| *name).collect();
                let version = json!({
                    "path": path, "until_ns": one.until_ns, "bytes": one.bytes, "stays": !one.fate.drops(),
                    "rules": rules, "why": one.reason(),
                });
                ui::say(&version.to_string());
            } else {
                ui::say(&format!(
                    "{word}  until {}  {}  {}: {}",
                    past.time(one.until_ns),
                    bytes(one.bytes),
                    path,
                    one.reason()
                ));
            }
        }
    }
    Ok(report)
}

/// The paths that objects had just before a position.
fn paths(past: &mut Past, until: Moment, ids: &[ObjectId]) -> Result<Vec<String>, CliError> {
    let before = Moment(until.0.saturating_sub(1));
    let known = past.objects(before, ids)?;
    let path = |(known, id): (Option<crate::history::ask::Known>, &ObjectId)| {
        let path = known.and_then(|known| known.path);
        path.map_or(format!("object {}", id.0), |path| escape(&path))
    };
    Ok(known.into_iter().zip(ids).map(path).collect())
}

/// The files whose old versions take most, a line each.
pub fn top(past: &mut Past, as_json: bool) -> Result<Vec<String>, CliError> {
    let mut sums: HashMap<ObjectId, (u64, u64, Moment)> = HashMap::new();
    pass(past, false, &mut |judged| {
        let slot = judged.kept.slot;
        let sum = sums.entry(slot.object).or_insert((0, 0, slot.until));
        *sum = (sum.0 + judged.bytes, sum.1 + 1, slot.until.max(sum.2));
    })?;
    let mut sums: Vec<(ObjectId, (u64, u64, Moment))> = sums.into_iter().collect();
    sums.sort_by_key(|(id, (bytes, ..))| (std::cmp::Reverse(*bytes), *id));
    let mut lines = Vec::new();
    for (id, (taken, versions, until)) in sums.into_iter().take(TOP) {
        let path = paths(past, until, &[id])?.into_iter().next();
        let path = path.unwrap_or_default();
        lines.push(match as_json {
            true => json!({"path": path, "bytes": taken, "versions": versions}).to_string(),
            false => format!(
                "{}  {}  {path}",
                bytes(taken),
                counted(versions, "version", "versions")
            ),
        });
    }
    if !as_json && !lines.is_empty() {
        lines.push(
            "to free it: a shorter `keep` or a `path` rule in the history settings, then `fs_mirror prune`".into(),
        );
    }
    Ok(lines)
}

impl Past {
    /// One pass, to its end.
    fn prune(&mut self, force: bool) -> Result<Report, CliError> {
        if let Asked::Stopped(stopped) = &mut self.asked {
            let places = (self.state_dir.as_path(), self.dst.as_path());
            return Ok(stopped.prune(places, &self.keeping, force)?);
        }
        let began = loop {
            match self.ask(&Ask::Prune { force })? {
                Answer::PruneBegun(after) => break after,
                Answer::PruneBusy => std::thread::sleep(ASK_EVERY),
                _ => return Ok(odd()?),
            }
        };
        loop {
            match self.ask(&Ask::PruneEnd { after: began })? {
                Answer::Pruned(Some(report)) => return Ok(report),
                Answer::Pruned(None) => std::thread::sleep(ASK_EVERY),
                _ => return Ok(odd()?),
            }
        }
    }
}
