//! The settings of who is let in: tokens, the policy, TLS, the issuer of identity tokens.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::value::{self, DAY};
use super::{Given, SettingsError};
use crate::auth::oidc::Issuer;

/// Text that is never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { "…" })
    }
}

/// A file that a setting names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// The setting.
    pub setting: &'static str,
    /// The file.
    pub path: PathBuf,
}

impl fmt::Display for NamedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.setting, self.path.display())
    }
}

/// What a listener's TLS is made of.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ListenerTls {
    pub certificate: NamedFile,
    pub key: NamedFile,
    pub client_ca: Option<NamedFile>,
    /// Whether clients must show a certificate, where there are authorities for them.
    pub client_required: bool,
}

/// Whom a node with TLS between nodes serves, and how it speaks to them. A running cluster
/// goes from none to [`PeerMode::Require`] by way of both others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerMode {
    /// Only under TLS.
    Require,
    /// Serves both, speaks TLS.
    Prefer,
    /// Serves both, speaks in the clear.
    Accept,
}

/// What TLS between nodes is made of.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct PeerTls {
    pub certificate: NamedFile,
    pub key: NamedFile,
    pub ca: NamedFile,
    pub mode: PeerMode,
    pub server_name: Option<ServerName<'static>>,
}

/// An issuer of identity tokens.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Oidc {
    pub issuer: Issuer,
    pub audience: String,
    pub identity_claim: String,
    pub scope_claim: String,
    pub leeway: Duration,
    pub refresh: Duration,
    pub ca: Option<NamedFile>,
}

/// Who is let in, and how.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Security {
    pub auth_token: Secret,
    pub auth_token_file: Option<NamedFile>,
    pub auth_config: Option<NamedFile>,
    pub peer_token: Secret,
    pub peer_token_file: Option<NamedFile>,
    pub api_tls: Option<ListenerTls>,
    pub mgmt_tls: Option<ListenerTls>,
    pub peer_tls: Option<PeerTls>,
    pub oidc: Option<Oidc>,
    pub reload_interval: Duration,
    pub handshakes: usize,
}

impl Security {
    pub(super) fn read(given: &Given) -> Result<Self, SettingsError> {
        let security = Self {
            auth_token: secret(given, "HYPERCACHE_AUTH_TOKEN")?,
            auth_token_file: file(given, "HYPERCACHE_AUTH_TOKEN_FILE")?,
            auth_config: file(given, "HYPERCACHE_AUTH_CONFIG")?,
            peer_token: secret(given, "HYPERCACHE_PEER_TOKEN")?,
            peer_token_file: file(given, "HYPERCACHE_PEER_TOKEN_FILE")?,
            api_tls: listener(
                given,
                [
                    "HYPERCACHE_API_TLS_CERT",
                    "HYPERCACHE_API_TLS_KEY",
                    "HYPERCACHE_API_TLS_CLIENT_CA",
                    "HYPERCACHE_API_TLS_CLIENT_AUTH",
                ],
            )?,
            mgmt_tls: listener(
                given,
                [
                    "HYPERCACHE_MGMT_TLS_CERT",
                    "HYPERCACHE_MGMT_TLS_KEY",
                    "HYPERCACHE_MGMT_TLS_CLIENT_CA",
                    "HYPERCACHE_MGMT_TLS_CLIENT_AUTH",
                ],
            )?,
            peer_tls: peers(given)?,
            oidc: oidc(given)?,
            reload_interval: given.interval("HYPERCACHE_RELOAD_INTERVAL")?,
            handshakes: given.get("HYPERCACHE_HANDSHAKES", |v| value::number(v, 1..=1 << 20))?
                as usize,
        };
        at_most_one(
            given,
            &[
                "HYPERCACHE_AUTH_TOKEN",
                "HYPERCACHE_AUTH_TOKEN_FILE",
                "HYPERCACHE_AUTH_CONFIG",
            ],
        )?;
        at_most_one(
            given,
            &["HYPERCACHE_PEER_TOKEN", "HYPERCACHE_PEER_TOKEN_FILE"],
        )?;
        Ok(security)
    }
}

fn secret(given: &Given, variable: &'static str) -> Result<Secret, SettingsError> {
    given.get(variable, value::token).map(Secret)
}

fn file(given: &Given, setting: &'static str) -> Result<Option<NamedFile>, SettingsError> {
    let path = given.text(setting)?;
    Ok((!path.is_empty()).then(|| NamedFile {
        setting,
        path: PathBuf::from(path),
    }))
}

fn is_set(given: &Given, variable: &'static str) -> Result<bool, SettingsError> {
    given.text(variable).map(|value| !value.is_empty())
}

