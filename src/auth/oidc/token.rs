//! Whether a token is the issuer's, for us, now, and what it says of the caller.
//!
//! A token comes from anyone. Its header is looked at only to choose among the keys that
//! are known already; keys and places of keys that it brings (`jwk`, `jku`, `x5u`, `x5c`)
//! are passed over. Its claims are looked at only once a signature holds. Work is
//! bounded: so many bytes, so many signatures tried.
//!
//! Form, algorithm and signature are checked by the jsonwebtoken crate as well as here;
//! claims are checked here, since time is an argument.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Config;
use super::keys::{Algorithm, Key, KeySet};
use crate::auth::{Scope, Scopes};

/// The longest token that is looked at.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;
/// The longest name of a caller.
pub const IDENTITY_BYTES_MAX: usize = 256;
/// How many keys are tried when a token does not name its key.
const KEYS_TRIED_MAX: usize = 8;

/// What is asked of a token.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Who must have issued it.
    pub issuer: String,
    /// Whom it must be for.
    pub audience: String,
    /// The claim that tells what the caller is called.
    pub identity_claim: String,
    /// The claim that tells what it may do.
    pub scope_claim: String,
    /// By how much clocks may differ.
    pub leeway_s: u64,
}

impl Rules {
    /// The rules of a configuration.
    pub fn of(config: &Config) -> Self {
        Self {
            issuer: config.issuer.as_str().to_owned(),
            audience: config.audience.clone(),
            identity_claim: config.identity_claim.clone(),
            scope_claim: config.scope_claim.clone(),
            leeway_s: config.leeway.as_secs(),
        }
    }
}

/// What an accepted token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// What the caller is called.
    pub id: Arc<str>,
    /// What it may do; nothing when the token does not say.
    pub scopes: Scopes,
    /// From when the token is not accepted any more: its `exp`, and the leeway.
    pub expires_at_unix_s: u64,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is longer than any that is looked at.
    TooLong,
    /// It is no signed token.
    Malformed,
    /// It is a token for something else, by its header's `typ`.
    Type,
    /// It demands that an extension be understood.
    Critical,
    /// It is not signed at all, or by an algorithm that is not accepted, or by another
    /// than its key's.
    Algorithm,
    /// No keys of the issuer are known.
    NoKeys,
    /// It is signed with a key that is not among those known.
    UnknownKey,
    /// Its signature does not hold.
    Signature,
    /// Another has issued it.
    Issuer,
    /// It is for others.
    Audience,
    /// It does not say when it expires.
    NoExpiry,
    /// It has expired.
    Expired,
    /// It is not valid yet.
    NotYetValid,
    /// It does not say what the caller is called, or nothing that can be told.
    Identity,
}

impl Refusal {
    /// Whether it might be accepted once the issuer's keys are fetched again: some issuers
    /// put another key behind the same id.
    pub fn refetch_may_help(self) -> bool {
        matches!(self, Self::UnknownKey | Self::NoKeys | Self::Signature)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "the token is too long",
            Self::Malformed => "not a signed token",
            Self::Type => "a token for something else",
            Self::Critical => "the token demands an extension that is not known",
            Self::Algorithm => "the token's algorithm is not accepted",
            Self::NoKeys => "no keys of the issuer are known yet",
            Self::UnknownKey => "the token's key is not known",
            Self::Signature => "the token's signature does not hold",
            Self::Issuer => "the token is of another issuer",
            Self::Audience => "the token is for another audience",
            Self::NoExpiry => "the token does not say when it expires",
            Self::Expired => "the token has expired",
            Self::NotYetValid => "the token is not valid yet",
            Self::Identity => "the token does not say who the caller is",
        })
    }
}

impl std::error::Error for Refusal {}

type Claims = Map<String, Value>;

/// Checks a token at a time.
pub fn verify(
    keys: &KeySet,
    rules: &Rules,
    token: &str,
    now_unix_s: u64,
) -> Result<Verified, Refusal> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Refusal::TooLong);
    }
    let (header, algorithm) = header(token)?;
    let claims = signed_claims(keys, header.kid.as_deref(), algorithm, token)?;
    check_origin(rules, &claims)?;
    let expires_at_unix_s = check_time(rules, &claims, now_unix_s)?;
    Ok(Verified {
        id: identity(&claims, &rules.identity_claim)?,
        scopes: scopes(claims.get(&rules.scope_claim)),
        expires_at_unix_s,
    })
}

/// The members of a header that are looked at (RFC 7515, section 4.1).
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    #[serde(default, deserialize_with = "is_there")]
    crit: bool,
}

