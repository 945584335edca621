//! The moments that a person types: `--at`, `--since`, `--until`.
//!
//! Local times are read in the zone of the host the command runs on. One that comes twice when summer time ends is the
//! first of the two, and an offset (`2026-10-25T02:30:00+01:00`) says which else; one that is skipped when it begins is as
//! far behind the change (02:30 is 03:30). A day ago is the same time yesterday, also over such a change.

use jiff::civil::{self, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};

use mirror_core::{Position, escape};

/// A moment as somebody named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// By the worker's clock: nanoseconds since 1970.
    Time(i64),
    Position(Position),
    /// A snapshot, or whatever else has a name.
    Name(String),
    /// The position before that one's.
    Before(String),
}

const NAME_BYTES_MAX: usize = 64;
/// What can be typed, for errors.
pub const FORMS: &str = "write 2026-11-22T14:03:07 (with Z or +01:00 if it is not local), 2026-11-22, 14:03:07, \"10m ago\", \
     \"yesterday 18:00\", \"monday 08:00\", now, pos:EPOCH.SEQ, or a snapshot's name";

const DAYS: [(&str, &str, Weekday); 7] = [
    ("monday", "mon", Weekday::Monday),
    ("tuesday", "tue", Weekday::Tuesday),
    ("wednesday", "wed", Weekday::Wednesday),
    ("thursday", "thu", Weekday::Thursday),
    ("friday", "fri", Weekday::Friday),
    ("saturday", "sat", Weekday::Saturday),
    ("sunday", "sun", Weekday::Sunday),
];

/// `text` as somebody means it who types it at `now`, in the zone of `now`.
pub fn parse(text: &str, now: &Zoned) -> Result<When, String> {
    let text = text.trim();
    if let Some(found) = by_shape(text, now)? {
        return Ok(found);
    }
    if let Some(name) = text.strip_prefix("before:") {
        valid_name(name)?;
        return Ok(When::Before(name.to_owned()));
    }
    match is_name(text) {
        true => Ok(When::Name(text.to_owned())),
        false => Err(no_time(text)),
    }
}

/// Whether something may be called that: so that a name is never taken for a time.
pub fn valid_name(name: &str) -> Result<(), String> {
    let told = escape(name.as_bytes());
    if name.is_empty() {
        return Err("a snapshot needs a name".into());
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(format!(
            "{told} is too long for a name: at most {NAME_BYTES_MAX} characters"
        ));
    }
    if !is_name(name) {
        return Err(format!(
            "{told} can't be a name: letters, digits and . _ + - only, and no . or - in front"
        ));
    }
    // Whatever the time is now.
    match by_shape(name, &Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC)) {
        Ok(None) => Ok(()),
        Ok(Some(_)) | Err(_) => Err(format!(
            "{told} can't be a name: it would be taken for a time"
        )),
    }
}

fn is_name(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._+-".contains(&b);
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(fits)
        && !text.starts_with(['-', '.'])
}

fn no_time(text: &str) -> String {
    let told = match text {
        "" => "(nothing)".into(),
        text => escape(text.as_bytes()),
    };
    format!("{told} is no time: {FORMS}")
}

