//! What is different between two times: one line a path, or the lines within.

use std::collections::{BTreeMap, BTreeSet};

use mirror_core::history::Moment;
use mirror_core::plan::same_inode_kind;
use mirror_core::{At, Name, ObjectId, State, escape};
use serde_json::json;

use crate::cli::args::{DiffArgs, Say};
use crate::cli::exit::{CliError, Exit};
use crate::cli::past::{Past, Stand, note, position, shown};
use crate::cli::textdiff::{self, Reader, Side, Stat};
use crate::cli::timeline::{Minute, timeline};
use crate::cli::{text, ui};
use crate::history::ask::Known;
use crate::history::changes::{Change, Op};
use crate::history::differs::Touched;

/// One path that differs.
#[derive(Debug, Clone)]
pub struct Differs {
    pub op: Op,
    /// At the earlier time, or the only one.
    pub path: Vec<u8>,
    /// At the later time, if that is another.
    pub to: Option<Vec<u8>>,
    pub before: Option<(ObjectId, State)>,
    pub after: Option<(ObjectId, State)>,
    /// Entries below a directory that came or went whole.
    pub below: u64,
}

impl Past {
    /// All that is not the same at both times. Cost: what changed in between.
    pub fn differs(&mut self, from: Moment, to: Moment) -> Result<Vec<Differs>, CliError> {
        let touched = Touched::between(self, from, to)?;
        self.compare(touched, from, to)
    }

    fn known(
        &mut self,
        moment: Moment,
        ids: &BTreeSet<ObjectId>,
    ) -> Result<BTreeMap<ObjectId, Known>, CliError> {
        let ids: Vec<ObjectId> = ids.iter().copied().collect();
        let found = self.objects(moment, &ids)?;
        let found = ids.into_iter().zip(found);
        Ok(found.filter_map(|(id, known)| Some((id, known?))).collect())
    }

    fn compare(
        &mut self,
        touched: Touched,
        from: Moment,
        to: Moment,
    ) -> Result<Vec<Differs>, CliError> {
        let mut ids = touched.objects.clone();
        for (at, (before, after)) in &touched.names {
            ids.insert(at.parent);
            ids.extend(before.iter().chain(after));
        }
        let then = self.known(from, &ids)?;
        let now = self.known(to, &ids)?;
        let path = |of: &BTreeMap<ObjectId, Known>, at: &At| {
            let mut path = of.get(&at.parent)?.path.clone()?;
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(at.name.as_bytes());
            Some(path)
        };
        let (mut lost, mut gained): (BTreeMap<ObjectId, Vec<&At>>, BTreeMap<ObjectId, Vec<&At>>) =
            Default::default();
        for (at, (before, after)) in &touched.names {
            if let Some(id) = before {
                lost.entry(*id).or_default().push(at);
            }
            if let Some(id) = after {
                gained.entry(*id).or_default().push(at);
            }
        }
        // There at one of the two times only.
        let is_gone = |id: &ObjectId| now.get(id).is_none_or(|known| known.path.is_none());
        let is_new = |id: &ObjectId| then.get(id).is_none_or(|known| known.path.is_none());
        let mut out = Vec::new();
        let mut below: BTreeMap<ObjectId, u64> = BTreeMap::new();
        let state = |of: &BTreeMap<ObjectId, Known>, id: ObjectId| {
            of.get(&id).map(|known| (id, known.state.clone()))
        };
        let mut told = BTreeSet::new();
        for (at, (before, after)) in &touched.names {
            let gone = before.filter(is_gone);
            let new = after.filter(is_new);
            if gone.is_some() && is_gone(&at.parent) && at.parent != ObjectId::ROOT {
                *below.entry(at.parent).or_default() += 1;
                continue;
            }
            if new.is_some() && is_new(&at.parent) && at.parent != ObjectId::ROOT {
                *below.entry(at.parent).or_default() += 1;
                continue;
            }
            let mut differs = |op, path, to| {
                out.push(Differs {
                    op,
                    path,
                    to,
                    before: before.and_then(|id| state(&then, id)),
                    after: after.and_then(|id| state(&now, id)),
                    below: 0,
                });
            };
            match (gone, new) {
                // Another file by the same name.
                (Some(_), Some(_)) => {
                    differs(Op::Write, path(&now, at).unwrap_or_default(), None);
                }
                (Some(_), None) if after.is_none() => {
                    differs(Op::Remove, path(&then, at).unwrap_or_default(), None);
                }
                (None, Some(_)) => differs(Op::Create, path(&now, at).unwrap_or_default(), None),
                _ => {}
            }
            // What is there at both times, under other names.
            for id in [before, after].into_iter().flatten() {
                if is_gone(id) || is_new(id) || !told.insert(*id) {
                    continue;
                }
                let none = Vec::new();
                let mut old = lost.get(id).unwrap_or(&none).iter();
                let mut new = gained.get(id).unwrap_or(&none).iter();
                loop {
                    let (op, name, to_name) = match (old.next(), new.next()) {
                        (None, None) => break,
                        (Some(old), Some(new)) => (Op::Rename, path(&then, old), path(&now, new)),
                        (Some(old), None) => (Op::Unlink, path(&then, old), None),
                        (None, Some(new)) => (Op::Link, path(&now, new), None),
                    };
                    out.push(Differs {
                        op,
                        path: name.unwrap_or_default(),
                        to: to_name,
                        before: state(&then, *id),
                        after: state(&now, *id),
                        below: 0,
                    });
                }
            }
        }
        for id in &touched.objects {
            if (is_gone(id) || is_new(id)) && *id != ObjectId::ROOT {
                continue;
            }
            let (Some(a), Some(b)) = (then.get(id), now.get(id)) else {
                continue;
            };
            let mut same_time = a.state.clone();
            same_time.meta.mtime = b.state.meta.mtime;
            let is_dir = b.state.kind.is_dir();
            if a.state == b.state || (is_dir && same_time == b.state) {
                continue;
            }
            let op = match same_inode_kind(&a.state.kind, &b.state.kind) {
                true => Op::Attributes,
                false => Op::Write,
            };
            let path = b.path.clone().filter(|path| !path.is_empty());
            out.push(Differs {
                op,
                path: path.unwrap_or_else(|| b".".to_vec()),
                to: None,
                before: Some((*id, a.state.clone())),
                after: Some((*id, b.state.clone())),
                below: 0,
            });
        }
        for differs in &mut out {
            let whole = match differs.op {
                Op::Remove => &differs.before,
                Op::Create => &differs.after,
                _ => continue,
            };
            if let Some((id, _)) = whole {
                let of = |(before, after): &(Option<ObjectId>, Option<ObjectId>)| match differs.op {
                    Op::Remove => *before,
                    _ => *after,
                };
                let mut todo = vec![*id];
                while let Some(dir) = todo.pop() {
                    differs.below += below.remove(&dir).unwrap_or(0);
                    let inside = touched.names.iter().filter(|(at, _)| at.parent == dir);
                    todo.extend(
                        inside
                            .filter_map(|(_, ids)| of(ids))
                            .filter(|id| below.contains_key(id)),
                    );
                }
            }
        }
        out.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(out)
    }
}

