//! What clients did and saw, and whether it keeps the promises of docs/consistency.md.

#![allow(dead_code, reason = "each test uses its part of it")]

use hypercache::clock::{UnixMs, Version};
use hypercache::cluster::Consistency;

/// How far a version may be ahead of the true time where values expire: so far as the clock
/// that stamped it is, and another version that this clock believed.
const VERSION_AHEAD_MS_MAX: u64 = 700;

/// One way a history broke a promise.
pub type Broken = String;

/// An operation a client has under way or has finished.
#[derive(Clone, Debug)]
pub struct Request {
    pub key: usize,
    pub started: u64,
    pub ended: u64,
    pub consistency: Consistency,
    pub kind: Kind,
    /// When the value that is put expires, if it does.
    pub expiry: Option<Expiry>,
    pub result: Option<Done>,
}

/// When a value expires: by the clock that is furthest ahead, and by the one furthest behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    pub first: u64,
    pub last: u64,
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            key,
            started,
            ended,
            consistency,
            expiry,
            ..
        } = self;
        write!(f, "{started}..{ended} key {key} {consistency:?} ")?;
        if let Some(Expiry { first, last }) = expiry {
            write!(f, "expires {first} to {last} ")?;
        }
        match &self.kind {
            Kind::Get => f.write_str("get")?,
            Kind::Put(value) => write!(f, "put {}", String::from_utf8_lossy(value))?,
            Kind::Delete => f.write_str("delete")?,
        }
        match &self.result {
            Some(Done::Found(value, version)) => {
                write!(f, ": {} {version:?}", String::from_utf8_lossy(value))
            }
            other => write!(f, ": {other:?}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Get,
    Put(Vec<u8>),
    Delete,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    Found(Vec<u8>, Version),
    Missing,
    /// Acknowledged, under a version if the client was told of it.
    Written(Option<Version>),
    Failed,
}

fn is_durable(request: &Request) -> bool {
    request.consistency != Consistency::One && matches!(request.result, Some(Done::Written(_)))
}

fn writes<'a>(history: &'a [&Request]) -> impl Iterator<Item = &'a Request> {
    history
        .iter()
        .copied()
        .filter(|request| request.kind != Kind::Get)
}

/// When a write was over for certain: one that failed may still take effect, and one at
/// ONE is ordered by nothing but its version.
fn over(write: &Request) -> u64 {
    if is_durable(write) {
        write.ended
    } else {
        u64::MAX
    }
}

/// Whether what was written may have expired by this time.
fn may_be_gone(write: &Request, by: u64) -> bool {
    write.expiry.is_some_and(|expiry| expiry.first <= by)
}

/// Whether what was written has expired at this time, whoever is asked.
fn is_gone(write: &Request, at: u64) -> bool {
    write.expiry.is_some_and(|expiry| expiry.last <= at)
}

/// The newest version that may have expired by this time. An expired value leaves nothing
/// behind, of itself or of what it replaced: an owner that missed it may have something older.
fn forgotten(history: &[&Request], by: u64) -> Option<Version> {
    let expired = writes(history).filter(|write| write.started <= by && may_be_gone(write, by));
    let versions = expired.map(|write| match write.result {
        Some(Done::Written(Some(version))) => version,
        _ => Version::at(UnixMs(write.ended.min(by))).later(VERSION_AHEAD_MS_MAX),
    });
    versions.max()
}

/// The writes acknowledged at QUORUM or ALL that cannot have been forgotten by this time.
fn remembered<'a>(history: &'a [&Request], by: u64) -> impl Iterator<Item = &'a Request> {
    let forgotten = forgotten(history, by);
    let is_newer = move |write: &Request| match write.result {
        Some(Done::Written(version)) => forgotten.is_none() || version > forgotten,
        _ => false,
    };
    writes(history).filter(move |write| is_durable(write) && is_newer(write))
}

/// Whether some acknowledged write came wholly after `write` and wholly before `before`, and
/// cannot have been forgotten by `by`.
fn superseded(write: Option<&Request>, history: &[&Request], before: u64, by: u64) -> bool {
    let end = write.map_or(0, over);
    remembered(history, by).any(|later| later.started > end && later.ended < before)
}

