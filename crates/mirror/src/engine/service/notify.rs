//! What systemd is told: ready, reloading, stopping, still alive. Without systemd all of it does nothing.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

pub struct Notify {
    /// Half of what the watchdog allows.
    every: Option<Duration>,
    said: Option<Instant>,
}

impl Notify {
    /// Reads once what the environment says of a watchdog.
    pub fn new() -> Notify {
        let every = sd_notify::watchdog_enabled().map(|within| within / 2);
        Notify { every, said: None }
    }

    pub fn ready(&self, status: &str) {
        let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// [`Notify::ready`] ends it.
    pub fn reloading(&self) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            let _ = sd_notify::notify(&[NotifyState::Reloading, now]);
        }
    }

    pub fn stopping(&self) {
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
    }

    pub fn status(&self, status: &str) {
        let _ = sd_notify::notify(&[NotifyState::Status(status)]);
    }

    /// To be called by the loop that must not stand still; at least every second.
    pub fn alive(&mut self) {
        let Some(every) = self.every else { return };
        if self.said.is_none_or(|said| said.elapsed() >= every) {
            self.said = Some(Instant::now());
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        }
    }
}

impl Default for Notify {
    fn default() -> Notify {
        Notify::new()
    }
}
