//! Identity tokens of an OpenID Connect issuer.
//!
//! A node trusts one issuer. It learns the issuer's public keys over https
//! ([`discovery`], [`keys`]) on a thread of its own ([`fetch`], when: [`refresh`]) and
//! checks with them, without asking anyone, the tokens that callers show ([`token`]).
//!
//! What holds:
//! - A token is accepted only if a key of the issuer signed it, with the one algorithm
//!   of that key. Nothing that a token says about keys but the name of one is looked at.
//! - Nothing but a change of keys at the issuer takes keys away: while it is
//!   unreachable, slow or answers nonsense, those known stay in use.
//! - Before the first keys have come no token is accepted.
//! - Who shows tokens decides neither how often the issuer is asked nor for how long.

use std::time::Duration;

pub mod discovery;
pub mod fetch;
pub mod issuer;
pub mod keys;
pub mod refresh;
pub mod token;

pub use fetch::Fetcher;
pub use issuer::Issuer;
pub use keys::KeySet;
pub use token::{Refusal, Rules, Verified, verify};

/// Which issuer is trusted, and for what.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who signs the tokens.
    pub issuer: Issuer,
    /// Whom a token must be for.
    pub audience: String,
    /// The claim that tells what a caller is called.
    pub identity_claim: String,
    /// The claim that tells what it may do.
    pub scope_claim: String,
    /// By how much the issuer's clock and ours may differ.
    pub leeway: Duration,
    /// How often the keys are fetched.
    pub refresh_interval: Duration,
    /// How long a connection to the issuer may take to be made, its handshake included.
    pub connect_timeout: Duration,
    /// How long each of the two documents may take, from the first step to its last byte.
    pub fetch_timeout: Duration,
    /// Certificates in PEM of the authorities that vouch for the issuer's server, instead
    /// of the public ones.
    pub ca_pem: Option<Vec<u8>>,
}

impl Config {
    /// Tokens of `issuer` for `audience`, and defaults for the rest.
    pub fn new(issuer: Issuer, audience: &str) -> Self {
        Self {
            issuer,
            audience: audience.to_owned(),
            identity_claim: "sub".to_owned(),
            scope_claim: "scope".to_owned(),
            leeway: Duration::from_secs(60),
            refresh_interval: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(5),
            fetch_timeout: Duration::from_secs(10),
            ca_pem: None,
        }
    }
}
