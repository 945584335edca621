//! The tree and its script: the world goes on between any two looks of the engine.

use testkit::rng::Rng;

use crate::script::{Setup, Step};
use crate::tree::{Op, SimTree};

pub struct World {
    pub tree: SimTree,
    script: std::vec::IntoIter<Step>,
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
            script: script.into_iter(),
            rng,
            race: 0,
            done: 0,
        }
    }

    /// The next thing the engine is asked to do; operations before it are done. `None`: the script has ended.
    pub fn next_pump(&mut self) -> Option<(usize, usize)> {
        loop {
            match self.script.next()? {
                Step::Do { actor, op, late } => self.act(actor, &op, late),
                Step::Wait(ms) => self.wait_ms(ms),
                Step::Pump {
                    events,
                    names,
                    race,
                } => {
                    self.race = race;
                    return Some((events, names));
                }
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
            match self.script.next() {
                Some(Step::Do { actor, op, late }) => self.act(actor, &op, late),
                Some(Step::Wait(_) | Step::Pump { .. }) => {}
                None => return,
            }
        }
    }

    /// The actors close what they have open and stop.
    pub fn quiet(&mut self) {
        self.race = 0;
        for step in self.script.by_ref().collect::<Vec<_>>() {
            if let Step::Do { actor, op, late } = step {
                self.act(actor, &op, late);
            }
        }
        self.tree.close_all();
        // Beyond the grain of the clock.
        self.wait_ms(100);
    }
}
