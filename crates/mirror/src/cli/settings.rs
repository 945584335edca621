//! `fs_mirror config`: is it good, what does it say, and which line decides about a path.

use std::env;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use serde_json::json;

use crate::cli::args::{ConfigCheckArgs, ConfigCommand, ConfigShowArgs};
use crate::cli::config::Config;
use crate::cli::exit::{CliError, Exit};
use crate::cli::places::show;
use crate::cli::serve_backup::{self, Asked};
use crate::cli::{parse, trees, ui};
use crate::engine::options::SourceSpec;
use crate::engine::service::backup::load::load;
use crate::filter::Filter;

pub fn run(command: &ConfigCommand) -> Result<Exit, CliError> {
    match command {
        ConfigCommand::Check(args) => check(args),
        ConfigCommand::Show(args) => shown(args),
    }
}

fn shown(args: &ConfigShowArgs) -> Result<Exit, CliError> {
    let found = match serve_backup::asked_for(&args.which, &args.service)? {
        Asked::Mirror(found) => found,
        Asked::Service(file) => return trees::show_config(&file, args.say),
    };
    let config = found.config()?;
    if args.say.json {
        // The file's own text, read as TOML, is the one list of settings.
        let text = config.to_toml();
        let table: toml::Table = text.parse().map_err(|e| CliError::failed(format!("{e}")))?;
        ui::say(&serde_json::to_value(table).unwrap_or_default().to_string());
    } else {
        ui::say(&format!("# {}", show(&Config::path(&found.state_dir))));
        for (key, value) in config.settings() {
            ui::say(&format!("{key} = {value}"));
        }
    }
    Ok(Exit::Done)
}

fn check(args: &ConfigCheckArgs) -> Result<Exit, CliError> {
    let found = match serve_backup::asked_for(&args.which, &args.service)? {
        Asked::Mirror(found) => found,
        Asked::Service(file) => return check_service(&file, args),
    };
    let config = found.config()?;
    let Some(path) = &args.path else {
        let file = show(&Config::path(&found.state_dir));
        if args.say.json {
            ui::say(&json!({"file": file, "good": true}).to_string());
        } else if !args.say.quiet {
            ui::say(&format!("{file} is good"));
        }
        return Ok(Exit::Done);
    };
    let here = env::current_dir().unwrap_or_default();
    let inner = below_root(path, &config, &here).ok_or_else(|| {
        CliError::usage(format!(
            "{} is not in the tree of {}",
            show(path),
            show(&config.dst)
        ))
    })?;
    let is_dir = is_dir(path, &inner, &config);
    ui::say(&decision(&config, &inner, is_dir, args.say.json)?);
    Ok(Exit::Done)
}

/// Of the service, or of the tree that a path lies in.
fn check_service(file: &Path, args: &ConfigCheckArgs) -> Result<Exit, CliError> {
    let Some(path) = &args.path else {
        return trees::check_config(file, args.say);
    };
    let here = env::current_dir().unwrap_or_default();
    for placed in load(file).trees.into_values() {
        let tree = placed.tree;
        let mut config = Config::new(parse::source(&tree.source)?, tree.dst);
        config.ignore = tree.ignore;
        let whole = here.join(path);
        let inside = |root: &Path| tidy(&whole).is_some_and(|path| path.starts_with(root));
        let local = matches!(&config.source, SourceSpec::Local(source) if inside(source));
        if (inside(&config.dst) || local)
            && let Some(inner) = below_root(path, &config, &here)
        {
            let is_dir = is_dir(path, &inner, &config);
            ui::say(&decision(&config, &inner, is_dir, args.say.json)?);
            return Ok(Exit::Done);
        }
    }
    Err(CliError::usage(format!(
        "{} is in no tree of {}",
        show(path),
        show(file)
    )))
}

