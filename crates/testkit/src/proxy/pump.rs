//! One direction of a link: bytes leave as fast as the link takes them, and arrive when they have travelled.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{read, retry_on_intr, write};

use super::frames::Splitter;
use super::{Control, TICK, Way};

/// Read at once, at most.
const CHUNK_BYTES: usize = 16 << 10;
/// Likewise of a slow link: so much time.
const CHUNK_TIME: u64 = 200;
/// What a pipe takes without waiting when it takes anything.
const ATOMIC_BYTES: usize = 4096;
const TICK_SPEC: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: TICK.as_nanos() as i64,
};
const BUFFER_BYTES: u64 = 64 << 10;
/// On the way to somebody who does not read.
const TRAVELLING_BYTES_MAX: usize = 64 << 20;

/// Bytes on the way, each with when it arrives.
#[derive(Default)]
struct Travelling {
    queue: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// Nothing more comes.
    ended: bool,
}

struct Road<'a> {
    way: Way,
    control: &'a Control,
    /// The whole link.
    over: &'a AtomicBool,
    /// This connection.
    ended: &'a AtomicBool,
    travelling: Mutex<Travelling>,
    changed: Condvar,
}

/// Both directions, until the far side is gone or the link is cut; `half`: the near side may say that it has no more to say.
/// `close` ends both ends.
pub fn both(
    [out, inwards]: [(OwnedFd, OwnedFd); 2],
    half: bool,
    control: &Control,
    over: &AtomicBool,
    close: &(dyn Fn() + Sync),
) {
    let ended = &AtomicBool::new(false);
    let road = |way| Road {
        way,
        control,
        over,
        ended,
        travelling: Mutex::default(),
        changed: Condvar::new(),
    };
    let (there, back) = (road(Way::Out), road(Way::In));
    std::thread::scope(|scope| {
        for (road, (from, to)) in [(&there, out), (&back, inwards)] {
            scope.spawn(move || road.take(&from));
            scope.spawn(move || {
                road.bring(&to);
                // What was said last has arrived: now the other side may learn that it was the last.
                drop(to);
                if road.way == Way::In || !half {
                    ended.store(true, Ordering::Release);
                }
            });
        }
        while !there.is_over() {
            std::thread::sleep(TICK);
        }
        close();
    });
}

impl Road<'_> {
    fn lock(&self) -> MutexGuard<'_, Travelling> {
        self.travelling
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.ended.load(Ordering::Acquire)
            || self.over.load(Ordering::Acquire)
            || self.control.settings().cut
    }

    fn take(&self, from: &OwnedFd) {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut splitter =
            (self.way == Way::In && self.control.settings().frames).then(Splitter::default);
        let mut free = Instant::now();
        while !self.is_over() {
            let settings = self.control.settings();
            let room = match settings.rate {
                Some(rate) => (rate / CHUNK_TIME).clamp(256, CHUNK_BYTES as u64) as usize,
                None => CHUNK_BYTES,
            };
            let came = match read_soon(from, &mut buffer[..room]) {
                Ok(None) => 0,
                Ok(Some(0)) | Err(_) => break,
                Ok(Some(came)) => came,
            };
            let bytes = match &mut splitter {
                Some(splitter) => splitter.pass(&buffer[..came], &settings.hold),
                None => buffer[..came].to_vec(),
            };
            if bytes.is_empty() {
                continue;
            }
            let now = Instant::now();
            let on_the_wire = settings
                .rate
                .map_or(Duration::ZERO, |rate| time(bytes.len() as u64, rate));
            free = free.max(now) + on_the_wire;
            {
                let mut travelling = self.lock();
                travelling.bytes += bytes.len();
                travelling.queue.push_back((free + settings.latency, bytes));
            }
            self.changed.notify_all();
            // The sender waits when the router's buffer is full.
            let buffer_bytes = if settings.buffer == 0 {
                BUFFER_BYTES
            } else {
                settings.buffer
            };
            let waits = settings
                .rate
                .map_or(Duration::ZERO, |rate| time(buffer_bytes, rate));
            let until = free.checked_sub(waits).unwrap_or(now);
            while !self.is_over()
                && (Instant::now() < until || self.lock().bytes > TRAVELLING_BYTES_MAX)
            {
                let left = until.saturating_duration_since(Instant::now());
                std::thread::sleep(left.clamp(Duration::from_micros(50), TICK));
            }
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn bring(&self, to: &OwnedFd) {
        loop {
            let bytes = {
                let mut travelling = self.lock();
                loop {
                    if self.is_over() {
                        return;
                    }
                    let due = travelling.queue.front().map(|(due, _)| *due);
                    let stalled = self.control.settings().stalls(self.way);
                    let wait = match due {
                        None if travelling.ended => return,
                        Some(due) if !stalled => due.saturating_duration_since(Instant::now()),
                        _ => TICK,
                    };
                    if wait.is_zero() {
                        break;
                    }
                    travelling = self
                        .changed
                        .wait_timeout(travelling, wait.min(TICK))
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
                match travelling.queue.pop_front() {
                    Some((_, bytes)) => {
                        travelling.bytes -= bytes.len();
                        bytes
                    }
                    None => continue,
                }
            };
            if self.write(to, &bytes).is_err() {
                return;
            }
            self.control
                .counter(self.way)
                .fetch_add(bytes.len() as u64, Ordering::AcqRel);
        }
    }
}

impl Road<'_> {
    /// Somebody who does not read must not keep the end from being seen.
    fn write(&self, to: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut fds = [PollFd::new(to, PollFlags::OUT)];
            let ready = retry_on_intr(|| poll(&mut fds, Some(&TICK_SPEC)))?;
            if self.is_over() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if ready > 0 {
                let part = &rest[..rest.len().min(ATOMIC_BYTES)];
                let wrote = retry_on_intr(|| write(to, part))?;
                rest = &rest[wrote..];
            }
        }
        Ok(())
    }
}

fn time(bytes: u64, rate: u64) -> Duration {
    Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate.max(1))
}

/// `None`: nothing came within a tick.
fn read_soon(from: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let mut fds = [PollFd::new(from, PollFlags::IN)];
    if retry_on_intr(|| poll(&mut fds, Some(&TICK_SPEC)))? == 0 {
        return Ok(None);
    }
    Ok(Some(retry_on_intr(|| read(from, &mut *buffer))?))
}
