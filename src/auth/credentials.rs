//! The `Authorization` field (RFC 9110 section 11.6.2), read.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What a request shows.
#[derive(PartialEq, Eq)]
pub enum Credentials<'h> {
    /// Nothing.
    None,
    /// A bearer token (RFC 6750 section 2.1).
    Bearer(&'h [u8]),
    /// A name and a password (RFC 7617).
    Basic {
        /// The user's name.
        username: String,
        /// What is to be the password.
        password: Vec<u8>,
    },
    /// Something that is neither.
    Unknown,
}

impl std::fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Bearer(_) => "Bearer(…)",
            Self::Basic { .. } => "Basic(…)",
            Self::Unknown => "Unknown",
        })
    }
}

impl<'h> Credentials<'h> {
    /// Reads a field's value. Schemes are compared without regard to case.
    pub fn read(authorization: Option<&'h [u8]>) -> Self {
        let Some(field) = authorization else {
            return Self::None;
        };
        if let Some(token) = bearer(field) {
            return Self::Bearer(token);
        }
        basic(field).unwrap_or(Self::Unknown)
    }
}

/// The token of a field that shows a bearer token.
pub fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    behind(b"Bearer ", authorization).filter(|token| !token.is_empty())
}

fn behind<'h>(scheme: &[u8], field: &'h [u8]) -> Option<&'h [u8]> {
    let (given, rest) = field.split_at_checked(scheme.len())?;
    given
        .eq_ignore_ascii_case(scheme)
        .then(|| rest.trim_ascii_start())
}

fn basic<'h>(field: &[u8]) -> Option<Credentials<'h>> {
    let pair = STANDARD.decode(behind(b"Basic ", field)?).ok()?;
    let colon = memchr::memchr(b':', &pair)?;
    Some(Credentials::Basic {
        username: String::from_utf8(pair[..colon].to_vec()).ok()?,
        password: pair[colon + 1..].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Credentials<'static> {
        Credentials::Basic {
            username: username.to_owned(),
            password: password.as_bytes().to_vec(),
        }
    }

    #[test]
    fn both_schemes_are_read_whatever_their_case() {
        let read = |text: &'static str| Credentials::read(Some(text.as_bytes()));
        assert!(read("Bearer abc") == Credentials::Bearer(b"abc"));
        assert!(read("bEARER   abc") == Credentials::Bearer(b"abc"));
        assert!(read("Basic dTpwOnE=") == basic("u", "p:q"));
        assert!(read("basic dTo=") == basic("u", ""));
        assert!(Credentials::read(None) == Credentials::None);
    }

    #[test]
    fn what_is_neither_is_unknown() {
        for field in [
            "",
            "Bearer",
            "Bearer ",
            "Bearerabc",
            "Basic",
            "Basic !",
            "Basic dQ==",
            "Basic dTpw=",
            "Basic /zpw",
            "Digest username=\"u\"",
        ] {
            let read = Credentials::read(Some(field.as_bytes()));
            assert!(read == Credentials::Unknown, "{field:?}: {read:?}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert!(!format!("{:?}", Credentials::Bearer(b"secret")).contains("secret"));
        assert!(!format!("{:?}", basic("user", "secret")).contains("secret"));
    }
}
