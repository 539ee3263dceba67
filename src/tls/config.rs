//! From the bytes of PEM files to configurations of TLS, and what certificates say.
//!
//! Pure but for randomness: ticket keys are drawn when a configuration is made. So a new
//! one takes no tickets of an older one. An error says what is wrong with the bytes; the
//! caller knows which file and setting they came from.
//!
//! Everything speaks TLS 1.2 and 1.3 and, of application protocols, `http/1.1`.
//!
//! **What is asked of a certificate** (by webpki, RFC 5280): it is an X.509 version 3
//! certificate, within its validity, that leads to a certificate of the CA file, which is
//! trusted whatever it says of itself. Where it, or one between, has an *extended key
//! usage*, that must name `clientAuth` for a client's and `serverAuth` for a server's
//! (a node's own, shown to its peers, thus both); `anyExtendedKeyUsage` does not do.
//! Without the extension it may be used for both. One that is marked as a CA is no
//! client's or server's own. A server's name or address must be among its subject's
//! alternative names; the common name does not count for that. Revocation is not checked.
//!
//! **What a client's chain may cost.** A stranger may show any certificates, and webpki
//! would check up to a hundred signatures to find a way through them. So at most
//! [`CHAIN_MAX`] are looked at, and of several with the same subject the first only: then
//! there is one way at most, and each certificate of it is held against the CAs that bear
//! the name of its issuer.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, InconsistentKeys,
    OtherError, RootCertStore, ServerConfig, SignatureScheme, SupportedProtocolVersion,
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The versions spoken.
static VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// The most certificates that a client may show: its own, and six between that and a CA,
/// which is as long as webpki follows a chain, and the CA's.
const CHAIN_MAX: usize = 8;

/// The only application protocol.
const ALPN: &[u8] = b"http/1.1";

