//! The followers that are connected now, each with a thread of its own.

use std::collections::{BTreeMap, VecDeque};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::keep::Keep;
use super::socket::{self, Listening, Way};
use crate::engine::status::{Lag, Replica, Stamp};
use crate::link::conn::{Closer, Incoming, Outgoing};
use crate::link::message::{Bye, Cause};
use crate::link::serve::{FollowerState, Served, refuse, serve};
use crate::sync::lock;

/// Connections at once, to one tree.
pub const FOLLOWERS_MAX: usize = 64;
/// Who went and was not told of yet.
const LEFT_MAX: usize = FOLLOWERS_MAX;
/// How long those that are there may take to end.
const END_WITHIN: Duration = Duration::from_secs(3);

struct Seat {
    state: Arc<Mutex<FollowerState>>,
    outgoing: Arc<Outgoing>,
    since: Stamp,
}

#[derive(Default)]
pub struct Seats {
    taken: Mutex<BTreeMap<u64, Seat>>,
    /// As they were last, of those that went since that was told; at most [`LEFT_MAX`].
    left: Mutex<VecDeque<FollowerState>>,
    /// Nobody is served any more.
    over: AtomicBool,
}

impl Seats {
    pub fn is_empty(&self) -> bool {
        lock(&self.taken).is_empty()
    }

    /// How far each of them is.
    pub fn replicas(&self) -> Vec<Replica> {
        let taken = lock(&self.taken);
        taken
            .values()
            .map(|seat| {
                let state = lock(&seat.state).clone();
                Replica {
                    name: state.name,
                    connected: true,
                    since: seat.since,
                    positions: state.positions,
                    lag: Lag::default(),
                    failed: state.failed,
                    held: state.held,
                    link: Some(seat.outgoing.told()),
                    held_to: seat.outgoing.held_to(),
                }
            })
            .collect()
    }

    /// Names a follower. It is called as it was before; one of another copy that is called the same and is there, or is
    /// only cut off, keeps its name and its place. The answer: what a person should know.
    pub fn introduce(
        &self,
        keep: &mut Keep,
        state: &Mutex<FollowerState>,
        name: String,
        replica: &[u8],
    ) -> Option<String> {
        let replica: String = replica.iter().map(|byte| format!("{byte:02x}")).collect();
        let taken = lock(&self.taken);
        let others = taken
            .values()
            .filter(|seat| !std::ptr::eq(&*seat.state, state));
        let (name, told) = keep.name(name, &replica, |name| {
            others
                .clone()
                .map(|seat| lock(&seat.state))
                .any(|other| other.name == name && other.replica != replica)
        });
        let mut state = lock(state);
        (state.name, state.replica) = (name, replica);
        told
    }

    /// Tells for whom the log is kept.
    pub fn tell(&self, keep: &mut Keep) {
        for state in lock(&self.left).drain(..) {
            if let Some(after) = state.keep_after {
                keep.went(&state, after);
            }
        }
        for seat in lock(&self.taken).values() {
            let state = lock(&seat.state);
            if let Some(after) = state.keep_after {
                keep.seen(&state, after);
            }
        }
    }

    /// One goes: it may have come only a moment ago.
    pub(super) fn goes(&self, state: FollowerState) {
        let mut left = lock(&self.left);
        if left.len() >= LEFT_MAX {
            left.pop_front();
        }
        left.push_back(state);
    }

    /// Ends all connections; those that come after are served again.
    pub fn hang_up(&self, reason: &str) {
        for seat in lock(&self.taken).values() {
            let reason = reason.to_owned();
            let _ = seat.outgoing.send(Bye { reason });
            seat.outgoing.close();
        }
    }

    /// After [`Seats::end`]: there will be some again.
    pub fn begin(&self) {
        self.over.store(false, Ordering::Release);
    }

    /// No more connections: the listener's thread ends, and those that are there within moments.
    pub fn end(&self, reason: &str) {
        self.over.store(true, Ordering::Release);
        self.hang_up(reason);
        let until = Instant::now() + END_WITHIN;
        while !self.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Takes in who comes, until [`Seats::end`].
    pub fn accept(self: &Arc<Seats>, served: &Arc<dyn Served>, listening: &Listening) {
        let mut number = 0u64;
        // Who comes is seen at once; this is how soon the end is.
        let nap = Duration::from_millis(200);
        while !self.over.load(Ordering::Acquire) {
            let mut nobody = true;
            for (listener, way) in listening.both() {
                match listener.accept() {
                    Ok((stream, _)) => {
                        number += 1;
                        nobody = false;
                        self.seat(served, stream, number, way);
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                    // Out of descriptors, say: who waits, waits.
                    Err(_) => std::thread::sleep(nap),
                }
            }
            if nobody {
                wait_readable(listening, nap);
            }
        }
    }

    fn seat(
        self: &Arc<Seats>,
        served: &Arc<dyn Served>,
        stream: UnixStream,
        number: u64,
        way: Way,
    ) {
        if !socket::is_ours(&stream) || stream.set_nonblocking(false).is_err() {
            return;
        }
        let (Ok(writer), Ok(ender)) = (stream.try_clone(), stream.try_clone()) else {
            return;
        };
        let closer: Closer = Arc::new(move || {
            let _ = ender.shutdown(Shutdown::Both);
        });
        let outgoing = Arc::new(Outgoing::new(writer, closer).sharing(served.bucket()));
        if lock(&self.taken).len() >= FOLLOWERS_MAX {
            let reason = format!("{FOLLOWERS_MAX} follow it already, and more may not");
            let _ = refuse(&outgoing, Cause::Failed, reason);
            return;
        }
        let state = Arc::new(Mutex::new(FollowerState {
            may_order: way == Way::Account,
            ..FollowerState::default()
        }));
        let seat = Seat {
            state: state.clone(),
            outgoing: outgoing.clone(),
            since: Stamp::now(),
        };
        lock(&self.taken).insert(number, seat);
        let (seats, served) = (self.clone(), served.clone());
        let started = std::thread::Builder::new()
            .name("follower".into())
            .spawn(move || {
                let done = serve(&served, &outgoing, Incoming::new(stream), &state);
                if let Err(error) = done
                    && !outgoing.is_closed()
                {
                    let reason = error.to_string();
                    served.notice(format!("a follower: {reason}"));
                    let _ = outgoing.send(Bye { reason });
                }
                outgoing.close();
                seats.goes(lock(&state).clone());
                lock(&seats.taken).remove(&number);
            });
        if started.is_err() {
            lock(&self.taken).remove(&number);
        }
    }
}

fn wait_readable(listening: &Listening, at_most: Duration) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(at_most.subsec_nanos()),
    };
    let mut both = (listening.both()).map(|(listener, _)| PollFd::new(listener, PollFlags::IN));
    let _ = poll(&mut both, Some(&timeout));
}
