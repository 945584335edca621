//! The least a copy of regular files can cost in one thread: read, create, write, owner, mode, time. No links,
//! attributes, staging or flushes: a floor to measure against, not a mirror.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};

pub fn copy(src: &Path, dst: &Path) -> anyhow::Result<String> {
    let start = Instant::now();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let a = rustix::fs::openat(CWD, src, flags, Mode::empty()).context("cannot open SRC")?;
    let b = rustix::fs::openat(CWD, dst, flags, Mode::empty()).context("cannot open DST")?;
    let mut files = 0;
    let mut buffer = vec![0; 1 << 20];
    directory(&a, &b, &mut buffer, &mut files)?;
    Ok(format!(
        "{{\"files\": {files}, \"seconds\": {:.6}}}",
        start.elapsed().as_secs_f64()
    ))
}

fn directory(
    a: &OwnedFd,
    b: &OwnedFd,
    buffer: &mut [u8],
    files: &mut u64,
) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for entry in Dir::read_from(a)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = rustix::fs::statat(a, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(b, name, Mode::from_raw_mode(stat.st_mode))?;
                let below = rustix::fs::openat(a, name, flags, Mode::empty())?;
                let copy = rustix::fs::openat(b, name, flags, Mode::empty())?;
                directory(&below, &copy, buffer, files)?;
            }
            FileType::RegularFile => {
                let from =
                    rustix::fs::openat(a, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
                let to = rustix::fs::openat(
                    b,
                    name,
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC,
                    Mode::RUSR | Mode::WUSR,
                )?;
                loop {
                    let got = rustix::io::read(&from, &mut *buffer)?;
                    if got == 0 {
                        break;
                    }
                    rustix::io::write(&to, &buffer[..got])?;
                }
                rustix::fs::fchown(
                    &to,
                    Some(Uid::from_raw(stat.st_uid)),
                    Some(Gid::from_raw(stat.st_gid)),
                )?;
                rustix::fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode))?;
                let time = Timespec {
                    tv_sec: stat.st_mtime,
                    tv_nsec: stat.st_mtime_nsec as _,
                };
                let times = Timestamps {
                    last_access: time,
                    last_modification: time,
                };
                rustix::fs::futimens(&to, &times)?;
                *files += 1;
            }
            _ => {}
        }
    }
    Ok(())
}
