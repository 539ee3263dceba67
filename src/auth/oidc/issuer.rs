//! The addresses that keys are fetched from, and what is asked of them.
//!
//! Whoever can change the keys on their way can sign tokens, so they come over https.
//! Plain http is accepted only from a loopback host, for trying things out. The text of
//! an issuer is kept as it was given: documents and tokens must repeat it byte for byte
//! (OpenID Connect Discovery 1.0, section 4.3).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ureq::http::Uri;

/// The longest URL that is looked at.
const URL_BYTES_MAX: usize = 2048;

/// An issuer's URL, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    url: String,
    scheme: Scheme,
}

impl Issuer {
    /// Checks an issuer: an https URL without user, query or fragment; http only for a
    /// loopback host.
    pub fn parse(text: &str) -> Result<Self, UrlFault> {
        let scheme = check_url(text)?;
        if text.contains('?') {
            return Err(UrlFault::Query);
        }
        Ok(Self {
            url: text.to_owned(),
            scheme,
        })
    }

    /// As it was given, and as tokens must name it.
    pub fn as_str(&self) -> &str {
        &self.url
    }

    /// How it is spoken to.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Where its discovery document is (OpenID Connect Discovery 1.0, section 4.1).
    pub fn discovery_url(&self) -> String {
        let base = self.url.strip_suffix('/').unwrap_or(&self.url);
        format!("{base}/.well-known/openid-configuration")
    }
}

/// How a host is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Over TLS.
    Https,
    /// In the clear, to a loopback host.
    HttpToLoopback,
}

/// What is wrong with a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlFault {
    /// It is none, or too long.
    Form,
    /// It begins with neither https:// nor http://.
    Scheme,
    /// It is http to a host that is not loopback.
    Plaintext,
    /// It names a user.
    User,
    /// It has a query.
    Query,
    /// It has a fragment.
    Fragment,
}

impl fmt::Display for UrlFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Form => "it is not a URL with a host",
            Self::Scheme => "it does not begin with https://",
            Self::Plaintext => "http is for loopback hosts only, use https",
            Self::User => "it must not name a user",
            Self::Query => "it must not have a query",
            Self::Fragment => "it must not have a fragment",
        })
    }
}

impl std::error::Error for UrlFault {}

/// Whether keys may be fetched from this URL, and how.
pub(super) fn check_url(url: &str) -> Result<Scheme, UrlFault> {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'\\';
    if url.len() > URL_BYTES_MAX || !url.bytes().all(plain) {
        return Err(UrlFault::Form);
    }
    let encrypted = url.starts_with("https://");
    if !encrypted && !url.starts_with("http://") {
        return Err(UrlFault::Scheme);
    }
    if url.contains('#') {
        return Err(UrlFault::Fragment);
    }
    let uri: Uri = url.parse().map_err(|_| UrlFault::Form)?;
    let authority = uri.authority().ok_or(UrlFault::Form)?;
    if authority.as_str().contains('@') {
        return Err(UrlFault::User);
    }
    // A port that is no number would be taken for the default port.
    let host = authority.host();
    let has_port = authority.as_str().len() > host.len();
    if host.is_empty() || has_port && authority.port_u16().is_none() {
        return Err(UrlFault::Form);
    }
    match (encrypted, is_loopback(host)) {
        (true, _) => Ok(Scheme::Https),
        (false, true) => Ok(Scheme::HttpToLoopback),
        (false, false) => Err(UrlFault::Plaintext),
    }
}

fn is_loopback(host: &str) -> bool {
    let v6 = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    match v6 {
        Some(v6) => v6.parse() == Ok(Ipv6Addr::LOCALHOST),
        None => {
            host.eq_ignore_ascii_case("localhost")
                || host.parse().is_ok_and(|v4: Ipv4Addr| v4.is_loopback())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn https_urls_are_issuers_and_keep_their_bytes() {
        for url in [
            "https://id.example.com",
            "https://id.example.com/",
            "https://id.example.com:8443/realms/Main",
            "https://10.0.0.1/x",
            "https://[2001:db8::1]:8443",
        ] {
            let issuer = Issuer::parse(url).expect(url);
            assert_eq!(issuer.as_str(), url);
            assert_eq!(issuer.scheme(), Scheme::Https);
        }
    }

    #[test]
    fn http_is_for_loopback_hosts_only() {
        for url in [
            "http://localhost:8080",
            "http://LocalHost",
            "http://127.0.0.1:5556/dex",
            "http://127.8.9.1",
            "http://[::1]:8080/",
        ] {
            let issuer = Issuer::parse(url).expect(url);
            assert_eq!(issuer.scheme(), Scheme::HttpToLoopback, "{url}");
        }
        for url in [
            "http://id.example.com",
            "http://localhost.example.com",
            "http://localhost.",
            "http://127.0.0.1.example.com",
            "http://127.1",
            "http://128.0.0.1",
            "http://0.0.0.0",
            "http://[::]",
            "http://[::2]",
            "http://[::ffff:127.0.0.1]",
        ] {
            assert_eq!(Issuer::parse(url), Err(UrlFault::Plaintext), "{url}");
        }
    }

    #[test]
    fn what_an_issuer_must_not_have_is_named() {
        for (url, fault) in [
            ("", UrlFault::Scheme),
            ("id.example.com", UrlFault::Scheme),
            ("HTTPS://id.example.com", UrlFault::Scheme),
            ("ftp://id.example.com", UrlFault::Scheme),
            ("https://", UrlFault::Form),
            ("https:///path", UrlFault::Form),
            ("https://:443", UrlFault::Form),
            ("https://host:", UrlFault::Form),
            ("https://host:99999", UrlFault::Form),
            ("https://host:4 43", UrlFault::Form),
            ("https://ho\\st", UrlFault::Form),
            ("https://host/\n", UrlFault::Form),
            ("https://hóst", UrlFault::Form),
            ("https://me@host", UrlFault::User),
            ("http://localhost@host", UrlFault::User),
            ("https://me:secret@host/", UrlFault::User),
            ("https://host?", UrlFault::Query),
            ("https://host/?a=b", UrlFault::Query),
            ("https://host#", UrlFault::Fragment),
            ("https://host/#x", UrlFault::Fragment),
        ] {
            assert_eq!(Issuer::parse(url), Err(fault), "{url}");
        }
        let long = format!("https://host/{}", "a".repeat(URL_BYTES_MAX));
        assert_eq!(Issuer::parse(&long), Err(UrlFault::Form));
    }

    #[test]
    fn the_discovery_document_is_below_the_issuer() {
        for (issuer, url) in [
            ("https://a", "https://a/.well-known/openid-configuration"),
            ("https://a/", "https://a/.well-known/openid-configuration"),
            (
                "https://a/b/",
                "https://a/b/.well-known/openid-configuration",
            ),
        ] {
            assert_eq!(Issuer::parse(issuer).expect(issuer).discovery_url(), url);
        }
    }
}
