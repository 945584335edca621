//! `mirrord stdio`: checks what was asked for, finds or starts the daemon, then passes bytes on.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::super::event::RunError;
use super::super::options::default_state_dir;
use super::super::serving::socket::{self, Way};
use super::super::session::show;
use super::config::{self, Config};
use super::{StdioOptions, names};
use crate::cli::config::is_plain_relative;
use crate::filter::Filter;
use crate::link::conn::HANDSHAKE_S_MAX;
use crate::link::message::{self as say, Cause, Message};

/// How long a daemon may take to open its socket. (Opening log and index comes after.)
const START_S_MAX: u64 = 20;
const COPY_BYTES: usize = 128 << 10;

/// Why it ends before any byte is passed on: told to the other side, and how.
struct Refusal {
    cause: Cause,
    error: RunError,
}

impl From<RunError> for Refusal {
    fn from(error: RunError) -> Refusal {
        let cause = match error {
            RunError::Usage(_) => Cause::Usage,
            RunError::Unreachable(_) => Cause::Forbidden,
            _ => Cause::Failed,
        };
        Refusal { cause, error }
    }
}

pub fn run(options: StdioOptions) -> Result<(), RunError> {
    let Some((hello, bytes)) = hello(&options)? else {
        return Ok(());
    };
    match reach(&options, &hello) {
        Ok(stream) => pass_on(stream, &bytes, &options),
        Err(refusal) => {
            let mut out = Vec::new();
            let refused = Message::from(say::Refused {
                cause: refusal.cause.code(),
                reason: refusal.error.to_string(),
            });
            if refused.encode(&mut out).is_ok() {
                let _ = Unbuffered.write_all(&out);
            }
            Err(refusal.error)
        }
    }
}

/// The first message, and its bytes to be said again to the daemon. `None`: a stop was asked for.
fn hello(options: &StdioOptions) -> Result<Option<(say::Hello, Vec<u8>)>, RunError> {
    let (tell, heard) = bounded(1);
    std::thread::spawn(move || {
        // Unbuffered: what comes after the first message is not ours.
        let mut stdin = Unbuffered;
        let _ = tell.send(Message::read(&mut stdin, &mut Vec::new()));
    });
    let until = Instant::now() + Duration::from_secs(HANDSHAKE_S_MAX);
    let message = loop {
        match heard.recv_timeout(Duration::from_millis(100)) {
            Ok(Ok(message)) => break message,
            Ok(Err(error)) => {
                return Err(RunError::Failed(anyhow::anyhow!(
                    "no follower speaks here ({error}): this is the far end of `fs_mirror mirror host:/path DST`"
                )));
            }
            Err(_) if options.stop.requested() => return Ok(None),
            Err(_) if Instant::now() >= until => {
                return Err(RunError::Busy(format!(
                    "no follower said anything for {HANDSHAKE_S_MAX} s"
                )));
            }
            Err(_) => {}
        }
    };
    let mut bytes = Vec::new();
    match message {
        Message::Hello(hello) => {
            Message::from(hello.clone())
                .encode(&mut bytes)
                .map_err(|e| RunError::Failed(anyhow::anyhow!("{e}")))?;
            Ok(Some((hello, bytes)))
        }
        _ => Err(RunError::Failed(anyhow::anyhow!(
            "the other side did not say hello"
        ))),
    }
}

/// Standard input without a buffer that would keep what others are to read.
struct Unbuffered;

impl Read for Unbuffered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(io::stdin(), &mut *buffer) {
                Err(rustix::io::Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
    }
}

