//! Inodes of the copy that somebody's snapshots of links show too: never changed in place, by whatever run.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

fn chmod(path: PathBuf, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// What a snapshot shows.
#[track_caller]
fn shown(path: &Path) -> (u64, u32, i64, i64, u32) {
    let meta = path.symlink_metadata().unwrap();
    let (ino, mode) = (meta.ino(), meta.mode());
    (ino, mode, meta.mtime(), meta.mtime_nsec(), meta.uid())
}

/// As `cp -al` makes one.
fn snapshot(pair: &Pair, name: &str) -> PathBuf {
    let to = pair.state.join(name);
    let copied = std::process::Command::new("cp")
        .arg("-al")
        .arg(&pair.dst)
        .arg(&to)
        .status()
        .unwrap();
    assert!(copied.success());
    to
}

fn ino(path: PathBuf) -> u64 {
    path.symlink_metadata().unwrap().ino()
}

/// How a process ended before the one that changes something.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Clean,
    /// Killed, with links and files made that the durable rows do not know of.
    Killed,
    /// The same, and between two names.
    InLimbo,
}

#[test]
fn no_first_batch_changes_an_inode_with_foreign_links() {
    for end in [End::Clean, End::Killed, End::InLimbo] {
        println!("{end:?}");
        let mut pair = pair();
        pair.mkdir("dir");
        for name in ["dir/file", "ours", "both"] {
            pair.write(name, b"content");
        }
        symlink("nowhere", pair.src("symlink")).unwrap();
        pair.sync();
        pair.applier().checkpoint().unwrap();
        if end != End::Clean {
            std::fs::hard_link(pair.src("ours"), pair.src("dir/ours")).unwrap();
            std::fs::hard_link(pair.src("both"), pair.src("dir/both")).unwrap();
            pair.write("made", b"since");
            pair.write("made alone", b"since");
            pair.step();
        }
        let kept: Vec<&str> = match end {
            End::Clean => vec!["ours"],
            _ => vec!["ours", "made alone"],
        };
        let inodes: Vec<u64> = kept.iter().map(|name| ino(pair.in_dst(name))).collect();
        let yesterday = snapshot(&pair, "yesterday");
        for name in ["ours", "dir/ours", "made alone"] {
            if yesterday.join(name).exists() {
                std::fs::remove_file(yesterday.join(name)).unwrap();
            }
        }
        if end == End::InLimbo {
            for name in ["ours", "both"] {
                let id = pair.source.id(name).0;
                let limbo = pair
                    .state
                    .join(format!("staging/limbo/{id:016x}-{id:016x}"));
                std::fs::hard_link(pair.in_dst(name), limbo).unwrap();
            }
        }
        let names = ["dir/file", "both", "dir/both", "made", "symlink"];
        let there = names.map(|name| yesterday.join(name));
        let there: Vec<&PathBuf> = there
            .iter()
            .filter(|path| path.symlink_metadata().is_ok())
            .collect();
        let before: Vec<_> = there.iter().map(|path| shown(path)).collect();
        pair.crash();
        for name in ["dir/file", "ours", "both", "made", "made alone"] {
            if pair.src(name).exists() {
                chmod(pair.src(name), 0o611);
            }
        }
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(pair.src("symlink"), Some(12), None).unwrap();
        }
        let records = pair.source.look();
        pair.records.extend(records);
        let outcome = pair.catch_up();
        assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
        assert!(outcome.moved_aside.is_empty(), "{:?}", outcome.moved_aside);
        pair.check();
        let after: Vec<_> = there.iter().map(|path| shown(path)).collect();
        assert_eq!(after, before, "{there:?}");
        // Links of our own, half done or not, are no reason to make anything anew.
        let now: Vec<u64> = kept.iter().map(|name| ino(pair.in_dst(name))).collect();
        assert_eq!(now, inodes);
    }
}

/// As many links as the source has, but one of them is a snapshot's.
#[test]
fn links_are_counted_where_they_are() {
    let mut pair = pair();
    pair.write("a", b"content");
    std::fs::hard_link(pair.src("a"), pair.src("b")).unwrap();
    let snapshot = pair.state.join("snapshot");
    std::fs::write(pair.in_dst("a"), b"content").unwrap();
    std::fs::write(pair.in_dst("b"), b"content").unwrap();
    std::fs::hard_link(pair.in_dst("a"), &snapshot).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&snapshot)
        .unwrap()
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    let before = shown(&snapshot);
    pair.sync();
    assert_eq!(shown(&snapshot), before);
    // And later, when somebody took a name away by hand.
    std::fs::remove_file(&snapshot).unwrap();
    std::fs::rename(pair.in_dst("b"), &snapshot).unwrap();
    let before = shown(&snapshot);
    chmod(pair.src("a"), 0o611);
    pair.sync();
    assert_eq!(shown(&snapshot), before);
}

#[test]
fn repair_leaves_a_snapshot_as_it_is() {
    let mut pair = pair();
    pair.write("file", b"content");
    pair.sync();
    let yesterday = snapshot(&pair, "yesterday");
    chmod(pair.in_dst("file"), 0o611);
    let before = shown(&yesterday.join("file"));
    let mut found = Vec::new();
    pair.applier().verify(true, &mut |d| found.push(d)).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    let Pair {
        applier, source, ..
    } = &mut pair;
    let repaired = applier.as_mut().unwrap().repair(&found, &source.contents);
    assert!(repaired.unwrap().failed.is_empty());
    pair.check();
    assert_eq!(shown(&yesterday.join("file")), before);
}