fn within(differs: &Differs, top: &[u8]) -> bool {
    let inside = |path: &[u8]| {
        top.is_empty()
            || path
                .strip_prefix(top)
                .is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
    };
    inside(&differs.path) || differs.to.as_ref().is_some_and(|to| inside(to))
}

pub fn run(args: &DiffArgs) -> Result<Exit, CliError> {
    let mut past = Past::open(&args.which)?;
    let mut unsure = None;
    let named = args.which.mirror.is_some();
    let now = |past: &mut Past| -> Result<Stand, CliError> { past.stand("now") };
    let (to, path) = match args.rest.as_slice() {
        [] => (now(&mut past)?, Vec::new()),
        [time, path] => {
            let text = time.to_str().unwrap_or_default();
            (past.stand(text)?, past.path(path, named)?)
        }
        // A time if it is one, else a path.
        [one] => match one.to_str().map(|text| past.stand(text)) {
            Some(Ok(stand)) => (stand, Vec::new()),
            Some(Err(e)) if e.line.contains("what is kept") || e.line.contains("in the future") => {
                return Err(e);
            }
            _ => {
                let path = past.path(one, named)?;
                let now = now(&mut past)?;
                unsure = Some(path.clone());
                (now, path)
            }
        },
        _ => return Err(CliError::usage("diff takes T1 [T2] [PATH]")),
    };
    let part = past.part();
    let from = past.stand(&args.from)?;
    if past.part() != part {
        return Err(CliError::usage(format!(
            "{} and the later time lie in two parts of the history: the copy was compared anew in between, so what changed is \
             not known; check both out and compare them",
            escape(args.from.as_bytes())
        )));
    }
    if let Some(path) = unsure
        && past.tree(to.moment).find(&path)?.is_none()
        && past.tree(from.moment).find(&path)?.is_none()
    {
        return Err(CliError::usage(format!(
            "{} is no time and no path that is there now or was there then",
            shown(&path)
        )));
    }
    if from.moment > to.moment {
        return Err(CliError::usage(
            "T1 is later than T2: the earlier time comes first",
        ));
    }
    let quiet = args.say.quiet || args.patch;
    note(
        quiet,
        args.say.json,
        &format!("from: {}", past.around(&from)),
    );
    note(quiet, args.say.json, &format!("to:   {}", past.around(&to)));
    let top: Vec<&[u8]> = path.iter().map(Name::as_bytes).collect();
    let top = top.join(&b'/');
    let mut found = past.differs(from.moment, to.moment)?;
    found.retain(|differs| within(differs, &top));
    let colour = ui::colour(&ui::output(args.say.json, args.say.quiet, args.say.verbose));
    if args.stat {
        return stat(
            &mut past,
            &found,
            (from.moment, to.moment),
            args.say,
            colour,
        );
    }
    for differs in &found {
        match (args.say.json, args.patch) {
            (true, _) => ui::say(&as_json(differs).to_string()),
            (false, true) => patch(&mut past, differs, (&from, &to))?,
            (false, false) => ui::say(&line(differs)),
        }
    }
    if found.is_empty() && !args.say.json && !args.say.quiet {
        ui::complain(&format!("{}: no difference", shown(&path)));
    }
    Ok(Exit::Done)
}

