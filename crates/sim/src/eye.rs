//! The simulated tree as reconcile sees it: the world moves on before every look.

use mirror_core::hints::Hints;
use mirror_core::reconcile::{Dir, Dirty, Failure, Look, ReadEnd, Seen, Source, Whereabouts};
use mirror_core::{At, Handle, MemRows, Name};

use crate::tree::Event;
use crate::world::World;

pub struct Eye<'a> {
    pub world: &'a mut World,
    pub rows: &'a MemRows,
    pub hints: &'a mut Hints,
    /// Hints read in the middle of a look: resolved again when its group was applied.
    pub early: &'a mut Vec<Event>,
    pub by_trail: bool,
    pub weak: &'a mut crate::capture::Weakness,
}

impl Eye<'_> {
    fn trail<'t>(&self, dir: &'t Dir<'_>) -> Option<&'t [Name]> {
        if self.by_trail {
            // No trail: it does not reach the root, and can't be opened.
            Some(dir.trail.as_deref().unwrap_or(&[]))
        } else {
            None
        }
    }
}

impl Source for Eye<'_> {
    fn look(&mut self, dir: &Dir<'_>, name: &Name) -> Look {
        self.world.race();
        self.world.tree.look(dir.handle, self.trail(dir), name)
    }
    fn look_dir(&mut self, dir: &Dir<'_>) -> Look {
        self.world.race();
        self.world.tree.look_dir(dir.handle, self.trail(dir))
    }
    fn list(&mut self, dir: &Dir<'_>, max: usize) -> Result<Option<Vec<Name>>, Failure> {
        self.world.race();
        match self.world.tree.list(dir.handle, self.trail(dir)) {
            Some(names) if names.len() <= max => Ok(Some(names)),
            Some(_) => Ok(None),
            None => Err(Failure {
                step: "list",
                reason: "gone".into(),
            }),
        }
    }
    fn read(&mut self, dir: &Dir<'_>, name: Option<&Name>, seen: &Seen, content: bool) -> ReadEnd {
        self.world.race();
        self.world
            .tree
            .read(dir.handle, self.trail(dir), name, seen, content)
    }
    fn locate(&mut self, dir: &Handle) -> Whereabouts {
        self.world.race();
        if self.by_trail {
            // A source that can't open by handle can't say.
            return Whereabouts::Gone;
        }
        self.world.tree.locate(dir)
    }
    fn more(&mut self) -> Vec<(At, Dirty)> {
        let mut more = Vec::new();
        for event in self.world.tree.queue.read(usize::MAX) {
            if let Event::Hint { hint, .. } = &event
                && let Some(hint) = self.weak.filter(hint, self.rows)
            {
                let Ok(found) = self.hints.resolve(self.rows, &hint);
                more.extend(found.dirty.into_iter().map(|(at, dirty, _)| (at, dirty)));
            }
            self.early.push(event);
        }
        more
    }
    fn wants_trail(&self) -> bool {
        self.by_trail
    }
    fn ignored(&mut self, _: &mut dyn FnMut() -> Vec<Name>, _: &Name, _: bool) -> bool {
        false
    }
}

/// What the kernel's handles answer to [`Hints::classify`].
pub fn whereabouts(world: &mut World, dir: &Handle) -> Whereabouts {
    world.race();
    world.tree.locate(dir)
}
