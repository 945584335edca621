//! The stopwatch of the benchmarks. Each verb prints one JSON object; `bench/run` makes the tables.
//!
//! - `probe latency prepare SRC ROUNDS` makes what the changes change; `probe latency run SRC DST ROUNDS FIRST EVERY_MS`
//!   changes it at fixed times and tells how long each change took to be right at DST.
//! - `probe small SRC DST PREFIX COUNT EVERY_MS` makes new small files at fixed times and tells when each was at DST.
//! - `probe load SRC RATE` changes small files, RATE a second, until it is killed; `probe rewrite DIR FILES` replaces
//!   files as `git checkout` does.
//! - `probe equal SRC DST SECONDS` waits until the trees look equal (`equal-loose`: but for the times of directories and
//!   symlinks), `probe gone PATH SECONDS` until nothing is there; `probe newest DIR` tells its newest inode change.
//! - `probe many DIR FILES` makes a tree of tiny files; `probe copy SRC DST` is the least a copy can cost;
//!   `probe flush DIR` tells what one flush costs there.

mod copy;
mod equal;
mod flush;
mod latency;
mod load;
mod many;
mod small;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;

const USAGE: &str = "usage: probe latency prepare SRC ROUNDS | latency run SRC DST ROUNDS FIRST EVERY_MS | small SRC DST PREFIX COUNT EVERY_MS | load SRC RATE | \
     rewrite DIR FILES | equal[-loose] SRC DST SECONDS | gone PATH SECONDS | newest DIR | many DIR FILES | copy SRC DST | flush DIR";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("probe: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> anyhow::Result<String> {
    match *words {
        ["latency", "prepare", src, rounds] => latency::prepare(Path::new(src), number(rounds)?),
        ["latency", "run", src, dst, rounds, first, every_ms] => latency::run(
            Path::new(src),
            Path::new(dst),
            number(first)?..number(first)? + number(rounds)?,
            Duration::from_millis(number(every_ms)?),
        ),
        ["small", src, dst, prefix, count, every_ms] => small::run(
            Path::new(src),
            Path::new(dst),
            prefix,
            number(count)?,
            Duration::from_millis(number(every_ms)?),
        ),
        ["load", src, rate] => load::run(Path::new(src), number(rate)?),
        ["rewrite", dir, files] => load::rewrite(Path::new(dir), number(files)?),
        ["equal" | "equal-loose", src, dst, seconds] => equal::wait(
            Path::new(src),
            Path::new(dst),
            Duration::from_secs(number(seconds)?),
            words[0] == "equal-loose",
        ),
        ["gone", path, seconds] => {
            equal::gone(Path::new(path), Duration::from_secs(number(seconds)?))
        }
        ["newest", dir] => equal::newest(Path::new(dir)),
        ["many", dir, files] => many::make(Path::new(dir), number(files)?),
        ["copy", src, dst] => copy::copy(Path::new(src), Path::new(dst)),
        ["flush", dir] => flush::measure(Path::new(dir)),
        _ => anyhow::bail!(USAGE),
    }
}

fn number(text: &str) -> anyhow::Result<u64> {
    text.parse()
        .with_context(|| format!("{text} is not a number"))
}

/// Seconds since 1970, the clock of inode times.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |age| age.as_secs_f64())
}
