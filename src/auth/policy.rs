//! Whom a node knows: the policy file, or a list of tokens, or nobody in particular.
//!
//! The file is YAML; a key it does not know, an entry that cannot be right, an empty or
//! unknown scope are errors, and an error never means open. What an error says never
//! repeats a value that may be a secret.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bcrypt::HashParts;
use serde::Deserialize;

use super::identity::{Identity, Scope, Scopes};
use super::secret::{Sealer, Tag};

/// The identity behind a token that was given without one.
const DEFAULT_ID: &str = "default";
/// The cheapest there is.
const BCRYPT_COST_MIN: u32 = 4;
/// The most expensive bcrypt hash that is taken: it costs about a second to check.
const BCRYPT_COST_MAX: u32 = 14;
const NAME_CHARS_MAX: usize = 256;
/// The longest key that an error repeats: longer than any there is.
const KEY_CHARS_SHOWN_MAX: usize = 32;

/// A user that shows a password.
#[derive(Debug)]
pub struct User {
    /// The bcrypt hash of the password.
    pub hash: Arc<str>,
    /// Who it is.
    pub identity: Arc<Identity>,
    /// What checking the hash costs, as bcrypt counts it.
    cost: u32,
}

/// Whom a node knows. See the module's comment.
#[derive(Debug)]
pub struct Policy {
    sealer: Sealer,
    tokens: HashMap<Tag, Arc<Identity>>,
    users: HashMap<String, User>,
    /// Checked in place of a user that does not exist: the dearest of the hashes.
    decoy: Option<Arc<str>>,
    certificates: HashMap<String, Arc<Identity>>,
    anonymous: Option<Arc<Identity>>,
    basic_needs_tls: bool,
    identity_tokens: bool,
}

/// Why a policy is refused, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError(String);

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PolicyError {}

