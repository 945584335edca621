//! Where a name is, or was.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;

use mirror_core::escape;
use mirror_core::history::Moment;
use serde_json::json;

use crate::cli::args::FindArgs;
use crate::cli::exit::{CliError, Exit};
use crate::cli::past::{Past, position};
use crate::cli::{text, ui};
use crate::history::changes::{Change, Op};
use crate::history::tree::PastTree;

/// A glob of one name: `*` any bytes, `?` one.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut back) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                back = Some((p, n));
                p += 1;
            }
            Some(b'?') => {
                p += 1;
                n += 1;
            }
            Some(b) if name.get(n) == Some(b) => {
                p += 1;
                n += 1;
            }
            _ => match back {
                Some((at, from)) => {
                    p = at + 1;
                    n = from + 1;
                    back = Some((at, n));
                }
                None => return false,
            },
        }
    }
    pattern
        .get(p..)
        .is_some_and(|rest| rest.iter().all(|b| *b == b'*'))
}

fn last(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or(path)
}

pub fn run(args: &FindArgs) -> Result<Exit, CliError> {
    let pattern = args.name.as_bytes();
    if pattern.is_empty() || pattern.contains(&b'/') {
        return Err(CliError::usage(
            "NAME is one name, or a pattern of names, without /",
        ));
    }
    let mut past = Past::open(&args.which)?;
    let now = Moment(past.window()?.moment);
    // The last time each path went, unless something is there again.
    let mut gone: BTreeMap<Vec<u8>, Change> = BTreeMap::new();
    past.changes((Moment(0), now), &mut |change| {
        let comes = match change.op {
            Op::Create | Op::Link => Some(&change.path),
            Op::Rename => change.to.as_ref(),
            _ => None,
        };
        if let Some(path) = comes {
            gone.remove(&path.0);
        }
        let goes = matches!(change.op, Op::Remove | Op::Unlink | Op::Rename);
        if goes && (fits(pattern, last(&change.path.0)) || change.below > 0) {
            gone.insert(change.path.0.clone(), change);
        }
        true
    })?;
    let mut found = 0u64;
    if !args.deleted {
        let mut todo = vec![(Vec::new(), mirror_core::ObjectId::ROOT)];
        while let Some((path, dir)) = todo.pop() {
            let mut after = None;
            loop {
                let (entries, next) = past.tree(now).page(dir, after.as_ref())?;
                for entry in entries {
                    let mut below: Vec<u8> = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend_from_slice(entry.name.as_bytes());
                    if fits(pattern, entry.name.as_bytes()) {
                        found += 1;
                        match args.say.json {
                            true => ui::say(
                                &json!({"path": escape(&below), "deleted": false}).to_string(),
                            ),
                            false => ui::say(&escape(&below)),
                        }
                    }
                    if entry.state.kind.is_dir() {
                        todo.push((below, entry.id));
                    }
                }
                match next {
                    Some(name) => after = Some(name),
                    None => break,
                }
            }
        }
    }
    for (path, change) in &gone {
        let mut paths = Vec::new();
        if fits(pattern, last(path)) {
            paths.push(path.clone());
        }
        if change.below > 0 {
            paths.extend(below(&mut past, path, change, pattern)?);
        }
        for path in paths {
            found += 1;
            let until = position(change.moment.saturating_sub(1));
            match args.say.json {
                true => ui::say(
                    &json!({
                        "path": escape(&path), "deleted": true, "op": change.op.word(),
                        "time_ns": change.there_ns, "last": until.to_string(),
                        "to": change.to.as_ref().map(|to| escape(&to.0)),
                    })
                    .to_string(),
                ),
                false => {
                    let how = match (&change.op, &change.to) {
                        (Op::Rename, Some(to)) => format!("renamed to {}", escape(&to.0)),
                        _ => "removed".into(),
                    };
                    let when = past.time(change.there_ns);
                    ui::say(&format!(
                        "{}  {how} {when}, last at pos:{until}",
                        escape(&path)
                    ));
                }
            }
        }
    }
    if !args.say.json && !args.say.quiet && found == 0 {
        ui::complain("nothing of that name is there or kept");
    } else if !args.say.json && !args.say.quiet {
        ui::complain(&text::counted(found, "path", "paths"));
    }
    Ok(Exit::Done)
}

/// What of a directory that went whole has such a name.
fn below(
    past: &mut Past,
    path: &[u8],
    change: &Change,
    pattern: &[u8],
) -> Result<Vec<Vec<u8>>, CliError> {
    let moment = Moment(change.moment.saturating_sub(1));
    let mut out = Vec::new();
    let mut todo = vec![(path.to_vec(), mirror_core::ObjectId(change.object))];
    while let Some((path, dir)) = todo.pop() {
        let mut after = None;
        loop {
            let (entries, next) = past.tree(moment).page(dir, after.as_ref())?;
            for entry in entries {
                let mut below = path.clone();
                below.push(b'/');
                below.extend_from_slice(entry.name.as_bytes());
                if entry.state.kind.is_dir() {
                    todo.push((below.clone(), entry.id));
                }
                if fits(pattern, entry.name.as_bytes()) {
                    out.push(below);
                }
            }
            match next {
                Some(name) => after = Some(name),
                None => break,
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn a_pattern_of_one_name() {
        for (pattern, name, want) in [
            ("wp-config.php", "wp-config.php", true),
            ("*.php", "a.php", true),
            ("*.php", "a.phpx", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("*", "", true),
            ("", "x", false),
            ("**", "x", true),
        ] {
            assert_eq!(
                fits(pattern.as_bytes(), name.as_bytes()),
                want,
                "{pattern} {name}"
            );
        }
    }
}
