//! Whether packing pays on one connection, as seen by the side that sends: where the link is slow, and only there.
//!
//! The other side says how many bytes came and for how long it waited in the middle of frames, which it does only because of the
//! link: a sender that has nothing to say is waited for between frames, and of one that receives too slowly nothing is waited for.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::engine::options::Compress;
use crate::engine::status::LinkStatus;
use crate::sync::lock;

/// A link that brings less in a second is slow; one that is slow stays so up to twice this.
pub const SLOW_BYTES_PER_S: u64 = 32 << 20;
/// What is older counts half.
const HALF_S: f64 = 2.0;
/// Seconds of waiting that tell of a slow link.
const WAITED_S_MIN: f64 = 0.25;
/// Bytes that tell of a fast one, and of what packing costs.
const BYTES_MIN: f64 = (4 << 20) as f64;
/// When packing took longer than what it saved would have taken: so long nothing is packed.
const RESTS: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Packing {
    /// What our side wants, and what the other does.
    ours: AtomicU8,
    theirs: AtomicU8,
    state: Mutex<State>,
    saved: AtomicU64,
    /// The other side unpacks.
    able: AtomicBool,
}

#[derive(Default)]
struct State {
    /// As said last, of the whole connection.
    came: u64,
    waited_us: u64,
    at: Option<Instant>,
    /// Lately.
    bytes: f64,
    waited_s: f64,
    slow: bool,
    /// Bytes a second, as last known.
    rate: Option<f64>,
    cost: Cost,
    rests_until: Option<Instant>,
}

/// Of what was packed lately.
#[derive(Default)]
struct Cost {
    raw: f64,
    saved: f64,
    took_s: f64,
}

impl Packing {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub fn they_unpack(&self, able: bool) {
        self.able.store(able, Ordering::Relaxed);
    }

    pub fn we_want(&self, compress: Compress) {
        self.ours.store(compress.code(), Ordering::Relaxed);
    }

    /// As in [`super::message::Pace`].
    pub fn they_want(&self, code: u8) {
        self.theirs.store(code, Ordering::Relaxed);
    }

    /// Either side can forbid it, and then either can insist.
    fn asked(&self) -> Compress {
        let both =
            [&self.ours, &self.theirs].map(|side| Compress::of_code(side.load(Ordering::Relaxed)));
        let any = |one: Compress| both.contains(&one);
        match () {
            () if any(Compress::Off) => Compress::Off,
            () if any(Compress::On) => Compress::On,
            () => Compress::Auto,
        }
    }

    /// The other side: all that came, and how long it waited for the link.
    pub fn came(&self, bytes: u64, waited_us: u64, now: Instant) {
        let mut state = self.lock();
        let since = state.at.replace(now);
        let age = since.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        let fade = 0.5f64.powf(age / HALF_S);
        let came = bytes.saturating_sub(state.came) as f64;
        let waited = waited_us.saturating_sub(state.waited_us) as f64 / 1e6;
        (state.came, state.waited_us) = (bytes, waited_us);
        state.bytes = state.bytes * fade + came;
        state.waited_s = state.waited_s * fade + waited;
        let rate = state.bytes / state.waited_s.max(1e-6);
        let slow = SLOW_BYTES_PER_S as f64;
        if state.waited_s >= WAITED_S_MIN {
            state.rate = Some(rate);
            state.slow = rate < if state.slow { 2.0 * slow } else { slow };
        } else if state.bytes >= BYTES_MIN && rate >= 2.0 * slow {
            state.rate = None;
            state.slow = false;
        }
    }

    /// Whether to pack what is sent next. `limit`: bytes a second that may be sent.
    pub fn pays(&self, limit: Option<u64>, now: Instant) -> bool {
        match self.asked() {
            _ if !self.able.load(Ordering::Relaxed) => false,
            Compress::Off => false,
            Compress::On => true,
            Compress::Auto => {
                let state = self.lock();
                let limited = limit.is_some_and(|limit| limit < SLOW_BYTES_PER_S);
                (state.slow || limited) && state.rests_until.is_none_or(|until| now >= until)
            }
        }
    }

    /// So much was tried: bytes as they were, bytes saved, and the time it took.
    pub fn packed(&self, raw: usize, saved: u64, took: Duration, limit: Option<u64>, now: Instant) {
        self.saved(saved);
        let mut state = self.lock();
        let rate = [state.rate, limit.map(|limit| limit as f64)];
        let Some(rate) = rate.into_iter().flatten().reduce(f64::min) else {
            return;
        };
        let cost = &mut state.cost;
        cost.raw += raw as f64;
        cost.saved += saved as f64;
        cost.took_s += took.as_secs_f64();
        if cost.raw < BYTES_MIN {
            return;
        }
        // What does not shrink costs little, and what comes next may. A processor that is too slow stays so for a while.
        let tried_in_vain = cost.saved < cost.raw / 10.0;
        if !tried_in_vain && cost.took_s > cost.saved / rate.max(1.0) {
            state.rests_until = Some(now + RESTS);
        }
        state.cost = Cost::default();
    }

