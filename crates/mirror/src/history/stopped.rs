//! The past of a mirror that does not run: from its files, under its lock.

use std::collections::BTreeMap;
use std::path::Path;

use mirror_core::ObjectId;
use mirror_core::history::Moment;
use mirror_core::history::retention::MirrorTime;
use mirror_core::plan::{Wanted, owed};

use super::History;
use super::ask::{Answer, Ask, answer};
use super::catalogue::Known;
use super::prune::{Orders, Pruner, Report, Zones};
use super::settings::Settings;
use super::tree::PastError;
use crate::apply;
use crate::engine::applying::{HISTORY_KEY, NO_HISTORY};
use crate::engine::control::StateLock;
use crate::engine::local::outer::space;
use crate::index::{self, Index};

/// See the module.
pub struct Stopped {
    rows: Index,
    wanted: BTreeMap<ObjectId, Wanted>,
    pub history: History,
    now: Moment,
    _lock: Option<StateLock>,
}

impl Stopped {
    /// An earlier part of the history: nobody changes it any more.
    pub fn open_part(dir: &Path) -> Result<Stopped, PastError> {
        Stopped::open(dir, None)
    }

    pub fn open(state_dir: &Path, lock: Option<StateLock>) -> Result<Stopped, PastError> {
        let rows_error = |e: &dyn std::error::Error| PastError::Rows(e.to_string());
        let path = state_dir.join("index");
        if !path.exists() {
            let text = match lock {
                Some(_) => {
                    "the index of the copy is missing: start the mirror, which makes it again"
                }
                None => {
                    "its index was lost, so it can't be asked for; its versions are in history/ there"
                }
            };
            return Err(PastError::Unknown(text.into()));
        }
        let (rows, opened) =
            Index::open(&path, index::Options::default()).map_err(|e| rows_error(&e))?;
        let kept = rows.meta_get(HISTORY_KEY).map_err(|e| rows_error(&e))?;
        let (Some(tree), Some(mark), Some(_)) = (opened.tree, opened.mark, kept) else {
            return Err(PastError::Unknown(NO_HISTORY.into()));
        };
        let wanted = apply::wanted_of(&rows).map_err(|e| rows_error(&e))?;
        let now = Moment::of(mark.position);
        let last = rows.meta_get(apply::HISTORY_LAST_KEY);
        let last = apply::history_last(last.map_err(|e| rows_error(&e))?);
        let history = History::open(state_dir, tree, Some(Known { now, last }))?;
        Ok(Stopped {
            wanted,
            history,
            now,
            rows,
            _lock: lock,
        })
    }

    /// One pass that lets old versions go.
    pub fn prune(
        &mut self,
        (state_dir, dst): (&Path, &Path),
        keeping: &Settings,
        force: bool,
    ) -> Result<Report, PastError> {
        self.history.choose(keeping)?;
        let space = || space(dst).map(|space| (space.bytes_total, space.bytes_free));
        let orders = Orders {
            eras: self.history.events.policies(),
            budget: keeping.budget_of(space().map_or(0, |space| space.0)),
            now: MirrorTime::of_ns(self.history.now_ns()),
            until: self.now,
            force,
            dry_run: false,
        };
        let zones = Zones::known(state_dir, &keeping.policy.timezone);
        let mut pruner = Pruner::open(state_dir, zones)?;
        let report = pruner.run(&orders, &space, &|| true, &mut |_| {})?;
        report.settle(&mut self.history)?;
        Ok(report)
    }

    pub fn ask(&mut self, ask: &Ask) -> Result<Answer, PastError> {
        let rows = owed(&self.rows, &self.wanted);
        let mut rows = rows.map_err(|e| PastError::Rows(e.to_string()))?;
        rows.forget_locals();
        answer(&rows, &mut self.history, self.now, ask)
    }
}
