//! What an allocation really costs.
//!
//! The byte bound is worth something only if it counts what the process takes
//! from the system, so every block is charged as glibc's malloc lays it out: the
//! request plus 8 bytes of bookkeeping, in steps of 16, never below 32. Other
//! allocators differ by a few bytes per block, not by kind.

/// What malloc takes for a request of `size` bytes; nothing for no request.
#[inline]
pub(super) const fn malloc_charge(size: usize) -> usize {
    if size == 0 {
        return 0;
    }
    let chunk = size.saturating_add(8 + 15) & !15;
    if chunk < 32 { 32 } else { chunk }
}

/// What an `Arc<[u8]>` of `len` bytes takes: two counters, then the bytes.
#[inline]
pub(super) const fn shared_charge(len: usize) -> usize {
    malloc_charge(len.saturating_add(16 + 7) & !7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_follow_the_chunk_sizes_of_glibc() {
        for (size, charge) in [
            (0, 0),
            (1, 32),
            (24, 32),
            (25, 48),
            (40, 48),
            (41, 64),
            (104, 112),
        ] {
            assert_eq!(malloc_charge(size), charge, "{size} bytes");
        }
    }

    #[test]
    fn absurd_sizes_do_not_overflow() {
        assert!(malloc_charge(usize::MAX) > usize::MAX / 2);
        assert!(shared_charge(usize::MAX) > usize::MAX / 2);
    }
}
