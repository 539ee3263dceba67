//! TLS of clients that block, on threads of their own: whom they trust.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Trusts the authorities of these certificates in PEM, or the public ones; nothing when
/// one of them is no certificate, or there is none.
pub fn trusting(ca_pem: Option<&[u8]>) -> Option<TlsConfig> {
    let roots = match ca_pem {
        Some(pem) => authorities(pem)?,
        None => RootCerts::WebPki,
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = TlsConfig::builder()
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(provider);
    Some(config.build())
}

/// Reads certificates, each of which must be one.
fn authorities(pem: &[u8]) -> Option<RootCerts> {
    let mut store = RootCertStore::empty();
    let mut roots = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.ok()?;
        roots.push(Certificate::from_der(&certificate).to_owned());
        store.add(certificate).ok()?;
    }
    (!roots.is_empty()).then(|| RootCerts::new_with_certs(&roots))
}
