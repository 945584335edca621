//! Commands of the operator's: run as another user if asked for, with a deadline, and never waited for by what matters.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal, kill_process_group};

use super::config::Run;

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A user of this host, by name or number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub home: String,
}

pub fn user_of(name: &str) -> Option<User> {
    find(&std::fs::read_to_string("/etc/passwd").ok()?, name)
}

fn find(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (login, _, uid, gid) = (
            fields.next()?,
            fields.next()?,
            fields.next()?,
            fields.next()?,
        );
        let home = fields.nth(1)?.to_owned();
        if login.is_empty() || (login != name && uid != name) {
            return None;
        }
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        Some(User { uid, gid, home })
    })
}

/// Runs it to its end, at most for its timeout or until `stopped`. What it prints goes where we print errors. `Err`: how
/// it failed, in one line.
pub fn run(
    run: &Run,
    env: &[(&str, OsString)],
    input: &[u8],
    stopped: &dyn Fn() -> bool,
) -> Result<(), String> {
    let mut child = start(run, env, input).map_err(|e| format!("cannot be started: {e}"))?;
    let until = Instant::now() + run.timeout;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                return match (status.code(), status.signal()) {
                    (Some(0), _) => Ok(()),
                    (Some(code), _) => Err(format!("exit code {code}")),
                    (None, signal) => Err(format!("signal {}", signal.unwrap_or(0))),
                };
            }
            Ok(None) if Instant::now() < until && !stopped() => std::thread::sleep(LOOK_EVERY),
            other => {
                // All that it started, too.
                if let Some(pid) = Pid::from_raw(child.id() as i32) {
                    let _ = kill_process_group(pid, Signal::KILL);
                }
                let _ = child.wait();
                return Err(match other {
                    Err(e) => format!("cannot be waited for: {e}"),
                    Ok(_) if stopped() => "ended, because the service ends".into(),
                    Ok(_) => format!(
                        "killed: it took longer than {} s",
                        run.timeout.as_secs_f64()
                    ),
                });
            }
        }
    }
}

fn start(run: &Run, env: &[(&str, OsString)], input: &[u8]) -> io::Result<Child> {
    // Without a pipe nobody waits for whoever does not read it.
    let mut stdin = File::from(rustix::fs::memfd_create("input", MemfdFlags::CLOEXEC)?);
    stdin.write_all(input)?;
    stdin.rewind()?;
    let output = || io::stderr().as_fd().try_clone_to_owned().map(Stdio::from);
    let mut command = Command::new("/bin/sh");
    command
        .arg("-c")
        .arg(&run.command)
        .current_dir("/")
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(stdin)
        .stdout(output()?)
        .stderr(output()?)
        .process_group(0);
    if let Some(name) = &run.user {
        let user = user_of(name)
            .ok_or_else(|| io::Error::other(format!("there is no user {name} here")))?;
        // Being root it also leaves root's groups.
        command
            .uid(user.uid)
            .gid(user.gid)
            .env("HOME", user.home)
            .env("USER", name);
    }
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(command: &str) -> Run {
        Run {
            command: command.into(),
            user: None,
            timeout: Duration::from_secs(60),
        }
    }

    #[test]
    fn users_are_found_by_name_or_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken:x\nwww-data:x:33:34:www:/var/www:/usr/sbin/nologin\n";
        let www = User {
            uid: 33,
            gid: 34,
            home: "/var/www".into(),
        };
        assert_eq!(find(passwd, "www-data"), Some(www.clone()));
        assert_eq!(find(passwd, "33"), Some(www));
        assert_eq!(find(passwd, "broken"), None);
        assert_eq!(find(passwd, ""), None);
    }

    #[test]
    fn a_command_gets_its_input_and_a_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let env = [("OUT", out.clone().into_os_string())];
        let never = || false;
        assert_eq!(run(&sh("cat > \"$OUT\""), &env, b"a\0b", &never), Ok(()));
        assert_eq!(std::fs::read(&out).unwrap(), b"a\0b");
        assert_eq!(
            run(&sh("exit 3"), &[], b"", &never),
            Err("exit code 3".into())
        );
        let slow = Run {
            timeout: Duration::from_millis(50),
            ..sh("sleep 60 & wait")
        };
        let began = Instant::now();
        let said = run(&slow, &[], b"", &never).unwrap_err();
        assert!(
            said.starts_with("killed: it took longer than 0.05 s"),
            "{said}"
        );
        let said = run(&sh("sleep 60"), &[], b"", &|| true).unwrap_err();
        assert!(said.starts_with("ended"), "{said}");
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
