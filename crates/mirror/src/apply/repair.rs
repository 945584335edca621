//! Putting right what a comparison of the copy with its rows found.

use std::time::Instant;

use mirror_core::ObjectId;

use super::meta::LATE_FLAGS;
use super::{
    Applier, ApplyError, Contents, Difference, DifferenceKind, Outcome, Store, store_error, verify,
};
use crate::sys::{Errno, flags};

impl<S: Store> Applier<S> {
    /// Puts right what `verify` found: moves strangers aside, makes what is missing or different anew.
    pub fn repair(
        &mut self,
        differences: &[Difference],
        contents: &dyn Contents,
    ) -> Result<Outcome, ApplyError> {
        self.area.check_root()?;
        let mut moved = 0;
        for difference in differences {
            match (difference.object, difference.what) {
                (_, DifferenceKind::Pending) => {}
                (None, _) => {
                    let position = self.store.position();
                    let aside =
                        verify::walk(&self.area, &difference.path).and_then(|(fd, name)| {
                            let area = &mut self.area;
                            match area.move_aside(position, &fd, &name, &name, false) {
                                // Its directory is set right below.
                                Err(Errno::PERM) => {
                                    flags::set_flags(&fd, 0, LATE_FLAGS)?;
                                    area.move_aside(position, &fd, &name, &name, false)
                                }
                                done => done,
                            }
                        });
                    match aside {
                        Ok(()) => moved += 1,
                        Err(Errno::NOENT) => {}
                        Err(e) => {
                            let path = self.area.root_path.clone();
                            return Err(ApplyError::Io {
                                step: "move something aside in",
                                path,
                                source: e.into(),
                            });
                        }
                    }
                    // Moving it changed its directory's time.
                    self.owe_parent(&difference.path)?;
                }
                (Some(id), what) => {
                    let meta_only = what == DifferenceKind::Meta;
                    let why = "it was changed by hand in the copy";
                    self.owe(id, meta_only, why)?;
                    self.owe_parent(&difference.path)?;
                }
            }
        }
        self.replaying = true;
        self.dirty.get_or_insert_with(Instant::now);
        let mut outcome = self.retry(contents)?;
        self.replaying = self.replay_until.is_some();
        outcome.counts.moved_aside += moved;
        Ok(outcome)
    }

    /// The directory a path lies in has another mtime now.
    fn owe_parent(&mut self, path: &[u8]) -> Result<(), ApplyError> {
        let mut dir = ObjectId::ROOT;
        let mut names: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
        names.pop();
        for name in names {
            let Ok(name) = mirror_core::Name::new(name) else {
                return Ok(());
            };
            match self
                .store
                .name(&mirror_core::At { parent: dir, name })
                .map_err(store_error)?
            {
                Some(id) => dir = id,
                None => return Ok(()),
            }
        }
        let why = "something in it was put right";
        self.owe(dir, true, why)
    }
}
