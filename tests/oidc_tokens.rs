//! Which tokens of an issuer are accepted, and why others are not, each with a real
//! signature.

#![allow(clippy::expect_used, reason = "a failure in a helper is a failed test")]

#[path = "support/issuer.rs"]
mod issuer;

use hypercache::auth::oidc::token::{IDENTITY_BYTES_MAX, TOKEN_BYTES_MAX};
use hypercache::auth::oidc::{KeySet, Refusal, Rules, Verified, verify};
use hypercache::auth::{Scope, Scopes};
use issuer::{AUDIENCE, Signer, base64, key_set, message, token_under_secret};
use proptest::prelude::*;
use serde_json::{Value, json};

const ISSUER: &str = "https://id.example.com";
const NOW: u64 = 1_800_000_000;
const LEEWAY: u64 = 60;
/// When the tokens of [`claims`] expire.
const EXPIRY: u64 = NOW + 300;

fn rules() -> Rules {
    Rules {
        issuer: ISSUER.to_owned(),
        audience: AUDIENCE.to_owned(),
        identity_claim: "sub".to_owned(),
        scope_claim: "scope".to_owned(),
        leeway_s: LEEWAY,
    }
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": EXPIRY, "scope": "read"})
}

/// A claim or header with one member changed; removed when null.
fn with(mut object: Value, member: &str, value: Value) -> Value {
    match value {
        Value::Null => {
            object.as_object_mut().expect("an object").remove(member);
        }
        value => object[member] = value,
    }
    object
}

fn keys_of(signers: &[&Signer]) -> KeySet {
    KeySet::parse(key_set(signers).to_string().as_bytes()).expect("a key set")
}

/// An issuer with a key of each kind.
struct Signers {
    rsa: Signer,
    p256: Signer,
    ed25519: Signer,
    keys: KeySet,
}

impl Signers {
    fn new() -> Self {
        let (rsa, p256, ed25519) = (
            Signer::rs256("rsa"),
            Signer::es256("p256"),
            Signer::eddsa("ed25519"),
        );
        let keys = keys_of(&[&rsa, &p256, &ed25519]);
        Self {
            rsa,
            p256,
            ed25519,
            keys,
        }
    }

    fn all(&self) -> [&Signer; 3] {
        [&self.rsa, &self.p256, &self.ed25519]
    }

    fn verify(&self, token: &str) -> Result<Verified, Refusal> {
        verify(&self.keys, &rules(), token, NOW)
    }

    /// What becomes of a token that is right but for this.
    fn verify_claim(&self, claim: &str, value: Value) -> Result<Verified, Refusal> {
        self.verify_claims(&with(claims(), claim, value))
    }

    fn verify_claims(&self, claims: &Value) -> Result<Verified, Refusal> {
        self.verify(&self.ed25519.token(claims))
    }

    fn verify_header(&self, member: &str, value: Value) -> Result<Verified, Refusal> {
        let header = with(self.ed25519.header(), member, value);
        self.verify(&self.ed25519.token_with(&header, &claims()))
    }
}

fn alice() -> Verified {
    Verified {
        id: "alice".into(),
        scopes: [Scope::Read].into_iter().collect(),
        expires_at_unix_s: EXPIRY + LEEWAY,
    }
}

#[test]
fn tokens_of_each_algorithm_are_accepted() {
    let signers = Signers::new();
    for signer in signers.all() {
        let token = signer.token(&claims());
        assert_eq!(
            signers.verify(&token),
            Ok(alice()),
            "{}",
            signer.algorithm()
        );
    }
}

#[test]
fn a_token_that_names_no_key_is_tried_with_the_keys_of_its_algorithm() {
    let signers = Signers::new();
    for signer in signers.all() {
        let header = with(signer.header(), "kid", Value::Null);
        let token = signer.token_with(&header, &claims());
        assert_eq!(signers.verify(&token), Ok(alice()));
    }
    let (a, b) = (Signer::es256("a").nameless(), Signer::es256("b").nameless());
    let keys = keys_of(&[&a, &b]);
    for signer in [&a, &b] {
        let token = signer.token(&claims());
        assert_eq!(verify(&keys, &rules(), &token, NOW), Ok(alice()));
    }
    let stranger = Signer::es256("c").nameless().token(&claims());
    let refused = verify(&keys, &rules(), &stranger, NOW);
    assert_eq!(refused, Err(Refusal::UnknownKey));
}

