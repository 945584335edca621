//! What options of rsync and ssh mean here. rsnapshot and lsyncd both pass them on.

use std::time::Duration;

use super::notes::{At, Notes};
use super::patterns::Rule;
use crate::cli::parse;

/// What one tree is copied with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Args {
    /// Names in the copy begin at the top of the host, not at the source.
    pub relative: bool,
    /// Owners and groups are set in the copy.
    pub owners: bool,
    pub one_fs: bool,
    pub bytes_per_s: Option<u64>,
    pub timeout: Option<Duration>,
    pub remote_command: Option<String>,
    pub ssh_port: Option<u16>,
    pub ssh_user: Option<String>,
    pub rules: Vec<Rule>,
    /// Rules in files, to be read after all others, and whether they keep.
    pub rule_files: Vec<(bool, String, At)>,
}

/// Of one tree.
const RULES_MAX: usize = 2000;

/// The copy is exact anyway, so these are always so, or are not needed.
const ALWAYS: &[&str] = &[
    "archive",
    "recursive",
    "links",
    "perms",
    "times",
    "devices",
    "specials",
    "hard-links",
    "acls",
    "xattrs",
    "sparse",
    "executability",
    "numeric-ids",
    "delete",
    "del",
    "delete-before",
    "delete-during",
    "delete-delay",
    "delete-after",
    "delete-excluded",
    "delete-missing-args",
    "ignore-errors",
    "force",
    "dirs",
    "checksum",
    "ignore-times",
    "whole-file",
    "no-whole-file",
    "inplace",
    "partial",
    "append-verify",
    "delay-updates",
    "fsync",
    "protect-args",
    "secluded-args",
    "compress",
    "no-compress",
    "verbose",
    "quiet",
    "human-readable",
    "stats",
    "progress",
    "itemize-changes",
    "no-motd",
    "fuzzy",
    "inc-recursive",
    "no-inc-recursive",
    "ipv4",
    "ipv6",
    "blocking-io",
    "from0",
    "8-bit-output",
    "open-noatime",
    "super",
    "no-implied-dirs",
    "implied-dirs",
];

/// Likewise, with a value.
const ALWAYS_WITH_VALUE: &[&str] = &[
    "partial-dir",
    "temp-dir",
    "log-file",
    "log-file-format",
    "out-format",
    "info",
    "debug",
    "compress-level",
    "compress-choice",
    "skip-compress",
    "block-size",
    "checksum-choice",
    "modify-window",
    "outbuf",
    "protocol",
    "contimeout",
    "max-alloc",
    "password-file",
    "link-dest",
    "compare-dest",
    "copy-dest",
];

/// These make a copy that is not the source.
const NOT_EXACT: &[&str] = &[
    "update",
    "existing",
    "ignore-existing",
    "size-only",
    "copy-links",
    "copy-unsafe-links",
    "safe-links",
    "munge-links",
    "copy-dirlinks",
    "keep-dirlinks",
    "append",
    "backup",
    "dry-run",
    "list-only",
    "remove-source-files",
    "prune-empty-dirs",
    "omit-dir-times",
    "omit-link-times",
    "no-perms",
    "no-times",
    "no-links",
    "no-recursive",
    "cvs-exclude",
    "write-devices",
    "copy-devices",
];

const NOT_EXACT_WITH_VALUE: &[&str] = &[
    "max-size",
    "min-size",
    "chmod",
    "chown",
    "usermap",
    "groupmap",
    "copy-as",
    "iconv",
    "backup-dir",
    "suffix",
    "files-from",
    "read-batch",
    "write-batch",
];

/// What the letters stand for.
const LETTERS: &[(char, &str)] = &[
    ('a', "archive"),
    ('r', "recursive"),
    ('l', "links"),
    ('p', "perms"),
    ('t', "times"),
    ('g', "group"),
    ('o', "owner"),
    ('D', "devices"),
    ('H', "hard-links"),
    ('A', "acls"),
    ('X', "xattrs"),
    ('S', "sparse"),
    ('E', "executability"),
    ('R', "relative"),
    ('x', "one-file-system"),
    ('v', "verbose"),
    ('q', "quiet"),
    ('h', "human-readable"),
    ('i', "itemize-changes"),
    ('P', "partial"),
    ('z', "compress"),
    ('c', "checksum"),
    ('I', "ignore-times"),
    ('W', "whole-file"),
    ('d', "dirs"),
    ('y', "fuzzy"),
    ('s', "protect-args"),
    ('0', "from0"),
    ('8', "8-bit-output"),
    ('4', "ipv4"),
    ('6', "ipv6"),
    ('u', "update"),
    ('L', "copy-links"),
    ('k', "copy-dirlinks"),
    ('K', "keep-dirlinks"),
    ('b', "backup"),
    ('n', "dry-run"),
    ('m', "prune-empty-dirs"),
    ('O', "omit-dir-times"),
    ('J', "omit-link-times"),
    ('C', "cvs-exclude"),
];

