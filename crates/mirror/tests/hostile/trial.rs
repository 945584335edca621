//! A mirror of a made-up worker, with what must not be touched beside it, and records to make it of.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mirror_core::{At, Content, Digest, Kind, Meta, Name, ObjectId, Xattr};

use crate::ssh_support::made_up::*;
use crate::ssh_support::*;

/// Files that nobody but us may touch, and what they were.
pub struct Canary {
    dir: tempfile::TempDir,
    before: Vec<String>,
}

impl Canary {
    pub fn new() -> Canary {
        let dir = tempfile::Builder::new()
            .prefix("mirror-canary-")
            .tempdir()
            .unwrap();
        fs::write(dir.path().join("secret"), b"nobody's business").unwrap();
        fs::create_dir(dir.path().join("dir")).unwrap();
        fs::write(dir.path().join("dir/inner"), b"x").unwrap();
        let before = look(dir.path());
        Canary { dir, before }
    }
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
    #[track_caller]
    pub fn is_untouched(&self) {
        assert_eq!(look(self.dir.path()), self.before);
    }
}

/// All of a tree but access times.
pub fn look(dir: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut lines = Vec::new();
    let meta = fs::symlink_metadata(dir).unwrap();
    let kind = meta.file_type();
    let bytes = match kind.is_file() {
        true => blake3::hash(&fs::read(dir).unwrap()).to_string(),
        false => String::new(),
    };
    lines.push(format!(
        "{} {} {:o} {}:{} {} {}.{} {}.{} {bytes}",
        dir.display(),
        meta.ino(),
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.nlink(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    ));
    if kind.is_dir() {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().flatten().collect();
        names.sort_by_key(|entry| entry.file_name());
        lines.extend(names.iter().flat_map(|entry| look(&entry.path())));
    }
    lines
}

/// What a mirror of a made-up worker came to.
pub struct Came {
    pub code: i32,
    pub said: String,
    /// Most memory it had.
    pub rss_mib: u64,
    pub took: Duration,
}

/// A mirror with a canary beside it and one of another tenant.
pub struct Trial {
    pub bed: Bed,
    pub canary: Canary,
    pub other: Vec<String>,
}

impl Trial {
    pub fn new() -> Trial {
        let bed = Bed::new();
        fs::create_dir_all(bed.path("other.fs_mirror/log")).unwrap();
        fs::write(bed.path("other.fs_mirror/log/1"), b"another tenant's").unwrap();
        fs::create_dir(bed.path("other")).unwrap();
        fs::write(bed.path("other/file"), b"another tenant's").unwrap();
        let other = [look(&bed.path("other")), look(&bed.path("other.fs_mirror"))].concat();
        let canary = Canary::new();
        Trial { bed, canary, other }
    }

    /// What must be so whatever was said: one clear end, nothing raw on a terminal, nothing touched outside.
    #[track_caller]
    pub fn run(&self, more: &[&str]) -> Came {
        let began = Instant::now();
        let first = ["--once", "--timeout", "3s", "--on-mass-change", "follow"];
        let all = [&first, more].concat();
        let mut program = self.bed.mirror(&all);
        let status = format!("/proc/{}/status", program.pid());
        let mut rss_kib = 0;
        let code = loop {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let most = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let most = most.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
            // Before it is the program it is a copy of us.
            if text.starts_with("Name:\tfs_mirror\n") {
                rss_kib = rss_kib.max(most.unwrap_or(0u64));
            }
            if program.ended().unwrap().is_some() {
                // And all it said is here.
                break program.wait(LONG).unwrap().code().unwrap_or(-1);
            }
            assert!(
                began.elapsed() < LONG,
                "it does not end:\n{}",
                program.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        let said = program.stderr();
        self.is_well(&said);
        let came = Came {
            code,
            said,
            rss_mib: rss_kib >> 10,
            took: began.elapsed(),
        };
        assert!((0..=6).contains(&came.code), "{} {}", came.code, came.said);
        assert!(came.rss_mib < 400, "{} MiB\n{}", came.rss_mib, came.said);
        came
    }

    #[track_caller]
    pub fn is_well(&self, said: &str) {
        let raw = |c: char| c != '\n' && mirror_core::is_tricky(c);
        assert!(!said.contains(raw), "{said:?}");
        assert!(!said.contains("panicked"), "{said}");
        self.canary.is_untouched();
        let bed = &self.bed;
        let other = [look(&bed.path("other")), look(&bed.path("other.fs_mirror"))].concat();
        assert_eq!(other, self.other);
    }

    /// A worker that means well comes after it, and all is as it has it.
    #[track_caller]
    pub fn heals(&self) {
        let bed = &self.bed;
        bed.script("for last; do :; done\nexec sh -c \"exec $last\"");
        bed.populate(20, 5);
        let came = self.run(&["--adopt", "--yes"]);
        assert_eq!(came.code, 0, "{}", came.said);
        bed.equal();
    }
}

pub fn mode(mode: u16) -> Meta {
    Meta {
        mode,
        ..Meta::default()
    }
}

pub fn at_name(parent: ObjectId, name: &[u8]) -> At {
    At {
        parent,
        name: Name::new(name).unwrap(),
    }
}

pub fn link_to(target: &Path) -> Kind {
    Kind::Symlink(std::os::unix::ffi::OsStrExt::as_bytes(target.as_os_str()).into())
}

pub fn create(chain: &mut Chain, name: &str, kind: Kind, meta: Meta) -> ObjectId {
    chain.create(ObjectId::ROOT, name.as_bytes(), kind, meta)
}

pub fn dir(chain: &mut Chain, name: &str) -> ObjectId {
    create(chain, name, Kind::Dir, mode(0o755))
}

/// A file of this length that is one hole.
pub fn hole(bytes: u64) -> Kind {
    let data = vec![(bytes, 0)];
    let digest = mirror::capture::read::hasher(bytes, &data).finalize();
    Kind::File(Content {
        bytes,
        digest: Digest(*digest.as_bytes()),
        data,
        proven: true,
        fuzzy: false,
    })
}

pub fn with_xattr(name: &[u8], value: &[u8]) -> Meta {
    let (name, value) = (name.into(), value.into());
    Meta {
        mode: 0o644,
        xattrs: vec![Xattr { name, value }],
        ..Meta::default()
    }
}

/// One after the other, by as many threads as make sense: most of the time is waiting.
pub fn each<T: Sync>(all: &[T], act: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    act(one);
                }
            });
        }
    });
}
