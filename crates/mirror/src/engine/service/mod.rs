//! What runs for years: a supervisor of processes, one a tree, that follows a configuration and holds no data itself.
//!
//! `decisions/0007-the-service.md` says why it is cut so. [`children`] starts and ends processes, [`pulse`] finds those that hang, [`notify`] speaks with
//! systemd, [`rate`] knows how fast one may send at which time of day, [`settings`] reads TOML with all its mistakes; they serve both
//! programs.

pub mod backup;
pub mod children;
pub mod elsewhere;
pub mod history;
mod listening;
pub mod notify;
pub mod pulse;
pub mod rate;
pub mod settings;
pub mod word;
pub mod worker;

/// One line for whoever keeps the log. The journal has the time itself.
pub fn log(line: &str) {
    use std::io::Write;
    let mut err = std::io::stderr().lock();
    let _ = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => writeln!(err, "{line}"),
        None => writeln!(err, "{} {line}", crate::engine::status::Stamp::now()),
    };
}
