//! Which paths are left out: gitignore patterns of the mirror's own configuration, never a file inside the tree.
//!
//! As in git the last line that matches decides, and nothing below a left-out directory can be had back.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

#[derive(Debug, Clone)]
pub struct Filter {
    matcher: Gitignore,
    patterns: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad ignore pattern {line} ({}): {why}", mirror_core::escape(.pattern.as_bytes()))]
pub struct BadPattern {
    /// Its number, from 1.
    pub line: usize,
    pub pattern: String,
    pub why: String,
}

/// The pattern that decided about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Its number, from 1.
    pub line: usize,
    pub pattern: &'a str,
    pub ignored: bool,
    /// How many bytes of the path it matched: less than all when it is a directory above that is left out.
    pub matched: usize,
}

impl Filter {
    /// Leaves nothing out.
    pub fn none() -> Filter {
        Filter {
            matcher: Gitignore::empty(),
            patterns: Vec::new(),
        }
    }

    pub fn new(patterns: &[String]) -> Result<Filter, BadPattern> {
        let mut builder = GitignoreBuilder::new(".");
        for (number, pattern) in patterns.iter().enumerate() {
            let bad = |why: &str| BadPattern {
                line: number + 1,
                pattern: pattern.clone(),
                why: why.into(),
            };
            if pattern.contains(['\n', '\0']) {
                return Err(bad("a pattern is one line"));
            }
            if let Err(e) = builder.add_line(None, pattern) {
                return Err(bad(&match e {
                    ignore::Error::Glob { err, .. } => err,
                    other => other.to_string(),
                }));
            }
        }
        let matcher = builder.build().map_err(|e| BadPattern {
            line: patterns.len(),
            pattern: String::new(),
            why: e.to_string(),
        })?;
        Ok(Filter {
            matcher,
            patterns: patterns.to_vec(),
        })
    }

    pub fn is_empty(&self) -> bool {
        self.matcher.is_empty()
    }

    /// Is `path` (relative to the root of the tree, no `/` at either end) left out, by itself or with a directory above it?
    pub fn ignored(&self, path: &[u8], is_dir: bool) -> bool {
        !self.is_empty() && self.deciding_line(path, is_dir).is_some_and(|d| d.ignored)
    }

    /// The same, for a path whose parent is known not to be left out: one match instead of one a component.
    pub fn ignored_below_kept(&self, path: &[u8], is_dir: bool) -> bool {
        !self.is_empty()
            && self
                .matcher
                .matched(Path::new(OsStr::from_bytes(path)), is_dir)
                .is_ignore()
    }

