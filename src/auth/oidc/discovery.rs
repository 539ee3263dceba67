//! The discovery document of an issuer: where its keys are.
//!
//! A document that names another issuer is another issuer's, whoever serves it
//! (OpenID Connect Discovery 1.0, section 4.3).

use std::fmt;

use serde::Deserialize;

use super::issuer::{Issuer, Scheme, UrlFault, check_url};

/// The largest document that is read.
pub const DOCUMENT_BYTES_MAX: u64 = 64 << 10;

/// How much of a wrong issuer is told.
const TOLD_CHARS_MAX: usize = 200;

/// What is taken from a discovery document.
#[derive(Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Where the keys are.
    pub jwks_uri: String,
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    jwks_uri: String,
}

impl Discovery {
    /// Reads the document of `issuer`.
    pub fn parse(body: &[u8], issuer: &Issuer) -> Result<Self, DiscoveryFault> {
        let document: Document =
            serde_json::from_slice(body).map_err(|_| DiscoveryFault::Document)?;
        if document.issuer != issuer.as_str() {
            return Err(DiscoveryFault::Issuer(
                document.issuer.chars().take(TOLD_CHARS_MAX).collect(),
            ));
        }
        let scheme = check_url(&document.jwks_uri).map_err(DiscoveryFault::KeysUrl)?;
        if scheme == Scheme::HttpToLoopback && issuer.scheme() == Scheme::Https {
            return Err(DiscoveryFault::KeysUrl(UrlFault::Plaintext));
        }
        Ok(Self {
            jwks_uri: document.jwks_uri,
        })
    }
}

/// What is wrong with a discovery document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiscoveryFault {
    /// It is not JSON with the fields it must have.
    Document,
    /// It is of another issuer: this one.
    Issuer(String),
    /// Keys cannot be fetched from where it says.
    KeysUrl(UrlFault),
}

impl fmt::Display for DiscoveryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Document => f.write_str("not a discovery document"),
            Self::Issuer(told) => write!(f, "it is of another issuer, {told:?}"),
            Self::KeysUrl(fault) => write!(f, "its jwks_uri is refused: {fault}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(issuer: &str, document: &str) -> Result<String, DiscoveryFault> {
        let issuer = Issuer::parse(issuer).expect("an issuer");
        Discovery::parse(document.as_bytes(), &issuer).map(|found| found.jwks_uri)
    }

    #[test]
    fn the_place_of_the_keys_is_read_and_the_rest_passed_over() {
        let document = r#"{"issuer":"https://a/","authorization_endpoint":"x",
            "jwks_uri":"https://keys.example.com/a?v=1","claims_supported":["sub"]}"#;
        assert_eq!(
            parse("https://a/", document).as_deref(),
            Ok("https://keys.example.com/a?v=1")
        );
    }

    #[test]
    fn another_issuer_is_refused_byte_for_byte() {
        for told in [
            "https://a",
            "https://a//",
            "https://A/",
            "https://a/ ",
            "http://a/",
            "",
        ] {
            let document = format!(r#"{{"issuer":"{told}","jwks_uri":"https://a/keys"}}"#);
            assert_eq!(
                parse("https://a/", &document),
                Err(DiscoveryFault::Issuer(told.to_owned()))
            );
        }
    }

    #[test]
    fn keys_in_the_clear_come_only_from_loopback_and_only_for_an_issuer_that_does_too() {
        let with = |issuer: &str, keys: &str| {
            let document = format!(r#"{{"issuer":"{issuer}","jwks_uri":"{keys}"}}"#);
            parse(issuer, &document).map(drop)
        };
        let plaintext = Err(DiscoveryFault::KeysUrl(UrlFault::Plaintext));
        assert_eq!(with("https://a", "https://b/keys"), Ok(()));
        assert_eq!(with("https://a", "http://localhost/keys"), plaintext);
        assert_eq!(with("https://a", "http://a/keys"), plaintext);
        assert_eq!(with("http://localhost", "http://127.0.0.1/keys"), Ok(()));
        assert_eq!(with("http://localhost", "https://b/keys"), Ok(()));
        assert_eq!(with("http://localhost", "http://b/keys"), plaintext);
        for scheme in ["file:///etc/passwd", "/keys", ""] {
            let fault = Err(DiscoveryFault::KeysUrl(UrlFault::Scheme));
            assert_eq!(with("https://a", scheme), fault);
        }
    }

    #[test]
    fn what_is_no_discovery_document_is_refused() {
        let deep = "[".repeat(100_000);
        for document in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"issuer":"https://a"}"#,
            r#"{"issuer":"https://a","jwks_uri":7}"#,
            r#"{"issuer":"https://a","issuer":"https://a","jwks_uri":"https://a"}"#,
            r#"{"issuer":"https://a","jwks_uri":"https://a"} x"#,
            "<html>",
            &deep,
        ] {
            assert_eq!(parse("https://a", document), Err(DiscoveryFault::Document));
        }
    }
}
