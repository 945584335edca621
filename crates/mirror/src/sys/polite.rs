//! What a child process may take of the machine, set between fork and exec, and that it does not outlive us.

use std::os::unix::process::CommandExt;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// How a child's reads and writes stand back (`ioprio_set`); felt where the block device's scheduler knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IoNice {
    /// Only when nobody else wants the disk.
    Idle,
    /// 0 (first) to 7 (last); the usual is 4.
    BestEffort(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Polite {
    /// -20 to 19.
    pub nice: Option<i8>,
    pub io_nice: Option<IoNice>,
    /// Of private writable memory, `RLIMIT_DATA`: heap, stacks, private maps. Mapped files and the page cache are not
    /// counted. Who needs more is ended by its allocator.
    pub memory_bytes_max: Option<u64>,
}

/// The child that this command starts is so, hears all signals, and gets SIGTERM when the *thread* that started it ends.
///
/// What the kernel refuses (a nice value lower than the one we have, a limit higher) is left as it is: it is stricter.
pub fn on_start(command: &mut Command, polite: Polite) {
    let parent = rustix::process::getpid().as_raw_nonzero().get();
    let io = polite.io_nice.map(|io| match io {
        IoNice::BestEffort(level) => (2 << 13) | libc::c_long::from(level.min(7)),
        IoNice::Idle => 3 << 13,
    });
    let set = move || {
        // SAFETY: all of these are plain system calls with values, allowed between fork and exec.
        unsafe {
            // What we have blocked, to hear of it in our own way, is not the child's business.
            let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            if libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // It may have ended before the line above.
            if libc::getppid() != parent {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            if let Some(nice) = polite.nice {
                libc::setpriority(libc::PRIO_PROCESS, 0, nice.into());
            }
            if let Some(io) = io {
                const THIS_PROCESS: libc::c_long = 1;
                libc::syscall(libc::SYS_ioprio_set, THIS_PROCESS, 0 as libc::c_long, io);
            }
            if let Some(bytes) = polite.memory_bytes_max {
                let limit = libc::rlimit {
                    rlim_cur: bytes,
                    rlim_max: bytes,
                };
                libc::setrlimit(libc::RLIMIT_DATA, &limit);
            }
        }
        Ok(())
    };
    // SAFETY: `set` allocates nothing and takes no lock.
    unsafe { command.pre_exec(set) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_hears_what_we_have_blocked() {
        // A thread of its own: the block must not leak into other tests.
        let output = std::thread::spawn(|| {
            let _signals = super::super::signal::Signals::new().unwrap();
            let mut command = Command::new("sh");
            command.args(["-c", "kill -TERM $$; echo deaf"]);
            on_start(&mut command, Polite::default());
            command.output().unwrap()
        });
        assert_eq!(output.join().unwrap().stdout, b"");
    }

    #[test]
    fn a_child_is_as_polite_as_it_was_told() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "awk '{print $19}' /proc/$$/stat; ulimit -d; ionice -p $$ 2>/dev/null || echo idle",
        ]);
        on_start(
            &mut command,
            Polite {
                nice: Some(11),
                io_nice: Some(IoNice::Idle),
                memory_bytes_max: Some(1 << 30),
            },
        );
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines, ["11", "1048576", "idle"]);
    }
}
