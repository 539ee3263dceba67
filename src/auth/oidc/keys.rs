//! The public keys of an issuer, read from a JSON Web Key Set (RFC 7517).
//!
//! A key serves exactly one algorithm, which its type decides: RSA RS256, P-256 ES256,
//! Ed25519 EdDSA. So no token can choose how a key is used. Keys that are of no use here
//! (for encryption, symmetric, of other types or curves, too small, malformed) are
//! passed over, since a set may hold keys for others. What comes out is bounded, whoever
//! wrote the document: so many keys, and names of such a length.
//!
//! Sets are equal when their keys are, in whatever order they were listed.

use std::fmt;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, Validation};
use serde::Deserialize;

/// The largest key set that is read.
pub const DOCUMENT_BYTES_MAX: u64 = 256 << 10;
/// How many keys a set may have that are of use.
pub const KEYS_MAX: usize = 64;
/// The longest name of a key.
pub const KEY_ID_BYTES_MAX: usize = 256;

const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
const RSA_EXPONENT_BYTES_MAX: usize = 4;
const P256_COORDINATE_BYTES: usize = 32;
const ED25519_BYTES: usize = 32;

/// How tokens may be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    const ALL: [Self; 3] = [Self::Rs256, Self::Es256, Self::EdDsa];

    /// Its name in tokens and keys (RFC 7518, RFC 8037).
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The algorithm of that name, if it is one that is accepted.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    fn of_crate(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

/// The keys of an issuer at one time.
#[derive(Clone, Default)]
pub struct KeySet {
    /// In the order of what they are.
    keys: Vec<Key>,
    passed_over: usize,
}

impl KeySet {
    /// Reads a key set. Keys of no use are passed over.
    pub fn parse(body: &[u8]) -> Result<Self, KeysFault> {
        let document: Document = serde_json::from_slice(body).map_err(|_| KeysFault::Document)?;
        let listed = document.keys.len();
        let mut keys: Vec<Key> = document.keys.into_iter().filter_map(Key::of).collect();
        let passed_over = listed - keys.len();
        keys.sort_unstable_by(|a, b| a.public.cmp(&b.public));
        keys.dedup_by(|a, b| a.public == b.public);
        if keys.len() > KEYS_MAX {
            return Err(KeysFault::TooMany(keys.len()));
        }
        Ok(Self { keys, passed_over })
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many keys of the document are of no use here.
    pub fn passed_over(&self) -> usize {
        self.passed_over
    }

    /// Whether a key has this name.
    pub fn knows(&self, id: &str) -> bool {
        self.keys
            .iter()
            .any(|key| key.public.id.as_deref() == Some(id))
    }

    /// The keys of an algorithm: those of that name, or all when none is named.
    pub(super) fn of(&self, algorithm: Algorithm, id: Option<&str>) -> impl Iterator<Item = &Key> {
        self.keys.iter().filter(move |key| {
            key.public.algorithm == algorithm && (id.is_none() || key.public.id.as_deref() == id)
        })
    }
}

impl PartialEq for KeySet {
    fn eq(&self, other: &Self) -> bool {
        let theirs = other.keys.iter().map(|key| &key.public);
        self.keys.iter().map(|key| &key.public).eq(theirs)
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self
            .keys
            .iter()
            .map(|key| (&key.public.id, key.public.algorithm));
        f.debug_list().entries(names).finish()
    }
}

/// What is wrong with a key set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeysFault {
    /// It is not JSON with a list of keys.
    Document,
    /// It has this many keys.
    TooMany(usize),
}

impl fmt::Display for KeysFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Document => f.write_str("not a key set"),
            Self::TooMany(count) => write!(f, "{count} keys are more than {KEYS_MAX}"),
        }
    }
}

/// A key, and all that signatures are checked with.
#[derive(Clone)]
pub(super) struct Key {
    public: Public,
    pub(super) decoding: DecodingKey,
    pub(super) validation: Validation,
}

/// What makes a key this key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Public {
    algorithm: Algorithm,
    id: Option<String>,
    material: Material,
}

/// The numbers of a key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// The point, uncompressed.
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

/// The members of a key that are looked at (RFC 7517, section 4; RFC 7518, section 6).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Key {
    /// Reads a key; none when it is of no use here.
    fn of(listed: serde_json::Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(listed).ok()?;
        if !jwk.is_for_signatures() {
            return None;
        }
        let (algorithm, material) = jwk.material()?;
        if jwk.alg.is_some_and(|named| named != algorithm.name()) {
            return None;
        }
        let public = Public {
            algorithm,
            id: jwk.kid,
            material,
        };
        Some(Self {
            decoding: public.material.decoding_key(),
            validation: signature_only(algorithm),
            public,
        })
    }
}

impl Jwk {
    fn is_for_signatures(&self) -> bool {
        let for_use = self
            .purpose
            .as_deref()
            .is_none_or(|purpose| purpose == "sig");
        let for_operation = |ops: &Vec<String>| ops.iter().any(|op| op == "verify");
        for_use
            && self.key_ops.as_ref().is_none_or(for_operation)
            && self
                .kid
                .as_ref()
                .is_none_or(|id| id.len() <= KEY_ID_BYTES_MAX)
    }

