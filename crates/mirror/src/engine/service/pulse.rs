//! Whether a child hangs: its main loop beats over a pipe that it inherits, and its supervisor counts for how long nothing came.
//!
//! Only who has beaten once is judged: what opening a large log takes is nobody's to say. Times are of the supervisor's
//! monotonic clock, and what passes while the supervisor itself does not look counts for nobody.

use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Of a child that has beaten before. Long after `status` calls it silent, and much longer than a round of a main loop.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Who did not look for so long was stopped, or the machine slept: patience begins anew.
const LOOKED_MAX: Duration = Duration::from_secs(20);
/// How often a child beats at most.
const EVERY: Duration = Duration::from_secs(1);

/// Tells a child whose child it is, so that none of *its* children takes another pipe for this one.
pub const ENV: &str = "MIRROR_BEATS_FOR";

/// When we began to beat; empty: nobody wants to hear of us.
static BEGUN: OnceLock<Instant> = OnceLock::new();
/// When we beat last, in milliseconds since then, plus one.
static LAST: AtomicU64 = AtomicU64::new(0);

/// If our parent wants to hear of us, standard input is the pipe, and nobody else here uses it. To be called once.
pub fn begin() {
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().to_string());
    let ours = parent.is_some() && std::env::var(ENV).ok() == parent;
    if ours && rustix::io::ioctl_fionbio(io::stdin().as_fd(), true).is_ok() {
        let _ = BEGUN.set(Instant::now());
    }
}

/// The main loop goes round. Costs nothing, so it may be said often.
pub fn beat() {
    let Some(begun) = BEGUN.get() else { return };
    let now = begun.elapsed().as_millis() as u64 + 1;
    let last = LAST.load(Ordering::Relaxed);
    if last == 0 || now.saturating_sub(last) >= EVERY.as_millis() as u64 {
        LAST.store(now, Ordering::Relaxed);
        say(b".");
    }
}

/// What begins now takes as long as it takes (opening, closing, comparing all): nobody is to judge us until the next beat.
pub fn rest() {
    if BEGUN.get().is_some() {
        LAST.store(0, Ordering::Relaxed);
        say(b"~");
    }
}

fn say(what: &[u8]) {
    // Where the pipe is full, enough was said.
    let _ = rustix::io::write(io::stdin().as_fd(), what);
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Heard {
    Nothing,
    Beat,
    Rest,
}

/// What a supervisor knows of one child.
pub struct Pulse {
    pipe: PipeReader,
    judge: Judge,
}

impl Pulse {
    /// And what is to be the child's standard input.
    pub fn new(patience: Duration) -> io::Result<(Pulse, io::PipeWriter)> {
        let (pipe, theirs) = io::pipe()?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let judge = Judge::new(patience);
        Ok((Pulse { pipe, judge }, theirs))
    }

    /// True once: it hangs. To be called often.
    pub fn hangs(&mut self, pid: u32, now: Instant) -> bool {
        let mut buffer = [0u8; 256];
        let mut heard = Heard::Nothing;
        while let Ok(n @ 1..) = self.pipe.read(&mut buffer) {
            heard = match buffer.get(n - 1) {
                Some(b'~') => Heard::Rest,
                _ => Heard::Beat,
            };
        }
        self.judge.look(now, heard, || waits_for_disk(pid))
    }
}

struct Judge {
    patience: Duration,
    /// When it last beat, or when patience began anew. `None`: it is not to be judged, or was already.
    since: Option<Instant>,
    looked: Option<Instant>,
}

impl Judge {
    fn new(patience: Duration) -> Judge {
        Judge {
            patience,
            since: None,
            looked: None,
        }
    }

    /// `excused`: a signal would not help, and what it waits for may come.
    fn look(&mut self, now: Instant, heard: Heard, excused: impl FnOnce() -> bool) -> bool {
        let looked = self.looked.replace(now).unwrap_or(now);
        match heard {
            Heard::Nothing => {}
            Heard::Beat => self.since = Some(now),
            Heard::Rest => self.since = None,
        }
        let Some(since) = self.since else {
            return false;
        };
        if now.duration_since(looked) > LOOKED_MAX {
            self.since = Some(now);
            return false;
        }
        if now.duration_since(since) < self.patience || excused() {
            return false;
        }
        self.since = None;
        true
    }
}

/// One of its threads is in the kernel and hears no signal: mostly a disk, or a server of files that is gone.
fn waits_for_disk(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    threads.into_iter().flatten().flatten().any(|thread| {
        std::fs::read(thread.path().join("stat")).is_ok_and(|stat| state(&stat) == Some(b'D'))
    })
}

/// The letter after the name, which may hold anything.
fn state(stat: &[u8]) -> Option<u8> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(end + 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// The times, in half seconds, at which it was said that the child hangs. `.` a beat, `-` none, `~` it takes its
    /// time, `D` it waits for a disk, `z` nobody looked.
    fn said(script: &str) -> Vec<usize> {
        let begun = Instant::now();
        let mut judge = Judge::new(5 * S);
        let mut said = Vec::new();
        for (at, what) in script.bytes().enumerate() {
            let now = begun + S / 2 * at as u32;
            let heard = match what {
                b'.' => Heard::Beat,
                b'~' => Heard::Rest,
                _ => Heard::Nothing,
            };
            if what != b'z' && judge.look(now, heard, || what == b'D') {
                said.push(at);
            }
        }
        said
    }

    #[test]
    fn who_beat_and_does_not_any_more_hangs() {
        assert_eq!(said("...-------------------"), [12]);
        assert_eq!(said("..-------.-------.----"), Vec::<usize>::new());
        // It takes its time to begin.
        assert_eq!(said("------------------"), Vec::<usize>::new());
        assert_eq!(said("...~-------------------"), Vec::<usize>::new());
        assert_eq!(said("..~------.-------------"), [19]);
    }

    #[test]
    fn who_waits_for_a_disk_or_slept_with_us_is_left_alone() {
        assert_eq!(said(".DDDDDDDDDDDDDDDDDDDDDDDD."), Vec::<usize>::new());
        assert_eq!(said(".DDDDDDDDDDDDDD----------"), [15]);
        let slept = format!(".--{}-", "z".repeat(50));
        assert_eq!(said(&format!("{slept}-----")), Vec::<usize>::new());
        assert_eq!(said(&format!("{slept}-----------------")), [63]);
    }

    /// However many children there are, and however often all of them stood still together: nobody is blamed.
    #[test]
    fn a_thousand_pauses_kill_nobody() {
        let mut script = String::new();
        for round in 0..1000 {
            script.push_str(".--");
            script.push_str(&"z".repeat(41 + round % 97));
            script.push_str("----");
        }
        assert_eq!(said(&script), Vec::<usize>::new());
    }

    #[test]
    fn states_are_read() {
        assert_eq!(state(b"12 (a) D) S 1 2"), Some(b'S'));
        assert_eq!(state(b"12 (x"), None);
        let own = std::fs::read("/proc/thread-self/stat").unwrap();
        assert_eq!(state(&own), Some(b'R'));
    }
}
