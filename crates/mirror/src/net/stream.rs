//! A TLS connection as two halves, one to read and one to write, over one socket.
//!
//! The socket is never read or written while the lock of the TLS state is held, so a writer that waits for a full socket
//! does not stop the reader, and the other way round. A second lock keeps what is written in order.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, sockopt};
use rustls::Connection;

use super::keys::Fingerprint;
use super::tls;
use crate::link::Closer;
use crate::sync::lock;

/// Ciphertext read at once.
const RAW_BYTES: usize = 64 << 10;
/// Plaintext encrypted before it is written.
const WRITE_BYTES_MAX: usize = 64 << 10;
/// How long the last words of a side may take.
const FINISH_MAX: Duration = Duration::from_secs(1);
/// The kernel asks a peer that says nothing whether it is there.
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEP_ALIVE_PROBES: u32 = 3;
/// The label of what both sides, and nobody else, can derive from a connection (RFC 5705).
const EXPORTER: &[u8] = b"EXPORTER-fs_mirror-pair";

#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The deadline is over.
    #[error("it took too long")]
    Late,
    #[error("the connection ended")]
    Ended,
    #[error("the connection broke: {0}")]
    Io(io::Error),
    #[error("{0}")]
    Tls(rustls::Error),
    #[error("the other side speaks TLS, but not this protocol inside")]
    NoProtocol,
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> HandshakeError {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => HandshakeError::Late,
            io::ErrorKind::UnexpectedEof => HandshakeError::Ended,
            _ => HandshakeError::Io(error),
        }
    }
}

/// A connection whose peer is known.
pub struct Session {
    pub reader: TlsReader,
    pub writer: TlsWriter,
    pub peer: Fingerprint,
    shared: Arc<Shared>,
}

struct Shared {
    connection: Mutex<Connection>,
    /// Held while ciphertext is written, which it is gathered in.
    out: Mutex<Vec<u8>>,
    socket: TcpStream,
    closed: AtomicBool,
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it took too long")
}

fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if left >= Duration::from_millis(1) => Ok(left),
        _ => Err(late()),
    }
}

/// No waiting for more to send, and probes when the other side is silent.
pub fn set_up(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEP_ALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEP_ALIVE_EVERY)?;
    sockopt::set_tcp_keepcnt(socket, KEEP_ALIVE_PROBES)?;
    Ok(())
}

fn receive(mut socket: &TcpStream, buffer: &mut [u8], until: Option<Instant>) -> io::Result<usize> {
    loop {
        if let Some(until) = until {
            socket.set_read_timeout(Some(left(until)?))?;
        }
        match socket.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(late()),
            done => return done,
        }
    }
}

