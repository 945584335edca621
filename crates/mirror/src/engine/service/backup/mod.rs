//! `fs_mirror serve`: many trees followed by one service, a process a tree.
//!
//! [`config`] and [`load`] read what is to be followed, [`supervisor`] keeps a process a tree and hands each its settings.
//! [`watch`] sees how they are from outside and tells it: [`alarms`], [`textfile`], [`deadman`].

pub mod alarms;
pub mod command;
pub mod config;
pub mod deadman;
pub mod hooks;
pub mod load;
pub mod offers;
pub mod supervisor;
mod teller;
pub mod textfile;
pub mod watch;

pub use command::user_of;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces a small file as a whole. Not flushed.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&new)?;
    file.write_all(bytes)?;
    drop(file);
    fs::rename(&new, path)
}
