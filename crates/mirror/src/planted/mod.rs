//! Places where a test can kill the process, and defects a test can plant. Compiled to nothing without `planted`.

/// Counts; with `FS_MIRROR_CRASH=n` in the environment the n-th call aborts the process.
#[cfg(feature = "planted")]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static AT: OnceLock<Option<u64>> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let at = AT.get_or_init(|| {
        std::env::var("FS_MIRROR_CRASH")
            .ok()
            .and_then(|n| n.parse().ok())
    });
    let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    if Some(count) == *at {
        eprintln!("crash point {count}: {name}");
        std::process::abort();
    }
}

#[cfg(not(feature = "planted"))]
#[inline(always)]
pub fn point(_name: &str) {}

/// Whether this defect is planted (`FS_MIRROR_PLANT`), to show that a test catches it.
#[cfg(feature = "planted")]
pub fn is(name: &str) -> bool {
    use std::sync::OnceLock;
    static NAME: OnceLock<Option<String>> = OnceLock::new();
    NAME.get_or_init(|| std::env::var("FS_MIRROR_PLANT").ok())
        .as_deref()
        == Some(name)
}

#[cfg(not(feature = "planted"))]
#[inline(always)]
pub fn is(_name: &str) -> bool {
    false
}

/// As [`is`], one time in so many.
#[cfg(feature = "planted")]
pub fn is_one_in(name: &str, so_many: u64) -> bool {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    is(name)
        && COUNT
            .fetch_add(1, Ordering::Relaxed)
            .is_multiple_of(so_many)
}

#[cfg(not(feature = "planted"))]
#[inline(always)]
pub fn is_one_in(_name: &str, _so_many: u64) -> bool {
    false
}

#[cfg(feature = "planted")]
mod escape;
#[cfg(feature = "planted")]
pub use escape::escape;

#[cfg(not(feature = "planted"))]
#[inline(always)]
pub fn escape(_who: &str) {}

#[cfg(all(test, feature = "planted"))]
mod tests;