fn send(mut socket: &TcpStream, mut bytes: &[u8], until: Option<Instant>) -> io::Result<()> {
    while !bytes.is_empty() {
        if let Some(until) = until {
            socket.set_write_timeout(Some(left(until)?))?;
        }
        match socket.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(late()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// What the connection wants to say.
fn gather(connection: &mut Connection, out: &mut Vec<u8>) -> io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(out)?;
    }
    Ok(())
}

impl Session {
    /// Shakes hands, all of it until `deadline`. `heard` is set once the other side said anything.
    pub fn begin(
        socket: TcpStream,
        mut connection: Connection,
        deadline: Instant,
        heard: &AtomicBool,
    ) -> Result<Session, HandshakeError> {
        let mut raw = Raw::new();
        let mut out = Vec::new();
        connection.set_buffer_limit(None);
        while connection.is_handshaking() {
            out.clear();
            gather(&mut connection, &mut out)?;
            send(&socket, &out, Some(deadline))?;
            if raw.is_empty() {
                if raw.fill(&socket, Some(deadline))? == 0 {
                    return Err(HandshakeError::Ended);
                }
                heard.store(true, Ordering::Release);
            }
            if let Err(error) = raw.feed(&mut connection) {
                out.clear();
                // The alert that says why.
                if gather(&mut connection, &mut out).is_ok() {
                    let _ = rustix::net::send(&socket, &out, SendFlags::DONTWAIT);
                }
                return Err(error);
            }
        }
        out.clear();
        gather(&mut connection, &mut out)?;
        send(&socket, &out, Some(deadline))?;
        let Some(peer) = tls::peer_of(&connection) else {
            return Err(HandshakeError::Tls(rustls::Error::NoCertificatesPresented));
        };
        if connection.alpn_protocol() != Some(tls::ALPN) {
            return Err(HandshakeError::NoProtocol);
        }
        let shared = Arc::new(Shared {
            connection: Mutex::new(connection),
            out: Mutex::new(out),
            socket,
            closed: AtomicBool::new(false),
        });
        Ok(Session {
            reader: TlsReader {
                shared: shared.clone(),
                raw,
                until: Some(deadline),
            },
            writer: TlsWriter {
                shared: shared.clone(),
                until: Some(deadline),
            },
            peer,
            shared,
        })
    }

    /// The handshake is over: from now on either half may wait for as long as it takes.
    pub fn no_deadline(&mut self) -> io::Result<()> {
        self.reader.until = None;
        self.writer.until = None;
        self.shared.socket.set_read_timeout(None)?;
        self.shared.socket.set_write_timeout(None)
    }

    /// Either half may wait until then.
    pub fn until(&mut self, deadline: Instant) {
        self.reader.until = Some(deadline);
        self.writer.until = Some(deadline);
    }

    /// Another one that writes; what either writes at once stays together, up to 64 KiB.
    pub fn second_writer(&self) -> TlsWriter {
        TlsWriter {
            shared: self.shared.clone(),
            until: None,
        }
    }

    /// Bytes that only the two ends of this very connection know.
    pub fn exported(&self) -> Result<[u8; 32], rustls::Error> {
        lock(&self.shared.connection).export_keying_material([0u8; 32], EXPORTER, None)
    }

    pub fn closer(&self) -> Closer {
        let shared = self.shared.clone();
        Arc::new(move || shared.close())
    }
}

impl Shared {
    /// Ends both halves at once. The other side is told if that can be done without waiting.
    fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            let out = match self.out.try_lock() {
                Ok(out) => Some(out),
                Err(TryLockError::Poisoned(out)) => Some(out.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            };
            if let Some(mut out) = out {
                out.clear();
                let mut connection = lock(&self.connection);
                connection.send_close_notify();
                let gathered = gather(&mut connection, &mut out);
                drop(connection);
                if gathered.is_ok() {
                    let _ = rustix::net::send(&self.socket, &out, SendFlags::DONTWAIT);
                }
            }
        }
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Ciphertext that came and was not looked at.
struct Raw {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Raw {
    fn new() -> Raw {
        Raw {
            bytes: vec![0; RAW_BYTES],
            start: 0,
            end: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    fn fill(&mut self, socket: &TcpStream, until: Option<Instant>) -> io::Result<usize> {
        self.start = 0;
        self.end = 0;
        self.end = receive(socket, &mut self.bytes, until)?;
        Ok(self.end)
    }

    /// Lets the connection look at some of it.
    fn feed(&mut self, connection: &mut Connection) -> Result<(), HandshakeError> {
        let mut from = self.bytes.get(self.start..self.end).unwrap_or_default();
        let taken = connection.read_tls(&mut from).map_err(HandshakeError::Io)?;
        self.start += taken;
        if taken == 0 {
            // It ended: what comes after is nothing.
            self.start = self.end;
        }
        connection
            .process_new_packets()
            .map(|_| ())
            .map_err(HandshakeError::Tls)
    }
}

/// The half that reads. Nothing more comes (`Ok(0)`) only if the other side said so.
pub struct TlsReader {
    shared: Arc<Shared>,
    raw: Raw,
    until: Option<Instant>,
}

impl TlsReader {
    /// It may wait until then, or for as long as it takes.
    pub fn wait_until(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.until = deadline;
        match deadline {
            None => self.shared.socket.set_read_timeout(None),
            Some(_) => Ok(()),
        }
    }
}

impl Read for TlsReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let mut connection = lock(&self.shared.connection);
            loop {
                match connection.reader().read(buffer) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    done => return done,
                }
                if self.raw.is_empty() {
                    break;
                }
                if let Err(error) = self.raw.feed(&mut connection) {
                    drop(connection);
                    // Closing says the alert, too.
                    self.shared.close();
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
            drop(connection);
            if self.raw.fill(&self.shared.socket, self.until)? == 0 {
                let cut = "it was cut off in the middle";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cut));
            }
        }
    }
}

/// The half that writes.
pub struct TlsWriter {
    shared: Arc<Shared>,
    until: Option<Instant>,
}

impl Write for TlsWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let some = bytes.get(..WRITE_BYTES_MAX).unwrap_or(bytes);
        let mut out = lock(&self.shared.out);
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        out.clear();
        let taken = {
            let mut connection = lock(&self.shared.connection);
            let taken = connection.writer().write(some)?;
            gather(&mut connection, &mut out)?;
            taken
        };
        if let Err(error) = send(&self.shared.socket, &out, self.until) {
            // Part of a record may be on its way: nothing can follow it.
            self.shared.closed.store(true, Ordering::Release);
            let _ = self.shared.socket.shutdown(Shutdown::Both);
            return Err(error);
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TlsWriter {
    /// Says that nothing more comes, and that it was all. What comes from the other side can still be read.
    pub fn finish(&mut self) {
        let mut out = lock(&self.shared.out);
        if self.shared.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        out.clear();
        let gathered = {
            let mut connection = lock(&self.shared.connection);
            connection.send_close_notify();
            gather(&mut connection, &mut out)
        };
        if gathered.is_ok() {
            let _ = send(&self.shared.socket, &out, Some(Instant::now() + FINISH_MAX));
        }
        let _ = self.shared.socket.shutdown(Shutdown::Write);
    }
}
