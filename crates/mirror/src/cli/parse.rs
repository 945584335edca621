//! From what a person types to types that can't be wrong: sources, rates, durations, escaped names.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use mirror_core::escape;

use crate::engine::options::SourceSpec;

/// One line for the person who typed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

/// What was typed, so that nothing is seen too.
fn said(text: &str) -> String {
    if text.trim().is_empty() {
        "(nothing)".into()
    } else {
        escape(text.as_bytes())
    }
}

fn bad<T>(text: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError(text.into()))
}

/// A source as rsync and scp read it: `host:path` is remote when the colon comes before any slash, so `./a:b` and
/// `/a:b` are local. Also `ssh://[user@]host[:port]/path` and `mirror://host[:port]/NAME`. Paths are not decoded.
pub fn source(text: &OsStr) -> Result<SourceSpec, ParseError> {
    let bytes = text.as_bytes();
    if bytes.is_empty() {
        return bad("SRC is empty");
    }
    if bytes.contains(&0) {
        return bad("SRC holds a zero byte");
    }
    if let Some(rest) = bytes.strip_prefix(b"ssh://") {
        return ssh_url(rest);
    }
    if let Some(rest) = bytes.strip_prefix(b"mirror://") {
        return service_url(rest);
    }
    if let Some((scheme, _)) = split_at_bytes(bytes, b"://")
        && !scheme.is_empty()
        && scheme
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b))
    {
        let scheme = escape(scheme);
        return bad(format!(
            "{scheme}:// is not a kind of source: use /path, [user@]host:/path, ssh:// or mirror:// (a directory of that name: ./{scheme}://...)"
        ));
    }
    let Some((login, path)) = split_login(bytes)? else {
        return Ok(SourceSpec::Local(PathBuf::from(text)));
    };
    let (user, host) = user_and_host(login)?;
    if path.first() == Some(&b':') {
        return bad(format!(
            "{} names an rsync service, which is not spoken here: use host:/path over ssh",
            escape(bytes)
        ));
    }
    if path.is_empty() {
        return bad(format!(
            "{} names no directory: add its path after the colon",
            escape(bytes)
        ));
    }
    Ok(SourceSpec::Ssh {
        user,
        host,
        port: None,
        path: path.to_vec(),
    })
}

/// What stands before and after the colon of `login:path`.
type LoginAndPath<'a> = (&'a [u8], &'a [u8]);

/// `None` for a local path.
fn split_login(bytes: &[u8]) -> Result<Option<LoginAndPath<'_>>, ParseError> {
    let slash = bytes.iter().position(|&b| b == b'/').unwrap_or(bytes.len());
    // A colon inside brackets belongs to an IPv6 address.
    let start = match bytes.iter().position(|&b| b == b'[') {
        Some(open)
            if open < slash && (open == 0 || bytes.get(open.wrapping_sub(1)) == Some(&b'@')) =>
        {
            match bytes.iter().position(|&b| b == b']') {
                Some(close) if bytes.get(close + 1) == Some(&b':') => close + 1,
                // `[x]` alone is a name like any other.
                _ => 0,
            }
        }
        _ => 0,
    };
    let Some(colon) = bytes
        .iter()
        .skip(start)
        .position(|&b| b == b':')
        .map(|at| at + start)
    else {
        return Ok(None);
    };
    if start == 0 && colon > slash {
        return Ok(None);
    }
    if colon == 0 {
        return bad(format!(
            "{} names no host before the colon (a file of that name: ./{0})",
            escape(bytes)
        ));
    }
    Ok(Some((
        bytes.get(..colon).unwrap_or_default(),
        bytes.get(colon + 1..).unwrap_or_default(),
    )))
}

fn ssh_url(rest: &[u8]) -> Result<SourceSpec, ParseError> {
    let (authority, path) = match rest.iter().position(|&b| b == b'/') {
        Some(at) => rest.split_at(at),
        None => (rest, &b""[..]),
    };
    let (login, port) = host_and_port(authority)?;
    let (user, host) = user_and_host(login)?;
    if path.len() < 2 && path != b"/" {
        return bad("ssh:// names no directory: ssh://[user@]host[:port]/path");
    }
    let path = match path.strip_prefix(b"/~/") {
        Some(below_home) if !below_home.is_empty() => below_home,
        _ => path,
    };
    Ok(SourceSpec::Ssh {
        user,
        host,
        port,
        path: path.to_vec(),
    })
}

