//! Threads that read large files for the capture loop, which goes on meanwhile. They decide nothing: what is to be read comes
//! open and identified, what was read goes back. Started with the first large file.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};
use mirror_core::reconcile::{Failure, ReadEnd};
use mirror_core::{Handle, Name};

use super::read::{Into, ReadOptions, Reader};
use super::sink::Sink;
use crate::sys::sched;
use crate::sys::stat::Stat;

pub const READERS: usize = 3;
/// A file above this is a giant; one reader is left for what is smaller.
const GIANT_BYTES: u64 = 256 << 20;

/// One file to be read.
pub struct Job {
    pub fd: OwnedFd,
    pub name: Name,
    pub found: Stat,
    pub handle: Handle,
}

/// What came of it.
pub struct Ended {
    pub handle: Handle,
    pub end: ReadEnd,
    giant: bool,
}

pub struct Readers {
    options: ReadOptions,
    sink: Arc<dyn Sink>,
    closing: Arc<AtomicBool>,
    /// At most one for each thread.
    jobs: Option<Sender<Job>>,
    taken: Receiver<Job>,
    ended: Receiver<Ended>,
    back: Sender<Ended>,
    threads: Vec<JoinHandle<()>>,
    busy: usize,
    giants: usize,
}

impl Readers {
    pub fn new(options: ReadOptions, sink: Arc<dyn Sink>) -> Readers {
        let closing = Arc::new(AtomicBool::new(false));
        let (jobs, taken) = unbounded();
        let (back, ended) = unbounded();
        Readers {
            options: ReadOptions {
                stop: closing.clone(),
                ..options
            },
            sink,
            closing,
            jobs: Some(jobs),
            taken,
            ended,
            back,
            threads: Vec::new(),
            busy: 0,
            giants: 0,
        }
    }

    /// The largest file that can be begun now. `None`: none at all.
    pub fn room(&self) -> Option<u64> {
        match (self.busy < READERS, self.giants + 1 < READERS) {
            (false, _) => None,
            (true, true) => Some(u64::MAX),
            (true, false) => Some(GIANT_BYTES),
        }
    }

    /// Where what was read comes.
    pub fn ended(&self) -> &Receiver<Ended> {
        &self.ended
    }

    pub fn take(&mut self) -> Option<Ended> {
        let ended = self.ended.try_recv().ok()?;
        self.busy = self.busy.saturating_sub(1);
        self.giants = self.giants.saturating_sub(usize::from(ended.giant));
        Some(ended)
    }

    /// Call it while there is room. An error: there is no thread to be had.
    pub fn begin(&mut self, job: Job) -> Result<(), Failure> {
        let failed = |reason: String| Failure {
            step: "read",
            reason,
        };
        if self.threads.len() <= self.busy && self.threads.len() < READERS {
            let thread = self.start().map_err(|e| failed(e.to_string()))?;
            self.threads.push(thread);
        }
        let giant = job.found.bytes > GIANT_BYTES;
        match &self.jobs {
            Some(jobs) if jobs.send(job).is_ok() => {
                self.busy += 1;
                self.giants += usize::from(giant);
                Ok(())
            }
            _ => Err(failed("capture ends".into())),
        }
    }

    fn start(&self) -> std::io::Result<JoinHandle<()>> {
        let mut reader = Reader::new(self.options.clone());
        let (taken, back, sink) = (self.taken.clone(), self.back.clone(), self.sink.clone());
        let work = move || {
            sched::stand_back();
            while let Ok(job) = taken.recv() {
                let Job {
                    fd,
                    name,
                    found,
                    handle,
                } = job;
                let giant = found.bytes > GIANT_BYTES;
                let end = reader.read_open(&fd, &name, found, handle.clone(), Into::Sink(&*sink));
                drop(fd);
                if back.send(Ended { handle, end, giant }).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("reader".into())
            .spawn(work)
    }

    /// Breaks off what is being read, and closes it.
    pub fn close(&mut self) {
        self.closing.store(true, Ordering::Release);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.close();
    }
}
