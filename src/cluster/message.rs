//! What the cores of two nodes say to each other, and its binary form.
//!
//! A *frame* is the body of one request: a version byte, then operations, each
//! behind its length. Its answer begins with the version byte and the [`Terms`] by which
//! the receiver answered; then comes one answer per operation, in order, in the same form.
//! Every operation but one concerns one partition, so a node with another number
//! of cores can cut a frame up and put the answers together again ([`split`], [`join`])
//! without knowing what they say. [`PeerOp::CompareMany`] names many partitions and is
//! cut up itself.
//!
//! All numbers are little endian; lengths are LEB128 (one byte up to 127). The
//! version is [`FORMAT`]. A receiver refuses a frame with another one, and an
//! operation of a kind it does not know is answered [`Answer::Refused`], so that two
//! releases can form one cluster. Decoding trusts nothing: every length is checked
//! against what is there, and nothing is allocated on the word of a sender.

use super::membership::{RosterId, Terms};
use crate::bytes::Reader;
use crate::clock::{Origin, UnixMs, Version};
use crate::hash::{KeyHash, PartitionId};
use crate::store::{Content, Digest, KEY_BYTES_MAX, ValueIn};
use comparison::HASH_BYTES;

mod comparison;
mod split;

pub use crate::bytes::Malformed;
pub use comparison::{
    Entries, Entry, Hashes, Items, LEAVES, Leaves, PartitionDigests, Verdict, Verdicts, entries,
    hashes, items, leaf_of, pack_verdicts, partition_digests, put_entry, put_hash,
    put_partition_digests, verdicts,
};
pub use split::{Place, Split, join, split};

/// The first byte of every frame.
pub const FORMAT: u8 = 2;

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

/// What one that exchanges takes of what the other has newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// All of it.
    All,
    /// Newer versions of what it has, because it is full.
    Newer,
    /// Nothing: it is no owner any more.
    Nothing,
}

impl Takes {
    fn code(self) -> u8 {
        match self {
            Self::All => 0,
            Self::Newer => 1,
            Self::Nothing => 2,
        }
    }

    fn from_code(code: u8) -> Result<Self, Malformed> {
        match code {
            0 => Ok(Self::All),
            1 => Ok(Self::Newer),
            2 => Ok(Self::Nothing),
            _ => Err(Malformed),
        }
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
    /// The same, unless you are full and know nothing of the key: what an exchange asked
    /// for.
    Offer(WriteOp<'a>),
    /// Tell what you hold of a key, with its value or without.
    Read {
        /// The key.
        key: &'a [u8],
        /// Whether the value is wanted.
        value: bool,
    },
    /// Tell which of these partitions have these digests.
    CompareMany {
        /// Each partition with the sender's digest of it; one at least.
        digests: PartitionDigests<'a>,
    },
    /// Tell the digests of the leaves of your partition, unless it has this digest.
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
        /// What the sender would like to be sent.
        takes: Takes,
        /// All the sender holds there.
        entries: Entries<'a>,
    },
    /// Send the items of these keys: what an exchange had no room for.
    Fetch {
        /// The partition they are in.
        partition: PartitionId,
        /// The hashes of their keys.
        hashes: Hashes<'a>,
    },
}

const WRITE: u8 = 1;
const READ: u8 = 2;
const COMPARE: u8 = 3;
const EXCHANGE: u8 = 4;
const APPLY: u8 = 5;
const COMPARE_MANY: u8 = 6;
const FETCH: u8 = 7;
const OFFER: u8 = 8;

const TOMBSTONE: u8 = 1;
const EXPIRES: u8 = 2;
const HOLDING: u8 = 4;
const WITH_VALUE: u8 = 8;

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
    /// The receiver is full and knows nothing of the key.
    Full,
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
            Self::Full => 7,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::NotOwner,
            2 => Self::TooLarge,
            3 => Self::Skewed,
            5 => Self::NotJoined,
            6 => Self::Later,
            7 => Self::Full,
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
    /// How the digests of many partitions compare.
    Compared {
        /// One for each partition that was named, in order.
        verdicts: Verdicts<'a>,
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
        /// Hashes of keys the receiver would like to have.
        wanted: Hashes<'a>,
        /// Hashes of keys the receiver has newer, but had no room for: to be fetched.
        left: Hashes<'a>,
        /// How many items the receiver kept back because the sender is full.
        kept_back: u32,
        /// What else the receiver has newer.
        items: Items<'a>,
    },
    /// The answer to a fetch.
    Fetched {
        /// Whether the receiver holds the whole partition: if it did at the exchange and
        /// does not now, it has lost what it had.
        holding: bool,
        /// How many of the keys asked for are dealt with, from the first on; one at least.
        done: u32,
        /// What the receiver holds of them.
        items: Items<'a>,
    },
}

