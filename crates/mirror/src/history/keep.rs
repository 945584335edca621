//! What gets into history at all: per path, and of files that are written all the time one version in a while.

use mirror_core::ObjectId;
use mirror_core::history::Unkept;
use mirror_core::history::interval::{Hot, Keep};

use super::settings::Settings;
use crate::filter::Filter;

/// See the module. Without settings it keeps all there is.
#[derive(Debug)]
pub struct Sieve {
    usual: Keep,
    rules: Vec<(Filter, Keep)>,
    hot: Hot,
}

impl Default for Sieve {
    fn default() -> Sieve {
        Sieve {
            usual: Keep::All,
            rules: Vec::new(),
            hot: Hot::default(),
        }
    }
}

/// How the bytes of a file end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// Others come.
    Replaced,
    /// Its name stands for this file from now on, which goes on with its allowance.
    ReplacedBy(ObjectId),
    /// It has no name any more: its last version counts most.
    Gone,
}

impl Sieve {
    /// The patterns were checked when they were read; one that is bad after all keeps more, not less.
    pub fn new(settings: &Settings) -> Sieve {
        let rules = settings.paths.iter();
        let rules = rules.filter_map(|rule| Some((Filter::new(&rule.patterns).ok()?, rule.keep)));
        Sieve {
            usual: match settings.min_interval_ns {
                0 => Keep::All,
                ns => Keep::Interval(ns),
            },
            rules: rules.collect(),
            hot: Hot::default(),
        }
    }

    /// Whether it makes a difference where a file is.
    pub fn asks_for_paths(&self) -> bool {
        !self.rules.is_empty()
    }

    /// The policy of one path.
    fn of_path(&self, path: &[u8]) -> Keep {
        let rule = self
            .rules
            .iter()
            .find(|(filter, _)| filter.ignored(path, false));
        rule.map_or(self.usual, |(_, keep)| *keep)
    }

    /// The policy of a file with these paths: that of the one that keeps most.
    pub fn policy(&self, paths: &[Vec<u8>]) -> Keep {
        let most = |keep: &Keep| match keep {
            Keep::All => (2, 0),
            Keep::Interval(ns) => (1, u64::MAX - ns),
            Keep::None => (0, 0),
        };
        let all = paths.iter().map(|path| self.of_path(path));
        all.max_by_key(most).unwrap_or(self.usual)
    }

    /// Whether the version that ends now is kept, by the time of the record that ends it and by this host's.
    pub fn decide(
        &mut self,
        keep: Keep,
        object: ObjectId,
        ends: Ends,
        (record_ns, here_ns): (u64, u64),
    ) -> Result<(), Unkept> {
        if keep == Keep::None {
            return Err(Unkept::Policy);
        }
        if ends == Ends::Gone {
            self.hot.forget(object);
            return Ok(());
        }
        let kept = self.hot.kept(keep, object, record_ns, here_ns);
        if let Ends::ReplacedBy(next) = ends {
            self.hot.pass_on(object, next);
        }
        match kept {
            true => Ok(()),
            false => Err(Unkept::Interval),
        }
    }
}
