//! A tree of very many tiny files: what counts is their number.

use std::fs;
use std::path::Path;

const FILES_PER_DIR: u64 = 50;

pub fn make(dir: &Path, files: u64) -> anyhow::Result<String> {
    for number in 0..files.div_ceil(FILES_PER_DIR) {
        let below = dir.join(format!("{:03}/d{number}", number % 200));
        fs::create_dir_all(&below)?;
        for file in number * FILES_PER_DIR..files.min((number + 1) * FILES_PER_DIR) {
            fs::write(below.join(format!("file-{file}.txt")), format!("{file}\n"))?;
        }
    }
    Ok(format!("{{\"files\": {files}}}"))
}
