//! The parts of a vectored write: owned bytes, or a share of a reference-counted body.

use std::ops::Range;
use std::sync::Arc;

/// One part of a vectored write. Holds its bytes until the write is done, so a large
/// body that is shared is never copied.
#[derive(Clone, Debug)]
pub struct Segment {
    bytes: Bytes,
    range: Range<usize>,
}

#[derive(Clone, Debug)]
enum Bytes {
    Owned(Vec<u8>),
    Shared(Arc<[u8]>),
}

impl Segment {
    /// The bytes of `bytes` within `range`, or `None` when it has no such range.
    pub fn owned(bytes: Vec<u8>, range: Range<usize>) -> Option<Self> {
        bytes.get(range.clone())?;
        Some(Self {
            bytes: Bytes::Owned(bytes),
            range,
        })
    }

    /// The bytes of `bytes` within `range`, or `None` when it has no such range.
    pub fn shared(bytes: Arc<[u8]>, range: Range<usize>) -> Option<Self> {
        bytes.get(range.clone())?;
        Some(Self {
            bytes: Bytes::Shared(bytes),
            range,
        })
    }

    /// The bytes that are written.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        let bytes: &[u8] = match &self.bytes {
            Bytes::Owned(bytes) => bytes,
            Bytes::Shared(bytes) => bytes,
        };
        &bytes[self.range.clone()]
    }

    /// How many bytes are written.
    #[inline]
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The whole buffer again, when it was owned, to be used for the next answer.
    pub fn into_vec(self) -> Option<Vec<u8>> {
        match self.bytes {
            Bytes::Owned(bytes) => Some(bytes),
            Bytes::Shared(_) => None,
        }
    }
}

impl From<Vec<u8>> for Segment {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self {
            bytes: Bytes::Owned(bytes),
            range,
        }
    }
}

impl From<Arc<[u8]>> for Segment {
    fn from(bytes: Arc<[u8]>) -> Self {
        let range = 0..bytes.len();
        Self {
            bytes: Bytes::Shared(bytes),
            range,
        }
    }
}

/// Where a partly sent list of segments goes on: the first unsent segment and the
/// offset in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) segment: usize,
    pub(super) offset: usize,
}

impl Cursor {
    /// Skips `sent` bytes, and empty segments after them.
    pub(super) fn advance(&mut self, parts: &[Segment], sent: usize) {
        self.offset += sent;
        while let Some(part) = parts.get(self.segment) {
            if self.offset < part.len() {
                return;
            }
            self.offset -= part.len();
            self.segment += 1;
        }
    }

    pub(super) fn is_at_end(self, parts: &[Segment]) -> bool {
        self.segment >= parts.len()
    }

    /// What is left to send, in order, without empty segments.
    pub(super) fn rest(self, parts: &[Segment]) -> impl Iterator<Item = &[u8]> {
        parts[self.segment.min(parts.len())..]
            .iter()
            .enumerate()
            .map(move |(i, part)| &part.as_slice()[if i == 0 { self.offset } else { 0 }..])
            .filter(|bytes| !bytes.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_outside_its_buffer_is_refused() {
        assert!(Segment::owned(vec![1, 2, 3], 1..4).is_none());
        assert!(Segment::shared(Arc::from([1u8, 2]), 0..3).is_none());
        assert_eq!(
            Segment::owned(vec![1, 2, 3], 1..3).unwrap().as_slice(),
            [2, 3]
        );
    }

    #[test]
    fn a_cursor_visits_every_byte_whatever_the_steps() {
        let parts = [
            Segment::from(vec![]),
            Segment::from(vec![0, 1, 2]),
            Segment::from(vec![]),
            Segment::shared(Arc::from([9u8, 3, 4, 9]), 1..3).unwrap(),
            Segment::from(vec![]),
        ];
        for step in 1..=5 {
            let mut cursor = Cursor::default();
            let mut seen = Vec::new();
            cursor.advance(&parts, 0);
            while !cursor.is_at_end(&parts) {
                let rest: Vec<u8> = cursor.rest(&parts).flatten().copied().collect();
                let sent = step.min(rest.len());
                seen.extend_from_slice(&rest[..sent]);
                cursor.advance(&parts, sent);
            }
            assert_eq!(seen, [0, 1, 2, 3, 4], "in steps of {step}");
        }
    }
}
