//! Tells the worker how far this mirror is, as soon as it is there, and again on each new connection: barriers on the
//! worker wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::hub::Hub;
use crate::engine::applied::Applied;

/// How soon a new connection, or the end, is seen.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Tells until dropped.
pub struct Acks {
    stop: Arc<AtomicBool>,
    applied: Arc<Applied>,
    thread: Option<JoinHandle<()>>,
}

impl Acks {
    pub fn start(hub: Arc<Hub>, applied: Arc<Applied>) -> std::io::Result<Acks> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, looked_at) = (stop.clone(), applied.clone());
        let thread = std::thread::Builder::new()
            .name("acks".into())
            .spawn(move || tell(&hub, &looked_at, &stopped))?;
        Ok(Acks {
            stop,
            applied,
            thread: Some(thread),
        })
    }
}

impl Drop for Acks {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.applied.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tell(hub: &Hub, applied: &Applied, stop: &AtomicBool) {
    let mut told = None;
    while !stop.load(Ordering::Acquire) {
        if let (Some(link), Some(ack)) = (hub.links.get(), hub.ack()) {
            let now = (
                Arc::as_ptr(&link) as usize,
                ack.applied,
                ack.failed,
                ack.held.clone(),
            );
            if told.as_ref() != Some(&now) {
                // One that broke is told again when it is there again.
                if link.outgoing.send(ack).is_ok() {
                    told = Some(now);
                }
                continue;
            }
        }
        drop(applied.wait(applied.lock(), LOOK_EVERY));
    }
}
