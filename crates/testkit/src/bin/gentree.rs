//! `gentree DIR [--files N] [--seed S] [--plain] [--median BYTES] [--locked]`: makes a tree like a host of many sites.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use testkit::generate::{Params, tree};

const USAGE: &str =
    "usage: gentree DIR [--files N] [--seed S] [--plain] [--median BYTES] [--locked]";

fn main() -> ExitCode {
    let (dir, params) = match arguments() {
        Ok(arguments) => arguments,
        Err(wrong) => {
            eprintln!("gentree: {wrong}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let start = Instant::now();
    match tree(&dir, &params) {
        Ok(made) => {
            println!(
                "seed {}: {} files, {} directories, {} symlinks, {} more links, {} specials, {} attributes, {} bytes in {:.1} s",
                params.seed,
                made.files,
                made.dirs,
                made.symlinks,
                made.links,
                made.specials,
                made.xattrs,
                made.bytes,
                start.elapsed().as_secs_f64()
            );
            for skipped in made.skipped {
                eprintln!("not made: {skipped}");
            }
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("gentree: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<(PathBuf, Params), String> {
    let mut params = Params::default();
    let mut dir = None;
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || -> Result<f64, String> {
            let text = arguments.next().and_then(|value| value.into_string().ok());
            text.and_then(|text| text.parse().ok())
                .ok_or("an option lacks its number".into())
        };
        match argument.to_str() {
            Some("--plain") => params.plain = true,
            Some("--locked") => params.locked = true,
            Some("--files") => params.files = value()? as u64,
            Some("--seed") => params.seed = value()? as u64,
            Some("--median") => params.size_bytes_median = value()?.max(1.0),
            Some(option) if option.starts_with("--") => {
                return Err(format!("there is no option {option}"));
            }
            _ if dir.is_none() => dir = Some(PathBuf::from(argument)),
            _ => return Err("one directory is wanted".into()),
        }
    }
    Ok((dir.ok_or("a directory is wanted")?, params))
}