#[test]
fn no_more_than_eight_keys_are_tried_for_a_token_that_names_none() {
    let nameless = || Signer::eddsa("").nameless();
    let signers: Vec<Signer> = std::iter::repeat_with(nameless).take(9).collect();
    let keys = keys_of(&signers.iter().collect::<Vec<_>>());
    let accepted = signers
        .iter()
        .filter(|signer| verify(&keys, &rules(), &signer.token(&claims()), NOW).is_ok());
    assert_eq!(accepted.count(), 8);
}

#[test]
fn keys_that_share_a_name_are_all_tried() {
    let (a, b) = (Signer::es256("x"), Signer::es256("x"));
    let keys = keys_of(&[&a, &b, &Signer::rs256("x")]);
    for signer in [&a, &b] {
        let token = signer.token(&claims());
        assert_eq!(verify(&keys, &rules(), &token, NOW), Ok(alice()));
    }
}

#[test]
fn without_keys_nothing_is_accepted_and_a_fetch_may_help() {
    let token = Signer::es256("a").token(&claims());
    let refused = verify(&KeySet::default(), &rules(), &token, NOW);
    assert_eq!(refused, Err(Refusal::NoKeys));
    assert!(Refusal::NoKeys.refetch_may_help());
}

#[test]
fn a_key_that_is_not_known_is_told_from_one_that_did_not_sign() {
    let signers = Signers::new();
    let unknown = Signer::es256("new").token(&claims());
    assert_eq!(signers.verify(&unknown), Err(Refusal::UnknownKey));
    assert!(Refusal::UnknownKey.refetch_may_help());
    for stranger in [Signer::es256("p256"), Signer::eddsa("ed25519")] {
        let token = stranger.token(&claims());
        assert_eq!(signers.verify(&token), Err(Refusal::Signature));
    }
    // An issuer may have put another key behind the id.
    assert!(Refusal::Signature.refetch_may_help());
    assert!(!Refusal::Expired.refetch_may_help());
}

#[test]
fn a_token_that_is_not_signed_is_refused() {
    let signers = Signers::new();
    for name in ["none", "None", "NONE", "nOnE", ""] {
        for key in [json!("p256"), Value::Null] {
            let header = with(json!({ "alg": name }), "kid", key);
            let message = message(&header.to_string(), &claims().to_string());
            for signature in ["", "AA"] {
                let token = format!("{message}.{signature}");
                assert_eq!(signers.verify(&token), Err(Refusal::Algorithm), "{token}");
            }
        }
    }
}

#[test]
fn a_public_key_is_no_shared_secret() {
    let signers = Signers::new();
    for signer in signers.all() {
        for secret in signer.public_forms() {
            for algorithm in ["HS256", "HS384", "HS512"] {
                let header = with(signer.header(), "alg", json!(algorithm));
                let token = token_under_secret(&secret, &header, &claims());
                assert_eq!(signers.verify(&token), Err(Refusal::Algorithm));
            }
            let token = token_under_secret(&secret, &signer.header(), &claims());
            assert_eq!(signers.verify(&token), Err(Refusal::Signature));
        }
    }
}

#[test]
fn a_token_of_another_algorithm_than_its_key_is_refused() {
    let signers = Signers::new();
    for signer in signers.all() {
        for algorithm in ["RS256", "ES256", "EdDSA"] {
            if algorithm == signer.algorithm() {
                continue;
            }
            let header = with(signer.header(), "alg", json!(algorithm));
            let token = signer.token_with(&header, &claims());
            assert_eq!(signers.verify(&token), Err(Refusal::Algorithm));
            let nameless = with(header, "kid", Value::Null);
            let token = signer.token_with(&nameless, &claims());
            assert_eq!(signers.verify(&token), Err(Refusal::UnknownKey));
        }
        for algorithm in [
            "RS384", "RS512", "PS256", "ES384", "ES512", "Ed25519", "rs256",
        ] {
            let header = with(signer.header(), "alg", json!(algorithm));
            let token = signer.token_with(&header, &claims());
            assert_eq!(
                signers.verify(&token),
                Err(Refusal::Algorithm),
                "{algorithm}"
            );
        }
    }
}

