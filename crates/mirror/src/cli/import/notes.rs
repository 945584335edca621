//! What is said about another tool's file besides the configuration it becomes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mirror_core::escape;

use crate::engine::session::show;

/// Of a hostile file; what is beyond is only counted.
const NOTES_MAX: usize = 1000;
const TEXT_CHARS_MAX: usize = 120;

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// `None`: the file that was named.
    pub file: Option<Arc<PathBuf>>,
    /// From 1; 0 is about all of it.
    pub line: usize,
}

impl Default for At {
    fn default() -> At {
        At::line(1)
    }
}

impl At {
    pub fn line(line: usize) -> At {
        At { file: None, line }
    }

    /// As compilers say it.
    pub fn in_file(&self, named: &Path) -> String {
        let file = self.file.as_ref().map_or(named, |file| file.as_path());
        match self.line {
            0 => show(file),
            line => format!("{}:{line}", show(file)),
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (None, 0) => f.write_str("the file"),
            (None, line) => write!(f, "line {line}"),
            (Some(file), 0) => f.write_str(&show(file)),
            (Some(file), line) => write!(f, "{} line {line}", show(file)),
        }
    }
}

/// A line, or a setting in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub at: At,
    /// Of the file, in one line.
    pub text: String,
    pub why: String,
    /// What a person may do; empty where nothing is needed.
    pub instead: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.text, self.why)?;
        match self.instead.as_str() {
            "" => Ok(()),
            instead => write!(f, ". Instead: {instead}"),
        }
    }
}

#[derive(Debug, Default)]
pub struct Notes {
    /// Not understood, or without a counterpart here.
    pub open: Vec<Note>,
    /// Understood, and nothing has to be said for it here.
    pub needless: Vec<Note>,
    /// Open ones that are not kept.
    pub more: usize,
}

impl Notes {
    pub fn open(
        &mut self,
        at: &At,
        text: &[u8],
        why: impl Into<String>,
        instead: impl Into<String>,
    ) {
        let note = Note {
            at: at.clone(),
            text: cut(text),
            why: why.into(),
            instead: instead.into(),
        };
        if self.open.contains(&note) {
        } else if self.open.len() < NOTES_MAX {
            self.open.push(note);
        } else {
            self.more += 1;
        }
    }

    pub fn needless(&mut self, at: &At, text: &[u8], why: impl Into<String>) {
        if self.needless.len() < NOTES_MAX {
            self.needless.push(Note {
                at: at.clone(),
                text: cut(text),
                why: why.into(),
                instead: String::new(),
            });
        }
    }

    pub fn all_understood(&self) -> bool {
        self.open.is_empty()
    }
}

/// In one line, not too long, with nothing in it that a terminal obeys.
pub fn cut(text: &[u8]) -> String {
    let text = escape(text.trim_ascii()).replace("\\x09", " ");
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