const EXACT: &str = "the copy is exact: type, bytes, mode, times, names, and nothing besides";
const EXACT_INSTEAD: &str =
    "what should not be in the copy goes into `ignore`; if the copy must differ, keep rsync for it";

impl Args {
    /// Options of rsync, as words.
    pub fn read(&mut self, words: &[String], at: &At, notes: &mut Notes) {
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if let Some(long) = word.strip_prefix("--") {
                let (name, value) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (long, None),
                };
                let value = match value {
                    None if takes_value(name) => words.next().cloned(),
                    value => value,
                };
                self.option(name, value, word, at, notes);
            } else if let Some(letters) = word.strip_prefix('-').filter(|l| !l.is_empty()) {
                let mut rest = letters.chars();
                while let Some(letter) = rest.next() {
                    let long = match letter {
                        'e' => "rsh",
                        'f' => "filter",
                        'T' => "temp-dir",
                        'B' => "block-size",
                        '@' => "modify-window",
                        'M' => "remote-option",
                        _ => match LETTERS.iter().find(|(l, _)| *l == letter) {
                            Some((_, long)) => {
                                self.option(long, None, &format!("-{letter}"), at, notes);
                                continue;
                            }
                            None => {
                                unknown(&format!("-{letter}"), at, notes);
                                continue;
                            }
                        },
                    };
                    let value = match rest.as_str() {
                        "" => words.next().cloned(),
                        value => Some(value.to_owned()),
                    };
                    self.option(long, value, word, at, notes);
                    break;
                }
            } else {
                unknown(word, at, notes);
            }
        }
    }

    fn option(
        &mut self,
        name: &str,
        value: Option<String>,
        word: &str,
        at: &At,
        notes: &mut Notes,
    ) {
        let text = value.clone().unwrap_or_default();
        match name {
            "relative" => self.relative = true,
            "no-relative" => self.relative = false,
            "owner" | "group" => self.owners = true,
            "no-owner" | "no-group" => self.owners = false,
            "one-file-system" => self.one_fs = true,
            "archive" => self.owners = true,
            "fake-super" => self.owners = false,
            "bwlimit" => match rate(&text) {
                Some(rate) => self.bytes_per_s = Some(rate).filter(|rate| *rate > 0),
                None => unknown(&format!("--bwlimit={text}"), at, notes),
            },
            "timeout" => match text.parse() {
                Ok(0) => self.timeout = None,
                Ok(seconds) => self.timeout = Some(Duration::from_secs(seconds)),
                Err(_) => unknown(&format!("--timeout={text}"), at, notes),
            },
            "max-delete" => notes.needless(
                at,
                word.as_bytes(),
                "when very much goes at once a mirror holds and asks (on_mass_change)",
            ),
            "exclude" | "include" => self.rule(name == "include", &text, at, notes),
            "exclude-from" | "include-from" => {
                self.rule_files
                    .push((name == "include-from", text, at.clone()));
            }
            "filter" => self.filter(&text, at, notes),
            "rsync-path" => self.remote(&text, at, notes),
            "rsh" => {
                let mut words = split(&text).into_iter();
                match words.next() {
                    Some(ssh) if ssh == "ssh" || ssh.ends_with("/ssh") => {
                        self.ssh(&words.collect::<Vec<_>>(), at, notes);
                    }
                    _ => notes.open(
                        at,
                        format!("--rsh={text}").as_bytes(),
                        "only the system's ssh is called",
                        "a host in ~/.ssh/config (ProxyCommand, ProxyJump) reaches the same",
                    ),
                }
            }
            _ if ALWAYS.contains(&name) || ALWAYS_WITH_VALUE.contains(&name) => {}
            _ if NOT_EXACT.contains(&name) || NOT_EXACT_WITH_VALUE.contains(&name) => {
                notes.open(
                    at,
                    shown(name, &text, word).as_bytes(),
                    EXACT,
                    EXACT_INSTEAD,
                );
            }
            _ => unknown(&shown(name, &text, word), at, notes),
        }
    }

    /// rsync itself reads `- x`, `+ x` and `!` where a pattern is wanted.
    pub fn rule(&mut self, keep: bool, pattern: &str, at: &At, notes: &mut Notes) {
        let (keep, pattern) = match (pattern.strip_prefix("- "), pattern.strip_prefix("+ ")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ if pattern == "!" => return self.rules.clear(),
            _ => (keep, pattern),
        };
        if pattern.is_empty() {
            return unknown("an empty pattern", at, notes);
        }
        if self.rules.len() >= RULES_MAX {
            let why = format!("there are more than {RULES_MAX} rules");
            return notes.open(
                &At {
                    line: 0,
                    ..at.clone()
                },
                b"rules",
                why,
                "fewer, wider ones",
            );
        }
        self.rules.push(Rule {
            keep,
            pattern: pattern.to_owned(),
            at: at.clone(),
        });
    }

    /// A rule as `--filter` has it.
    pub fn filter(&mut self, text: &str, at: &At, notes: &mut Notes) {
        let rule = text.split_once([' ', '_']);
        match rule {
            Some(("-" | "exclude", pattern)) => self.rule(false, pattern, at, notes),
            Some(("+" | "include", pattern)) => self.rule(true, pattern, at, notes),
            _ => notes.open(
                at,
                format!("--filter={text}").as_bytes(),
                "of filter rules only '- PATTERN' and '+ PATTERN' have a counterpart; no file inside a tree decides about it",
                "gitignore lines in `ignore` of the tree",
            ),
        }
    }

    /// The lines of a file of rules.
    pub fn rule_lines(&mut self, keep: bool, text: &[u8], at: &At, notes: &mut Notes) {
        for (number, line) in text.split(|b| *b == b'\n').enumerate() {
            if self.rules.len() >= RULES_MAX && number > 0 {
                return self.rule(keep, "more", at, notes);
            }
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let at = At {
                line: number + 1,
                ..at.clone()
            };
            if line.is_empty() || line.starts_with(b"#") || line.starts_with(b";") {
                continue;
            }
            match std::str::from_utf8(line) {
                Ok(line) => self.rule(keep, line, &at, notes),
                Err(_) => notes.open(&at, line, "a pattern is UTF-8 here", "? for each such byte"),
            }
        }
    }

    fn remote(&mut self, text: &str, at: &At, notes: &mut Notes) {
        let words = split(text);
        let is_rsync = |word: &String| word == "rsync" || word.ends_with("/rsync");
        match words.split_last() {
            Some((last, [])) if is_rsync(last) => {}
            Some((last, [sudo, options @ ..]))
                if is_rsync(last)
                    && (sudo == "sudo" || sudo.ends_with("/sudo"))
                    && options.iter().all(|o| o == "-n") =>
            {
                self.remote_command = Some(format!("{sudo} -n mirrord"));
            }
            _ => notes.open(
                at,
                format!("--rsync-path={text}").as_bytes(),
                "what is run at the far end is mirrord, not rsync",
                "remote_command = \"... mirrord\" in the tree",
            ),
        }
    }

    /// Options of ssh, as words.
    pub fn ssh(&mut self, words: &[String], at: &At, notes: &mut Notes) {
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some((letter, inline)) = word.strip_prefix('-').and_then(|w| w.split_at_checked(1))
            else {
                ssh_config(word, at, notes);
                continue;
            };
            // Without a value.
            if "46AaCfgKkMNnqsTtVvXxYy".contains(letter) {
                match letter {
                    "4" | "6" | "A" => ssh_config(word, at, notes),
                    _ => {}
                }
                continue;
            }
            let value = match inline {
                "" => words.next().cloned().unwrap_or_default(),
                value => value.to_owned(),
            };
            match (letter, value.parse::<u16>()) {
                ("p", Ok(port)) if port > 0 => self.ssh_port = Some(port),
                ("l", _) if !value.is_empty() => self.ssh_user = Some(value),
                ("c" | "m" | "e" | "E", _) => {}
                ("o", _) if is_batch(&value) => {}
                _ => ssh_config(&format!("-{letter} {value}"), at, notes),
            }
        }
    }
}

