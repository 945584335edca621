//! Two versions of a file as a unified diff, as `diff -u` and `git diff` show it and `patch` takes it.
//!
//! The bytes may be anything, and hostile: sizes and time have limits, lines stay as they are (line ends, bytes that are not
//! UTF-8) where a program reads, and hold nothing that a terminal would obey where a person does.

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::Range;
use std::time::{Duration, Instant};

use mirror_core::{escape, is_tricky};
use similar::{Algorithm, DiffOp, capture_diff_slices_deadline, group_diff_ops};

use crate::cli::text::{count, counted, width};

/// What is larger is told by its size alone.
pub const TEXT_BYTES_MAX: u64 = 1 << 20;
/// What a pair may take; then what is left differs as a whole.
pub const TIME_MAX: Duration = Duration::from_secs(2);
/// Equal lines around what differs.
const CONTEXT_LINES: usize = 3;
/// Of a line, on a terminal.
const SHOWN_BYTES_MAX: usize = 2000;

/// How two versions differ.
#[derive(Debug)]
pub enum Compared<'a> {
    Same,
    /// Not compared line by line.
    Whole {
        why: Whole,
        old: u64,
        new: u64,
    },
    Lines(Lines<'a>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    Binary,
    TooLarge,
}

/// Lines with what differs in them.
#[derive(Debug)]
pub struct Lines<'a> {
    old: Vec<&'a [u8]>,
    new: Vec<&'a [u8]>,
    ops: Vec<DiffOp>,
    pub added: u64,
    pub removed: u64,
    /// Time ran out: it is right, but not short.
    pub rough: bool,
}

/// What is said about the two sides; `None`: it does not exist there.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    pub path: Option<&'a [u8]>,
    /// A time or position, in words.
    pub at: &'a str,
}

/// Who reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Every byte as it is.
    Program,
    /// Without what a terminal obeys.
    Terminal { colour: bool },
}

/// By their sizes alone, so that no large file needs to be read.
pub fn by_size(old: u64, new: u64) -> Option<Compared<'static>> {
    (old.max(new) > TEXT_BYTES_MAX).then_some(Compared::Whole {
        why: Whole::TooLarge,
        old,
        new,
    })
}

/// Law: the new version is the old one with what is removed taken out and what is added put in.
pub fn compare<'a>(old: &'a [u8], new: &'a [u8], time: Duration) -> Compared<'a> {
    if old == new {
        return Compared::Same;
    }
    let sizes = (old.len() as u64, new.len() as u64);
    if let Some(whole) = by_size(sizes.0, sizes.1) {
        return whole;
    }
    if old.contains(&0) || new.contains(&0) {
        return Compared::Whole {
            why: Whole::Binary,
            old: sizes.0,
            new: sizes.1,
        };
    }
    let (old, new) = (lines(old), lines(new));
    let mut numbers = HashMap::new();
    let old_numbers = numbered(&old, &mut numbers);
    let new_numbers = numbered(&new, &mut numbers);
    let until = Instant::now() + time;
    let ops =
        capture_diff_slices_deadline(Algorithm::Myers, &old_numbers, &new_numbers, Some(until));
    let (mut added, mut removed) = (0, 0);
    for op in &ops {
        if !matches!(op, DiffOp::Equal { .. }) {
            added += op.new_range().len() as u64;
            removed += op.old_range().len() as u64;
        }
    }
    Compared::Lines(Lines {
        old,
        new,
        ops,
        added,
        removed,
        rough: Instant::now() >= until,
    })
}

/// Each with its line end; the last may have none.
fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split_inclusive(|b| *b == b'\n').collect()
}

/// Equal lines have equal numbers.
fn numbered<'a>(lines: &[&'a [u8]], known: &mut HashMap<&'a [u8], u32>) -> Vec<u32> {
    lines
        .iter()
        .map(|line| {
            // Fewer than TEXT_BYTES_MAX.
            let next = known.len() as u32;
            *known.entry(line).or_insert(next)
        })
        .collect()
}

impl Compared<'_> {
    /// Lines added and removed, if lines were compared.
    pub fn counts(&self) -> Option<(u64, u64)> {
        match self {
            Compared::Same => Some((0, 0)),
            Compared::Whole { .. } => None,
            Compared::Lines(lines) => Some((lines.added, lines.removed)),
        }
    }

    pub fn write(
        &self,
        old: &Side,
        new: &Side,
        reader: Reader,
        out: &mut impl Write,
    ) -> io::Result<()> {
        match self {
            Compared::Same => Ok(()),
            Compared::Whole {
                why,
                old: from,
                new: to,
            } => {
                let what = match why {
                    Whole::Binary => "Binary files",
                    Whole::TooLarge => "Large files",
                };
                let name = new.path.or(old.path).unwrap_or_default();
                out.write_all(what.as_bytes())?;
                if !name.is_empty() {
                    out.write_all(b" ")?;
                    out.write_all(&named(name, reader))?;
                }
                writeln!(out, " differ: {} -> {} bytes", count(*from), count(*to))
            }
            Compared::Lines(lines) => lines.write(old, new, reader, out),
        }
    }
}

