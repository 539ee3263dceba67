//! How many owners must have answered before the client is.

use std::fmt;

/// The level a read or a write asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Any one owner.
    One,
    /// More than half of the owners.
    Quorum,
    /// Every owner.
    All,
}

impl Consistency {
    /// How many of `owners` owners that is.
    #[inline]
    pub fn needed(self, owners: usize) -> usize {
        match self {
            Self::One => 1,
            Self::Quorum => owners / 2 + 1,
            Self::All => owners,
        }
    }

    /// Reads a level, in either case.
    pub fn parse(text: &[u8]) -> Option<Self> {
        [Self::One, Self::Quorum, Self::All]
            .into_iter()
            .find(|level| level.name().as_bytes().eq_ignore_ascii_case(text))
    }

    /// The level's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "ONE",
            Self::Quorum => "QUORUM",
            Self::All => "ALL",
        }
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_quorums_always_meet() {
        for owners in 1..=16 {
            assert!(2 * Consistency::Quorum.needed(owners) > owners);
            assert!(Consistency::Quorum.needed(owners) <= owners);
        }
    }

    #[test]
    fn levels_are_read_in_either_case() {
        assert_eq!(Consistency::parse(b"quorum"), Some(Consistency::Quorum));
        assert_eq!(Consistency::parse(b"ALL"), Some(Consistency::All));
        assert_eq!(Consistency::parse(b"two"), None);
    }
}
