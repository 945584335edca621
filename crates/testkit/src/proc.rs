//! Programs under test: started, watched, waited for with a deadline, killed.
//!
//! The caller gives the path of a program built by cargo: `env!("CARGO_BIN_EXE_mirrord")`.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::Skip;

/// A deadline passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimedOut {
    pub what: String,
    pub after: Duration,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: not within {:?}", self.what, self.after)
    }
}
impl std::error::Error for TimedOut {}

/// Asks again and again, in growing steps of 1 to 20 ms, until it is so; how long that took.
pub fn wait_until(
    what: &str,
    deadline: Duration,
    mut is_so: impl FnMut() -> bool,
) -> Result<Duration, TimedOut> {
    let start = Instant::now();
    let mut step = Duration::from_millis(1);
    loop {
        if is_so() {
            return Ok(start.elapsed());
        }
        if start.elapsed() >= deadline {
            return Err(TimedOut {
                what: what.to_owned(),
                after: deadline,
            });
        }
        std::thread::sleep(step);
        step = (step * 2).min(Duration::from_millis(20));
    }
}

/// Waits until two trees are equal; what still differs when the deadline passes.
pub fn wait_equal(
    left: &std::path::Path,
    right: &std::path::Path,
    options: &crate::compare::Options,
    deadline: Duration,
) -> Result<Duration, Vec<crate::Difference>> {
    let quick = crate::compare::Options {
        differences_max: Some(1),
        ..options.clone()
    };
    let what = "the trees are equal";
    wait_until(what, deadline, || {
        crate::compare(left, right, &quick).is_empty()
    })
    .map_err(|_| crate::compare(left, right, options))
    .or_else(|differences| {
        if differences.is_empty() {
            Ok(deadline)
        } else {
            Err(differences)
        }
    })
}

type Collected = Arc<Mutex<Vec<u8>>>;

/// A running program. It is killed (SIGKILL, by its own pid) when this is dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    stdout: Collected,
    stderr: Collected,
    readers: Vec<JoinHandle<()>>,
    ended: Option<ExitStatus>,
}

