//! What happened: `log` and `timeline`.

use std::collections::VecDeque;
use std::ffi::OsStr;

use mirror_core::history::Moment;
use mirror_core::{Name, escape};
use serde_json::json;

use crate::cli::args::{HistoryLogArgs, TimelineArgs};
use crate::cli::exit::{CliError, Exit};
use crate::cli::past::{Past, position};
use crate::cli::{text, ui};
use crate::history::ask::{Answer, Ask, Hex};
use crate::history::changes::{By, Change, Op};

/// Lines gathered at most, whatever is asked for.
const LINES_MAX: usize = 10_000_000;
/// A directory's entries are removed before it: so long before, they are told with it.
const FOLD_NS: u64 = 600_000_000_000;
/// Lines of something else in between.
const OTHERS_MAX: usize = 64;

/// Which changes are meant.
#[derive(Default)]
struct Filter {
    who: Vec<Who>,
    op: Vec<Op>,
    /// Below it, or it itself.
    path: Option<Vec<u8>>,
    until_ns: Option<u64>,
}

pub enum Who {
    Uid(u32),
    Pid(u32),
    Exe(String),
}

impl Who {
    pub fn parse(text: &str) -> Result<Who, CliError> {
        let bad = || {
            CliError::usage(format!(
                "--who is uid=N, pid=N or exe=/path/of/program, not {:?}",
                escape(text.as_bytes())
            ))
        };
        match text.split_once('=') {
            Some(("uid", uid)) => uid.parse().map(Who::Uid).map_err(|_| bad()),
            Some(("pid", pid)) => pid.parse().map(Who::Pid).map_err(|_| bad()),
            Some(("exe", exe)) if !exe.is_empty() => Ok(Who::Exe(exe.into())),
            _ => Err(bad()),
        }
    }
    pub fn fits(&self, by: Option<&By>) -> bool {
        let Some(by) = by else { return false };
        match self {
            Who::Uid(uid) => by.uid == Some(*uid),
            Who::Pid(pid) => by.pid == Some(*pid),
            Who::Exe(exe) => by.exe.as_ref() == Some(exe),
        }
    }
}

pub fn op(text: &str) -> Result<Op, CliError> {
    Op::ALL
        .into_iter()
        .find(|op| op.word() == text)
        .ok_or_else(|| {
            let words: Vec<&str> = Op::ALL.iter().map(|op| op.word()).collect();
            CliError::usage(format!(
                "--op is one of {}, not {:?}",
                words.join(", "),
                escape(text.as_bytes())
            ))
        })
}

impl Filter {
    fn wants(&self, change: &Change) -> bool {
        let within = |path: &[u8]| match &self.path {
            None => true,
            Some(top) => path
                .strip_prefix(top.as_slice())
                .is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/')),
        };
        let to = change.to.as_ref().is_some_and(|to| within(&to.0));
        (within(&change.path.0) || to)
            && (self.op.is_empty() || self.op.contains(&change.op))
            && self.who.iter().all(|who| who.fits(change.who.as_ref()))
            && self.until_ns.is_none_or(|until| change.there_ns <= until)
    }
}

impl Past {
    /// All changes after one moment and up to another, oldest first, until `each` is false.
    pub fn changes(
        &mut self,
        (mut after, until): (Moment, Moment),
        each: &mut dyn FnMut(Change) -> bool,
    ) -> Result<(), CliError> {
        loop {
            let ask = Ask::Changes {
                after: after.0,
                until: until.0,
            };
            let Answer::Changes { changes, next } = self.ask(&ask)? else {
                return Err(CliError::failed("the answer is not of this version"));
            };
            for change in changes {
                if !each(change) {
                    return Ok(());
                }
            }
            match next {
                Some(next) if next > after.0 => after = Moment(next),
                _ => return Ok(()),
            }
        }
    }

