//! Durations as Go writes them.
//!
//! * A second reader, who adds fractions up exactly, finds the same, but for the less
//!   than a nanosecond that each term rounds down.
//! * What is written is read back as it was.

use std::time::Duration;

use hypercache::duration::{GoDuration, GoText};

/// See the module's comment.
pub fn law(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let parsed = GoDuration::parse(text).map(GoDuration::as_nanos);
    let read = read_slowly(text);
    match (parsed, read) {
        (Ok(nanos), Some((exact, terms))) => {
            let error = exact - i128::from(nanos).abs();
            assert!((-terms..=terms).contains(&error), "{nanos} is not {exact}");
        }
        (Ok(nanos), None) => panic!("{nanos} was read where nothing is"),
        (Err(_), Some((exact, terms))) => {
            assert!(exact + terms > i128::from(i64::MAX), "{exact} was refused");
        }
        (Err(_), None) => {}
    }
    if let Ok(nanos) = parsed {
        let written = GoText(Duration::from_nanos(nanos.unsigned_abs())).to_string();
        let again = GoDuration::parse(&written).map(GoDuration::as_nanos);
        if nanos == i64::MIN {
            assert!(again.is_err());
        } else {
            assert_eq!(again, Ok(nanos.abs()), "{written}");
        }
    }
}

/// The magnitude, saturating, and of how many terms it is.
fn read_slowly(text: &str) -> Option<(i128, i128)> {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    if text == "0" {
        return Some((0, 1));
    }
    let (mut total, mut terms, mut rest) = (0_i128, 0, text);
    loop {
        let number_len = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(number_len);
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, after) = after.split_at(unit_len.unwrap_or(after.len()));
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return None;
        }
        let whole = whole.trim_start_matches('0');
        let whole: i128 = match whole.len() {
            0 => 0,
            1..=20 => whole.parse().ok()?,
            _ => i128::MAX / (1 << 50),
        };
        // Twenty-four digits times an hour's nanoseconds are still exact.
        let fraction = &fraction[..fraction.len().min(24)];
        let base = 10_i128.pow(fraction.len() as u32);
        let fraction: i128 = match fraction {
            "" => 0,
            digits => digits.parse().ok()?,
        };
        total = total
            .saturating_add(whole.saturating_mul(scale))
            .saturating_add(fraction * scale / base);
        terms += 1;
        rest = after;
        if rest.is_empty() {
            return Some((total, terms));
        }
    }
}
