//! What the cores of two nodes say to each other, and its binary form.
//!
//! A *frame* is the body of one request: a version byte, then operations, each
//! behind its length. Its answer begins with the version byte and the [`Terms`] by which
//! the receiver answered; then comes one answer per operation, in order, in the same form.
//! Every operation concerns one partition, so a node with another number of
//! cores can cut a frame up and put the answers together again ([`split`],
//! [`join`]) without knowing what they say.
//!
//! All numbers are little endian; lengths are LEB128 (one byte up to 127). The
//! version is [`FORMAT`]. A receiver refuses a frame with another one, and an
//! operation of a kind it does not know is answered [`Answer::Refused`], so that two
//! releases can form one cluster. Decoding trusts nothing: every length is checked
//! against what is there, and nothing is allocated on the word of a sender.

use super::membership::{RosterId, Terms};
use crate::bytes::Reader;
use crate::clock::{Origin, UnixMs, Version};
use crate::hash::{CoreCount, CoreId, KeyHash, PartitionId};
use crate::store::{Content, Digest, KEY_BYTES_MAX, ValueIn};

pub use crate::bytes::Malformed;

/// The first byte of every frame.
pub const FORMAT: u8 = 1;

/// Leaves a partition's digest is split into.
pub const LEAVES: usize = 64;

/// Which leaf of its partition a key falls into.
#[inline]
pub fn leaf_of(hash: KeyHash) -> usize {
    (hash.0 >> 46) as usize % LEAVES
}

/// A write on its way to an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteOp<'a> {
    /// The key, not empty and not too long.
    pub key: &'a [u8],
    /// When it was written.
    pub version: Version,
    /// Who stamped that version.
    pub origin: Origin,
    /// The value; `None` for a tombstone.
    pub value: Option<&'a [u8]>,
    /// When it ceases to exist; always given for a tombstone.
    pub expires_at: Option<UnixMs>,
}

impl<'a> WriteOp<'a> {
    /// The same as the store takes it in.
    pub fn content(&self) -> Content<'a> {
        match self.value {
            Some(value) => Content::Value {
                value: ValueIn::Bytes(value),
                expires_at: self.expires_at,
            },
            None => Content::Tombstone {
                expires_at: self.expires_at.unwrap_or_default(),
            },
        }
    }
}

/// One key as a replica knows it, to find out what differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key's hash.
    pub hash: KeyHash,
    /// The version the sender holds.
    pub version: Version,
    /// Who stamped it.
    pub origin: Origin,
}

const ENTRY_BYTES: usize = 20;

/// Entries as they stand in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries<'a>(&'a [u8]);

impl<'a> Entries<'a> {
    /// Reads them; a version out of range is left out.
    pub fn iter(self) -> impl Iterator<Item = Entry> + 'a {
        self.0.chunks_exact(ENTRY_BYTES).filter_map(|chunk| {
            let mut reader = Reader(chunk);
            Some(Entry {
                hash: KeyHash(reader.u64().ok()?),
                version: reader.version().ok()?,
                origin: Origin(reader.u32().ok()?),
            })
        })
    }
}

/// One operation of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerOp<'a> {
    /// Take this write in, which the sender has just stamped. Only an answer of
    /// [`Answer::Stored`] says that it is newer than all that was there.
    Write(WriteOp<'a>),
    /// Take this write in if it is the newer one by version, then origin: a replayed
    /// hint or a repair.
    Apply(WriteOp<'a>),
    /// Tell what you hold of a key, with its value or without.
    Read {
        /// The key.
        key: &'a [u8],
        /// Whether the value is wanted.
        value: bool,
    },
    /// Tell whether your partition has this digest.
    Compare {
        /// The partition.
        partition: PartitionId,
        /// The sender's digest of it.
        digest: Digest,
    },
    /// Here is what I hold of these leaves: send what is newer, ask for what is older.
    Exchange {
        /// The partition.
        partition: PartitionId,
        /// The leaves, as bits.
        leaves: u64,
        /// All the sender holds there.
        entries: Entries<'a>,
    },
}

const WRITE: u8 = 1;
const READ: u8 = 2;
const COMPARE: u8 = 3;
const EXCHANGE: u8 = 4;
const APPLY: u8 = 5;

const TOMBSTONE: u8 = 1;
const EXPIRES: u8 = 2;
const HOLDING: u8 = 4;
const WITH_VALUE: u8 = 8;
const MORE: u8 = 16;

/// Why an operation was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The receiver does not own the partition, as far as it knows.
    NotOwner,
    /// The value is larger than the receiver takes.
    TooLarge,
    /// The version lies too far ahead of the receiver's clock.
    Skewed,
    /// The receiver does not know this kind of operation.
    Unknown,
    /// The receiver does not know its cluster yet.
    NotJoined,
    /// The answers to one frame have become too many, or too long to work out: ask
    /// again in another. The first operation of a frame is never answered so.
    Later,
}