    fn material(&self) -> Option<(Algorithm, Material)> {
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => Some((Algorithm::Rs256, self.rsa()?)),
            ("EC", Some("P-256")) => Some((Algorithm::Es256, self.p256()?)),
            ("OKP", Some("Ed25519")) => Some((Algorithm::EdDsa, self.ed25519()?)),
            _ => None,
        }
    }

    fn rsa(&self) -> Option<Material> {
        let n = without_leading_zeros(decoded(self.n.as_ref())?);
        let e = without_leading_zeros(decoded(self.e.as_ref())?);
        let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
        let odd = |number: &[u8]| number.last().is_some_and(|last| last & 1 == 1);
        let exponent_fits = e.len() <= RSA_EXPONENT_BYTES_MAX && odd(&e) && e != [1];
        (RSA_BITS.contains(&bits) && odd(&n) && exponent_fits).then_some(Material::Rsa { n, e })
    }

    fn p256(&self) -> Option<Material> {
        let x = decoded(self.x.as_ref())?;
        let y = decoded(self.y.as_ref())?;
        if x.len() != P256_COORDINATE_BYTES || y.len() != P256_COORDINATE_BYTES {
            return None;
        }
        let point = [&[4], &x[..], &y[..]].concat();
        let parsed = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point).parse();
        parsed.is_ok().then_some(Material::P256(point))
    }

    fn ed25519(&self) -> Option<Material> {
        let x = decoded(self.x.as_ref())?;
        let parsed = UnparsedPublicKey::new(&ED25519, &x).parse();
        (x.len() == ED25519_BYTES && parsed.is_ok()).then_some(Material::Ed25519(x))
    }
}

impl Material {
    fn decoding_key(&self) -> DecodingKey {
        match self {
            Self::Rsa { n, e } => DecodingKey::from_rsa_raw_components(n, e),
            Self::P256(point) => DecodingKey::from_ec_der(point),
            Self::Ed25519(x) => DecodingKey::from_ed_der(x),
        }
    }
}

/// Checks of the algorithm, the header and the signature, and of no claim: those are ours.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm.of_crate());
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

fn decoded(text: Option<&String>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text?).ok()
}

