//! Runs the real program on file systems of its own, for the tests that look at it from outside.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod cases;
pub mod raw;
pub mod session;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use testkit::compare::Options;
use testkit::proc::{Program, wait_until};
use testkit::{Difference, compare};

/// No single wait takes longer, however busy the machine is.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The program under test: ours, or the one that a test with another build names.
pub fn program() -> PathBuf {
    std::env::var_os("FS_MIRROR_UNDER_TEST")
        .map_or_else(|| env!("CARGO_BIN_EXE_fs_mirror").into(), PathBuf::from)
}

pub fn fs_mirror<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::null());
    command
}

/// How a command that ends by itself ended: exit code, stdout, stderr.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    run_command(&mut fs_mirror(arguments))
}

/// Runs it to its end; a hang is a failure of the test.
#[track_caller]
pub fn run_command(command: &mut Command) -> Ran {
    let mut program = Program::start(command).unwrap();
    let status = program
        .wait(DEADLINE)
        .unwrap_or_else(|e| panic!("{command:?}: {e:#}"));
    Ran {
        code: status.code().unwrap_or(-1),
        stdout: program.stdout(),
        stderr: program.stderr(),
    }
}

/// The arguments of a mirror, followed by more.
pub fn mirror_arguments(src: &Path, dst: &Path, more: &[&str]) -> Vec<std::ffi::OsString> {
    let mut arguments: Vec<std::ffi::OsString> = vec!["mirror".into(), src.into(), dst.into()];
    arguments.extend(more.iter().map(Into::into));
    arguments
}

/// A running `fs_mirror mirror SRC DST`; killed when dropped.
pub struct Mirror {
    pub program: Program,
    pub src: PathBuf,
    pub dst: PathBuf,
}

impl Mirror {
    /// Starts it. What tests do en masse would be held as a mass change, so that is followed unless said otherwise.
    #[track_caller]
    pub fn start(src: &Path, dst: &Path) -> Mirror {
        Mirror::start_with(src, dst, &["--on-mass-change", "follow"])
    }
    #[track_caller]
    pub fn start_with(src: &Path, dst: &Path, more: &[&str]) -> Mirror {
        Mirror::start_command(&mut fs_mirror(mirror_arguments(src, dst, more)), src, dst)
    }
    #[track_caller]
    pub fn start_command(command: &mut Command, src: &Path, dst: &Path) -> Mirror {
        Mirror {
            program: Program::start(command).unwrap(),
            src: src.to_path_buf(),
            dst: dst.to_path_buf(),
        }
    }

    /// Waits until it said that it watches.
    #[track_caller]
    pub fn watching(&mut self) {
        self.printed("watching with ");
    }
    /// Waits until the first copy is whole.
    #[track_caller]
    pub fn equal_once(&mut self) {
        self.printed("equal");
    }
    #[track_caller]
    pub fn printed(&mut self, wanted: &str) {
        self.program
            .wait_stderr(wanted, DEADLINE)
            .unwrap_or_else(|e| panic!("{e:#}"));
    }

    /// A command about this mirror.
    pub fn ask(&self, words: &[&str]) -> Ran {
        let mut arguments: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        arguments.extend([OsStr::new("-m"), self.dst.as_os_str()]);
        run(arguments)
    }