/// `Port 22` as `-o Port=22`; that nobody is asked is so anyway.
fn is_batch(value: &str) -> bool {
    let value = value.to_ascii_lowercase().replace(' ', "");
    ["batchmode=yes", "compression=no", "compression=yes"].contains(&value.as_str())
}

fn ssh_config(text: &str, at: &At, notes: &mut Notes) {
    notes.open(
        at,
        format!("ssh {text}").as_bytes(),
        "ssh is called with its own configuration only",
        "the same in ~/.ssh/config of the user that fs_mirror runs as, below a `Host` line",
    );
}

fn unknown(word: &str, at: &At, notes: &mut Notes) {
    notes.open(
        at,
        word.as_bytes(),
        "not known as an option of rsync",
        EXACT_INSTEAD,
    );
}

fn shown(name: &str, value: &str, word: &str) -> String {
    match (word.len(), value) {
        // One letter says little.
        (2, _) => format!("{word} (--{name})"),
        (_, "") => format!("--{name}"),
        _ => format!("--{name}={value}"),
    }
}

fn takes_value(name: &str) -> bool {
    let more = [
        "exclude",
        "include",
        "exclude-from",
        "include-from",
        "filter",
        "rsync-path",
        "rsh",
        "bwlimit",
        "timeout",
        "max-delete",
        "remote-option",
    ];
    more.contains(&name)
        || ALWAYS_WITH_VALUE.contains(&name)
        || NOT_EXACT_WITH_VALUE.contains(&name)
}

