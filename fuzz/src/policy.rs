//! Policy files, and the credentials that requests show.
//!
//! * A policy that is accepted knows somebody or lets everybody in, and every identity in
//!   it may do something.
//! * What is wrong is told in one line without a value of the file that may be a secret.
//! * Credentials are read the same however their scheme is written, and never longer than
//!   they are.

use hypercache::auth::credentials::{Credentials, bearer};
use hypercache::auth::policy::Policy;
use hypercache::auth::secret::Sealer;

/// A word that stands in the input for every secret.
const SECRET: &str = "5ECRET";

/// See the module's comment.
pub fn law(bytes: &[u8]) {
    credentials(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let sealer = Sealer::new().expect("there is randomness");
    match Policy::parse(text, &sealer) {
        Ok(policy) => {
            let knows = policy.has_users() || policy.has_certificates();
            let token = policy.token(SECRET.as_bytes());
            assert!(token.is_none_or(|identity| !identity.scopes.is_empty()));
            assert!(!(policy.is_open() && knows));
            assert!(policy.token(b"").is_none(), "no token admits");
            assert!(policy.token(b"a b").is_none(), "it cannot be shown");
            for name in ["", "a:b"] {
                assert!(policy.user(name).is_err(), "{name:?} cannot be shown");
            }
        }
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains(char::is_control), "{line:?}");
        }
    }
    // The same with a secret where its values stand.
    for field in ["token", "password_bcrypt"] {
        let with_secret = replace_values(text, field);
        if let Err(error) = Policy::parse(&with_secret, &sealer) {
            let line = error.to_string();
            assert!(!line.contains(SECRET), "{line:?}");
        }
    }
}

/// Writes the secret behind every `field:` in place of the word that stands there.
fn replace_values(text: &str, field: &str) -> String {
    let mut out = String::new();
    let field = format!("{field}: ");
    let mut parts = text.split(&field);
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_alphanumeric());
        out.push_str(&field);
        out.push_str(SECRET);
        out.push_str(&part[end.unwrap_or(part.len())..]);
    }
    out
}

fn credentials(bytes: &[u8]) {
    let mut other = bytes.to_vec();
    let scheme = bytes.iter().position(|&byte| byte == b' ');
    other[..scheme.unwrap_or(bytes.len())].make_ascii_uppercase();
    assert!(Credentials::read(Some(bytes)) == Credentials::read(Some(&other)));
    if let Some(token) = bearer(bytes) {
        assert!(token.len() < bytes.len() && bytes.ends_with(token));
    }
}