fn size(side: &Option<(ObjectId, State)>) -> Option<u64> {
    side.as_ref()?.1.kind.content().map(|content| content.bytes)
}

fn line(differs: &Differs) -> String {
    let mut line = format!("{:<10}  {}", differs.op.word(), escape(&differs.path));
    if let Some(to) = &differs.to {
        line.push_str(&format!(" -> {}", escape(to)));
    }
    let side = differs.after.as_ref().or(differs.before.as_ref());
    if side.is_some_and(|(_, state)| state.kind.is_dir()) {
        line.push('/');
    }
    if differs.below > 0 {
        line.push_str(&format!(
            " with {}",
            text::counted(differs.below, "entry", "entries")
        ));
    }
    match (differs.op, size(&differs.before), size(&differs.after)) {
        (Op::Write, Some(a), Some(b)) => {
            line.push_str(&format!("  {} -> {}", text::bytes(a), text::bytes(b)));
        }
        (Op::Create, _, Some(n)) | (Op::Remove, Some(n), _) => {
            line.push_str(&format!("  {}", text::bytes(n)));
        }
        _ => {}
    }
    if let (Op::Attributes, Some((_, a)), Some((_, b))) =
        (differs.op, &differs.before, &differs.after)
    {
        let (a, b) = (&a.meta, &b.meta);
        if a.mode != b.mode {
            line.push_str(&format!("  mode {:o} -> {:o}", a.mode, b.mode));
        }
        if (a.uid, a.gid) != (b.uid, b.gid) {
            line.push_str(&format!(
                "  owner {}:{} -> {}:{}",
                a.uid, a.gid, b.uid, b.gid
            ));
        }
        if a.mtime != b.mtime {
            line.push_str("  mtime");
        }
        if a.xattrs != b.xattrs {
            line.push_str("  xattrs");
        }
        if a.flags != b.flags {
            line.push_str("  flags");
        }
    }
    line
}

fn as_json(differs: &Differs) -> serde_json::Value {
    let side = |side: &Option<(ObjectId, State)>| {
        side.as_ref().map(|(id, state)| {
            let brief = crate::history::changes::Brief::of(state);
            json!({"object": id.0, "kind": brief.kind, "bytes": brief.bytes, "mode": format!("{:o}", brief.mode),
                "uid": brief.uid, "gid": brief.gid})
        })
    };
    json!({
        "op": differs.op.word(), "path": escape(&differs.path),
        "to": differs.to.as_ref().map(|to| escape(to)),
        "before": side(&differs.before), "after": side(&differs.after), "entries": differs.below,
    })
}

/// Bytes of one side; empty: there is no file. `Err`: in one line, why they can't be shown.
fn side_bytes(
    past: &mut Past,
    moment: Moment,
    side: &Option<(ObjectId, State)>,
) -> Result<Vec<u8>, String> {
    match side {
        Some((id, state)) if state.kind.content().is_some() => {
            match past.bytes(moment, *id, textdiff::TEXT_BYTES_MAX) {
                Ok(Some(bytes)) => Ok(bytes),
                Ok(None) => Err("it is too large to be compared by lines".into()),
                Err(e) => Err(e.to_string()),
            }
        }
        _ => Ok(Vec::new()),
    }
}

fn reader() -> Reader {
    use std::io::IsTerminal;
    match std::io::stdout().is_terminal() {
        true => Reader::Terminal {
            colour: std::env::var_os("NO_COLOR").is_none(),
        },
        false => Reader::Program,
    }
}

