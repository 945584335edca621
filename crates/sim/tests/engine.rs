//! Capture, log and copy together, with crashes and failing disks: at the end everything is equal.
//!
//! `SEED=n` runs one seed, `SEEDS=n` that many.

use sim::capture::Weakness;
use sim::copy::RealCopy;
use sim::engine::{EngineStats, run};
use sim::index_run::{Case, explain};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run_real(case: &Case) -> Result<EngineStats, String> {
    let copy = RealCopy::new().ok_or("no place for a copy")?;
    run(case, Weakness::default(), copy)
}

#[test]
fn the_copy_becomes_the_tree() {
    if RealCopy::new().is_none() {
        return;
    }
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(60),
    };
    let mut total = [0u64; 7];
    for seed in seeds {
        let case = Case::random_engine(seed);
        match run_real(&case) {
            Ok(stats) => {
                for (sum, n) in total.iter_mut().zip([
                    stats.crashes,
                    stats.kills,
                    stats.log_failures,
                    stats.batches,
                    stats.records,
                    stats.overflows,
                    stats.adopted,
                ]) {
                    *sum += n;
                }
            }
            Err(error) => panic!(
                "{}",
                explain(&case, &error, &mut |case| run_real(case).map(drop))
            ),
        }
    }
    println!("crashes, kills, log failures, batches, records, overflows, adopted: {total:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    if RealCopy::new().is_none() {
        return;
    }
    for seed in [1, 7, 20, 33] {
        let case = Case::random_engine(seed);
        assert_eq!(run_real(&case), run_real(&case), "seed {seed}");
    }
}

/// Written with size and mtime kept before a crash, renamed while the scan after it runs: the hint of the rename is all
/// that leads to it.
#[test]
fn while_a_scan_makes_up_for_lost_hints_a_rename_is_no_reason_to_trust_the_bytes() {
    let trusting = Weakness {
        trust_hints: true,
        ..Weakness::default()
    };
    for seed in [714_959, 734_422] {
        let case = Case::random_engine(seed);
        let Some(copy) = RealCopy::new() else { return };
        run_real(&case).unwrap();
        assert!(run(&case, trusting, copy).is_err(), "the check is blind");
    }
}

#[test]
fn the_check_finds_planted_defects() {
    if RealCopy::new().is_none() {
        return;
    }
    let weak = Weakness {
        no_overflow: true,
        ..Weakness::default()
    };
    let noticed = (0..200).any(|seed| {
        let copy = RealCopy::new();
        copy.is_some_and(|copy| run(&Case::random_engine(seed), weak, copy).is_err())
    });
    assert!(noticed, "overflows ignored, and not noticed");
}
