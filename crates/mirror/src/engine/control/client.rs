//! The other side of the control socket: what commands use to talk to a running mirror.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use mirror_core::Position;

use super::wire::{Reply, Request, SocketPlace};
use super::{
    ControlError, LogLine, ReleaseReport, Stage, VerifyEnd, VerifyLine, VerifyOptions, WaitReport,
};
use crate::engine::status::Status;
use crate::history::ask::{Answer, Ask};

/// An answer of one line longer than this is a broken peer.
const REPLY_BYTES_MAX: u64 = 16 << 20;
/// How long a process that is alive may take to say how it is.
const STATUS_S_MAX: u64 = 10;

pub struct Client {
    stream: BufReader<UnixStream>,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No process serves this mirror.
    #[error("not running")]
    NotRunning,
    /// The process was there and said nothing sensible, or went away meanwhile.
    #[error("the running process does not answer: {0}")]
    Silent(String),
    #[error(transparent)]
    Told(#[from] ControlError),
    #[error("cannot reach the running process")]
    Io(#[source] io::Error),
}

impl Client {
    pub fn connect(state_dir: &Path) -> Result<Client, ClientError> {
        let none = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning,
            _ => ClientError::Io(e),
        };
        let place = SocketPlace::open(state_dir).map_err(none)?;
        let stream = UnixStream::connect(place.path()).or_else(|e| match none(e) {
            ClientError::NotRunning => place.connect_without_a_file().map_err(none),
            error => Err(error),
        })?;
        stream
            .set_write_timeout(Some(Duration::from_secs(STATUS_S_MAX)))
            .map_err(ClientError::Io)?;
        Ok(Client {
            stream: BufReader::new(stream),
        })
    }

    pub fn status(&mut self) -> Result<Status, ClientError> {
        self.status_within(Duration::from_secs(STATUS_S_MAX))
    }

    pub fn status_within(&mut self, at_most: Duration) -> Result<Status, ClientError> {
        match self.ask(&Request::Status, Some(at_most))? {
            Reply::Status(status) => Ok(*status),
            other => unexpected(other),
        }
    }

    pub fn wait_idle(&mut self, timeout: Option<Duration>) -> Result<WaitReport, ClientError> {
        self.waited(
            &Request::WaitIdle {
                timeout_ms: ms(timeout),
            },
            timeout,
        )
    }

    pub fn wait_position(
        &mut self,
        position: Position,
        timeout: Option<Duration>,
    ) -> Result<WaitReport, ClientError> {
        self.waited(
            &Request::WaitPosition {
                position: position.to_string(),
                timeout_ms: ms(timeout),
            },
            timeout,
        )
    }

    pub fn wait_replicas(
        &mut self,
        stage: Stage,
        replicas: Option<u32>,
        timeout: Option<Duration>,
    ) -> Result<WaitReport, ClientError> {
        self.waited(
            &Request::WaitReplicas {
                stage,
                replicas,
                timeout_ms: ms(timeout),
            },
            timeout,
        )
    }

    fn waited(
        &mut self,
        request: &Request,
        timeout: Option<Duration>,
    ) -> Result<WaitReport, ClientError> {
        // The other side keeps the time; ours only catches one that hangs.
        match self.ask(
            request,
            timeout.map(|t| t.saturating_add(Duration::from_secs(STATUS_S_MAX))),
        )? {
            Reply::Waited(report) => Ok(report),
            other => unexpected(other),
        }
    }

    pub fn pause(&mut self) -> Result<(), ClientError> {
        self.done(&Request::Pause)
    }
    pub fn resume(&mut self) -> Result<(), ClientError> {
        self.done(&Request::Resume)
    }
    pub fn stop(&mut self) -> Result<(), ClientError> {
        self.done(&Request::Stop)
    }

    fn done(&mut self, request: &Request) -> Result<(), ClientError> {
        match self.ask(request, None)? {
            Reply::Done => Ok(()),
            other => unexpected(other),
        }
    }

    pub fn release(&mut self, yes: bool) -> Result<ReleaseReport, ClientError> {
        match self.ask(&Request::Release { yes }, None)? {
            Reply::Release(report) => Ok(report),
            other => unexpected(other),
        }
    }

    pub fn past(&mut self, ask: &Ask) -> Result<Answer, ClientError> {
        let ask = ask.clone();
        match self.ask(&Request::Past { ask }, None)? {
            Reply::Past(answer) => Ok(*answer),
            other => unexpected(other),
        }
    }

    pub fn forget(&mut self, replica: &str) -> Result<Vec<String>, ClientError> {
        let replica = replica.to_owned();
        match self.ask(&Request::Forget { replica }, None)? {
            Reply::Forgotten(names) => Ok(names),
            other => unexpected(other),
        }
    }

    pub fn verify(
        &mut self,
        options: VerifyOptions,
        line: &mut dyn FnMut(VerifyLine),
    ) -> Result<VerifyEnd, ClientError> {
        self.send(&Request::Verify { options })?;
        loop {
            match self.receive(None)? {
                Reply::Line(found) => line(found),
                Reply::Verified(end) => return Ok(end),
                other => return unexpected(other),
            }
        }
    }

    /// Until the worker, or `each` by false, ends it.
    pub fn log(
        &mut self,
        lines: usize,
        follow: bool,
        each: &mut dyn FnMut(LogLine) -> bool,
    ) -> Result<(), ClientError> {
        self.send(&Request::Log { lines, follow })?;
        loop {
            match self.receive(None)? {
                Reply::Record(line) if each(line.clone()) => {}
                Reply::Record(_) | Reply::Done => return Ok(()),
                other => return unexpected(other),
            }
        }
    }

    fn ask(&mut self, request: &Request, at_most: Option<Duration>) -> Result<Reply, ClientError> {
        self.send(request)?;
        self.receive(at_most)
    }

    fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut bytes =
            serde_json::to_vec(request).map_err(|e| ClientError::Silent(e.to_string()))?;
        bytes.push(b'\n');
        match self.stream.get_mut().write_all(&bytes) {
            Ok(()) => Ok(()),
            // It may have said why before it closed.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(e) => Err(ClientError::Io(e)),
        }
    }

    fn receive(&mut self, at_most: Option<Duration>) -> Result<Reply, ClientError> {
        self.stream
            .get_ref()
            .set_read_timeout(at_most)
            .map_err(ClientError::Io)?;
        let mut line = Vec::new();
        let read = self
            .stream
            .by_ref()
            .take(REPLY_BYTES_MAX)
            .read_until(b'\n', &mut line);
        match read {
            Ok(_) if line.last() == Some(&b'\n') => match serde_json::from_slice(&line) {
                Ok(Reply::Error(error)) => Err(ClientError::Told(error)),
                Ok(reply) => Ok(reply),
                Err(e) => Err(ClientError::Silent(e.to_string())),
            },
            Ok(_) => Err(ClientError::Silent("it ended meanwhile".into())),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                Err(ClientError::Silent("no answer in time".into()))
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                Err(ClientError::Silent("it ended meanwhile".into()))
            }
            Err(e) => Err(ClientError::Io(e)),
        }
    }
}

fn ms(timeout: Option<Duration>) -> Option<u64> {
    timeout.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX))
}

fn unexpected<T>(reply: Reply) -> Result<T, ClientError> {
    let _ = reply;
    Err(ClientError::Silent(
        "its answer is of another version".into(),
    ))
}
