//! The system's ssh as the way to a worker: its command line, its process, and what its failures mean to a person.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mirror_core::escape;

use crate::engine::options::MirrorOptions;
use crate::link::LinkError;
use crate::link::conn::{Closer, Incoming, Outgoing};
use crate::link::frame::FrameError;
use crate::link::message::MessageError;
use crate::sync::lock;

/// Lines and bytes of ssh's stderr that are kept for a diagnosis.
const LINES_MAX: usize = 50;
const LINE_BYTES_MAX: u64 = 2000;
/// How long an ssh whose stream ended may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How to get to a worker over ssh.
#[derive(Debug, Clone)]
pub struct Ssh {
    user: Option<String>,
    host: String,
    port: Option<u16>,
    path: Vec<u8>,
    /// What runs there.
    command: String,
    /// Somebody can be asked for a password or a host key.
    terminal: bool,
    timeout: Option<Duration>,
}

impl Ssh {
    pub fn new(
        options: &MirrorOptions,
        user: Option<String>,
        host: &str,
        port: Option<u16>,
        path: &[u8],
    ) -> Ssh {
        Ssh {
            user,
            host: host.into(),
            port,
            path: path.into(),
            command: options
                .remote_command
                .clone()
                .unwrap_or_else(|| "mirrord".into()),
            terminal: options.output.terminal,
            timeout: options.timeout,
        }
    }

    /// Program and arguments. `FS_MIRROR_SSH` replaces the program, as words.
    fn command(&self) -> Command {
        let replaced = std::env::var_os("FS_MIRROR_SSH").filter(|set| !set.is_empty());
        let mut words = replaced
            .as_deref()
            .unwrap_or(OsStr::new("ssh"))
            .as_bytes()
            .split(|b| *b == b' ')
            .filter(|word| !word.is_empty())
            .map(|word| OsString::from_vec(word.to_vec()));
        let mut command = Command::new(words.next().unwrap_or_else(|| "ssh".into()));
        command.args(words).arg("-T");
        if !self.terminal {
            command.args(["-o", "BatchMode=yes"]);
        }
        if let Some(timeout) = self.timeout {
            let seconds = timeout.as_secs().max(1);
            command.args(["-o", &format!("ConnectTimeout={seconds}")]);
        }
        if let Some(port) = self.port {
            command.args(["-p", &port.to_string()]);
        }
        if let Some(user) = &self.user {
            command.args(["-l", user]);
        }
        command.arg("--").arg(&self.host).arg(self.remote());
        command
    }

    /// What the shell there runs.
    fn remote(&self) -> OsString {
        let mut line = self.command.clone().into_bytes();
        line.extend_from_slice(b" stdio --tree ");
        line.extend_from_slice(&quote(&self.path));
        OsString::from_vec(line)
    }

    pub fn connect(&self) -> Result<(Running, Incoming), String> {
        let mut command = self.command();
        let program = command.get_program().to_string_lossy().into_owned();
        let cannot = |what: &str, e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => {
                format!("{program} is not installed here: install the ssh client")
            }
            _ => format!("cannot {what} {program}: {e}"),
        };
        // A pair of sockets, so that closing it from here wakes whoever waits in it.
        let (ours, theirs) = UnixStream::pair().map_err(|e| cannot("start", e))?;
        let input = OwnedFd::from(theirs.try_clone().map_err(|e| cannot("start", e))?);
        let mut child = command
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| cannot("start", e))?;
        // It holds the other ends of the pair.
        drop(command);
        let said = Arc::new(Mutex::new(Vec::new()));
        if let Some(stderr) = child.stderr.take() {
            let said = said.clone();
            // Not joined: a shared connection of ssh may keep it open for long.
            std::thread::spawn(move || listen(stderr, &said));
        }
        let fail = |e: std::io::Error| format!("cannot talk to {program}: {e}");
        let writer = ours.try_clone().map_err(fail)?;
        let ender = ours.try_clone().map_err(fail)?;
        let closer: Closer = Arc::new(move || {
            let _ = ender.shutdown(Shutdown::Both);
        });
        let running = Running {
            outgoing: Arc::new(Outgoing::new(writer, closer)),
            child,
            said,
        };
        Ok((running, Incoming::new(ours)))
    }

    /// One line on why there is no connection, and what to do.
    pub fn why(&self, error: &LinkError, ended: Option<ExitStatus>, said: &[String]) -> String {
        let host = escape(self.host.as_bytes());
        let has = |what: &str| said.iter().any(|line| line.contains(what));
        let last = said
            .iter()
            .rev()
            .find(|line| !line.trim().is_empty())
            .cloned();
        let code = ended.and_then(|status| status.code());
        let command = escape(self.command.as_bytes());
        if let LinkError::Message(MessageError::Frame(FrameError::NoFrame(bytes))) = error {
            return format!(
                "{host} prints something before the protocol begins (\"{}\"): a start-up file of the shell there must \
                 print nothing for logins without a terminal",
                escape(bytes)
            );
        }
        if has("REMOTE HOST IDENTIFICATION HAS CHANGED") {
            return format!(
                "the key of {host} is not the one it had: find out why; if that is right, remove the old one with \
                 `ssh-keygen -R {host}`"
            );
        }
        if has("Host key verification failed") || has("No matching host key") {
            return format!(
                "the key of {host} is not known here: log in once with `ssh {host}` and check its fingerprint"
            );
        }
        if has("Permission denied") || has("Too many authentication failures") {
            return format!(
                "{host} refuses the login ({}): set up a key with `ssh-copy-id`, and try `ssh {host} true`",
                last.unwrap_or_default()
            );
        }
        if has("password is required") || has("a terminal is required") {
            return format!(
                "sudo on {host} asks for a password: allow `mirrord` there with NOPASSWD (README, sudoers line)"
            );
        }
        if code == Some(127) || has("command not found") || has("mirrord: not found") {
            return format!(
                "mirrord is not installed on {host}, or not where its shell looks for `{command}`: install it there, or \
                 say where it is with --remote-command /path/to/mirrord"
            );
        }
        if code == Some(126) {
            return format!(
                "`{command}` on {host} can't be executed: {}",
                last.unwrap_or_default()
            );
        }
        if code == Some(255) {
            return match last {
                Some(line) => format!("cannot reach {host}: {line}"),
                None => format!("cannot reach {host}: ssh failed and did not say why"),
            };
        }
        match (code, last) {
            (Some(0) | None, None) => format!("{host}: {error}"),
            (Some(code), Some(line)) if code != 0 => {
                format!("`{command}` on {host} failed (exit code {code}): {line}")
            }
            (Some(code), None) => format!("`{command}` on {host} failed (exit code {code})"),
            (_, Some(line)) => format!("{host}: {error} ({line})"),
        }
    }
}

