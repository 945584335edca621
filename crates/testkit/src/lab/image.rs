//! One file system, mounted on a directory of its own: an image file in a tmpfs, behind a loop device.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::Skip;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fs {
    Ext4,
    Xfs,
    Btrfs,
    Tmpfs,
}

impl Fs {
    pub fn name(self) -> &'static str {
        match self {
            Fs::Ext4 => "ext4",
            Fs::Xfs => "xfs",
            Fs::Btrfs => "btrfs",
            Fs::Tmpfs => "tmpfs",
        }
    }
    fn size_mb_min(self) -> u64 {
        match self {
            Fs::Ext4 => 8,
            Fs::Xfs => 300,
            Fs::Btrfs => 128,
            Fs::Tmpfs => 1,
        }
    }
    /// Options that make it small, quick to make, and done with its work when mkfs is done.
    fn mkfs(self) -> &'static [&'static str] {
        match self {
            Fs::Ext4 => &[
                "mkfs.ext4",
                "-q",
                "-F",
                "-b",
                "4096",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
            ],
            Fs::Xfs => &["mkfs.xfs", "-q", "-f", "-K"],
            Fs::Btrfs => &["mkfs.btrfs", "-q", "-f", "-K"],
            Fs::Tmpfs => &[],
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct ImageOptions {
    pub size_mb: u64,
    /// How much of the image the medium can really hold: beyond it writes fail with EIO. `None`: all of it.
    pub backing_mb: Option<u64>,
    /// More arguments of mkfs, before the image.
    pub mkfs: Vec<String>,
    /// Mount options of the file system (`data=journal`, `nr_inodes=100`).
    pub mount: String,
}

/// A mounted file system. Dropping it unmounts it; its loop device and its memory go with it.
#[derive(Debug)]
pub struct Image {
    fs: Fs,
    options: String,
    mounted: bool,
    /// Holds `mnt` (the mount point) and `ram` (a tmpfs with the image file and the device node).
    base: tempfile::TempDir,
}

impl Image {
    pub(super) fn with(fs: Fs, options: &ImageOptions) -> Result<Image, Skip> {
        let io = |what: &str, e: io::Error| Skip(format!("{}: {what}: {e}", fs.name()));
        let base = tempfile::Builder::new()
            .prefix("testkit-lab-")
            .tempdir()
            .map_err(|e| io("no directory", e))?;
        let mut image = Image {
            fs,
            options: options.mount.clone(),
            mounted: false,
            base,
        };
        let size_mb = options.size_mb.max(fs.size_mb_min());
        fs::create_dir(image.path()).map_err(|e| io("no directory", e))?;
        fs::create_dir(image.ram()).map_err(|e| io("no directory", e))?;
        if fs == Fs::Tmpfs {
            let more = if options.mount.is_empty() {
                String::new()
            } else {
                format!(",{}", options.mount)
            };
            image.options = format!("size={size_mb}m,mode=755{more}");
        } else {
            let ram_mb = options.backing_mb.unwrap_or(size_mb + 1);
            mount_at(
                "ram",
                &image.ram(),
                "tmpfs",
                MountFlags::empty(),
                &format!("size={ram_mb}m"),
            )
            .map_err(|e| io("no memory for the image", e))?;
            let file = File::create(image.file()).map_err(|e| io("no image file", e))?;
            file.set_len(size_mb << 20)
                .map_err(|e| io("no image file", e))?;
            let (program, arguments) = fs.mkfs().split_first().unwrap_or((&"mkfs", &[]));
            let made = Command::new(program)
                .args(arguments)
                .args(&options.mkfs)
                .arg(image.file())
                .output()
                .map_err(|e| io(program, e))?;
            if !made.status.success() {
                return Err(Skip(format!(
                    "{program}: {}",
                    String::from_utf8_lossy(&made.stderr).trim()
                )));
            }
        }
        image.mount().map_err(|e| io("not mounted", e))?;
        if fs == Fs::Ext4 {
            let _ = fs::remove_dir(image.path().join("lost+found"));
        }
        Ok(image)
    }

    pub fn fs(&self) -> Fs {
        self.fs
    }
    /// The mount point.
    pub fn path(&self) -> PathBuf {
        self.base.path().join("mnt")
    }
    /// The image file (not of a tmpfs). Unmount before it is read with a tool.
    pub fn file(&self) -> PathBuf {
        self.ram().join("image")
    }
    fn ram(&self) -> PathBuf {
        self.base.path().join("ram")
    }
    /// A directory inside, created when it is not there.
    pub fn dir(&self, name: &str) -> io::Result<PathBuf> {
        let dir = self.path().join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Mounts it again after [`Image::unmount`] (a tmpfs comes back empty).
    pub fn mount(&mut self) -> io::Result<()> {
        let (fs, options) = (self.fs.name(), self.options.clone());
        if self.fs == Fs::Tmpfs {
            mount_at("tmpfs", &self.path(), fs, MountFlags::NODEV, &options)?;
        } else {
            self.wait_free()?;
            let (device, node) = self.attach()?;
            // Whoever writes to all he finds must not come by a device: a loop device may be another test's disk.
            let flags = MountFlags::RELATIME | MountFlags::NODEV;
            mount_at(&node, &self.path(), fs, flags, &options)?;
            // From here the mount alone keeps the loop device, which goes when it goes.
            drop(device);
        }
        self.mounted = true;
        Ok(())
    }

    /// Fails with EBUSY while anybody uses it.
    pub fn unmount(&mut self) -> io::Result<()> {
        unmount(self.path(), UnmountFlags::empty())?;
        self.mounted = false;
        Ok(())
    }

    pub fn remount(&mut self, read_only: bool) -> io::Result<()> {
        let flags = if read_only {
            MountFlags::RDONLY
        } else {
            MountFlags::empty()
        };
        Ok(rustix::mount::mount_remount(self.path(), flags, c"")?)
    }

    /// Cuts the file system off its medium, as a power cut does: what is not flushed is lost. Then the file system
    /// answers EIO; `unmount` and `mount` bring it back as after a reboot. ext4 and xfs.
    pub fn power_cut(&self) -> io::Result<()> {
        crate::sys::shutdown(File::open(self.path())?, 2)
    }

    /// What the file system's own checker finds wrong, or `None`. Call it while unmounted.
    pub fn check(&self) -> io::Result<Option<String>> {
        self.wait_free()?;
        let line: &[&str] = match self.fs {
            Fs::Ext4 => &["e2fsck", "-fn"],
            Fs::Xfs => &["xfs_repair", "-n"],
            Fs::Btrfs => &["btrfs", "check", "--readonly"],
            Fs::Tmpfs => return Ok(None),
        };
        let output = Command::new(line[0])
            .args(&line[1..])
            .arg(self.file())
            .output()?;
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok((!output.status.success()).then_some(text))
    }

    /// Waits until nobody has the file system mounted any more, privately or unseen: a second mount of the same image
    /// would destroy it. A daemon may take a moment to let go.
    pub fn wait_free(&self) -> io::Result<()> {
        let file = self.file();
        let end = Instant::now() + Duration::from_secs(20);
        let mut holder = backed_by(&file);
        while holder.is_some() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
            holder = backed_by(&file);
        }
        match holder {
            Some(device) => Err(io::Error::other(format!(
                "{} is still in use by {device}",
                file.display()
            ))),
            None => Ok(()),
        }
    }

    /// A free loop device with the image behind it. The device is let go when its last user closes it.
    fn attach(&self) -> io::Result<(File, PathBuf)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.file())?;
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")?;
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let number = crate::sys::loop_free(control.as_fd())?;
            let node = self.loop_node(number)?;
            // Others look for free devices too: a device taken meanwhile is EBUSY, one removed meanwhile ENXIO.
            let device = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_CLOEXEC)
                .open(&node);
            let attached = device.and_then(|device| {
                crate::sys::loop_attach(device.as_fd(), file.as_fd())?;
                Ok(device)
            });
            match attached {
                Ok(device) => return Ok((device, node)),
                Err(e) if Instant::now() > end => return Err(e),
                Err(e)
                    if matches!(
                        e.raw_os_error(),
                        Some(libc::EBUSY | libc::ENXIO | libc::ENOENT)
                    ) =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// A device node of our own: `/dev` may have none for this number.
    fn loop_node(&self, number: u32) -> io::Result<PathBuf> {
        let text = fs::read_to_string(format!("/sys/block/loop{number}/dev"))
            .unwrap_or(format!("7:{number}"));
        let (major, minor) = text.trim().split_once(':').unwrap_or(("7", "0"));
        let (major, minor) = (major.parse().unwrap_or(7), minor.parse().unwrap_or(number));
        let node = self.ram().join(format!("loop{number}"));
        match mknodat(
            CWD,
            &node,
            FileType::BlockDevice,
            Mode::from_raw_mode(0o600),
            makedev(major, minor),
        ) {
            Ok(()) | Err(Errno::EXIST) => Ok(node),
            Err(e) => Err(e.into()),
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Detaching also works while somebody still has a file open; memory and device go when that ends.
        if self.mounted {
            let _ = unmount(self.path(), UnmountFlags::DETACH);
        }
        if self.fs != Fs::Tmpfs {
            let _ = unmount(self.ram(), UnmountFlags::DETACH);
        }
    }
}

fn mount_at(
    source: impl AsRef<OsStr>,
    at: &Path,
    fs: &str,
    flags: MountFlags,
    options: &str,
) -> io::Result<()> {
    let options = CString::new(options)?;
    Ok(mount(source.as_ref(), at, fs, flags, options.as_c_str())?)
}

/// The loop device that has this file behind it.
fn backed_by(file: &Path) -> Option<String> {
    let devices = std::fs::read_dir("/sys/block").ok()?.flatten();
    devices
        .map(|device| device.path())
        .filter(|device| {
            std::fs::read(device.join("loop/backing_file"))
                .is_ok_and(|text| text.trim_ascii_end() == file.as_os_str().as_bytes())
        })
        .find_map(|device| Some(device.file_name()?.to_string_lossy().into_owned()))
}
