//! The control socket. (to come)

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::Control;

/// Serves until dropped.
pub struct Handle {}

/// Opens `control.sock` in the state directory, whose [`super::StateLock`] the caller holds.
pub fn serve(state_dir: &Path, control: Arc<dyn Control>) -> io::Result<Handle> {
    let _ = (state_dir, control);
    Ok(Handle {})
}