    /// Which pattern decides; `None`: none does, the path is mirrored.
    pub fn deciding_line(&self, path: &[u8], is_dir: bool) -> Option<Decision<'_>> {
        let above = path
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'/')
            .map(|(end, _)| end);
        for end in above {
            if let Some(decision) = path
                .get(..end)
                .and_then(|dir| self.look(dir, true))
                .filter(|d| d.ignored)
            {
                return Some(decision);
            }
        }
        self.look(path, is_dir)
    }

    fn look(&self, path: &[u8], is_dir: bool) -> Option<Decision<'_>> {
        let (glob, ignored) = match self
            .matcher
            .matched(Path::new(OsStr::from_bytes(path)), is_dir)
        {
            Match::None => return None,
            Match::Ignore(glob) => (glob, true),
            Match::Whitelist(glob) => (glob, false),
        };
        // Of equal lines the last decides. The matcher keeps a line without its trailing blanks.
        let same = |p: &String| p == glob.original() || p.trim_end() == glob.original();
        let at = self.patterns.iter().rposition(same)?;
        Some(Decision {
            line: at + 1,
            pattern: self.patterns.get(at)?,
            ignored,
            matched: path.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(patterns: &[&str]) -> Filter {
        Filter::new(&patterns.iter().map(|p| p.to_string()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn as_git_does() {
        // (patterns, path (a slash at the end: a directory), left out)
        let table: &[(&[&str], &[u8], bool)] = &[
            (&[], b"a", false),
            (&["*.log"], b"x/y.log", true),
            (&["*.log"], b"x/y.log/z", true),
            (&["*.log", "!keep.log"], b"x/keep.log", false),
            (&["!keep.log", "*.log"], b"x/keep.log", true),
            (&["cache/"], b"a/cache", false),
            (&["cache/"], b"a/cache/", true),
            (&["cache/"], b"a/cache/b/c", true),
            (&["cache/", "!cache/b"], b"cache/b", true),
            (&["cache/*", "!cache/b"], b"cache/b", false),
            (&["cache/*", "!cache/b"], b"cache/c", true),
            (&["/top"], b"top", true),
            (&["/top"], b"a/top", false),
            (&["a/b"], b"a/b", true),
            (&["a/b"], b"x/a/b", false),
            (&["**/b"], b"x/a/b", true),
            (&["a/**/z"], b"a/b/c/z", true),
            (&["a/**"], b"a/", false),
            (&["a/**"], b"a/b", true),
            (&["a?c"], b"abc", true),
            (&["a?c"], b"a/c", false),
            (&["[ab].x"], b"b.x", true),
            (&["# not a pattern", ""], b"# not a pattern", false),
            (&["\\#x"], b"#x", true),
            (&["\\!x"], b"!x", true),
            (&["*.log  "], b"a.log", true),
            (&["caf\u{e9}"], "caf\u{e9}".as_bytes(), true),
            (&["*.x"], b"\xff\n.x", true),
            (&["*"], b"\xff", true),
            (&["*"], b"anything/at/all", true),
            (&["*", "!*/", "!*.php"], b"a/b.php", false),
            (&["*", "!*/", "!*.php"], b"a/b.txt", true),
        ];
        for (patterns, path, want) in table {
            let f = filter(patterns);
            let (path, is_dir) = path
                .strip_suffix(b"/")
                .map_or((*path, false), |p| (p, true));
            let shown = mirror_core::escape(path);
            assert_eq!(f.ignored(path, is_dir), *want, "{patterns:?} {shown}");
            // Walking down from the root says the same.
            let mut kept = true;
            let ends = path
                .iter()
                .enumerate()
                .filter(|(_, b)| **b == b'/')
                .map(|(end, _)| (end, true));
            for (end, dir) in ends.chain([(path.len(), is_dir)]) {
                kept = kept && !f.ignored_below_kept(&path[..end], dir);
            }
            assert_eq!(!kept, *want, "{patterns:?} {shown}, walked");
        }
    }

    #[test]
    fn the_line_that_decides() {
        let f = filter(&["*.a", "*.b", "!x.b", "*.a"]);
        let line = |path: &str| {
            f.deciding_line(path.as_bytes(), false)
                .map(|d| (d.line, d.ignored, d.matched))
        };
        assert_eq!(line("d/x.a"), Some((4, true, 5)));
        assert_eq!(line("y.b"), Some((2, true, 3)));
        assert_eq!(line("x.b"), Some((3, false, 3)));
        assert_eq!(line("q.a/x.b"), Some((4, true, 3)));
        assert_eq!(line("none"), None);
        assert!(filter(&["# x", ""]).is_empty() && !f.is_empty() && Filter::none().is_empty());
    }

    #[test]
    fn bad_patterns_are_named() {
        let of = |patterns: &[&str]| {
            Filter::new(&patterns.iter().map(|p| p.to_string()).collect::<Vec<_>>())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            of(&["ok", "a[z-a]"]),
            "bad ignore pattern 2 (a[z-a]): invalid range; 'z' > 'a'"
        );
        assert_eq!(
            of(&["a\nb"]),
            "bad ignore pattern 1 (a\\x0ab): a pattern is one line"
        );
        assert!(of(&["{a"]).starts_with("bad ignore pattern 1 ({a): "));
    }
}
