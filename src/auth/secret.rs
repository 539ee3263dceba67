//! Keyed hashes that stand for secrets.

use aws_lc_rs::{hmac, rand};

/// What is kept in place of a secret: HMAC-SHA-256 of it under a key of this process.
///
/// Two tags may be compared and hashed in any way: without the key, what that tells
/// about a tag tells nothing about the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag([u8; 32]);

impl Tag {
    /// One of `lanes`, the same for the same tag.
    pub fn lane(&self, lanes: usize) -> usize {
        usize::from(self.0[0]) % lanes.max(1)
    }
}

/// Makes tags; its key is drawn at random and never leaves it.
#[derive(Clone, Debug)]
pub struct Sealer(hmac::Key);

impl Sealer {
    /// A sealer with a new key; nothing when the system gives no randomness.
    pub fn new() -> Option<Self> {
        let mut key = [0; 32];
        rand::fill(&mut key).ok()?;
        Some(Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// The tag of a secret.
    pub fn tag(&self, secret: &[u8]) -> Tag {
        let signed = hmac::sign(&self.0, secret);
        let mut tag = [0; 32];
        tag.copy_from_slice(signed.as_ref());
        Tag(tag)
    }
}

/// Compares without telling by its time where two texts differ.
#[inline]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_depends_on_the_secret_and_on_the_key() {
        let (one, other) = (Sealer::new().unwrap(), Sealer::new().unwrap());
        assert_eq!(one.tag(b"a"), one.clone().tag(b"a"));
        assert_ne!(one.tag(b"a"), one.tag(b"b"));
        assert_ne!(one.tag(b"a"), other.tag(b"a"));
    }

    #[test]
    fn only_equal_texts_are_the_same() {
        assert!(same(b"", b"") && same(b"ab", b"ab"));
        assert!(!same(b"ab", b"ac") && !same(b"ab", b"abc") && !same(b"", b"a"));
    }
}