/// Colours as git has them.
#[derive(Clone, Copy)]
enum Ink {
    Plain,
    Head,
    Place,
    Added,
    Removed,
}

impl Ink {
    fn code(self) -> &'static str {
        match self {
            Ink::Plain => "",
            Ink::Head => "\x1b[1m",
            Ink::Place => "\x1b[36m",
            Ink::Added => "\x1b[32m",
            Ink::Removed => "\x1b[31m",
        }
    }
}

impl Lines<'_> {
    fn write(
        &self,
        old: &Side,
        new: &Side,
        reader: Reader,
        out: &mut impl Write,
    ) -> io::Result<()> {
        if self.rough {
            // Before the names, where `patch` passes over it.
            line(
                b"# compared for too long: this is right, but longer than it need be",
                Ink::Place,
                reader,
                out,
            )?;
        }
        head(b"--- ", old, reader, out)?;
        head(b"+++ ", new, reader, out)?;
        for group in group_diff_ops(self.ops.clone(), CONTEXT_LINES) {
            let (Some(first), Some(last)) = (group.first(), group.last()) else {
                continue;
            };
            let place = format!(
                "@@ -{} +{} @@",
                place(first.old_range().start..last.old_range().end),
                place(first.new_range().start..last.new_range().end)
            );
            line(place.as_bytes(), Ink::Place, reader, out)?;
            for op in &group {
                let (before, after) = (op.old_range(), op.new_range());
                if matches!(op, DiffOp::Equal { .. }) {
                    side(b' ', Ink::Plain, &self.old, before, reader, out)?;
                } else {
                    side(b'-', Ink::Removed, &self.old, before, reader, out)?;
                    side(b'+', Ink::Added, &self.new, after, reader, out)?;
                }
            }
        }
        Ok(())
    }
}

/// Where a part begins, from 1, and how many lines it has. An empty one stands after the line it names.
fn place(range: Range<usize>) -> String {
    match range.len() {
        1 => format!("{}", range.start + 1),
        0 => format!("{},0", range.start),
        many => format!("{},{many}", range.start + 1),
    }
}

fn head(mark: &[u8], side: &Side, reader: Reader, out: &mut impl Write) -> io::Result<()> {
    let mut text = mark.to_vec();
    match side.path {
        Some(path) => text.extend(named(path, reader)),
        None => text.extend_from_slice(b"/dev/null"),
    }
    if !side.at.is_empty() {
        text.push(b'\t');
        text.extend_from_slice(side.at.as_bytes());
    }
    line(&text, Ink::Head, reader, out)
}

/// A path in one line. For programs in quotes, as git and diff have it, when it needs them.
fn named(path: &[u8], reader: Reader) -> Vec<u8> {
    if let Reader::Terminal { .. } = reader {
        return escape(path).into_bytes();
    }
    let strange = |b: &u8| b.is_ascii_control() || b"\"\\".contains(b);
    if !path.iter().any(strange) {
        return path.to_vec();
    }
    let mut out = vec![b'"'];
    for b in path {
        match b {
            b'"' | b'\\' => out.extend([b'\\', *b]),
            b if b.is_ascii_control() => out.extend(format!("\\{b:03o}").bytes()),
            b => out.push(*b),
        }
    }
    out.push(b'"');
    out
}

/// A line of ours.
fn line(text: &[u8], ink: Ink, reader: Reader, out: &mut impl Write) -> io::Result<()> {
    inked(ink, reader, out, |out| out.write_all(text))?;
    out.write_all(b"\n")
}

fn inked<W: Write>(
    ink: Ink,
    reader: Reader,
    out: &mut W,
    write: impl FnOnce(&mut W) -> io::Result<()>,
) -> io::Result<()> {
    let code = match reader {
        Reader::Terminal { colour: true } => ink.code(),
        _ => "",
    };
    out.write_all(code.as_bytes())?;
    write(out)?;
    match code {
        "" => Ok(()),
        _ => out.write_all(b"\x1b[m"),
    }
}

/// Lines of one side, each with its mark.
fn side(
    mark: u8,
    ink: Ink,
    lines: &[&[u8]],
    range: Range<usize>,
    reader: Reader,
    out: &mut impl Write,
) -> io::Result<()> {
    for text in lines.get(range).unwrap_or_default() {
        let bare = text.strip_suffix(b"\n");
        let body = bare.unwrap_or(text);
        inked(ink, reader, out, |out| {
            out.write_all(&[mark])?;
            match reader {
                Reader::Program => out.write_all(body),
                Reader::Terminal { .. } => out.write_all(shown(body, mark == b' ').as_bytes()),
            }
        })?;
        out.write_all(b"\n")?;
        if bare.is_none() {
            line(b"\\ No newline at end of file", Ink::Plain, reader, out)?;
        }
    }
    Ok(())
}

