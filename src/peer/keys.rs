//! A node's keys, as it lists them for another node.
//!
//! One byte that is 1 when some were left out, then each key behind its length (two
//! bytes, little endian), in order.

/// Appends a listing.
pub fn encode<'a>(
    truncated: bool,
    keys: impl Iterator<Item = &'a [u8]>,
    bytes_max: usize,
    out: &mut Vec<u8>,
) {
    let flag_at = out.len();
    out.push(u8::from(truncated));
    for key in keys {
        if out.len() - flag_at > bytes_max {
            out[flag_at] = 1;
            return;
        }
        out.extend_from_slice(&(key.len() as u16).to_le_bytes());
        out.extend_from_slice(key);
    }
}

/// Reads a listing: whether some were left out, and the keys; nothing when malformed.
pub fn decode(bytes: &[u8]) -> Option<(bool, Vec<Box<[u8]>>)> {
    let (&truncated, mut rest) = bytes.split_first()?;
    let mut keys = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let (key, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        keys.push(Box::from(key));
        rest = after;
    }
    rest.is_empty().then_some((truncated != 0, keys))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_comes_back_as_it_was() {
        let keys: [&[u8]; 3] = [b"a", b"", &[0xFF; 300]];
        let mut bytes = Vec::new();
        encode(false, keys.into_iter(), 1 << 20, &mut bytes);
        let (truncated, decoded) = decode(&bytes).unwrap();
        assert!(!truncated);
        assert_eq!(decoded, keys.map(Box::from));
        assert!(decode(&bytes[..bytes.len() - 1]).is_none());
        assert!(decode(b"").is_none());
    }

    #[test]
    fn a_listing_that_is_too_long_is_cut_and_says_so() {
        let mut bytes = Vec::new();
        encode(false, [&[1; 100][..]; 10].into_iter(), 250, &mut bytes);
        let (truncated, keys) = decode(&bytes).unwrap();
        assert!(truncated);
        assert_eq!(keys.len(), 3);
    }
}
