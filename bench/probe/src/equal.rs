//! Waiting until a copy looks like its source, and when it last changed.
//!
//! "Looks like": names, types, modes, owners, sizes, link targets and times in ns, no contents, so that a look is quick
//! and takes little from the tool that is measured. `treecmp` says afterwards whether the copy really is exact.
//! The moment a copy was ready is its newest inode change once it is equal and stays so: exact, and independent of how
//! often we look.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};

const LOOK: AtFlags = AtFlags::SYMLINK_NOFOLLOW;

/// A name, from the root down.
type Place = Vec<CString>;

#[derive(Default)]
struct Pass {
    loose: bool,
    entries: u64,
    newest_ns: i128,
    /// The first difference ends the pass.
    different: Option<Place>,
    place: Place,
}

/// `loose`: times of directories and symlinks don't count, for tools that don't keep them.
pub fn wait(src: &Path, dst: &Path, limit: Duration, loose: bool) -> anyhow::Result<String> {
    let start = Instant::now();
    let mut before = None;
    loop {
        let begun = Instant::now();
        let pass = compare(src, dst, loose);
        let took = begun.elapsed();
        let late = start.elapsed() >= limit;
        match &pass.different {
            // Equal twice with nothing changed in between.
            None if late || before == Some(pass.newest_ns) => return Ok(report(&pass, start)),
            None => before = Some(pass.newest_ns),
            Some(_) if late => return Ok(report(&pass, start)),
            Some(place) => {
                before = None;
                // Cheap while the difference found lasts.
                while start.elapsed() < limit && differs_at(src, dst, place, loose) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
        // Looking takes at most an eighth of one processor.
        std::thread::sleep((took * 6).max(Duration::from_millis(20)));
    }
}

/// Until nothing has this name.
pub fn gone(path: &Path, limit: Duration) -> anyhow::Result<String> {
    let start = Instant::now();
    loop {
        let gone = matches!(rustix::fs::lstat(path), Err(rustix::io::Errno::NOENT));
        if gone || start.elapsed() >= limit {
            return Ok(format!(
                "{{\"gone\": {gone}, \"now\": {:.6}}}",
                crate::now()
            ));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn newest(dir: &Path) -> anyhow::Result<String> {
    let pass = compare(dir, dir, false);
    Ok(format!(
        "{{\"entries\": {}, \"newest\": {:.6}}}",
        pass.entries,
        seconds(pass.newest_ns)
    ))
}

fn report(pass: &Pass, start: Instant) -> String {
    let different = pass.different.as_ref().map_or("null".into(), |place| {
        let names: Vec<String> = place
            .iter()
            .map(|name| testkit::escape(name.as_bytes()))
            .collect();
        format!("\"{}\"", names.join("/").replace(['"', '\\'], "?"))
    });
    format!(
        "{{\"equal\": {}, \"entries\": {}, \"newest\": {:.6}, \"now\": {:.6}, \"looked_s\": {:.3}, \"different\": {different}}}",
        pass.different.is_none(),
        pass.entries,
        seconds(pass.newest_ns),
        crate::now(),
        start.elapsed().as_secs_f64(),
    )
}

fn seconds(ns: i128) -> f64 {
    ns as f64 / 1e9
}

fn compare(src: &Path, dst: &Path, loose: bool) -> Pass {
    let mut pass = Pass {
        loose,
        ..Pass::default()
    };
    match (open(CWD, src), open(CWD, dst)) {
        (Some(a), Some(b)) => {
            if let (Ok(x), Ok(y)) = (rustix::fs::fstat(&a), rustix::fs::fstat(&b)) {
                pass.newest_ns = changed_ns(&y);
                if !same(&x, &y, loose) {
                    pass.different = Some(Vec::new());
                }
            }
            pass.directory(&a, &b);
        }
        _ => pass.different = Some(Vec::new()),
    }
    pass
}

impl Pass {
    fn directory(&mut self, a: &OwnedFd, b: &OwnedFd) {
        let (Some(names), Some(others)) = (list(a), list(b)) else {
            self.differs();
            return;
        };
        if let Some(name) = others.difference(&names).next() {
            self.place.push(name.clone());
            self.differs();
            self.place.pop();
        }
        for name in &names {
            if self.different.is_some() {
                return;
            }
            self.place.push(name.clone());
            self.entry(a, b, name);
            self.place.pop();
        }
    }

    fn entry(&mut self, a: &OwnedFd, b: &OwnedFd, name: &CString) {
        self.entries += 1;
        let (Ok(x), Ok(y)) = (
            rustix::fs::statat(a, name, LOOK),
            rustix::fs::statat(b, name, LOOK),
        ) else {
            self.differs();
            return;
        };
        self.newest_ns = self.newest_ns.max(changed_ns(&y));
        if !same(&x, &y, self.loose) || !same_target(a, b, name, &x) {
            self.differs();
        } else if kind(&x) == FileType::Directory {
            match (open(a.as_fd(), name), open(b.as_fd(), name)) {
                (Some(a), Some(b)) => self.directory(&a, &b),
                _ => self.differs(),
            }
        }
    }

    fn differs(&mut self) {
        self.different.get_or_insert_with(|| self.place.clone());
    }
}

/// Whether the names at one place still differ, without looking below.
fn differs_at(src: &Path, dst: &Path, place: &Place, loose: bool) -> bool {
    let (Some(mut a), Some(mut b)) = (open(CWD, src), open(CWD, dst)) else {
        return true;
    };
    let Some((last, above)) = place.split_last() else {
        return match (rustix::fs::fstat(&a), rustix::fs::fstat(&b)) {
            (Ok(x), Ok(y)) => !same(&x, &y, loose),
            _ => true,
        };
    };
    for name in above {
        match (open(a.as_fd(), name), open(b.as_fd(), name)) {
            (Some(below_a), Some(below_b)) => (a, b) = (below_a, below_b),
            // Gone at both sides: a whole pass will see.
            (None, None) => return false,
            _ => return true,
        }
    }
    match (
        rustix::fs::statat(&a, last, LOOK),
        rustix::fs::statat(&b, last, LOOK),
    ) {
        (Ok(x), Ok(y)) => !same(&x, &y, loose) || !same_target(&a, &b, last, &x),
        (Err(_), Err(_)) => false,
        _ => true,
    }
}

fn open<P: rustix::path::Arg>(at: BorrowedFd<'_>, path: P) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty()).ok()
}

fn list(dir: &OwnedFd) -> Option<BTreeSet<CString>> {
    let mut names = BTreeSet::new();
    for entry in Dir::read_from(dir).ok()? {
        let entry = entry.ok()?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.insert(name.to_owned());
        }
    }
    Some(names)
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn changed_ns(stat: &Stat) -> i128 {
    i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec)
}

fn same(a: &Stat, b: &Stat, loose: bool) -> bool {
    let facts = |s: &Stat| (s.st_mode, s.st_uid, s.st_gid);
    let time = |s: &Stat| (s.st_mtime, s.st_mtime_nsec);
    facts(a) == facts(b)
        && (time(a) == time(b)
            || loose && matches!(kind(a), FileType::Directory | FileType::Symlink))
        && match kind(a) {
            FileType::Directory => true,
            FileType::CharacterDevice | FileType::BlockDevice => a.st_rdev == b.st_rdev,
            _ => a.st_size == b.st_size && a.st_nlink == b.st_nlink,
        }
}

fn same_target(a: &OwnedFd, b: &OwnedFd, name: &CString, stat: &Stat) -> bool {
    kind(stat) != FileType::Symlink
        || matches!(
            (
                rustix::fs::readlinkat(a, name, Vec::new()),
                rustix::fs::readlinkat(b, name, Vec::new()),
            ),
            (Ok(x), Ok(y)) if x == y
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_difference_is_seen_and_its_end_too() {
        let top = std::env::temp_dir().join(format!("probe-equal-{}", std::process::id()));
        let (a, b) = (top.join("a/dir"), top.join("b/dir"));
        fs::create_dir_all(&a).unwrap();
        fs::create_dir_all(&b).unwrap();
        let roots = (top.join("a"), top.join("b"));
        fs::write(a.join("file"), "x").unwrap();
        let set_times = || {
            let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
            for path in [a.join("file"), b.join("file"), a.clone(), b.clone()] {
                if let Ok(file) = fs::File::open(path) {
                    file.set_times(time).unwrap();
                }
            }
            for root in [&roots.0, &roots.1] {
                fs::File::open(root).unwrap().set_times(time).unwrap();
            }
        };
        set_times();
        let pass = compare(&roots.0, &roots.1, false);
        let place = pass.different.unwrap();
        assert_eq!(place, [c"dir".to_owned(), c"file".to_owned()]);
        assert!(differs_at(&roots.0, &roots.1, &place, false));
        fs::write(b.join("file"), "y").unwrap();
        set_times();
        assert!(!differs_at(&roots.0, &roots.1, &place, false));
        assert!(compare(&roots.0, &roots.1, false).different.is_none());
        fs::write(b.join("more"), "").unwrap();
        set_times();
        assert!(compare(&roots.0, &roots.1, false).different.is_some());
        fs::remove_dir_all(&top).unwrap();
    }
}
