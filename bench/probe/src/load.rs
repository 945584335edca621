//! Small changes in the background, and a checkout.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use testkit::rng::Rng;

const DIRS: u64 = 40;
const FILES: u64 = 40;

/// What [`run`] changes: 40 directories of 40 files.
pub fn prepare(src: &Path) -> anyhow::Result<()> {
    let mut rng = Rng::new(3);
    let mut bytes = [0; 2000];
    for dir in 0..DIRS {
        let below = src.join(format!("load/d{dir}"));
        fs::create_dir_all(&below)?;
        for file in 0..FILES {
            rng.fill(&mut bytes);
            fs::write(below.join(format!("f{file}")), bytes)?;
        }
    }
    Ok(())
}

/// New files, rewrites, log lines, unlinks and renames, `rate` a second at fixed times, until somebody kills us.
pub fn run(src: &Path, rate: u64) -> anyhow::Result<String> {
    let mut rng = Rng::new(7);
    let start = Instant::now();
    let mut bytes = vec![0; 8000];
    for number in 0u64.. {
        let dir = src.join(format!("load/d{}", rng.below(DIRS)));
        let file = dir.join(format!("f{}", rng.below(FILES)));
        let size = rng.below(8000) as usize;
        rng.fill(&mut bytes[..size]);
        // What is not there any more can't be changed: the next one will do.
        let _ = match rng.below(100) {
            0..40 => fs::write(dir.join(format!("n{number}")), &bytes[..size]),
            40..70 => fs::write(&file, &bytes[..size]),
            70..85 => fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(&file)
                .and_then(|mut log| log.write_all(b"one more line in the log\n")),
            85..95 => fs::remove_file(dir.join(format!("n{}", rng.below(number + 1))))
                .or_else(|_| fs::remove_file(&file)),
            _ => fs::rename(&file, dir.join(format!("r{number}"))),
        };
        let due = Duration::from_secs_f64((number + 1) as f64 / rate as f64);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    unreachable!()
}

/// Unlinks and makes anew with another content, as `git checkout` does, the first `files` files found below `dir`.
pub fn rewrite(dir: &Path, files: u64) -> anyhow::Result<String> {
    let mut rng = Rng::new(11);
    let (mut todo, mut left) = (vec![PathBuf::from(dir)], files);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            if meta.is_dir() {
                todo.push(path);
            } else if meta.is_file() && left > 0 {
                let mut bytes = vec![0; meta.size().clamp(64, 65536) as usize];
                rng.fill(&mut bytes);
                fs::remove_file(&path)?;
                fs::write(&path, bytes)?;
                left -= 1;
            }
        }
    }
    Ok(format!("{{\"files\": {}}}", files - left))
}