/// Reads the header and what it asks for.
fn header(token: &str) -> Result<(Header, Algorithm), Refusal> {
    let mut parts = token.split('.');
    let (Some(header), Some(_), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::Malformed);
    };
    let header = URL_SAFE_NO_PAD
        .decode(header)
        .map_err(|_| Refusal::Malformed)?;
    let header: Header = serde_json::from_slice(&header).map_err(|_| Refusal::Malformed)?;
    if header.crit {
        return Err(Refusal::Critical);
    }
    if !header.typ.as_deref().is_none_or(is_our_type) {
        return Err(Refusal::Type);
    }
    let algorithm = Algorithm::named(&header.alg).ok_or(Refusal::Algorithm)?;
    Ok((header, algorithm))
}

/// An issuer signs other things with the same keys, such as notices of a logout
/// (RFC 8725, section 3.11).
fn is_our_type(typ: &str) -> bool {
    let is = |name: &str| typ.eq_ignore_ascii_case(name);
    is("JWT") || is("at+jwt") || is("application/at+jwt") || is("application/jwt")
}

/// The claims, if a key of the issuer has signed them.
fn signed_claims(
    keys: &KeySet,
    id: Option<&str>,
    algorithm: Algorithm,
    token: &str,
) -> Result<Claims, Refusal> {
    if keys.is_empty() {
        return Err(Refusal::NoKeys);
    }
    if id.is_some_and(|id| !keys.knows(id)) {
        return Err(Refusal::UnknownKey);
    }
    for key in keys.of(algorithm, id).take(KEYS_TRIED_MAX) {
        match claims_signed_by(key, token) {
            Err(Refusal::Signature) => {}
            found => return found,
        }
    }
    Err(match id {
        // Signed by one that we may not know yet.
        None => Refusal::UnknownKey,
        Some(_) if keys.of(algorithm, id).next().is_none() => Refusal::Algorithm,
        Some(_) => Refusal::Signature,
    })
}

fn claims_signed_by(key: &Key, token: &str) -> Result<Claims, Refusal> {
    jsonwebtoken::decode(token, &key.decoding, &key.validation)
        .map(|token| token.claims)
        .map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature => Refusal::Signature,
            ErrorKind::InvalidAlgorithm => Refusal::Algorithm,
            _ => Refusal::Malformed,
        })
}

fn check_origin(rules: &Rules, claims: &Claims) -> Result<(), Refusal> {
    let issuer = claims.get("iss").and_then(Value::as_str);
    if issuer != Some(&rules.issuer) {
        return Err(Refusal::Issuer);
    }
    let is_us = |audience: &Value| audience.as_str() == Some(&rules.audience);
    let for_us = match claims.get("aud") {
        Some(Value::Array(audiences)) => audiences.iter().any(is_us),
        Some(audience) => is_us(audience),
        None => false,
    };
    if for_us {
        Ok(())
    } else {
        Err(Refusal::Audience)
    }
}

/// Checks that now is between `nbf` and `exp`, give or take the leeway; returns until when.
fn check_time(rules: &Rules, claims: &Claims, now_unix_s: u64) -> Result<u64, Refusal> {
    let expiry = claims
        .get("exp")
        .and_then(unix_s)
        .ok_or(Refusal::NoExpiry)?;
    let until = expiry.saturating_add(rules.leeway_s);
    if now_unix_s >= until {
        return Err(Refusal::Expired);
    }
    if let Some(not_before) = claims.get("nbf") {
        let from = unix_s(not_before).ok_or(Refusal::Malformed)?;
        if now_unix_s.saturating_add(rules.leeway_s) < from {
            return Err(Refusal::NotYetValid);
        }
    }
    Ok(until)
}

/// A time, which may be written with a fraction (RFC 7519, section 2).
fn unix_s(claim: &Value) -> Option<u64> {
    /// Beyond it a floating point number does not hold every whole second.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    let fraction = || {
        let seconds = claim.as_f64()?;
        (0.0..EXACT_MAX)
            .contains(&seconds)
            .then_some(seconds as u64)
    };
    claim.as_u64().or_else(fraction)
}

fn identity(claims: &Claims, claim: &str) -> Result<Arc<str>, Refusal> {
    claims
        .get(claim)
        .and_then(Value::as_str)
        .filter(|id| !id.is_empty() && id.len() <= IDENTITY_BYTES_MAX)
        .filter(|id| !id.contains(char::is_control))
        .map(Arc::from)
        .ok_or(Refusal::Identity)
}

/// The scopes that a claim lists, in a string or an array; those we do not know count for
/// nothing.
fn scopes(claim: Option<&Value>) -> Scopes {
    match claim {
        Some(Value::String(list)) => list.split(' ').filter_map(Scope::named).collect(),
        Some(Value::Array(list)) => list
            .iter()
            .filter_map(Value::as_str)
            .filter_map(Scope::named)
            .collect(),
        _ => Scopes::default(),
    }
}

/// Whether a member is there, whatever it is.
fn is_there<'de, D: serde::Deserializer<'de>>(member: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(member).map(|_| true)
}
