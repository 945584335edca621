//! The clock that retention goes by, on this host: [`mirror_core::history::retention::clock`] with the kernel's clocks, and
//! its state in `STATE/catalogue/clock`. Nothing of a worker gets in.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mirror_core::history::retention::clock::{Clock, Sample, Suspicion};
use mirror_core::history::retention::{Lock, MirrorTime};
use rustix::time::{ClockId, clock_gettime};

use crate::disk::{Disk, read_file, replace_file};

pub const FILE: &str = "catalogue/clock";
const FORMAT: &str = "fs_mirror clock 1";
const BYTES_MAX: usize = 4096;
/// While the host runs nothing is lost in between: the kernel goes on counting.
const SAVE_EVERY: Duration = Duration::from_secs(600);

/// The kernel's id of this boot. Read once: behind walls it can't be had any more.
pub fn boot_id() -> [u8; 16] {
    static BOOT: OnceLock<[u8; 16]> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let text = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(&text).as_bytes()[..16]);
        id
    })
}

fn sample() -> Sample {
    let ns = |id| {
        let now = clock_gettime(id);
        let seconds = now.tv_sec.saturating_mul(1_000_000_000);
        seconds.saturating_add(now.tv_nsec)
    };
    Sample {
        wall: ns(ClockId::Realtime),
        since_boot: ns(ClockId::Boottime),
        boot: boot_id(),
    }
}

/// See the module.
pub struct HostClock {
    clock: Clock,
    lock: Lock,
    disk: Arc<dyn Disk>,
    saved: Option<Instant>,
    jumped: Option<Suspicion>,
    /// A test says what time it is.
    set: Option<MirrorTime>,
}

impl HostClock {
    /// `latest`: the latest time that history knows of.
    pub fn open(disk: Arc<dyn Disk>, latest: Option<u64>, lock: Lock) -> io::Result<HostClock> {
        let sample = sample();
        let stored = match read_file(&*disk, FILE, BYTES_MAX) {
            Ok(bytes) => Some(decode(&bytes).ok_or_else(damaged)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        let latest = latest.map(MirrorTime::of_ns);
        let (mut clock, jumped) = match (stored, latest) {
            (Some(mut clock), _) => {
                let jumped = clock.advance(sample, lock);
                (clock, jumped)
            }
            (None, Some(latest)) => Clock::recover(latest, sample, lock),
            (None, None) => (Clock::begin(sample), None),
        };
        clock.at_least(latest.unwrap_or_default());
        let mut opened = HostClock {
            clock,
            lock,
            disk,
            saved: None,
            jumped,
            set: None,
        };
        opened.save_if_due()?;
        Ok(opened)
    }

    pub fn now(&mut self) -> MirrorTime {
        if let Some(set) = self.set {
            return set;
        }
        let jumped = self.clock.advance(sample(), self.lock);
        self.jumped = jumped.or(self.jumped);
        self.clock.time
    }

    /// Instead of the kernel's.
    pub fn set(&mut self, time: MirrorTime) {
        self.set = Some(time);
    }

    pub fn set_lock(&mut self, lock: Lock) {
        self.lock = lock;
    }

    /// What the wall clock did that time does not explain, once, for people.
    pub fn told(&mut self) -> Option<String> {
        let (how, ns) = match self.jumped.take()? {
            Suspicion::Ahead(ns) => ("ahead", ns),
            Suspicion::Back(ns) => ("back", ns),
        };
        Some(format!(
            "this host's clock jumped {how} by {}: what is kept of the past is not older or younger for that",
            crate::cli::text::seconds(ns as f64 / 1e9)
        ))
    }

    pub fn save_if_due(&mut self) -> io::Result<()> {
        let due = self.saved.is_none_or(|at| at.elapsed() >= SAVE_EVERY);
        if due {
            replace_file(&*self.disk, FILE, &encode(&self.clock))?;
            self.saved = Some(Instant::now());
        }
        Ok(())
    }
}

fn damaged() -> io::Error {
    let text = format!(
        "{FILE} is damaged: without it (move it away) the time goes on from the latest that history knows"
    );
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn encode(clock: &Clock) -> Vec<u8> {
    let Sample {
        wall,
        since_boot,
        boot,
    } = clock.last;
    let boot = u128::from_be_bytes(boot);
    let text = format!(
        "{FORMAT}\ntime {}\nwall {wall}\nsince_boot {since_boot}\nboot {boot:032x}\n",
        clock.time.0
    );
    let crc = crc32c::crc32c(text.as_bytes());
    format!("{text}crc {crc:08x}\n").into_bytes()
}

fn decode(bytes: &[u8]) -> Option<Clock> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (body, crc) = text.strip_suffix('\n')?.rsplit_once("crc ")?;
    if u32::from_str_radix(crc, 16).ok()? != crc32c::crc32c(body.as_bytes()) {
        return None;
    }
    let mut lines = body.lines();
    if lines.next()? != FORMAT {
        return None;
    }
    let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
    let time = MirrorTime(value("time")?.parse().ok()?);
    let wall = value("wall")?.parse().ok()?;
    let since_boot = value("since_boot")?.parse().ok()?;
    let boot = u128::from_str_radix(value("boot")?, 16).ok()?.to_be_bytes();
    let last = Sample {
        wall,
        since_boot,
        boot,
    };
    Some(Clock { time, last })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn it_goes_on_where_it_was_and_what_is_damaged_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path()).unwrap());
        disk.make_dir("catalogue").unwrap();
        let open = |latest| HostClock::open(disk.clone(), latest, Lock::Off);
        let first = open(None).unwrap().now();
        let second = open(None).unwrap().now();
        assert!(first <= second && second.0 - first.0 < 60_000_000_000);
        // History is never ahead of it.
        let ahead = first.ns() + 3_600_000_000_000;
        assert!(open(Some(ahead)).unwrap().now().ns() >= ahead);
        let path = dir.path().join(FILE);
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&bad), None, "byte {at}");
        }
        std::fs::write(&path, b"nonsense").unwrap();
        let why = open(None).err().unwrap().to_string();
        assert!(why.contains("catalogue/clock is damaged"), "{why}");
        std::fs::remove_file(&path).unwrap();
        assert!(open(Some(first.ns())).unwrap().now() >= first);
    }
}
