//! The secret that the nodes of one cluster share.

use subtle::ConstantTimeEq;

/// A peer token, or none.
#[derive(Clone, Default)]
pub struct PeerToken(Option<String>);

impl std::fmt::Debug for PeerToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "PeerToken(…)"
        } else {
            "PeerToken(none)"
        })
    }
}

impl PeerToken {
    /// The token `text`; none when empty.
    pub fn new(text: &str) -> Self {
        Self((!text.is_empty()).then(|| text.to_owned()))
    }

    /// Whether peers must show it.
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// The line of a request's head that shows it; empty without a token.
    pub fn header(&self) -> String {
        match &self.0 {
            Some(token) => format!("Authorization: Bearer {token}\r\n"),
            None => String::new(),
        }
    }

    /// Whether an `Authorization` field shows it. The time this takes does not depend
    /// on how much of it is right.
    pub fn admits(&self, authorization: Option<&[u8]>) -> bool {
        let Some(token) = &self.0 else {
            return true;
        };
        let shown = authorization
            .and_then(|field| field.split_at_checked(7))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
            .map(|(_, shown)| shown);
        shown.is_some_and(|shown| token.as_bytes().ct_eq(shown).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_admits() {
        let token = PeerToken::new("secret");
        assert!(token.admits(Some(b"Bearer secret")));
        assert!(token.admits(Some(b"bearer secret")));
        for wrong in [
            None,
            Some(&b""[..]),
            Some(b"Bearer "),
            Some(b"Bearer secre"),
            Some(b"Bearer secrets"),
            Some(b"Basic secret"),
        ] {
            assert!(!token.admits(wrong), "{wrong:?}");
        }
        assert!(PeerToken::new("").admits(None));
    }

    #[test]
    fn a_token_is_not_shown() {
        assert!(!format!("{:?}", PeerToken::new("secret")).contains("secret"));
    }
}
