//! What is not the same at two positions: the net of all that happened in between.

use std::collections::{BTreeMap, BTreeSet};

use mirror_core::history::{Moment, Then, Was};
use mirror_core::{At, ObjectId};

use super::ask::{Answer, Ask, groups_of};
use super::asked::{Asks, odd};
use super::tree::PastError;

#[derive(Debug, Default)]
pub struct Touched {
    /// What each name that stands for something else stood for at both.
    pub names: BTreeMap<At, (Option<ObjectId>, Option<ObjectId>)>,
    /// Objects whose state changed, perhaps back again.
    pub objects: BTreeSet<ObjectId>,
    /// Those whose last name went.
    pub gone: BTreeSet<ObjectId>,
}

impl Touched {
    /// Cost: what changed in between.
    pub fn between(asks: &mut dyn Asks, from: Moment, until: Moment) -> Result<Touched, PastError> {
        let mut touched = Touched::default();
        let mut after = from.0;
        loop {
            let ask = Ask::Groups {
                after,
                until: until.0,
            };
            let Answer::Groups { bodies, next } = asks.ask(&ask)? else {
                return odd();
            };
            for dated in groups_of(&bodies)? {
                for row in dated.group.rows {
                    match row.was {
                        Was::Name { at, before, after } => {
                            touched.names.entry(at).or_insert((before, None)).1 = after;
                        }
                        Was::Object { object, then, .. } => {
                            touched.objects.insert(object);
                            match then {
                                Then::Gone => touched.gone.insert(object),
                                _ => touched.gone.remove(&object),
                            };
                        }
                        Was::Unkept { .. } => {}
                    }
                }
            }
            match next {
                Some(next) if next > after => after = next,
                _ => break,
            }
        }
        touched.names.retain(|_, (before, after)| before != after);
        Ok(touched)
    }
}
