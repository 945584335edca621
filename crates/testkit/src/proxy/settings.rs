//! What a link is like, as words.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::Way;

/// Default: a link that is not felt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// One way.
    pub latency: Duration,
    /// Bytes a second, each way. `None`: no limit.
    pub rate: Option<u64>,
    /// What a router on the way keeps before it lets the sender wait. 0: 64 KiB.
    pub buffer: u64,
    /// Nothing comes through this way until it may, and nothing is lost: half open, or one way.
    pub stall: [bool; 2],
    /// Connections end, and no new one comes about.
    pub cut: bool,
    /// Frames of these kinds wait, all others pass them. Inwards only, and only where the link began with a `hold`.
    pub hold: Vec<u8>,
    /// `hold` was said, be it of nothing.
    pub frames: bool,
}

impl Settings {
    /// Words: `latency=50ms` `rate=100mbit` (or `mib`, bytes a second) `buffer=64k` `stall=out|in|both` `cut`
    /// `hold=9,10` (or `hold=`: of nothing yet).
    pub fn parse(text: &str) -> Result<Settings, String> {
        let mut settings = Settings::default();
        for word in text.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let wrong = || format!("`{word}` is not understood");
            match key {
                "latency" => {
                    let ms = number(value, &[("ms", 1), ("s", 1000)]).ok_or_else(wrong)?;
                    settings.latency = Duration::from_millis(ms);
                }
                "rate" => {
                    let units = [
                        ("mbit", 125_000),
                        ("kbit", 125),
                        ("mib", 1 << 20),
                        ("kib", 1 << 10),
                    ];
                    settings.rate = Some(number(value, &units).ok_or_else(wrong)?.max(1));
                }
                "buffer" => {
                    settings.buffer =
                        number(value, &[("k", 1 << 10), ("m", 1 << 20)]).ok_or_else(wrong)?;
                }
                "stall" => {
                    settings.stall = match value {
                        "out" => [true, false],
                        "in" => [false, true],
                        "both" => [true, true],
                        "" => [false, false],
                        _ => return Err(wrong()),
                    }
                }
                "cut" => settings.cut = true,
                "hold" => {
                    settings.frames = true;
                    let kinds = value.split(',').filter(|kind| !kind.is_empty());
                    let kinds: Result<_, _> = kinds.map(str::parse).collect();
                    settings.hold = kinds.map_err(|_| wrong())?;
                }
                _ => return Err(wrong()),
            }
        }
        Ok(settings)
    }

    pub fn read(file: &Path) -> io::Result<Settings> {
        let text = std::fs::read_to_string(file)?;
        Settings::parse(&text).map_err(io::Error::other)
    }

    pub fn stalls(&self, way: Way) -> bool {
        let [out, inwards] = self.stall;
        match way {
            Way::Out => out,
            Way::In => inwards,
        }
    }
}

fn number(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text.get(digits.len()..)?;
    let factor = match unit {
        "" => 1,
        unit => units.iter().find(|(name, _)| *name == unit)?.1,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_understood_or_refused() {
        let settings = Settings::parse("latency=50ms rate=100mbit stall=in hold=9,10 cut").unwrap();
        let wanted = Settings {
            latency: Duration::from_millis(50),
            rate: Some(12_500_000),
            stall: [false, true],
            cut: true,
            hold: vec![9, 10],
            frames: true,
            ..Settings::default()
        };
        assert_eq!(settings, wanted);
        assert_eq!(Settings::parse(""), Ok(Settings::default()));
        assert!(Settings::parse("hold=").unwrap().frames);
        for wrong in ["latency=x", "rate=1parsec", "stall=up", "slow", "hold=many"] {
            assert!(Settings::parse(wrong).is_err(), "{wrong}");
        }
    }
}
