//! One run of step one: a script, looks in between, and at the quiet end the index must be the tree.

use testkit::rng::Rng;

use crate::capture::{Capture, CaptureStats, Weakness};
use crate::check::differences;
use crate::journal::Stop;
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

    /// The same with log, copy, crashes and failing disks.
    pub fn random_engine(seed: u64) -> Case {
        let case = Case::random(seed);
        let script = script::with_engine(&mut Rng::part(seed, 6), case.script);
        Case { script, ..case }
    }

    pub fn world(&self) -> World {
        World::new(&self.setup, self.script.clone(), Rng::part(self.seed, 3))
    }
}

/// Pumps until nothing is left to do.
pub(crate) fn rest(world: &mut World, capture: &mut Capture) -> Result<(), Stop> {
    for _ in 0..2000 {
        capture.pump(world, 10_000, 10_000)?;
        if world.tree.queue.is_quiet() && capture.is_idle() {
            return Ok(());
        }
        world.wait_ms(50);
    }
    let waiting = capture.waiting();
    Err(Stop::Wrong(format!("it does not come to rest: {waiting}")))
}

/// Runs a case; the error says what went wrong.
pub fn run(case: &Case, weak: Weakness) -> Result<CaptureStats, String> {
    try_run(case, weak).map_err(|stop| stop.to_string())
}

fn try_run(case: &Case, mut weak: Weakness) -> Result<CaptureStats, Stop> {
    weak.seen = Rng::part(case.seed, 4).below(1 << 20);
    let mut world = case.world();
    let mut capture = Capture::new(&world, case.setup, weak)?;
    while let Some(step) = world.next_step() {
        if let Step::Pump { events, names, .. } = step {
            capture.pump(&mut world, events, names)?;
        }
    }
    world.quiet();
    rest(&mut world, &mut capture)?;
    let differences = differences(&capture.rows, &world.tree);
    if differences.is_empty() {
        Ok(capture.stats)
    } else {
        Err(Stop::Wrong(differences.join("\n")))
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

/// A failing case with few steps, as text. `run` is what fails.
pub fn explain(
    case: &Case,
    error: &str,
    run: &mut dyn FnMut(&Case) -> Result<(), String>,
) -> String {
    let mut with = |script: &[Step]| {
        run(&Case {
            script: script.to_vec(),
            ..case.clone()
        })
    };
    let script = shrink(case.script.clone(), &mut |script| with(script).is_err());
    let last = with(&script).err().unwrap_or_default();
    let steps: Vec<String> = script.iter().map(|s| format!("  {s:?}")).collect();
    format!(
        "seed {} fails: {error}\n{:?}\n{} of {} steps:\n{}\nfail with: {last}",
        case.seed,
        case.setup,
        script.len(),
        case.script.len(),
        steps.join("\n")
    )
}
