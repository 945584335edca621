//! The exit codes, and which error leads to which: decided here and nowhere else.

use std::error::Error;

use crate::cli::config::ConfigError;
use crate::cli::parse::ParseError;
use crate::cli::places::PlaceError;
use crate::engine::control::{ClientError, ControlError, LockError};
use crate::engine::event::{RunEnd, RunError};
use crate::filter::BadPattern;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    /// Done, but listed paths failed.
    SomeFailed = 3,
    Hold = 4,
    /// Busy, or timed out.
    Busy = 5,
    Unreachable = 6,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> std::process::ExitCode {
        std::process::ExitCode::from(exit as u8)
    }
}

/// Why a command ended: one line, and its exit code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}")]
pub struct CliError {
    pub exit: Exit,
    pub line: String,
}

impl CliError {
    pub fn new(exit: Exit, line: impl Into<String>) -> CliError {
        CliError {
            exit,
            line: line.into(),
        }
    }
    pub fn usage(line: impl Into<String>) -> CliError {
        CliError::new(Exit::Usage, line)
    }
    pub fn failed(line: impl Into<String>) -> CliError {
        CliError::new(Exit::Failed, line)
    }
}

/// An error with what caused it, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = next.source();
    }
    line
}

impl From<ParseError> for CliError {
    fn from(e: ParseError) -> CliError {
        CliError::usage(e.0)
    }
}

impl From<BadPattern> for CliError {
    fn from(e: BadPattern) -> CliError {
        CliError::usage(e.to_string())
    }
}

impl From<PlaceError> for CliError {
    fn from(e: PlaceError) -> CliError {
        let exit = match e {
            PlaceError::Io { .. } => Exit::Failed,
            PlaceError::SourceGone { .. } | PlaceError::Unfit(_) => Exit::Usage,
        };
        CliError::new(exit, chain(&e))
    }
}

impl From<ConfigError> for CliError {
    fn from(e: ConfigError) -> CliError {
        CliError::failed(chain(&e))
    }
}

impl From<LockError> for CliError {
    fn from(e: LockError) -> CliError {
        let exit = match e {
            LockError::Busy { .. } => Exit::Busy,
            LockError::Io { .. } => Exit::Failed,
        };
        CliError::new(exit, chain(&e))
    }
}

impl From<ControlError> for CliError {
    fn from(e: ControlError) -> CliError {
        let exit = match e {
            ControlError::Timeout(_) | ControlError::Busy(_) => Exit::Busy,
            ControlError::Held(_) => Exit::Hold,
            ControlError::Refused(_) => Exit::Usage,
            ControlError::Unreachable(_) => Exit::Unreachable,
            ControlError::Failed(_) => Exit::Failed,
        };
        CliError::new(exit, e.to_string())
    }
}

impl From<ClientError> for CliError {
    fn from(e: ClientError) -> CliError {
        match e {
            ClientError::Told(told) => told.into(),
            ClientError::NotRunning | ClientError::Silent(_) | ClientError::Io(_) => {
                CliError::failed(chain(&e))
            }
        }
    }
}

impl From<RunError> for CliError {
    fn from(e: RunError) -> CliError {
        let exit = match e {
            RunError::Usage(_) => Exit::Usage,
            RunError::Held(_) => Exit::Hold,
            RunError::Busy(_) => Exit::Busy,
            RunError::Unreachable(_) => Exit::Unreachable,
            RunError::Failed(_) => Exit::Failed,
        };
        // `{:#}` of anyhow has the causes already.
        CliError::new(exit, e.to_string())
    }
}

/// How a run that did what it could ends. A hold outweighs failed paths: with it nothing is applied any more.
pub fn of_run(end: &RunEnd, once: bool) -> Exit {
    if end.held.is_some() {
        Exit::Hold
    } else if end.stopped && once {
        Exit::Failed
    } else if end.failed > 0 || end.fuzzy > 0 || end.extras > 0 {
        Exit::SomeFailed
    } else {
        Exit::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::control::Holder;
    use crate::engine::status::{Hold, HoldReason, Stamp};

    fn hold() -> Hold {
        let what = "the root is gone".into();
        Hold {
            reason: HoldReason::RootGone,
            since: Stamp { ms: 0 },
            what,
            gone: None,
            of: None,
            below: None,
        }
    }

    #[test]
    fn every_error_has_its_code() {
        let io = || std::io::Error::from_raw_os_error(28);
        let t = String::new;
        let table: Vec<(CliError, u8)> = vec![
            (RunError::Usage(t()).into(), 2),
            (RunError::Held(hold()).into(), 4),
            (RunError::Busy(t()).into(), 5),
            (RunError::Unreachable(t()).into(), 6),
            (RunError::Failed(anyhow::anyhow!("x")).into(), 1),
            (ControlError::Timeout(t()).into(), 5),
            (ControlError::Busy(t()).into(), 5),
            (ControlError::Held(t()).into(), 4),
            (ControlError::Refused(t()).into(), 2),
            (ControlError::Unreachable(t()).into(), 6),
            (ControlError::Failed(t()).into(), 1),
            (ClientError::NotRunning.into(), 1),
            (ClientError::Told(ControlError::Timeout(t())).into(), 5),
            (
                LockError::Busy {
                    state_dir: "/s".into(),
                    holder: Holder {
                        pid: Some(7),
                        since: None,
                    },
                }
                .into(),
                5,
            ),
            (
                LockError::Io {
                    path: "/s/lock".into(),
                    source: io(),
                }
                .into(),
                1,
            ),
            (PlaceError::SourceGone { path: "/x".into() }.into(), 2),
            (
                PlaceError::Io {
                    what: "read",
                    path: "/x".into(),
                    source: io(),
                }
                .into(),
                1,
            ),
            (ParseError("x".into()).into(), 2),
        ];
        for (error, code) in table {
            assert_eq!(error.exit as u8, code, "{error}");
        }
    }

    #[test]
    fn runs() {
        let end = |failed, fuzzy, held: bool, stopped| RunEnd {
            failed,
            fuzzy,
            extras: 0,
            held: held.then(hold),
            stopped,
        };
        assert_eq!(of_run(&end(0, 0, false, false), true), Exit::Done);
        assert_eq!(of_run(&end(0, 0, false, true), false), Exit::Done);
        assert_eq!(of_run(&end(0, 0, false, true), true), Exit::Failed);
        assert_eq!(of_run(&end(1, 0, false, false), true), Exit::SomeFailed);
        assert_eq!(of_run(&end(0, 1, false, true), false), Exit::SomeFailed);
        assert_eq!(of_run(&end(1, 0, true, false), true), Exit::Hold);
    }

    #[test]
    fn causes_stand_in_one_line() {
        let e = LockError::Io {
            path: "/s/lo\nck".into(),
            source: std::io::Error::from_raw_os_error(28),
        };
        assert_eq!(
            chain(&e),
            "cannot lock /s/lo\\x0ack: No space left on device (os error 28)"
        );
    }
}