/// The writes that can be the source of what was seen by this time; `None` stands for no
/// write at all.
fn sources<'a>(history: &'a [&Request], value: Option<&[u8]>, by: u64) -> Vec<Option<&'a Request>> {
    match value {
        Some(value) => writes(history)
            .filter(|write| matches!(&write.kind, Kind::Put(bytes) if bytes == value))
            .map(Some)
            .collect(),
        None => writes(history)
            .filter(|write| write.kind == Kind::Delete || may_be_gone(write, by))
            .map(Some)
            .chain([None])
            .collect(),
    }
}

/// Every value that was found had been written to its key, had not expired before, and has a
/// version that is not newer than the one its write was acknowledged with.
pub fn nothing_is_made_up(history: &[&Request]) -> Result<(), Broken> {
    for read in history {
        let Some(Done::Found(value, version)) = &read.result else {
            continue;
        };
        let is_source = |write: &Request| {
            let put = matches!(&write.kind, Kind::Put(bytes) if bytes == value);
            put && write.started <= read.ended
                && !is_gone(write, read.started)
                && match write.result {
                    Some(Done::Written(Some(acknowledged))) => *version <= acknowledged,
                    _ => true,
                }
        };
        if !writes(history).any(is_source) {
            let history = listed(history.iter().copied());
            return Err(format!(
                "a read saw what nobody wrote: {read}\namong{history}"
            ));
        }
    }
    Ok(())
}

/// No acknowledged write is lost, and nothing that was deleted came back, when the key
/// holds `value` at the end.
pub fn ends_with(history: &[&Request], value: Option<&[u8]>, end: u64) -> Result<(), Broken> {
    let fine = sources(history, value, end)
        .into_iter()
        .any(|source| !superseded(source, history, u64::MAX, end));
    if fine {
        return Ok(());
    }
    Err(format!(
        "ended as {:?}, older than a write that was acknowledged, after{}",
        value.map(String::from_utf8_lossy),
        listed(history.iter().copied())
    ))
}

fn listed<'a>(history: impl Iterator<Item = &'a Request>) -> String {
    history.map(|request| format!("\n{request}")).collect()
}

/// A read at QUORUM after an acknowledged write at QUORUM is never older.
pub fn quorum_reads(history: &[&Request]) -> Result<(), Broken> {
    for read in history
        .iter()
        .filter(|request| request.kind == Kind::Get && request.consistency != Consistency::One)
    {
        let (value, version) = match &read.result {
            Some(Done::Found(value, version)) => (Some(value.as_slice()), Some(*version)),
            Some(Done::Missing) => (None, None),
            _ => continue,
        };
        let fine = sources(history, value, read.ended)
            .into_iter()
            .any(|source| !superseded(source, history, read.started, read.ended));
        let newest = remembered(history, read.ended)
            .filter(|write| write.ended < read.started)
            .filter_map(|write| match write.result {
                Some(Done::Written(version)) => version,
                _ => None,
            })
            .max();
        if !fine || version.is_some() && version < newest {
            let earlier = history.iter().copied();
            let earlier = listed(earlier.filter(|request| request.started < read.ended));
            return Err(format!(
                "a read saw something older than {newest:?}: {read}\nafter{earlier}"
            ));
        }
    }
    Ok(())
}

/// A write that began after another was acknowledged has no smaller version, unless the other
/// may have been forgotten.
pub fn order_of_writes(history: &[&Request]) -> Result<(), Broken> {
    let mut acked: Vec<_> = writes(history)
        .filter(|write| is_durable(write))
        .filter_map(|write| match write.result {
            Some(Done::Written(Some(version))) => Some((version, write)),
            _ => None,
        })
        .collect();
    acked.sort_unstable_by_key(|(_, write)| write.started);
    for (index, (version, write)) in acked.iter().enumerate() {
        let forgotten = forgotten(history, write.ended);
        let is_newer = |(other, earlier): &&(Version, &Request)| {
            earlier.ended < write.started && other > version && Some(*other) > forgotten
        };
        if let Some((_, earlier)) = acked[..index].iter().find(is_newer) {
            let history = listed(history.iter().copied());
            return Err(format!(
                "a later write got an older version:\n{earlier}\n{write}\namong{history}"
            ));
        }
    }
    Ok(())
}
