//! Full-fidelity comparison of two trees: everything a copy must keep, and nothing that it can't.
//!
//! Both trees are walked in step through directory descriptors; a path is only ever built to be shown.
//! The comparison reads, and writes nothing. `lost+found` at the root of either tree is left out.

mod content;
mod inode;
mod walk;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

/// What differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The name is in the first tree only.
    Missing,
    /// The name is in the second tree only.
    Extra,
    Type,
    Size,
    Content,
    /// Permission, set-id and sticky bits.
    Mode,
    Uid,
    Gid,
    Mtime,
    /// Of a symlink.
    Target,
    /// Which names are one inode.
    Links,
    /// All extended attributes, ACLs and capabilities included, as raw bytes.
    Xattr,
    /// Where the file says it has data (`SEEK_DATA`), by blocks of 4 KiB.
    Holes,
    /// The second tree has blocks where the first has neither data nor blocks.
    Blocks,
    /// Device number.
    Device,
    /// Inode flags a person can set.
    Flags,
    /// Project (quota) id.
    Project,
    /// One of the two could not be read.
    Unreadable,
}

impl Class {
    pub const ALL: [Class; 18] = [
        Class::Missing,
        Class::Extra,
        Class::Type,
        Class::Size,
        Class::Content,
        Class::Mode,
        Class::Uid,
        Class::Gid,
        Class::Mtime,
        Class::Target,
        Class::Links,
        Class::Xattr,
        Class::Holes,
        Class::Blocks,
        Class::Device,
        Class::Flags,
        Class::Project,
        Class::Unreadable,
    ];
    pub fn name(self) -> &'static str {
        match self {
            Class::Missing => "missing",
            Class::Extra => "extra",
            Class::Type => "type",
            Class::Size => "size",
            Class::Content => "content",
            Class::Mode => "mode",
            Class::Uid => "uid",
            Class::Gid => "gid",
            Class::Mtime => "mtime",
            Class::Target => "target",
            Class::Links => "links",
            Class::Xattr => "xattr",
            Class::Holes => "holes",
            Class::Blocks => "blocks",
            Class::Device => "device",
            Class::Flags => "flags",
            Class::Project => "project",
            Class::Unreadable => "unreadable",
        }
    }
    pub fn by_name(name: &str) -> Option<Class> {
        Class::ALL.into_iter().find(|class| class.name() == name)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One difference. `path` is relative to the roots and escaped; the root itself is `.`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub path: String,
    pub class: Class,
    pub left: String,
    pub right: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}: {} | {}",
            self.path, self.class, self.left, self.right
        )
    }
}

impl Difference {
    pub fn json(&self) -> String {
        use crate::text::json;
        format!(
            "{{\"path\":{},\"class\":{},\"left\":{},\"right\":{}}}",
            json(&self.path),
            json(self.class.name()),
            json(&self.left),
            json(&self.right)
        )
    }
}

/// How to compare. The default compares everything.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Classes not looked at.
    pub ignore: BTreeSet<Class>,
    /// Leave out, on both sides, each name that is a mount point in either tree.
    pub skip_mounts: bool,
    /// Stop after so many differences. `None`: list all.
    pub differences_max: Option<usize>,
}

impl Options {
    pub fn ignoring(classes: &[Class]) -> Options {
        Options {
            ignore: classes.iter().copied().collect(),
            ..Options::default()
        }
    }
}

/// What differs between two trees (or two files), in the order of the walk. Empty: equal.
pub fn compare(left: &Path, right: &Path, options: &Options) -> Vec<Difference> {
    let mut walk = walk::Walk::new(options);
    // Full: there are as many differences as were asked for.
    let _: Result<(), walk::Full> = walk.run(left, right);
    walk.found
}

/// Panics with the differences (at most 30 of them) when the trees are not equal.
#[track_caller]
pub fn assert_equal(left: &Path, right: &Path, options: &Options) {
    let found = compare(left, right, options);
    let lines: Vec<String> = found.iter().take(30).map(Difference::to_string).collect();
    assert!(
        found.is_empty(),
        "{} and {} differ in {} things:\n  {}",
        left.display(),
        right.display(),
        found.len(),
        lines.join("\n  ")
    );
}
