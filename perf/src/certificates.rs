//! Certificates of servers to measure, in files of their own.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_RSA_SHA256, RsaKeySize,
};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

/// What a key is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256.
    P256,
    /// RSA of 2048 bits.
    Rsa2048,
}

/// Sessions a client remembers.
const SESSIONS: usize = 1024;

/// An authority, a server's certificate for 127.0.0.1 and a client's, both of one kind.
/// The files are removed when this is dropped.
pub struct Certificates {
    folder: PathBuf,
    authority: CertificateDer<'static>,
    client: (CertificateDer<'static>, String),
}

impl Certificates {
    /// Makes them.
    ///
    /// # Errors
    ///
    /// When files cannot be written.
    pub fn new(kind: KeyKind) -> io::Result<Self> {
        let mut params = CertificateParams::new([]).map_err(io::Error::other)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, key(kind)?);
        let authority = authority.map_err(io::Error::other)?;
        let sign = |names: Vec<String>| {
            let key = key(kind)?;
            let params = CertificateParams::new(names).map_err(io::Error::other)?;
            let signed = params.signed_by(&key, &authority);
            Ok::<_, io::Error>((signed.map_err(io::Error::other)?, key.serialize_pem()))
        };
        let (server, server_key) = sign(vec!["127.0.0.1".to_owned()])?;
        let (client, client_key) = sign(Vec::new())?;
        let name = format!("hypercache-perf-{}-{kind:?}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("cert.pem"), server.pem())?;
        fs::write(folder.join("key.pem"), server_key)?;
        fs::write(folder.join("ca.pem"), authority.pem())?;
        Ok(Self {
            folder,
            authority: authority.der().clone(),
            client: (client.der().clone(), client_key),
        })
    }

    /// What a node is told to serve clients with them, and with `mutual` to demand a
    /// client's.
    pub fn settings(&self, mutual: bool) -> Vec<(String, String)> {
        let setting = |(name, file): &(&str, &str)| {
            let path = self.folder.join(file);
            let name = format!("HYPERCACHE_API_TLS_{name}");
            (name, path.to_string_lossy().into_owned())
        };
        let all = [
            ("CERT", "cert.pem"),
            ("KEY", "key.pem"),
            ("CLIENT_CA", "ca.pem"),
        ];
        all[..if mutual { 3 } else { 2 }]
            .iter()
            .map(setting)
            .collect()
    }

    /// A client that speaks one version, shows its certificate if `mutual`, and resumes
    /// sessions if `resumes`.
    ///
    /// # Errors
    ///
    /// When rustls does not take the certificates.
    pub fn client(
        &self,
        version: &'static SupportedProtocolVersion,
        mutual: bool,
        resumes: bool,
    ) -> io::Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.authority.clone())
            .map_err(io::Error::other)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[version])
            .map_err(io::Error::other)?
            .with_root_certificates(roots);
        let mut config = if mutual {
            let (certificate, key) = &self.client;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(io::Error::other)?;
            builder
                .with_client_auth_cert(vec![certificate.clone()], key)
                .map_err(io::Error::other)?
        } else {
            builder.with_no_client_auth()
        };
        config.resumption = match resumes {
            true => Resumption::in_memory_sessions(SESSIONS),
            false => Resumption::disabled(),
        };
        Ok(Arc::new(config))
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn key(kind: KeyKind) -> io::Result<KeyPair> {
    match kind {
        KeyKind::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        KeyKind::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
    }
    .map_err(io::Error::other)
}
