//! A worker and a follower on one machine, with something that stands for ssh between them.
#![allow(dead_code)]

pub mod made_up;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use testkit::compare::Options;
use testkit::generate;
use testkit::proc::{Program, wait_equal, wait_until};

pub const LONG: Duration = Duration::from_secs(60);
pub const FS_MIRROR: &str = env!("CARGO_BIN_EXE_fs_mirror");
pub const MIRRORD: &str = env!("CARGO_BIN_EXE_mirrord");

pub struct Bed {
    held: tempfile::TempDir,
    /// What `FS_MIRROR_SSH` is.
    pub ssh: String,
    pub remote: String,
    pub host: String,
    /// More for the environment of what is started here.
    pub more_env: Vec<(&'static str, PathBuf)>,
}

impl Bed {
    /// ssh is played by a script that runs the command here, as itself.
    pub fn new() -> Bed {
        let bed = Bed::empty();
        let body = "for last; do :; done\nexec sh -c \"exec $last\"";
        bed.script(body);
        bed
    }

    pub fn empty() -> Bed {
        let held = tempfile::Builder::new()
            .prefix("mirror-ssh-")
            .tempdir()
            .unwrap();
        let bed = Bed {
            ssh: held.path().join("ssh").display().to_string(),
            remote: MIRRORD.into(),
            host: "far".into(),
            more_env: Vec::new(),
            held,
        };
        fs::create_dir(bed.src()).unwrap();
        bed
    }

    /// The script that stands for ssh. It leaves its pid, which becomes the far end's.
    pub fn script(&self, body: &str) {
        let pid = self.path("ssh.pid");
        let text = format!("#!/bin/sh\necho $$ > {}\n{body}\n", pid.display());
        fs::write(self.path("ssh.new"), text).unwrap();
        fs::set_permissions(self.path("ssh.new"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(self.path("ssh.new"), self.path("ssh")).unwrap();
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.held.path().join(below)
    }
    pub fn src(&self) -> PathBuf {
        self.path("src")
    }
    pub fn dst(&self) -> PathBuf {
        self.path("dst")
    }
    pub fn states(&self) -> PathBuf {
        self.path("worker")
    }

    pub fn populate(&self, files: u64, seed: u64) {
        let params = generate::Params {
            files,
            seed,
            ..generate::Params::default()
        };
        generate::tree(&self.src().join("tree"), &params).unwrap();
    }

    pub fn env(&self, command: &mut Command) {
        command
            .env("FS_MIRROR_SSH", &self.ssh)
            .env("MIRRORD_STATE", self.states())
            .envs(self.more_env.iter().map(|(name, value)| (name, value)))
            .env_remove("SSH_ORIGINAL_COMMAND");
    }

    /// `fs_mirror mirror far:SRC DST` with more arguments.
    pub fn mirror(&self, more: &[&str]) -> Program {
        self.mirror_to(&self.dst(), more)
    }

    pub fn mirror_to(&self, dst: &Path, more: &[&str]) -> Program {
        self.mirror_from(
            &format!("{}:{}", self.host, self.src().display()),
            dst,
            more,
        )
    }

    pub fn mirror_from(&self, source: &str, dst: &Path, more: &[&str]) -> Program {
        let mut command = Command::new(FS_MIRROR);
        command.args(["mirror", source]).arg(dst).args(more);
        if !more.contains(&"--remote-command") {
            command.args(["--remote-command", &self.remote]);
        }
        self.env(&mut command);
        Program::start(&mut command).unwrap()
    }

    /// Runs to its end: exit code and stderr.
    pub fn mirror_once(&self, more: &[&str]) -> (i32, String) {
        let mut all = vec!["--once"];
        all.extend(more);
        ended(self.mirror(&all))
    }

    /// Another command on the mirror.
    pub fn command(&self, words: &[&str]) -> (i32, String) {
        let mut command = Command::new(FS_MIRROR);
        command.args(words).arg("-m").arg(self.dst());
        self.env(&mut command);
        let output = command.output().unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (output.status.code().unwrap_or(-1), text)
    }

    #[track_caller]
    pub fn equal(&self) {
        self.equal_to(&self.dst());
    }

    #[track_caller]
    pub fn equal_to(&self, dst: &Path) {
        if let Err(differences) = wait_equal(&self.src(), dst, &Options::default(), LONG) {
            let lines: Vec<String> = differences
                .iter()
                .take(20)
                .map(|d| d.to_string().replace(&"n".repeat(255), "LONG"))
                .collect();
            if let Ok(keep) = std::env::var("KEEP_FAILED") {
                let to = format!("{keep}.{}", std::process::id());
                let _ = Command::new("cp")
                    .arg("-a")
                    .arg(self.path(""))
                    .arg(to)
                    .status();
            }
            let (_, status) = self.command(&["status"]);
            // Which side of the log is to blame.
            let (_, index) = self.command(&["verify", "--against", "index"]);
            let (_, source) = self.command(&["verify", "--against", "source"]);
            let status =
                format!("{status}\nagainst its index: {index}\nagainst the source: {source}");
            let logs: Vec<String> = fs::read_dir(self.states())
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|entry| fs::read_to_string(entry.path().join("daemon.log")).ok())
                .collect();
            panic!(
                "not equal after {LONG:?}:\n  {}\n{status}\n{}",
                lines.join("\n  "),
                logs.join("\n")
            );
        }
    }

    /// The daemons that hold a worker's state now.
    pub fn daemons(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir(self.states()) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                let text = fs::read_to_string(entry.path().join("lock")).ok()?;
                text.split_whitespace().next()?.parse().ok()
            })
            .filter(|pid: &u32| Path::new(&format!("/proc/{pid}")).exists())
            .collect()
    }

    /// The far end of the link that is there now.
    pub fn far_end(&self) -> u32 {
        let mut pid = None;
        self.wait("ssh runs", || {
            let text = fs::read_to_string(self.path("ssh.pid")).unwrap_or_default();
            pid = text.trim().parse().ok();
            pid.is_some()
        });
        pid.unwrap()
    }

    pub fn wait(&self, what: &str, is_so: impl FnMut() -> bool) {
        wait_until(what, LONG, is_so).unwrap();
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for pid in self.daemons() {
            kill9(pid);
        }
        // Immutable files and the like.
        let _ = generate::remove(&self.src());
        if self.dst().exists() {
            let _ = generate::remove(&self.dst());
        }
    }
}

pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = kill_process(pid, signal);
    }
}

pub fn kill9(pid: u32) {
    signal(pid, Signal::KILL);
    // A zombie of another parent counts as gone, once none of its threads holds a socket open any more.
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, |threads| threads.count());
    let _ = wait_until("it is gone", LONG, || {
        threads() <= 1
            && match fs::read_to_string(format!("/proc/{pid}/stat")) {
                Ok(stat) => stat
                    .rsplit(')')
                    .next()
                    .is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])),
                Err(_) => true,
            }
    });
}

#[track_caller]
pub fn ended(mut program: Program) -> (i32, String) {
    let status: ExitStatus = program.wait(LONG).unwrap();
    (status.code().unwrap_or(-1), program.stderr())
}

/// Stops it cleanly.
#[track_caller]
pub fn stop(mut program: Program) -> String {
    let status = program.stop(Duration::from_secs(20)).unwrap();
    let said = program.stderr();
    assert_eq!(status.code(), Some(0), "{said}");
    said
}
