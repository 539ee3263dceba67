//! Values that readers share, and the memory of those that ended.
//!
//! They come from malloc, since a reader may hold one for longer than the shard. malloc keeps
//! what is freed between blocks in use, to hand it out again. That is well while values of
//! like sizes come and go; when small items take the place of large values it is memory that
//! nobody uses.
//!
//! So [`Ended`] counts what malloc was given and was not asked for since. Beyond a small part
//! of the shard, a value that ends gives its pages back to the system first, the whole ones
//! within it: malloc writes only to the two ends of a free block, and a page that is used
//! again comes back filled with zeros. A shard that replaces large values by large ones
//! stays below that part and pays nothing.
//!
//! Which free block malloc takes for a new value is not known: taken is that full and emptied
//! ones serve in the proportion in which there are some.

use std::sync::Arc;

/// One part in this many of a shard may be memory of values that ended.
const KEPT_SHARE: usize = 64;

/// The memory of values that ended.
pub(super) struct Ended {
    /// What malloc presumably has of it that is in memory.
    kept_bytes: usize,
    /// And what was given back to the system.
    emptied_bytes: usize,
    kept_bytes_max: usize,
}

impl Ended {
    /// For a shard of so many bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            kept_bytes: 0,
            emptied_bytes: 0,
            kept_bytes_max: bytes_max / KEPT_SHARE,
        }
    }

    /// A value came: malloc presumably had room for it in what it keeps.
    #[inline]
    pub(super) fn made(&mut self, bytes: usize) {
        let all = self.kept_bytes + self.emptied_bytes;
        let left = all.saturating_sub(bytes);
        if all > 0 {
            // In 128 bits no product of two lengths overflows.
            self.kept_bytes = (self.kept_bytes as u128 * left as u128 / all as u128) as usize;
            self.emptied_bytes = left - self.kept_bytes;
        }
    }

    #[cfg(test)]
    pub(super) fn emptied_bytes(&self) -> usize {
        self.emptied_bytes
    }

    /// Ends a value; given back as it was if somebody else has a share of it.
    pub(super) fn end(&mut self, mut value: Arc<[u8]>) -> Result<(), Arc<[u8]>> {
        let Some(bytes) = Arc::get_mut(&mut value) else {
            return Err(value);
        };
        if self.kept_bytes + bytes.len() <= self.kept_bytes_max {
            self.kept_bytes += bytes.len();
        } else {
            empty(bytes);
            self.emptied_bytes += bytes.len();
        }
        Ok(())
    }
}

/// Gives the whole pages of `bytes` back to the system, which may make zeros of them. Where it
/// refuses, nothing happens.
fn empty(bytes: &mut [u8]) {
    #[cfg(not(miri))]
    {
        use rustix::mm::{Advice, madvise};
        let page_bytes = rustix::param::page_size();
        let before = bytes.as_ptr().align_offset(page_bytes);
        let Some(within) = bytes.get_mut(before..) else {
            return;
        };
        let whole = within.len() / page_bytes * page_bytes;
        // SAFETY: the pages lie within bytes that are ours alone, and bytes may become zeros.
        let _ = unsafe { madvise(within.as_mut_ptr().cast(), whole, Advice::LinuxDontNeed) };
    }
    #[cfg(miri)]
    let _ = bytes;
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 64 << 10;

    fn value() -> Arc<[u8]> {
        vec![7; LEN].into()
    }

    #[test]
    fn a_value_that_somebody_shares_is_left_alone() {
        let mut ended = Ended::new(0);
        let value = value();
        let ours = Arc::clone(&value);
        assert!(ended.end(ours).is_err());
        assert!(value.iter().all(|&byte| byte == 7));
        assert!(ended.end(value).is_ok());
    }

    #[test]
    fn what_malloc_keeps_is_bounded_and_used_by_what_comes() {
        let mut ended = Ended::new(2 * LEN * KEPT_SHARE);
        for _ in 0..4 {
            assert!(ended.end(value()).is_ok());
            assert!(ended.kept_bytes <= 2 * LEN);
        }
        assert_eq!((ended.kept_bytes, ended.emptied_bytes), (2 * LEN, 2 * LEN));
        ended.made(2 * LEN);
        assert_eq!((ended.kept_bytes, ended.emptied_bytes), (LEN, LEN));
        ended.made(3 * LEN);
        assert_eq!((ended.kept_bytes, ended.emptied_bytes), (0, 0));
        ended.made(LEN);
        assert_eq!((ended.kept_bytes, ended.emptied_bytes), (0, 0));
    }

    #[test]
    #[cfg(not(miri))]
    fn whole_pages_are_emptied_and_nothing_beside_them() {
        let page_bytes = rustix::param::page_size();
        let mut bytes = vec![7; 4 * page_bytes];
        let first = bytes.as_ptr().align_offset(page_bytes) + page_bytes;
        // From the middle of a page to the middle of another.
        let part = first - 100..first + page_bytes + 100;
        empty(&mut bytes[part.clone()]);
        let page = first..first + page_bytes;
        for (at, &byte) in bytes.iter().enumerate() {
            assert_eq!(byte == 0, page.contains(&at), "at {at} of {part:?}");
        }
        empty(&mut bytes[..0]);
        empty(&mut bytes[first..first + 10]);
        assert_eq!(bytes[first - 1], 7);
    }
}