/// What is wrong with some PEM bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// They are no PEM.
    Malformed(String),
    /// There is no certificate.
    NoCertificate,
    /// One of the certificates, counted from 1, is none.
    BadCertificate(usize, String),
    /// There is no private key.
    NoKey,
    /// The private key is encrypted.
    EncryptedKey,
    /// The private key cannot be used.
    BadKey(String),
    /// The private key is not that of the first certificate.
    KeyMismatch,
    /// Something else.
    Other(String),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => write!(f, "this is not PEM: {why}"),
            Self::NoCertificate => f.write_str("there is no certificate in it"),
            Self::BadCertificate(number, why) => {
                write!(f, "certificate {number} in it cannot be used: {why}")
            }
            Self::NoKey => f.write_str("there is no private key in it"),
            Self::EncryptedKey => f.write_str("the private key in it is encrypted"),
            Self::BadKey(why) => write!(f, "the private key in it cannot be used: {why}"),
            Self::KeyMismatch => {
                f.write_str("the private key is not the one of the first certificate")
            }
            Self::Other(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ConfigError {}

impl From<rustls::Error> for ConfigError {
    fn from(error: rustls::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Who shows none is refused.
    Require,
    /// Who shows none is somebody unknown. One that is shown must be good.
    Request,
}

/// How long certificates are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// When the first of the chain expires, in seconds of Unix time.
    pub not_after: i64,
    /// When the last of the chain becomes valid.
    pub not_before: i64,
}

impl Validity {
    /// Whether all of the chain are good at that time.
    pub fn contains(&self, unix_s: i64) -> bool {
        (self.not_before..=self.not_after).contains(&unix_s)
    }
}

/// What a TLS listener needs.
#[derive(Clone)]
pub struct ServerTls {
    /// For rustls.
    pub config: Arc<ServerConfig>,
    /// Who checks clients' certificates, where they are asked for.
    pub clients: Option<ClientVerifier>,
    /// How long the listener's own certificates are good.
    pub validity: Validity,
}

/// What connecting under TLS needs.
#[derive(Clone)]
pub struct ClientTls {
    /// For rustls.
    pub config: Arc<ClientConfig>,
    /// How long the own certificates are good, if there are any.
    pub validity: Option<Validity>,
}

/// A listener's configuration: its certificate chain, its private key, and the CAs whose
/// clients are known. Expired certificates are taken; [`ServerTls::validity`] tells.
///
/// # Errors
///
/// See [`ConfigError`].
pub fn server_config(
    cert_pem: &[u8],
    key_pem: &[u8],
    client_ca_pem: Option<&[u8]>,
    client_auth: ClientAuth,
) -> Result<ServerTls, ConfigError> {
    let (key, validity) = certified_key(cert_pem, key_pem)?;
    let clients = client_ca_pem
        .map(|ca_pem| ClientVerifier::new(ca_pem, client_auth))
        .transpose()?;
    let builder =
        ServerConfig::builder_with_provider(provider()).with_protocol_versions(VERSIONS)?;
    let builder = match &clients {
        Some(clients) => builder.with_client_cert_verifier(clients.verifier.clone()),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Sessions live in tickets that clients keep: the cache for others is behind a lock.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(ServerTls {
        config: Arc::new(config),
        clients,
        validity,
    })
}

/// A client's configuration: the CAs whose servers it trusts, and its own certificate
/// chain and private key if it has to show one.
///
/// Sessions are not resumed: what connects so keeps its connections, and each new one
/// verifies the server anew.
///
/// # Errors
///
/// See [`ConfigError`].
pub fn client_config(
    ca_pem: &[u8],
    cert_and_key_pem: Option<(&[u8], &[u8])>,
) -> Result<ClientTls, ConfigError> {
    let provider = provider();
    let verifier = WebPkiServerVerifier::builder_with_provider(
        Arc::new(roots(ca_pem)?),
        Arc::clone(&provider),
    )
    .build()
    .map_err(without_roots)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(VERSIONS)?
        .with_webpki_verifier(verifier);
    let (mut config, validity) = match cert_and_key_pem {
        None => (builder.with_no_client_auth(), None),
        Some((cert_pem, key_pem)) => {
            let (key, validity) = certified_key(cert_pem, key_pem)?;
            let resolver = Arc::new(SingleCertAndKey::from(key));
            (builder.with_client_cert_resolver(resolver), Some(validity))
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(ClientTls {
        config: Arc::new(config),
        validity,
    })
}

/// Checks clients' certificates, during a handshake and again later: a connection that
/// was made when other CAs were trusted can so be refused.
#[derive(Clone)]
pub struct ClientVerifier {
    verifier: Arc<BoundedVerifier>,
}

impl ClientVerifier {
    /// Trusts the CAs in `ca_pem`.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn new(ca_pem: &[u8], client_auth: ClientAuth) -> Result<Self, ConfigError> {
        let roots = Arc::new(roots(ca_pem)?);
        let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
        let builder = match client_auth {
            ClientAuth::Require => builder,
            ClientAuth::Request => builder.allow_unauthenticated(),
        };
        let verifier = builder.build().map_err(without_roots)?;
        Ok(Self {
            verifier: Arc::new(BoundedVerifier(verifier)),
        })
    }

    /// Whether this is that same verifier, not only one that was made alike.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.verifier, &other.verifier)
    }

    /// Whether a chain that a client has shown, its own certificate first, is good at
    /// that time.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), rustls::Error> {
        let (own, others) = chain
            .split_first()
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verifier.verify_client_cert(own, others, now)?;
        Ok(())
    }
}

/// Looks at no more of a chain than a few signatures are enough for; see the module.
#[derive(Debug)]
struct BoundedVerifier(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for BoundedVerifier {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if others.len() >= CHAIN_MAX {
            return Err(CertificateError::Other(OtherError(Arc::new(ChainTooLong))).into());
        }
        let others = first_of_each_subject(others)?;
        self.0.verify_client_cert(own, &others, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, own, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, own, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Why a chain is not looked at.
#[derive(Debug)]
struct ChainTooLong;

impl fmt::Display for ChainTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the client shows more than {CHAIN_MAX} certificates")
    }
}

impl std::error::Error for ChainTooLong {}

/// The certificates whose subject none before them has.
fn first_of_each_subject<'a>(
    chain: &'a [CertificateDer<'_>],
) -> Result<Vec<CertificateDer<'a>>, rustls::Error> {
    let mut subjects: Vec<Vec<u8>> = Vec::with_capacity(chain.len());
    let mut firsts = Vec::with_capacity(chain.len());
    for der in chain {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| CertificateError::BadEncoding)?;
        let subject = certificate.subject().as_raw();
        if !subjects.iter().any(|earlier| earlier == subject) {
            subjects.push(subject.to_vec());
            firsts.push(CertificateDer::from(&der[..]));
        }
    }
    Ok(firsts)
}