    /// `fs_mirror wait --idle`, asked again while the process is only starting.
    #[track_caller]
    pub fn wait_idle(&mut self) -> Ran {
        let start = Instant::now();
        loop {
            let ran = self.ask(&["wait", "--idle", "--timeout", "50s"]);
            let starting = ran.code == 1
                && (ran.stderr.contains("no orders yet") || ran.stderr.contains("not running"));
            let beginning = ran.code == 2 && ran.stderr.contains("there is no mirror at");
            let restarting = ran.code == 5 && ran.stderr.contains("starting");
            if !(starting || beginning || restarting) {
                return ran;
            }
            if let Some(status) = self.program.ended().unwrap() {
                panic!("the mirror ended ({status}):\n{}", self.program.stderr());
            }
            assert!(start.elapsed() < DEADLINE, "never ready: {ran:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A hold whose reason went away is over within a moment.
    #[track_caller]
    pub fn goes_on(&mut self) {
        let start = Instant::now();
        loop {
            let ran = self.wait_idle();
            if ran.code != 4 {
                assert_eq!(ran.code, 0, "{ran:?}\n{}", self.program.stderr());
                return;
            }
            assert!(start.elapsed() < DEADLINE, "still on hold: {ran:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Everything done until now is in the copy, and the copy equals the source.
    #[track_caller]
    pub fn must_be_equal(&mut self) {
        self.must_be_equal_but(&Options::default());
    }
    #[track_caller]
    pub fn must_be_equal_but(&mut self, options: &Options) {
        let ran = self.wait_idle();
        assert_eq!(
            ran.code,
            0,
            "wait --idle: {ran:?}\n{}",
            self.program.stderr()
        );
        let (src, dst) = (self.src.clone(), self.dst.clone());
        self.assert_same(&src, &dst, options);
    }
    /// After a restart: where so much is gone that it waits for a person's word, it gets that word.
    #[track_caller]
    pub fn must_become_equal(&mut self) {
        let ran = self.wait_idle();
        if ran.code == 4 && ran.stderr.contains("no event says why") {
            let released = self.ask(&["release", "--yes"]);
            assert_eq!(released.code, 0, "{released:?}");
            self.goes_on();
        }
        self.must_be_equal();
    }
    /// Compares now, and says what the mirror printed when it is wrong.
    #[track_caller]
    pub fn assert_same(&self, src: &Path, dst: &Path, options: &Options) {
        let found = compare(src, dst, options);
        assert!(
            found.is_empty(),
            "{} and {} differ in {} things:\n  {}\nstatus: {}\nverify: {}\nstderr:\n{}",
            src.display(),
            dst.display(),
            found.len(),
            lines(&found),
            self.ask(&["status", "-v"]).stdout,
            self.ask(&["verify", "--against", "index"]).stdout,
            self.program.stderr()
        );
    }

    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let mut ran = self.ask(&["status", "--json"]);
        while ran.code == 0 && ran.stdout.is_empty() {
            // So busy a machine that what it printed was not read in time.
            ran = self.ask(&["status", "--json"]);
        }
        serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
    }
    /// A number in the status: `counters/overflows`.
    #[track_caller]
    pub fn number(&self, path: &str) -> u64 {
        let status = self.status();
        status
            .pointer(&format!("/status/{path}"))
            .and_then(serde_json::Value::as_u64)
            .unwrap_or_else(|| panic!("no {path} in {status}"))
    }
    /// What it is doing: `following`, `hold`...
    pub fn state(&self) -> String {
        let status = self.status();
        let is = status.pointer("/status/state/is");
        is.and_then(|is| is.as_str()).unwrap_or("").to_owned()
    }
    #[track_caller]
    pub fn wait_state(&self, wanted: &str) {
        let mut seen = String::new();
        let waited = wait_until(&format!("the state is {wanted}"), DEADLINE, || {
            seen = self.state();
            seen == wanted
        });
        if let Err(late) = waited {
            panic!("{late}; it is {seen:?}\n{}", self.program.stderr());
        }
    }

    /// SIGTERM; its exit code.
    #[track_caller]
    pub fn stop(&mut self) -> i32 {
        let status = self
            .program
            .stop(DEADLINE)
            .unwrap_or_else(|e| panic!("{e:#}"));
        status.code().unwrap_or(-1)
    }
    pub fn kill(&mut self) {
        self.program.kill().unwrap();
    }
}

pub fn lines(found: &[Difference]) -> String {
    let lines: Vec<String> = found.iter().take(30).map(Difference::to_string).collect();
    lines.join("\n  ")
}

/// Prints how long a part took, so that a slow one is found.
pub struct Took {
    what: String,
    start: Instant,
}

pub fn took(what: impl Into<String>) -> Took {
    Took {
        what: what.into(),
        start: Instant::now(),
    }
}

impl Drop for Took {
    fn drop(&mut self) {
        println!("{}: {:.2} s", self.what, self.start.elapsed().as_secs_f64());
    }
}

/// Each planted defect makes a test of this test program fail: our tests can fail.
#[cfg(feature = "planted")]
pub fn caught(defects: &[(&str, &str)]) {
    let exe = std::env::current_exe().unwrap();
    for (defect, test) in defects {
        let output = Command::new(&exe)
            .args([test, "--exact"])
            .env("FS_MIRROR_PLANT", defect)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("running 1 test"), "{test} is not there");
        if said.contains("skipped: ") {
            continue;
        }
        assert!(!output.status.success(), "{defect} is not caught by {test}");
        println!("{defect}: caught by {test}");
    }
}
