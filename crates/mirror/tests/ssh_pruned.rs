//! A worker keeps its log within its limits, and whoever needs more of it gets the tree whole.

mod ssh_support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ssh_support::*;

/// A worker whose log may take 256 KiB.
fn bed() -> Bed {
    let bed = Bed::new();
    let serve = format!(
        "exec {MIRRORD} stdio --tree {} --log-max 256K",
        bed.src().display()
    );
    bed.script(&serve);
    bed
}

fn worker_log(bed: &Bed) -> PathBuf {
    let mut states = fs::read_dir(bed.states()).unwrap();
    states.next().unwrap().unwrap().path().join("log")
}

fn segments(log: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(log)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Changes until all of the log is gone that is there now.
fn churn_until_pruned(bed: &Bed) {
    let log = worker_log(bed);
    let last = segments(&log).pop();
    let mut round = 0;
    bed.wait("the log is pruned", || {
        round += 1;
        for n in 0..400 {
            fs::write(bed.src().join(format!("churn/{n}")), format!("{round} {n}")).unwrap();
        }
        segments(&log).first() > last.as_ref()
    });
}

#[test]
fn the_log_is_pruned_and_the_tree_comes_whole() {
    let bed = bed();
    bed.populate(150, 11);
    fs::create_dir(bed.src().join("churn")).unwrap();
    fs::write(bed.src().join("large"), vec![7u8; 3 << 20]).unwrap();
    fs::hard_link(bed.src().join("large"), bed.src().join("churn/again")).unwrap();
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    churn_until_pruned(&bed);
    // Somebody new.
    let other = bed.path("other");
    let mut second = bed.mirror_to(&other, &[]);
    second.wait_stderr("equal: ", LONG).unwrap();
    bed.equal_to(&other);
    fs::write(bed.src().join("live"), "live").unwrap();
    fs::rename(bed.src().join("churn"), bed.src().join("moved")).unwrap();
    bed.equal_to(&other);
    stop(second);
    // It goes on from there.
    let (code, said) = ended(bed.mirror_to(&other, &["--once"]));
    assert!(code == 0 && !said.contains("compared again"), "{said}");
    bed.equal_to(&other);
    fs::rename(bed.src().join("moved"), bed.src().join("churn")).unwrap();
    // The one that was away for too long compares; what is equal stays.
    let inode = |path: &str| fs::metadata(bed.dst().join(path)).unwrap().ino();
    let before = (inode("tree"), inode("large"));
    let mut would = bed.mirror(&["--dry-run"]);
    assert_eq!(
        would.wait(LONG).unwrap().code(),
        Some(0),
        "{}",
        would.stderr()
    );
    assert!(would.stdout().contains("new churn/7"), "{}", would.stdout());
    assert!(!would.stdout().contains("large"), "{}", would.stdout());
    let (code, said) = bed.mirror_once(&[]);
    assert!(code == 0 && said.contains("compared again"), "{said}");
    assert_eq!((inode("tree"), inode("large")), before);
    bed.equal();
}

#[test]
fn killed_while_the_tree_is_made_it_begins_again() {
    let bed = bed();
    bed.populate(400, 12);
    fs::create_dir(bed.src().join("churn")).unwrap();
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    churn_until_pruned(&bed);
    let other = bed.path("other");
    for _ in 0..3 {
        let mut follower = bed.mirror_to(&other, &[]);
        bed.wait("it has begun", || {
            fs::read_dir(&other).is_ok_and(|mut entries| entries.next().is_some())
        });
        follower.kill().unwrap();
    }
    let (code, said) = ended(bed.mirror_to(&other, &["--once"]));
    assert_eq!(code, 0, "{said}");
    bed.equal_to(&other);
}

#[test]
fn what_a_follower_still_needs_is_kept_for_a_while() {
    let bed = bed();
    fs::create_dir(bed.src().join("churn")).unwrap();
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    let log = worker_log(&bed);
    let (first, size) = (segments(&log).remove(0), |log: &Path| -> u64 {
        let names = segments(log);
        let sizes = names
            .iter()
            .map(|name| fs::metadata(log.join(name)).map_or(0, |m| m.len()));
        sizes.sum()
    });
    // Over the limit, and far from four times the limit.
    let mut round = 0;
    bed.wait("the log is over its limit", || {
        round += 1;
        // Slowly: what capture has not seen yet is not in the log.
        std::thread::sleep(std::time::Duration::from_millis(50));
        for n in 0..40 {
            fs::write(bed.src().join(format!("churn/{n}")), format!("{round} {n}")).unwrap();
        }
        size(&log) > 400 << 10
    });
    std::thread::sleep(std::time::Duration::from_secs(4));
    fs::write(bed.src().join("one more"), "").unwrap();
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(segments(&log).first(), Some(&first), "{}", size(&log));
    let (code, said) = bed.mirror_once(&[]);
    assert!(code == 0 && !said.contains("compared again"), "{said}");
    bed.equal();
    // Now it may go, to what the limit allows.
    bed.wait("the log is pruned", || {
        fs::write(bed.src().join("again"), format!("{round}")).unwrap();
        round += 1;
        std::thread::sleep(std::time::Duration::from_millis(500));
        let mut follower = bed.mirror(&["--once"]);
        follower.wait(LONG).unwrap();
        segments(&log).first() != Some(&first)
    });
    bed.equal();
}

/// Bytes that the far end has written to the link since it was asked last, in connections that are over.
fn sent(bed: &Bed, count: &Path) -> u64 {
    // A line for each connection that began.
    let lines = || fs::read_to_string(count).unwrap_or_default();
    bed.wait("all connections are counted", || {
        let text = lines();
        let words = |word: &str| text.lines().filter(|line| line.contains(word)).count();
        words("began") > 0 && words("began") == words("sent")
    });
    let bytes = lines()
        .lines()
        .filter_map(|line| line.strip_prefix("sent ")?.parse::<u64>().ok())
        .sum();
    fs::remove_file(count).unwrap();
    bytes
}

#[test]
fn who_was_away_too_long_gets_what_differs() {
    let bed = bed();
    // What comes over the link is counted on its way.
    let count = bed.path("sent");
    let serve = format!(
        "echo began >> {0}\nexec bash -c '{MIRRORD} stdio --tree {1} --log-max 256K | tee >(echo sent $(wc -c) >> {0})'",
        count.display(),
        bed.src().display()
    );
    bed.script(&serve);
    for dir in 0..40 {
        let dir = bed.src().join(format!("tree/{dir}"));
        fs::create_dir_all(&dir).unwrap();
        for n in 0..150 {
            fs::write(dir.join(format!("file with a name of its own {n}")), "").unwrap();
        }
    }
    fs::create_dir(bed.src().join("churn")).unwrap();
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    churn_until_pruned(&bed);
    fs::write(bed.src().join("tree/7/one more"), "one more").unwrap();
    fs::write(
        bed.src().join("tree/9/file with a name of its own 3"),
        "other",
    )
    .unwrap();
    fs::remove_file(bed.src().join("tree/11/file with a name of its own 3")).unwrap();
    fs::rename(bed.src().join("tree/12"), bed.src().join("tree/moved")).unwrap();
    let whole = {
        sent(&bed, &count);
        let (code, said) = ended(bed.mirror_to(&bed.path("other"), &["--once"]));
        assert_eq!(code, 0, "{said}");
        sent(&bed, &count)
    };
    let (code, said) = bed.mirror_once(&[]);
    let differing = sent(&bed, &count);
    assert!(code == 0 && said.contains("compared again"), "{said}");
    assert!(
        said.contains("parts of the list of the tree are not known here"),
        "{said}"
    );
    bed.equal();
    assert!(
        differing * 4 < whole,
        "{differing} of {whole} bytes\n{said}"
    );
    // And it goes on from there.
    fs::write(bed.src().join("live"), "live").unwrap();
    let (code, said) = bed.mirror_once(&[]);
    assert!(code == 0 && !said.contains("compared again"), "{said}");
    bed.equal();
}