fn at_most_one(given: &Given, variables: &[&'static str]) -> Result<(), SettingsError> {
    let mut set = Vec::new();
    for variable in variables {
        if is_set(given, variable)? {
            set.push(*variable);
        }
    }
    match &set[..] {
        [] | [_] => Ok(()),
        [one, other, ..] => Err(SettingsError(format!(
            "{one} and {other} are both set: expected one of them"
        ))),
    }
}

/// The error for a setting that another one needs.
fn missing(set: &str, missing: &str) -> SettingsError {
    SettingsError(format!(
        "{missing} is empty: expected a value, because {set} is set"
    ))
}

/// The files of these settings, when the first is set: then all must be; else none may.
fn all_or_none<const N: usize>(
    given: &Given,
    settings: [&'static str; N],
) -> Result<Option<[NamedFile; N]>, SettingsError> {
    let mut files = Vec::with_capacity(N);
    for setting in settings {
        files.push(file(given, setting)?);
    }
    let Some(set) = files.iter().position(Option::is_some) else {
        return Ok(None);
    };
    if let Some(unset) = files.iter().position(Option::is_none) {
        return Err(missing(settings[set], settings[unset]));
    }
    let files: Vec<NamedFile> = files.into_iter().flatten().collect();
    Ok(files.try_into().ok())
}

fn listener(
    given: &Given,
    [certificate, key, client_ca, client_auth]: [&'static str; 4],
) -> Result<Option<ListenerTls>, SettingsError> {
    let client_required = given.get(client_auth, |value| match value {
        "require" => Some(true),
        "request" => Some(false),
        _ => None,
    })?;
    let authorities = file(given, client_ca)?;
    let Some([cert_file, key_file]) = all_or_none(given, [certificate, key])? else {
        return match authorities {
            Some(_) => Err(missing(client_ca, certificate)),
            None => Ok(None),
        };
    };
    Ok(Some(ListenerTls {
        certificate: cert_file,
        key: key_file,
        client_ca: authorities,
        client_required,
    }))
}

fn peers(given: &Given) -> Result<Option<PeerTls>, SettingsError> {
    const SERVER_NAME: &str = "HYPERCACHE_PEER_TLS_SERVER_NAME";
    let mode = given.get("HYPERCACHE_PEER_TLS_MODE", |mode| match mode {
        "require" => Some(PeerMode::Require),
        "prefer" => Some(PeerMode::Prefer),
        "accept" => Some(PeerMode::Accept),
        _ => None,
    })?;
    let server_name = given.get(SERVER_NAME, |name| match name {
        "" => Some(None),
        name => ServerName::try_from(name.to_owned()).ok().map(Some),
    })?;
    let files = all_or_none(
        given,
        [
            "HYPERCACHE_PEER_TLS_CERT",
            "HYPERCACHE_PEER_TLS_KEY",
            "HYPERCACHE_PEER_TLS_CA",
        ],
    )?;
    let Some([certificate, key, ca]) = files else {
        return match server_name {
            None => Ok(None),
            Some(_) => Err(missing(SERVER_NAME, "HYPERCACHE_PEER_TLS_CERT")),
        };
    };
    Ok(Some(PeerTls {
        certificate,
        key,
        ca,
        mode,
        server_name,
    }))
}

fn oidc(given: &Given) -> Result<Option<Oidc>, SettingsError> {
    const ISSUER: &str = "HYPERCACHE_OIDC_ISSUER";
    const AUDIENCE: &str = "HYPERCACHE_OIDC_AUDIENCE";
    const LEEWAY_MAX: Duration = Duration::from_secs(600);
    let claim = |variable| given.get(variable, |name| (!name.is_empty()).then(|| name.to_owned()));
    let audience = given.text(AUDIENCE)?;
    let issuer = given.get(ISSUER, |url| match url {
        "" => Some(None),
        url => Issuer::parse(url).ok().map(Some),
    })?;
    let ca = file(given, "HYPERCACHE_OIDC_CA")?;
    let Some(issuer) = issuer else {
        return match (audience.is_empty(), ca) {
            (false, _) => Err(missing(AUDIENCE, ISSUER)),
            (true, Some(ca)) => Err(missing(ca.setting, ISSUER)),
            (true, None) => Ok(None),
        };
    };
    if audience.is_empty() {
        return Err(missing(ISSUER, AUDIENCE));
    }
    Ok(Some(Oidc {
        issuer,
        audience,
        identity_claim: claim("HYPERCACHE_OIDC_IDENTITY_CLAIM")?,
        scope_claim: claim("HYPERCACHE_OIDC_SCOPE_CLAIM")?,
        leeway: given.get("HYPERCACHE_OIDC_LEEWAY", |v| {
            value::duration(v, Duration::ZERO..=LEEWAY_MAX)
        })?,
        refresh: given.get("HYPERCACHE_OIDC_REFRESH", |v| {
            value::duration(v, value::MILLISECOND..=DAY)
        })?,
        ca,
    }))
}