fn patch(past: &mut Past, differs: &Differs, (from, to): (&Stand, &Stand)) -> Result<(), CliError> {
    let is_file = |side: &Option<(ObjectId, State)>| {
        side.as_ref()
            .is_some_and(|(_, state)| state.kind.content().is_some())
    };
    if !is_file(&differs.before) && !is_file(&differs.after) {
        ui::say(&line(differs));
        return Ok(());
    }
    let later = differs.to.as_ref().unwrap_or(&differs.path);
    let old = side_bytes(past, from.moment, &differs.before);
    let new = side_bytes(past, to.moment, &differs.after);
    let (old, new) = match (old, new) {
        (Ok(old), Ok(new)) => (old, new),
        (Err(why), _) | (_, Err(why)) => {
            ui::say(&line(differs));
            ui::complain(&format!("{}: {why}", escape(later)));
            return Ok(());
        }
    };
    let compared = textdiff::compare(&old, &new, textdiff::TIME_MAX);
    if matches!(compared, textdiff::Compared::Same) {
        ui::say(&line(differs));
        return Ok(());
    }
    let at = |stand: &Stand| format!("pos:{}", position(stand.moment.0));
    let (from_at, to_at) = (at(from), at(to));
    let old_side = Side {
        path: is_file(&differs.before).then_some(differs.path.as_slice()),
        at: &from_at,
    };
    let new_side = Side {
        path: is_file(&differs.after).then_some(later.as_slice()),
        at: &to_at,
    };
    let mut out = std::io::stdout().lock();
    compared
        .write(&old_side, &new_side, reader(), &mut out)
        .map_err(|e| CliError::failed(format!("cannot write: {e}")))
}

/// The difference that one written version made.
pub fn patch_of(past: &mut Past, change: &Change) -> Result<(), CliError> {
    let id = ObjectId(change.object);
    let stand = |moment| Stand {
        moment: Moment(moment),
        at: None,
        next: None,
    };
    let (before, after) = (stand(change.moment.saturating_sub(1)), stand(change.moment));
    let side = |past: &mut Past, stand: &Stand| -> Result<Option<(ObjectId, State)>, CliError> {
        let known = past
            .objects(stand.moment, &[id])?
            .into_iter()
            .next()
            .flatten();
        Ok(known.map(|known| (id, known.state)))
    };
    let differs = Differs {
        op: change.op,
        path: change.path.0.clone(),
        to: None,
        before: side(past, &before)?,
        after: side(past, &after)?,
        below: 0,
    };
    patch(past, &differs, (&before, &after))
}

fn stat(
    past: &mut Past,
    found: &[Differs],
    (from, to): (Moment, Moment),
    say: Say,
    colour: bool,
) -> Result<Exit, CliError> {
    let mut stats = Vec::new();
    for differs in found {
        let (a, b) = (size(&differs.before), size(&differs.after));
        if a.is_none() && b.is_none() {
            continue;
        }
        let path = differs.to.as_ref().unwrap_or(&differs.path);
        let old = side_bytes(past, from, &differs.before);
        let new = side_bytes(past, to, &differs.after);
        let change = match (&old, &new) {
            (Ok(old), Ok(new)) => (&textdiff::compare(old, new, textdiff::TIME_MAX)).into(),
            _ => textdiff::Change::Bytes {
                old: a.unwrap_or(0),
                new: b.unwrap_or(0),
            },
        };
        if say.json {
            let change = match change {
                textdiff::Change::Lines { added, removed } => {
                    json!({"added": added, "removed": removed})
                }
                textdiff::Change::Bytes { old, new } => json!({"before": old, "after": new}),
            };
            ui::say(&json!({"path": escape(path), "change": change}).to_string());
        }
        stats.push(Stat { path, change });
    }
    if !say.json {
        for line in textdiff::stat_lines(&stats, columns(), colour) {
            ui::say(&line);
        }
    }
    Ok(Exit::Done)
}

fn columns() -> usize {
    rustix::termios::tcgetwinsize(std::io::stdout())
        .map_or(80, |size| usize::from(size.ws_col).max(40))
}

pub fn show_timeline(
    past: &Past,
    minutes: &BTreeMap<i64, (u64, u64)>,
    say: Say,
) -> Result<Exit, CliError> {
    let minutes: Vec<Minute> = minutes
        .iter()
        .map(|(at, (changes, removed))| Minute {
            at: *at,
            changes: *changes,
            removed: *removed,
        })
        .collect();
    if minutes.is_empty() && !say.json {
        note(say.quiet, false, "no changes are kept of that");
        return Ok(Exit::Done);
    }
    let picture = timeline(&minutes, 40, &past.zone);
    if say.json {
        ui::say(&picture.to_json().to_string());
        return Ok(Exit::Done);
    }
    let utf8 = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .is_some_and(|value| value.to_lowercase().contains("utf"));
    for line in picture.lines(columns(), utf8, &past.zone) {
        ui::say(&line);
    }
    Ok(Exit::Done)
}
