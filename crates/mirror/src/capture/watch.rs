//! Hears the kernel: one fanotify mark for the whole file system, the service's listener that has one for many trees, or
//! an inotify watch for each directory.
//!
//! A thread keeps the kernel's queue short; the capture loop takes what was heard with [`Watch::drain`], which also
//! empties the kernel's queue: after it, every event that was queued before the call has been taken.
//! Nothing is decided here but what concerns nobody: our own writes, and bits without meaning for a mirror.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use mirror_core::hints::{Hint, HintName};
use mirror_core::{Handle, Name, Who};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};

use super::dirs::DirWatches;
use super::far::Far;
use super::part::{self, Tag};
use super::tree::SourceTree;
use super::tree::shown;
use crate::engine::options::Detector;
use crate::listener::ear;
use crate::planted;
use crate::sync::lock;
use crate::sys::fanotify::{self, Fsid, mask};
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
    Fanotify(fanotify::Group, Marked),
    /// By way of the service's listener.
    Far(Far, Marked),
    Inotify(DirWatches),
    /// Nothing is heard.
    Scan,
}

/// The file systems marked, and the parts of the tree on each: handles in a record are of one of those.
pub(super) type Marked = Vec<(Fsid, Tag)>;

/// What a watch needs beside the tree.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    pub forced: Option<Detector>,
    /// Where a service has its states, if there is to be a listener.
    pub listener: Option<PathBuf>,
    /// Ask `/proc` who it was.
    pub who: bool,
}

pub struct Watch {
    pub detector: Detector,
    /// For the line at start, and the status: why this one.
    pub why: Arc<Mutex<String>>,
    group: Group,
    heard: Mutex<Heard>,
    signal: Sender<()>,
    pub wake: Receiver<()>,
    own_pid: u32,
    ask_who: bool,
    stop: AtomicBool,
    /// Readable once it is to stop. `None`: it is asked for in turn.
    stopped: Option<OwnedFd>,
}

impl Watch {
    /// Marks the tree's file system, or falls back. An error only when a detector was forced and can't be had.
    pub fn new(tree: &SourceTree, options: WatchOptions) -> Result<Watch, String> {
        let asked = |group| (group, "asked for".to_string());
        let (group, mut why) = match options.forced {
            Some(Detector::Fanotify) => match mark(tree) {
                Ok((group, _)) => asked(group),
                Err(why) => return Err(format!("fanotify is not possible here: {why}")),
            },
            Some(Detector::Inotify) => match watch() {
                Ok(group) => asked(group),
                Err(why) => return Err(format!("inotify is not possible here: {why}")),
            },
            Some(Detector::Scan) => asked(Group::Scan),
            None => match far_or_mark(tree, &options) {
                Ok(marked) => marked,
                Err(why) => match watch() {
                    Ok(group) => (group, format!("fanotify is not possible: {why}")),
                    Err(no_inotify) => {
                        let why = format!(
                            "fanotify is not possible: {why}; nor is inotify: {no_inotify}"
                        );
                        (Group::Scan, why)
                    }
                },
            },
        };
        let detector = match &group {
            Group::Fanotify(..) | Group::Far(..) => Detector::Fanotify,
            Group::Inotify(_) => Detector::Inotify,
            Group::Scan => Detector::Scan,
        };
        if let (Some(what), false) = (tree.unheard(), detector == Detector::Scan) {
            why.push_str(&format!("; {what} is found by scans alone"));
        }
        let (signal, wake) = bounded(1);
        Ok(Watch {
            detector,
            why: Arc::new(Mutex::new(why)),
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
            stopped: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok(),
        })
    }

