//! `--once` beside a hold: whichever comes first, what is held is never called equal.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use mirror::engine::event::{Event, RunEnd, Ui};
use mirror::engine::options::{MirrorOptions, SourceSpec};
use mirror::engine::run_mirror;

const LONG: Duration = Duration::from_secs(60);
/// A hold that would come comes by then.
const SOON: Duration = Duration::from_secs(3);

/// Very much is removed ...
#[derive(Clone, Copy, PartialEq)]
enum When {
    /// ... while a person is asked, which goes on until it is held.
    Asked,
    /// ... at the moment when the copy is called equal.
    Equal,
}

/// What a person sees, who removes `d` at the worst moment.
struct Person {
    when: When,
    src: PathBuf,
    told: Mutex<Vec<Event>>,
    changed: Condvar,
}

impl Person {
    fn remove_and_wait(&self, at_most: Duration) -> bool {
        // By another process: what this one does is not looked at.
        let mut remove = Command::new("rm");
        let removed = remove.arg("-rf").arg(self.src.join("d")).status();
        assert!(removed.unwrap().success());
        let until = Instant::now() + at_most;
        let mut told = self.told.lock().unwrap();
        while !told.iter().any(is_held) && Instant::now() < until {
            let nap = Duration::from_millis(50);
            told = self.changed.wait_timeout(told, nap).unwrap().0;
        }
        told.iter().any(is_held)
    }
}

fn is_held(event: &Event) -> bool {
    matches!(event, Event::Held(_))
}

fn is_equal(event: &Event) -> bool {
    matches!(event, Event::Equal { .. })
}

impl Ui for Person {
    fn event(&self, event: Event) {
        let now = self.when == When::Equal && is_equal(&event);
        self.told.lock().unwrap().push(event);
        self.changed.notify_all();
        if now {
            self.remove_and_wait(SOON);
        }
    }

    fn ask(&self, _: &str) -> bool {
        if self.when == When::Asked {
            assert!(self.remove_and_wait(LONG), "it is held");
        }
        true
    }
}

/// A tree with 1,500 files in `d`, and a DST with one more file.
fn place(at: &Path) -> (PathBuf, PathBuf) {
    let (src, dst) = (at.join("src"), at.join("dst"));
    for dir in [&src.join("d"), &src.join("stays"), &dst] {
        fs::create_dir_all(dir).unwrap();
    }
    for n in 0..1500 {
        fs::write(src.join(format!("d/{n}")), "x").unwrap();
    }
    fs::write(dst.join("extra"), "by hand").unwrap();
    (src, dst)
}

fn once(source: SourceSpec, src: &Path, dst: &Path, when: When) -> (RunEnd, Vec<Event>) {
    let person = Arc::new(Person {
        when,
        src: src.into(),
        told: Mutex::default(),
        changed: Condvar::new(),
    });
    let mut options = MirrorOptions::new(source, dst.into());
    options.once = true;
    options.adopt = true;
    options.history = false;
    options.remote_command = Some(env!("CARGO_BIN_EXE_mirrord").into());
    let end = run_mirror(options, person.clone()).unwrap();
    let told = std::mem::take(&mut *person.told.lock().unwrap());
    (end, told)
}

fn local(at: &Path) -> SourceSpec {
    SourceSpec::Local(at.join("src"))
}

fn far(at: &Path) -> SourceSpec {
    SourceSpec::Ssh {
        user: None,
        host: "far".into(),
        port: None,
        path: at.join("src").into_os_string().into_encoded_bytes(),
    }
}

fn held_before_it_is_told(source: fn(&Path) -> SourceSpec) {
    let at = tempfile::tempdir().unwrap();
    let (src, dst) = place(at.path());
    let (end, told) = once(source(at.path()), &src, &dst, When::Asked);
    assert!(dst.join("d").exists(), "it is held");
    assert!(!told.iter().any(is_equal), "called equal: {told:?}");
    assert!(end.held.is_some(), "{end:?}");
    let lines = told.iter().filter(|event| is_held(event)).count();
    assert_eq!(lines, 1, "the hold is told once");
}

fn not_held_after_it_is_told(source: fn(&Path) -> SourceSpec) {
    let at = tempfile::tempdir().unwrap();
    let (src, dst) = place(at.path());
    let (end, told) = once(source(at.path()), &src, &dst, When::Equal);
    assert!(told.iter().any(is_equal), "{told:?}");
    assert!(!told.iter().any(is_held), "called equal, and held");
    assert_eq!(end, RunEnd::default());
    assert_eq!(fs::read_dir(dst.join("d")).unwrap().count(), 1500);
}

/// Runs this test anew, where something stands for ssh.
fn with_ssh(test: &str, body: impl FnOnce()) {
    const INSIDE: &str = "FS_MIRROR_SSH";
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let at = tempfile::tempdir().unwrap();
    let ssh = at.path().join("ssh");
    fs::write(
        &ssh,
        "#!/bin/sh\nfor last; do :; done\nexec sh -c \"exec $last\"\n",
    )
    .unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, &ssh)
        .env("MIRRORD_STATE", at.path().join("worker"))
        .env_remove("SSH_ORIGINAL_COMMAND")
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

#[test]
fn what_is_held_while_somebody_is_asked_is_not_called_equal() {
    held_before_it_is_told(local);
}

#[test]
fn what_is_called_equal_is_not_held_any_more() {
    not_held_after_it_is_told(local);
}

#[test]
fn what_is_held_while_somebody_is_asked_is_not_called_equal_over_ssh() {
    let test = "what_is_held_while_somebody_is_asked_is_not_called_equal_over_ssh";
    with_ssh(test, || held_before_it_is_told(far));
}

#[test]
fn what_is_called_equal_is_not_held_any_more_over_ssh() {
    let test = "what_is_called_equal_is_not_held_any_more_over_ssh";
    with_ssh(test, || not_held_after_it_is_told(far));
}
