//! How many descriptors this process may have open, and how many of them a cache may keep.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Enough for every cache at its full size.
const WANTED: u64 = 4096;

/// The limit, after the soft one was raised as far as the hard one lets us and as we can use.
pub fn max() -> u64 {
    static MAX: OnceLock<u64> = OnceLock::new();
    *MAX.get_or_init(|| {
        let limit = getrlimit(Resource::Nofile);
        let (Some(soft), hard) = (limit.current, limit.maximum) else {
            return u64::MAX;
        };
        let raised = hard.map_or(WANTED, |hard| hard.min(WANTED)).max(soft);
        let new = Rlimit {
            current: Some(raised),
            maximum: hard,
        };
        match setrlimit(Resource::Nofile, new) {
            Ok(()) => raised,
            Err(_) => soft,
        }
    })
}

/// What one of some `users` caches may keep open, of `wanted`. Half of all descriptors are for everything else.
pub fn share(wanted: usize, users: u64) -> usize {
    let share = usize::try_from(max() / 2 / users.max(1)).unwrap_or(usize::MAX);
    wanted.min(share.max(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_never_nothing_and_never_more_than_wanted() {
        assert!(max() >= 64);
        assert_eq!(share(100, u64::MAX), 2);
        assert_eq!(share(1, 2), 1);
    }
}
