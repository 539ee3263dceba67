//! What an issuer and its tokens say: the first byte chooses a token as it stands, a
//! token that our issuer signs (header and claims, one to a line), a key set, a discovery
//! document, or a certificate.
//!
//! * No token is accepted that the issuer's key has not signed, whatever it says.
//! * One that is signed is accepted only if it is the issuer's, for us, and now, and then
//!   the caller is called what it says and may do no more.
//! * Keys are few; keys that decrypt or are shared are never among them; a set is the same
//!   in any order. Keys come over https, or from this very host.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hypercache::auth::oidc::discovery::Discovery;
use hypercache::auth::oidc::keys::{KEY_ID_BYTES_MAX, KEYS_MAX, KeySet};
use hypercache::auth::oidc::token::{IDENTITY_BYTES_MAX, Refusal};
use hypercache::auth::oidc::{Issuer, Rules, verify};
use hypercache::tls::config::subject_cn;
use serde_json::{Value, json};

const NOW_S: u64 = 1_800_000_000;
const LEEWAY_S: u64 = 60;

/// See the module's comment.
pub fn law(bytes: &[u8]) {
    let Some((choice, input)) = bytes.split_first() else {
        return;
    };
    match choice % 5 {
        0 => token(input),
        1 => signed(input),
        2 => key_set(input),
        3 => discovery(input),
        _ => certificate(input),
    }
}

fn rules() -> Rules {
    Rules {
        issuer: "https://i".to_owned(),
        audience: "us".to_owned(),
        identity_claim: "sub".to_owned(),
        scope_claim: "scope".to_owned(),
        leeway_s: LEEWAY_S,
    }
}

fn our_pair() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed")
}

fn our_keys(pair: &Ed25519KeyPair) -> KeySet {
    let x = URL_SAFE_NO_PAD.encode(pair.public_key());
    let document = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": x}]});
    let keys = KeySet::parse(document.to_string().as_bytes()).expect("a key set");
    assert_eq!(keys.len(), 1);
    keys
}

fn token(input: &[u8]) {
    let Ok(token) = std::str::from_utf8(input) else {
        return;
    };
    let keys = our_keys(&our_pair());
    let refused = verify(&keys, &rules(), token, NOW_S).expect_err("nobody signed it");
    assert!(!refused.to_string().is_empty());
    let unknown = verify(&KeySet::default(), &rules(), token, NOW_S);
    assert!(unknown.is_err());
}

fn signed(input: &[u8]) {
    let at = input.iter().position(|&byte| byte == b'\n');
    let (header, claims) = input.split_at(at.unwrap_or(input.len()));
    let claims = claims.strip_prefix(b"\n").unwrap_or(claims);
    let pair = our_pair();
    let base64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let mut token = format!("{}.{}", base64(header), base64(claims));
    let signature = pair.sign(token.as_bytes());
    token.push('.');
    token.push_str(&base64(signature.as_ref()));

    let verified = match verify(&our_keys(&pair), &rules(), &token, NOW_S) {
        Ok(verified) => verified,
        Err(refusal) => {
            assert_ne!(refusal, Refusal::Signature, "we have signed it");
            return;
        }
    };
    let header: Value = serde_json::from_slice(header).expect("a header");
    assert_eq!(header["alg"], "EdDSA");
    assert!(header["kid"].is_null() || header["kid"] == "k");
    assert!(header.get("crit").is_none());
    let claims: Value = serde_json::from_slice(claims).expect("claims");
    assert_eq!(claims["iss"], "https://i");
    let audience = match &claims["aud"] {
        Value::Array(audiences) => audiences.contains(&json!("us")),
        audience => audience == "us",
    };
    assert!(audience);
    let expiry = claims["exp"].as_f64().expect("a number");
    assert!(expiry + LEEWAY_S as f64 > NOW_S as f64);
    assert!(verified.expires_at_unix_s > NOW_S);
    if let Some(not_before) = claims["nbf"].as_f64() {
        assert!(not_before < (NOW_S + LEEWAY_S + 1) as f64);
    }
    assert_eq!(claims["sub"], *verified.id);
    assert!((1..=IDENTITY_BYTES_MAX).contains(&verified.id.len()));
    assert!(!verified.id.contains(char::is_control));
    let told = claims["scope"].to_string();
    assert!(
        verified
            .scopes
            .iter()
            .all(|scope| told.contains(scope.name()))
    );

    // A token that was changed anywhere is another.
    for at in [0, token.len() / 2] {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).expect("base64");
        assert!(verify(&our_keys(&pair), &rules(), &changed, NOW_S).is_err());
    }
}

fn key_set(input: &[u8]) {
    let Ok(keys) = KeySet::parse(input) else {
        return;
    };
    assert!(keys.len() <= KEYS_MAX);
    let mut document: Value = serde_json::from_slice(input).expect("a document");
    let listed = document["keys"].as_array_mut().expect("a list");
    assert!(keys.len() + keys.passed_over() <= listed.len());
    for key in listed.iter() {
        let only = json!({"keys": [key]}).to_string();
        let only = KeySet::parse(only.as_bytes()).expect("a key set");
        if only.is_empty() {
            continue;
        }
        assert!(key["kty"] != "oct" && key["use"] != "enc");
        assert!(
            key["kid"]
                .as_str()
                .is_none_or(|id| keys.knows(id) && id.len() <= KEY_ID_BYTES_MAX)
        );
    }
    listed.reverse();
    let reversed = KeySet::parse(document.to_string().as_bytes());
    assert!(reversed == Ok(keys), "the order of keys says nothing");
}

fn discovery(input: &[u8]) {
    let issuer = Issuer::parse("https://i").expect("an issuer");
    if let Ok(found) = Discovery::parse(input, &issuer) {
        assert!(found.jwks_uri.starts_with("https://") && !found.jwks_uri.contains('@'));
        assert!(
            !found
                .jwks_uri
                .contains(|c: char| c.is_control() || c == ' ')
        );
    }
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(issuer) = Issuer::parse(text)
    {
        assert_eq!(issuer.as_str(), text);
        assert!(
            issuer
                .discovery_url()
                .starts_with(text.trim_end_matches('/'))
        );
        assert!(text.starts_with("https://") || text.starts_with("http://"));
    }
}

fn certificate(input: &[u8]) {
    if let Some(name) = subject_cn(input) {
        assert!(!name.is_empty() && !name.contains(char::is_control));
        let text: Vec<u8> = name.bytes().collect();
        assert!(input.windows(text.len()).any(|part| part == text));
    }
}