/// Everything but names. `None`: it does not look like a time. An error: it does, but is none.
fn by_shape(text: &str, now: &Zoned) -> Result<Option<When>, String> {
    let no = || no_time(text);
    if text.eq_ignore_ascii_case("now") {
        return Ok(Some(time(now.timestamp(), text)?));
    }
    if let Some(position) = text.strip_prefix("pos:") {
        let position = self::position(position).ok_or_else(|| {
            let told = escape(text.as_bytes());
            format!("{told} is no position: write pos:EPOCH.SEQ, such as pos:1.4711")
        })?;
        return Ok(Some(When::Position(position)));
    }
    if let Some((date, rest)) = date_first(text) {
        let (year, month, day) = date;
        let date = civil::Date::new(year, month, day).map_err(|_| no())?;
        return Ok(Some(time(dated(date, rest, now).ok_or_else(no)?, text)?));
    }
    let lower = text.to_ascii_lowercase();
    // Not Chicago.
    let alone = |before: &str| before.is_empty() || before.ends_with(' ');
    if let Some(span) = lower.strip_suffix("ago")
        && (alone(span) || !lower.starts_with(|c: char| c.is_ascii_alphabetic()))
    {
        let at = ago(span.trim_end(), now).ok_or_else(no)?;
        return Ok(Some(time(at, text)?));
    }
    if let Some(at) = by_day(&lower, now) {
        return Ok(Some(time(at.ok_or_else(no)?, text)?));
    }
    if let Some(clock) = clock(text) {
        let today = local(now.date().to_datetime(clock), now);
        let at = match today {
            Some(at) if at > now.timestamp() => {
                let yesterday = now.date().yesterday().ok();
                yesterday.and_then(|day| local(day.to_datetime(clock), now))
            }
            today => today,
        };
        return Ok(Some(time(at.ok_or_else(no)?, text)?));
    }
    // `10m` alone is meant as a time, too.
    if text.starts_with(|c: char| c.is_ascii_digit()) && span(&lower).is_some() {
        let told = escape(text.as_bytes());
        return Err(format!("{told} is no moment: write \"{told} ago\""));
    }
    Ok(None)
}

fn time(at: Timestamp, text: &str) -> Result<When, String> {
    match i64::try_from(at.as_nanosecond()) {
        Ok(ns) => Ok(When::Time(ns)),
        Err(_) => Err(format!(
            "{} is out of range: 1678 to 2262",
            escape(text.as_bytes())
        )),
    }
}

fn position(text: &str) -> Option<Position> {
    let (epoch, sequence) = text.split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(epoch) || !digits(sequence) {
        return None;
    }
    Some(Position {
        epoch: epoch.parse().ok()?,
        sequence: sequence.parse().ok()?,
    })
}

/// `YYYY-MM-DD`, alone or before a time, and the rest. A name may begin with a date, but goes on with another character.
fn date_first(text: &str) -> Option<((i16, i8, i8), &str)> {
    let (date, rest) = text.split_at_checked(10)?;
    if !rest.is_empty() && !rest.starts_with([' ', 'T', 't']) {
        return None;
    }
    let mut parts = date.split('-');
    let mut number = |digits: usize| {
        let part = parts.next()?;
        let fits = part.len() == digits && part.bytes().all(|b| b.is_ascii_digit());
        fits.then(|| part.parse::<i16>().ok())?
    };
    let (year, month, day) = (number(4)?, number(2)?, number(2)?);
    Some(((year, month as i8, day as i8), rest))
}

/// A date, and a time of that day with or without its zone; without a time, its beginning.
fn dated(date: civil::Date, rest: &str, now: &Zoned) -> Option<Timestamp> {
    let rest = match rest.strip_prefix(['T', 't']) {
        Some(rest) => rest,
        None if rest.trim().is_empty() => {
            let day = date.to_zoned(now.time_zone().clone()).ok()?;
            return Some(day.start_of_day().ok()?.timestamp());
        }
        None => rest.trim_start(),
    };
    let Some(zone) = rest.find(['Z', 'z', '+', '-', '[']) else {
        return local(date.to_datetime(clock(rest)?), now);
    };
    let (time, zone) = rest.split_at_checked(zone)?;
    let at = date.to_datetime(clock(time.trim_end())?);
    // As RFC 3339 and RFC 9557 have it, whatever was left out of the time.
    let whole = format!("{at}{zone}");
    if zone.contains('[') {
        return Some(whole.parse::<Zoned>().ok()?.timestamp());
    }
    whole.parse().ok()
}

/// `10m`, `3 h`, `1 day 2 hours`: before now.
fn ago(text: &str, now: &Zoned) -> Option<Timestamp> {
    Some(now.checked_sub(span(text)?).ok()?.timestamp())
}

fn span(text: &str) -> Option<Span> {
    // A sign, or another "ago", would turn it round.
    if !text.starts_with(|c: char| c.is_ascii_digit()) || text.contains("ago") {
        return None;
    }
    text.parse().ok()
}

