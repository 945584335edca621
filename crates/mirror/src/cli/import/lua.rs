//! As much of Lua as a simple configuration is written in: calls with a table, and values that are given names.
//!
//! Nothing is computed but the joining of strings. Whatever else stands there is skipped as a whole, and named with its line.
//! The text may be hostile: depth and sizes have limits, and every step takes at least one word.

mod words;

use words::{Token, Word, tokens};

/// Tables in tables.
const DEPTH_MAX: usize = 32;

#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    Nil,
    Bool(bool),
    Number(String),
    Text(Vec<u8>),
    /// `default.rsync` as two.
    Name(Vec<String>),
    /// `a .. b`
    Joined(Vec<Expr>),
    Table(Table),
    /// What it is instead.
    Other(&'static str),
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    pub line: usize,
    pub items: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub line: usize,
    /// `None`: it has only a place.
    pub key: Option<String>,
    pub value: Expr,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Statement {
    /// `name { ... }`, or with round brackets.
    Call {
        line: usize,
        name: Vec<String>,
        table: Table,
    },
    /// `name = value`
    Set {
        line: usize,
        name: Vec<String>,
        value: Expr,
    },
    Other {
        line: usize,
        what: &'static str,
        /// Names that may have been set in it.
        sets: Vec<String>,
        /// Calls of these names stand in it.
        calls: Vec<String>,
    },
}

/// All statements of a file.
pub fn parse(text: &[u8]) -> Vec<Statement> {
    let mut parser = Parser {
        tokens: tokens(text),
        at: 0,
    };
    let mut out = Vec::new();
    while parser.at < parser.tokens.len() {
        let before = parser.at;
        out.extend(parser.statement());
        if parser.at == before {
            parser.at += 1;
        }
    }
    out
}

/// Is one of these names used as a call with a table is, or set?
pub fn mentions(text: &[u8], names: &[&str]) -> bool {
    tokens(text).windows(2).any(|pair| match pair {
        [
            Token {
                word: Word::Name(name),
                ..
            },
            Token {
                word: Word::Sign("{" | "(" | "="),
                ..
            },
        ] => names.contains(&name.as_str()),
        _ => false,
    })
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

/// What can't be part of an expression.
const KEYWORDS: &[&str] = &[
    "and", "break", "do", "else", "elseif", "end", "for", "function", "goto", "if", "in", "local",
    "not", "or", "repeat", "return", "then", "until", "while",
];

impl Parser {
    fn word(&self, ahead: usize) -> Option<&Word> {
        Some(&self.tokens.get(self.at + ahead)?.word)
    }

    fn line(&self) -> usize {
        let token = self.tokens.get(self.at).or(self.tokens.last());
        token.map_or(1, |token| token.line)
    }

    fn is_sign(&self, ahead: usize, sign: &str) -> bool {
        matches!(self.word(ahead), Some(Word::Sign(s)) if *s == sign)
    }

    fn is_name(&self, ahead: usize, name: &str) -> bool {
        matches!(self.word(ahead), Some(Word::Name(n)) if n == name)
    }

    fn eat(&mut self, sign: &str) -> bool {
        let found = self.is_sign(0, sign);
        self.at += usize::from(found);
        found
    }

    fn statement(&mut self) -> Option<Statement> {
        if self.eat(";") {
            return None;
        }
        let (start, line) = (self.at, self.line());
        let what = match self.word(0) {
            Some(Word::Name(name)) => match name.as_str() {
                "for" | "while" | "repeat" => "a loop",
                "if" => "a condition",
                "function" => "a function",
                "do" => "a block",
                "return" | "goto" | "break" => "a jump",
                "local" if self.is_name(1, "function") => "a function",
                _ => "",
            },
            _ => "not a statement",
        };
        if !what.is_empty() {
            return Some(self.other(start, line, what));
        }
        if self.is_name(0, "local") {
            self.at += 1;
        }
        let Some(name) = self.dotted() else {
            return Some(self.other(start, line, "not a statement"));
        };
        if self.eat("=") {
            let value = self.expr(0);
            return Some(match (self.is_over(), value) {
                (_, Expr::Other(what)) => self.other(start, line, what),
                (true, value) => Statement::Set { line, name, value },
                (false, _) => self.other(start, line, "a value that is computed"),
            });
        }
        if matches!(
            name.first().map(String::as_str),
            Some("require" | "dofile" | "loadfile" | "load")
        ) {
            return Some(self.other(start, line, "code from another file"));
        }
        let round = self.eat("(");
        if self.is_sign(0, "{") {
            let table = self.table(0);
            let closed = !round || self.eat(")");
            if closed && self.is_over() {
                return Some(Statement::Call { line, name, table });
            }
        }
        Some(self.other(start, line, "a call of a function"))
    }

    /// A statement may begin here: Lua has no sign for a statement's end.
    fn is_over(&self) -> bool {
        match self.word(0) {
            None => true,
            Some(Word::Name(name)) => !["and", "or", "then", "do", "end"].contains(&name.as_str()),
            Some(Word::Sign(sign)) => [";", "::"].contains(sign),
            _ => false,
        }
    }

    fn dotted(&mut self) -> Option<Vec<String>> {
        let mut out = Vec::new();
        loop {
            match self.word(0) {
                Some(Word::Name(name)) if !KEYWORDS.contains(&name.as_str()) => {
                    out.push(name.clone());
                }
                _ => return None,
            }
            self.at += 1;
            if !self.is_sign(0, ".") || out.len() >= DEPTH_MAX {
                return Some(out);
            }
            self.at += 1;
        }
    }

    /// Ends where the expression does, or before what is none.
    fn expr(&mut self, depth: usize) -> Expr {
        let first = self.operand(depth);
        if !self.is_sign(0, "..") {
            return first;
        }
        let mut parts = vec![first];
        while self.eat("..") {
            parts.push(self.operand(depth));
        }
        Expr::Joined(parts)
    }

    fn operand(&mut self, depth: usize) -> Expr {
        if self.eat("(") {
            if depth >= DEPTH_MAX {
                return Expr::Other("nested too deep");
            }
            let inner = self.expr(depth + 1);
            return match self.eat(")") {
                true => inner,
                false => Expr::Other("a value that is computed"),
            };
        }
        if self.is_sign(0, "{") {
            return match depth >= DEPTH_MAX {
                true => Expr::Other("nested too deep"),
                false => Expr::Table(self.table(depth + 1)),
            };
        }
        if self.is_sign(0, "-") && matches!(self.word(1), Some(Word::Number(_))) {
            self.at += 1;
            return match self.operand(depth) {
                Expr::Number(number) => Expr::Number(format!("-{number}")),
                other => other,
            };
        }
        let found = match self.word(0) {
            Some(Word::Text(text)) => Expr::Text(text.clone()),
            Some(Word::Number(number)) => Expr::Number(number.clone()),
            Some(Word::Name(name)) => match name.as_str() {
                "nil" => Expr::Nil,
                "true" => Expr::Bool(true),
                "false" => Expr::Bool(false),
                "function" => return Expr::Other("a function"),
                _ => match self.dotted() {
                    Some(name) => return Expr::Name(name),
                    None => return Expr::Other("a value that is computed"),
                },
            },
            _ => return Expr::Other("a value that is computed"),
        };
        self.at += 1;
        found
    }

    /// At its `{`.
    fn table(&mut self, depth: usize) -> Table {
        let mut table = Table {
            line: self.line(),
            items: Vec::new(),
        };
        self.eat("{");
        while self.word(0).is_some() && !self.eat("}") {
            if self.eat(",") || self.eat(";") {
                continue;
            }
            let line = self.line();
            let key = self.key();
            let value = self.expr(depth);
            let over = [",", ";", "}"].iter().any(|sign| self.is_sign(0, sign));
            let value = match (over, value) {
                (true, Expr::Other(what)) | (false, Expr::Other(what)) => {
                    self.skip_value();
                    Expr::Other(what)
                }
                (true, value) => value,
                (false, _) => {
                    self.skip_value();
                    Expr::Other("a value that is computed")
                }
            };
            table.items.push(Item { line, key, value });
        }
        table
    }

    /// `name =` or `["name"] =`, if it stands here.
    fn key(&mut self) -> Option<String> {
        match (self.word(0), self.is_sign(1, "=")) {
            (Some(Word::Name(name)), true) => {
                let name = name.clone();
                self.at += 2;
                return Some(name);
            }
            (Some(Word::Sign("[")), _) => {}
            _ => return None,
        }
        if !self.is_sign(2, "]") || !self.is_sign(3, "=") {
            return None;
        }
        let key = match self.word(1) {
            Some(Word::Text(text)) => String::from_utf8_lossy(text).into_owned(),
            Some(Word::Number(number)) => number.clone(),
            _ => return None,
        };
        self.at += 4;
        Some(key)
    }

    /// To where the value of a table's item ends: a comma or a bracket outside of all that is opened in it.
    fn skip_value(&mut self) {
        let mut open = 0usize;
        while let Some(word) = self.word(0) {
            match word {
                Word::Sign("," | ";") if open == 0 => return,
                Word::Sign("}") if open == 0 => return,
                word => match opens(word) {
                    1 => open += 1,
                    -1 => open = open.saturating_sub(1),
                    _ => {}
                },
            }
            self.at += 1;
        }
    }

    /// Skips a statement that began at `start`.
    fn other(&mut self, start: usize, line: usize, what: &'static str) -> Statement {
        self.at = start;
        let mut open = 0usize;
        let mut last: Option<Token> = None;
        while let Some(token) = self.tokens.get(self.at).cloned() {
            if let Some(last) = &last
                && open == 0
                && begins(&token, last)
            {
                break;
            }
            match opens(&token.word) {
                1 => open += 1,
                -1 => open = open.saturating_sub(1),
                _ => {}
            }
            self.at += 1;
            let ends = token.word == Word::Sign(";") && open == 0;
            last = Some(token);
            if ends {
                break;
            }
        }
        let skipped = self.tokens.get(start..self.at).unwrap_or_default();
        let (mut sets, mut calls) = (Vec::new(), Vec::new());
        for pair in skipped.windows(2) {
            if let [
                Token {
                    word: Word::Name(name),
                    ..
                },
                Token { word: next, .. },
            ] = pair
            {
                match next {
                    Word::Sign("=") => sets.push(name.clone()),
                    Word::Sign("{" | "(") => calls.push(name.clone()),
                    _ => {}
                }
            }
        }
        Statement::Other {
            line,
            what,
            sets,
            calls,
        }
    }
}

/// 1: something opens that must be closed; -1: it is closed.
fn opens(word: &Word) -> i8 {
    match word {
        Word::Sign("{" | "(" | "[") => 1,
        Word::Sign("}" | ")" | "]") => -1,
        // `for` and `while` have a `do` of their own.
        Word::Name(name) => match name.as_str() {
            "function" | "if" | "do" | "repeat" => 1,
            "end" | "until" => -1,
            _ => 0,
        },
        _ => 0,
    }
}

/// Does a new statement begin with this word, after that one?
fn begins(token: &Token, last: &Token) -> bool {
    let ended = match &last.word {
        Word::Name(name) => !KEYWORDS.contains(&name.as_str()) || name == "end",
        Word::Text(_) | Word::Number(_) => true,
        Word::Sign(sign) => ["}", ")", "]", "..."].contains(sign),
        Word::Stray(_) => true,
    };
    let can = match &token.word {
        Word::Name(name) => ![
            "and", "or", "not", "then", "do", "else", "elseif", "end", "until", "in",
        ]
        .contains(&name.as_str()),
        _ => false,
    };
    token.line > last.line && ended && can
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Statements as short words.
    fn shown(text: &str) -> Vec<String> {
        parse(text.as_bytes())
            .into_iter()
            .map(|statement| match statement {
                Statement::Call { line, name, table } => {
                    format!("{line} {} {}", name.join("."), table_shown(&table))
                }
                Statement::Set { line, name, value } => {
                    format!("{line} {}={}", name.join("."), expr_shown(&value))
                }
                Statement::Other {
                    line,
                    what,
                    sets,
                    calls,
                } => format!("{line} ({what}) {} {}", sets.join(","), calls.join(",")),
            })
            .collect()
    }

    fn table_shown(table: &Table) -> String {
        let items = table.items.iter().map(|item| match &item.key {
            Some(key) => format!("{key}={}", expr_shown(&item.value)),
            None => expr_shown(&item.value),
        });
        format!("{{{}}}", items.collect::<Vec<_>>().join(" "))
    }

    fn expr_shown(expr: &Expr) -> String {
        match expr {
            Expr::Nil => "nil".into(),
            Expr::Bool(b) => b.to_string(),
            Expr::Number(n) => n.clone(),
            Expr::Text(text) => format!("'{}'", mirror_core::escape(text)),
            Expr::Name(name) => name.join("."),
            Expr::Joined(parts) => parts.iter().map(expr_shown).collect::<Vec<_>>().join(".."),
            Expr::Table(table) => table_shown(table),
            Expr::Other(what) => format!("({what})"),
        }
    }

    #[test]
    fn what_is_understood() {
        let table: &[(&str, &[&str])] = &[
            ("", &[]),
            ("-- only words", &[]),
            ("--[[ a\nb ]] sync{}", &["2 sync {}"]),
            ("--[==[ a ]] b ]==] sync{}", &["1 sync {}"]),
            (
                "sync{default.rsync, source='/a', target=\"/b\",}",
                &["1 sync {default.rsync source='/a' target='/b'}"],
            ),
            ("sync({ a = 1; b = true })", &["1 sync {a=1 b=true}"]),
            (
                "settings = {\n  x = [[\nlong]],\n}\nsync {}",
                &["1 settings={x='long'}", "5 sync {}"],
            ),
            (
                "local d = '/srv' .. \"/x\"\nsync{source=d..'/y'}",
                &["1 d='/srv'..'/x'", "2 sync {source=d..'/y'}"],
            ),
            ("x = ('a')", &["1 x='a'"]),
            ("x = -5 y = nil", &["1 x=-5", "1 y=nil"]),
            (
                "sync{['source']='/a', [1]='b'}",
                &["1 sync {source='/a' 1='b'}"],
            ),
            ("x = 'a\\n\\x41\\066\\'\\\\'", &["1 x='a\\x0aAB'\\x5c'"]),
            ("x = 0x1F", &["1 x=0x1F"]),
            ("#!/usr/bin/lsyncd\nsync{}", &["2 sync {}"]),
            (
                "bash = { on = [[if x; end]] }\nsync{bash}",
                &["1 bash={on='if x; end'}", "2 sync {bash}"],
            ),
        ];
        for (text, want) in table {
            assert_eq!(shown(text), *want, "{text}");
        }
    }

    #[test]
    fn what_is_not_is_skipped_as_a_whole() {
        let table: &[(&str, &[&str])] = &[
            (
                "for _, h in ipairs(hosts) do\n sync{ host = h }\nend\nsync{a=1}",
                &["1 (a loop) host ipairs,sync", "4 sync {a=1}"],
            ),
            (
                "function f(a)\n if a then x = 1 end\nend\nsync{}",
                &["1 (a function) x f", "4 sync {}"],
            ),
            (
                "lftp = { action = function(i) if i then return {1,2} end end, delay = 1 }\nsync{lftp}",
                &["1 lftp={action=(a function) delay=1}", "2 sync {lftp}"],
            ),
            (
                "local x = os.getenv('A') .. '/b'\nsync{}",
                &["1 (a value that is computed) x getenv", "2 sync {}"],
            ),
            (
                "require('x')\nsync{}",
                &["1 (code from another file)  require", "2 sync {}"],
            ),
            (
                "require 'x'\nsync{}",
                &["1 (code from another file)  ", "2 sync {}"],
            ),
            (
                "print('a')\nsync{}",
                &["1 (a call of a function)  print", "2 sync {}"],
            ),
            (
                "x = 1 + 2\ny = a[1]\nsync{}",
                &[
                    "1 (a value that is computed) x ",
                    "2 (a value that is computed) y ",
                    "3 sync {}",
                ],
            ),
            (
                "sync{source = a or 'b', x = 2}",
                &["1 sync {source=(a value that is computed) x=2}"],
            ),
            (
                "repeat x = 1 until x\nsync{}",
                &["1 (a loop) x ", "2 sync {}"],
            ),
            ("while a do b() end sync{}", &["1 (a loop)  b,sync"]),
            ("} sync{}", &["1 (not a statement)  sync"]),
            (
                "sync{ 'never ends",
                &["1 sync {(a value that is computed)}"],
            ),
        ];
        for (text, want) in table {
            assert_eq!(shown(text), *want, "{text}");
        }
    }

    #[test]
    fn depth_has_a_limit() {
        for (open, close) in [("{", "}"), ("(", ")")] {
            let deep = format!(
                "x = {}{}\nsync{{}}",
                open.repeat(50_000),
                close.repeat(50_000)
            );
            let got = parse(deep.as_bytes());
            assert!(matches!(got.last(), Some(Statement::Call { .. })), "{open}");
        }
    }
}
