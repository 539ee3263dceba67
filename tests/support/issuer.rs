//! An OpenID Connect issuer on a loopback address: it serves its discovery document and
//! key set over https, signs tokens with whatever header and claims a test chooses, and
//! misbehaves on demand.

#![allow(
    dead_code,
    clippy::expect_used,
    reason = "each test uses its part of it, and a failure here is a failed test"
)]

#[path = "certificates.rs"]
mod certificates;
#[path = "opened.rs"]
mod opened;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use certificates::Authority;
use opened::opened;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

/// How long the issuer waits for what should come at once.
const GUARD: Duration = Duration::from_secs(20);

/// Whom the issuer's tokens are for, unless a test says otherwise.
pub const AUDIENCE: &str = "hypercache-test";

/// Made once: it takes a while in a debug build.
static RSA: LazyLock<RsaKeyPair> =
    LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).expect("an RSA key"));

/// A key that signs tokens.
pub struct Signer {
    id: Option<String>,
    pair: Pair,
}

enum Pair {
    Rsa(&'static RsaKeyPair),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    /// The RSA key of this process, under that name.
    pub fn rs256(id: &str) -> Self {
        Self::new(id, Pair::Rsa(&RSA))
    }

    /// A new P-256 key.
    pub fn es256(id: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        Self::new(id, Pair::P256(pair.expect("a P-256 key")))
    }

    /// A new Ed25519 key.
    pub fn eddsa(id: &str) -> Self {
        Self::new(
            id,
            Pair::Ed25519(Ed25519KeyPair::generate().expect("an Ed25519 key")),
        )
    }

    fn new(id: &str, pair: Pair) -> Self {
        let id = Some(id.to_owned());
        Self { id, pair }
    }

    /// The same key without a name, in the key set as in tokens.
    pub fn nameless(self) -> Self {
        Self { id: None, ..self }
    }

    pub fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::P256(_) => "ES256",
            Pair::Ed25519(_) => "EdDSA",
        }
    }

    /// Its entry in a key set.
    pub fn jwk(&self) -> Value {
        let mut jwk = match &self.pair {
            Pair::Rsa(pair) => {
                let public = pair.public_key();
                let n = public.modulus().big_endian_without_leading_zero();
                let e = public.exponent().big_endian_without_leading_zero();
                json!({"kty": "RSA", "n": base64(n), "e": base64(e)})
            }
            Pair::P256(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "x": base64(x), "y": base64(y)})
            }
            Pair::Ed25519(pair) => {
                let x = base64(pair.public_key().as_ref());
                json!({"kty": "OKP", "crv": "Ed25519", "x": x})
            }
        };
        jwk["use"] = json!("sig");
        if let Some(id) = &self.id {
            jwk["kid"] = json!(id);
        }
        jwk
    }

    /// The public key in the forms an attacker may take for a shared secret.
    pub fn public_forms(&self) -> Vec<Vec<u8>> {
        let jwk = self.jwk();
        let members = ["n", "x", "y"].map(|member| jwk[member].as_str());
        let mut forms: Vec<Vec<u8>> = members
            .into_iter()
            .flatten()
            .flat_map(|text| {
                let bytes = URL_SAFE_NO_PAD.decode(text).expect("base64");
                [bytes, text.as_bytes().to_vec()]
            })
            .collect();
        forms.push(jwk.to_string().into_bytes());
        forms.push(match &self.pair {
            Pair::Rsa(pair) => pair.public_key().as_ref().to_vec(),
            Pair::P256(pair) => pair.public_key().as_ref().to_vec(),
            Pair::Ed25519(pair) => pair.public_key().as_ref().to_vec(),
        });
        forms.push(Vec::new());
        forms
    }

    /// The header its tokens have.
    pub fn header(&self) -> Value {
        let mut header = json!({"alg": self.algorithm(), "typ": "JWT"});
        if let Some(id) = &self.id {
            header["kid"] = json!(id);
        }
        header
    }

    /// A token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        self.token_with(&self.header(), claims)
    }

    /// A token with any header, rightly signed whatever the header says.
    pub fn token_with(&self, header: &Value, claims: &Value) -> String {
        self.token_of(&header.to_string(), &claims.to_string())
    }

    /// A token of any two texts.
    pub fn token_of(&self, header: &str, claims: &str) -> String {
        let message = message(header, claims);
        let signature = self.sign(message.as_bytes());
        format!("{message}.{}", base64(&signature))
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let rng = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &rng, message, &mut signature)
                    .expect("a signature");
                signature
            }
            Pair::P256(pair) => pair
                .sign(&rng, message)
                .expect("a signature")
                .as_ref()
                .to_vec(),
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }
}

