use std::time::Duration;

use proptest::prelude::*;
use rcgen::{BasicConstraints, DnType, ExtendedKeyUsagePurpose, IsCa, date_time_ymd};

use super::*;

use crate::tls::certificates::{Authority, Identity};

const IN_2030: u64 = 1_900_000_000;

fn at(unix_s: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(unix_s))
}

fn server(cert: &str, key: &str, ca: Option<&str>) -> Result<ServerTls, ConfigError> {
    let ca = ca.map(str::as_bytes);
    server_config(cert.as_bytes(), key.as_bytes(), ca, ClientAuth::Require)
}

#[test]
fn an_error_says_what_is_wrong() {
    let authority = Authority::new("authority");
    let (one, other) = (authority.server(&["a"]), authority.server(&["b"]));
    let ca = authority.pem();
    let no_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let cut = &one.cert[..one.cert.len() / 2];
    let second_bad = format!("{}{no_der}", one.cert);
    for (cert, key, ca, why) in [
        ("", &*one.key, None, "there is no certificate in it"),
        (&*one.key, &one.key, None, "there is no certificate in it"),
        (cut, &one.key, None, "this is not PEM: "),
        (
            no_der,
            &one.key,
            None,
            "certificate 1 in it cannot be used: ",
        ),
        (
            &second_bad,
            &one.key,
            None,
            "certificate 2 in it cannot be used: ",
        ),
        (&one.cert, "", None, "there is no private key in it"),
        (&one.cert, &one.cert, None, "there is no private key in it"),
        (
            &one.cert,
            encrypted,
            None,
            "the private key in it is encrypted",
        ),
        (
            &one.cert,
            no_key,
            None,
            "the private key in it cannot be used: ",
        ),
        (
            &one.cert,
            &other.key,
            None,
            "the private key is not the one of the first certificate",
        ),
        (
            &one.cert,
            &one.key,
            Some(""),
            "there is no certificate in it",
        ),
        (
            &one.cert,
            &one.key,
            Some(no_der),
            "certificate 1 in it cannot be used: ",
        ),
    ] {
        let error = server(cert, key, ca).err().unwrap().to_string();
        assert!(error.starts_with(why), "{error:?} for {why:?}");
        assert!(!error.contains('\n'), "{error:?}");
    }
    server(&one.cert, &one.key, Some(&ca)).unwrap();
    assert!(client_config(b"", None).is_err());
    let own = (one.cert.as_bytes(), other.key.as_bytes());
    let mismatch = client_config(ca.as_bytes(), Some(own)).err().unwrap();
    assert_eq!(mismatch, ConfigError::KeyMismatch);
}

#[test]
fn an_error_shows_no_part_of_a_key() {
    let one = Authority::new("authority").server(&["a"]);
    let secret: &str = one.key.lines().nth(1).unwrap();
    let damaged = one.key.replacen(secret, &format!("{secret}%%"), 1);
    let error = server(&one.cert, &damaged, None).err().unwrap().to_string();
    assert!(!error.contains(&secret[..8]), "{error}");
}

#[test]
fn certificates_out_of_date_are_taken_and_told() {
    let authority = Authority::new("authority");
    let expired = authority.sign("a", &["a"], |params| {
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
    });
    let validity = server(&expired.cert, &expired.key, None).unwrap().validity;
    assert_eq!(validity.not_after, 1_577_836_800);
    assert!(!validity.contains(1_577_836_801));
    assert!(validity.contains(1_577_836_800));
    assert!(!validity.contains(1_500_000_000));
    let good = authority.server(&["a"]);
    let chain = format!("{}{}", good.cert, expired.cert);
    let validity = server(&chain, &good.key, None).unwrap().validity;
    assert_eq!(validity.not_after, 1_577_836_800, "the first of the chain");
}

#[test]
fn a_chain_is_verified_against_other_authorities_and_at_another_time() {
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let verifier = |pem: &str| ClientVerifier::new(pem.as_bytes(), ClientAuth::Require).unwrap();
    let alice = before.client_until("alice", (2031, 1, 1));
    let chain = [alice.der()];
    verifier(&before.pem()).verify(&chain, at(IN_2030)).unwrap();
    let both = verifier(&format!("{}{}", before.pem(), after.pem()));
    both.verify(&chain, at(IN_2030)).unwrap();
    both.verify(&chain, at(2 * IN_2030)).unwrap_err();
    verifier(&after.pem())
        .verify(&chain, at(IN_2030))
        .unwrap_err();
    both.verify(&[], at(IN_2030)).unwrap_err();
}

#[test]
fn a_chain_of_more_than_eight_is_refused_whatever_is_in_it() {
    let authority = Authority::new("authority");
    let verifier = ClientVerifier::new(authority.pem().as_bytes(), ClientAuth::Require).unwrap();
    let mut chain = vec![authority.client("alice").der()];
    chain.extend((1..8).map(|n| authority.client(&format!("unneeded {n}")).der()));
    verifier.verify(&chain, at(IN_2030)).unwrap();
    chain.push(CertificateDer::from(b"no certificate".to_vec()));
    let why = verifier.verify(&chain, at(IN_2030)).unwrap_err();
    let why = why.to_string();
    assert!(why.contains("ChainTooLong"), "{why}");
}

