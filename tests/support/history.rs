//! What clients did and saw, and whether it keeps the promises of docs/consistency.md.

#![allow(dead_code, reason = "each test uses its part of it")]

use hypercache::clock::Version;
use hypercache::cluster::Consistency;

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
    pub result: Option<Done>,
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            key,
            started,
            ended,
            consistency,
            ..
        } = self;
        write!(f, "{started}..{ended} key {key} {consistency:?} ")?;
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

/// Whether some acknowledged write came wholly after `write` and wholly before `before`.
fn superseded(write: Option<&Request>, history: &[&Request], before: u64) -> bool {
    let end = write.map_or(0, over);
    writes(history).any(|later| is_durable(later) && later.started > end && later.ended < before)
}

/// The writes that can be the source of what was seen; `None` stands for no write at all.
fn sources<'a>(history: &'a [&Request], value: Option<&[u8]>) -> Vec<Option<&'a Request>> {
    match value {
        Some(value) => writes(history)
            .filter(|write| matches!(&write.kind, Kind::Put(bytes) if bytes == value))
            .map(Some)
            .collect(),
        None => writes(history)
            .filter(|write| write.kind == Kind::Delete)
            .map(Some)
            .chain([None])
            .collect(),
    }
}

/// No acknowledged write is lost, and nothing that was deleted came back, when the key
/// ends with `value`.
pub fn ends_with(history: &[&Request], value: Option<&[u8]>) -> Result<(), Broken> {
    let fine = sources(history, value)
        .into_iter()
        .any(|source| !superseded(source, history, u64::MAX));
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
        let fine = sources(history, value)
            .into_iter()
            .any(|source| !superseded(source, history, read.started));
        let newest = writes(history)
            .filter(|write| is_durable(write) && write.ended < read.started)
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

/// A write that began after another was acknowledged has a greater version.
pub fn order_of_writes(history: &[&Request]) -> Result<(), Broken> {
    let mut acked: Vec<_> = writes(history)
        .filter(|write| is_durable(write))
        .filter_map(|write| match write.result {
            Some(Done::Written(Some(version))) => Some((write.started, write.ended, version)),
            _ => None,
        })
        .collect();
    acked.sort_unstable();
    for (index, (started, _, version)) in acked.iter().enumerate() {
        if let Some(earlier) = acked[..index]
            .iter()
            .find(|(_, ended, earlier)| ended < started && earlier >= version)
        {
            let history = listed(history.iter().copied());
            return Err(format!(
                "a later write got an older version: {earlier:?}, {version:?}\namong{history}"
            ));
        }
    }
    Ok(())
}
