//! Dialing a service: a connection with the holder of one key, or one line that says why there is none and what to do.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use mirror_core::escape;

use super::files::NetFileError;
use super::keys::{Fingerprint, KeyPair};
use super::stream::{self, HandshakeError, Session, TlsReader, TlsWriter};
use super::tls;
use super::trust::{Address, Known};
use crate::link::Closer;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;
/// What the last of many addresses gets at least.
const CONNECT_MIN: Duration = Duration::from_millis(500);

/// A connection to a service that showed the key it must.
pub struct Dialed {
    pub reader: TlsReader,
    pub writer: TlsWriter,
    pub closer: Closer,
    pub peer: Fingerprint,
}

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error(transparent)]
    Files(#[from] NetFileError),
    #[error(
        "the key of {address} is not known here: pair first (`mirrord pair --tree NAME` there prints the token for \
         `fs_mirror pair {} TOKEN` here)",
        typed(.address)
    )]
    Unknown { address: Address },
    #[error(
        "{address} shows another key than it must: {shown}, not {wanted}. Find out why; if its key was made anew, pair \
         again (`mirrord pair --tree NAME` there, `fs_mirror pair {} TOKEN` here)",
        typed(.address)
    )]
    WrongKey {
        address: Address,
        wanted: Fingerprint,
        shown: Fingerprint,
    },
    #[error("there is no host {}: {why}", escape(.host.as_bytes()))]
    NoHost { host: String, why: String },
    #[error(
        "nothing listens on {} port {}, or a firewall refuses it: is `mirrord serve` (or `fs_mirror serve`) running there, with `listen`?",
        escape(.0.host.as_bytes()), .0.port
    )]
    Refused(Address),
    #[error(
        "{} does not answer on port {} within {} s: it is down, or a firewall drops what comes to that port",
        escape(.address.host.as_bytes()), .address.port, .after.as_secs()
    )]
    TimedOut { address: Address, after: Duration },
    #[error(
        "cannot reach {} on port {}, no way leads there or a firewall refuses it: {source}",
        escape(.address.host.as_bytes()), .address.port
    )]
    Unreachable { address: Address, source: io::Error },
    #[error(
        "what listens on {} port {} is no service of this kind ({why}): is it `mirrord serve`?",
        escape(.address.host.as_bytes()), .address.port
    )]
    Strange { address: Address, why: String },
    #[error(
        "{} port {} takes the connection and says nothing for {} s: is it `mirrord serve`, and does a firewall let its \
         answers through?",
        escape(.address.host.as_bytes()), .address.port, .after.as_secs()
    )]
    Mute { address: Address, after: Duration },
    #[error("the connection to {address} broke at its beginning: {why}")]
    Broke { address: Address, why: String },
}

/// As in `fs_mirror pair HOST`: the port only where it must be said.
fn typed(address: &Address) -> String {
    if address.port == super::PORT && !address.host.contains(':') {
        escape(address.host.as_bytes())
    } else {
        address.to_string()
    }
}

/// A service that we paired with: it must show the key that `known.toml` has for it. All of it within `timeout`; what the
/// caller says after that is the caller's to limit.
pub fn dial(
    host: &str,
    port: Option<u16>,
    config_dir: &Path,
    timeout: Duration,
) -> Result<Dialed, DialError> {
    let address = Address::new(host, port);
    let Some(wanted) = Known::load(config_dir)?.key(&address) else {
        return Err(DialError::Unknown { address });
    };
    let key = KeyPair::load_or_make(config_dir)?;
    let mut session = dial_key(&address, &key, wanted, Instant::now() + timeout, timeout)?;
    session.no_deadline().map_err(|e| DialError::Broke {
        address,
        why: e.to_string(),
    })?;
    let closer = session.closer();
    Ok(Dialed {
        closer,
        reader: session.reader,
        writer: session.writer,
        peer: session.peer,
    })
}

