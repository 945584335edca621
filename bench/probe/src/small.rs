//! How soon new small files are at the copy, at fixed times (a stall is not hidden).

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_micros(200);
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

pub fn run(
    src: &Path,
    dst: &Path,
    prefix: &str,
    count: u64,
    every: Duration,
) -> anyhow::Result<String> {
    let mut waiting = Vec::new();
    let mut took = Vec::new();
    let mut made = 0;
    let mut due = Instant::now() + every;
    while made < count || !waiting.is_empty() {
        if made < count && Instant::now() >= due {
            let name = format!("{prefix}{made}");
            let start = Instant::now();
            fs::write(src.join(&name), &name)?;
            waiting.push((dst.join(&name), start));
            made += 1;
            due += every;
        }
        waiting.retain(|(path, start)| {
            let there = fs::symlink_metadata(path).is_ok();
            let elapsed = start.elapsed();
            if there {
                took.push(format!("{:.6}", elapsed.as_secs_f64()));
            } else if elapsed > GIVE_UP_AFTER {
                took.push("null".into());
            }
            !there && elapsed <= GIVE_UP_AFTER
        });
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(format!("{{\"took\": [{}]}}", took.join(", ")))
}