fn service_url(rest: &[u8]) -> Result<SourceSpec, ParseError> {
    let Some(slash) = rest.iter().position(|&b| b == b'/') else {
        return bad("mirror:// names no tree: mirror://host[:port]/NAME");
    };
    let (authority, name) = rest.split_at(slash);
    let (login, port) = host_and_port(authority)?;
    let (user, host) = user_and_host(login)?;
    let name = name.get(1..).unwrap_or_default();
    if user.is_some() {
        return bad("mirror:// takes no user: mirror://host[:port]/NAME");
    }
    if name.is_empty() || name.contains(&b'/') {
        return bad("mirror:// needs the name of one tree: mirror://host[:port]/NAME");
    }
    Ok(SourceSpec::Service {
        host,
        port,
        name: text_of(name, "the tree's name")?,
    })
}

/// `HOST`, `HOST:PORT`, `V6` or `[V6]:PORT`.
pub fn host(text: &str) -> Result<(String, Option<u16>), ParseError> {
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Ok((text.into(), None));
    }
    let (login, port) = host_and_port(text.as_bytes())?;
    let (user, host) = user_and_host(login)?;
    if user.is_some() {
        return bad("a host takes no user: HOST or HOST:PORT");
    }
    Ok((host, port))
}

/// Takes `:port` off the end of an authority.
fn host_and_port(authority: &[u8]) -> Result<(&[u8], Option<u16>), ParseError> {
    let after_brackets = authority
        .iter()
        .rposition(|&b| b == b']')
        .map_or(0, |at| at + 1);
    let tail = authority.get(after_brackets..).unwrap_or_default();
    match tail.iter().rposition(|&b| b == b':') {
        None => Ok((authority, None)),
        Some(at) => {
            let port = tail.get(at + 1..).unwrap_or_default();
            match std::str::from_utf8(port)
                .ok()
                .and_then(|p| p.parse::<u16>().ok())
            {
                Some(port) if port > 0 => Ok((
                    authority.get(..after_brackets + at).unwrap_or_default(),
                    Some(port),
                )),
                _ => bad(format!("{} is not a port (1 to 65535)", escape(port))),
            }
        }
    }
}

/// `[user@]host` or `[user@][v6]`. What begins with a dash would be an option to ssh: refused.
fn user_and_host(login: &[u8]) -> Result<(Option<String>, String), ParseError> {
    let (user, host) = match login.iter().rposition(|&b| b == b'@') {
        Some(at) => (
            Some(login.get(..at).unwrap_or_default()),
            login.get(at + 1..).unwrap_or_default(),
        ),
        None => (None, login),
    };
    let host = match host.strip_prefix(b"[").and_then(|h| h.strip_suffix(b"]")) {
        Some(v6) => v6,
        None => host,
    };
    let check = |part: &[u8], what: &str| -> Result<String, ParseError> {
        if part.is_empty() {
            return bad(format!("{what} is missing in {}", escape(login)));
        }
        let ok = part.first() != Some(&b'-')
            && !part.iter().any(|b| {
                b.is_ascii_whitespace()
                    || b.is_ascii_control()
                    || b"/\\'\"`$;&|<>()*?[]{}".contains(b)
            });
        if !ok {
            return bad(format!("{} is not {what}", escape(part)));
        }
        text_of(part, what)
    };
    let user = user.map(|user| check(user, "a user")).transpose()?;
    Ok((user, check(host, "a host")?))
}

fn text_of(bytes: &[u8], what: &str) -> Result<String, ParseError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => bad(format!("{what} is not plain text: {}", escape(bytes))),
    }
}

fn split_at_bytes<'a>(bytes: &'a [u8], by: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(by.len()).position(|w| w == by)?;
    Some((bytes.get(..at)?, bytes.get(at + by.len()..)?))
}

