//! The lists that replicas send each other when they compare, as they stand in frames.
//!
//! What was received is read in place, and only after its length was checked; what is
//! to be sent is gathered in a buffer of the caller's.

use super::{Frames, PeerOp, WriteOp, put_length};
use crate::bytes::{Malformed, Reader};
use crate::clock::{Origin, Version};
use crate::hash::{KeyHash, PartitionId};
use crate::store::Digest;

/// Leaves a partition's digest is split into.
pub const LEAVES: usize = 64;

/// Which leaf of its partition a key falls into.
#[inline]
pub fn leaf_of(hash: KeyHash) -> usize {
    (hash.0 >> 46) as usize % LEAVES
}

/// Partitions with their digests, in ascending order: how many partitions were left out
/// (LEB128), then the digest (8 bytes), for each. There is at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionDigests<'a> {
    first: PartitionId,
    bytes: &'a [u8],
}

impl<'a> PartitionDigests<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut walk = DigestWalk::of(bytes);
        let (first, _) = walk.next()?;
        while !walk.reader.0.is_empty() {
            walk.next()?;
        }
        Ok(Self { first, bytes })
    }

    pub(super) fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// The first partition.
    pub(super) fn first(self) -> PartitionId {
        self.first
    }

    /// Reads them.
    pub fn iter(self) -> impl Iterator<Item = (PartitionId, Digest)> + 'a {
        let mut walk = DigestWalk::of(self.bytes);
        std::iter::from_fn(move || walk.next().ok())
    }
}

struct DigestWalk<'a> {
    reader: Reader<'a>,
    /// The least number that the next partition can have.
    next: usize,
}

impl<'a> DigestWalk<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        Self {
            reader: Reader(bytes),
            next: 0,
        }
    }

    fn next(&mut self) -> Result<(PartitionId, Digest), Malformed> {
        let index = self.next + self.reader.length()?;
        let partition = PartitionId::new(index).ok_or(Malformed)?;
        self.next = index + 1;
        Ok((partition, Digest(self.reader.u64()?)))
    }
}

/// Appends partitions with their digests, which must be in ascending order.
pub fn put_partition_digests(out: &mut Vec<u8>, digests: &[(PartitionId, Digest)]) {
    debug_assert!(digests.is_sorted_by_key(|(partition, _)| partition.index()));
    let mut next = 0;
    for (partition, digest) in digests {
        put_length(out, partition.index().saturating_sub(next));
        out.extend_from_slice(&digest.0.to_le_bytes());
        next = partition.index() + 1;
    }
}

/// What [`put_partition_digests`] wrote; nothing if that was nothing.
pub fn partition_digests(bytes: &[u8]) -> Option<PartitionDigests<'_>> {
    PartitionDigests::parse(bytes).ok()
}

/// How the digests of one partition compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver does not own the partition, or does not know its cluster yet.
    Refused,
    /// They are not the same.
    Differs,
    /// They are.
    Same {
        /// Whether the receiver holds the whole partition.
        holding: bool,
    },
}

const VERDICT_BITS: usize = 2;
const VERDICTS_PER_BYTE: usize = 8 / VERDICT_BITS;

impl Verdict {
    fn code(self) -> u8 {
        match self {
            Self::Refused => 0,
            Self::Differs => 1,
            Self::Same { holding: false } => 2,
            Self::Same { holding: true } => 3,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Differs,
            2 => Self::Same { holding: false },
            3 => Self::Same { holding: true },
            _ => Self::Refused,
        }
    }
}

/// Verdicts, four to a byte, the first in the lowest bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdicts<'a>(&'a [u8]);

impl<'a> Verdicts<'a> {
    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Reads them; what was not answered was refused.
    pub fn iter(self) -> impl Iterator<Item = Verdict> + 'a {
        let codes = self.0.iter().flat_map(|byte| {
            (0..VERDICTS_PER_BYTE).map(move |place| byte >> (VERDICT_BITS * place) & 3)
        });
        codes
            .map(Verdict::from_code)
            .chain(std::iter::repeat(Verdict::Refused))
    }
}

/// Packs verdicts for an answer.
pub fn pack_verdicts(verdicts: impl Iterator<Item = Verdict>) -> Vec<u8> {
    let mut packed = Vec::new();
    for (index, verdict) in verdicts.enumerate() {
        let place = index % VERDICTS_PER_BYTE;
        if place == 0 {
            packed.push(0);
        }
        if let Some(byte) = packed.last_mut() {
            *byte |= verdict.code() << (VERDICT_BITS * place);
        }
    }
    packed
}

/// What [`pack_verdicts`] packed.
pub fn verdicts(bytes: &[u8]) -> Verdicts<'_> {
    Verdicts(bytes)
}

/// The digests of a partition's leaves, as they stand in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaves<'a>(&'a [u8]);

impl<'a> Leaves<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() != 8 * LEAVES {
            return Err(Malformed);
        }
        Ok(Self(bytes))
    }

    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// The leaves that are not the same as these, as bits.
    pub fn differing(self, own: &[Digest; LEAVES]) -> u64 {
        let theirs = self.0.chunks_exact(8).map(|chunk| Reader(chunk).u64());
        let pairs = own.iter().zip(theirs).enumerate();
        pairs
            .filter(|(_, (own, theirs))| *theirs != Ok(own.0))
            .fold(0, |bits, (leaf, _)| bits | 1 << leaf)
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
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if !bytes.len().is_multiple_of(ENTRY_BYTES) {
            return Err(Malformed);
        }
        Ok(Self(bytes))
    }

    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }

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

/// Appends an entry.
pub fn put_entry(out: &mut Vec<u8>, entry: Entry) {
    out.extend_from_slice(&entry.hash.0.to_le_bytes());
    out.extend_from_slice(&entry.version.get().to_le_bytes());
    out.extend_from_slice(&entry.origin.0.to_le_bytes());
}

/// The entries that [`put_entry`] wrote.
pub fn entries(bytes: &[u8]) -> Entries<'_> {
    Entries(bytes)
}

pub(super) const HASH_BYTES: usize = 8;

/// Hashes of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashes<'a>(&'a [u8]);

impl<'a> Hashes<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if !bytes.len().is_multiple_of(HASH_BYTES) {
            return Err(Malformed);
        }
        Ok(Self(bytes))
    }

    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Reads them.
    pub fn iter(self) -> impl Iterator<Item = KeyHash> + 'a {
        let chunks = self.0.chunks_exact(HASH_BYTES);
        chunks.filter_map(|chunk| Reader(chunk).u64().ok().map(KeyHash))
    }
}

/// Appends a hash.
pub fn put_hash(out: &mut Vec<u8>, hash: KeyHash) {
    out.extend_from_slice(&hash.0.to_le_bytes());
}

/// The hashes that [`put_hash`] wrote.
pub fn hashes(bytes: &[u8]) -> Hashes<'_> {
    Hashes(bytes)
}

/// Writes, as they stand in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Items<'a>(&'a [u8]);

impl<'a> Items<'a> {
    /// How many bytes they take.
    pub fn len(self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Reads them, up to the first that is malformed.
    pub fn iter(self) -> impl Iterator<Item = WriteOp<'a>> + 'a {
        Frames(Reader(self.0)).map_while(|body| match PeerOp::decode(body.ok()?).ok()? {
            PeerOp::Apply(write) => Some(write),
            _ => None,
        })
    }
}

/// The items that [`WriteOp::encode`] wrote.
pub fn items(bytes: &[u8]) -> Items<'_> {
    Items(bytes)
}
