//! What may hang (a file below a network's directory that is gone, say) is done on a thread of its own, so that the loop
//! that must not stand still only asks whether it is done.

use std::io;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};

/// What takes longer hangs, for whoever reads the log. It is waited for all the same.
const HANGS_AFTER: Duration = Duration::from_secs(10);

/// At most one thing at a time.
pub struct Elsewhere<T> {
    under_way: Option<UnderWay<T>>,
}

struct UnderWay<T> {
    result: Receiver<T>,
    began: Instant,
    told: bool,
}

impl<T: Send + 'static> Elsewhere<T> {
    pub fn new() -> Elsewhere<T> {
        Elsewhere { under_way: None }
    }

    /// Begins it; nothing else may be under way.
    pub fn begin(&mut self, what: impl FnOnce() -> T + Send + 'static) -> io::Result<()> {
        let (sender, result) = bounded(1);
        std::thread::Builder::new()
            .name("elsewhere".into())
            .spawn(move || {
                // Nobody may wait for it any more.
                let _ = sender.send(what());
            })?;
        self.under_way = Some(UnderWay {
            result,
            began: Instant::now(),
            told: false,
        });
        Ok(())
    }

    pub fn is_busy(&self) -> bool {
        self.under_way.is_some()
    }

    /// What came of it, once.
    pub fn take(&mut self) -> Option<T> {
        match self.under_way.as_ref()?.result.try_recv() {
            Ok(done) => {
                self.under_way = None;
                Some(done)
            }
            Err(TryRecvError::Empty) => None,
            // It panicked, which was said.
            Err(TryRecvError::Disconnected) => {
                self.under_way = None;
                None
            }
        }
    }

    /// Likewise, waiting for it so long.
    pub fn wait(&mut self, at_most: Duration) -> Option<T> {
        let done = self.under_way.as_ref()?.result.recv_timeout(at_most).ok();
        if done.is_some() {
            self.under_way = None;
        }
        done
    }

    /// True once, when it takes so long that somebody should know.
    pub fn hangs(&mut self) -> bool {
        match &mut self.under_way {
            Some(one) if !one.told && one.began.elapsed() >= HANGS_AFTER => {
                one.told = true;
                true
            }
            _ => false,
        }
    }
}

impl<T: Send + 'static> Default for Elsewhere<T> {
    fn default() -> Elsewhere<T> {
        Elsewhere::new()
    }
}