impl<'a> PeerOp<'a> {
    /// The partition the operation is about; the first of many.
    pub fn partition(&self) -> PartitionId {
        match self {
            Self::Write(WriteOp { key, .. })
            | Self::Apply(WriteOp { key, .. })
            | Self::Offer(WriteOp { key, .. })
            | Self::Read { key, .. } => KeyHash::of(key).partition(),
            Self::CompareMany { digests } => digests.first(),
            Self::Compare { partition, .. }
            | Self::Exchange { partition, .. }
            | Self::Fetch { partition, .. } => *partition,
        }
    }

    /// Appends the operation to a frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Write(write) => write.encode_as(WRITE, out),
            Self::Apply(write) => write.encode(out),
            Self::Offer(write) => write.encode_as(OFFER, out),
            Self::Read { key, value } => {
                put_length(out, 2 + key.len());
                out.extend_from_slice(&[READ, if *value { WITH_VALUE } else { 0 }]);
                out.extend_from_slice(key);
            }
            Self::CompareMany { digests } => {
                put_length(out, 1 + digests.bytes().len());
                out.push(COMPARE_MANY);
                out.extend_from_slice(digests.bytes());
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
                takes,
                entries,
            } => {
                put_length(out, 12 + entries.bytes().len());
                out.extend_from_slice(&[EXCHANGE, takes.code()]);
                out.extend_from_slice(&(partition.index() as u16).to_le_bytes());
                out.extend_from_slice(&leaves.to_le_bytes());
                out.extend_from_slice(entries.bytes());
            }
            Self::Fetch { partition, hashes } => {
                put_length(out, 3 + hashes.bytes().len());
                out.push(FETCH);
                out.extend_from_slice(&(partition.index() as u16).to_le_bytes());
                out.extend_from_slice(hashes.bytes());
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
            kind @ (WRITE | APPLY | OFFER) => {
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
                Ok(match kind {
                    WRITE => Self::Write(write),
                    APPLY => Self::Apply(write),
                    _ => Self::Offer(write),
                })
            }
            READ => {
                let value = reader.u8()? & WITH_VALUE != 0;
                let key = reader.key(reader.0.len())?;
                Ok(Self::Read { key, value })
            }
            COMPARE_MANY => {
                let digests = PartitionDigests::parse(reader.0)?;
                Ok(Self::CompareMany { digests })
            }
            COMPARE => {
                let partition = reader.partition()?;
                let digest = Digest(reader.u64()?);
                reader.end()?;
                Ok(Self::Compare { partition, digest })
            }
            EXCHANGE => {
                let takes = Takes::from_code(reader.u8()?)?;
                let partition = reader.partition()?;
                let leaves = reader.u64()?;
                let entries = Entries::parse(reader.0)?;
                Ok(Self::Exchange {
                    partition,
                    leaves,
                    takes,
                    entries,
                })
            }
            FETCH => {
                let partition = reader.partition()?;
                let hashes = Hashes::parse(reader.0)?;
                Ok(Self::Fetch { partition, hashes })
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

const STORED: u8 = 0;
const STALE: u8 = 1;
const REFUSED: u8 = 2;
const ABSENT: u8 = 3;
const HELD: u8 = 4;
const SAME: u8 = 5;
const DIFFERS: u8 = 6;
const EXCHANGED: u8 = 7;
const COMPARED: u8 = 8;
const FETCHED: u8 = 9;

/// Appends the digests of all leaves as an answer.
pub fn put_differs(out: &mut Vec<u8>, holding: bool, leaves: &[Digest; LEAVES]) {
    put_length(out, 2 + 8 * LEAVES);
    out.extend_from_slice(&[DIFFERS, holding_flag(holding)]);
    for leaf in leaves {
        out.extend_from_slice(&leaf.0.to_le_bytes());
    }
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
                put_length(out, 2 + leaves.bytes().len());
                out.extend_from_slice(&[DIFFERS, holding_flag(*holding)]);
                out.extend_from_slice(leaves.bytes());
            }
            Self::Exchanged {
                holding,
                wanted,
                left,
                kept_back,
                items,
            } => {
                let (wanted, left, items) = (wanted.bytes(), left.bytes(), items.bytes());
                put_length(out, 14 + wanted.len() + left.len() + items.len());
                out.extend_from_slice(&[EXCHANGED, holding_flag(*holding)]);
                out.extend_from_slice(&kept_back.to_le_bytes());
                out.extend_from_slice(&((wanted.len() / HASH_BYTES) as u32).to_le_bytes());
                out.extend_from_slice(&((left.len() / HASH_BYTES) as u32).to_le_bytes());
                out.extend_from_slice(wanted);
                out.extend_from_slice(left);
                out.extend_from_slice(items);
            }
            Self::Fetched {
                holding,
                done,
                items,
            } => {
                put_length(out, 6 + items.bytes().len());
                out.extend_from_slice(&[FETCHED, holding_flag(*holding)]);
                out.extend_from_slice(&done.to_le_bytes());
                out.extend_from_slice(items.bytes());
            }
            Self::Compared { verdicts } => {
                put_length(out, 1 + verdicts.bytes().len());
                out.push(COMPARED);
                out.extend_from_slice(verdicts.bytes());
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
                let leaves = Leaves::parse(reader.0)?;
                Ok(Self::Differs { holding, leaves })
            }
            EXCHANGED => {
                let holding = reader.holding()?;
                let kept_back = reader.u32()?;
                let (wanted, left) = (reader.u32()?, reader.u32()?);
                Ok(Self::Exchanged {
                    holding,
                    wanted: reader.hashes(wanted)?,
                    left: reader.hashes(left)?,
                    kept_back,
                    items: items(reader.0),
                })
            }
            FETCHED => Ok(Self::Fetched {
                holding: reader.holding()?,
                done: reader.u32()?,
                items: items(reader.0),
            }),
            COMPARED => Ok(Self::Compared {
                verdicts: verdicts(reader.0),
            }),
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

impl<'a> Reader<'a> {
    fn holding(&mut self) -> Result<bool, Malformed> {
        Ok(self.u8()? & HOLDING != 0)
    }

    fn version(&mut self) -> Result<Version, Malformed> {
        Version::new(self.u64()?).ok_or(Malformed)
    }

    fn hashes(&mut self, count: u32) -> Result<Hashes<'a>, Malformed> {
        let length = (count as usize).checked_mul(HASH_BYTES);
        Hashes::parse(self.take(length.ok_or(Malformed)?)?)
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
    use crate::hash::CoreCount;

    fn op<'a>(
        key: &'a [u8],
        value: Option<&'a [u8]>,
        seed: u64,
        expires: bool,
        digests: PartitionDigests<'a>,
    ) -> PeerOp<'a> {
        let partition = PartitionId::new(seed as usize % 4096).unwrap();
        let write = WriteOp {
            key,
            version: Version::new(seed >> 11).unwrap(),
            origin: Origin(seed as u32),
            value,
            expires_at: (expires || value.is_none()).then_some(UnixMs(seed)),
        };
        match seed % 8 {
            0 => PeerOp::Read {
                key,
                value: expires,
            },
            1 => PeerOp::Compare {
                partition,
                digest: Digest(seed),
            },
            2 => PeerOp::CompareMany { digests },
            3 => PeerOp::Exchange {
                partition,
                leaves: seed,
                takes: Takes::from_code(seed as u8 % 3).unwrap(),
                entries: entries(&[7; 60]),
            },
            4 => PeerOp::Fetch {
                partition,
                hashes: hashes(&[7; 24]),
            },
            5 => PeerOp::Offer(write),
            6 => PeerOp::Apply(write),
            _ => PeerOp::Write(write),
        }
    }

    /// Digests of partitions at these distances from each other.
    fn digests_at(gaps: &[usize]) -> Vec<(PartitionId, Digest)> {
        let mut index = 0;
        let digests = gaps.iter().map_while(|gap| {
            index += 1 + gap;
            Some((PartitionId::new(index)?, Digest(index as u64)))
        });
        digests.collect()
    }

    /// Some answer to each operation of a frame, which says what it answers.
    fn answer_all(frame: &[u8]) -> Vec<u8> {
        // Where no core was asked, none goes by any roster.
        let is_empty = frame.len() == 1;
        let reading = RosterId(if is_empty { 0 } else { 7 });
        let mut out = Vec::new();
        begin_answers(
            &mut out,
            Terms {
                reading,
                ..Terms::default()
            },
        );
        for body in Frames::new(frame).unwrap() {
            let body = body.unwrap();
            match PeerOp::decode(body).unwrap() {
                PeerOp::CompareMany { digests } => {
                    let packed =
                        pack_verdicts(digests.iter().map(|(_, digest)| match digest.0 % 4 {
                            0 => Verdict::Refused,
                            1 => Verdict::Differs,
                            two_or_three => Verdict::Same {
                                holding: two_or_three == 2,
                            },
                        }));
                    let verdicts = verdicts(&packed);
                    Answer::Compared { verdicts }.encode(&mut out);
                }
                _ => {
                    put_length(&mut out, body.len());
                    out.extend_from_slice(body);
                }
            }
        }
        out
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
            gaps in prop::collection::vec(0_usize..300, 1..20),
            cores in 1_usize..5,
        ) {
            let mut named = Vec::new();
            put_partition_digests(&mut named, &digests_at(&gaps));
            let digests = partition_digests(&named).unwrap();
            let ops: Vec<_> = ops
                .iter()
                .map(|(key, value, seed, expires)| op(key, value.as_deref(), *seed, *expires, digests))
                .collect();
            let mut frame = vec![FORMAT];
            for op in &ops {
                op.encode(&mut frame);
            }
            let bodies = Frames::new(&frame).unwrap();
            let decoded: Vec<_> = bodies.map(|body| PeerOp::decode(body.unwrap()).unwrap()).collect();
            prop_assert_eq!(&decoded, &ops);

            // Cut up, every core has what is its own, in order.
            let cores = CoreCount::new(cores).unwrap();
            let cut = split(&frame, cores).unwrap();
            prop_assert_eq!(cut.order.len(), ops.len());
            for (core, part) in &cut.parts {
                for body in Frames::new(part).unwrap() {
                    match PeerOp::decode(body.unwrap()).unwrap() {
                        PeerOp::CompareMany { digests } => {
                            for (partition, digest) in digests.iter() {
                                prop_assert_eq!(partition.core(cores), *core);
                                prop_assert_eq!(partition.index() as u64, digest.0);
                            }
                        }
                        op => prop_assert_eq!(op.partition().core(cores), *core),
                    }
                }
            }

            // The answers to the parts make the answer to the whole.
            let answers: Vec<_> = cut
                .parts
                .iter()
                .map(|(core, part)| (*core, answer_all(part)))
                .collect();
            prop_assert_eq!(join(&cut.order, &answers).unwrap(), answer_all(&frame));
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
            Answer::Refused(Refusal::Full),
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
    fn the_lists_of_a_comparison_come_back_as_they_were() {
        let write = WriteOp {
            key: b"k",
            version: Version::new(3).unwrap(),
            origin: Origin(4),
            value: Some(b"v"),
            expires_at: None,
        };
        let mut item_bytes = Vec::new();
        write.encode(&mut item_bytes);
        let mut hash_bytes = Vec::new();
        for hash in [KeyHash(8), KeyHash(9), KeyHash(10)] {
            put_hash(&mut hash_bytes, hash);
        }
        let (wanted, left) = hash_bytes.split_at(8);
        let packed = pack_verdicts((0..9).map(|index| Verdict::Same {
            holding: index % 3 == 0,
        }));
        let answers = [
            Answer::Exchanged {
                holding: false,
                wanted: hashes(wanted),
                left: hashes(left),
                kept_back: 11,
                items: items(&item_bytes),
            },
            Answer::Fetched {
                holding: true,
                done: 12,
                items: items(&item_bytes),
            },
            Answer::Compared {
                verdicts: verdicts(&packed),
            },
        ];
        let mut bytes = vec![FORMAT];
        for answer in &answers {
            answer.encode(&mut bytes);
        }
        let bodies = Frames::new(&bytes).unwrap();
        let decoded: Vec<_> = bodies
            .map(|body| Answer::decode(body.unwrap()).unwrap())
            .collect();
        assert_eq!(decoded, answers);
        assert_eq!(items(&item_bytes).iter().collect::<Vec<_>>(), [write]);
        let read: Vec<_> = hashes(left).iter().collect();
        assert_eq!(read, [KeyHash(9), KeyHash(10)]);
        let read: Vec<_> = verdicts(&packed).iter().take(10).collect();
        assert_eq!(read[6], Verdict::Same { holding: true });
        assert_eq!(read[8], Verdict::Same { holding: false });
        assert_eq!(read[9], Verdict::Refused, "nothing was said of it");
    }

    #[test]
    fn a_comparison_of_nothing_or_beyond_the_last_partition_is_refused() {
        for gaps in [&[][..], &[4096], &[4095, 0]] {
            let mut bytes = vec![COMPARE_MANY];
            for &gap in gaps {
                put_length(&mut bytes, gap);
                bytes.extend_from_slice(&[0; 8]);
            }
            assert_eq!(PeerOp::decode(&bytes), Err(Malformed), "{gaps:?}");
        }
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
        assert_eq!(leaves.differing(&own), 1 << 3 | 1 << 63);
    }
}
