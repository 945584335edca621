//! How long one change takes until it is right at the copy.
//!
//! Open loop: changes come at fixed times whether or not the ones before arrived, so a stall is not hidden. The
//! time starts before the change is made. "Right" means
//! the name is there with the source's size, mode, mtime in ns and bytes, and old names are gone; looked for every 0.2 ms.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use testkit::rng::Rng;

const LOOK_EVERY: Duration = Duration::from_micros(200);
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);
const FILES_IN_DIR: usize = 1000;
const KINDS: [&str; 9] = [
    "create",
    "modify",
    "append",
    "chmod",
    "rename",
    "unlink",
    "link switch",
    "mkdir + file",
    "rename dir of 1000",
];

/// Makes what rounds 0 to `rounds` will change, and what the load changes.
pub fn prepare(src: &Path, rounds: u64) -> anyhow::Result<String> {
    let mut rng = Rng::new(5);
    for round in 0..rounds {
        let dir = src.join(format!("latency/{round}"));
        fs::create_dir_all(dir.join("many"))?;
        for name in ["modify", "append", "chmod", "rename", "unlink"] {
            fs::write(dir.join(name), random(&mut rng))?;
        }
        symlink("release-1", dir.join("current"))?;
        for number in 0..FILES_IN_DIR {
            fs::write(dir.join(format!("many/f{number}")), number.to_string())?;
        }
    }
    crate::load::prepare(src)?;
    Ok("{}".into())
}

pub fn run(src: &Path, dst: &Path, rounds: Range<u64>, every: Duration) -> anyhow::Result<String> {
    let mut rng = Rng::new(rounds.start + 17);
    let mut todo = rounds.flat_map(|round| KINDS.map(|kind| (round, kind)));
    let mut next = todo.next();
    let mut waiting: Vec<(&str, Instant, Check)> = Vec::new();
    let mut done: Vec<(&str, Option<f64>)> = Vec::new();
    let mut due = Instant::now() + every;
    while next.is_some() || !waiting.is_empty() {
        if let Some((round, kind)) = next
            && Instant::now() >= due
        {
            let below = PathBuf::from(format!("latency/{round}"));
            let start = Instant::now();
            let check = change(kind, &src.join(&below), &dst.join(&below), &mut rng)?;
            waiting.push((kind, start, check));
            due += every;
            next = todo.next();
        }
        waiting.retain(|(kind, start, check)| {
            let right = check.right();
            let took = start.elapsed();
            if right || took > GIVE_UP_AFTER {
                done.push((kind, right.then_some(took.as_secs_f64())));
            }
            !right && took <= GIVE_UP_AFTER
        });
        std::thread::sleep(LOOK_EVERY);
    }
    let all: Vec<String> = done
        .iter()
        .map(|(kind, took)| {
            let took = took.map_or("null".into(), |s| format!("{s:.6}"));
            format!("[\"{kind}\", {took}]")
        })
        .collect();
    Ok(format!("{{\"changes\": [{}]}}", all.join(", ")))
}

/// What must hold at the copy.
enum Check {
    File {
        gone: Option<PathBuf>,
        path: PathBuf,
        source: fs::Metadata,
        bytes: Vec<u8>,
    },
    Gone(PathBuf),
    Link(PathBuf, &'static str),
    Dir {
        gone: PathBuf,
        path: PathBuf,
    },
}

impl Check {
    fn right(&self) -> bool {
        match self {
            Check::File {
                gone,
                path,
                source,
                bytes,
            } => {
                let facts = |m: &fs::Metadata| (m.mode(), m.size(), m.mtime(), m.mtime_nsec());
                gone.as_ref().is_none_or(|gone| is_gone(gone))
                    && fs::symlink_metadata(path).is_ok_and(|m| facts(&m) == facts(source))
                    && fs::read(path).is_ok_and(|found| found == *bytes)
            }
            Check::Gone(path) => is_gone(path),
            Check::Link(path, target) => {
                fs::read_link(path).is_ok_and(|found| found == Path::new(target))
            }
            Check::Dir { gone, path } => {
                is_gone(gone)
                    && fs::read_dir(path).is_ok_and(|entries| entries.count() == FILES_IN_DIR)
            }
        }
    }
}

fn is_gone(path: &Path) -> bool {
    matches!(fs::symlink_metadata(path), Err(e) if e.kind() == io::ErrorKind::NotFound)
}

fn random(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    rng.fill(&mut bytes);
    bytes
}

/// Changes something in `src`; what must then be true in `dst`.
fn change(kind: &str, src: &Path, dst: &Path, rng: &mut Rng) -> anyhow::Result<Check> {
    let file = |name: &str, gone: Option<&str>| -> anyhow::Result<Check> {
        Ok(Check::File {
            gone: gone.map(|name| dst.join(name)),
            path: dst.join(name),
            source: fs::symlink_metadata(src.join(name))?,
            bytes: fs::read(src.join(name))?,
        })
    };
    match kind {
        "create" => {
            fs::write(src.join("create"), random(rng))?;
            file("create", None)
        }
        "modify" => {
            let mut open = fs::OpenOptions::new()
                .write(true)
                .open(src.join("modify"))?;
            open.write_all(&random(rng))?;
            drop(open);
            file("modify", None)
        }
        "append" => {
            let mut open = fs::OpenOptions::new()
                .append(true)
                .open(src.join("append"))?;
            open.write_all(b"one more line\n")?;
            drop(open);
            file("append", None)
        }
        "chmod" => {
            fs::set_permissions(src.join("chmod"), fs::Permissions::from_mode(0o600))?;
            file("chmod", None)
        }
        "rename" => {
            fs::rename(src.join("rename"), src.join("renamed"))?;
            file("renamed", Some("rename"))
        }
        "unlink" => {
            fs::remove_file(src.join("unlink"))?;
            Ok(Check::Gone(dst.join("unlink")))
        }
        "link switch" => {
            symlink("release-2", src.join(".current"))?;
            fs::rename(src.join(".current"), src.join("current"))?;
            Ok(Check::Link(dst.join("current"), "release-2"))
        }
        "mkdir + file" => {
            fs::create_dir_all(src.join("new/a/b"))?;
            fs::write(src.join("new/a/b/file"), random(rng))?;
            file("new/a/b/file", None)
        }
        "rename dir of 1000" => {
            fs::rename(src.join("many"), src.join("moved"))?;
            Ok(Check::Dir {
                gone: dst.join("many"),
                path: dst.join("moved"),
            })
        }
        other => anyhow::bail!("there is no change {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_right_where_it_was_made() {
        let top = std::env::temp_dir().join(format!("probe-latency-{}", std::process::id()));
        prepare(&top, 1).unwrap();
        let told = run(&top, &top, 0..1, Duration::from_millis(1)).unwrap();
        assert!(KINDS.iter().all(|kind| told.contains(kind)), "{told}");
        assert!(!told.contains("null"), "{told}");
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn a_change_is_not_right_before_it_arrived() {
        let top = std::env::temp_dir().join(format!("probe-early-{}", std::process::id()));
        let (src, dst) = (top.join("src"), top.join("dst"));
        for dir in [&src, &dst] {
            prepare(dir, 1).unwrap();
        }
        let mut rng = Rng::new(1);
        let below = Path::new("latency/0");
        for kind in KINDS {
            let check = change(kind, &src.join(below), &dst.join(below), &mut rng).unwrap();
            assert!(!check.right(), "{kind}");
        }
        fs::remove_dir_all(&top).unwrap();
    }
}