/// When the first of the certificates that a peer has shown expires, in seconds of Unix
/// time; each of them counts, whether it was needed or not. Nothing when there is none,
/// or one that cannot be read.
pub fn chain_end(chain: &[CertificateDer<'_>]) -> Option<i64> {
    match validity(chain) {
        Ok(whole) if !chain.is_empty() => Some(whole.not_after),
        _ => None,
    }
}

/// The common name of a certificate's subject, if it has exactly one that is text
/// without control characters.
pub fn subject_cn(cert_der: &[u8]) -> Option<String> {
    let (rest, certificate) = X509Certificate::from_der(cert_der).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else {
        return None;
    };
    let name = name.as_str().ok()?;
    let is_plain = rest.is_empty() && !name.is_empty() && !name.chars().any(char::is_control);
    is_plain.then(|| name.to_owned())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn without_roots(error: VerifierBuilderError) -> ConfigError {
    ConfigError::Other(error.to_string())
}

/// The certificates in some PEM bytes: at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(ConfigError::NoCertificate),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(ConfigError::Malformed(error.to_string())),
    }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, ConfigError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound if contains(pem, b"ENCRYPTED PRIVATE KEY") => {
            ConfigError::EncryptedKey
        }
        pem::Error::NoItemsFound => ConfigError::NoKey,
        // Not what the parser says, which may quote the key.
        _ => ConfigError::Malformed("a section is damaged".into()),
    })
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    memchr::memmem::find(bytes, text).is_some()
}

/// A chain with its private key, and how long it is good.
fn certified_key(cert_pem: &[u8], key_pem: &[u8]) -> Result<(CertifiedKey, Validity), ConfigError> {
    let chain = certificates(cert_pem)?;
    let validity = validity(&chain)?;
    let key = provider()
        .key_provider
        .load_private_key(private_key(key_pem)?)
        .map_err(|error| ConfigError::BadKey(error.to_string()))?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        // Of some keys the public half cannot be told; a handshake will.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => return Err(ConfigError::KeyMismatch),
        Err(error) => return Err(ConfigError::BadCertificate(1, error.to_string())),
    }
    Ok((certified, validity))
}

fn validity(chain: &[CertificateDer<'_>]) -> Result<Validity, ConfigError> {
    let mut whole = Validity {
        not_after: i64::MAX,
        not_before: i64::MIN,
    };
    for (index, der) in chain.iter().enumerate() {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| ConfigError::BadCertificate(index + 1, error.to_string()))?;
        let one = certificate.validity();
        whole.not_after = whole.not_after.min(one.not_after.timestamp());
        whole.not_before = whole.not_before.max(one.not_before.timestamp());
    }
    Ok(whole)
}

fn roots(ca_pem: &[u8]) -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates(ca_pem)?.into_iter().enumerate() {
        roots
            .add(certificate)
            .map_err(|error| ConfigError::BadCertificate(index + 1, error.to_string()))?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests;