/// Which line decides about a path of the tree, in words or as JSON.
fn decision(
    config: &Config,
    inner: &Path,
    is_dir: bool,
    as_json: bool,
) -> Result<String, CliError> {
    let filter = Filter::new(&config.ignore)?;
    let bytes = inner.as_os_str().as_bytes();
    let decision = filter.deciding_line(bytes, is_dir);
    let name = show(inner);
    let ignored = decision.is_some_and(|d| d.ignored);
    if as_json {
        let (line, pattern) = (decision.map(|d| d.line), decision.map(|d| d.pattern));
        return Ok(
            json!({"path": name, "ignored": ignored, "line": line, "pattern": pattern}).to_string(),
        );
    }
    let Some(decision) = decision else {
        return Ok(format!("{name}: mirrored, no ignore line matches"));
    };
    let verdict = if ignored { "left out" } else { "mirrored" };
    let above = match bytes.get(..decision.matched) {
        Some(matched) if decision.matched < bytes.len() => {
            format!(", which matches {}", mirror_core::escape(matched))
        }
        _ => String::new(),
    };
    let pattern = mirror_core::escape(decision.pattern.as_bytes());
    Ok(format!(
        "{name}: {verdict} by ignore line {}, {pattern}{above}",
        decision.line
    ))
}

/// A path as typed, relative to the root of the tree. Below DST or SRC, or else as seen from the root.
fn below_root(path: &Path, config: &Config, here: &Path) -> Option<PathBuf> {
    let mut roots = vec![config.dst.as_path()];
    if let SourceSpec::Local(source) = &config.source {
        roots.push(source);
    }
    let inside = |path: &Path| {
        roots
            .iter()
            .find_map(|root| path.strip_prefix(root).ok().map(Path::to_path_buf))
    };
    let inner = if path.is_absolute() {
        inside(&tidy(path)?)?
    } else {
        inside(&tidy(&here.join(path))?).or_else(|| tidy(path))?
    };
    (!inner.as_os_str().is_empty()).then_some(inner)
}

/// Without dots; a name that may not exist can't be resolved in any other way.
fn tidy(path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                if !out.pop() {
                    return None;
                }
            }
            other => out.push(other),
        }
    }
    Some(out)
}

fn is_dir(typed: &Path, inner: &Path, config: &Config) -> bool {
    let there = |root: &Path| std::fs::symlink_metadata(root.join(inner)).is_ok_and(|m| m.is_dir());
    let at_source = match &config.source {
        SourceSpec::Local(source) => there(source),
        _ => false,
    };
    typed.as_os_str().as_bytes().ends_with(b"/") || at_source || there(&config.dst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_line_decides() {
        let mut config = Config::new(SourceSpec::Local("/srv/www".into()), "/b/www".into());
        config.ignore = ["# caches", "cache/", "*.log", "!keep.log", "*.log "]
            .map(String::from)
            .into();
        let says = |path: &str, dir| decision(&config, Path::new(path), dir, false).unwrap();
        assert_eq!(says("a/b", false), "a/b: mirrored, no ignore line matches");
        assert_eq!(
            says("cache", false),
            "cache: mirrored, no ignore line matches"
        );
        assert_eq!(
            says("x/cache", true),
            "x/cache: left out by ignore line 2, cache/"
        );
        assert_eq!(
            says("x/cache/keep.log", false),
            "x/cache/keep.log: left out by ignore line 2, cache/, which matches x/cache"
        );
        assert_eq!(
            says("a.log", false),
            "a.log: left out by ignore line 5, *.log "
        );
        config.ignore.pop();
        let says = |path: &str, dir| decision(&config, Path::new(path), dir, false).unwrap();
        assert_eq!(
            says("a/keep.log", false),
            "a/keep.log: mirrored by ignore line 4, !keep.log"
        );
        assert_eq!(
            decision(&config, Path::new("x.log"), false, true).unwrap(),
            r#"{"ignored":true,"line":3,"path":"x.log","pattern":"*.log"}"#
        );
    }

    #[test]
    fn paths_as_typed() {
        let config = Config::new(SourceSpec::Local("/srv/www".into()), "/b/www".into());
        let below = |path: &str, here: &str| {
            below_root(Path::new(path), &config, Path::new(here)).map(|p| p.display().to_string())
        };
        for (path, here, want) in [
            ("/b/www/x/y", "/", Some("x/y")),
            ("/srv/www/./x/../y/", "/", Some("y")),
            ("x", "/b/www/blog", Some("blog/x")),
            ("../x", "/b/www/blog", Some("x")),
            ("blog/x", "/home", Some("blog/x")),
            ("/etc/passwd", "/", None),
            ("/b/www", "/", None),
            ("../../x", "/b/www", None),
        ] {
            assert_eq!(below(path, here).as_deref(), want, "{path} from {here}");
        }
    }
}
