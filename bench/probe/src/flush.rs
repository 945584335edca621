//! What one flush costs on a medium: without it no durable figure can be judged.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;

const TIMES: usize = 50;

/// Appends 4 KiB and flushes, fifty times.
pub fn measure(dir: &Path) -> anyhow::Result<String> {
    let path = dir.join(".probe-flush");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .with_context(|| format!("cannot write in {}", dir.display()))?;
    let mut times = Vec::new();
    for _ in 0..TIMES {
        file.write_all(&[0x5a; 4096])?;
        let start = Instant::now();
        file.sync_data()?;
        times.push(start.elapsed().as_secs_f64());
    }
    std::fs::remove_file(&path)?;
    times.sort_by(f64::total_cmp);
    Ok(format!(
        "{{\"median_s\": {:.6}, \"min_s\": {:.6}, \"max_s\": {:.6}}}",
        times[TIMES / 2],
        times[0],
        times[TIMES - 1]
    ))
}
