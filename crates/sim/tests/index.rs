//! Whatever two racing processes do, whatever the kernel merges or loses: at the end the index is the tree.
//!
//! `SEED=n` runs one seed, `SEEDS=n` that many.

use sim::capture::Weakness;
use sim::index_run::{Case, explain, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn the_index_becomes_the_tree() {
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(1000),
    };
    let mut total = [0u64; 6];
    for seed in seeds {
        let case = Case::random(seed);
        match run(&case, Weakness::default()) {
            Ok(stats) => {
                for (sum, n) in total.iter_mut().zip([
                    stats.hints,
                    stats.overflows,
                    stats.looks,
                    stats.groups,
                    stats.records,
                    stats.again,
                ]) {
                    *sum += n;
                }
            }
            Err(error) => panic!("{}", explain(&case, Weakness::default(), &error)),
        }
    }
    println!("hints, overflows, looks, groups, records, again: {total:?}");
}

/// The first seed that fails with a defect planted.
fn first_failing(weak: Weakness) -> Option<u64> {
    (0..3000).find(|seed| run(&Case::random(*seed), weak).is_err())
}

#[test]
fn the_check_finds_planted_defects() {
    let none = Weakness::default();
    for (what, weak) in [
        (
            "no object handles",
            Weakness {
                no_object: true,
                ..none
            },
        ),
        (
            "outside events dropped",
            Weakness {
                no_outside: true,
                ..none
            },
        ),
        (
            "one hint in a thousand lost",
            Weakness {
                lose: Some(1000),
                ..none
            },
        ),
        (
            "overflow ignored",
            Weakness {
                no_overflow: true,
                ..none
            },
        ),
        (
            "writes follow names",
            Weakness {
                no_wrote: true,
                ..none
            },
        ),
        (
            "early hints not resolved again",
            Weakness {
                no_again: true,
                ..none
            },
        ),
    ] {
        let seed = first_failing(weak);
        println!("{what}: noticed by seed {seed:?}");
        assert!(seed.is_some(), "{what} is not noticed");
    }
}
