//! `churn DIR [--seed S] [--ops N] [--outside DIR2] [--processes P] [--rate R] [--existing] [--flags] [--verbose]`:
//! random operations on a live tree. The seed is printed; the same seed does the same.

use std::path::PathBuf;
use std::process::ExitCode;

use testkit::workload::{Params, Workload, run, start};

const USAGE: &str = "usage: churn DIR [--seed S] [--ops N] [--outside DIR2] [--processes P] [--rate OPS/S] [--existing] [--flags] \
                     [--no-mappings] [--verbose]";

struct Arguments {
    dir: PathBuf,
    params: Params,
    processes: u32,
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(wrong) => {
            eprintln!("churn: {wrong}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match work(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("churn: seed {}: {e:#}", arguments.params.seed);
            ExitCode::FAILURE
        }
    }
}

fn work(
    Arguments {
        dir,
        params,
        processes,
        verbose,
    }: &Arguments,
) -> anyhow::Result<()> {
    if *processes > 1 {
        start(dir, params, *processes)?.wait()?;
        println!(
            "seed {}: {} operations in each of {processes} processes",
            params.seed, params.ops
        );
        return Ok(());
    }
    let done = if *verbose {
        let mut workload = Workload::new(dir, params)?;
        for number in 0..params.ops {
            let (name, result) = workload.step();
            println!(
                "{number} {name}: {}",
                result.map_or_else(|e| e.to_string(), |()| "done".into())
            );
        }
        workload.finish()
    } else {
        run(dir, params)?
    };
    println!(
        "seed {}: {} operations, {} of them succeeded",
        params.seed, done.ops, done.succeeded
    );
    if *verbose {
        for (name, (tried, succeeded)) in done.by_op {
            println!("{name}: {succeeded} of {tried}");
        }
    }
    Ok(())
}

fn arguments() -> Result<Arguments, String> {
    let mut params = Params::default();
    let (mut dir, mut processes, mut verbose) = (None, 1, false);
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or("an option lacks its value".to_owned())
        };
        let number = |value: std::ffi::OsString| -> Result<f64, String> {
            value
                .to_str()
                .and_then(|text| text.parse().ok())
                .ok_or("an option wants a number".into())
        };
        match argument.to_str() {
            Some("--seed") => params.seed = number(value()?)? as u64,
            Some("--ops") => params.ops = number(value()?)? as u64,
            Some("--processes") => processes = number(value()?)? as u32,
            Some("--rate") => params.rate = Some(number(value()?)?),
            Some("--outside") => params.outside = Some(PathBuf::from(value()?)),
            Some("--existing") => params.existing = true,
            Some("--flags") => params.flags = true,
            Some("--no-mappings") => params.mappings = false,
            Some("--verbose") => verbose = true,
            Some(option) if option.starts_with("--") => {
                return Err(format!("there is no option {option}"));
            }
            _ if dir.is_none() => dir = Some(PathBuf::from(argument)),
            _ => return Err("one directory is wanted".into()),
        }
    }
    Ok(Arguments {
        dir: dir.ok_or("a directory is wanted")?,
        params,
        processes,
        verbose,
    })
}