fn refuse(what: impl Into<String>) -> PolicyError {
    PolicyError(what.into())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tokens: Vec<TokenEntry>,
    #[serde(default)]
    users: Vec<UserEntry>,
    #[serde(default)]
    cert_identities: Vec<CertificateEntry>,
    #[serde(default)]
    allow_anonymous: bool,
    #[serde(default)]
    allow_basic_without_tls: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenEntry {
    id: String,
    token: String,
    scopes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserEntry {
    id: String,
    username: String,
    password_bcrypt: String,
    scopes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateEntry {
    subject_cn: String,
    scopes: Vec<String>,
}

impl Policy {
    fn empty(sealer: &Sealer) -> Self {
        Self {
            sealer: sealer.clone(),
            tokens: HashMap::new(),
            users: HashMap::new(),
            decoy: None,
            certificates: HashMap::new(),
            anonymous: None,
            basic_needs_tls: true,
            identity_tokens: false,
        }
    }

    /// Nobody is asked who they are: every caller may do everything.
    pub fn open(sealer: &Sealer) -> Self {
        Self {
            anonymous: Some(Arc::new(Identity::anonymous())),
            ..Self::empty(sealer)
        }
    }

    /// Nobody is known but those that others vouch for ([`Policy::with_identity_tokens`]).
    pub fn closed(sealer: &Sealer) -> Self {
        Self::empty(sealer)
    }

    /// Each of these tokens is `default`, which may do everything.
    pub fn of_tokens<T: AsRef<str>>(tokens: &[T], sealer: &Sealer) -> Self {
        let identity = Arc::new(Identity {
            id: Arc::from(DEFAULT_ID),
            scopes: Scopes::ALL,
        });
        let tokens = tokens
            .iter()
            .map(|token| sealer.tag(token.as_ref().as_bytes()));
        Self {
            tokens: tokens.map(|tag| (tag, Arc::clone(&identity))).collect(),
            ..Self::empty(sealer)
        }
    }

    /// Reads a policy file.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn parse(text: &str, sealer: &Sealer) -> Result<Self, PolicyError> {
        let file: File = serde_norway::from_str(text).map_err(|error| yaml_error(&error))?;
        let mut policy = Self::empty(sealer);
        for (index, entry) in file.tokens.iter().enumerate() {
            let place = format!("tokens[{index}]");
            let visible = entry.token.bytes().all(|byte| byte.is_ascii_graphic());
            if entry.token.is_empty() || !visible {
                let expected = "expected visible characters without spaces";
                return Err(refuse(format!("{place}.token: {expected}")));
            }
            let identity = identity(&place, "id", &entry.id, &entry.scopes)?;
            let tag = sealer.tag(entry.token.as_bytes());
            if policy.tokens.insert(tag, identity).is_some() {
                return Err(refuse(format!("{place}.token: another entry has the same")));
            }
        }
        let mut dearest = 0;
        for (index, entry) in file.users.iter().enumerate() {
            let place = format!("users[{index}]");
            let user = user(&place, entry)?;
            if dearest < user.cost {
                dearest = user.cost;
                policy.decoy = Some(Arc::clone(&user.hash));
            }
            if policy.users.insert(entry.username.clone(), user).is_some() {
                return Err(refuse(format!(
                    "{place}.username: another entry has the same"
                )));
            }
        }
        for (index, entry) in file.cert_identities.iter().enumerate() {
            let place = format!("cert_identities[{index}]");
            let identity = identity(&place, "subject_cn", &entry.subject_cn, &entry.scopes)?;
            let name = entry.subject_cn.clone();
            if policy.certificates.insert(name, identity).is_some() {
                return Err(refuse(format!(
                    "{place}.subject_cn: another entry has the same"
                )));
            }
        }
        policy.anonymous = file
            .allow_anonymous
            .then(|| Arc::new(Identity::anonymous()));
        policy.basic_needs_tls = !file.allow_basic_without_tls;
        if policy.knows_nobody() && !file.allow_anonymous {
            let expected = "expected tokens, users, cert_identities or allow_anonymous: true";
            return Err(refuse(format!("it lets nobody in: {expected}")));
        }
        Ok(policy)
    }

    /// The same, also trusting an issuer of identity tokens.
    pub fn with_identity_tokens(self) -> Self {
        Self {
            identity_tokens: true,
            ..self
        }
    }

    /// Whether nothing is asked of anyone, because there is nobody to be told apart.
    pub fn is_open(&self) -> bool {
        self.anonymous.is_some() && self.knows_nobody() && !self.identity_tokens
    }

    fn knows_nobody(&self) -> bool {
        self.tokens.is_empty() && self.users.is_empty() && self.certificates.is_empty()
    }

    /// The tag of a secret, as this policy makes them.
    pub fn tag(&self, secret: &[u8]) -> Tag {
        self.sealer.tag(secret)
    }

    /// Whoever shows this bearer token.
    pub fn token(&self, token: &[u8]) -> Option<&Arc<Identity>> {
        // The keyed hash costs more than knowing that there is nothing to find.
        (!self.tokens.is_empty())
            .then(|| self.tokens.get(&self.tag(token)))
            .flatten()
    }

    /// Whether names and passwords can be shown.
    pub fn has_users(&self) -> bool {
        !self.users.is_empty()
    }

    /// A user by name, else a hash to spend as much time on as on a user's.
    pub fn user(&self, username: &str) -> Result<&User, Option<&Arc<str>>> {
        self.users.get(username).ok_or(self.decoy.as_ref())
    }

    /// Whoever shows a certificate with this common name.
    pub fn certificate(&self, common_name: &str) -> Option<&Arc<Identity>> {
        self.certificates.get(common_name)
    }

    /// Whoever shows nothing that counts, if that is enough.
    pub fn anonymous(&self) -> Option<&Arc<Identity>> {
        self.anonymous.as_ref()
    }

    /// Whether a password is not to be taken from a connection in the clear.
    pub fn basic_needs_tls(&self) -> bool {
        self.basic_needs_tls
    }

    /// Whether bearer tokens may be identity tokens of an issuer.
    pub fn takes_identity_tokens(&self) -> bool {
        self.identity_tokens
    }

    /// Whether client certificates stand for identities.
    pub fn has_certificates(&self) -> bool {
        !self.certificates.is_empty()
    }
}

fn user(place: &str, entry: &UserEntry) -> Result<User, PolicyError> {
    let plain = |char: char| char != ':' && !char.is_control();
    if entry.username.is_empty() || !entry.username.chars().all(plain) {
        let expected = "expected a name without colons and control characters";
        return Err(refuse(format!("{place}.username: {expected}")));
    }
    let hash: HashParts = entry.password_bcrypt.parse().map_err(|_| {
        refuse(format!(
            "{place}.password_bcrypt: expected a bcrypt hash ($2b$…)"
        ))
    })?;
    let cost = hash.get_cost();
    if !(BCRYPT_COST_MIN..=BCRYPT_COST_MAX).contains(&cost) {
        return Err(refuse(format!(
            "{place}.password_bcrypt: the cost is {cost}, \
             expected {BCRYPT_COST_MIN} to {BCRYPT_COST_MAX}"
        )));
    }
    Ok(User {
        cost,
        hash: Arc::from(&*entry.password_bcrypt),
        identity: identity(place, "id", &entry.id, &entry.scopes)?,
    })
}

fn identity(
    place: &str,
    field: &str,
    id: &str,
    scopes: &[String],
) -> Result<Arc<Identity>, PolicyError> {
    let fits = (1..=NAME_CHARS_MAX).contains(&id.chars().count());
    if !fits || id.chars().any(char::is_control) {
        let expected = format!("expected 1 to {NAME_CHARS_MAX} characters, none for control");
        return Err(refuse(format!("{place}.{field}: {expected}")));
    }
    let known = |name: &String| {
        Scope::named(name).ok_or_else(|| {
            refuse(format!(
                "{place}.scopes: unknown scope {name:?}, expected read, write or admin"
            ))
        })
    };
    let scopes: Scopes = scopes.iter().map(known).collect::<Result<_, _>>()?;
    if scopes.is_empty() {
        let expected = "expected at least one of read, write and admin";
        return Err(refuse(format!("{place}.scopes: {expected}")));
    }
    let id = Arc::from(id);
    Ok(Arc::new(Identity { id, scopes }))
}

/// Says what is wrong with the YAML, and where. A message that repeats a value, or a key
/// that does not look like one, may repeat a secret: then only the place is told.
fn yaml_error(error: &serde_norway::Error) -> PolicyError {
    let message = error.to_string();
    let plain = |char: char| char.is_ascii_lowercase() || char == '_';
    let key = message
        .split_once("unknown field `")
        .and_then(|(_, rest)| rest.split_once('`'))
        .map_or("", |(key, _)| key);
    let shows_value = message.contains("invalid type") || message.contains("invalid value");
    if !shows_value && key.len() <= KEY_CHARS_SHOWN_MAX && key.chars().all(plain) {
        return PolicyError(message);
    }
    let what = match key {
        "" => "a value of the wrong type",
        _ => "an unknown key",
    };
    let place = error.location().map_or_else(String::new, |at| {
        format!(" at line {} column {}", at.line(), at.column())
    });
    PolicyError(format!("{what}{place}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// bcrypt of `pw`, at the lowest cost.
    const HASH: &str = "$2b$04$hUcCMElUiUYuOyO1dVJ7iuWzHGpXQJ4GvPnF6v0gYO4V4nT8hZ1q2";

    fn parse(text: &str) -> Result<Policy, PolicyError> {
        Policy::parse(text, &Sealer::new().unwrap())
    }

    fn refused(text: &str) -> String {
        parse(text).expect_err(text).to_string()
    }

    #[test]
    fn a_file_with_everything_is_read() {
        let policy = parse(&format!(
            "tokens: [{{id: svc, token: s3cret, scopes: [read, write]}}]\n\
             users: [{{id: ops, username: olga, password_bcrypt: '{HASH}', scopes: [admin]}}]\n\
             cert_identities: [{{subject_cn: batch, scopes: [read]}}]\n\
             allow_anonymous: false\nallow_basic_without_tls: true\n"
        ))
        .unwrap();
        let svc = policy.token(b"s3cret").unwrap();
        assert_eq!(&*svc.id, "svc");
        assert!(svc.scopes.contains(Scope::Write) && !svc.scopes.contains(Scope::Admin));
        assert!(policy.token(b"s3cre").is_none());
        assert_eq!(&*policy.user("olga").unwrap().identity.id, "ops");
        assert_eq!(
            policy.user("nobody").unwrap_err().map(|hash| &**hash),
            Some(HASH)
        );
        assert_eq!(&*policy.certificate("batch").unwrap().id, "batch");
        assert!(policy.anonymous().is_none() && !policy.basic_needs_tls());
        assert!(!policy.is_open());
    }

    #[test]
    fn tokens_without_a_file_are_the_default_identity() {
        let sealer = Sealer::new().unwrap();
        let policy = Policy::of_tokens(&["one", "two"], &sealer);
        for token in ["one", "two"] {
            let identity = policy.token(token.as_bytes()).unwrap();
            assert_eq!((&*identity.id, identity.scopes), ("default", Scopes::ALL));
        }
        assert!(policy.token(b"three").is_none() && !policy.is_open());
    }

    #[test]
    fn only_a_policy_that_knows_nobody_and_lets_all_in_is_open() {
        let sealer = Sealer::new().unwrap();
        assert!(Policy::open(&sealer).is_open());
        assert!(parse("allow_anonymous: true").unwrap().is_open());
        assert!(!Policy::closed(&sealer).is_open());
        assert!(!Policy::open(&sealer).with_identity_tokens().is_open());
    }

    #[test]
    fn what_cannot_be_right_is_refused_and_named() {
        for (text, named) in [
            ("", "lets nobody in"),
            ("allow_anonymous: false", "lets nobody in"),
            ("[]", "wrong type"),
            (
                "tokens: [{id: a, token: t, scopes: [read]}]\ntoken: x",
                "unknown field",
            ),
            ("tokens: [{id: a, token: t}]", "missing field `scopes`"),
            (
                "tokens: [{id: a, token: t, scopes: []}]",
                "tokens[0].scopes",
            ),
            (
                "tokens: [{id: a, token: t, scopes: [root]}]",
                "unknown scope \"root\"",
            ),
            (
                "tokens: [{id: '', token: t, scopes: [read]}]",
                "tokens[0].id",
            ),
            (
                "tokens: [{id: a, token: '', scopes: [read]}]",
                "tokens[0].token",
            ),
            (
                "tokens: [{id: a, token: 'a b', scopes: [read]}]",
                "tokens[0].token",
            ),
            (
                "tokens: [{id: a, token: t, scopes: [read]}, {id: b, token: t, scopes: [read]}]",
                "tokens[1].token",
            ),
            (
                "users: [{id: a, username: u, password_bcrypt: plain, scopes: [read]}]",
                "users[0].password_bcrypt",
            ),
            (
                "users: [{id: a, username: 'u:v', password_bcrypt: plain, scopes: [read]}]",
                "users[0].username",
            ),
            (
                "cert_identities: [{subject_cn: '', scopes: [read]}]",
                "cert_identities[0].subject_cn",
            ),
            ("allow_anonymous: maybe", "wrong type at line 1"),
        ] {
            let error = refused(text);
            assert!(error.contains(named), "{text}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_hash_that_takes_too_long_is_refused() {
        let dear = HASH.replace("$04$", "$15$");
        let text =
            format!("users: [{{id: a, username: u, password_bcrypt: '{dear}', scopes: [read]}}]");
        assert!(refused(&text).contains("the cost is 15"));
    }

    #[test]
    fn an_error_does_not_repeat_a_secret() {
        for text in [
            "tokens: hunter2",
            "tokens: [{id: a, token:hunter2, scopes: [read]}]",
            "tokens: [{id: a, token:hunter2 hunter2: x}]",
            "tokens: [hunter2]",
            "tokens: [{id: a, token: [hunter2], scopes: [read]}]",
            "tokens: [{id: a, token: 'hunter2 hunter2', scopes: [read]}]",
            "users: [{id: a, username: u, password_bcrypt: hunter2, scopes: [read]}]",
        ] {
            assert!(!refused(text).contains("hunter2"), "{}", refused(text));
        }
    }
}