/// `today`, `yesterday` or a day of the week, with or without a time. `None`: none of these. The inner one: no such time.
fn by_day(text: &str, now: &Zoned) -> Option<Option<Timestamp>> {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let rest = rest.trim_start();
    let on = |date: civil::Date| match rest {
        "" => dated(date, "", now),
        rest => local(date.to_datetime(clock(rest)?), now),
    };
    let today = now.date();
    match word {
        "today" => return Some(on(today)),
        "yesterday" => return Some(today.yesterday().ok().and_then(on)),
        _ => {}
    }
    let (_, _, weekday) = DAYS
        .iter()
        .find(|(long, short, _)| word == *long || word == *short)?;
    let back = i64::from(today.weekday().since(*weekday));
    let before = |days: i64| on(today.checked_sub(Span::new().days(days)).ok()?);
    Some(match before(back) {
        Some(at) if at > now.timestamp() => before(back + 7),
        at => at,
    })
}

/// `9:30`, `14:03`, `14:03:07`, `14:03:07.25`
fn clock(text: &str) -> Option<civil::Time> {
    let (hour, rest) = text.split_once(':')?;
    let (minute, second) = rest.split_once(':').unwrap_or((rest, "00"));
    let (second, fraction) = second.split_once('.').unwrap_or((second, "0"));
    let number = |text: &str, digits: core::ops::RangeInclusive<usize>| {
        let fits = digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        fits.then(|| text.parse::<i8>().ok())?
    };
    let digits = (1..=9).contains(&fraction.len()) && fraction.bytes().all(|b| b.is_ascii_digit());
    let nanos: i32 = match digits {
        true => format!("{fraction:0<9}").parse().ok()?,
        false => return None,
    };
    civil::Time::new(
        number(hour, 1..=2)?,
        number(minute, 2..=2)?,
        number(second, 2..=2)?,
        nanos,
    )
    .ok()
}

