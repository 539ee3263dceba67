//! Parsers of setting values. Each takes text and gives the value or nothing; what
//! was expected stands in the table.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::duration::GoDuration;
use crate::runtime::DriverChoice;

/// Shortest interval a setting takes.
pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
/// Longest interval a setting takes.
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// Where to listen: `host:port`, or `:port` for every address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddr {
    /// A name or an address, without brackets.
    pub host: Option<String>,
    /// The port, 0 for any free one.
    pub port: u16,
}

impl ListenAddr {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = match host.strip_prefix('[') {
            Some(host) => host.strip_suffix(']').filter(|host| host.contains(':'))?,
            None if host.contains(':') => return None,
            None => host,
        };
        let visible = host
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'@');
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        if !visible || !digits {
            return None;
        }
        let host = (!host.is_empty()).then(|| host.to_owned());
        Some(Self {
            host,
            port: port.parse().ok()?,
        })
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            Some(host) => write!(f, "{host}:{}", self.port),
            None => write!(f, ":{}", self.port),
        }
    }
}

/// A node to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Its id, where it was named.
    pub id: Option<String>,
    /// Where its peer listener is.
    pub address: String,
}

pub(super) fn token(text: &str) -> Option<String> {
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    visible.then(|| text.to_owned())
}

pub(super) fn seeds(text: &str) -> Option<Vec<Seed>> {
    let entries = text
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (id, address) = match entry.split_once('@') {
                Some((id, address)) => (Some(node_id(id)?), address),
                None => (None, entry),
            };
            let parsed = ListenAddr::parse(address).filter(|address| address.host.is_some())?;
            Some(Seed {
                id,
                address: parsed.to_string(),
            })
        })
        .collect()
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

pub(super) fn bytes(text: &str, range: RangeInclusive<u64>) -> Option<ByteSize> {
    const UNITS: &[(&str, u32)] = &[
        ("KiB", 10),
        ("MiB", 20),
        ("GiB", 30),
        ("Ki", 10),
        ("Mi", 20),
        ("Gi", 30),
    ];
    let (digits, shift) = UNITS
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))
        .unwrap_or((text, 0));
    let value = number(digits, 0..=u64::MAX)?.checked_mul(1 << shift)?;
    range.contains(&value).then_some(ByteSize(value))
}

/// What the items of a node may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// So much.
    Bytes(ByteSize),
    /// A part of what the process may take.
    Share {
        /// How large a part.
        percent: u64,
        /// What the process may take; when `None`, what its container or the machine has.
        of: Option<ByteSize>,
    },
}

impl MemoryLimit {
    /// The rest is for connections, answers under way, hints, and what the allocator cannot
    /// reuse.
    const AUTO: Self = Self::Share {
        percent: 70,
        of: None,
    };
    const LEAST: u64 = 16 << 20;
    const MOST: u64 = 1 << 50;

    pub(super) fn parse(text: &str) -> Option<Self> {
        if text == "auto" {
            return Some(Self::AUTO);
        }
        let Some((percent, of)) = text.split_once('%') else {
            return bytes(text, Self::LEAST..=Self::MOST).map(Self::Bytes);
        };
        let of = match of {
            "" => None,
            of => Some(bytes(of.strip_prefix(" of ")?, 0..=Self::MOST)?),
        };
        let percent = number(percent, 10..=90)?;
        let share = Self::Share { percent, of };
        let enough = of.is_none() || share.bytes_of(0) >= Self::LEAST;
        enough.then_some(share)
    }

    /// As bytes, for a process that may take so many where this does not say.
    pub fn bytes_of(self, process: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.0,
            Self::Share { percent, of } => of.map_or(process, |of| of.0) / 100 * percent,
        }
    }
}

pub(super) fn number(text: &str, range: RangeInclusive<u64>) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|value| plain && range.contains(value))
}

/// `None` inside for the word `auto`.
#[allow(clippy::option_option)]
pub(super) fn auto<T>(text: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    if text == "auto" {
        Some(None)
    } else {
        parse(text).map(Some)
    }
}

pub(super) fn duration(text: &str, range: RangeInclusive<Duration>) -> Option<Duration> {
    let nanos = GoDuration::parse(text).ok()?.as_nanos();
    let duration = Duration::from_nanos(u64::try_from(nanos).ok()?);
    range.contains(&duration).then_some(duration)
}

pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

pub(super) fn log_level(text: &str) -> Option<tracing::Level> {
    match text {
        "debug" => Some(tracing::Level::DEBUG),
        "info" => Some(tracing::Level::INFO),
        "warn" => Some(tracing::Level::WARN),
        "error" => Some(tracing::Level::ERROR),
        _ => None,
    }
}

pub(super) fn io_driver(text: &str) -> Option<DriverChoice> {
    match text {
        "auto" => Some(DriverChoice::Auto),
        "io_uring" => Some(DriverChoice::IoUring),
        "epoll" => Some(DriverChoice::Epoll),
        _ => None,
    }
}

pub(super) fn node_id(text: &str) -> Option<String> {
    let fits = (1..=253).contains(&text.len());
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !b",@/".contains(&byte));
    (fits && plain).then(|| text.to_owned())
}