/// Some issuers write numbers as signed ones, with a zero byte in front.
fn without_leading_zeros(mut number: Vec<u8>) -> Vec<u8> {
    let zeros = number.iter().take_while(|&&byte| byte == 0).count();
    number.drain(..zeros);
    number
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    };
    use serde_json::{Value, json};

    use super::*;

    fn base64(bytes: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// A modulus of so many bits: nothing but its size and oddness is looked at.
    fn rsa(id: &str, bits: usize) -> Value {
        let mut n = vec![0xff; bits.div_ceil(8)];
        n[0] = 0xff >> (n.len() * 8 - bits);
        json!({"kty": "RSA", "kid": id, "n": base64(&n), "e": "AQAB"})
    }

    fn p256(id: &str) -> Value {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        json!({"kty": "EC", "crv": "P-256", "kid": id, "x": base64(x), "y": base64(y)})
    }

    fn ed25519(id: &str) -> Value {
        let pair = Ed25519KeyPair::generate().expect("a key");
        json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": base64(pair.public_key().as_ref())})
    }

    fn with(mut key: Value, field: &str, value: Value) -> Value {
        key[field] = value;
        key
    }

    fn set(keys: &[Value]) -> KeySet {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).expect("a set")
    }

    fn is_of_use(key: Value) -> bool {
        set(&[key]).len() == 1
    }

    #[test]
    fn keys_serve_the_algorithm_of_their_type_and_no_other() {
        let keys = set(&[rsa("r", 2048), p256("p"), ed25519("e")]);
        assert_eq!(keys.len(), 3);
        assert_eq!(keys.passed_over(), 0);
        for (id, algorithm) in [
            ("r", Algorithm::Rs256),
            ("p", Algorithm::Es256),
            ("e", Algorithm::EdDsa),
        ] {
            assert!(keys.knows(id));
            for other in Algorithm::ALL {
                assert_eq!(
                    keys.of(other, Some(id)).count(),
                    usize::from(other == algorithm)
                );
            }
            assert_eq!(keys.of(algorithm, None).count(), 1);
        }
        assert!(!keys.knows("x"));
    }

    #[test]
    fn keys_may_tell_their_use_and_algorithm() {
        let told = |key: Value, algorithm: &str| {
            let key = with(key, "use", json!("sig"));
            let key = with(key, "key_ops", json!(["verify"]));
            with(key, "alg", json!(algorithm))
        };
        assert!(is_of_use(told(rsa("r", 2048), "RS256")));
        assert!(is_of_use(told(p256("p"), "ES256")));
        assert!(is_of_use(told(ed25519("e"), "EdDSA")));
    }

    #[test]
    fn keys_for_other_uses_and_algorithms_are_passed_over() {
        for (field, value) in [
            ("use", json!("enc")),
            ("use", json!("")),
            ("use", json!(1)),
            ("key_ops", json!(["encrypt"])),
            ("key_ops", json!([])),
            ("alg", json!("RS512")),
            ("alg", json!("PS256")),
            ("alg", json!("ES256")),
            ("alg", json!("HS256")),
            ("alg", json!("none")),
            ("kty", json!("oct")),
            ("kty", json!("rsa")),
            ("kty", json!(null)),
            ("kid", json!(7)),
            ("kid", json!("x".repeat(KEY_ID_BYTES_MAX + 1))),
        ] {
            let key = with(rsa("r", 2048), field, value.clone());
            assert!(!is_of_use(key), "{field}: {value}");
        }
        let symmetric = json!({"kty": "oct", "kid": "o", "alg": "HS256", "k": base64(&[7; 32])});
        assert!(!is_of_use(symmetric));
    }

    #[test]
    fn rsa_keys_have_2048_to_8192_bits_and_a_small_odd_exponent() {
        for bits in [2048, 2049, 3072, 4096, 8192] {
            assert!(is_of_use(rsa("r", bits)), "{bits}");
        }
        for bits in [8, 512, 1024, 2047, 8193, 16384] {
            assert!(!is_of_use(rsa("r", bits)), "{bits}");
        }
        for e in [&[][..], &[0], &[1], &[2], &[1, 0, 0], &[1, 0, 0, 0, 1]] {
            let key = with(rsa("r", 2048), "e", json!(base64(e)));
            assert!(!is_of_use(key), "{e:?}");
        }
        let even = with(rsa("r", 2048), "n", json!(base64(&[0xfe; 256])));
        assert!(!is_of_use(even));
        let zeros_in_front = [&[0], &[0xff; 255][..]].concat();
        let small = with(rsa("r", 2048), "n", json!(base64(&zeros_in_front)));
        assert!(!is_of_use(small));
        let signed = [&[0], &[0xff; 256][..]].concat();
        let signed = with(rsa("r", 2048), "n", json!(base64(&signed)));
        assert!(is_of_use(signed));
    }

    #[test]
    fn points_that_are_none_are_passed_over() {
        for (field, value) in [
            ("x", json!(base64(&[7; 32]))),
            ("x", json!(base64(&[7; 31]))),
            ("x", json!("")),
            ("x", json!("AA==")),
            ("x", json!("*")),
            ("y", json!(null)),
            ("crv", json!("P-384")),
            ("crv", json!("secp256k1")),
            ("crv", json!(null)),
        ] {
            let key = with(p256("p"), field, value.clone());
            assert!(!is_of_use(key), "{field}: {value}");
        }
        for (field, value) in [
            ("x", json!(base64(&[7; 31]))),
            ("x", json!(base64(&[7; 44]))),
            ("x", json!(null)),
            ("crv", json!("X25519")),
            ("crv", json!("Ed448")),
        ] {
            let key = with(ed25519("e"), field, value.clone());
            assert!(!is_of_use(key), "{field}: {value}");
        }
    }

    #[test]
    fn keys_of_no_use_do_not_spoil_the_others() {
        let keys = set(&[
            json!(null),
            json!([]),
            json!({}),
            json!({"kty": "XYZ"}),
            ed25519("e"),
        ]);
        assert_eq!((keys.len(), keys.passed_over()), (1, 4));
        assert!(set(&[]).is_empty());
    }

    #[test]
    fn what_is_no_key_set_is_refused() {
        let deep = "[".repeat(100_000);
        let nested = format!("{{\"keys\":{deep}");
        for body in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"keys":{}}"#,
            r#"{"keys":[]} x"#,
            &deep,
            &nested,
        ] {
            assert_eq!(KeySet::parse(body.as_bytes()), Err(KeysFault::Document));
        }
    }

    #[test]
    fn more_keys_than_the_limit_are_refused_whole() {
        let keys = |count: usize| {
            let keys: Vec<Value> = (0..count).map(|id| rsa(&id.to_string(), 2048)).collect();
            KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
        };
        assert!(keys(KEYS_MAX).is_ok());
        assert_eq!(keys(KEYS_MAX + 1), Err(KeysFault::TooMany(KEYS_MAX + 1)));
    }

    #[test]
    fn sets_are_equal_when_their_keys_are_in_whatever_order() {
        let (a, b) = (p256("a"), ed25519("b"));
        let keys = set(&[a.clone(), b.clone()]);
        assert_eq!(keys, set(&[b.clone(), a.clone(), b.clone()]));
        assert_eq!(keys, set(&[b.clone(), json!({}), a.clone()]));
        assert_ne!(keys, set(std::slice::from_ref(&a)));
        assert_ne!(keys, set(&[with(a, "kid", json!("c")), b.clone()]));
        assert_ne!(keys, set(&[p256("a"), b]));
    }
}