/// Whoever has this key. The deadline stays on both halves.
pub fn dial_key(
    address: &Address,
    key: &KeyPair,
    wanted: Fingerprint,
    deadline: Instant,
    timeout: Duration,
) -> Result<Session, DialError> {
    let socket = connect(address, deadline, timeout)?;
    shake_hands(address, socket, key, wanted, deadline, timeout)
}

/// A connection, before anything is said over it.
pub fn connect(
    address: &Address,
    deadline: Instant,
    timeout: Duration,
) -> Result<TcpStream, DialError> {
    let timed_out = || DialError::TimedOut {
        address: address.clone(),
        after: timeout,
    };
    let found = resolve(address, deadline).map_err(|e| match e.kind() {
        io::ErrorKind::TimedOut => DialError::NoHost {
            host: address.host.clone(),
            why: format!("no name server answered within {} s", timeout.as_secs()),
        },
        _ => DialError::NoHost {
            host: address.host.clone(),
            why: e.to_string(),
        },
    })?;
    let mut error = None;
    let count = found.len().min(ADDRESSES_MAX);
    for (at, addr) in found.into_iter().take(ADDRESSES_MAX).enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        // One that does not answer leaves time for the others.
        let share = left / u32::try_from(count - at).unwrap_or(1).max(1);
        match TcpStream::connect_timeout(&addr, share.max(CONNECT_MIN).min(left)) {
            Ok(socket) => match stream::set_up(&socket) {
                Ok(()) => return Ok(socket),
                Err(e) => error = Some(e),
            },
            Err(e) => error = Some(e),
        }
    }
    Err(match error {
        None => timed_out(),
        Some(e) => match e.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => timed_out(),
            io::ErrorKind::ConnectionRefused => DialError::Refused(address.clone()),
            _ => DialError::Unreachable {
                address: address.clone(),
                source: e,
            },
        },
    })
}

/// The system's resolver knows no deadline; a thread waits for it where it may.
fn resolve(address: &Address, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    let Address { host, port } = address.clone();
    let (tell, told) = bounded(1);
    std::thread::Builder::new()
        .name("resolve".into())
        .spawn(move || {
            let found = (host.as_str(), port).to_socket_addrs();
            let _ = tell.send(found.map(|all| all.collect::<Vec<_>>()));
        })?;
    let found = told
        .recv_deadline(deadline)
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if found.is_empty() {
        return Err(io::Error::other("it has no address"));
    }
    Ok(found)
}

fn shake_hands(
    address: &Address,
    socket: TcpStream,
    key: &KeyPair,
    wanted: Fingerprint,
    deadline: Instant,
    timeout: Duration,
) -> Result<Session, DialError> {
    let broke = |why: String| DialError::Broke {
        address: address.clone(),
        why,
    };
    let (connection, seen) = tls::connect(key, wanted).map_err(|e| broke(e.to_string()))?;
    let heard = AtomicBool::new(false);
    Session::begin(socket, connection, deadline, &heard).map_err(|error| {
        if let Some(shown) = seen.get().filter(|shown| *shown != wanted) {
            return DialError::WrongKey {
                address: address.clone(),
                wanted,
                shown,
            };
        }
        let heard = heard.into_inner();
        let strange = |why: String| DialError::Strange {
            address: address.clone(),
            why,
        };
        match error {
            HandshakeError::Late if !heard => DialError::Mute {
                address: address.clone(),
                after: timeout,
            },
            HandshakeError::Ended if !heard => {
                broke("it was closed at once; too many connections, or no `mirrord serve`".into())
            }
            HandshakeError::NoProtocol => strange(error.to_string()),
            HandshakeError::Tls(rustls::Error::AlertReceived(alert)) => {
                strange(format!("it ended the handshake: {alert:?}"))
            }
            HandshakeError::Tls(error) => strange(error.to_string()),
            error => broke(error.to_string()),
        }
    })
}
