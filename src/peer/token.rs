//! The secret that the nodes of one cluster share.

use crate::auth::credentials::bearer;
use crate::auth::secret::same;

/// The tokens that peers show: the first of them is shown, any is taken. Without one
/// nothing is asked of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PeerToken(Vec<String>);

impl std::fmt::Debug for PeerToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PeerToken({} of them)", self.0.len())
    }
}

impl PeerToken {
    /// These tokens; while one takes the place of another, there are two.
    pub fn new(tokens: Vec<String>) -> Self {
        Self(tokens)
    }

    /// Whether peers must show one.
    pub fn is_set(&self) -> bool {
        !self.0.is_empty()
    }

    /// The line of a request's head that shows it; empty without a token.
    pub fn header(&self) -> String {
        match self.0.first() {
            Some(token) => format!("Authorization: Bearer {token}\r\n"),
            None => String::new(),
        }
    }

    /// Whether an `Authorization` field shows one of them. The time this takes does not
    /// depend on how much of it is right.
    pub fn admits(&self, authorization: Option<&[u8]>) -> bool {
        if !self.is_set() {
            return true;
        }
        let Some(shown) = authorization.and_then(bearer) else {
            return false;
        };
        let right = |token: &String| same(token.as_bytes(), shown);
        self.0
            .iter()
            .fold(false, |found, token| found | right(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_admits() {
        let token = PeerToken::new(vec!["secret".to_owned(), "older".to_owned()]);
        assert!(token.admits(Some(b"Bearer secret")));
        assert!(token.admits(Some(b"bearer secret")));
        assert!(token.admits(Some(b"Bearer older")));
        assert_eq!(token.header(), "Authorization: Bearer secret\r\n");
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
        assert!(PeerToken::default().admits(None));
    }

    #[test]
    fn a_token_is_not_shown() {
        assert!(!format!("{:?}", PeerToken::new(vec!["secret".to_owned()])).contains("secret"));
    }
}