#[test]
fn keys_that_a_token_brings_are_passed_over() {
    let signers = Signers::new();
    let stranger = Signer::es256("p256");
    for (member, value) in [
        ("jwk", stranger.jwk()),
        ("jku", json!("http://127.0.0.1:1/keys")),
        ("x5u", json!("http://127.0.0.1:1/certificate")),
        ("x5c", json!([base64(&[0; 64])])),
        ("x5t", json!("AAAA")),
    ] {
        let brings = |signer: &Signer| {
            let header = with(signer.header(), member, value.clone());
            signers.verify(&signer.token_with(&header, &claims()))
        };
        assert_eq!(brings(&stranger), Err(Refusal::Signature), "{member}");
        assert_eq!(
            brings(&Signer::es256("new")),
            Err(Refusal::UnknownKey),
            "{member}"
        );
        assert_eq!(brings(&signers.p256), Ok(alice()), "{member}");
    }
}

#[test]
fn extensions_that_must_be_understood_are_refused() {
    let signers = Signers::new();
    for critical in [
        json!([]),
        json!(["exp"]),
        json!(["b64"]),
        json!(["x-unknown"]),
        json!("exp"),
        json!(false),
        json!({}),
    ] {
        let refused = signers.verify_header("crit", critical.clone());
        assert_eq!(refused, Err(Refusal::Critical), "{critical}");
    }
    let header = r#"{"alg":"EdDSA","kid":"ed25519","crit":null}"#;
    let token = signers.ed25519.token_of(header, &claims().to_string());
    assert_eq!(signers.verify(&token), Err(Refusal::Critical));
    let header = json!({"alg": "EdDSA", "kid": "ed25519", "b64": true, "crit": ["b64"]});
    let token = signers.ed25519.token_with(&header, &claims());
    assert_eq!(signers.verify(&token), Err(Refusal::Critical));
    assert_eq!(
        signers.verify_header("b64", json!(false)),
        Err(Refusal::Malformed)
    );
}

#[test]
fn tokens_of_the_issuer_for_something_else_are_refused() {
    let signers = Signers::new();
    for typ in ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt"] {
        assert_eq!(
            signers.verify_header("typ", json!(typ)),
            Ok(alice()),
            "{typ}"
        );
    }
    assert_eq!(signers.verify_header("typ", Value::Null), Ok(alice()));
    for typ in ["logout+jwt", "secevent+jwt", "dpop+jwt", "JWE", ""] {
        let refused = signers.verify_header("typ", json!(typ));
        assert_eq!(refused, Err(Refusal::Type), "{typ}");
    }
}

#[test]
fn what_has_not_three_parts_is_refused() {
    let signers = Signers::new();
    let token = signers.p256.token(&claims());
    let parts: Vec<&str> = token.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    for token in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "...".to_owned(),
        header.to_owned(),
        format!("{header}.{payload}"),
        format!("{token}."),
        format!(".{token}"),
        format!("{token}.{signature}"),
        format!("{header}.{payload}.{signature}.{payload}.{signature}"),
        format!(".{payload}.{signature}"),
    ] {
        assert_eq!(signers.verify(&token), Err(Refusal::Malformed), "{token}");
    }
    let no_claims = format!("{header}..{signature}");
    assert_eq!(signers.verify(&no_claims), Err(Refusal::Signature));
    let no_signature = format!("{header}.{payload}.");
    assert_eq!(signers.verify(&no_signature), Err(Refusal::Signature));
}

#[test]
fn what_is_not_base64url_without_padding_is_refused() {
    let signers = Signers::new();
    let token = signers.p256.token(&claims());
    let parts: Vec<&str> = token.split('.').collect();
    for junk in ["=", "==", "+", "/", " ", "\n", "*", "é", "\0"] {
        for changed in 0..parts.len() {
            let mut parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
            parts[changed].push_str(junk);
            let refusal = signers.verify(&parts.join(".")).expect_err("it is refused");
            // Another payload has another signature, whatever it is.
            let expected = [Refusal::Malformed, Refusal::Signature][usize::from(changed == 1)];
            assert_eq!(refusal, expected, "{junk:?} in part {changed}");
        }
    }
    for message in ["*.*", "e30=.e30"] {
        let signature = base64(&signers.p256.sign(message.as_bytes()));
        let token = format!("{message}.{signature}");
        assert_eq!(signers.verify(&token), Err(Refusal::Malformed));
    }
}

