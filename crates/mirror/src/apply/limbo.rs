//! What a process that died left outside the tree.

use mirror_core::plan::Place;

use super::area::{Area, look};
use super::dirs::is_local;
use super::{Applier, Store, names_in, wipe};

impl<S: Store> Applier<S> {
    /// After a crash: whose inodes are in limbo? What the rows do not know was on its way in, and is made again.
    pub(super) fn sort_out_limbo(&mut self) -> crate::sys::Result<()> {
        self.limbo.clear();
        for name in names_in(&self.area.limbo)? {
            let Some(stat) = look(&*self.area.limbo, &name)? else {
                continue;
            };
            let text = name.strip_suffix(b".swap").unwrap_or(&name);
            let place = Area::limbo_place(text);
            let mut whose = None;
            if let Some(Place::Limbo(a, b)) = &place {
                for id in [a, b] {
                    if let Ok(Some(row)) = self.store.object(*id)
                        && is_local(&stat, &row.local)
                    {
                        whose = Some(*id);
                    }
                }
            }
            match (whose, place) {
                (Some(id), Some(place)) => {
                    if text.len() != name.len() {
                        crate::sys::target::rename_noreplace(
                            &*self.area.limbo,
                            &name,
                            &*self.area.limbo,
                            text,
                        )?;
                    }
                    self.limbo.insert(place, id);
                }
                _ => wipe::remove(&*self.area.limbo, &name, 0, &mut wipe::All)?,
            }
        }
        let aside = self.area.aside.clone();
        for name in names_in(&aside)? {
            let position = self.store.position();
            self.area
                .move_aside(position, &aside, &name, &name, false)?;
        }
        Ok(())
    }
}