/// The part of a token that is signed.
pub fn message(header: &str, claims: &str) -> String {
    format!(
        "{}.{}",
        base64(header.as_bytes()),
        base64(claims.as_bytes())
    )
}

/// A token under a shared secret, by HMAC with SHA-256, whatever its header says.
pub fn token_under_secret(secret: &[u8], header: &Value, claims: &Value) -> String {
    let message = message(&header.to_string(), &claims.to_string());
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let signature = hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", base64(signature.as_ref()))
}

pub fn base64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A key set of these keys.
pub fn key_set(signers: &[&Signer]) -> Value {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    json!({ "keys": keys })
}

/// The wall clock.
pub fn now_unix_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("a time after 1970").as_secs()
}

/// How the issuer answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    Well,
    /// It accepts connections, and nothing more comes.
    Silent,
    /// It takes requests and does not answer until it is in another mood.
    Hanging,
    /// It answers with this status.
    Status(u16),
    /// It sends the caller to where it answers as it should.
    Redirecting,
    /// It answers with what is not HTTP.
    Babbling,
    /// It answers with this instead of either document.
    Lying(String),
    /// Its answers end in the middle.
    CutOff,
    /// Its answers do not end.
    Endless,
    /// The heads of its answers do not end.
    EndlessHead,
}

/// What it has been asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub discovery: u64,
    pub keys: u64,
    /// Bytes of answers without an end that were sent.
    pub endless_bytes: u64,
}

/// A running issuer; it ends when dropped.
pub struct Issuer {
    pub url: String,
    /// The certificate of the authority that vouches for it, in PEM.
    pub ca_pem: String,
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    tls: Option<Arc<ServerConfig>>,
}

struct State {
    mood: Mood,
    discovery: Value,
    keys: Value,
    asked: Asked,
    ended: bool,
}

impl Issuer {
    /// Starts one over https, with these keys.
    pub fn start(signers: &[&Signer]) -> Self {
        Self::with_path("", true, signers)
    }

    /// Starts one that speaks in the clear.
    pub fn start_plain(signers: &[&Signer]) -> Self {
        Self::with_path("", false, signers)
    }