    /// Starts the reader thread.
    pub fn start(self: &Arc<Watch>) -> Option<JoinHandle<()>> {
        if matches!(self.group, Group::Scan) {
            return None;
        }
        let watch = self.clone();
        Some(std::thread::spawn(move || {
            while !watch.stop.load(Ordering::Acquire) {
                let far;
                let queue = match &watch.group {
                    Group::Fanotify(group, _) => group.as_fd(),
                    Group::Far(group, _) => {
                        far = group.queue();
                        far.as_fd()
                    }
                    Group::Inotify(dirs) => dirs.as_fd(),
                    Group::Scan => return,
                };
                if !readable(queue, watch.stopped.as_ref()) {
                    continue;
                }
                let mut heard = watch.lock();
                watch.read_all(&mut heard, false);
                let some = !heard.hints.is_empty() || heard.lost;
                drop(heard);
                if some {
                    let _ = watch.signal.try_send(());
                }
                // Also when all of it was our own: else every file we write wakes us.
                std::thread::sleep(WINDOW);
            }
        }))
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        if let Some(stopped) = &self.stopped {
            let _ = rustix::io::write(stopped, &1u64.to_ne_bytes());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        lock(&self.heard)
    }

    /// Everything heard until now, and whether something was lost.
    pub fn drain(&self) -> (Vec<Hint>, bool) {
        let mut heard = self.lock();
        self.read_all(&mut heard, true);
        (
            std::mem::take(&mut heard.hints),
            std::mem::take(&mut heard.lost),
        )
    }

    /// The watches of single directories, where there is not one mark for all of them.
    pub fn dirs(&self) -> Option<&DirWatches> {
        match &self.group {
            Group::Inotify(dirs) => Some(dirs),
            _ => None,
        }
    }

    /// A directory is about to be listed: from now on its events are heard.
    pub fn add_dir(&self, dir: &OwnedFd, handle: &Handle) {
        if let Some(dirs) = self.dirs() {
            dirs.add(dir, handle);
        }
    }

    /// A file was seen with so many links: some may be names that are not watched.
    pub fn linked(&self, handle: &Handle, links: u32) {
        if let Some(dirs) = self.dirs() {
            dirs.linked(handle, links);
        }
    }

    /// Why nothing is heard any more; and what a person should know, once.
    pub fn news(&self) -> (Option<String>, Option<String>) {
        match &self.group {
            Group::Far(far, _) => far.news(),
            _ => (None, None),
        }
    }

    /// `all`: nothing that was queued before is left, wherever it waits.
    fn read_all(&self, heard: &mut Heard, all: bool) {
        match &self.group {
            Group::Fanotify(group, marked) => self.read_fanotify(group, marked, heard),
            Group::Far(far, marked) => {
                let stop = || self.stop.load(Ordering::Acquire);
                let mut lost = false;
                let own = far.read(all, &self.why, &stop, &mut |what| match what {
                    ear::Heard::Records { entered, bytes } => {
                        let records = fanotify::Records::parse(bytes);
                        self.take(records, marked, entered, heard);
                    }
                    ear::Heard::Lost => lost = true,
                });
                heard.lost |= lost;
                if let Some(group) = own {
                    self.read_fanotify(&group, marked, heard);
                }
            }
            Group::Inotify(dirs) => {
                let mut buffer = std::mem::take(&mut heard.buffer);
                heard.lost |= !dirs.read(&mut buffer, &mut heard.hints);
                heard.buffer = buffer;
            }
            Group::Scan => {}
        }
        if heard.hints.len() > HINTS_MAX {
            heard.hints.clear();
            heard.lost = true;
        }
    }

    fn read_fanotify(&self, group: &fanotify::Group, marked: &Marked, heard: &mut Heard) {
        let mut buffer = std::mem::take(&mut heard.buffer);
        // What comes meanwhile is for the next time: it may come without end.
        let mut left = group.pending().unwrap_or(u64::MAX);
        while left > 0 {
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
            left = left.saturating_sub(self.take(records, marked, false, heard));
        }
        heard.buffer = buffer;
    }

    /// Hints of records; how many those were.
    fn take(
        &self,
        records: fanotify::Records<'_>,
        marked: &Marked,
        entered: bool,
        heard: &mut Heard,
    ) -> u64 {
        let mut taken = 0;
        for record in records {
            taken += 1;
            let Ok(record) = record else {
                heard.lost = true;
                break;
            };
            if record.overflow {
                heard.lost |= !planted::is("ignore_overflow");
                continue;
            }
            if record.pid == Some(self.own_pid) || planted::is_one_in("drop_a_hint", 1000) {
                continue;
            }
            let who = if self.ask_who {
                record.pid.and_then(|pid| asked(&mut heard.whos, pid))
            } else {
                None
            };
            let of = |who, tag| {
                let mut hint = hint(&record, who, tag);
                // What a directory holds is scanned, what a file holds is read.
                hint.entered = entered && hint.on_dir;
                hint.contents |= entered && !hint.on_dir;
                hint
            };
            match (marked.as_slice(), record.fsid) {
                ([(_, tag)], _) => heard.hints.push(of(who, *tag)),
                (_, fsid) => heard.hints.extend(
                    marked
                        .iter()
                        .filter(|(known, _)| Some(*known) == fsid)
                        .map(|(_, tag)| of(who.clone(), *tag)),
                ),
            }
        }
        taken
    }
}

/// Waits for the queue, or to be stopped, and never for long if nothing would tell of that.
fn readable(queue: BorrowedFd<'_>, stopped: Option<&OwnedFd>) -> bool {
    let nap = match stopped {
        Some(_) => Timespec {
            tv_sec: 5,
            tv_nsec: 0,
        },
        None => Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        },
    };
    let stopped = stopped.map_or(queue, |stopped| stopped.as_fd());
    let mut fds = [
        PollFd::from_borrowed_fd(queue, PollFlags::IN),
        PollFd::from_borrowed_fd(stopped, PollFlags::IN),
    ];
    let ready = rustix::event::poll(&mut fds, Some(&nap));
    ready.is_ok() && fds.first().is_some_and(|fd| !fd.revents().is_empty())
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

/// The listener of the service, where there is one; else marks of its own.
fn far_or_mark(tree: &SourceTree, options: &WatchOptions) -> Result<(Group, String), String> {
    let handles = tree.parts().iter().all(|part| part.no_handles.is_none());
    let Some(base) = options.listener.as_ref().filter(|_| handles) else {
        return mark(tree);
    };
    let mut marked = Marked::new();
    for part in tree.parts() {
        match part.fsid() {
            Ok(fsid) => marked.push((fsid, part.tag)),
            Err(_) => return mark(tree),
        }
    }
    let roots = tree.parts().iter().map(|part| part.root().clone());
    match Far::open(base.clone(), roots.collect()) {
        Ok(far) => {
            let why = match marked.len() {
                1 => "one listener for the file system".to_string(),
                n => format!("one listener for each of {n} file systems"),
            };
            Ok((Group::Far(far, marked), why))
        }
        Err(deaf) => {
            let (group, why) = mark(tree)?;
            Ok((group, format!("{why}; the service's listener: {deaf}")))
        }
    }
}

/// One group, with a mark on each file system of the tree; and why that is what is used.
fn mark(tree: &SourceTree) -> Result<(Group, String), String> {
    // Which of several it is about has to be told.
    let about = |part: &part::Part, why: String| match part.at {
        Some(_) => format!("of {}: {why}", shown(&tree.path_of(part))),
        None => why,
    };
    for part in tree.parts() {
        if let Some(why) = &part.no_handles {
            return Err(about(part, why.clone()));
        }
    }
    let group = fanotify::Group::new(fanotify::Queue::Limited).map_err(fanotify::explain)?;
    let mut marked = Marked::new();
    for part in tree.parts() {
        let marks = group
            .mark_filesystem(part.root())
            .and_then(|()| part.fsid());
        match marks {
            Ok(fsid) => marked.push((fsid, part.tag)),
            Err(e) => return Err(about(part, fanotify::explain(e).into())),
        }
    }
    let why = match marked.len() {
        1 => "one mark for the whole file system".to_string(),
        n => format!("one mark for each of {n} file systems"),
    };
    Ok((Group::Fanotify(group, marked), why))
}

fn watch() -> Result<Group, String> {
    DirWatches::new()
        .map(Group::Inotify)
        .map_err(|e| std::io::Error::from(e).to_string())
}

fn side(dir: fanotify::HandleRef<'_>, name: Option<&[u8]>, tag: Tag) -> HintName {
    HintName {
        dir: part::tagged(dir.to_handle(), tag),
        name: name.and_then(|name| Name::new(name).ok()),
    }
}

/// What a record says of the part of the tree with this tag.
fn hint(record: &fanotify::Record<'_>, who: Option<Who>, tag: Tag) -> Hint {
    let has = |bit: u64| record.mask & bit != 0;
    let (at, to) = match (&record.old, &record.new) {
        (None, None) => (record.dir.map(|dir| side(dir, record.name, tag)), None),
        (old, new) => (
            old.map(|(dir, name)| side(dir, Some(name), tag)),
            new.map(|(dir, name)| side(dir, Some(name), tag)),
        ),
    };
    Hint {
        at,
        to,
        object: record
            .object
            .map(|object| part::tagged(object.to_handle(), tag)),
        contents: has(mask::MODIFY) || has(mask::CLOSE_WRITE),
        closed: has(mask::CLOSE_WRITE),
        created: has(mask::CREATE),
        renamed: has(mask::RENAME) || has(mask::MOVED_FROM) || has(mask::MOVED_TO),
        on_dir: record.is_dir(),
        entered: false,
        who,
    }
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