impl Write for Unbuffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(io::stdout(), bytes) {
                Err(rustix::io::Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The daemon of what was asked for, if it may be had.
fn reach(options: &StdioOptions, hello: &say::Hello) -> Result<UnixStream, Refusal> {
    let tree = tree(&options.tree)?;
    allowed(&tree, &PathBuf::from(OsStr::from_bytes(&hello.tree)))?;
    if let Some(asked) = asked_of_ssh() {
        allowed(&tree, &asked)?;
    }
    if let Some(state_dir) = mirror_of(&tree) {
        return match socket::connect(&state_dir, Way::Account) {
            Ok(Some(stream)) => Ok(stream),
            Ok(None) => Err(RunError::Failed(anyhow::anyhow!(
                "{} is a mirror, and its fs_mirror does not run: start it there, and it is followed through it",
                show(&tree)
            ))
            .into()),
            Err(e) => Err(RunError::Failed(anyhow::anyhow!(
                "cannot reach the mirror {} through {}: {e}",
                show(&tree),
                show(&state_dir)
            ))
            .into()),
        };
    }
    let cross: Vec<PathBuf> = hello
        .cross
        .iter()
        .map(|path| PathBuf::from(OsStr::from_bytes(path)))
        .collect();
    if let Some(odd) = cross.iter().find(|path| !is_plain_relative(path)) {
        return Err(RunError::Usage(format!(
            "{} can't be crossed: name a path below the tree",
            show(odd)
        ))
        .into());
    }
    Filter::new(&hello.ignore).map_err(|e| RunError::Usage(e.to_string()))?;
    let detector = match hello.detector.as_str() {
        "" => options.detector,
        word => Some(
            <crate::engine::options::Detector as clap::ValueEnum>::from_str(word, false).map_err(
                |_| {
                    RunError::Usage(format!(
                        "{} is no way to notice changes that this mirrord knows",
                        crate::link::conn::escaped(word)
                    ))
                },
            )?,
        ),
    };
    let variant = names::Variant {
        ignore: hello.ignore.clone(),
        cross,
    };
    let state_dir = names::of(options.state.as_deref(), &tree, &variant)?;
    names::make(&state_dir, &tree)?;
    let config = Config {
        tree,
        state_dir: state_dir.clone(),
        ignore: variant.ignore,
        cross: variant.cross,
        detector,
        linger: options.linger,
        log_max: options.log_max,
        service: None,
    };
    let until = Instant::now() + Duration::from_secs(START_S_MAX);
    let mut child: Option<Child> = None;
    loop {
        let failed = |e: io::Error| {
            RunError::Failed(anyhow::anyhow!(
                "cannot reach the capture of {} through {}: {e}",
                show(&config.tree),
                show(&state_dir)
            ))
        };
        if let Some(stream) = socket::connect(&state_dir, Way::Account).map_err(failed)? {
            return Ok(stream);
        }
        if options.stop.requested() {
            return Err(RunError::Busy("stopped".into()).into());
        }
        let gone = match &mut child {
            None => true,
            // It found another one at work (which then answers), or could not start.
            Some(child) => child.try_wait().map_err(failed)?.is_some(),
        };
        if Instant::now() >= until {
            return Err(RunError::Failed(anyhow::anyhow!(
                "the capture of {} did not start; see {}",
                show(&config.tree),
                show(&state_dir.join("daemon.log"))
            ))
            .into());
        }
        if gone && !config::is_served(&state_dir) {
            if child.is_some() {
                std::thread::sleep(Duration::from_millis(200));
            }
            child = Some(start(&config).map_err(failed)?);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The state directory of a tree that is the copy of a mirror: nothing is captured there, it is served as it came.
fn mirror_of(tree: &Path) -> Option<PathBuf> {
    let state_dir = default_state_dir(tree);
    // Of another user it can't be looked into, and is one all the same.
    let is_one = match std::fs::metadata(state_dir.join("config.toml")) {
        Ok(config) => config.is_file(),
        Err(e) => e.kind() == io::ErrorKind::PermissionDenied,
    };
    is_one.then_some(state_dir)
}

/// The tree this login serves, canonical.
fn tree(path: &Path) -> Result<PathBuf, RunError> {
    let tree = std::fs::canonicalize(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => RunError::Usage(format!("{} does not exist", show(path))),
        io::ErrorKind::NotADirectory => {
            RunError::Usage(format!("{} is not a directory", show(path)))
        }
        _ => RunError::Usage(format!("cannot read {}: {e}", show(path))),
    })?;
    if !tree.is_dir() {
        return Err(RunError::Usage(format!(
            "{} is not a directory",
            show(&tree)
        )));
    }
    std::fs::read_dir(&tree)
        .map_err(|e| RunError::Usage(format!("cannot read {}: {e}", show(&tree))))?;
    Ok(tree)
}

fn allowed(tree: &Path, asked: &Path) -> Result<(), RunError> {
    let same = std::fs::canonicalize(asked).is_ok_and(|asked| asked == tree);
    if same {
        return Ok(());
    }
    Err(RunError::Unreachable(format!(
        "this login serves {}, and not {}",
        show(tree),
        show(asked)
    )))
}

/// The `--tree` of the command a follower sent, where the key has a command of its own that was run instead.
fn asked_of_ssh() -> Option<PathBuf> {
    let command = std::env::var_os("SSH_ORIGINAL_COMMAND")?;
    let mut words = words(command.as_bytes()).into_iter();
    while let Some(word) = words.next() {
        if word == b"--tree" {
            return words
                .next()
                .map(|path| PathBuf::from(OsStr::from_bytes(&path)));
        }
        if let Some(path) = word.strip_prefix(b"--tree=") {
            return Some(PathBuf::from(OsStr::from_bytes(path)));
        }
    }
    None
}

/// Words as a shell splits them, quotes and backslashes included; nothing is expanded.
fn words(line: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quote = None;
    let mut bytes = line.iter().copied();
    while let Some(byte) = bytes.next() {
        match (quote, byte) {
            (Some(open), byte) if byte == open => quote = None,
            (None, b'\'' | b'"') => {
                quote = Some(byte);
                word.get_or_insert_default();
            }
            (None | Some(b'"'), b'\\') => word.get_or_insert_default().extend(bytes.next()),
            (None, b' ' | b'\t' | b'\n') => words.extend(word.take()),
            (_, byte) => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word);
    words
}

/// Starts the daemon: this very program, which leaves our session and keeps nothing of ours open.
fn start(config: &Config) -> io::Result<Child> {
    config.write()?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(config.state_dir.join("daemon.log"))?;
    Command::new(std::env::current_exe()?)
        .arg("stdio")
        .arg("--tree")
        .arg(&config.tree)
        .env(config::ENV, &config.state_dir)
        .env_remove(config::ENV_SERVICE)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

/// Until one of the two ends.
fn pass_on(stream: UnixStream, first: &[u8], options: &StdioOptions) -> Result<(), RunError> {
    let broken = |e: io::Error| RunError::Failed(anyhow::anyhow!("the capture went away: {e}"));
    let mut to = stream.try_clone().map_err(broken)?;
    to.write_all(first).map_err(broken)?;
    let (ended, end) = bounded::<()>(2);
    let up = ended.clone();
    std::thread::spawn(move || {
        let _ = copy(&mut Unbuffered, &mut to);
        let _ = to.shutdown(Shutdown::Both);
        let _ = up.send(());
    });
    let mut from = stream.try_clone().map_err(broken)?;
    std::thread::spawn(move || {
        let _ = copy(&mut from, &mut Unbuffered);
        let _ = ended.send(());
    });
    while end.recv_timeout(Duration::from_millis(200))
        == Err(crossbeam_channel::RecvTimeoutError::Timeout)
    {
        if options.stop.requested() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
    Ok(())
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        to.write_all(buffer.get(..n).unwrap_or_default())?;
        to.flush()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_as_a_shell_does() {
        let split = |line: &str| {
            words(line.as_bytes())
                .into_iter()
                .map(|w| String::from_utf8_lossy(&w).into_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            split("mirrord stdio --tree '/srv/a b'"),
            ["mirrord", "stdio", "--tree", "/srv/a b"]
        );
        assert_eq!(
            split(r#"sudo -n  mirrord --tree=/it"'"s\ me '' "#),
            ["sudo", "-n", "mirrord", "--tree=/it's me", ""]
        );
    }
}