/// A running ssh. It is ended when this is dropped.
pub struct Running {
    pub outgoing: Arc<Outgoing>,
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Running {
    /// How it ended, if it does within moments, and its last words.
    pub fn end(&mut self) -> (Option<ExitStatus>, Vec<String>) {
        self.outgoing.close();
        let ended = wait(&mut self.child, LAST_WORDS);
        // What it said last may still be in the pipe.
        std::thread::sleep(Duration::from_millis(20));
        (ended, lock(&self.said).clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.outgoing.close();
        if wait(&mut self.child, Duration::from_millis(500)).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn wait(child: &mut Child, at_most: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + at_most;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => return None,
        }
    }
}

fn listen(stderr: impl Read, said: &Mutex<Vec<String>>) {
    let mut from = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match from
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = escape(line.trim_ascii());
                let mut said = lock(said);
                if said.len() >= LINES_MAX {
                    said.remove(0);
                }
                said.push(text);
            }
        }
    }
}

/// As one word for a POSIX shell, whatever bytes it has.
fn quote(word: &[u8]) -> Vec<u8> {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-+,:@".contains(b);
    if !word.is_empty() && word.iter().all(plain) && !word.starts_with(b"-") {
        return word.to_vec();
    }
    let mut out = vec![b'\''];
    for &byte in word {
        if byte == b'\'' {
            out.extend_from_slice(br"'\''");
        } else {
            out.push(byte);
        }
    }
    out.push(b'\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::options::SourceSpec;

    fn far(path: &[u8]) -> Ssh {
        let mut options =
            MirrorOptions::new(SourceSpec::Local("/not/looked/at".into()), "/d".into());
        options.remote_command = Some("sudo -n mirrord".into());
        Ssh::new(&options, Some("u".into()), "h", Some(2222), path)
    }

    #[test]
    fn paths_are_one_word() {
        assert_eq!(quote(b"/srv/www"), b"/srv/www");
        assert_eq!(quote(b"/a b"), b"'/a b'");
        assert_eq!(quote(b"it's"), br"'it'\''s'");
        assert_eq!(quote(b""), b"''");
        assert_eq!(quote(b"$(x)\xff"), b"'$(x)\xff'");
        assert_eq!(far(b"/a b").remote(), "sudo -n mirrord stdio --tree '/a b'");
    }

    #[test]
    fn failures_are_one_clear_line() {
        use std::os::unix::process::ExitStatusExt;
        let far = far(b"/x");
        let ended = |code: i32| Some(ExitStatus::from_raw(code << 8));
        let closed = LinkError::Message(MessageError::Frame(FrameError::Ended));
        let why = |code, said: &[&str]| {
            let said: Vec<String> = said.iter().map(|s| s.to_string()).collect();
            far.why(&closed, ended(code), &said)
        };
        assert!(
            why(127, &["bash: line 1: mirrord: command not found"]).contains("not installed on h")
        );
        assert!(why(255, &["u@h: Permission denied (publickey)."]).contains("refuses the login"));
        assert!(
            why(255, &["ssh: connect to host h port 22: Connection refused"])
                .contains("cannot reach h: ssh: connect")
        );
        assert!(why(255, &["Host key verification failed."]).contains("not known here"));
        assert!(why(1, &["sudo: a password is required"]).contains("NOPASSWD"));
        let noise = LinkError::Message(MessageError::Frame(FrameError::NoFrame(
            b"Welcome to\x1b".to_vec(),
        )));
        assert!(far.why(&noise, None, &[]).contains("prints something"));
    }
}
