//! Reading a TOML configuration so that *all* that is wrong with it is found at once, each with its file and line.
//!
//! [`read`] gives a [`Table`]; whoever knows the keys takes them out one by one, and [`Table::end`] names what is left
//! over. Nothing here knows a key.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use toml::de::{DeTable, DeValue};

use crate::engine::session::show;

const FILE_BYTES_MAX: u64 = 4 << 20;
const PROBLEMS_MAX: usize = 100;

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub file: Arc<PathBuf>,
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}", show(&self.file), self.line)
    }
}

/// Something that is wrong; one line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `None`: it was said on the command line.
    pub place: Option<Place>,
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.why)
    }
}

/// What was found wrong so far, in the order of finding.
#[derive(Debug, Default)]
pub struct Problems {
    list: Vec<Problem>,
}

impl Problems {
    pub fn add(&mut self, place: Option<&Place>, why: impl Into<String>) {
        if self.list.len() < PROBLEMS_MAX {
            // Parsers of TOML say some things on several lines.
            let why: String = why.into();
            let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
            let place = place.cloned();
            self.list.push(Problem { place, why });
        }
    }
    /// And these.
    pub fn extend(&mut self, others: Problems) {
        let room = PROBLEMS_MAX.saturating_sub(self.list.len());
        self.list.extend(others.list.into_iter().take(room));
    }
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
    pub fn len(&self) -> usize {
        self.list.len()
    }
    /// In the order of files and lines.
    pub fn sorted(mut self) -> Vec<Problem> {
        self.list.sort_by(|a, b| a.place.cmp(&b.place));
        self.list
    }
}

#[derive(Debug, Clone)]
pub struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub enum Value {
    Text(String),
    Integer(i64),
    Bool(bool),
    List(Vec<Node>),
    Table(Table),
    /// What nothing of ours uses, by its name.
    Other(&'static str),
}

#[derive(Debug, Clone)]
pub struct Table {
    pub place: Place,
    keys: BTreeMap<String, (Place, Node)>,
}

/// A whole file. `None`: it can't be read at all; the problems say why.
pub fn read(path: &Path, problems: &mut Problems) -> Option<Table> {
    let file = Arc::new(path.to_path_buf());
    let top = Place {
        file: file.clone(),
        line: 1,
    };
    let bytes = match plain_file(path) {
        Ok(bytes) => bytes,
        Err(e) => {
            problems.add(None, format!("cannot read {}: {e}", show(path)));
            return None;
        }
    };
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(e) => {
            let before = bytes.iter().take(e.valid_up_to());
            let line = 1 + before.filter(|b| **b == b'\n').count();
            problems.add(Some(&Place { line, ..top }), "not UTF-8 text");
            return None;
        }
    };
    parse(file, text, problems)
}