/// A number of bytes: `4096`, `10M` or `10MiB` (1024s), `10MB` (1000s), `1.5G`.
pub fn size(text: &str) -> Result<u64, ParseError> {
    let no = || {
        ParseError(format!(
            "{} is not a size: write 4096, 500K, 10M, 1.5G (1024s) or 10MB (1000s)",
            said(text)
        ))
    };
    let text_in = text.trim();
    let split = text_in
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text_in.len());
    let (number, unit) = text_in.split_at(split);
    let unit = unit.trim().to_ascii_lowercase();
    let (letter, base) = match unit.as_str() {
        "" | "b" => ("", 1024),
        "k" | "m" | "g" | "t" => (unit.as_str(), 1024),
        "kib" | "mib" | "gib" | "tib" => (unit.get(..1).unwrap_or_default(), 1024),
        "kb" | "mb" | "gb" | "tb" => (unit.get(..1).unwrap_or_default(), 1000),
        _ => return Err(no()),
    };
    let power = match letter {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        _ => 4,
    };
    let scale = u64::pow(base, power);
    if number.is_empty() || number == "." || (power == 0 && number.contains('.')) {
        return Err(no());
    }
    match number.parse::<u64>() {
        Ok(n) => n.checked_mul(scale).ok_or_else(no),
        Err(_) => {
            let n: f64 = number.parse().map_err(|_| no())?;
            let bytes = (n * scale as f64).round();
            if bytes.is_finite() && bytes < 1e18 {
                Ok(bytes as u64)
            } else {
                Err(no())
            }
        }
    }
}

/// Bytes per second: a size, with or without `/s`. `0` is no limit.
pub fn rate(text: &str) -> Result<Option<u64>, ParseError> {
    let bytes = size(text.trim().strip_suffix("/s").unwrap_or(text))?;
    match bytes {
        0 => Ok(None),
        1..1024 => bad(format!(
            "{bytes} bytes per second would never end: {bytes}K is {bytes} KiB/s"
        )),
        _ => Ok(Some(bytes)),
    }
}

/// A duration: `90s`, `10m`, `1h30m`, `2 days`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, ParseError> {
    let no = || {
        ParseError(format!(
            "{} is not a duration: write 90s, 10m, 1h30m or 2d",
            said(text)
        ))
    };
    let trimmed = text.trim();
    if trimmed.starts_with(|c: char| c.is_ascii_digit())
        && let Ok(seconds) = trimmed.parse::<f64>()
    {
        return Duration::try_from_secs_f64(seconds).map_err(|_| no());
    }
    let span: jiff::Span = trimmed.parse().map_err(|_| no())?;
    if span.get_months() != 0 || span.get_years() != 0 {
        return Err(no());
    }
    let signed = span
        .to_duration(jiff::SpanRelativeTo::days_are_24_hours())
        .map_err(|_| no())?;
    Duration::try_from(signed).map_err(|_| no())
}

/// A duration as [`duration`] reads it back.
pub fn show_duration(duration: Duration) -> String {
    let (s, ms) = (duration.as_secs(), duration.subsec_millis());
    match (s, ms) {
        (0, 0) => "0s".into(),
        (s, 0) if s % 3600 == 0 => format!("{}h", s / 3600),
        (s, 0) if s % 60 == 0 => format!("{}m", s / 60),
        (s, 0) => format!("{s}s"),
        (0, ms) => format!("{ms}ms"),
        (s, ms) => format!("{s}s{ms}ms"),
    }
}

