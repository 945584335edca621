//! The far end of a mirror: over the system's ssh, or a service over TLS. What is spoken is the same.

use std::io;
use std::net::Shutdown;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mirror_core::escape;

use super::receive::handshake_max;
use super::ssh::{Running, Ssh};
use crate::engine::applying::chain;
use crate::engine::options::{MirrorOptions, SourceSpec};
use crate::link::LinkError;
use crate::link::conn::{Closer, Incoming, Outgoing, Pulse};
use crate::net::dial::{self, DialError};
use crate::net::{self, Program, door};

#[derive(Debug, Clone)]
pub struct Far {
    pub host: String,
    /// The tree as it was typed: a path, or a service's name for it.
    pub path: Vec<u8>,
    /// Somebody can be asked for a password or a host key.
    pub terminal: bool,
    way: Way,
}

#[derive(Debug, Clone)]
enum Way {
    Ssh(Ssh),
    /// By a connection that the tree's host offers to ours, known here by a name.
    Offered {
        at: PathBuf,
    },
    Service {
        port: Option<u16>,
        /// For connecting and greeting together.
        at_most: Duration,
    },
}

/// A connection. It is ended when this is dropped.
pub struct Peer {
    pub outgoing: Arc<Outgoing>,
    /// Taken by whoever reads.
    pub incoming: Option<Incoming>,
    ssh: Option<Running>,
    /// Until when both must have greeted, where that began before there was a connection.
    due: Option<Instant>,
}

/// Why there is no connection.
#[derive(Debug)]
pub struct Unreached {
    pub why: String,
    /// The host is up, and refused it: what listens there is being started, say.
    pub refused: bool,
}

impl From<String> for Unreached {
    fn from(why: String) -> Unreached {
        let refused = false;
        Unreached { why, refused }
    }
}

impl From<DialError> for Unreached {
    fn from(error: DialError) -> Unreached {
        Unreached {
            refused: matches!(error, DialError::Refused(_)),
            why: chain(&error),
        }
    }
}

impl Far {
    /// `None`: the source is on this host.
    pub fn new(options: &MirrorOptions) -> Option<Far> {
        Some(match options.source.clone() {
            SourceSpec::Local(_) => return None,
            SourceSpec::Ssh {
                user,
                host,
                port,
                path,
            } => Far {
                way: Way::Ssh(Ssh::new(options, user, &host, port, &path)),
                host,
                path,
                terminal: options.output.terminal,
            },
            SourceSpec::Service { host, port, name } => Far {
                host,
                path: name.into_bytes(),
                terminal: false,
                way: match std::env::var_os(door::OFFERED_AT) {
                    Some(at) => Way::Offered { at: at.into() },
                    None => Way::Service {
                        port,
                        at_most: handshake_max(options),
                    },
                },
            },
        })
    }

    pub fn connect(&self) -> Result<Peer, Unreached> {
        match &self.way {
            Way::Offered { at } => {
                let failed = |e: io::Error| {
                    format!("cannot ask the service here for a connection: {e}; does it `listen`?")
                };
                let tree = String::from_utf8_lossy(&self.path);
                let stream = door::ask_for(at, &self.host, &tree).map_err(failed)?;
                let writer = stream.try_clone().map_err(failed)?;
                let ender = stream.try_clone().map_err(failed)?;
                let closer: Closer = Arc::new(move || {
                    let _ = ender.shutdown(Shutdown::Both);
                });
                Ok(Peer {
                    outgoing: Arc::new(Outgoing::new(writer, closer)),
                    incoming: Some(Incoming::new(stream)),
                    ssh: None,
                    due: None,
                })
            }
            Way::Ssh(ssh) => {
                let (running, incoming) = ssh.connect()?;
                Ok(Peer {
                    outgoing: running.outgoing.clone(),
                    incoming: Some(incoming),
                    ssh: Some(running),
                    due: None,
                })
            }
            Way::Service { port, at_most } => {
                let due = Instant::now() + *at_most;
                let config_dir = net::config_dir(Program::FsMirror)?;
                let dialed = dial::dial(&self.host, *port, &config_dir, *at_most)?;
                Ok(Peer {
                    outgoing: Arc::new(Outgoing::new(dialed.writer, dialed.closer)),
                    incoming: Some(Incoming::new(dialed.reader)),
                    ssh: None,
                    due: Some(due),
                })
            }
        }
    }

    /// One line on why there is no connection any more, and what to do.
    pub fn why(&self, error: &LinkError, peer: &mut Peer) -> String {
        peer.outgoing.close();
        match (&self.way, &mut peer.ssh) {
            (Way::Ssh(ssh), Some(running)) => {
                let (ended, said) = running.end();
                ssh.why(error, ended, &said)
            }
            _ => format!("{}: {}", escape(self.host.as_bytes()), chain(error)),
        }
    }
}

impl Peer {
    /// The greeting may take what is left of the time.
    pub fn limit(&self, pulse: &Pulse) {
        if let Some(due) = self.due {
            pulse.handshake(Some(due.saturating_duration_since(Instant::now())));
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.outgoing.close();
    }
}
