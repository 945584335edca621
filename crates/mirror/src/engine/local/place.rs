//! Where the copy is reached: through a private view of the mount it lies on, so that an unmount is not prevented.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::sys::{stat, tree};

/// DST and its state, as paths that stay good and block nobody. Everything is opened through these.
pub struct Place {
    pub dst: PathBuf,
    pub state: PathBuf,
    /// As the person knows them.
    typed_state: PathBuf,
    id: Option<(u64, (u32, u32))>,
    /// Keeps the view open.
    _view: Option<OwnedFd>,
}

impl Place {
    /// Both must lie on one mount: renames do not cross two views.
    pub fn open(dst: &Path, state: &Path) -> Place {
        let plain = || Place {
            dst: dst.to_path_buf(),
            state: state.to_path_buf(),
            typed_state: state.to_path_buf(),
            id: inode(state),
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
            typed_state: state.to_path_buf(),
            id: inode(state),
            _view: Some(view),
        };
        // A mount between the common directory and the state is not in the view.
        if inode(&place.state).is_some() && inode(&place.state) == place.id {
            place
        } else {
            plain()
        }
    }

    /// Whether the state directory a person knows is still this one.
    pub fn still_there(&self) -> bool {
        self.id.is_some() && inode(&self.typed_state) == self.id
    }
}

fn inode(path: &Path) -> Option<(u64, (u32, u32))> {
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
