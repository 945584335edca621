//! How fast one may send, always the same or by the time of day: decided here, measured by `link::bucket`.
//!
//! `bwlimit = "5M"`, or `bwlimit = [{ from = "08:00", to = "18:00", rate = "5M" }, ...]`: the first window that the time
//! is in counts; outside all of them there is no limit. Times are the host's local ones.

use serde::{Deserialize, Serialize};

use super::settings::{Node, Problems, Value};
use crate::cli::parse;

const DAY_MINUTES: u16 = 24 * 60;
const WINDOWS_MAX: usize = 100;

/// `None` where a rate stands: no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rates {
    windows: Vec<Window>,
    otherwise: Option<u64>,
}

/// From a minute of the day to another, which is not in it; over midnight if it ends before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Window {
    from: u16,
    to: u16,
    bytes_per_s: Option<u64>,
}

impl Window {
    fn contains(self, minute: u16) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

impl Rates {
    pub fn fixed(bytes_per_s: Option<u64>) -> Rates {
        Rates {
            windows: Vec::new(),
            otherwise: bytes_per_s,
        }
    }

    /// Bytes a second at a minute of the day.
    pub fn at(&self, minute: u16) -> Option<u64> {
        match self.windows.iter().find(|w| w.contains(minute)) {
            Some(window) => window.bytes_per_s,
            None => self.otherwise,
        }
    }

    pub fn now(&self) -> Option<u64> {
        let now = jiff::Zoned::now();
        // 0 to 23 and 0 to 59.
        let minute = i32::from(now.hour()) * 60 + i32::from(now.minute());
        self.at(u16::try_from(minute).unwrap_or(0))
    }

    /// The rate, if it is always the same.
    pub fn fixed_rate(&self) -> Option<u64> {
        self.otherwise.filter(|_| self.windows.is_empty())
    }

    /// As [`Rates::read`] reads it.
    pub fn to_toml(&self) -> String {
        let rate = |rate: Option<u64>| rate.map_or("none".into(), parse::show_rate);
        if self.windows.is_empty() {
            return format!("\"{}\"", rate(self.otherwise));
        }
        let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        let windows = self.windows.iter().map(|w| {
            let (from, to) = (clock(w.from), clock(w.to));
            let rate = rate(w.bytes_per_s);
            format!("{{ from = \"{from}\", to = \"{to}\", rate = \"{rate}\" }}")
        });
        format!("[{}]", windows.collect::<Vec<_>>().join(", "))
    }