impl Refusal {
    fn code(self) -> u8 {
        match self {
            Self::NotOwner => 1,
            Self::TooLarge => 2,
            Self::Skewed => 3,
            Self::Unknown => 4,
            Self::NotJoined => 5,
            Self::Later => 6,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::NotOwner,
            2 => Self::TooLarge,
            3 => Self::Skewed,
            5 => Self::NotJoined,
            6 => Self::Later,
            _ => Self::Unknown,
        }
    }
}

/// An item as a replica holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held<'a> {
    /// When it was written.
    pub version: Version,
    /// Who stamped that version.
    pub origin: Origin,
    /// When it ceases to exist.
    pub expires_at: Option<UnixMs>,
    /// What it is.
    pub body: HeldBody<'a>,
}

/// What a replica holds under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldBody<'a> {
    /// A deletion.
    Tombstone,
    /// A value that was not asked for.
    Omitted,
    /// A value.
    Value(&'a [u8]),
}

/// What an operation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The write is what the receiver holds now.
    Stored {
        /// Whether the receiver holds the whole partition: if not, it cannot know whether
        /// the write is newer than what was acknowledged before.
        holding: bool,
    },
    /// The receiver holds this, which is as new or newer.
    Stale {
        /// Whether the receiver holds the whole partition: if not, there may have been
        /// something newer still.
        holding: bool,
        /// The version it holds.
        version: Version,
        /// Who stamped it.
        origin: Origin,
    },
    /// Nothing was done.
    Refused(Refusal),
    /// What the receiver holds.
    Read {
        /// Whether it holds the whole partition: if not, absence means nothing.
        holding: bool,
        /// The item, if there is one.
        held: Option<Held<'a>>,
    },
    /// The digests agree.
    Same {
        /// Whether the receiver holds the whole partition.
        holding: bool,
    },
    /// They do not.
    Differs {
        /// Whether the receiver holds the whole partition.
        holding: bool,
        /// The digests of its leaves.
        leaves: Leaves<'a>,
    },
    /// The answer to an exchange.
    Exchanged {
        /// Whether the receiver holds the whole partition.
        holding: bool,
        /// Whether newer items were left out for want of room.
        more: bool,
        /// Hashes of keys the receiver would like to have.
        wanted: Hashes<'a>,
        /// What the receiver has newer.
        items: Items<'a>,
    },
}

/// The digests of a partition's leaves, as they stand in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaves<'a>(&'a [u8]);

impl Leaves<'_> {
    /// A copy, to compare with later.
    pub fn to_digests(self) -> Box<[Digest; LEAVES]> {
        let mut digests = Box::new([Digest::default(); LEAVES]);
        let theirs = self.0.chunks_exact(8).map(|chunk| Reader(chunk).u64());
        for (digest, theirs) in digests.iter_mut().zip(theirs) {
            *digest = Digest(theirs.unwrap_or_default());
        }
        digests
    }
}

/// The leaves in which two digests of one partition are not the same, as bits.
pub fn differing(one: &[Digest; LEAVES], other: &[Digest; LEAVES]) -> u64 {
    let pairs = one.iter().zip(other).enumerate();
    pairs
        .filter(|(_, (one, other))| one != other)
        .fold(0, |bits, (leaf, _)| bits | 1 << leaf)
}

/// Hashes of keys, as they stand in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashes<'a>(&'a [u8]);

impl<'a> Hashes<'a> {
    /// Reads them.
    pub fn iter(self) -> impl Iterator<Item = KeyHash> + 'a {
        let chunks = self.0.chunks_exact(8);
        chunks.filter_map(|chunk| Reader(chunk).u64().ok().map(KeyHash))
    }
}