/// As of `--bwlimit`: KiB a second, unless a unit says otherwise.
fn rate(text: &str) -> Option<u64> {
    let with_unit = match text.bytes().last()? {
        b'0'..=b'9' | b'.' => format!("{text}K"),
        _ => text.to_owned(),
    };
    match parse::size(&with_unit).ok()? {
        bytes @ 1..1024 => Some(bytes.max(1024)),
        bytes => Some(bytes),
    }
}

/// Words as rsnapshot makes them: blanks separate, quotes of either kind hold together.
pub fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in text.chars() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_ascii_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> (Args, Vec<String>) {
        let (mut args, mut notes) = (Args::default(), Notes::default());
        args.read(&split(line), &At::default(), &mut notes);
        let open = notes.open.into_iter().map(|note| note.text).collect();
        (args, open)
    }

    #[test]
    fn words() {
        let table: &[(&str, &[&str])] = &[
            ("", &[]),
            ("  -a  --x ", &["-a", "--x"]),
            ("--a='b c' \"d\"e", &["--a=b c", "de"]),
            ("''", &[""]),
            ("'open", &["open"]),
        ];
        for (text, want) in table {
            assert_eq!(split(text), *want, "{text}");
        }
    }

    #[test]
    fn what_an_exact_copy_does_anyway() {
        for line in [
            "-a",
            "-aHAXSv --delete --numeric-ids --relative --delete-excluded",
            "-rlptgoD --stats -h --partial-dir=.p --temp-dir /x",
            "-e ssh",
            "--rsh=/usr/bin/ssh -q",
            "--rsync-path=/usr/bin/rsync",
        ] {
            assert_eq!(read(line).1, [""; 0], "{line}");
        }
        assert!(read("-aR").0.relative && read("-a").0.owners && read("-x").0.one_fs);
        assert!(!read("-a --no-owner").0.owners && !read("-a --fake-super").0.owners);
    }

    #[test]
    fn what_has_a_counterpart() {
        let (args, open) = read(
            "--bwlimit=500 --timeout=30 --rsync-path='sudo rsync' -e 'ssh -p 2222 -l bob -T' --exclude '*.o' --include=a \
             --filter='- b' -f '+ c' --exclude-from=/x",
        );
        assert_eq!(open, [""; 0]);
        assert_eq!(args.bytes_per_s, Some(500 << 10));
        assert_eq!(args.timeout, Some(Duration::from_secs(30)));
        assert_eq!(args.remote_command.as_deref(), Some("sudo -n mirrord"));
        assert_eq!(args.ssh_port, Some(2222));
        assert_eq!(args.ssh_user.as_deref(), Some("bob"));
        let rules: Vec<_> = args.rules.iter().map(|r| (r.keep, &*r.pattern)).collect();
        let want = [(false, "*.o"), (true, "a"), (false, "b"), (true, "c")];
        assert_eq!(rules, want);
        assert_eq!(args.rule_files.len(), 1);
        for (text, want) in [
            ("1.5m", Some(1_572_864)),
            ("10", Some(10 << 10)),
            ("0", Some(0)),
            ("1000KB", Some(1_000_000)),
            ("fast", None),
            ("", None),
        ] {
            assert_eq!(rate(text), want, "{text}");
        }
    }

    #[test]
    fn what_has_none_is_named() {
        for (line, want) in [
            ("-aL", vec!["-L (--copy-links)"]),
            ("--max-size=1G", vec!["--max-size=1G"]),
            ("--chmod Du+w", vec!["--chmod=Du+w"]),
            ("--frobnicate", vec!["--frobnicate"]),
            ("-aZ /x", vec!["-Z", "/x"]),
            ("-e 'rsh x'", vec!["--rsh=rsh x"]),
            ("-e 'ssh -i /k -o X=y'", vec!["ssh -i /k", "ssh -o X=y"]),
            ("--filter='dir-merge /.f'", vec!["--filter=dir-merge /.f"]),
            ("-F", vec!["-F"]),
            ("--rsync-path=/opt/wrap", vec!["--rsync-path=/opt/wrap"]),
            ("--bwlimit", vec!["--bwlimit="]),
        ] {
            assert_eq!(read(line).1, want, "{line}");
        }
    }
}