/// All of a plain file. Nothing else is waited for: what a FIFO's other end or a device might say is no configuration.
pub fn plain_file(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    if meta.len() > FILE_BYTES_MAX {
        let why = format!("it is larger than {FILE_BYTES_MAX} bytes");
        return Err(io::Error::other(why));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Likewise, of a text.
pub fn parse(file: Arc<PathBuf>, text: &str, problems: &mut Problems) -> Option<Table> {
    let lines = Lines {
        file,
        starts: text.match_indices('\n').map(|(at, _)| at).collect(),
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        problems.add(Some(&lines.place(at)), error.message());
    }
    errors
        .is_empty()
        .then(|| lines.table(table.span().start, table.get_ref()))
}

struct Lines {
    file: Arc<PathBuf>,
    /// Where each line ends.
    starts: Vec<usize>,
}

impl Lines {
    fn place(&self, at: usize) -> Place {
        Place {
            file: self.file.clone(),
            line: 1 + self.starts.partition_point(|end| *end < at),
        }
    }

    fn table(&self, at: usize, table: &DeTable<'_>) -> Table {
        let keys = table.iter().map(|(key, value)| {
            let place = self.place(key.span().start);
            let node = self.node(value.span().start, value.get_ref());
            (key.get_ref().to_string(), (place, node))
        });
        Table {
            place: self.place(at),
            keys: keys.collect(),
        }
    }

    fn node(&self, at: usize, value: &DeValue<'_>) -> Node {
        let place = self.place(at);
        let value = match value {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(n) => i64::from_str_radix(n.as_str(), n.radix())
                .map_or(Value::Other("a number that large"), Value::Integer),
            DeValue::Boolean(is) => Value::Bool(*is),
            DeValue::Array(list) => Value::List(
                list.iter()
                    .map(|node| self.node(node.span().start, node.get_ref()))
                    .collect(),
            ),
            DeValue::Table(table) => Value::Table(self.table(at, table)),
            DeValue::Float(_) => Value::Other("a broken number"),
            DeValue::Datetime(_) => Value::Other("a date or time"),
        };
        Node { place, value }
    }
}

impl Value {
    pub fn what(&self) -> &'static str {
        match self {
            Value::Text(_) => "a text",
            Value::Integer(_) => "a number",
            Value::Bool(_) => "true or false",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
            Value::Other(what) => what,
        }
    }
}

impl Node {
    fn not(&self, wanted: &str, problems: &mut Problems) {
        let why = format!("{wanted} is wanted here, and this is {}", self.value.what());
        problems.add(Some(&self.place), why);
    }

    pub fn text(&self, problems: &mut Problems) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => {
                self.not("a text in quotes", problems);
                None
            }
        }
    }

    /// A text, or a number that could as well be written as one.
    pub fn word(&self, problems: &mut Problems) -> Option<String> {
        match &self.value {
            Value::Text(text) => Some(text.clone()),
            Value::Integer(n) => Some(n.to_string()),
            _ => {
                self.not("a text in quotes", problems);
                None
            }
        }
    }

    pub fn list(&self, problems: &mut Problems) -> Option<&[Node]> {
        match &self.value {
            Value::List(list) => Some(list),
            _ => {
                self.not("a list in [ ]", problems);
                None
            }
        }
    }

    pub fn into_table(self, problems: &mut Problems) -> Option<Table> {
        match self.value {
            Value::Table(table) => Some(table),
            _ => {
                self.not("a table", problems);
                None
            }
        }
    }
}

impl Table {
    /// The value of a key, which is thereby known.
    pub fn take(&mut self, key: &str) -> Option<Node> {
        self.keys.remove(key).map(|(_, node)| node)
    }

    pub fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// A text, made into something by `parse`.
    pub fn parsed<T>(
        &mut self,
        key: &str,
        problems: &mut Problems,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let node = self.take(key)?;
        let word = node.word(problems)?;
        match parse(&word) {
            Ok(value) => Some(value),
            Err(why) => {
                problems.add(Some(&node.place), format!("{key}: {why}"));
                None
            }
        }
    }

    pub fn bool(&mut self, key: &str, problems: &mut Problems) -> Option<bool> {
        let node = self.take(key)?;
        match node.value {
            Value::Bool(is) => Some(is),
            _ => {
                node.not("true or false", problems);
                None
            }
        }
    }

    pub fn integer<T: FromStr + PartialOrd + fmt::Display>(
        &mut self,
        key: &str,
        range: std::ops::RangeInclusive<T>,
        problems: &mut Problems,
    ) -> Option<T> {
        let node = self.take(key)?;
        let number = match &node.value {
            Value::Integer(n) => n.to_string().parse::<T>().ok(),
            _ => {
                node.not("a number", problems);
                return None;
            }
        };
        match number {
            Some(n) if range.contains(&n) => Some(n),
            _ => {
                let why = format!(
                    "{key} is a number from {} to {}",
                    range.start(),
                    range.end()
                );
                problems.add(Some(&node.place), why);
                None
            }
        }
    }