/// Writes, as they stand in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Items<'a>(&'a [u8]);

impl<'a> Items<'a> {
    /// Reads them, up to the first that is malformed.
    pub fn iter(self) -> impl Iterator<Item = WriteOp<'a>> + 'a {
        Frames(Reader(self.0)).map_while(|body| match PeerOp::decode(body.ok()?).ok()? {
            PeerOp::Apply(write) => Some(write),
            _ => None,
        })
    }
}

impl<'a> PeerOp<'a> {
    /// The partition the operation is about.
    pub fn partition(&self) -> PartitionId {
        match self {
            Self::Write(WriteOp { key, .. })
            | Self::Apply(WriteOp { key, .. })
            | Self::Read { key, .. } => KeyHash::of(key).partition(),
            Self::Compare { partition, .. } | Self::Exchange { partition, .. } => *partition,
        }
    }

    /// Appends the operation to a frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Write(write) => write.encode_as(WRITE, out),
            Self::Apply(write) => write.encode(out),
            Self::Read { key, value } => {
                put_length(out, 2 + key.len());
                out.extend_from_slice(&[READ, if *value { WITH_VALUE } else { 0 }]);
                out.extend_from_slice(key);
            }
            Self::Compare { partition, digest } => {
                put_length(out, 11);
                out.push(COMPARE);
                out.extend_from_slice(&(partition.index() as u16).to_le_bytes());
                out.extend_from_slice(&digest.0.to_le_bytes());
            }
            Self::Exchange {
                partition,
                leaves,
                entries,
            } => {
                put_length(out, 11 + entries.0.len());
                out.push(EXCHANGE);
                out.extend_from_slice(&(partition.index() as u16).to_le_bytes());
                out.extend_from_slice(&leaves.to_le_bytes());
                out.extend_from_slice(entries.0);
            }
        }
    }

    /// Reads one operation, without its length.
    ///
    /// # Errors
    ///
    /// [`Malformed`], also for a kind that is not known.
    pub fn decode(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(body);
        match reader.u8()? {
            kind @ (WRITE | APPLY) => {
                let flags = reader.u8()?;
                let version = reader.version()?;
                let origin = Origin(reader.u32()?);
                let expires_at = reader.expiry(flags)?;
                let key_len = usize::from(reader.u16()?);
                let key = reader.key(key_len)?;
                let value = (flags & TOMBSTONE == 0).then_some(reader.0);
                if value.is_none() && (expires_at.is_none() || !reader.0.is_empty()) {
                    return Err(Malformed);
                }
                let write = WriteOp {
                    key,
                    version,
                    origin,
                    value,
                    expires_at,
                };
                Ok(if kind == WRITE {
                    Self::Write(write)
                } else {
                    Self::Apply(write)
                })
            }
            READ => {
                let value = reader.u8()? & WITH_VALUE != 0;
                let key = reader.key(reader.0.len())?;
                Ok(Self::Read { key, value })
            }
            COMPARE => {
                let partition = reader.partition()?;
                let digest = Digest(reader.u64()?);
                reader.end()?;
                Ok(Self::Compare { partition, digest })
            }
            EXCHANGE => {
                let partition = reader.partition()?;
                let leaves = reader.u64()?;
                if !reader.0.len().is_multiple_of(ENTRY_BYTES) {
                    return Err(Malformed);
                }
                let entries = Entries(reader.0);
                Ok(Self::Exchange {
                    partition,
                    leaves,
                    entries,
                })
            }
            _ => Err(Malformed),
        }
    }
}

impl WriteOp<'_> {
    /// Appends the write, as [`PeerOp::Apply`], to a frame or to the items of an answer.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.encode_as(APPLY, out);
    }

    fn encode_as(&self, kind: u8, out: &mut Vec<u8>) {
        let value = self.value.unwrap_or_default();
        let expiry_len = if self.expires_at.is_some() { 8 } else { 0 };
        put_length(out, 16 + expiry_len + self.key.len() + value.len());
        let tombstone = if self.value.is_none() { TOMBSTONE } else { 0 };
        let expires = if self.expires_at.is_some() {
            EXPIRES
        } else {
            0
        };
        out.extend_from_slice(&[kind, tombstone | expires]);
        out.extend_from_slice(&self.version.get().to_le_bytes());
        out.extend_from_slice(&self.origin.0.to_le_bytes());
        if let Some(at) = self.expires_at {
            out.extend_from_slice(&at.0.to_le_bytes());
        }
        out.extend_from_slice(&(self.key.len() as u16).to_le_bytes());
        out.extend_from_slice(self.key);
        out.extend_from_slice(value);
    }
}

