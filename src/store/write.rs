//! What goes into a shard and what comes of it.

use std::fmt;
use std::sync::Arc;

use super::item::{Body, ItemBox, NewItem, Shape};
use super::slab::Slab;
use crate::clock::{Origin, UnixMs, Version};
use crate::hash::KeyHash;

/// The longest key.
pub const KEY_BYTES_MAX: usize = 1024;

/// From this length on a value is kept in a block of its own that readers share
/// instead of copying.
pub const SHARED_VALUE_BYTES: usize = 16 * 1024;

/// A write as it comes from a client or a replica.
#[derive(Clone, Debug)]
pub struct Write<'a> {
    /// The hash of `key`.
    pub hash: KeyHash,
    /// The key, of 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: &'a [u8],
    /// When it was written.
    pub version: Version,
    /// Who stamped that version.
    pub origin: Origin,
    /// What was written.
    pub content: Content<'a>,
}

/// What a write says about its key.
#[derive(Clone, Debug)]
pub enum Content<'a> {
    /// The key has this value.
    Value {
        /// The value.
        value: ValueIn<'a>,
        /// From when on it is invisible; a point in time, so that replicas agree.
        expires_at: Option<UnixMs>,
    },
    /// The key was deleted.
    Tombstone {
        /// Until when the deletion must be remembered.
        expires_at: UnixMs,
    },
}

/// A value on its way in. The store decides how it is kept: in a shared block from
/// [`SHARED_VALUE_BYTES`] on, else copied next to its key.
#[derive(Clone, Debug)]
pub enum ValueIn<'a> {
    /// Bytes that belong to someone else.
    Bytes(&'a [u8]),
    /// A block that may be kept as it is.
    Shared(Arc<[u8]>),
}

impl ValueIn<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Shared(shared) => shared.len(),
        }
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is now what the shard holds for its key.
    Stored,
    /// The shard holds this very write or a newer one; nothing changed.
    Stale,
}

/// The write is larger than this shard accepts; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// The length or charge that was too much.
    pub bytes: usize,
    /// What it may be at most.
    pub bytes_max: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, at most {} fit", self.bytes, self.bytes_max)
    }
}

impl std::error::Error for TooLarge {}

impl Write<'_> {
    /// The shape of the item this write would make.
    pub(super) fn shape(&self) -> Shape {
        let (value_len, expiring) = match &self.content {
            Content::Value { value, expires_at } => (value.len(), expires_at.is_some()),
            Content::Tombstone { .. } => (0, true),
        };
        let shared = value_len >= SHARED_VALUE_BYTES;
        Shape {
            key_len: self.key.len(),
            value_len,
            expiring,
            shared,
        }
    }

    /// The item this write makes, which has no name yet.
    pub(super) fn into_item(self, slab: &mut Slab) -> ItemBox {
        let (body, expires_at) = match &self.content {
            Content::Tombstone { expires_at } => (Body::Tombstone, Some(*expires_at)),
            Content::Value { value, expires_at } => {
                let body = match value {
                    ValueIn::Bytes(bytes) if bytes.len() >= SHARED_VALUE_BYTES => {
                        Body::Shared(Arc::from(*bytes))
                    }
                    ValueIn::Bytes(bytes) => Body::Inline(bytes),
                    ValueIn::Shared(shared) if shared.len() >= SHARED_VALUE_BYTES => {
                        Body::Shared(Arc::clone(shared))
                    }
                    ValueIn::Shared(shared) => Body::Inline(shared),
                };
                (body, *expires_at)
            }
        };
        slab.make(NewItem {
            key: self.key,
            version: self.version,
            origin: self.origin,
            expires_at,
            body,
        })
    }
}
