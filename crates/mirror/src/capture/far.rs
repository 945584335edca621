//! What the service's listener hears for this tree; or, when that is gone, a mark of its own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::listener::ear::{COMES_WITHIN, Deaf, Ear, Heard};
use crate::sync::lock;
use crate::sys::fanotify;

enum Source {
    Far(Ear),
    Own(Arc<fanotify::Group>),
    /// There is neither: why.
    Deaf,
}

pub struct Far {
    base: PathBuf,
    roots: Vec<Arc<OwnedFd>>,
    source: Mutex<Source>,
    /// What to wait for: a descriptor of its own, so that nobody waits for who reads.
    queue: Mutex<Arc<OwnedFd>>,
    deaf: Mutex<Option<String>>,
    news: Mutex<Option<String>>,
}

fn again(fd: BorrowedFd<'_>) -> Result<Arc<OwnedFd>, String> {
    let fd = fd.try_clone_to_owned();
    fd.map(Arc::new).map_err(|e| e.to_string())
}

impl Far {
    /// `base`: where the service has its states. It hears from when this returns.
    pub fn open(base: PathBuf, roots: Vec<Arc<OwnedFd>>) -> Result<Far, Deaf> {
        let fds: Vec<BorrowedFd<'_>> = roots.iter().map(|root| root.as_fd()).collect();
        let ear = Ear::open(&base, &fds, COMES_WITHIN, &|| false)?;
        let queue = again(ear.as_fd()).map_err(Deaf::Refused)?;
        Ok(Far {
            base,
            roots,
            source: Mutex::new(Source::Far(ear)),
            queue: Mutex::new(queue),
            deaf: Mutex::default(),
            news: Mutex::default(),
        })
    }

    pub fn queue(&self) -> Arc<OwnedFd> {
        lock(&self.queue).clone()
    }

    pub fn news(&self) -> (Option<String>, Option<String>) {
        (lock(&self.deaf).clone(), lock(&self.news).take())
    }

    /// Takes what was heard. `all`: nothing is left that was queued before. Gives the group to be read instead, if there is
    /// one of its own.
    pub fn read(
        &self,
        all: bool,
        why: &Mutex<String>,
        stop: &dyn Fn() -> bool,
        each: &mut dyn FnMut(Heard<'_>),
    ) -> Option<Arc<fanotify::Group>> {
        let mut source = lock(&self.source);
        let heard = match &mut *source {
            Source::Far(ear) if all => ear.sync(each),
            Source::Far(ear) => ear.take(each),
            Source::Own(group) => return Some(group.clone()),
            Source::Deaf => {
                // It is not to be waited for without a pause.
                std::thread::sleep(Duration::from_millis(100));
                return None;
            }
        };
        let Err(deaf) = heard else { return None };
        if stop() {
            each(Heard::Lost);
            return None;
        }
        *source = self.instead(&deaf, why, stop);
        // Marked first, then all is looked at.
        each(Heard::Lost);
        match &*source {
            Source::Own(group) => Some(group.clone()),
            _ => None,
        }
    }

    fn instead(&self, deaf: &Deaf, why: &Mutex<String>, stop: &dyn Fn() -> bool) -> Source {
        if *deaf == Deaf::Ended {
            let fds: Vec<BorrowedFd<'_>> = self.roots.iter().map(|root| root.as_fd()).collect();
            if let Ok(ear) = Ear::open(&self.base, &fds, COMES_WITHIN, stop)
                && let Ok(queue) = again(ear.as_fd())
            {
                *lock(&self.queue) = queue;
                self.tell("the service's listener ended; another one is there, and everything is looked at");
                return Source::Far(ear);
            }
        }
        let own = || -> Result<(Arc<fanotify::Group>, Arc<OwnedFd>), String> {
            let explain = |e| fanotify::explain(e).to_string();
            let group = fanotify::Group::new(fanotify::Queue::Limited).map_err(explain)?;
            for root in &self.roots {
                group.mark_filesystem(root).map_err(explain)?;
            }
            let queue = again(group.as_fd())?;
            Ok((Arc::new(group), queue))
        };
        match own() {
            Ok((group, queue)) => {
                *lock(&self.queue) = queue;
                let instead =
                    format!("one mark for the whole file system; the service's listener: {deaf}");
                self.tell(&format!(
                    "the service's listener is of no use ({deaf}): the tree has a mark of its own, and everything is looked at"
                ));
                *lock(why) = instead;
                Source::Own(group)
            }
            Err(e) => {
                *lock(&self.deaf) = Some(format!(
                    "the service's listener is of no use ({deaf}), and no mark of its own is possible: {e}"
                ));
                Source::Deaf
            }
        }
    }

    fn tell(&self, line: &str) {
        *lock(&self.news) = Some(line.into());
    }
}