/// Appends entries for [`PeerOp::Exchange`].
pub fn put_entry(out: &mut Vec<u8>, entry: Entry) {
    out.extend_from_slice(&entry.hash.0.to_le_bytes());
    out.extend_from_slice(&entry.version.get().to_le_bytes());
    out.extend_from_slice(&entry.origin.0.to_le_bytes());
}

/// The entries that [`put_entry`] wrote.
pub fn entries(bytes: &[u8]) -> Entries<'_> {
    Entries(bytes)
}

const STORED: u8 = 0;
const STALE: u8 = 1;
const REFUSED: u8 = 2;
const ABSENT: u8 = 3;
const HELD: u8 = 4;
const SAME: u8 = 5;
const DIFFERS: u8 = 6;
const EXCHANGED: u8 = 7;

/// Appends the digests of all leaves as an answer.
pub fn put_differs(out: &mut Vec<u8>, holding: bool, leaves: &[Digest; LEAVES]) {
    put_length(out, 2 + 8 * LEAVES);
    out.extend_from_slice(&[DIFFERS, holding_flag(holding)]);
    for leaf in leaves {
        out.extend_from_slice(&leaf.0.to_le_bytes());
    }
}

/// Appends the answer to an exchange; `items` holds encoded writes.
pub fn put_exchanged(
    out: &mut Vec<u8>,
    holding: bool,
    more: bool,
    wanted: &[KeyHash],
    items: &[u8],
) {
    put_length(out, 6 + 8 * wanted.len() + items.len());
    let more = if more { MORE } else { 0 };
    out.extend_from_slice(&[EXCHANGED, holding_flag(holding) | more]);
    out.extend_from_slice(&(wanted.len() as u32).to_le_bytes());
    for hash in wanted {
        out.extend_from_slice(&hash.0.to_le_bytes());
    }
    out.extend_from_slice(items);
}

