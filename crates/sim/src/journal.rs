//! Where the capture loop's groups go: a list in memory, or the real log.

use std::collections::BTreeMap;

use mirror::log::{Draft, Log, LogError};
use mirror_core::reconcile::{Body, Proposed};
use mirror_core::{Digest, Position, Record};

/// Why a run can't go on.
#[derive(Debug)]
pub enum Stop {
    /// Something is not as it must be.
    Wrong(String),
    /// The log failed, as disks do.
    Log(LogError),
}

impl From<String> for Stop {
    fn from(text: String) -> Stop {
        Stop::Wrong(text)
    }
}

impl From<LogError> for Stop {
    fn from(error: LogError) -> Stop {
        Stop::Log(error)
    }
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stop::Wrong(text) => f.write_str(text),
            Stop::Log(error) => write!(f, "{error:?}"),
        }
    }
}

pub enum Journal {
    Memory {
        next: Position,
        bodies: BTreeMap<Digest, Vec<u8>>,
    },
    Log(Box<Log>),
}

impl Journal {
    pub fn memory() -> Journal {
        Journal::Memory {
            next: Position {
                epoch: 1,
                sequence: 1,
            },
            bodies: BTreeMap::new(),
        }
    }

    pub fn next(&self) -> Position {
        match self {
            Journal::Memory { next, .. } => *next,
            Journal::Log(log) => log.next_position(),
        }
    }

    pub fn log(&mut self) -> Option<&mut Log> {
        match self {
            Journal::Memory { .. } => None,
            Journal::Log(log) => Some(log),
        }
    }

    /// Appends a group and returns it with its positions.
    pub fn append(&mut self, group: Vec<Proposed>, time_ns: u64) -> Result<Vec<Record>, LogError> {
        match self {
            Journal::Memory { next, bodies } => {
                let last = group.len().saturating_sub(1);
                let mut records = Vec::with_capacity(group.len());
                for (n, proposed) in group.into_iter().enumerate() {
                    if let (Some(content), Body::Bytes(bytes)) =
                        (proposed.change.content(), proposed.body)
                    {
                        bodies.insert(content.digest, bytes);
                    }
                    records.push(Record {
                        position: *next,
                        time_ns,
                        end: n == last,
                        who: proposed.who,
                        change: proposed.change,
                        local: proposed.local,
                        content: None,
                    });
                    next.sequence += 1;
                }
                Ok(records)
            }
            Journal::Log(log) => {
                let store = log.content();
                let mut drafts = Vec::with_capacity(group.len());
                for proposed in group {
                    let content = match proposed.body {
                        Body::Bytes(bytes) => Some(store.put(&bytes)?),
                        Body::None | Body::Token(_) => None,
                    };
                    drafts.push(Draft {
                        change: proposed.change,
                        who: proposed.who,
                        local: proposed.local,
                        content,
                    });
                }
                log.append(drafts, time_ns)
            }
        }
    }
}