#[test]
fn strangers_with_the_authoritys_name_cost_a_few_signatures() {
    let authority = Authority::new("authority");
    let verifier = ClientVerifier::new(authority.pem().as_bytes(), ClientAuth::Require).unwrap();
    // Each could be the issuer of each, and all say that the authority is.
    let strangers: Vec<_> = (0..7).map(|_| Authority::new("authority")).collect();
    let mut chain = vec![strangers[0].client("mallory").der()];
    for stranger in &strangers {
        let pem = stranger.pem();
        chain.push(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
    }
    let why = verifier.verify(&chain, at(IN_2030)).unwrap_err();
    let bad = rustls::Error::InvalidCertificate(CertificateError::BadSignature);
    assert_eq!(why, bad, "not the end of a budget of signatures");
}

#[test]
fn a_certificate_shown_twice_does_no_harm() {
    let authority = Authority::new("authority");
    let verifier = ClientVerifier::new(authority.pem().as_bytes(), ClientAuth::Require).unwrap();
    let root = authority.pem();
    let root = CertificateDer::from_pem_slice(root.as_bytes()).unwrap();
    let chain = [authority.client("alice").der(), root.clone(), root];
    verifier.verify(&chain, at(IN_2030)).unwrap();
}

#[test]
fn a_chain_ends_with_the_first_certificate_that_expires() {
    let authority = Authority::new("authority");
    let (first, last) = (
        authority.client_until("alice", (2030, 1, 1)).der(),
        authority.client_until("bob", (2031, 1, 1)).der(),
    );
    const BEGIN_OF_2030: i64 = 1_893_456_000;
    const BEGIN_OF_2031: i64 = 1_924_992_000;
    assert_eq!(chain_end(std::slice::from_ref(&last)), Some(BEGIN_OF_2031));
    for chain in [[first.clone(), last.clone()], [last, first.clone()]] {
        assert_eq!(chain_end(&chain), Some(BEGIN_OF_2030));
    }
    assert_eq!(chain_end(&[]), None);
    assert_eq!(chain_end(&[first, CertificateDer::from(vec![0])]), None);
}

#[test]
fn a_verifier_is_itself_and_its_clones_and_no_other() {
    let pem = Authority::new("authority").pem();
    let verifier = || ClientVerifier::new(pem.as_bytes(), ClientAuth::Require).unwrap();
    let one = verifier();
    assert!(one.is(&one.clone()));
    assert!(!one.is(&verifier()));
}

#[test]
fn what_a_certificate_is_for_is_heeded_where_it_says_so() {
    use ExtendedKeyUsagePurpose::{Any, ClientAuth as ForClients, ServerAuth as ForServers};
    let authority = Authority::new("authority");
    let verifier = ClientVerifier::new(authority.pem().as_bytes(), ClientAuth::Request).unwrap();
    let verify = |identity: &Identity| verifier.verify(&[identity.der()], at(IN_2030)).is_ok();
    for (usages, good) in [
        (vec![], true),
        (vec![ForClients], true),
        (vec![ForServers, ForClients], true),
        (vec![ForServers], false),
        (vec![Any], false),
    ] {
        let told = format!("{usages:?}");
        let identity = authority.sign("alice", &[], |params| params.extended_key_usages = usages);
        assert_eq!(verify(&identity), good, "{told}");
    }
    let authority_too = authority.sign("alice", &[], |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    assert!(!verify(&authority_too));
}

#[test]
fn a_subject_has_one_common_name_or_none_that_counts() {
    let authority = Authority::new("authority");
    let common_name = |name: &str| subject_cn(&authority.client(name).der());
    for name in ["alice", "Ünï 1", "a,CN=b", "../x"] {
        assert_eq!(common_name(name).as_deref(), Some(name));
    }
    for name in ["", "a\0b", "a\nb"] {
        assert_eq!(common_name(name), None, "{name:?}");
    }
    let two = authority.sign("alice", &[], |params| {
        let again = DnType::CustomDnType(vec![2, 5, 4, 3]);
        params.distinguished_name.push(again, "admin");
    });
    assert_eq!(subject_cn(&two.der()), None);
    let none = authority.sign("alice", &[], |params| {
        params.distinguished_name.remove(DnType::CommonName);
    });
    assert_eq!(subject_cn(&none.der()), None);
    let mut followed = authority.client("alice").der().to_vec();
    followed.push(0);
    assert_eq!(subject_cn(&followed), None);
    assert_eq!(subject_cn(&[]), None);
}

proptest! {
    #[test]
    fn no_certificate_makes_the_reader_fail(changes in prop::collection::vec((0..600_usize, any::<u8>()), 0..20), cut in 0..600_usize) {
        thread_local! {
            static DER: Vec<u8> = Authority::new("authority").client("alice").der().to_vec();
        }
        let mut der = DER.with(Clone::clone);
        for (index, byte) in changes {
            let index = index % der.len();
            der[index] = byte;
        }
        if cut > 0 {
            der.truncate(cut);
        }
        let _ = subject_cn(&der);
        let _ = validity(&[CertificateDer::from(der)]);
    }
}