    /// The range that `--since` and `--until` mean.
    fn range(
        &mut self,
        since: Option<&str>,
        until: Option<&str>,
    ) -> Result<(Moment, Moment), CliError> {
        let after = match since {
            // Before all that is kept is no mistake here.
            Some(since) => match self.stand(since) {
                Ok(stand) => stand.moment,
                Err(e) if e.line.contains(super::BEFORE) => Moment(0),
                Err(e) => return Err(e),
            },
            None => Moment(0),
        };
        let until = match until {
            Some(until) => self.stand(until)?.moment,
            None => Moment(self.window()?.moment),
        };
        Ok((after, until))
    }

    /// What happened to a path, oldest first; below it, if it is or was a directory.
    fn changes_of(
        &mut self,
        path: &[Name],
        between: (Moment, Moment),
        each: &mut dyn FnMut(Change) -> bool,
    ) -> Result<bool, CliError> {
        let ask = Ask::ChangesOf {
            path: path
                .iter()
                .map(|name| Hex(name.as_bytes().to_vec()))
                .collect(),
        };
        let Answer::Changes { changes, .. } = self.ask(&ask)? else {
            return Err(CliError::failed("the answer is not of this version"));
        };
        let is_dir = |brief: &Option<crate::history::changes::Brief>| {
            brief
                .as_ref()
                .is_some_and(|brief| brief.kind == "directory")
        };
        let was_dir = changes
            .iter()
            .any(|change| is_dir(&change.before) || is_dir(&change.after));
        let now = Moment(self.window()?.moment);
        let found = self.tree(now).find(path)?;
        if was_dir
            || found
                .as_ref()
                .is_some_and(|entry| entry.state.kind.is_dir())
        {
            return Ok(false);
        }
        let known = found.is_some() || !changes.is_empty();
        for change in changes {
            let moment = Moment(change.moment);
            if moment > between.0 && moment <= between.1 && !each(change) {
                break;
            }
        }
        match known {
            true => Ok(true),
            false => Err(CliError::usage(format!(
                "nothing is known of {}: no change of it is kept, and it is not there now",
                super::shown(path)
            ))),
        }
    }
}

fn joined(path: &[Name]) -> Vec<u8> {
    let names: Vec<&[u8]> = path.iter().map(Name::as_bytes).collect();
    names.join(&b'/')
}

/// Each wanted change, oldest first, through all parts of the history from the one on that `--since` is in.
fn gather(
    past: &mut Past,
    (path, named): (Option<&OsStr>, bool),
    (since, until): (Option<&str>, Option<&str>),
    filter: &mut Filter,
    each: &mut dyn FnMut(Change),
) -> Result<(), CliError> {
    let mut between = past.range(since, until)?;
    loop {
        let done = gather_here(past, path, named, between, filter, each);
        // Another part may know it.
        if past.part().is_none() {
            return done;
        }
        past.go_on();
        between = match past.range(None, until) {
            Ok(between) => between,
            Err(e) if e.line.contains(super::BEFORE) => return Ok(()),
            Err(e) => return Err(e),
        };
    }
}

fn gather_here(
    past: &mut Past,
    path: Option<&OsStr>,
    named: bool,
    between: (Moment, Moment),
    filter: &mut Filter,
    each: &mut dyn FnMut(Change),
) -> Result<(), CliError> {
    if let Some(path) = path {
        let path = past.path(path, named)?;
        if !path.is_empty() {
            let mut one = |change: Change| {
                if filter.wants(&change) {
                    each(change);
                }
                true
            };
            if past.changes_of(&path, between, &mut one)? {
                return Ok(());
            }
            filter.path = Some(joined(&path));
        }
    }
    past.changes(between, &mut |change| {
        if filter.wants(&change) {
            each(change);
        }
        true
    })
}

