//! Lua as words. Whatever the bytes are, each becomes part of one, with the line it stands in.

#[derive(Debug, Clone, PartialEq)]
pub enum Word {
    Name(String),
    Text(Vec<u8>),
    Number(String),
    /// Punctuation, as it is written.
    Sign(&'static str),
    /// What no Lua has.
    Stray(u8),
}

#[derive(Debug, Clone)]
pub struct Token {
    pub word: Word,
    pub line: usize,
}

const SIGNS: &[&str] = &[
    "...", "..", "==", "~=", "<=", ">=", "//", "::", "<<", ">>", "{", "}", "(", ")", "[", "]", "=",
    ",", ";", ".", ":", "+", "-", "*", "/", "%", "^", "#", "<", ">", "&", "|", "~",
];

/// All words of a text; comments are dropped.
pub fn tokens(text: &[u8]) -> Vec<Token> {
    // A first line for the shell.
    let shebang = text.starts_with(b"#");
    let mut reader = Reader {
        rest: text,
        line: 1,
    };
    if shebang {
        reader.rest_of_line();
    }
    let mut out = Vec::new();
    while let Some(first) = reader.rest.first().copied() {
        let line = reader.line;
        let word = match first {
            b if b.is_ascii_whitespace() || b == 0x0b => {
                reader.take();
                continue;
            }
            b'-' if reader.rest.starts_with(b"--") => {
                reader.skip(2);
                if reader.long().is_none() {
                    reader.rest_of_line();
                }
                continue;
            }
            b'"' | b'\'' => Word::Text(reader.quoted()),
            b'[' => match reader.long() {
                Some(text) => Word::Text(text),
                None => {
                    reader.take();
                    Word::Sign("[")
                }
            },
            b if b.is_ascii_alphabetic() || b == b'_' => {
                Word::Name(reader.while_true(|b| b.is_ascii_alphanumeric() || b == b'_'))
            }
            b if b.is_ascii_digit() => {
                Word::Number(reader.while_true(|b| b.is_ascii_alphanumeric() || b == b'.'))
            }
            other => match SIGNS.iter().find(|s| reader.rest.starts_with(s.as_bytes())) {
                Some(sign) => {
                    reader.skip(sign.len());
                    Word::Sign(sign)
                }
                None => {
                    reader.take();
                    Word::Stray(other)
                }
            },
        };
        out.push(Token { word, line });
    }
    out
}

struct Reader<'a> {
    rest: &'a [u8],
    line: usize,
}

impl Reader<'_> {
    fn take(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        self.line += usize::from(first == b'\n');
        Some(first)
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.take();
        }
    }

    fn rest_of_line(&mut self) {
        while self.rest.first().is_some_and(|b| *b != b'\n') {
            self.take();
        }
    }

    fn while_true(&mut self, good: impl Fn(u8) -> bool) -> String {
        let mut out = String::new();
        while let Some(b) = self.rest.first().copied().filter(|b| good(*b)) {
            out.push(char::from(b));
            self.take();
        }
        out
    }

    /// `[[...]]` or `[==[...]==]`; `None`: no such thing begins here.
    fn long(&mut self) -> Option<Vec<u8>> {
        let inner = self.rest.strip_prefix(b"[")?;
        let level = inner.iter().take_while(|b| **b == b'=').count();
        if inner.get(level) != Some(&b'[') {
            return None;
        }
        self.skip(level + 2);
        // The line's end right after the brackets is not part of it.
        if self.rest.starts_with(b"\r") {
            self.take();
        }
        if self.rest.starts_with(b"\n") {
            self.take();
        }
        let mut end = vec![b']'];
        end.extend(std::iter::repeat_n(b'=', level));
        end.push(b']');
        let mut out = Vec::new();
        while !self.rest.is_empty() {
            if self.rest.first() == Some(&b']') && self.rest.starts_with(&end) {
                self.skip(end.len());
                break;
            }
            out.extend(self.take());
        }
        Some(out)
    }

    fn quoted(&mut self) -> Vec<u8> {
        let quote = self.take();
        let mut out = Vec::new();
        while let Some(b) = self.rest.first().copied() {
            // One that never ends goes no further than its line.
            if b == b'\n' {
                break;
            }
            self.take();
            if Some(b) == quote {
                break;
            }
            match b {
                b'\\' => self.escaped(&mut out),
                b => out.push(b),
            }
        }
        out
    }

    fn escaped(&mut self, out: &mut Vec<u8>) {
        let Some(b) = self.take() else { return };
        match b {
            b'a' => out.push(7),
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'v' => out.push(11),
            b'x' => {
                let digits = self.rest.get(..2).and_then(|d| std::str::from_utf8(d).ok());
                if let Some(value) = digits.and_then(|d| u8::from_str_radix(d, 16).ok()) {
                    self.skip(2);
                    out.push(value);
                }
            }
            b'z' => {
                while self.rest.first().is_some_and(u8::is_ascii_whitespace) {
                    self.take();
                }
            }
            b'0'..=b'9' => {
                let mut value = u32::from(b - b'0');
                for _ in 0..2 {
                    match self.rest.first() {
                        Some(d @ b'0'..=b'9') => {
                            value = value * 10 + u32::from(d - b'0');
                            self.take();
                        }
                        _ => break,
                    }
                }
                out.push(u8::try_from(value).unwrap_or(b'?'));
            }
            // Also quotes, a backslash, the line's end.
            other => out.push(other),
        }
    }
}
