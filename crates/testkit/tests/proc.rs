//! Programs are watched, waited for with a deadline, and killed where we want.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::need;
use testkit::proc::{KillPoint, Program, count_calls, has_strace, killpoint, wait_until};

const SOON: Duration = Duration::from_secs(20);

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn what_it_prints_and_how_it_ends() {
    let mut program = Program::start(&mut shell("echo out; echo ready >&2; exit 3")).unwrap();
    program.wait_stderr("ready", SOON).unwrap();
    assert_eq!(program.wait(SOON).unwrap().code(), Some(3));
    assert_eq!(
        (program.stdout().as_str(), program.stderr().as_str()),
        ("out\n", "ready\n")
    );
    let mut program = Program::start(&mut shell("echo other >&2")).unwrap();
    assert!(
        program
            .wait_stderr("ready", SOON)
            .unwrap_err()
            .to_string()
            .contains("other")
    );
}

#[test]
fn deadlines_are_kept() {
    let start = Instant::now();
    assert!(wait_until("never", Duration::from_millis(50), || false).is_err());
    let mut program = Program::start(&mut shell("echo stuck >&2; exec sleep 1000")).unwrap();
    program.wait_stderr("stuck", SOON).unwrap();
    let late = program.wait(Duration::from_millis(100)).unwrap_err();
    assert!(late.to_string().contains("stuck"), "{late}");
    assert!(start.elapsed() < SOON);
    assert!(program.ended().unwrap().is_none());
    let pid = program.pid();
    drop(program);
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
}

#[test]
fn signals_and_kill() {
    let mut program = Program::start(&mut shell(
        "trap 'exit 7' TERM; echo ready >&2; while :; do sleep 0.01; done",
    ))
    .unwrap();
    program.wait_stderr("ready", SOON).unwrap();
    assert_eq!(program.stop(SOON).unwrap().code(), Some(7));
    let mut program =
        Program::start(&mut shell("trap '' TERM; echo ready >&2; exec sleep 1000")).unwrap();
    program.wait_stderr("ready", SOON).unwrap();
    program.signal(Signal::TERM).unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(program.kill().unwrap().signal(), Some(9));
    // Again: nothing happens.
    assert_eq!(program.kill().unwrap().signal(), Some(9));
}

#[test]
fn killed_at_the_nth_call() {
    need!(has_strace());
    let base = tempfile::tempdir().unwrap();
    let make = |n: u64| {
        let dir = base.path().join(format!("run-{n}"));
        fs::create_dir(&dir).unwrap();
        let mut command = Command::new("mkdir");
        command.args(["a", "b", "c"]).current_dir(&dir);
        (command, dir)
    };
    let (command, _) = make(0);
    assert_eq!(count_calls(&command, "mkdir,mkdirat", SOON).unwrap(), 3);
    for n in 1..=3 {
        let (command, dir) = make(n);
        assert_eq!(
            killpoint(&command, "mkdir,mkdirat", n, SOON).unwrap(),
            KillPoint::Killed
        );
        // The call at which it died was not carried out.
        assert_eq!(fs::read_dir(dir).unwrap().count() as u64, n - 1);
    }
    let (command, dir) = make(4);
    let KillPoint::Finished(status) = killpoint(&command, "mkdir,mkdirat", 4, SOON).unwrap() else {
        panic!("there is no fourth call");
    };
    assert!(status.success());
    assert_eq!(fs::read_dir(dir).unwrap().count(), 3);
}

#[test]
fn every_thread_and_child_is_under_the_knife() {
    need!(has_strace());
    let base = tempfile::tempdir().unwrap();
    let script = format!("cd {}; mkdir a; mkdir b; exit 5", base.path().display());
    // The child dies at its first mkdir, the shell lives on.
    let KillPoint::Finished(status) = killpoint(&shell(&script), "mkdir,mkdirat", 1, SOON).unwrap()
    else {
        panic!("the shell itself makes no directory");
    };
    assert_eq!(status.code(), Some(5));
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
}

#[test]
fn wrong_calls_and_late_programs_are_errors() {
    need!(has_strace());
    assert!(killpoint(&shell("true"), "no_such_call", 1, SOON).is_err());
    let base = tempfile::tempdir().unwrap();
    let pid_file = base.path().join("pid");
    let script = format!("echo $$ > {}; exec sleep 1000", pid_file.display());
    assert!(killpoint(&shell(&script), "mkdir", 1, Duration::from_millis(500)).is_err());
    // strace must not leave the program behind.
    let pid = fs::read_to_string(pid_file).unwrap();
    assert!(!fs::exists(format!("/proc/{}", pid.trim())).unwrap());
}
