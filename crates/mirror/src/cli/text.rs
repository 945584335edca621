//! Numbers, times and lines as a person reads them.

use jiff::tz::TimeZone;

use crate::engine::status::Stamp;

/// `1,234,567`
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `3 files`, `1 file`
pub fn counted(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(n), if n == 1 { one } else { many })
}

/// `0 B`, `900 B`, `1.5 KiB`, `12 MiB`
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would round up to 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if value < 9.995 {
        format!("{value:.1} {name}")
    } else {
        format!("{value:.0} {name}")
    }
}

/// `0.2 s`, `42 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`
pub fn seconds(s: f64) -> String {
    if !s.is_finite() || s < 0.0 {
        return "? s".into();
    }
    if s < 9.95 {
        return format!("{s:.1} s");
    }
    let s = s.round() as u64;
    let two = |a: u64, a_unit: &str, b: u64, b_unit: &str| match b {
        0 => format!("{a} {a_unit}"),
        b => format!("{a} {a_unit} {b} {b_unit}"),
    };
    match s {
        0..60 => format!("{s} s"),
        60..3600 => two(s / 60, "min", s % 60, "s"),
        3600..86_400 => two(s / 3600, "h", s % 3600 / 60, "min"),
        _ => two(s / 86_400, "d", s % 86_400 / 3600, "h"),
    }
}

/// `0:42`, `12:05`, `3:00:00`: time left.
pub fn clock(s: u64) -> String {
    match s {
        0..3600 => format!("{}:{:02}", s / 60, s % 60),
        _ => format!("{}:{:02}:{:02}", s / 3600, s % 3600 / 60, s % 60),
    }
}

/// `2026-11-22 14:00:03`, in the zone given.
pub fn stamp(stamp: Stamp, zone: &TimeZone) -> String {
    match jiff::Timestamp::from_millisecond(stamp.ms) {
        Ok(time) => time
            .to_zoned(zone.clone())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string(),
        Err(_) => "(no time)".into(),
    }
}

/// How many columns a terminal takes for it, near enough: wide characters count two, joined ones none.
pub fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

fn char_width(c: char) -> usize {
    match c as u32 {
        0x300..=0x36f | 0xfe00..=0xfe0f | 0x200d => 0,
        0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f => {
            2
        }
        0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f300..=0x1faff | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// Cut to `columns`, with an ellipsis where something is missing.
pub fn fit(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += char_width(c);
        if used > columns {
            break;
        }
        out.push(c);
    }
    if columns > 0 {
        out.push('…');
    }
    out
}

/// The end of a path is what tells: cut at the front.
pub fn fit_end(path: &str, columns: usize) -> String {
    if width(path) <= columns {
        return path.to_owned();
    }
    let mut kept: Vec<char> = Vec::new();
    let mut used = 1;
    for c in path.chars().rev() {
        used += char_width(c);
        if used > columns {
            break;
        }
        kept.push(c);
    }
    kept.reverse();
    let mut out = String::from(if columns > 0 { "…" } else { "" });
    out.extend(kept);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(
            [0, 999, 1000, 1234567].map(count).join(" "),
            "0 999 1,000 1,234,567"
        );
        assert_eq!(
            [
                0,
                1023,
                1024,
                1536,
                10 << 10,
                (1 << 20) - 1,
                1 << 20,
                3 << 29,
                u64::MAX
            ]
            .map(bytes)
            .join(", "),
            "0 B, 1023 B, 1.0 KiB, 1.5 KiB, 10 KiB, 1.0 MiB, 1.0 MiB, 1.5 GiB, 16 EiB"
        );
        assert_eq!(
            [
                0.0,
                0.25,
                9.94,
                9.96,
                59.4,
                60.0,
                185.0,
                7800.0,
                273_600.0,
                f64::NAN
            ]
            .map(seconds)
            .join(", "),
            "0.0 s, 0.2 s, 9.9 s, 10 s, 59 s, 1 min, 3 min 5 s, 2 h 10 min, 3 d 4 h, ? s"
        );
        assert_eq!(
            [0, 42, 725, 10_800].map(clock).join(" "),
            "0:00 0:42 12:05 3:00:00"
        );
    }

    #[test]
    fn lines_fit() {
        assert_eq!(fit("hello", 5), "hello");
        assert_eq!(fit("hello", 4), "hel…");
        assert_eq!(fit("hello", 0), "");
        assert_eq!(fit("日本語", 5), "日本…");
        assert_eq!(fit_end("a/b/c/file", 6), "…/file");
        assert_eq!(fit_end("日本語", 4), "…語");
        for columns in 0..12 {
            assert!(width(&fit("日本語 abc é", columns)) <= columns);
            assert!(width(&fit_end("日本語 abc é", columns)) <= columns);
        }
    }
}