/// A rate as [`rate`] reads it back, to the byte.
pub fn show_rate(bytes: u64) -> String {
    for (scale, unit) in [(1u64 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")] {
        if bytes >= scale && bytes.is_multiple_of(scale) {
            return format!("{}{unit}", bytes / scale);
        }
    }
    bytes.to_string()
}

/// The bytes that [`escape`] shows as `text`.
pub fn unescape(text: &str) -> Result<OsString, ParseError> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'\\' {
            out.push(byte);
            rest = after;
            continue;
        }
        let hex = after
            .strip_prefix(b"x")
            .and_then(|h| h.get(..2))
            .and_then(|h| std::str::from_utf8(h).ok());
        let value = hex
            .filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        let Some(value) = value else {
            return bad(format!(
                "a backslash in a name is written \\x5c: {}",
                escape(text.as_bytes())
            ));
        };
        out.push(value);
        rest = after.get(3..).unwrap_or_default();
    }
    Ok(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ssh(user: Option<&str>, host: &str, port: Option<u16>, path: &str) -> SourceSpec {
        SourceSpec::Ssh {
            user: user.map(Into::into),
            host: host.into(),
            port,
            path: path.as_bytes().into(),
        }
    }

    #[test]
    fn sources() {
        let local = |p: &str| SourceSpec::Local(PathBuf::from(p));
        let table = [
            ("/srv/www", local("/srv/www")),
            ("www", local("www")),
            ("./a:b", local("./a:b")),
            ("/a:b", local("/a:b")),
            ("a/b:c", local("a/b:c")),
            ("[x]", local("[x]")),
            ("[x]/y", local("[x]/y")),
            ("host:/p", ssh(None, "host", None, "/p")),
            ("u@host:p q", ssh(Some("u"), "host", None, "p q")),
            ("u@ad@host:/p", ssh(Some("u@ad"), "host", None, "/p")),
            ("host:a:b", ssh(None, "host", None, "a:b")),
            ("[fe80::1%eth0]:/p", ssh(None, "fe80::1%eth0", None, "/p")),
            ("u@[::1]:/p", ssh(Some("u"), "::1", None, "/p")),
            ("ssh://h/p", ssh(None, "h", None, "/p")),
            (
                "ssh://u@h:2222/p/q",
                ssh(Some("u"), "h", Some(2222), "/p/q"),
            ),
            ("ssh://[::1]:22/p", ssh(None, "::1", Some(22), "/p")),
            ("ssh://h:22/~/p", ssh(None, "h", Some(22), "p")),
            ("ssh://h/", ssh(None, "h", None, "/")),
            (
                "mirror://h/www",
                SourceSpec::Service {
                    host: "h".into(),
                    port: None,
                    name: "www".into(),
                },
            ),
            (
                "mirror://[::1]:7/w",
                SourceSpec::Service {
                    host: "::1".into(),
                    port: Some(7),
                    name: "w".into(),
                },
            ),
        ];
        for (text, want) in table {
            let got = source(OsStr::new(text));
            assert_eq!(got.as_ref(), Ok(&want), "{text}");
            // What is saved is read back as the same source.
            if let (SourceSpec::Local(p), true) = (&want, true)
                && !p.is_absolute()
            {
                continue;
            }
            let shown = want.to_string();
            let back = unescape(&shown).and_then(|s| source(&s));
            assert_eq!(back, Ok(want), "{text} shown as {shown}");
        }
    }

    #[test]
    fn sources_refused() {
        for text in [
            "",
            ":p",
            "host:",
            "host::module",
            "-oProxyCommand=x:/p",
            "u@-x:/p",
            "@host:/p",
            "http://h/p",
            "ssh://h",
            "ssh:///p",
            "ssh://h:0/p",
            "ssh://h:99999/p",
            "ssh://h:x/p",
            "mirror://h",
            "mirror://h/",
            "mirror://h/a/b",
            "mirror://u@h/a",
            "ho st:/p",
            "$(x):/p",
            "a\\b:/p",
        ] {
            assert!(source(OsStr::new(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn names_that_are_not_text() {
        let raw = OsStr::from_bytes(b"/srv/\xff\n\\x");
        let spec = source(raw).unwrap();
        assert_eq!(spec, SourceSpec::Local(PathBuf::from(raw)));
        assert_eq!(unescape(&spec.to_string()).unwrap(), raw);
        assert_eq!(
            source(OsStr::from_bytes(b"h:/\xff")).unwrap().to_string(),
            "h:/\\xff"
        );
        assert!(
            unescape("a\\b").is_err() && unescape("a\\x5").is_err() && unescape("\\x+1").is_err()
        );
    }

    #[test]
    fn sizes_and_rates() {
        let table = [
            ("0", 0),
            ("4096", 4096),
            ("10K", 10 << 10),
            ("10M", 10 << 20),
            ("10MiB", 10 << 20),
            ("10MB", 10_000_000),
            ("1.5G", 3 << 29),
            ("2t", 2 << 40),
            (" 7 k ", 7 << 10),
        ];
        for (text, want) in table {
            assert_eq!(size(text), Ok(want), "{text}");
        }
        for text in [
            "",
            "M",
            ".",
            "1.5",
            "-1",
            "10X",
            "1..2M",
            "99999999999999T",
            "1e9",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(rate("10M/s"), Ok(Some(10 << 20)));
        assert_eq!(rate("0"), Ok(None));
        assert!(rate("100").is_err());
        for bytes in [1024, 1500, 10 << 20, 3 << 29] {
            assert_eq!(rate(&show_rate(bytes)), Ok(Some(bytes)));
        }
    }

    #[test]
    fn durations() {
        let table = [
            ("90", 90_000),
            ("0", 0),
            ("1.5", 1500),
            ("90s", 90_000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("500ms", 500),
            ("1 hour 2 minutes", 3_720_000),
        ];
        for (text, ms) in table {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "x",
            "-1s",
            "-5",
            "1y",
            "2 months",
            "10 parsecs",
            "1e400",
            "inf",
            "NaN",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        for ms in [0, 500, 1500, 90_000, 600_000, 7_200_000] {
            let d = Duration::from_millis(ms);
            assert_eq!(duration(&show_duration(d)), Ok(d));
        }
    }
}
