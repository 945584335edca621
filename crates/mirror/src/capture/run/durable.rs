//! Durability: the log is flushed, then now and then the index, and what nobody needs any more is pruned.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use mirror_core::{Change, Note};

use super::{Capture, Fatal};
use crate::log::{Draft, PruneLimits};
impl Capture {
    pub(super) fn note(&mut self, note: Note) -> Result<(), Fatal> {
        let time = self.time();
        self.log.append(
            vec![Draft {
                change: Change::Note(note),
                who: None,
                local: None,
                content: None,
            }],
            time,
        )?;
        self.unflushed = true;
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<(), Fatal> {
        if std::mem::take(&mut self.unflushed) {
            self.last_flush = Instant::now();
            self.log.flush()?;
        }
        Ok(())
    }

    /// While a scan fills the log, a flush every so often will do.
    pub(super) fn flush_in_turn(&mut self) -> Result<(), Fatal> {
        const EVERY: Duration = Duration::from_millis(50);
        if self.running.is_some() && self.last_flush.elapsed() < EVERY {
            return Ok(());
        }
        self.flush()
    }

    /// Makes the index durable every so often. The wait for the disk is another thread's, but at the end (`now`).
    pub(super) fn flush_index(&mut self, now: bool) -> Result<(), Fatal> {
        if self
            .index_flush
            .as_ref()
            .is_some_and(|flush| now || flush.is_finished())
            && let Some(flush) = self.index_flush.take()
        {
            flush
                .join()
                .map_err(|_| Fatal::Index("the index's flush broke off".into()))??;
        }
        if !self.index_dirty
            || self.index_flush.is_some()
            || (!now && self.last_index_flush.elapsed() < self.options.index_flush)
        {
            // What is to make room does not wait for a change.
            let tight = self.shared.lock().room.is_some();
            return if tight && self.index_flush.is_none() {
                self.prune()
            } else {
                Ok(())
            };
        }
        self.flush()?;
        let end = self.log.end();
        let index = self.index.clone();
        let mut rows = index.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(end) = end {
            rows.set_position(end.position, end.head);
        }
        let flush = if now {
            rows.flush()?;
            None
        } else {
            rows.flush_start()?
        };
        // Pruning reads them.
        drop(rows);
        self.index_flush = flush.map(|flush| std::thread::spawn(move || flush.finish()));
        self.index_dirty = false;
        self.last_index_flush = Instant::now();
        self.prune()
    }

    /// Drops old segments that neither index nor any replica needs.
    pub(super) fn prune(&mut self) -> Result<(), Fatal> {
        let (needed, room) = {
            let status = self.shared.lock();
            (status.needed, status.room)
        };
        let every = match room {
            Some(_) => self.options.prune_every.min(Duration::from_secs(1)),
            None => self.options.prune_every,
        };
        if self.last_prune.elapsed() < every {
            return Ok(());
        }
        self.last_prune = Instant::now();
        // As much of it for each as they have usually.
        let limits = room.map_or(self.options.prune, |room| PruneLimits {
            log_bytes_max: Some(room / 5),
            content_bytes_max: Some(room - room / 5),
            ..self.options.prune
        });
        let own = self.durable_mark;
        let mark = self.rows().mark().map(|mark| mark.position);
        self.durable_mark = mark;
        if let (Some(needed), Some(own)) = (needed, own) {
            self.log.prune(needed.min(own), &limits)?;
        }
        Ok(())
    }
}
