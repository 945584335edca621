//! File systems of our own: a private mount namespace, images behind loop devices, kernel settings put back.
//!
//! A namespace belongs to a *thread* and what that thread starts (threads and programs), so tests beside it see
//! nothing. Make the [`Lab`] first, keep it and its images in that thread. Two things to know: `/proc/self/mountinfo`
//! shows the main thread's namespace (use `/proc/thread-self/mountinfo`, or [`in_private_namespace`], which gives a
//! whole process); and when the process is killed the namespace goes with it, mounts and loop devices included.

mod hosts;
mod image;
mod queue;

use std::fmt;
use std::marker::PhantomData;
use std::process::Command;

use rustix::mount::{MountPropagationFlags, mount_change};

pub use hosts::{Host, Net};
pub use image::{Fs, Image, ImageOptions};
pub use queue::QueueLimit;

/// Why a test can't run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Skip {}

/// A private mount namespace, of the thread that made it. Mounts are made by [`Image`].
#[derive(Debug)]
pub struct Lab {
    /// Not to be sent: another thread has another namespace.
    here: PhantomData<*const ()>,
}

impl Lab {
    /// Puts this thread into a mount namespace of its own. May be called again: namespaces nest.
    pub fn enter() -> Result<Lab, Skip> {
        if !crate::is_root() {
            return Err(Skip("needs root (a mount namespace)".into()));
        }
        crate::sys::unshare_mounts().map_err(|e| Skip(format!("no mount namespace: {e}")))?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private)
            .map_err(|e| Skip(format!("mounts cannot be made private: {e}")))?;
        Ok(Lab { here: PhantomData })
    }

    pub fn ext4(&self, size_mb: u64) -> Result<Image, Skip> {
        self.image(Fs::Ext4, size_mb)
    }
    /// Linux wants at least 300 MB for xfs; less is raised to that.
    pub fn xfs(&self, size_mb: u64) -> Result<Image, Skip> {
        self.image(Fs::Xfs, size_mb)
    }
    /// At least 128 MB.
    pub fn btrfs(&self, size_mb: u64) -> Result<Image, Skip> {
        self.image(Fs::Btrfs, size_mb)
    }
    pub fn tmpfs(&self, size_mb: u64) -> Result<Image, Skip> {
        self.image(Fs::Tmpfs, size_mb)
    }
    pub fn image(&self, fs: Fs, size_mb: u64) -> Result<Image, Skip> {
        Image::with(
            fs,
            &ImageOptions {
                size_mb,
                ..ImageOptions::default()
            },
        )
    }
    pub fn image_with(&self, fs: Fs, options: &ImageOptions) -> Result<Image, Skip> {
        Image::with(fs, options)
    }
    /// ext4 in RAM for benchmarks: the real code path, no disk. 1,500,000 inodes.
    pub fn ram(&self, size_gb: u64) -> Result<Image, Skip> {
        let options = ImageOptions {
            size_mb: size_gb * 1024,
            mkfs: vec!["-N".into(), "1500000".into()],
            ..ImageOptions::default()
        };
        Image::with(Fs::Ext4, &options)
    }
}

/// Set in a process that [`in_private_namespace`] started.
const INSIDE: &str = "TESTKIT_IN_NAMESPACE";

/// Runs `body` in a process that has a mount namespace for itself alone. `test` is the full name of the calling test
/// (as `cargo test -- --list` prints it): this very test is run again in a new process, where `body` is called.
///
/// ```ignore
/// #[test]
/// fn sees_its_own_mounts() {
///     in_private_namespace("module::sees_its_own_mounts", |lab| { ... });
/// }
/// ```
#[track_caller]
pub fn in_private_namespace(test: &str, body: impl FnOnce(&Lab)) {
    if std::env::var_os(INSIDE).is_some() {
        body(&Lab { here: PhantomData });
        return;
    }
    if !crate::is_root() {
        crate::skip!("needs root (a mount namespace)");
    }
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(e) => crate::skip!("the test program is not known: {e}"),
    };
    let mut command = Command::new(program);
    command
        .args([
            "--exact",
            test,
            "--include-ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(INSIDE, "1");
    let output = crate::sys::in_new_mounts(&mut command).output();
    let output = output.unwrap_or_else(|e| panic!("{test} can't be run in a namespace: {e}"));
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success(),
        "{test} in a namespace of its own: {}\n{text}",
        output.status
    );
    assert!(
        text.contains("1 passed"),
        "no test is called {test}\n{text}"
    );
    for line in text.lines().filter(|line| line.starts_with("skipped: ")) {
        crate::print_skip(&line["skipped: ".len()..]);
    }
}
