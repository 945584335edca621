//! `treecmp A B [--ignore CLASS,..] [--skip-mounts] [--max N] [--json]`: what differs between two trees, a line each.
//! Ends with 0 when they are equal, 1 when they differ, 2 when it was called wrongly.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use testkit::compare::{Class, Options, compare};

const USAGE: &str = "usage: treecmp A B [--ignore CLASS,..] [--skip-mounts] [--max N] [--json]";

fn main() -> ExitCode {
    match run() {
        Ok(equal) => ExitCode::from(u8::from(!equal)),
        Err(wrong) => {
            let classes: Vec<&str> = Class::ALL.iter().map(|class| class.name()).collect();
            eprintln!("treecmp: {wrong}\n{USAGE}\nclasses: {}", classes.join(" "));
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, String> {
    let mut trees = Vec::new();
    let mut options = Options::default();
    let mut json = false;
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let value = arguments.next().and_then(|value| value.into_string().ok());
            value.ok_or("an option lacks its value")
        };
        match argument.to_str() {
            Some("--json") => json = true,
            Some("--skip-mounts") => options.skip_mounts = true,
            Some("--max") => {
                options.differences_max = Some(value()?.parse().map_err(|e| format!("--max: {e}"))?)
            }
            Some("--ignore") => {
                for name in value()?.split(',') {
                    let class = Class::by_name(name).ok_or(format!("there is no class {name}"))?;
                    options.ignore.insert(class);
                }
            }
            Some(option) if option.starts_with("--") => {
                return Err(format!("there is no option {option}"));
            }
            _ => trees.push(PathBuf::from(argument)),
        }
    }
    let [left, right] = trees.as_slice() else {
        return Err("two trees are wanted".into());
    };
    let found = compare(left, right, &options);
    let mut out = io::BufWriter::new(io::stdout().lock());
    for difference in &found {
        let line = if json {
            difference.json()
        } else {
            difference.to_string()
        };
        // A reader that went away wants no more lines; the exit code still counts.
        if writeln!(out, "{line}").is_err() {
            break;
        }
    }
    let _ = out.flush();
    Ok(found.is_empty())
}