/// A directory that was emptied and removed is one line.
fn fold(lines: &mut VecDeque<Change>, change: &mut Change) {
    let is_dir = change
        .before
        .as_ref()
        .is_some_and(|brief| brief.kind == "directory");
    if change.op != Op::Remove || !is_dir {
        return;
    }
    let mut top = change.path.0.clone();
    top.push(b'/');
    let mut at = lines.len();
    let mut others = 0;
    while at > 0 && others < OTHERS_MAX {
        at -= 1;
        let Some(line) = lines.get(at) else { break };
        if change.there_ns.saturating_sub(line.there_ns) > FOLD_NS {
            break;
        }
        let inside = line.path.0.starts_with(&top) && line.op == Op::Remove;
        let own = line.path == change.path && line.op == Op::Attributes;
        if !inside && !own {
            others += 1;
            continue;
        }
        others = 0;
        if inside {
            change.below += 1 + line.below;
        }
        lines.remove(at);
    }
}

pub fn run(args: &HistoryLogArgs) -> Result<Exit, CliError> {
    let mut past = Past::open(&args.which)?;
    let mut filter = Filter {
        who: args
            .who
            .iter()
            .map(|who| Who::parse(who))
            .collect::<Result<_, _>>()?,
        op: args
            .op
            .iter()
            .map(|text| op(text))
            .collect::<Result<_, _>>()?,
        ..Filter::default()
    };
    let most = if args.lines == 0 {
        LINES_MAX
    } else {
        args.lines
    };
    let mut lines: VecDeque<Change> = VecDeque::new();
    let mut left_out = 0u64;
    let named = args.which.mirror.is_some();
    gather(
        &mut past,
        (args.path.as_deref(), named),
        (args.since.as_deref(), args.until.as_deref()),
        &mut filter,
        &mut |mut change| {
            fold(&mut lines, &mut change);
            lines.push_back(change);
            // Room for what a directory's removal will fold.
            if lines.len() > most.saturating_mul(2).max(100_000) {
                lines.pop_front();
                left_out += 1;
            }
        },
    )?;
    while lines.len() > most {
        lines.pop_front();
        left_out += 1;
    }
    let colour = ui::colour(&ui::output(args.say.json, args.say.quiet, args.say.verbose));
    let begins = past.window()?.begins.map_or(0, |begins| begins.here_ns);
    for change in lines.iter().rev() {
        match args.say.json {
            true => ui::say(&as_json(change).to_string()),
            false => ui::say(&line(&past, change, colour)),
        }
        // Of an earlier part the positions are others.
        if args.patch && change.op == Op::Write && change.here_ns >= begins {
            super::diff::patch_of(&mut past, change)?;
        }
    }
    if !args.say.json && !args.say.quiet {
        if lines.is_empty() {
            ui::complain("no changes are kept of that");
        } else if let Some(part) = past.parts().last()
            && args.since.is_none()
        {
            ui::complain(&format!(
                "the copy was compared anew: what was before is in part {part} of the history, --since with a time in it shows that"
            ));
        }
        if left_out > 0 {
            ui::complain(&format!(
                "{} older are not shown: -n 0 shows all",
                text::count(left_out)
            ));
        }
    }
    Ok(Exit::Done)
}

pub fn as_json(change: &Change) -> serde_json::Value {
    let brief = |brief: &Option<crate::history::changes::Brief>| {
        brief.as_ref().map(|brief| {
            json!({
                "kind": brief.kind, "bytes": brief.bytes, "mode": format!("{:o}", brief.mode),
                "uid": brief.uid, "gid": brief.gid, "fuzzy": brief.fuzzy,
                "blake3": brief.digest.as_ref().map(|hex| serde_json::to_value(hex).unwrap_or_default()),
            })
        })
    };
    json!({
        "position": position(change.moment).to_string(),
        "time_ns": change.there_ns, "applied_ns": change.here_ns,
        "op": change.op.word(), "path": escape(&change.path.0),
        "to": change.to.as_ref().map(|to| escape(&to.0)), "over": change.over,
        "before": brief(&change.before), "after": brief(&change.after),
        "entries": change.below, "object": change.object,
        "who": change.who.as_ref().map(|by| json!({"pid": by.pid, "uid": by.uid, "exe": by.exe})),
    })
}