fn local(at: civil::DateTime, now: &Zoned) -> Option<Timestamp> {
    Some(at.to_zoned(now.time_zone().clone()).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Monday, the 23rd of November 2026, 10:20:30 in Central Europe.
    fn now() -> Zoned {
        at("2026-11-23T10:20:30")
    }

    fn at(local: &str) -> Zoned {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        local
            .parse::<civil::DateTime>()
            .unwrap()
            .to_zoned(zone)
            .unwrap()
    }

    /// What is meant, in UTC.
    fn said(text: &str, now: &Zoned) -> String {
        match parse(text, now) {
            Ok(When::Time(ns)) => Timestamp::from_nanosecond(i128::from(ns))
                .unwrap()
                .to_string(),
            Ok(When::Position(position)) => format!("position {position}"),
            Ok(When::Name(name)) => format!("name {name}"),
            Ok(When::Before(name)) => format!("before {name}"),
            Err(why) => format!("! {why}"),
        }
    }

    #[test]
    fn what_people_type() {
        for (text, meant) in [
            ("now", "2026-11-23T09:20:30Z"),
            ("NOW", "2026-11-23T09:20:30Z"),
            // RFC 3339, and what is left out of it.
            ("2026-11-22T14:03:07Z", "2026-11-22T14:03:07Z"),
            ("2026-11-22t14:03:07z", "2026-11-22T14:03:07Z"),
            ("2026-11-22T14:03:07.5+05:30", "2026-11-22T08:33:07.5Z"),
            ("2026-11-22 14:03:07 +0100", "2026-11-22T13:03:07Z"),
            ("2026-11-22T14:03:07-08", "2026-11-22T22:03:07Z"),
            ("2026-11-22T14:03:07", "2026-11-22T13:03:07Z"),
            ("2026-11-22 14:03", "2026-11-22T13:03:00Z"),
            ("  2026-11-22  9:30 ", "2026-11-22T08:30:00Z"),
            ("2026-11-22", "2026-11-21T23:00:00Z"),
            ("2026-07-01", "2026-06-30T22:00:00Z"),
            ("2026-07-01 12:00[UTC]", "2026-07-01T12:00:00Z"),
            // Ago.
            ("10m ago", "2026-11-23T09:10:30Z"),
            ("10 min ago", "2026-11-23T09:10:30Z"),
            ("3 h ago", "2026-11-23T06:20:30Z"),
            ("3h ago", "2026-11-23T06:20:30Z"),
            ("1h30m ago", "2026-11-23T07:50:30Z"),
            ("90s ago", "2026-11-23T09:19:00Z"),
            ("2 Days Ago", "2026-11-21T09:20:30Z"),
            ("1 month ago", "2026-10-23T08:20:30Z"),
            ("2y ago", "2024-11-23T09:20:30Z"),
            // Days.
            ("today", "2026-11-22T23:00:00Z"),
            ("today 9:30", "2026-11-23T08:30:00Z"),
            ("today 18:00", "2026-11-23T17:00:00Z"),
            ("yesterday", "2026-11-21T23:00:00Z"),
            ("yesterday 18:00", "2026-11-22T17:00:00Z"),
            ("Yesterday  18:00:01.25", "2026-11-22T17:00:01.25Z"),
            ("monday 08:00", "2026-11-23T07:00:00Z"),
            ("monday 10:20:30", "2026-11-23T09:20:30Z"),
            ("monday 10:20:31", "2026-11-16T09:20:31Z"),
            ("monday", "2026-11-22T23:00:00Z"),
            ("tue 08:00", "2026-11-17T07:00:00Z"),
            ("sunday", "2026-11-21T23:00:00Z"),
            // A time: the last one.
            ("09:20", "2026-11-23T08:20:00Z"),
            ("10:20:30", "2026-11-23T09:20:30Z"),
            ("10:20:30.000000001", "2026-11-22T09:20:30.000000001Z"),
            ("14:03:07", "2026-11-22T13:03:07Z"),
            ("0:00", "2026-11-22T23:00:00Z"),
            // Others.
            ("pos:1.4711", "position 1.4711"),
            (
                "pos:4294967295.18446744073709551615",
                "position 4294967295.18446744073709551615",
            ),
            ("before-update", "name before-update"),
            ("before:rel-42", "before rel-42"),
            ("2026-11-22-before-update", "name 2026-11-22-before-update"),
            ("20261122", "name 20261122"),
            ("hourly.20261122T1400Z", "name hourly.20261122T1400Z"),
            ("3hares", "name 3hares"),
            ("someday", "name someday"),
        ] {
            assert_eq!(said(text, &now()), meant, "{text}");
        }
    }

    #[test]
    fn what_nobody_can_mean() {
        for text in [
            "",
            "  ",
            "2026-13-01",
            "2026-02-30",
            "2026-11-22T",
            "2026-11-22T14",
            "2026-11-22 25:00",
            "2026-11-22 12:60",
            "2026-11-22T14:03:07X",
            "2026-11-22T14:03:07+99:00",
            "2026-11-22 soon",
            "2026-11-22[UTC]",
            "ago",
            "m ago",
            "-10m ago",
            "10m ago ago",
            "+10m ago",
            "ten minutes ago",
            "99999999999y ago",
            "yesterday noon",
            "today 24:00",
            "monday 8",
            "8:5",
            "24:00",
            "1:2:3:4",
            "10:20:30.",
            "10:20:30.1234567890",
            "before lunch",
            "-x",
            ".x",
            "ü",
            "a/b",
            "2026-11-22T14:03:07[Mars/Olympus]",
        ] {
            let why = said(text, &now());
            let told = if text.trim().is_empty() {
                "(nothing)".into()
            } else {
                escape(text.as_bytes())
            };
            assert_eq!(why, format!("! {told} is no time: {FORMS}"), "{text}");
        }
        for (text, says) in [
            ("pos:1", "! pos:1 is no position: write pos:EPOCH.SEQ"),
            ("pos:1.+2", "! pos:1.+2 is no position"),
            ("pos:4294967296.1", "! pos:4294967296.1 is no position"),
            ("pos:", "! pos: is no position"),
            ("10m", "! 10m is no moment: write \"10m ago\""),
            ("3 h", "! 3 h is no moment: write \"3 h ago\""),
            ("1600-01-01", "! 1600-01-01 is out of range: 1678 to 2262"),
            ("900 years ago", "! 900 years ago is out of range"),
            ("before:", "! a snapshot needs a name"),
            ("before:a b", "! a b can't be a name: letters"),
            ("10m\u{1b}[2J", "! 10m\\x1b[2J is no time"),
        ] {
            let why = said(text, &now());
            assert!(why.starts_with(says), "{text}: {why}");
            assert!(!why.contains('\n'));
        }
    }

    #[test]
    fn around_the_changes_of_summer_time() {
        // 02:30 is skipped on the 29th of March, and comes twice on the 25th of October.
        for (text, meant) in [
            ("2026-03-29 01:59:59", "2026-03-29T00:59:59Z"),
            ("2026-03-29 02:00", "2026-03-29T01:00:00Z"),
            ("2026-03-29 02:30", "2026-03-29T01:30:00Z"),
            ("2026-03-29 03:00", "2026-03-29T01:00:00Z"),
            ("2026-10-25 01:59", "2026-10-24T23:59:00Z"),
            ("2026-10-25 02:30", "2026-10-25T00:30:00Z"),
            ("2026-10-25 02:30:00+01:00", "2026-10-25T01:30:00Z"),
            ("2026-10-25 03:00", "2026-10-25T02:00:00Z"),
        ] {
            assert_eq!(said(text, &now()), meant, "{text}");
        }
        let sunday = at("2026-03-29T12:00:00");
        assert_eq!(said("1 day ago", &sunday), "2026-03-28T11:00:00Z");
        assert_eq!(said("24h ago", &sunday), "2026-03-28T10:00:00Z");
        assert_eq!(said("yesterday 12:00", &sunday), "2026-03-28T11:00:00Z");
        assert_eq!(
            said("yesterday 02:30", &at("2026-03-30T12:00:00")),
            "2026-03-29T01:30:00Z"
        );
        // In the second 02:10: 02:20 is the first one, which was.
        let second = "2026-10-25T01:10:00Z".parse::<Timestamp>().unwrap();
        let second = second.to_zoned(sunday.time_zone().clone());
        assert_eq!(said("02:20", &second), "2026-10-25T00:20:00Z");
    }

    #[test]
    fn names() {
        for name in [
            "a",
            "before-update",
            "v1.2+3",
            "_x",
            "+1",
            "1",
            "2026-11-22-evening",
            "nowhere",
            "Mondays",
            "10x",
        ] {
            assert_eq!(valid_name(name), Ok(()), "{name}");
            assert_eq!(parse(name, &now()), Ok(When::Name(name.into())));
        }
        let long = "x".repeat(65);
        for (name, says) in [
            ("", "a snapshot needs a name"),
            (long.as_str(), "too long for a name: at most 64"),
            ("-x", "-x can't be a name: letters, digits"),
            (".x", "can't be a name: letters"),
            ("a b", "can't be a name: letters"),
            ("pos:1.2", "can't be a name: letters"),
            ("käse", "can't be a name: letters"),
            ("a\nb", "a\\x0ab can't be a name"),
            ("now", "now can't be a name: it would be taken for a time"),
            ("Yesterday", "taken for a time"),
            ("fri", "taken for a time"),
            ("2026-11-22", "taken for a time"),
            ("2026-99-99", "taken for a time"),
            ("10m", "taken for a time"),
            ("3days", "taken for a time"),
            ("10mago", "taken for a time"),
        ] {
            let why = valid_name(name).unwrap_err();
            assert!(why.contains(says), "{name}: {why}");
        }
        // A word that ends like a time, and is none.
        for name in ["chicago", "santiago"] {
            assert_eq!(valid_name(name), Ok(()), "{name}");
        }
    }
}
