//! Whatever two racing processes do, whatever the kernel merges or loses: at the end the index is the tree.
//!
//! `SEED=n` runs one seed, `SEEDS=n` that many.

use sim::capture::Weakness;
use sim::index_run::{Case, explain, run};
use sim::script::{Setup, Step};
use sim::tree::{Base, Op, Path};

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
            Err(error) => panic!(
                "{}",
                explain(&case, &error, &mut |case| {
                    run(case, Weakness::default()).map(drop)
                })
            ),
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

const PLAIN: Setup = Setup {
    queue_limit: 16_384,
    grain_ns: 0,
    by_trail: false,
    group_records_max: 10_000,
    ahead: false,
    names_max: 16,
};

fn at(names: &[u8]) -> Path {
    Path {
        base: Base::Root,
        names: names.to_vec(),
    }
}

fn act(op: Op) -> Step {
    Step::Do {
        actor: 0,
        op,
        late: false,
    }
}

fn pump(events: usize) -> Step {
    Step::Pump {
        events,
        names: 10_000,
        race: 0,
    }
}

fn case(setup: Setup, script: &[Step]) -> Case {
    Case {
        seed: 0,
        setup,
        script: script.to_vec(),
    }
}

#[test]
fn a_write_whose_hint_is_lost_is_found_although_a_rename_was_seen_after_it() {
    let setup = Setup {
        queue_limit: 1,
        ..PLAIN
    };
    let case = case(
        setup,
        &[
            act(Op::Write(at(&[0]), 7)),
            pump(10),
            Step::Wait(50),
            pump(10),
            act(Op::Rename(at(&[0]), at(&[1]))),
            // Same size, same mtime, and no room in the queue.
            act(Op::Forge(at(&[1]), 8)),
            pump(1),
            pump(10),
        ],
    );
    run(&case, Weakness::default()).unwrap();
    let trusting = Weakness {
        trust_ctime: true,
        ..Weakness::default()
    };
    assert!(run(&case, trusting).is_err(), "the check is blind");
}

#[test]
fn a_write_is_found_under_the_name_the_file_has_by_then() {
    let case = case(
        PLAIN,
        &[
            act(Op::Write(at(&[1]), 7)),
            pump(10),
            Step::Wait(50),
            pump(10),
            act(Op::Forge(at(&[1]), 8)),
            act(Op::Rename(at(&[1]), at(&[0]))),
            // One name at a time: the new one comes first.
            Step::Pump {
                events: 10,
                names: 1,
                race: 0,
            },
        ],
    );
    run(&case, Weakness::default()).unwrap();
    let nameless = Weakness {
        no_wrote: true,
        ..Weakness::default()
    };
    assert!(run(&case, nameless).is_err(), "the check is blind");
}
