//! Where to cut an input into pieces, drawn from the input itself.

/// A sequence of lengths.
pub struct Cuts {
    state: u64,
    longest: usize,
}

impl Cuts {
    /// Pieces of 1 to `longest` bytes. Another `salt` cuts elsewhere.
    pub fn of(bytes: &[u8], salt: u64, longest: usize) -> Self {
        // FNV-1a; never zero, where xorshift would stay.
        let state = bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325 ^ salt, |state, byte| {
                (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
        Self {
            state: state | 1,
            longest: longest.max(1),
        }
    }
}

impl Iterator for Cuts {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        Some(1 + (self.state >> 11) as usize % self.longest)
    }
}
