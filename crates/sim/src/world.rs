//! The tree and its script: the world goes on between any two looks of the engine.

use std::collections::VecDeque;

use testkit::rng::Rng;

use crate::script::{Setup, Step};
use crate::tree::{Op, SimTree};

pub struct World {
    pub tree: SimTree,
    script: VecDeque<Step>,
    rng: Rng,
    race: u8,
    pub done: u64,
}

impl World {
    pub fn new(setup: &Setup, script: Vec<Step>, rng: Rng) -> World {
        let mut tree = SimTree::new(setup.queue_limit);
        tree.grain_ns = setup.grain_ns;
        World {
            tree,
            script: script.into(),
            rng,
            race: 0,
            done: 0,
        }
    }

    /// The next thing the engine is asked to do; operations before it are done. `None`: the script has ended.
    pub fn next_step(&mut self) -> Option<Step> {
        loop {
            match self.script.pop_front()? {
                Step::Do { actor, op, late } => self.act(actor, &op, late),
                Step::Wait(ms) => self.wait_ms(ms),
                step => {
                    if let Step::Pump { race, .. } = step {
                        self.race = race;
                    }
                    return Some(step);
                }
            }
        }
    }

    /// Up to so many operations, while nobody looks.
    pub fn go_on(&mut self, ops: usize) {
        for _ in 0..ops {
            let Some(Step::Do { .. } | Step::Wait(_)) = self.script.front() else {
                return;
            };
            match self.script.pop_front() {
                Some(Step::Do { actor, op, late }) => self.act(actor, &op, late),
                Some(Step::Wait(ms)) => self.wait_ms(ms),
                _ => return,
            }
        }
    }

    /// Time passes: what was on its way arrives.
    pub fn wait_ms(&mut self, ms: u64) {
        self.tree.queue.arrive_all();
        self.tree.now_ns += ms * 1_000_000;
    }

    pub fn now_ms(&self) -> u64 {
        self.tree.now_ns / 1_000_000
    }

    fn act(&mut self, actor: usize, op: &Op, late: bool) {
        self.tree.act(actor, op);
        self.done += 1;
        if !late {
            self.tree.queue.arrive(actor);
        }
    }

    /// Called before every look: perhaps others are faster.
    pub fn race(&mut self) {
        while self.rng.below(100) < u64::from(self.race) {
            // What the engine is to do between waits for the engine.
            let next = self
                .script
                .iter()
                .position(|step| matches!(step, Step::Do { .. }));
            let only_pumps = |steps: &VecDeque<Step>, n| {
                steps
                    .iter()
                    .take(n)
                    .all(|step| matches!(step, Step::Pump { .. } | Step::Wait(_)))
            };
            let Some(n) = next.filter(|n| only_pumps(&self.script, *n)) else {
                return;
            };
            let step = self.script.drain(..=n).next_back();
            if let Some(Step::Do { actor, op, late }) = step {
                self.act(actor, &op, late);
            }
        }
    }

    /// The actors close what they have open and stop.
    pub fn quiet(&mut self) {
        self.race = 0;
        for step in std::mem::take(&mut self.script) {
            if let Step::Do { actor, op, late } = step {
                self.act(actor, &op, late);
            }
        }
        self.tree.close_all();
        // Beyond the grain of the clock.
        self.wait_ms(100);
    }
}