    /// The value of a `bwlimit` key.
    pub fn read(node: &Node, problems: &mut Problems) -> Option<Rates> {
        let Value::List(list) = &node.value else {
            let word = node.word(problems)?;
            return match rate(&word) {
                Ok(rate) => Some(Rates::fixed(rate)),
                Err(why) => {
                    problems.add(Some(&node.place), format!("bwlimit: {why}"));
                    None
                }
            };
        };
        if list.len() > WINDOWS_MAX {
            let why = format!("bwlimit: more than {WINDOWS_MAX} times of day");
            problems.add(Some(&node.place), why);
            return None;
        }
        let before = problems.len();
        let mut windows = Vec::new();
        for node in list {
            let place = node.place.clone();
            let Some(mut table) = node.clone().into_table(problems) else {
                continue;
            };
            let from = table.parsed("from", problems, minute);
            let to = table.parsed("to", problems, minute);
            let rate = table.parsed("rate", problems, rate);
            table.end(&["from", "to", "rate"], problems);
            match (from, to, rate) {
                (Some(from), Some(to), Some(_)) if from == to => {
                    problems.add(Some(&place), "bwlimit: from and to are the same");
                }
                (Some(from), Some(to), Some(bytes_per_s)) => windows.push(Window {
                    from: from % DAY_MINUTES,
                    to,
                    bytes_per_s,
                }),
                _ if problems.len() == before => problems.add(
                    Some(&place),
                    "bwlimit: from, to and rate are wanted, as { from = \"08:00\", to = \"18:00\", rate = \"5M\" }",
                ),
                _ => {}
            }
        }
        (problems.len() == before).then_some(Rates {
            windows,
            otherwise: None,
        })
    }
}

fn rate(text: &str) -> Result<Option<u64>, String> {
    if text == "none" {
        return Ok(None);
    }
    parse::rate(text).map_err(|e| e.0)
}

/// `HH:MM`, up to 24:00.
fn minute(text: &str) -> Result<u16, String> {
    let no = || format!("{text:?} is no time of day: write 08:00 or 17:30");
    let (hour, minute) = text.split_once(':').ok_or_else(no)?;
    let digits = |t: &str| (1..=2).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_digit());
    if !digits(hour) || !digits(minute) || minute.len() != 2 {
        return Err(no());
    }
    match (hour.parse::<u16>(), minute.parse::<u16>()) {
        (Ok(hour), Ok(minute)) if minute < 60 && hour * 60 + minute <= DAY_MINUTES => {
            Ok(hour * 60 + minute)
        }
        _ => Err(no()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings;
    use super::*;
    use std::sync::Arc;

    fn read(text: &str) -> (Option<Rates>, Vec<String>) {
        let mut problems = Problems::default();
        let text = format!("bwlimit = {text}");
        let mut table = settings::parse(Arc::new("x".into()), &text, &mut problems).unwrap();
        let rates = Rates::read(&table.take("bwlimit").unwrap(), &mut problems);
        let lines = problems.sorted().iter().map(ToString::to_string).collect();
        (rates, lines)
    }

    fn good(text: &str) -> Rates {
        let (rates, problems) = read(text);
        assert!(problems.is_empty(), "{problems:?}");
        rates.unwrap()
    }

    #[test]
    fn fixed_or_none() {
        assert_eq!(good("'5M'").at(700), Some(5 << 20));
        assert_eq!(good("4096").at(700), Some(4096));
        assert_eq!(good("'none'").at(700), None);
        assert_eq!(good("0").at(700), None);
    }

    #[test]
    fn by_the_time_of_day() {
        let rates = good(
            "[{ from = '08:00', to = '18:00', rate = '5M' }, { from = '22:00', to = '6:30', rate = '0' },\n\
             { from = '17:00', to = '24:00', rate = '1M' }]",
        );
        for (hour, minute, want) in [
            (7, 59, None),
            (8, 0, Some(5 << 20)),
            (17, 59, Some(5 << 20)),
            (18, 0, Some(1 << 20)),
            (21, 59, Some(1 << 20)),
            (22, 0, None),
            (0, 0, None),
            (6, 30, None),
        ] {
            assert_eq!(rates.at(hour * 60 + minute), want, "{hour}:{minute}");
        }
        let night = good("[{ from = '22:00', to = '06:00', rate = '2M' }]");
        assert_eq!(night.at(0), Some(2 << 20));
        assert_eq!(night.at(6 * 60), None);
        assert_eq!(night.at(23 * 60 + 59), Some(2 << 20));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, want) in [
            ("'fast'", "bwlimit: "),
            ("true", "a text in quotes is wanted"),
            (
                "[{ from = '8', to = '18:00', rate = '5M' }]",
                "no time of day",
            ),
            (
                "[{ from = '08:00', to = '24:01', rate = '5M' }]",
                "no time of day",
            ),
            (
                "[{ from = '08:00', to = '08:00', rate = '5M' }]",
                "the same",
            ),
            ("[{ from = '08:00', rate = '5M' }]", "from, to and rate"),
            (
                "[{ from = '08:00', to = '09:00', rate = '5M', day = 1 }]",
                "no setting is called day",
            ),
            ("[5]", "a table is wanted"),
        ] {
            let (rates, problems) = read(text);
            assert!(rates.is_none(), "{text}");
            assert!(
                problems.len() == 1 && problems[0].contains(want),
                "{text}: {problems:?}"
            );
        }
    }
}