impl<'a> Answer<'a> {
    /// Appends the answer.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Stored { holding } => {
                out.extend_from_slice(&[2, STORED, holding_flag(*holding)]);
            }
            Self::Same { holding } => {
                out.extend_from_slice(&[2, SAME, holding_flag(*holding)]);
            }
            Self::Stale {
                holding,
                version,
                origin,
            } => {
                out.extend_from_slice(&[14, STALE, holding_flag(*holding)]);
                out.extend_from_slice(&version.get().to_le_bytes());
                out.extend_from_slice(&origin.0.to_le_bytes());
            }
            Self::Refused(refusal) => out.extend_from_slice(&[2, REFUSED, refusal.code()]),
            Self::Read {
                holding,
                held: None,
            } => out.extend_from_slice(&[2, ABSENT, holding_flag(*holding)]),
            Self::Read {
                holding,
                held: Some(held),
            } => {
                let (body_flags, value) = match held.body {
                    HeldBody::Tombstone => (TOMBSTONE, &[][..]),
                    HeldBody::Omitted => (0, &[][..]),
                    HeldBody::Value(value) => (WITH_VALUE, value),
                };
                let (expires, expiry_len) = match held.expires_at {
                    Some(_) => (EXPIRES, 8),
                    None => (0, 0),
                };
                put_length(out, 14 + expiry_len + value.len());
                out.extend_from_slice(&[HELD, holding_flag(*holding) | expires | body_flags]);
                out.extend_from_slice(&held.version.get().to_le_bytes());
                out.extend_from_slice(&held.origin.0.to_le_bytes());
                if let Some(at) = held.expires_at {
                    out.extend_from_slice(&at.0.to_le_bytes());
                }
                out.extend_from_slice(value);
            }
            Self::Differs { holding, leaves } => {
                put_length(out, 2 + leaves.0.len());
                out.extend_from_slice(&[DIFFERS, holding_flag(*holding)]);
                out.extend_from_slice(leaves.0);
            }
            Self::Exchanged {
                holding,
                more,
                wanted,
                items,
            } => {
                let wanted: Vec<KeyHash> = wanted.iter().collect();
                put_exchanged(out, *holding, *more, &wanted, items.0);
            }
        }
    }

    /// Reads one answer, without its length.
    ///
    /// # Errors
    ///
    /// [`Malformed`].
    pub fn decode(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(body);
        match reader.u8()? {
            STORED => Ok(Self::Stored {
                holding: reader.holding()?,
            }),
            SAME => Ok(Self::Same {
                holding: reader.holding()?,
            }),
            STALE => Ok(Self::Stale {
                holding: reader.holding()?,
                version: reader.version()?,
                origin: Origin(reader.u32()?),
            }),
            REFUSED => Ok(Self::Refused(Refusal::from_code(reader.u8()?))),
            ABSENT => Ok(Self::Read {
                holding: reader.holding()?,
                held: None,
            }),
            HELD => {
                let flags = reader.u8()?;
                let version = reader.version()?;
                let origin = Origin(reader.u32()?);
                let expires_at = reader.expiry(flags)?;
                let body = if flags & TOMBSTONE != 0 {
                    HeldBody::Tombstone
                } else if flags & WITH_VALUE != 0 {
                    HeldBody::Value(reader.0)
                } else {
                    HeldBody::Omitted
                };
                let held = Held {
                    version,
                    origin,
                    expires_at,
                    body,
                };
                Ok(Self::Read {
                    holding: flags & HOLDING != 0,
                    held: Some(held),
                })
            }
            DIFFERS => {
                let holding = reader.holding()?;
                let leaves = Leaves(reader.take(8 * LEAVES)?);
                reader.end()?;
                Ok(Self::Differs { holding, leaves })
            }
            EXCHANGED => {
                let flags = reader.u8()?;
                let count = reader.u32()? as usize;
                let wanted = reader.take(count.checked_mul(8).ok_or(Malformed)?)?;
                Ok(Self::Exchanged {
                    holding: flags & HOLDING != 0,
                    more: flags & MORE != 0,
                    wanted: Hashes(wanted),
                    items: Items(reader.0),
                })
            }
            _ => Err(Malformed),
        }
    }
}

fn holding_flag(holding: bool) -> u8 {
    if holding { HOLDING } else { 0 }
}

/// Appends a length: seven bits to a byte, the lowest first (LEB128).
fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// The bodies of a frame, each without its length; ends after the first error.
#[derive(Debug)]
pub struct Frames<'a>(Reader<'a>);

impl<'a> Frames<'a> {
    /// Reads a frame or the answer to one.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when it does not begin with [`FORMAT`].
    pub fn new(frame: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(frame);
        if reader.u8()? != FORMAT {
            return Err(Malformed);
        }
        Ok(Self(reader))
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<&'a [u8], Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.0.is_empty() {
            return None;
        }
        let body = self.0.length().and_then(|length| self.0.take(length));
        if body.is_err() {
            self.0.0 = &[];
        }
        Some(body)
    }
}

/// Begins the answer to a frame.
pub fn begin_answers(out: &mut Vec<u8>, terms: Terms) {
    out.push(FORMAT);
    out.extend_from_slice(&terms.reading.0.to_le_bytes());
    out.extend_from_slice(&terms.also.0.to_le_bytes());
}

/// Reads the answer to a frame: the terms it was given by, and the answers.
///
/// # Errors
///
/// [`Malformed`] when it does not begin as [`begin_answers`] has it.
pub fn answers(bytes: &[u8]) -> Result<(Terms, Frames<'_>), Malformed> {
    let mut frames = Frames::new(bytes)?;
    let reading = RosterId(frames.0.u64()?);
    let also = RosterId(frames.0.u64()?);
    Ok((Terms { reading, also }, frames))
}

/// A frame cut up by the cores its operations belong to.
#[derive(Debug, Default)]
pub struct Split {
    /// For each operation, in order, the core it went to.
    pub order: Vec<CoreId>,
    /// For each core with operations, its own frame.
    pub parts: Vec<(CoreId, Vec<u8>)>,
}

