//! A table of cases, served by one mirror on one file system: each works in a directory of its own.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use testkit::compare::Options;
use testkit::lab::Lab;
use testkit::{Fs, compare};

use super::{Mirror, lines, took};

/// One case: what is done, and on which file systems.
pub struct Case {
    pub name: &'static str,
    pub on: &'static [Fs],
    pub run: fn(&mut Ctx<'_>),
}

pub const ALL: &[Fs] = &[Fs::Ext4, Fs::Xfs, Fs::Btrfs];
pub const EXT4: &[Fs] = &[Fs::Ext4];

/// `case!(case_05_exchange)` is that function as a case on all file systems; `case!(..., EXT4)` on these only.
#[macro_export]
macro_rules! case {
    ($name:ident) => {
        $crate::case!($name, $crate::common::cases::ALL)
    };
    ($name:ident, $on:expr) => {
        $crate::common::cases::Case {
            name: stringify!($name),
            on: $on,
            run: $name,
        }
    };
}

/// What a case works with.
pub struct Ctx<'a> {
    pub fs: Fs,
    pub mirror: &'a mut Mirror,
    /// The case's own directory in the source...
    pub dir: PathBuf,
    /// ...in the copy...
    pub copy: PathBuf,
    /// ...and one beside the source, on the same file system.
    pub outside: PathBuf,
    /// The whole source, and what was mounted for it.
    pub root: PathBuf,
    pub mount: PathBuf,
    /// Classes this case can't keep on this file system.
    pub options: Options,
    said_before: usize,
}

impl Ctx<'_> {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }
    pub fn mkdir(&self, name: &str) {
        fs::create_dir_all(self.path(name)).unwrap();
    }
    pub fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }
    pub fn link(&self, from: &str, to: &str) {
        fs::hard_link(self.path(from), self.path(to)).unwrap();
    }
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }
    /// What was done until now is in the copy; it equals the source.
    #[track_caller]
    pub fn settle(&mut self) {
        let ran = self.mirror.wait_idle();
        assert_eq!(ran.code, 0, "wait --idle: {ran:?}\n{}", self.said());
        let found = compare(&self.dir, &self.copy, &self.options);
        assert!(
            found.is_empty(),
            "differences:\n  {}\n{}",
            lines(&found),
            self.said()
        );
    }
    /// What the mirror printed since the case began.
    pub fn said(&self) -> String {
        let all = self.mirror.program.stderr();
        all.get(self.said_before..).unwrap_or_default().to_owned()
    }
    /// A case that can't be had here says why.
    pub fn skip(&self, reason: &str) {
        testkit::print_skip(&format!("{reason} ({})", self.fs.name()));
    }
}

/// Runs all cases on one file system, even when one fails. `CASE=case_05` in the environment: only those.
pub fn run_cases(lab: &Lab, fs: Fs, size_mb: u64, cases: &[Case]) {
    let image = testkit::need!(lab.image(fs, size_mb));
    let (src, dst) = (image.dir("src").unwrap(), image.path().join("dst"));
    let outside = image.dir("outside").unwrap();
    fs::write(src.join("standing"), "there before").unwrap();
    let mut mirror = Mirror::start(&src, &dst);
    mirror.equal_once();
    let wanted = std::env::var("CASE").unwrap_or_default();
    let mut failed = Vec::new();
    for case in cases {
        if !case.on.contains(&fs) || !case.name.contains(&wanted) {
            continue;
        }
        let _took = took(format!("{} on {}", case.name, fs.name()));
        let beside = outside.join(case.name);
        let dir = src.join(case.name);
        fs::create_dir(&dir).unwrap();
        fs::create_dir(&beside).unwrap();
        let mut ctx = Ctx {
            fs,
            copy: dst.join(case.name),
            dir,
            outside: beside,
            root: src.clone(),
            mount: image.path(),
            options: Options::default(),
            said_before: mirror.program.stderr().len(),
            mirror: &mut mirror,
        };
        let result = catch_unwind(AssertUnwindSafe(|| {
            (case.run)(&mut ctx);
            ctx.settle();
        }));
        if let Err(panic) = result {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()))
                .unwrap_or_default();
            failed.push(format!("{}: {text}", case.name));
        }
    }
    whole(&mut mirror, &src, &dst, &mut failed);
    // A restart finds nothing new to do, and nothing that was lost.
    assert!([0, 3].contains(&mirror.stop()));
    let mut mirror = Mirror::start(&src, &dst);
    let ran = mirror.wait_idle();
    if ran.code != 0 {
        failed.push(format!("after a restart: {ran:?}"));
    }
    whole(&mut mirror, &src, &dst, &mut failed);
    assert!(
        failed.is_empty(),
        "{} of the cases failed on {}:\n{}\nstderr of the mirror:\n{}",
        failed.len(),
        fs.name(),
        failed.join("\n"),
        mirror.program.stderr()
    );
}

fn whole(mirror: &mut Mirror, src: &Path, dst: &Path, failed: &mut Vec<String>) {
    let found = compare(src, dst, &Options::default());
    if !found.is_empty() {
        failed.push(format!("the whole tree:\n  {}", lines(&found)));
    }
    // Events told everything: no overflow and no scan came to help.
    for counter in ["overflows", "scan_corrections"] {
        let count = mirror.number(&format!("counters/{counter}"));
        if count != 0 {
            failed.push(format!("{counter}: {count}"));
        }
    }
}