    /// Starts one whose URL has a path.
    pub fn with_path(path: &str, https: bool, signers: &[&Signer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (tls, ca_pem) = server_config();
        let scheme = if https { "https" } else { "http" };
        let url = format!("{scheme}://{address}{path}");
        let base = url.trim_end_matches('/');
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                mood: Mood::Well,
                discovery: json!({
                    "issuer": url,
                    "jwks_uri": format!("{base}/keys"),
                    "authorization_endpoint": format!("{base}/authorize"),
                    "response_types_supported": ["code"],
                    "id_token_signing_alg_values_supported": ["RS256", "ES256", "EdDSA"],
                }),
                keys: key_set(signers),
                asked: Asked::default(),
                ended: false,
            }),
            changed: Condvar::new(),
            tls: https.then_some(tls),
        });
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Self {
            url,
            ca_pem,
            address,
            shared,
            thread: Some(thread),
        }
    }

    /// Signs with other keys from now on.
    pub fn rotate(&self, signers: &[&Signer]) {
        self.serve_keys(key_set(signers));
    }

    /// Serves any document for its keys.
    pub fn serve_keys(&self, keys: Value) {
        self.change(|state| state.keys = keys);
    }

    /// Serves any discovery document.
    pub fn serve_discovery(&self, discovery: Value) {
        self.change(|state| state.discovery = discovery);
    }

    pub fn set_mood(&self, mood: Mood) {
        self.change(|state| state.mood = mood);
    }

    pub fn asked(&self) -> Asked {
        self.shared.state().asked
    }

    /// Waits until what it has been asked is so.
    pub fn wait_until(&self, so: impl Fn(&Asked) -> bool) -> Asked {
        let state = self.shared.state();
        let (state, waited) = self
            .shared
            .changed
            .wait_timeout_while(state, GUARD, |state| !so(&state.asked))
            .expect("no thread panics");
        assert!(
            !waited.timed_out(),
            "the issuer was asked {:?}",
            state.asked
        );
        state.asked
    }

    /// Claims that are accepted now for everything.
    pub fn claims(&self) -> Value {
        let now = now_unix_s();
        json!({
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "alice",
            "iat": now,
            "exp": now + 600,
            "scope": "openid read write admin",
        })
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state());
        self.shared.changed.notify_all();
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.change(|state| state.ended = true);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics")
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.state().ended {
                return;
            }
            let stream = stream.expect("a connection");
            let shared = Arc::clone(self);
            std::thread::spawn(move || shared.serve(stream));
        }
    }

    /// One connection; it ends when the caller goes or after one answer.
    fn serve(&self, stream: TcpStream) {
        self.wait_while_in(&Mood::Silent);
        self.answer(opened(stream, self.tls.as_ref(), GUARD));
    }

    /// Answers one request. What the caller does not want to read is not our concern.
    fn answer(&self, mut stream: impl Read + Write) {
        let Some(path) = requested(&mut stream) else {
            return;
        };
        let moved = path.starts_with("/moved/");
        let body = self.document(&path);
        self.changed.notify_all();
        self.wait_while_in(&Mood::Hanging);
        let mood = self.state().mood.clone();
        let written = match (mood, body) {
            (Mood::Hanging | Mood::Silent, _) => Ok(()),
            (Mood::Status(status), _) => write_answer(&mut stream, &status.to_string(), "{}"),
            (Mood::Redirecting, _) if !moved => {
                let status = format!("302 Found\r\nLocation: /moved{path}");
                write_answer(&mut stream, &status, "")
            }
            (Mood::Babbling, _) => stream.write_all(b"\x00\xff\r\nI am a teapot\r\n\r\n"),
            (Mood::Lying(body), _) => write_answer(&mut stream, "200 OK", &body),
            (Mood::CutOff, _) => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"),
            (Mood::Endless, _) => self.write_without_end(
                &mut stream,
                b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n",
            ),
            (Mood::EndlessHead, _) => {
                self.write_without_end(&mut stream, b"HTTP/1.1 200 OK\r\nX-Long: ")
            }
            (Mood::Well | Mood::Redirecting, Some(body)) => {
                write_answer(&mut stream, "200 OK", &body)
            }
            (Mood::Well | Mood::Redirecting, None) => {
                write_answer(&mut stream, "404 Not Found", "{}")
            }
        };
        let _ = written.and_then(|()| stream.flush());
    }

    /// What there is under a path; counted as asked for.
    fn document(&self, path: &str) -> Option<String> {
        let mut state = self.state();
        if path.ends_with("/.well-known/openid-configuration") {
            state.asked.discovery += 1;
            Some(state.discovery.to_string())
        } else if path.ends_with("/keys") {
            state.asked.keys += 1;
            Some(state.keys.to_string())
        } else {
            None
        }
    }

    fn write_without_end(&self, stream: &mut impl Write, head: &[u8]) -> std::io::Result<()> {
        stream.write_all(head)?;
        loop {
            stream.write_all(&[b' '; 4096])?;
            self.state().asked.endless_bytes += 4096;
        }
    }

    fn wait_while_in(&self, mood: &Mood) {
        let state = self.state();
        let waiting = |state: &mut State| state.mood == *mood && !state.ended;
        drop(self.changed.wait_while(state, waiting));
    }
}

/// Reads a request's head; its path.
fn requested(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if head.len() > 16 << 10 || stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    head.split(' ').nth(1).map(str::to_owned)
}

fn write_answer(stream: &mut impl Write, status: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

/// A certificate for 127.0.0.1 and the authority that vouches for it, in PEM.
fn server_config() -> (Arc<ServerConfig>, String) {
    let authority = Authority::new("an authority");
    let server = authority.server(&["127.0.0.1", "localhost"]);
    let key = PrivateKeyDer::from_pem_slice(server.key.as_bytes()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![server.der()], key)
        .expect("a certificate and its key");
    (Arc::new(config), authority.pem())
}
