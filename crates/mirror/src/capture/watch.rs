//! Hears the kernel: one fanotify mark for the whole file system, or an inotify watch for each directory.
//!
//! A thread keeps the kernel's queue short; the capture loop takes what was heard with [`Watch::drain`], which also
//! empties the kernel's queue: after it, every event that was queued before the call has been taken.
//! Nothing is decided here but what concerns nobody: our own writes, and bits without meaning for a mirror.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use mirror_core::hints::{Hint, HintName};
use mirror_core::{Handle, Name, Who};
use rustix::event::Timespec;

use super::tree::SourceTree;
use crate::engine::options::Detector;
use crate::sys::fanotify::{self, mask};
use crate::sys::inotify::{self, mask as in_mask};
use crate::sys::{Errno, who};

const BUFFER_BYTES: usize = 256 << 10;
/// Hints kept for a loop that does not come for them; beyond, all is dirty.
const HINTS_MAX: usize = 400_000;
/// The reader's pause after a read, in which the kernel merges what belongs together.
const WINDOW: Duration = Duration::from_millis(1);

#[derive(Default)]
struct Heard {
    hints: Vec<Hint>,
    lost: bool,
    buffer: Vec<u8>,
    whos: HashMap<u32, (Instant, Option<Who>)>,
}

enum Group {
    Fanotify(fanotify::Group),
    Inotify {
        group: inotify::Group,
        dirs: Mutex<Dirs>,
    },
    /// Nothing is heard.
    Scan,
}

#[derive(Default)]
struct Dirs {
    by_watch: HashMap<i32, Handle>,
}

/// What a watch needs beside the tree.
#[derive(Debug, Clone, Copy)]
pub struct WatchOptions {
    pub forced: Option<Detector>,
    /// Ask `/proc` who it was.
    pub who: bool,
}

pub struct Watch {
    pub detector: Detector,
    /// For the line at start: why this one.
    pub why: String,
    group: Group,
    heard: Mutex<Heard>,
    signal: Sender<()>,
    pub wake: Receiver<()>,
    own_pid: u32,
    ask_who: bool,
    stop: AtomicBool,
    /// Directories that inotify had no watch for.
    pub unwatched: AtomicU64,
}

impl Watch {
    /// Marks the tree's file system, or falls back. An error only when a detector was forced and can't be had.
    pub fn new(tree: &SourceTree, options: WatchOptions) -> Result<Watch, String> {
        let (group, detector, why) = match options.forced {
            Some(Detector::Fanotify) => match mark(tree) {
                Ok(group) => (group, Detector::Fanotify, "asked for".to_string()),
                Err(why) => return Err(format!("fanotify is not possible here: {why}")),
            },
            Some(Detector::Inotify) => (watch()?, Detector::Inotify, "asked for".to_string()),
            Some(Detector::Scan) => (Group::Scan, Detector::Scan, "asked for".to_string()),
            None => match mark(tree) {
                Ok(group) => (
                    group,
                    Detector::Fanotify,
                    "one mark for the whole file system".to_string(),
                ),
                Err(why) => match watch() {
                    Ok(group) => (
                        group,
                        Detector::Inotify,
                        format!("fanotify is not possible: {why}"),
                    ),
                    Err(no_inotify) => {
                        let why = format!(
                            "fanotify is not possible: {why}; nor is inotify: {no_inotify}"
                        );
                        (Group::Scan, Detector::Scan, why)
                    }
                },
            },
        };
        let (signal, wake) = bounded(1);
        Ok(Watch {
            detector,
            why,
            group,
            heard: Mutex::new(Heard {
                buffer: vec![0; BUFFER_BYTES],
                ..Heard::default()
            }),
            signal,
            wake,
            own_pid: std::process::id(),
            ask_who: options.who,
            stop: AtomicBool::new(false),
            unwatched: AtomicU64::new(0),
        })
    }

