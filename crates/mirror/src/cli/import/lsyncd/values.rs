//! What expressions stand for. Names may stand for much that stands for much: all of it has a limit.

use std::collections::{BTreeMap, BTreeSet};

use super::super::lua::{Expr, Statement, Table};

/// Of values in values, with all that variables stand for.
const DEPTH_MAX: usize = 32;
const VALUES_MAX: usize = 100_000;
const TEXT_BYTES_MAX: usize = 64 << 10;
/// What an expression stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Nil,
    Bool(bool),
    Number(String),
    Text(Vec<u8>),
    /// `default.rsync`, or what nobody gave a value.
    Name(Vec<String>),
    Table(Vec<Entry>),
    Other(&'static str),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub line: usize,
    pub key: Option<String>,
    pub value: Value,
}

impl Value {
    /// Why it is no text.
    pub fn no_text(&self) -> &'static str {
        match self {
            Value::Other(what) => what,
            Value::Name(_) => "a name that is set nowhere",
            Value::Text(_) => "an empty text",
            _ => "a text is wanted",
        }
    }
}

/// Names and their values, as far as the file was read.
pub struct Values {
    /// And how many values each is.
    given: BTreeMap<String, (Value, usize)>,
    /// Names that are set more than once, or where it is not known when.
    changing: BTreeSet<String>,
    used: usize,
}

impl Values {
    pub fn new(statements: &[Statement]) -> Values {
        Values {
            given: BTreeMap::new(),
            changing: changing(statements),
            used: 0,
        }
    }

    pub fn set(&mut self, name: &str, value: Value) {
        let size = size(&value);
        self.given.insert(name.to_owned(), (value, size));
    }

    pub fn entries(&mut self, table: &Table, depth: usize) -> Vec<Entry> {
        let items = table.items.iter();
        items
            .map(|item| Entry {
                line: item.line,
                key: item.key.clone(),
                value: self.value(&item.value, depth + 1),
            })
            .collect()
    }

    pub fn value(&mut self, expr: &Expr, depth: usize) -> Value {
        self.used += 1;
        if depth > DEPTH_MAX || self.used > VALUES_MAX {
            return Value::Other("too much, or nested too deep");
        }
        match expr {
            Expr::Nil => Value::Nil,
            Expr::Bool(value) => Value::Bool(*value),
            Expr::Number(number) => Value::Number(number.clone()),
            Expr::Text(text) => Value::Text(text.clone()),
            Expr::Other(what) => Value::Other(what),
            Expr::Table(table) => Value::Table(self.entries(table, depth)),
            Expr::Name(name) => self.named(name),
            Expr::Joined(parts) => {
                let mut out = Vec::new();
                for part in parts {
                    match self.value(part, depth + 1) {
                        Value::Text(text) => out.extend_from_slice(&text),
                        Value::Number(number) => out.extend_from_slice(number.as_bytes()),
                        Value::Other(what) => return Value::Other(what),
                        _ => return Value::Other("joined with what is no text"),
                    }
                    if out.len() > TEXT_BYTES_MAX {
                        return Value::Other("a text that is too long");
                    }
                }
                Value::Text(out)
            }
        }
    }

    fn named(&mut self, name: &[String]) -> Value {
        let [one] = name else {
            return Value::Name(name.to_vec());
        };
        if self.changing.contains(one) {
            return Value::Other("a name that is set more than once");
        }
        match self.given.get(one) {
            Some((value, size)) => {
                self.used += size;
                match (value, self.used > VALUES_MAX) {
                    (_, true) => Value::Other("too much, or nested too deep"),
                    // Names of names are as deep as they are written.
                    (Value::Table(entries), _) if deep(entries) > DEPTH_MAX => {
                        Value::Other("too much, or nested too deep")
                    }
                    (value, _) => value.clone(),
                }
            }
            None => Value::Name(name.to_vec()),
        }
    }
}

fn changing(statements: &[Statement]) -> BTreeSet<String> {
    let (mut once, mut more) = (BTreeSet::new(), BTreeSet::new());
    for statement in statements {
        match statement {
            Statement::Set { name, .. } => {
                if let Some(first) = name.first()
                    && !once.insert(first.clone())
                {
                    more.insert(first.clone());
                }
            }
            Statement::Other { sets, .. } => more.extend(sets.iter().cloned()),
            Statement::Call { .. } => {}
        }
    }
    more
}

fn size(value: &Value) -> usize {
    match value {
        Value::Table(entries) => {
            1 + entries
                .iter()
                .map(|entry| size(&entry.value))
                .sum::<usize>()
        }
        Value::Text(text) => 1 + text.len() / 100,
        _ => 1,
    }
}

fn deep(entries: &[Entry]) -> usize {
    let below = entries.iter().map(|entry| match &entry.value {
        Value::Table(entries) => deep(entries),
        _ => 0,
    });
    1 + below.max().unwrap_or(0)
}