#[test]
fn headers_and_claims_that_are_no_objects_are_refused_though_signed() {
    let signers = Signers::new();
    let good_header = signers.ed25519.header().to_string();
    let good_claims = claims().to_string();
    let deep = format!("{}1{}", "[".repeat(4000), "]".repeat(4000));
    let deep = format!("{{\"a\":{deep}}}");
    for text in [
        "",
        "null",
        "7",
        "[]",
        "\"x\"",
        "{",
        "{}x",
        "\u{feff}{}",
        &deep,
    ] {
        for (header, claims) in [(text, good_claims.as_str()), (good_header.as_str(), text)] {
            let token = signers.ed25519.token_of(header, claims);
            assert_eq!(signers.verify(&token), Err(Refusal::Malformed), "{text}");
        }
    }
    for header in [
        "{}",
        r#"{"kid":"ed25519"}"#,
        r#"{"alg":7,"kid":"ed25519"}"#,
        r#"{"alg":null,"kid":"ed25519"}"#,
        r#"{"alg":["EdDSA"],"kid":"ed25519"}"#,
        r#"{"alg":"EdDSA","kid":7}"#,
        r#"{"alg":"none","alg":"EdDSA","kid":"ed25519"}"#,
        r#"{"alg":"EdDSA","kid":"x","kid":"ed25519"}"#,
    ] {
        let token = signers.ed25519.token_of(header, &good_claims);
        assert_eq!(signers.verify(&token), Err(Refusal::Malformed), "{header}");
    }
    let twice = format!(r#"{{"iss":"https://other",{}"#, &good_claims[1..]);
    let token = signers.ed25519.token_of(&good_header, &twice);
    assert_eq!(signers.verify(&token), Err(Refusal::Malformed));
}

#[test]
fn a_token_over_the_limit_is_refused_though_signed() {
    let signers = Signers::new();
    let padded = |length: usize| {
        let claims = with(claims(), "padding", json!("x".repeat(length)));
        signers.ed25519.token(&claims)
    };
    let overhead = padded(0).len();
    let fits = padded((TOKEN_BYTES_MAX - overhead) * 3 / 4 - 3);
    assert!(fits.len() > TOKEN_BYTES_MAX - 16);
    assert_eq!(signers.verify(&fits), Ok(alice()));
    let too_long = padded((TOKEN_BYTES_MAX - overhead) * 3 / 4 + 3);
    assert_eq!(signers.verify(&too_long), Err(Refusal::TooLong));
    assert_eq!(signers.verify(&"a".repeat(1 << 24)), Err(Refusal::TooLong));
}

#[test]
fn signatures_of_other_lengths_and_forms_are_refused() {
    let signers = Signers::new();
    for signer in signers.all() {
        let message = message(&signer.header().to_string(), &claims().to_string());
        let signature = signer.sign(message.as_bytes());
        let zeros = vec![0; signature.len()];
        let longer = [&signature[..], &[0]].concat();
        let twice = [&signature[..], &signature[..]].concat();
        let shorter = signature[..signature.len() - 1].to_vec();
        for wrong in [zeros, longer, twice, shorter, vec![], vec![0xff; 4096]] {
            let token = format!("{message}.{}", base64(&wrong));
            assert_eq!(signers.verify(&token), Err(Refusal::Signature));
        }
        assert!(
            signers
                .verify(&format!("{message}.{}", base64(&signature)))
                .is_ok()
        );
    }
}

#[test]
fn an_ecdsa_signature_in_der_is_refused() {
    let signers = Signers::new();
    let message = message(&signers.p256.header().to_string(), &claims().to_string());
    let signature = signers.p256.sign(message.as_bytes());
    let integer = |number: &[u8]| [&[2, 33, 0], number].concat();
    let (r, s) = signature.split_at(32);
    let der = [&[0x30, 70][..], &integer(r), &integer(s)].concat();
    let token = format!("{message}.{}", base64(&der));
    assert_eq!(signers.verify(&token), Err(Refusal::Signature));
}

#[test]
fn a_token_of_another_issuer_is_refused() {
    let signers = Signers::new();
    for issuer in [
        Value::Null,
        json!(""),
        json!("https://id.example.com/"),
        json!("https://ID.example.com"),
        json!("https://id.example.com.evil.com"),
        json!([ISSUER]),
        json!({"iss": ISSUER}),
    ] {
        let refused = signers.verify_claim("iss", issuer.clone());
        assert_eq!(refused, Err(Refusal::Issuer), "{issuer}");
    }
}

#[test]
fn a_token_must_be_for_us_and_may_be_for_others_too() {
    let signers = Signers::new();
    for audience in [
        json!(AUDIENCE),
        json!([AUDIENCE]),
        json!(["other", AUDIENCE, 7]),
    ] {
        assert_eq!(signers.verify_claim("aud", audience), Ok(alice()));
    }
    for audience in [
        Value::Null,
        json!(""),
        json!("other"),
        json!(format!("{AUDIENCE} ")),
        json!(format!("other {AUDIENCE}")),
        json!([]),
        json!(["other"]),
        json!([[AUDIENCE]]),
        json!({AUDIENCE: true}),
        json!(7),
    ] {
        let refused = signers.verify_claim("aud", audience.clone());
        assert_eq!(refused, Err(Refusal::Audience), "{audience}");
    }
}

#[test]
fn a_token_is_accepted_until_its_expiry_and_the_leeway_have_passed() {
    let signers = Signers::new();
    let token = signers.p256.token(&claims());
    let at = |now| verify(&signers.keys, &rules(), &token, now);
    assert_eq!(at(EXPIRY + LEEWAY - 1), Ok(alice()));
    assert_eq!(at(EXPIRY + LEEWAY), Err(Refusal::Expired));
    assert_eq!(at(u64::MAX), Err(Refusal::Expired));
    let without_leeway = Rules {
        leeway_s: 0,
        ..rules()
    };
    let at = |now| verify(&signers.keys, &without_leeway, &token, now).map(|_| ());
    assert_eq!(at(EXPIRY - 1), Ok(()));
    assert_eq!(at(EXPIRY), Err(Refusal::Expired));
}

#[test]
fn a_token_must_say_when_it_expires() {
    let signers = Signers::new();
    for expiry in [
        Value::Null,
        json!("1800000300"),
        json!(-1),
        json!(-0.5),
        json!(1e300),
        json!(true),
    ] {
        let refused = signers.verify_claim("exp", expiry.clone());
        assert_eq!(refused, Err(Refusal::NoExpiry), "{expiry}");
    }
    assert_eq!(signers.verify_claim("exp", json!(0)), Err(Refusal::Expired));
    let fraction = signers.verify_claim("exp", json!(EXPIRY as f64 + 0.5));
    assert_eq!(fraction, Ok(alice()));
    let forever = signers.verify_claim("exp", json!(u64::MAX));
    assert_eq!(forever.map(|caller| caller.expires_at_unix_s), Ok(u64::MAX));
}

#[test]
fn a_token_is_not_accepted_before_its_time() {
    let signers = Signers::new();
    let from = |time: u64| signers.verify_claim("nbf", json!(time));
    assert_eq!(from(0), Ok(alice()));
    assert_eq!(from(NOW + LEEWAY), Ok(alice()));
    assert_eq!(from(NOW + LEEWAY + 1), Err(Refusal::NotYetValid));
    assert_eq!(from(u64::MAX), Err(Refusal::NotYetValid));
    for time in [json!("0"), json!(-1), json!(false)] {
        let refused = signers.verify_claim("nbf", time.clone());
        assert_eq!(refused, Err(Refusal::Malformed), "{time}");
    }
}

#[test]
fn a_caller_is_called_what_the_identity_claim_says() {
    let signers = Signers::new();
    let longest = "x".repeat(IDENTITY_BYTES_MAX);
    for id in ["a", "system:serviceaccount:prod:app", "Zoë", &longest] {
        let caller = signers
            .verify_claim("sub", json!(id))
            .expect("it is accepted");
        assert_eq!(&*caller.id, id);
    }
    for id in [
        Value::Null,
        json!(""),
        json!(7),
        json!(format!("{longest}x")),
        json!("al\nice"),
        json!("alice\0"),
        json!("\u{85}"),
        json!("\u{7f}"),
    ] {
        let refused = signers.verify_claim("sub", id.clone());
        assert_eq!(refused, Err(Refusal::Identity), "{id}");
    }
    let rules = Rules {
        identity_claim: "https://example.com/email".to_owned(),
        ..rules()
    };
    let named = with(
        claims(),
        "https://example.com/email",
        json!("alice@example.com"),
    );
    let caller = verify(&signers.keys, &rules, &signers.p256.token(&named), NOW);
    assert_eq!(
        caller.map(|caller| caller.id.to_string()).as_deref(),
        Ok("alice@example.com")
    );
    let unnamed = verify(&signers.keys, &rules, &signers.p256.token(&claims()), NOW);
    assert_eq!(unnamed, Err(Refusal::Identity));
}

#[test]
fn a_caller_may_do_what_the_scope_claim_lists_and_nothing_else() {
    let signers = Signers::new();
    let scopes_of = |list: Value| {
        let caller = signers.verify_claim("scope", list);
        caller.expect("it is accepted").scopes
    };
    let some = |scopes: &[Scope]| scopes.iter().copied().collect::<Scopes>();
    for list in [
        json!("read write admin"),
        json!("admin  write read read"),
        json!(" openid read profile write admin "),
        json!(["admin", "write", "read", "openid"]),
    ] {
        assert_eq!(scopes_of(list.clone()), Scopes::ALL, "{list}");
    }
    assert_eq!(scopes_of(json!("write")), some(&[Scope::Write]));
    assert_eq!(
        scopes_of(json!(["write", ["read"], 7])),
        some(&[Scope::Write])
    );
    for list in [
        Value::Null,
        json!(""),
        json!([]),
        json!("READ"),
        json!("cache.read"),
        json!("read,write"),
        json!("read\twrite"),
        json!(["read write"]),
        json!(7),
        json!({"read": true}),
        json!(true),
    ] {
        assert!(scopes_of(list.clone()).is_empty(), "{list}");
    }
    let rules = Rules {
        scope_claim: "roles".to_owned(),
        ..rules()
    };
    let token = signers
        .p256
        .token(&with(claims(), "roles", json!(["admin"])));
    let caller = verify(&signers.keys, &rules, &token, NOW).expect("it is accepted");
    assert_eq!(caller.scopes, some(&[Scope::Admin]));
}

#[test]
fn claims_of_the_standard_that_are_lists_but_must_not_be_are_refused() {
    let signers = Signers::new();
    for claim in ["exp", "nbf", "sub"] {
        for list in [
            json!([]),
            json!([EXPIRY, "alice"]),
            json!({"alice": EXPIRY}),
        ] {
            let refused = signers.verify_claim(claim, list.clone());
            assert!(refused.is_err(), "{claim}: {list}");
        }
    }
}

#[test]
fn claims_are_not_looked_at_before_the_signature_holds() {
    let signers = Signers::new();
    let expired = json!({"iss": "https://other", "exp": 0});
    let token = Signer::es256("p256").token(&expired);
    assert_eq!(signers.verify(&token), Err(Refusal::Signature));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_is_accepted_and_none_panics(token in ".{0,200}", now in any::<u64>()) {
        let signer = Signer::eddsa("a");
        prop_assert!(verify(&keys_of(&[&signer]), &rules(), &token, now).is_err());
    }

    #[test]
    fn no_header_and_claims_panic_though_signed(
        header in "\\{\"alg\":\"EdDSA\"(,\"(kid|typ|crit|jwk|b64|x5c)\":(\"a\"|null|\\[\\]|7)){0,3}\\}",
        claims in "\\{(\"(iss|aud|exp|nbf|sub|scope)\":(\"[a-z ]{0,5}\"|-?[0-9]{1,25}|[0-9]e[0-9]{1,3}|\\[\\]|null),?){0,6}\\}",
        now in any::<u64>(),
    ) {
        let signer = Signer::eddsa("a");
        let token = signer.token_of(&header, &claims);
        prop_assert!(verify(&keys_of(&[&signer]), &rules(), &token, now).is_err());
    }

    #[test]
    fn a_token_with_any_bytes_changed_is_refused(
        which in 0_usize..3,
        at in any::<prop::sample::Index>(),
        byte in any::<char>(),
    ) {
        let signers = Signers::new();
        let token = signers.all()[which].token(&claims());
        let mut changed: Vec<char> = token.chars().collect();
        let at = at.index(changed.len());
        changed[at] = byte;
        let changed: String = changed.into_iter().collect();
        prop_assume!(changed != token);
        prop_assert!(signers.verify(&changed).is_err());
    }
}