    /// Starts the reader thread.
    pub fn start(self: &Arc<Watch>) -> Option<JoinHandle<()>> {
        if matches!(self.group, Group::Scan) {
            return None;
        }
        let watch = self.clone();
        Some(std::thread::spawn(move || {
            let nap = Timespec {
                tv_sec: 0,
                tv_nsec: 100_000_000,
            };
            while !watch.stop.load(Ordering::Acquire) {
                let ready = match &watch.group {
                    Group::Fanotify(group) => group.poll(Some(&nap)),
                    Group::Inotify { group, .. } => group.poll(Some(&nap)),
                    Group::Scan => return,
                };
                if !matches!(ready, Ok(true)) {
                    continue;
                }
                let mut heard = watch.lock();
                watch.read_all(&mut heard);
                let some = !heard.hints.is_empty() || heard.lost;
                drop(heard);
                if some {
                    let _ = watch.signal.try_send(());
                    std::thread::sleep(WINDOW);
                }
            }
        }))
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything heard until now, and whether something was lost.
    pub fn drain(&self) -> (Vec<Hint>, bool) {
        let mut heard = self.lock();
        self.read_all(&mut heard);
        (
            std::mem::take(&mut heard.hints),
            std::mem::take(&mut heard.lost),
        )
    }

    /// A directory is about to be listed: from now on its events are heard. Only inotify needs that.
    pub fn add_dir(&self, dir: &OwnedFd, handle: &Handle) {
        let Group::Inotify { group, dirs } = &self.group else {
            return;
        };
        match group.add(dir) {
            Ok(watch) => {
                dirs.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .by_watch
                    .insert(watch, handle.clone());
            }
            Err(_) => {
                self.unwatched.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn read_all(&self, heard: &mut Heard) {
        match &self.group {
            Group::Fanotify(group) => self.read_fanotify(group, heard),
            Group::Inotify { group, dirs } => read_inotify(group, dirs, heard),
            Group::Scan => {}
        }
        if heard.hints.len() > HINTS_MAX {
            heard.hints.clear();
            heard.lost = true;
        }
    }

    fn read_fanotify(&self, group: &fanotify::Group, heard: &mut Heard) {
        let mut buffer = std::mem::take(&mut heard.buffer);
        loop {
            let records = match group.read(&mut buffer) {
                Ok(records) => records,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => break,
                // No memory, or no descriptor: what was not read may be lost.
                Err(_) => {
                    heard.lost = true;
                    break;
                }
            };
            if records.is_empty() {
                break;
            }
            for record in records {
                let Ok(record) = record else {
                    heard.lost = true;
                    break;
                };
                if record.overflow {
                    heard.lost = true;
                    continue;
                }
                if record.pid == Some(self.own_pid) {
                    continue;
                }
                let who = if self.ask_who {
                    record.pid.and_then(|pid| asked(&mut heard.whos, pid))
                } else {
                    None
                };
                heard.hints.push(hint(&record, who));
            }
        }
        heard.buffer = buffer;
    }
}

/// Who a pid is, asked once a second at most.
fn asked(whos: &mut HashMap<u32, (Instant, Option<Who>)>, pid: u32) -> Option<Who> {
    const FRESH: Duration = Duration::from_secs(1);
    let now = Instant::now();
    if let Some((when, who)) = whos.get(&pid)
        && now.duration_since(*when) < FRESH
    {
        return who.clone();
    }
    if whos.len() > 4096 {
        whos.clear();
    }
    let who = Some(who::of(pid, None));
    whos.insert(pid, (now, who.clone()));
    who
}

fn mark(tree: &SourceTree) -> Result<Group, String> {
    if !tree.by_handle {
        return Err(
            "directories can't be opened by handle (no privilege, or this file system can't)"
                .into(),
        );
    }
    let group = match fanotify::Group::new(fanotify::Queue::Limited) {
        Ok(group) => group,
        Err(e) => return Err(fanotify::explain(e).into()),
    };
    match group.mark_filesystem(tree.root()) {
        Ok(()) => Ok(Group::Fanotify(group)),
        Err(e) => Err(fanotify::explain(e).into()),
    }
}

fn watch() -> Result<Group, String> {
    match inotify::Group::new() {
        Ok(group) => Ok(Group::Inotify {
            group,
            dirs: Mutex::new(Dirs::default()),
        }),
        Err(e) => Err(std::io::Error::from(e).to_string()),
    }
}

fn side(dir: fanotify::HandleRef<'_>, name: Option<&[u8]>) -> HintName {
    HintName {
        dir: dir.to_handle(),
        name: name.and_then(|name| Name::new(name).ok()),
    }
}

fn hint(record: &fanotify::Record<'_>, who: Option<Who>) -> Hint {
    let has = |bit: u64| record.mask & bit != 0;
    let (at, to) = match (&record.old, &record.new) {
        (None, None) => (record.dir.map(|dir| side(dir, record.name)), None),
        (old, new) => (
            old.map(|(dir, name)| side(dir, Some(name))),
            new.map(|(dir, name)| side(dir, Some(name))),
        ),
    };
    Hint {
        at,
        to,
        object: record.object.map(fanotify::HandleRef::to_handle),
        contents: has(mask::MODIFY) || has(mask::CLOSE_WRITE),
        closed: has(mask::CLOSE_WRITE),
        created: has(mask::CREATE),
        renamed: has(mask::RENAME) || has(mask::MOVED_FROM) || has(mask::MOVED_TO),
        on_dir: record.is_dir(),
        who,
    }
}

fn read_inotify(group: &inotify::Group, dirs: &Mutex<Dirs>, heard: &mut Heard) {
    let mut buffer = std::mem::take(&mut heard.buffer);
    let mut dirs = dirs.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let records = match group.read(&mut buffer) {
            Ok(records) => records,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => break,
            Err(_) => {
                heard.lost = true;
                break;
            }
        };
        if records.is_empty() {
            break;
        }
        for record in records {
            let Ok(record) = record else {
                heard.lost = true;
                break;
            };
            if record.overflow() {
                heard.lost = true;
                continue;
            }
            let has = |bit: u32| record.mask & bit != 0;
            if has(in_mask::IGNORED) {
                dirs.by_watch.remove(&record.wd);
                continue;
            }
            let Some(dir) = dirs.by_watch.get(&record.wd) else {
                // Of a directory that is just being added: it is listed after this.
                continue;
            };
            let name = record.name.and_then(|name| Name::new(name).ok());
            heard.hints.push(Hint {
                at: Some(HintName {
                    dir: dir.clone(),
                    name,
                }),
                to: None,
                object: None,
                contents: has(in_mask::MODIFY) || has(in_mask::CLOSE_WRITE),
                closed: has(in_mask::CLOSE_WRITE),
                created: has(in_mask::CREATE),
                renamed: has(in_mask::MOVED_FROM) || has(in_mask::MOVED_TO),
                on_dir: record.is_dir(),
                who: None,
            });
        }
    }
    heard.buffer = buffer;
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Keeps a [`Watch`]'s thread; ends it when dropped.
pub struct Watching {
    watch: Arc<Watch>,
    thread: Option<JoinHandle<()>>,
}

impl Watching {
    pub fn start(watch: Arc<Watch>) -> Watching {
        let thread = watch.start();
        Watching { watch, thread }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.watch.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