/// Cuts a frame up for a node of `cores` cores. An operation of no known kind goes
/// to core 0, which refuses it.
///
/// # Errors
///
/// [`Malformed`] when it is no frame.
pub fn split(frame: &[u8], cores: CoreCount) -> Result<Split, Malformed> {
    let mut split = Split::default();
    for body in Frames::new(frame)? {
        let body = body?;
        let core = match PeerOp::decode(body) {
            Ok(op) => op.partition().core(cores),
            Err(Malformed) => CoreId::new(0),
        };
        let part = match split.parts.iter().position(|(owner, _)| *owner == core) {
            Some(at) => at,
            None => {
                split.parts.push((core, vec![FORMAT]));
                split.parts.len() - 1
            }
        };
        let out = &mut split.parts[part].1;
        put_length(out, body.len());
        out.extend_from_slice(body);
        split.order.push(core);
    }
    Ok(split)
}

/// Puts the answers of the cores into the order of the operations. Cores that go by
/// different rosters answer together by none.
///
/// # Errors
///
/// [`Malformed`] when an answer is missing.
pub fn join(order: &[CoreId], answers: &[(CoreId, Vec<u8>)]) -> Result<Vec<u8>, Malformed> {
    let mut readers = Vec::new();
    let mut terms = None;
    for (core, answer) in answers {
        let (theirs, frames) = self::answers(answer)?;
        let common = *terms.get_or_insert(theirs) == theirs;
        terms = Some(if common { theirs } else { Terms::default() });
        readers.push((*core, frames));
    }
    let mut out = Vec::new();
    begin_answers(&mut out, terms.unwrap_or_default());
    for core in order {
        let reader = readers.iter_mut().find(|(owner, _)| owner == core);
        let body = reader
            .and_then(|(_, frames)| frames.next())
            .ok_or(Malformed)??;
        put_length(&mut out, body.len());
        out.extend_from_slice(body);
    }
    Ok(out)
}

impl<'a> Reader<'a> {
    fn holding(&mut self) -> Result<bool, Malformed> {
        Ok(self.u8()? & HOLDING != 0)
    }

    fn version(&mut self) -> Result<Version, Malformed> {
        Version::new(self.u64()?).ok_or(Malformed)
    }

    fn partition(&mut self) -> Result<PartitionId, Malformed> {
        PartitionId::new(usize::from(self.u16()?)).ok_or(Malformed)
    }

    fn expiry(&mut self, flags: u8) -> Result<Option<UnixMs>, Malformed> {
        if flags & EXPIRES == 0 {
            return Ok(None);
        }
        self.u64().map(UnixMs).map(Some)
    }

    fn key(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        if !(1..=KEY_BYTES_MAX).contains(&length) {
            return Err(Malformed);
        }
        self.take(length)
    }

    fn length(&mut self) -> Result<usize, Malformed> {
        let mut length = 0_usize;
        for shift in (0..35).step_by(7) {
            let byte = self.u8()?;
            length |= usize::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(length);
            }
        }
        Err(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn op<'a>(key: &'a [u8], value: Option<&'a [u8]>, seed: u64, expires: bool) -> PeerOp<'a> {
        let partition = PartitionId::new(seed as usize % 4096).unwrap();
        match seed % 4 {
            0 => PeerOp::Read {
                key,
                value: expires,
            },
            1 => PeerOp::Compare {
                partition,
                digest: Digest(seed),
            },
            _ => PeerOp::Write(WriteOp {
                key,
                version: Version::new(seed >> 11).unwrap(),
                origin: Origin(seed as u32),
                value,
                expires_at: (expires || value.is_none()).then_some(UnixMs(seed)),
            }),
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            ops in prop::collection::vec(
                (
                    prop::collection::vec(any::<u8>(), 1..200),
                    prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
                    any::<u64>(),
                    any::<bool>(),
                ),
                0..20,
            ),
            cores in 1_usize..5,
        ) {
            let ops: Vec<_> = ops
                .iter()
                .map(|(key, value, seed, expires)| op(key, value.as_deref(), *seed, *expires))
                .collect();
            let mut frame = vec![FORMAT];
            for op in &ops {
                op.encode(&mut frame);
            }
            let bodies = Frames::new(&frame).unwrap();
            let decoded: Vec<_> = bodies.map(|body| PeerOp::decode(body.unwrap()).unwrap()).collect();
            prop_assert_eq!(&decoded, &ops);

            // Cut up and put together again, the frame is what it was.
            let cores = CoreCount::new(cores).unwrap();
            let cut = split(&frame, cores).unwrap();
            for (core, part) in &cut.parts {
                for body in Frames::new(part).unwrap() {
                    prop_assert_eq!(PeerOp::decode(body.unwrap()).unwrap().partition().core(cores), *core);
                }
            }
            let terms = Terms { reading: RosterId(7), also: RosterId(8) };
            let whole = |body: &[u8]| {
                let mut answers = Vec::new();
                begin_answers(&mut answers, terms);
                answers.extend_from_slice(body);
                answers
            };
            let parts: Vec<_> = cut.parts.iter().map(|(core, part)| (*core, whole(&part[1..]))).collect();
            let joined = join(&cut.order, &parts).unwrap();
            if ops.is_empty() {
                prop_assert_eq!(answers(&joined).unwrap().0, Terms::default());
            } else {
                prop_assert_eq!(joined, whole(&frame[1..]));
            }
        }

        #[test]
        fn nonsense_is_refused_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(frames) = Frames::new(&bytes) {
                for body in frames.flatten() {
                    let _ = PeerOp::decode(body);
                    let _ = Answer::decode(body);
                }
            }
            let _ = split(&bytes, CoreCount::ONE);
        }
    }

