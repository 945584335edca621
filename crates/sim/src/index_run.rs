//! One run of step one: a script, looks in between, and at the quiet end the index must be the tree.

use testkit::rng::Rng;

use crate::capture::{Capture, CaptureStats, Weakness};
use crate::check::differences;
use crate::script::{self, Setup, Step};
use crate::world::World;

/// A run that can be had again: by its seed, or with fewer steps.
#[derive(Debug, Clone)]
pub struct Case {
    pub seed: u64,
    pub setup: Setup,
    pub script: Vec<Step>,
}

impl Case {
    pub fn random(seed: u64) -> Case {
        let mut rng = Rng::part(seed, 1);
        let setup = Setup::random(&mut rng);
        let ops = rng.range(20, 1000) as usize;
        let script = script::random(&mut Rng::part(seed, 2), ops);
        Case {
            seed,
            setup,
            script,
        }
    }
}

/// Pumps until nothing is left to do.
fn rest(world: &mut World, capture: &mut Capture) -> Result<(), String> {
    for _ in 0..2000 {
        capture.pump(world, 10_000, 10_000)?;
        if world.tree.queue.is_quiet() && capture.is_idle() {
            return Ok(());
        }
        world.wait_ms(50);
    }
    Err(format!("it does not come to rest: {}", capture.waiting()))
}

/// Runs a case; the error says what went wrong.
pub fn run(case: &Case, mut weak: Weakness) -> Result<CaptureStats, String> {
    weak.seen = Rng::part(case.seed, 4).below(1 << 20);
    let mut world = World::new(&case.setup, case.script.clone(), Rng::part(case.seed, 3));
    let mut capture = Capture::new(&world, case.setup, weak)?;
    while let Some((events, names)) = world.next_pump() {
        capture.pump(&mut world, events, names)?;
    }
    world.quiet();
    rest(&mut world, &mut capture)?;
    let differences = differences(&capture.rows, &world.tree);
    if differences.is_empty() {
        Ok(capture.stats)
    } else {
        Err(differences.join("\n"))
    }
}

/// Leaves out steps while the case still fails, and returns what is left.
pub fn shrink<T>(script: Vec<T>, fails: &mut dyn FnMut(&[T]) -> bool) -> Vec<T>
where
    T: Clone,
{
    let mut best = script;
    let mut chunk = best.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        while at < best.len() {
            let mut fewer = best.clone();
            fewer.drain(at..(at + chunk).min(best.len()));
            if fails(&fewer) {
                best = fewer;
            } else {
                at += chunk;
            }
        }
        chunk /= 2;
    }
    best
}

/// A failing case with few steps, as text.
pub fn explain(case: &Case, weak: Weakness, error: &str) -> String {
    let script = shrink(case.script.clone(), &mut |script| {
        let fewer = Case {
            script: script.to_vec(),
            ..case.clone()
        };
        run(&fewer, weak).is_err()
    });
    let fewer = Case {
        script,
        ..case.clone()
    };
    let last = run(&fewer, weak).err().unwrap_or_default();
    let steps: Vec<String> = fewer.script.iter().map(|s| format!("  {s:?}")).collect();
    format!(
        "seed {} fails: {error}\n{:?}\n{} of {} steps:\n{}\nfail with: {last}",
        case.seed,
        case.setup,
        fewer.script.len(),
        case.script.len(),
        steps.join("\n")
    )
}