impl Program {
    /// Starts it, with nothing on stdin, and keeps what it prints. Like everything a thread starts, it runs in the mount
    /// namespace of the calling thread.
    pub fn start(command: &mut Command) -> io::Result<Program> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let (stdout, stderr) = (Collected::default(), Collected::default());
        let mut readers = Vec::new();
        if let Some(from) = child.stdout.take() {
            readers.push(collect(from, Arc::clone(&stdout)));
        }
        if let Some(from) = child.stderr.take() {
            readers.push(collect(from, Arc::clone(&stderr)));
        }
        Ok(Program {
            child,
            stdout,
            stderr,
            readers,
            ended: None,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        text(&self.stdout)
    }
    pub fn stderr(&self) -> String {
        text(&self.stderr)
    }
    /// `None` while it runs.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        match Pid::from_raw(self.child.id() as i32) {
            Some(pid) => Ok(kill_process(pid, signal)?),
            None => Ok(()),
        }
    }
    /// kill -9, and waits until it is gone.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        let status = self.child.wait()?;
        self.ended = Some(status);
        Ok(status)
    }
    /// Asks it to end (SIGTERM) and waits.
    pub fn stop(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(deadline)
    }
    /// Waits for its end, and for all that it printed.
    pub fn wait(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        let pid = self.child.id();
        let what = format!("process {pid} ends");
        let mut status = None;
        let waited = wait_until(&what, deadline, || {
            status = self.ended().transpose();
            status.is_some()
        });
        if let Err(late) = waited {
            anyhow::bail!("{late}; its stderr:\n{}", self.stderr());
        }
        // A grandchild may still hold the pipes, so this waits for the readers only a moment.
        let _ = wait_until("the pipes are closed", Duration::from_secs(1), || {
            self.readers.iter().all(JoinHandle::is_finished)
        });
        match status {
            Some(status) => Ok(status?),
            None => anyhow::bail!("{what}: unknown"),
        }
    }
    /// Waits until it has printed `wanted` on stderr; an error when it ends before, or the deadline passes.
    pub fn wait_stderr(&mut self, wanted: &str, deadline: Duration) -> anyhow::Result<Duration> {
        self.wait_printed(wanted, deadline, |program| program.stderr())
    }
    pub fn wait_stdout(&mut self, wanted: &str, deadline: Duration) -> anyhow::Result<Duration> {
        self.wait_printed(wanted, deadline, |program| program.stdout())
    }

    fn wait_printed(
        &mut self,
        wanted: &str,
        deadline: Duration,
        printed: impl Fn(&Program) -> String,
    ) -> anyhow::Result<Duration> {
        let mut gone = false;
        let mut found = false;
        let waited = wait_until(&format!("{wanted:?} is printed"), deadline, || {
            // The end is looked at first: what was printed before it is then complete but for the reader's last read.
            gone = !matches!(self.ended(), Ok(None))
                && self.readers.iter().all(JoinHandle::is_finished);
            found = printed(self).contains(wanted);
            found || gone
        });
        match waited {
            Ok(after) if found => Ok(after),
            Ok(_) => anyhow::bail!(
                "it ended before {wanted:?} was printed; its stderr:\n{}",
                self.stderr()
            ),
            Err(late) => anyhow::bail!("{late}; its stderr:\n{}", self.stderr()),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn collect(mut from: impl Read + Send + 'static, into: Collected) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0u8; 8192];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(got) => into
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(&buffer[..got]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    })
}

fn text(from: &Collected) -> String {
    String::from_utf8_lossy(&from.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

/// How a run with a kill point ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KillPoint {
    /// It died at that system call, which was not carried out.
    Killed,
    /// It ended by itself before.
    Finished(ExitStatus),
}

/// Runs a command under strace so that each of its threads and children is killed on entering its `n`-th (from 1) system
/// call of `calls` (strace's words: `write,fsync`, `%file`, `all`). The whole process dies with the thread.
///
/// strace counts **per thread**: in a program of many threads the kill comes when the first thread gets that far.
pub fn killpoint(
    command: &Command,
    calls: &str,
    n: u64,
    deadline: Duration,
) -> anyhow::Result<KillPoint> {
    let mut strace = under_strace(
        command,
        &format!("inject={calls}:signal=KILL:when={n}"),
        "/dev/null",
    );
    let mut program = Program::start(&mut strace)?;
    let status = match program.wait(deadline) {
        Ok(status) => status,
        Err(late) => {
            // strace, when killed, would let the program run on: the program goes first, then strace ends by itself.
            for pid in descendants(program.pid()) {
                if let Some(pid) = Pid::from_raw(pid as i32) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            let _ = program.wait(Duration::from_secs(2));
            return Err(late);
        }
    };
    // strace ends as its program ended: by the same signal, or with 128 + signal.
    if status.signal() == Some(9) || status.code() == Some(137) {
        return Ok(KillPoint::Killed);
    }
    if program.stderr().contains("strace: ") {
        anyhow::bail!("strace: {}", program.stderr().trim());
    }
    Ok(KillPoint::Finished(status))
}

/// How many system calls of `calls` the busiest thread of a command makes: kill points from 1 to this number hit.
pub fn count_calls(command: &Command, calls: &str, deadline: Duration) -> anyhow::Result<u64> {
    let dir = tempfile::tempdir()?;
    let trace = dir.path().join("trace");
    let mut program = Program::start(&mut under_strace(
        command,
        &format!("trace={calls}"),
        &trace,
    ))?;
    program.wait(deadline)?;
    let mut busiest = std::collections::HashMap::<String, u64>::new();
    for line in String::from_utf8_lossy(&std::fs::read(&trace)?).lines() {
        let Some((pid, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        // Signals, exits and the second half of an interrupted line are not calls.
        if !rest.starts_with(['+', '-', '<']) {
            *busiest.entry(pid.to_owned()).or_default() += 1;
        }
    }
    Ok(busiest.into_values().max().unwrap_or(0))
}

/// Whether strace is here and may trace.
pub fn has_strace() -> Result<(), Skip> {
    match Command::new("strace")
        .args([
            "-o",
            "/dev/null",
            "-e",
            "inject=getpid:signal=KILL:when=1000",
            "true",
        ])
        .output()
    {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(Skip(format!(
            "strace: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
        Err(e) => Err(Skip(format!("strace: {e}"))),
    }
}

/// The processes that `ancestor` started, and those that they started.
fn descendants(ancestor: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // `pid (name) state parent ...`, and the name may hold anything.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(
            parents
                .iter()
                .filter(|pair| pair.1 == parent)
                .map(|pair| pair.0),
        );
        next += 1;
    }
    found.remove(0);
    found
}

fn under_strace(command: &Command, expression: &str, output: impl AsRef<OsStr>) -> Command {
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-q", "-o"])
        .arg(output)
        .args(["-e", expression, "--"])
        .arg(command.get_program());
    strace.args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => strace.env(key, value),
            None => strace.env_remove(key),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        strace.current_dir(dir);
    }
    strace
}