    #[test]
    fn answers_come_back_as_they_were() {
        let version = Version::new(77).unwrap();
        let origin = Origin(5);
        let held = |body| Held {
            version,
            origin,
            expires_at: Some(UnixMs(9)),
            body,
        };
        let answers = [
            Answer::Stored { holding: true },
            Answer::Stored { holding: false },
            Answer::Same { holding: true },
            Answer::Same { holding: false },
            Answer::Stale {
                holding: false,
                version,
                origin,
            },
            Answer::Refused(Refusal::NotOwner),
            Answer::Refused(Refusal::TooLarge),
            Answer::Refused(Refusal::Skewed),
            Answer::Refused(Refusal::Unknown),
            Answer::Refused(Refusal::NotJoined),
            Answer::Refused(Refusal::Later),
            Answer::Read {
                holding: true,
                held: None,
            },
            Answer::Read {
                holding: false,
                held: Some(held(HeldBody::Tombstone)),
            },
            Answer::Read {
                holding: true,
                held: Some(held(HeldBody::Value(b"v"))),
            },
            Answer::Read {
                holding: true,
                held: Some(held(HeldBody::Omitted)),
            },
        ];
        let mut bytes = vec![FORMAT];
        for answer in &answers {
            answer.encode(&mut bytes);
        }
        let decoded: Vec<_> = Frames::new(&bytes)
            .unwrap()
            .map(|body| Answer::decode(body.unwrap()).unwrap())
            .collect();
        assert_eq!(decoded, answers);
    }

    #[test]
    fn an_exchange_comes_back_as_it_was() {
        let write = WriteOp {
            key: b"k",
            version: Version::new(3).unwrap(),
            origin: Origin(4),
            value: Some(b"v"),
            expires_at: None,
        };
        let mut items = Vec::new();
        write.encode(&mut items);
        let mut bytes = vec![FORMAT];
        put_exchanged(&mut bytes, false, true, &[KeyHash(8)], &items);
        let body = Frames::new(&bytes).unwrap().next().unwrap().unwrap();
        let Answer::Exchanged {
            holding,
            more,
            wanted,
            items,
        } = Answer::decode(body).unwrap()
        else {
            panic!("another answer")
        };
        assert!(more && !holding);
        assert_eq!(wanted.iter().collect::<Vec<_>>(), [KeyHash(8)]);
        assert_eq!(items.iter().collect::<Vec<_>>(), [write]);
    }

    #[test]
    fn leaves_that_differ_are_named() {
        let mut own = [Digest(0); LEAVES];
        let mut bytes = vec![FORMAT];
        put_differs(&mut bytes, true, &own);
        own[3] = Digest(1);
        own[63] = Digest(2);
        let body = Frames::new(&bytes).unwrap().next().unwrap().unwrap();
        let Answer::Differs { holding, leaves } = Answer::decode(body).unwrap() else {
            panic!("another answer")
        };
        assert!(holding);
        assert_eq!(differing(&leaves.to_digests(), &own), 1 << 3 | 1 << 63);
    }
}