fn line(past: &Past, change: &Change, colour: bool) -> String {
    let op = match (colour, change.op) {
        (true, Op::Remove) => format!("\x1b[31m{:<10}\x1b[0m", change.op.word()),
        (true, Op::Create) => format!("\x1b[32m{:<10}\x1b[0m", change.op.word()),
        (_, op) => format!("{:<10}", op.word()),
    };
    let mut line = format!(
        "{}  {op}  {}",
        past.time(change.there_ns),
        escape(&change.path.0)
    );
    if let Some(to) = &change.to {
        let over = if change.over { " (replaced)" } else { "" };
        line.push_str(&format!(" -> {}{over}", escape(&to.0)));
    }
    let is_dir = change
        .before
        .as_ref()
        .is_some_and(|brief| brief.kind == "directory");
    if is_dir && change.op == Op::Remove {
        line.push('/');
        if change.below > 0 {
            let entries = text::counted(change.below, "entry", "entries");
            line.push_str(&format!(" with {entries}"));
        }
    }
    let sizes =
        |brief: &Option<crate::history::changes::Brief>| brief.as_ref().and_then(|b| b.bytes);
    match (sizes(&change.before), sizes(&change.after)) {
        (Some(a), Some(b)) if change.op == Op::Write => {
            line.push_str(&format!("  {} -> {}", text::bytes(a), text::bytes(b)));
        }
        (_, Some(b)) if change.op == Op::Create => line.push_str(&format!("  {}", text::bytes(b))),
        (Some(a), _) if change.op == Op::Remove => line.push_str(&format!("  {}", text::bytes(a))),
        _ => {}
    }
    if let (Op::Attributes, Some(a), Some(b)) = (change.op, &change.before, &change.after) {
        if a.mode != b.mode {
            line.push_str(&format!("  mode {:o} -> {:o}", a.mode, b.mode));
        }
        if (a.uid, a.gid) != (b.uid, b.gid) {
            line.push_str(&format!(
                "  owner {}:{} -> {}:{}",
                a.uid, a.gid, b.uid, b.gid
            ));
        }
    }
    if let Some(digest) = change.after.as_ref().and_then(|b| b.digest.as_ref())
        && matches!(change.op, Op::Write | Op::Create)
    {
        let short: String = digest
            .0
            .iter()
            .take(6)
            .map(|b| format!("{b:02x}"))
            .collect();
        line.push_str(&format!("  {short}"));
    }
    line.push_str(&format!("  {}", who(change.who.as_ref())));
    line.push_str(&format!("  pos:{}", position(change.moment)));
    line
}

pub fn who(by: Option<&By>) -> String {
    let Some(by) = by else {
        return "who: unknown".into();
    };
    let mut parts = Vec::new();
    parts.extend(by.exe.clone());
    parts.extend(by.pid.map(|pid| format!("pid {pid}")));
    parts.extend(by.uid.map(|uid| format!("uid {uid}")));
    match parts.is_empty() {
        true => "who: unknown".into(),
        false => parts.join(" "),
    }
}

pub fn timeline(args: &TimelineArgs) -> Result<Exit, CliError> {
    let mut past = Past::open(&args.which)?;
    let mut minutes: std::collections::BTreeMap<i64, (u64, u64)> = Default::default();
    let named = args.which.mirror.is_some();
    let mut filter = Filter::default();
    gather(
        &mut past,
        (args.path.as_deref(), named),
        (args.since.as_deref(), args.until.as_deref()),
        &mut filter,
        &mut |change| {
            let minute = (change.there_ns / 1_000_000_000) as i64 / 60 * 60;
            let of = minutes.entry(minute).or_default();
            let count = 1 + change.below;
            of.0 += count;
            if change.op == Op::Remove {
                of.1 += count;
            }
        },
    )?;
    super::diff::show_timeline(&past, &minutes, args.say)
}