/// A line for a person. The carriage return of a line that did not change says nothing.
fn shown(body: &[u8], same: bool) -> String {
    let body = match same {
        true => body.strip_suffix(b"\r").unwrap_or(body),
        false => body,
    };
    let (body, rest) = body.split_at(body.len().min(SHOWN_BYTES_MAX));
    let mut out = String::with_capacity(body.len());
    for chunk in body.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\t' => out.push(c),
                c if is_tricky(c) => out.push_str(&escape(c.encode_utf8(&mut [0; 4]).as_bytes())),
                c => out.push(c),
            }
        }
        out.push_str(&escape(chunk.invalid()));
    }
    if !rest.is_empty() {
        out.push_str(&format!("... ({} bytes more)", count(rest.len() as u64)));
    }
    out
}

/// A file in a list of what differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat<'a> {
    pub path: &'a [u8],
    pub change: Change,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Lines { added: u64, removed: u64 },
    Bytes { old: u64, new: u64 },
}

impl From<&Compared<'_>> for Change {
    fn from(compared: &Compared) -> Change {
        match compared {
            Compared::Same => Change::Lines {
                added: 0,
                removed: 0,
            },
            Compared::Whole { old, new, .. } => Change::Bytes {
                old: *old,
                new: *new,
            },
            Compared::Lines(lines) => Change::Lines {
                added: lines.added,
                removed: lines.removed,
            },
        }
    }
}

/// `path | 12 ++++---`, a line a file, and one that sums them up. Never wider than `columns` (40 at least).
pub fn stat_lines(stats: &[Stat], columns: usize, colour: bool) -> Vec<String> {
    const BAR_MIN: usize = 10;
    let columns = columns.max(40);
    let said = |stat: &Stat| match stat.change {
        Change::Lines { added, removed } => count(added.saturating_add(removed)),
        Change::Bytes { .. } => "bytes".into(),
    };
    let most = |of: &dyn Fn(&Stat) -> usize| stats.iter().map(of).max().unwrap_or(0);
    let number = most(&|stat| said(stat).len());
    // ` path | number bar`
    let room = columns.saturating_sub(number + 5 + BAR_MIN).max(10);
    let path = most(&|stat| width(&escape(stat.path))).min(room);
    let bar = columns.saturating_sub(path + number + 5).max(1);
    let peak = stats.iter().map(|stat| match stat.change {
        Change::Lines { added, removed } => added.saturating_add(removed),
        Change::Bytes { .. } => 0,
    });
    let peak = peak.max().unwrap_or(0).max(bar as u64);
    let mut out = Vec::new();
    let (mut added_all, mut removed_all) = (0u64, 0u64);
    for stat in stats {
        let name = from_the_end(&escape(stat.path), path);
        let blank = " ".repeat(path.saturating_sub(width(&name)));
        let rest = match stat.change {
            Change::Bytes { old, new } => format!("{} -> {}", count(old), count(new)),
            Change::Lines { added, removed } => {
                added_all = added_all.saturating_add(added);
                removed_all = removed_all.saturating_add(removed);
                let (plus, minus) = marks(added, removed, bar, peak);
                let (plus, minus) = ("+".repeat(plus), "-".repeat(minus));
                match colour {
                    true => format!("\x1b[32m{plus}\x1b[31m{minus}\x1b[m"),
                    false => format!("{plus}{minus}"),
                }
            }
        };
        let line = format!(" {name}{blank} | {:>number$} {rest}", said(stat));
        out.push(line.trim_end().to_owned());
    }
    out.push(format!(
        " {}, {} added(+), {} removed(-)",
        counted(stats.len() as u64, "file", "files"),
        counted(added_all, "line", "lines"),
        count(removed_all)
    ));
    out
}

/// How many signs of each kind: in proportion, and at least one of what there is.
fn marks(added: u64, removed: u64, bar: usize, peak: u64) -> (usize, usize) {
    let scaled = |n: u64| match n {
        0 => 0,
        n => usize::try_from(u128::from(n) * bar as u128 / u128::from(peak.max(1)))
            .unwrap_or(bar)
            .max(1),
    };
    let (plus, minus) = (scaled(added), scaled(removed));
    // Two that were both rounded up may be one too many.
    match (plus + minus).checked_sub(bar) {
        Some(over) if plus > minus => (plus.saturating_sub(over), minus),
        Some(over) => (plus, minus.saturating_sub(over)),
        None => (plus, minus),
    }
}

/// The end of a path says more than its beginning.
fn from_the_end(path: &str, columns: usize) -> String {
    if width(path) <= columns {
        return path.to_owned();
    }
    let (mut start, mut used) = (path.len(), 3);
    for (at, c) in path.char_indices().rev() {
        used += width(c.encode_utf8(&mut [0; 4]));
        if used > columns {
            break;
        }
        start = at;
    }
    format!("...{}", path.get(start..).unwrap_or_default())
}

#[cfg(test)]
#[path = "textdiff_tests.rs"]
mod tests;
