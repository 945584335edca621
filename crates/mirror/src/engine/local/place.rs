//! Where the copy is reached: through a private view of the mount it lies on, so that an unmount is not prevented.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::engine::event::{Event, RunError, Ui};
use crate::engine::session::show;
use crate::sys::{stat, tree};

/// DST and its state, as paths that stay good and block nobody. Everything is opened through these.
pub struct Place {
    pub dst: PathBuf,
    pub state: PathBuf,
    /// As the person knows them.
    typed_dst: PathBuf,
    typed_state: PathBuf,
    /// The view's path, and what it shows as a person knows it.
    view_is: Option<(String, String)>,
    id: Option<Inode>,
    dst_id: OnceLock<Option<Inode>>,
    /// Keeps the view open.
    _view: Option<OwnedFd>,
}

impl Place {
    /// Both must lie on one mount: renames do not cross two views.
    pub fn open(dst: &Path, state: &Path) -> Place {
        let plain = || Place {
            dst: dst.to_path_buf(),
            state: state.to_path_buf(),
            typed_dst: dst.to_path_buf(),
            typed_state: state.to_path_buf(),
            view_is: None,
            id: inode(state),
            dst_id: OnceLock::new(),
            _view: None,
        };
        let Some(top) = common(dst, state) else {
            return plain();
        };
        let Ok(view) = tree::private_clone(&top) else {
            return plain();
        };
        let base = PathBuf::from(format!("/proc/self/fd/{}", view.as_raw_fd()));
        let (Ok(below_dst), Ok(below_state)) = (dst.strip_prefix(&top), state.strip_prefix(&top))
        else {
            return plain();
        };
        let place = Place {
            dst: base.join(below_dst),
            state: base.join(below_state),
            typed_dst: dst.to_path_buf(),
            typed_state: state.to_path_buf(),
            view_is: Some((show(&base), show(&top).trim_end_matches('/').to_owned())),
            id: inode(state),
            dst_id: OnceLock::new(),
            _view: Some(view),
        };
        // A mount between the common directory and the state is not in the view.
        if inode(&place.state).is_some() && inode(&place.state) == place.id {
            place
        } else {
            plain()
        }
    }

    /// A text with paths in it, as a person knows them.
    pub fn typed(&self, text: &str) -> String {
        match &self.view_is {
            // With the slash: another view's number may begin alike.
            Some((view, top)) => text.replace(&format!("{view}/"), &format!("{top}/")),
            None => text.to_owned(),
        }
    }

    /// Likewise the text of an error.
    pub fn typed_error(&self, error: RunError) -> RunError {
        match error {
            RunError::Usage(text) => RunError::Usage(self.typed(&text)),
            RunError::Busy(text) => RunError::Busy(self.typed(&text)),
            RunError::Unreachable(text) => RunError::Unreachable(self.typed(&text)),
            RunError::Failed(error) => {
                RunError::Failed(anyhow::anyhow!("{}", self.typed(&format!("{error:#}"))))
            }
            RunError::Held(hold) => RunError::Held(hold),
        }
    }

    /// A ui that hears of paths as a person knows them.
    pub fn typed_ui(&self, ui: &Arc<dyn Ui>) -> Arc<dyn Ui> {
        match &self.view_is {
            Some(view_is) => Arc::new(Typed {
                ui: ui.clone(),
                view_is: view_is.clone(),
            }),
            None => ui.clone(),
        }
    }

    /// DST is open: from now on it can get lost.
    pub fn opened(&self) {
        let _ = self.dst_id.set(inode(&self.dst));
    }

    /// What became of DST, with the way out, if the directory that a person knows is another one by now.
    pub fn dst_lost(&self) -> Option<String> {
        let now = inode(&self.typed_dst);
        if now == *self.dst_id.get()? {
            return None;
        }
        let what = match now {
            Some(_) => "another directory is there now",
            None => "it is gone",
        };
        Some(self.lost_text(what))
    }

    /// For people: what became of DST, with the way out.
    pub fn lost_text(&self, what: &str) -> String {
        let (dst, state) = (show(&self.typed_dst), show(&self.typed_state));
        format!("DST {dst}: {what}; bring it back, or move {state} away to begin anew")
    }

    /// Whether the state directory a person knows is still this one.
    pub fn still_there(&self) -> bool {
        self.id.is_some() && inode(&self.typed_state) == self.id
    }
}

struct Typed {
    ui: Arc<dyn Ui>,
    view_is: (String, String),
}

impl Ui for Typed {
    fn event(&self, event: Event) {
        let (view, top) = &self.view_is;
        let typed = |text: String| text.replace(&format!("{view}/"), &format!("{top}/"));
        self.ui.event(match event {
            Event::Notice(text) => Event::Notice(typed(text)),
            Event::Failed { path, reason } => Event::Failed {
                path,
                reason: typed(reason),
            },
            other => other,
        });
    }
    fn ask(&self, question: &str) -> bool {
        self.ui.ask(question)
    }
}

/// Inode and device.
pub type Inode = (u64, (u32, u32));

pub fn inode(path: &Path) -> Option<Inode> {
    let fd = crate::sys::open::dir_at_path(path).ok()?;
    let found = stat::fstat(&fd).ok()?;
    Some((found.ino, found.dev))
}

/// The deepest directory above both.
fn common(a: &Path, b: &Path) -> Option<PathBuf> {
    let (a, b) = (a.parent()?, b.parent()?);
    let mut top = PathBuf::new();
    for (x, y) in a.components().zip(b.components()) {
        if x != y {
            break;
        }
        top.push(x);
    }
    (!top.as_os_str().is_empty()).then_some(top)
}