    /// A list of texts, or one text alone.
    pub fn texts(&mut self, key: &str, problems: &mut Problems) -> Option<Vec<(Place, String)>> {
        let node = self.take(key)?;
        if let Value::Text(text) = node.value {
            return Some(vec![(node.place, text)]);
        }
        let list = node.list(problems)?;
        let texts = list.iter().filter_map(|node| {
            let text = node.text(problems)?.to_owned();
            Some((node.place.clone(), text))
        });
        Some(texts.collect())
    }

    /// The tables below a key by their names, as `[tree.NAME]` makes them.
    pub fn tables(&mut self, key: &str, problems: &mut Problems) -> Vec<(String, Table)> {
        let Some(table) = self.take(key).and_then(|node| node.into_table(problems)) else {
            return Vec::new();
        };
        table
            .keys
            .into_iter()
            .filter_map(|(name, (place, node))| {
                let table = node.into_table(problems)?;
                Some((name, Table { place, ..table }))
            })
            .collect()
    }

    /// All keys that are known were taken: what is left is a mistake. `known` helps to see which one was meant.
    pub fn end(self, known: &[&str], problems: &mut Problems) {
        for (key, (place, _)) in self.keys {
            let shown = mirror_core::escape(key.as_bytes());
            let why = if known.contains(&key.as_str()) {
                format!("{shown} is there twice")
            } else {
                format!(
                    "no setting is called {shown}; there are {}",
                    known.join(", ")
                )
            };
            problems.add(Some(&place), why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> (Option<Table>, Problems) {
        let mut problems = Problems::default();
        let table = parse(Arc::new("/etc/x.toml".into()), text, &mut problems);
        (table, problems)
    }

    fn lines(problems: Problems) -> Vec<String> {
        problems.sorted().iter().map(Problem::to_string).collect()
    }

    #[test]
    fn every_mistake_has_its_line() {
        let text = "a = 1\nnice = 30\nlist = ['x', 2]\n\n[tree.blog]\npath = '/x'\npaht = '/y'\n[tree]\nodd = 1\n";
        let (table, mut problems) = all(text);
        let mut table = table.unwrap();
        assert_eq!(
            table
                .parsed("a", &mut problems, |w| Ok(w.to_owned()))
                .as_deref(),
            Some("1")
        );
        assert_eq!(table.integer::<i8>("nice", -20..=19, &mut problems), None);
        let list = table.texts("list", &mut problems).unwrap();
        assert_eq!(list.len(), 1);
        let mut trees = table.tables("tree", &mut problems);
        let (name, mut blog) = trees.pop().unwrap();
        assert_eq!((name.as_str(), blog.place.line), ("blog", 5));
        assert!(
            blog.parsed("path", &mut problems, |_| Err::<(), _>("it is gone".into()))
                .is_none()
        );
        blog.end(&["path", "ignore"], &mut problems);
        table.end(&["a"], &mut problems);
        assert_eq!(
            lines(problems),
            [
                "/etc/x.toml, line 2: nice is a number from -20 to 19",
                "/etc/x.toml, line 3: a text in quotes is wanted here, and this is a number",
                "/etc/x.toml, line 6: path: it is gone",
                "/etc/x.toml, line 7: no setting is called paht; there are path, ignore",
                "/etc/x.toml, line 9: a table is wanted here, and this is a number",
            ]
        );
    }

    #[test]
    fn what_is_no_toml_is_said_with_its_lines() {
        let (table, problems) = all("a = 1\nb = = 2\nc = 3\nc = 4\n");
        assert!(table.is_none());
        let lines = lines(problems);
        assert!(
            lines.iter().any(|l| l.starts_with("/etc/x.toml, line 2: ")),
            "{lines:?}"
        );
        assert!(
            lines.iter().any(|l| l.starts_with("/etc/x.toml, line 4: ")),
            "{lines:?}"
        );
        let mut problems = Problems::default();
        assert!(read(Path::new("/nowhere/x.toml"), &mut problems).is_none());
        assert_eq!(problems.len(), 1);
    }
}
