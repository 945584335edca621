//! Lengths of time as retention is written in: `72h`, `35d`, `13w`, `24m`.

use alloc::format;
use alloc::string::String;
use core::fmt;

use super::{DAY, HOUR, MINUTE, SECOND};

/// No length is longer: 100 years, so that nothing that is reckoned with it overflows.
pub const MONTHS_MAX: u32 = 1200;
pub const NANOS_MAX: i64 = 36_525 * DAY;

/// Calendar months and a time. A day is 24 hours and a week 7 days, over changes of daylight saving time, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Length {
    pub months: u32,
    /// Never negative.
    pub nanos: i64,
}

impl Length {
    pub const ZERO: Length = Length {
        months: 0,
        nanos: 0,
    };

    pub const fn hours(n: i64) -> Length {
        Length {
            months: 0,
            nanos: n * HOUR,
        }
    }
    pub const fn days(n: i64) -> Length {
        Length::hours(24 * n)
    }
    pub const fn weeks(n: i64) -> Length {
        Length::days(7 * n)
    }
    pub const fn months(n: u32) -> Length {
        Length {
            months: n,
            nanos: 0,
        }
    }

    pub fn is_zero(self) -> bool {
        self == Length::ZERO
    }

    /// How long a tier is kept: `24m` are months. `0`, `none` and `off` are no time at all.
    pub fn tier(text: &str) -> Result<Length, String> {
        read(text, true)
    }

    /// How long everything is kept. `30m` is refused: it might be meant as minutes.
    pub fn window(text: &str) -> Result<Length, String> {
        read(text, false)
    }
}

fn read(text: &str, m_is_months: bool) -> Result<Length, String> {
    let trimmed = text.trim();
    if matches!(trimmed, "0" | "none" | "off") {
        return Ok(Length::ZERO);
    }
    let no = || {
        format!(
            "{} is no length of time: write 72h, 7d, 13w, 24mo, 2y, or none",
            crate::types::escape(trimmed.as_bytes())
        )
    };
    let (mut months, mut nanos) = (0u32, 0i64);
    let mut rest = trimmed;
    if rest.is_empty() {
        return Err(no());
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at_checked(digits).ok_or_else(no)?;
        let after = after.trim_start();
        let letters = after.len()
            - after
                .trim_start_matches(|c: char| c.is_ascii_alphabetic())
                .len();
        let (unit, after) = after.split_at_checked(letters).ok_or_else(no)?;
        rest = after.trim_start();
        if number.is_empty() {
            return Err(no());
        }
        let long = || {
            format!(
                "{} is too long: at most 100y",
                crate::types::escape(trimmed.as_bytes())
            )
        };
        let n: u32 = number.parse().map_err(|_| long())?;
        let (of_months, of_nanos) = match unit {
            "s" | "sec" | "second" | "seconds" => (0, SECOND),
            "min" | "minute" | "minutes" => (0, MINUTE),
            "h" | "hour" | "hours" => (0, HOUR),
            "d" | "day" | "days" => (0, DAY),
            "w" | "week" | "weeks" => (0, 7 * DAY),
            "mo" | "month" | "months" => (1, 0),
            "m" if m_is_months => (1, 0),
            "m" => {
                return Err(format!(
                    "{n}m may be minutes or months: write {n}min or {n}mo"
                ));
            }
            "y" | "year" | "years" => (12, 0),
            "" => return Err(format!("{n} of what? Write {n}h, {n}d, {n}w or {n}mo")),
            _ => return Err(no()),
        };
        months = n
            .checked_mul(of_months)
            .and_then(|m| m.checked_add(months))
            .filter(|&m| m <= MONTHS_MAX)
            .ok_or_else(long)?;
        nanos = i64::from(n)
            .checked_mul(of_nanos)
            .and_then(|t| t.checked_add(nanos))
            .filter(|&t| t <= NANOS_MAX)
            .ok_or_else(long)?;
    }
    Ok(Length { months, nanos })
}

impl fmt::Display for Length {
    /// As [`Length::tier`] and [`Length::window`] both read it back, to the second.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Length { months, nanos } = *self;
        if months == 0 && nanos < SECOND {
            return f.write_str("none");
        }
        match months {
            0 => {}
            n if n % 12 == 0 => write!(f, "{}y", n / 12)?,
            n => write!(f, "{n}mo")?,
        }
        // 72 h is how people say it, not 3 days.
        const UNITS: [(i64, &str); 5] = [
            (7 * DAY, "w"),
            (DAY, "d"),
            (HOUR, "h"),
            (MINUTE, "min"),
            (SECOND, "s"),
        ];
        if nanos == 72 * HOUR {
            return f.write_str("72h");
        }
        if let Some((unit, word)) = UNITS.iter().find(|(unit, _)| nanos % unit == 0)
            && nanos > 0
        {
            return write!(f, "{}{word}", nanos / unit);
        }
        let mut left = nanos;
        for (unit, word) in UNITS {
            if left >= unit {
                write!(f, "{}{word}", left / unit)?;
                left %= unit;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn lengths_are_read_and_written() {
        for (text, length, shown) in [
            ("72h", Length::hours(72), "72h"),
            ("7d", Length::days(7), "1w"),
            ("35d", Length::days(35), "5w"),
            ("36 days", Length::days(36), "36d"),
            ("13w", Length::weeks(13), "13w"),
            ("24m", Length::months(24), "2y"),
            ("5mo", Length::months(5), "5mo"),
            ("1y6mo", Length::months(18), "18mo"),
            ("1d 12h", Length::hours(36), "36h"),
            (
                "1mo 1d",
                Length {
                    months: 1,
                    nanos: DAY,
                },
                "1mo1d",
            ),
            (
                "90min",
                Length {
                    months: 0,
                    nanos: 90 * MINUTE,
                },
                "90min",
            ),
            (
                "1w1d1h1min1s",
                Length {
                    months: 0,
                    nanos: 8 * DAY + HOUR + MINUTE + SECOND,
                },
                "694861s",
            ),
            ("0", Length::ZERO, "none"),
            ("none", Length::ZERO, "none"),
            ("0d", Length::ZERO, "none"),
            ("100y", Length::months(1200), "100y"),
        ] {
            assert_eq!(Length::tier(text).as_ref(), Ok(&length), "{text}");
            assert_eq!(length.to_string(), shown, "{text}");
            assert_eq!(Length::tier(shown), Ok(length), "{text}");
            assert_eq!(Length::window(shown), Ok(length), "{text}");
        }
    }

    #[test]
    fn what_is_no_length_is_told() {
        for (text, says) in [
            ("", "is no length"),
            ("long", "long is no length of time: write 72h"),
            ("-3d", "-3d is no length"),
            ("3.5d", "3 of what?"),
            ("3", "3 of what? Write 3h"),
            ("3 fortnights", "is no length"),
            ("d", "is no length"),
            ("101y", "101y is too long: at most 100y"),
            ("99999999999999999999d", "too long"),
            ("4000000000w", "too long"),
            ("36525d1s", "too long"),
            ("7d\u{1b}[2J", "7d\\x1b[2J is no length"),
        ] {
            let why = Length::tier(text).unwrap_err();
            assert!(why.contains(says), "{text}: {why}");
        }
        let why = Length::window("30m").unwrap_err();
        assert_eq!(why, "30m may be minutes or months: write 30min or 30mo");
    }
}