    /// Of what somebody else had packed.
    pub fn saved(&self, saved: u64) {
        self.saved.fetch_add(saved, Ordering::Relaxed);
    }

    /// Of a connection over which so much was sent.
    pub fn told(&self, bytes: u64, limit: Option<u64>) -> LinkStatus {
        LinkStatus {
            compress: self.asked(),
            packed: self.pays(limit, Instant::now()),
            bytes,
            saved_bytes: self.saved.load(Ordering::Relaxed),
            bytes_per_s: self.lock().rate.map(|rate| rate as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn able() -> Packing {
        let packing = Packing::default();
        packing.they_unpack(true);
        packing
    }

    /// So many seconds of a link, told of five times a second; of each second so much was waited for it.
    fn goes(packing: &Packing, now: &mut Instant, s: u64, bytes_per_s: u64, waited: f64) {
        for _ in 0..s * 5 {
            *now += Duration::from_millis(200);
            let (came, waited_us) = {
                let state = packing.lock();
                (state.came, state.waited_us)
            };
            let waited_us = waited_us + (waited * 200_000.0) as u64;
            packing.came(came + bytes_per_s / 5, waited_us, *now);
        }
    }

    #[test]
    fn a_slow_link_is_told_from_a_slow_receiver_and_from_an_idle_sender() {
        let mut now = Instant::now();
        let packing = able();
        assert!(!packing.pays(None, now));
        // 10 Mbit/s, full.
        goes(&packing, &mut now, 1, 1_250_000, 0.95);
        assert!(packing.pays(None, now));
        // Nothing to say for long; then as before.
        now += Duration::from_secs(3600);
        assert!(packing.pays(None, now));
        goes(&packing, &mut now, 5, 1_250_000, 0.95);
        assert!(packing.pays(None, now));
        // It became a fast one.
        goes(&packing, &mut now, 5, 500_000_000, 0.9);
        assert!(!packing.pays(None, now));
        // Loopback: a receiver that takes 10 MB a second and never waits; a sender that has little to say.
        for (bytes, waited) in [(10_000_000, 0.01), (20_000, 0.0), (80_000_000, 0.5)] {
            let packing = able();
            goes(&packing, &mut now, 20, bytes, waited);
            assert!(!packing.pays(None, now), "{bytes}");
        }
        // 100 Mbit/s pay, 1 Gbit/s does not.
        for (bytes, pays) in [(12_000_000, true), (110_000_000, false)] {
            let packing = able();
            goes(&packing, &mut now, 3, bytes, 0.9);
            assert_eq!(packing.pays(None, now), pays, "{bytes}");
        }
        // A limit is a slow link.
        assert!(able().pays(Some(1 << 20), now));
        assert!(!able().pays(Some(1 << 30), now));
    }

    #[test]
    fn either_side_may_forbid_it_and_then_either_may_insist() {
        let now = Instant::now();
        for (ours, theirs, pays) in [
            (Compress::On, Compress::Auto, true),
            (Compress::Auto, Compress::On, true),
            (Compress::On, Compress::Off, false),
            (Compress::Off, Compress::On, false),
            (Compress::Auto, Compress::Auto, false),
        ] {
            let packing = able();
            packing.we_want(ours);
            packing.they_want(theirs.code());
            assert_eq!(packing.pays(None, now), pays, "{ours:?} {theirs:?}");
            packing.they_unpack(false);
            assert!(!packing.pays(None, now));
        }
    }

    #[test]
    fn a_processor_slower_than_the_link_packs_nothing_for_a_while() {
        let mut now = Instant::now();
        let packing = able();
        goes(&packing, &mut now, 2, 10_000_000, 0.9);
        // 11 MB/s: 6 MB saved are half a second.
        let quick = Duration::from_millis(100);
        packing.packed(8 << 20, 6 << 20, quick, None, now);
        assert!(packing.pays(None, now));
        packing.packed(8 << 20, 0, quick, None, now);
        assert!(packing.pays(None, now));
        packing.packed(8 << 20, 6 << 20, Duration::from_secs(2), None, now);
        assert!(!packing.pays(None, now) && packing.pays(None, now + RESTS));
    }
}
