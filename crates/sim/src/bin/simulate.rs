//! A campaign of simulated runs: prints the seeds that fail, with the fewest steps that still fail.
//!
//! `simulate [index|engine] [--seeds A..B] [--seconds N]`; ends with 1 when a run failed.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use sim::capture::Weakness;
use sim::copy::RealCopy;
use sim::index_run::{self, Case, explain};

const USAGE: &str = "usage: simulate [index|engine] [--seeds A..B] [--seconds N]";

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Index,
    Engine,
}

struct Campaign {
    what: What,
    seeds: std::ops::Range<u64>,
    seconds: Option<u64>,
}

fn parse() -> Option<Campaign> {
    let mut campaign = Campaign {
        what: What::Index,
        seeds: 0..1000,
        seconds: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "index" => campaign.what = What::Index,
            "engine" => campaign.what = What::Engine,
            "--seeds" => {
                let range = words.next()?;
                let (from, to) = range.split_once("..")?;
                campaign.seeds = from.parse().ok()?..to.parse().ok()?;
            }
            "--seconds" => campaign.seconds = Some(words.next()?.parse().ok()?),
            _ => return None,
        }
    }
    Some(campaign)
}

fn run(what: What, case: &Case) -> Result<(), String> {
    match what {
        What::Index => index_run::run(case, Weakness::default()).map(drop),
        What::Engine => {
            let copy = RealCopy::new().ok_or("no place for a copy")?;
            sim::engine::run(case, Weakness::default(), copy).map(drop)
        }
    }
}

fn main() -> ExitCode {
    let Some(campaign) = parse() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if campaign.what == What::Engine && RealCopy::new().is_none() {
        return ExitCode::from(2);
    }
    let began = Instant::now();
    let (mut done, mut failed) = (0u64, Vec::new());
    for seed in campaign.seeds {
        let late = |seconds| began.elapsed() > Duration::from_secs(seconds);
        if campaign.seconds.is_some_and(late) {
            break;
        }
        let case = match campaign.what {
            What::Index => Case::random(seed),
            What::Engine => Case::random_engine(seed),
        };
        done += 1;
        if let Err(error) = run(campaign.what, &case) {
            println!(
                "{}\n",
                explain(&case, &error, &mut |case| run(campaign.what, case))
            );
            failed.push(seed);
        }
    }
    println!("{done} runs, {} failed: {failed:?}", failed.len());
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
