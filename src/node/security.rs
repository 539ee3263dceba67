//! What decides who is let in: loaded at the start, and again whenever a file changes.
//!
//! ```text
//! files ── read ──► as before ──► nothing to do
//!             └───► changed ── build ──► Security ──► every core and the control thread
//!                                └── broken: what is in force stays, it is logged and
//!                                    counted, and looked at again
//! ```
//!
//! A [`Security`] is immutable and replaced whole; its number tells one from another. The
//! thread that watches compares contents, not times: it sees what kubelets do (another
//! file behind the same name) and editors do (other bytes in the same file) alike. SIGHUP
//! has it look at once.
//!
//! Keys of the issuer of identity tokens come from a thread of their own
//! ([`crate::auth::oidc`]) and put another [`Security`] in force in the same way.
//!
//! A file and its key may be read while they are being replaced, one old and one new:
//! what cannot be built is only reported when it is read a second time.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::control::ControlMessage;
use super::core::{Message, wall_time};
use super::verifying::Judge;
use crate::auth::oidc::fetch::Handle;
use crate::auth::oidc::{self, Fetcher, KeySet, Rules};
use crate::auth::secret::Sealer;
use crate::auth::{Identity, Outcome, Policy};
use crate::peer::client::{Access, TlsAccess};
use crate::peer::token::PeerToken;
use crate::runtime::Sender;
use crate::settings::security::{self as settings, NamedFile, PeerMode};
use crate::telemetry::security::SecurityCounters;
use crate::tls::config::ConfigError;
use crate::tls::{self, ClientAuth, ClientVerifier, ServerTls};

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The most tokens a file may hold.
const TOKENS_MAX: usize = 64;
/// How long an identity token that was refused is not looked at again: it may become
/// valid, or its key known.
const REFUSED_TOKEN_S: u64 = 2;
/// How soon a thread is told again whose mailbox was full.
const TELL_AGAIN: Duration = Duration::from_millis(10);

/// The listeners of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Entrance {
    Client,
    Management,
    Peer,
}

/// What decides who is let in.
#[derive(Clone)]
pub struct Security {
    /// Tells it from others; grows, and is not 0.
    pub number: u64,
    /// Whom the client and management listeners know.
    pub policy: Arc<Policy>,
    /// Who says whom identity tokens stand for.
    pub judge: Option<Judge>,
    /// What nodes show each other.
    pub peer_access: Access,
    api_tls: Option<ServerTls>,
    mgmt_tls: Option<ServerTls>,
    peer_tls: Option<ServerTls>,
    /// Whether peers are served in the clear although there is TLS for them.
    pub peers_in_the_clear: bool,
}

impl Security {
    /// The TLS of a listener, where it has any.
    pub fn tls(&self, entrance: Entrance) -> Option<&ServerTls> {
        let tls = match entrance {
            Entrance::Client => &self.api_tls,
            Entrance::Management => &self.mgmt_tls,
            Entrance::Peer => &self.peer_tls,
        };
        tls.as_ref()
    }

    /// When the first certificate ends, in seconds since 1970.
    fn certificates_end_s(&self) -> Option<i64> {
        let listeners = [&self.api_tls, &self.mgmt_tls, &self.peer_tls];
        let ends = listeners.into_iter().flatten();
        ends.map(|tls| tls.validity.not_after).min()
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Security({})", self.number)
    }
}

/// The contents of all files that settings name.
#[derive(Clone, Default, PartialEq, Eq)]
struct Files(Vec<(NamedFile, Vec<u8>)>);

impl Files {
    fn of(&self, file: &NamedFile) -> &[u8] {
        let found = self.0.iter().find(|(named, _)| named == file);
        found.map_or(&[], |(_, bytes)| bytes)
    }

    /// What was made of these files, if they are as they were then.
    fn unchanged<'a>(
        &self,
        former: Option<(&Self, &'a Security)>,
        named: &[&NamedFile],
    ) -> Option<&'a Security> {
        let (files, security) = former?;
        let same = |file: &&NamedFile| files.of(file) == self.of(file);
        named.iter().all(same).then_some(security)
    }

    fn text(&self, file: &NamedFile) -> Result<&str, String> {
        std::str::from_utf8(self.of(file)).map_err(|_| format!("{file}: expected UTF-8"))
    }

    /// The tokens in a file, one a line.
    fn tokens(&self, file: &NamedFile) -> Result<Vec<String>, String> {
        let lines = self.text(file)?.lines().map(str::trim);
        let tokens: Vec<String> = lines
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect();
        let visible = |token: &String| token.bytes().all(|byte| byte.is_ascii_graphic());
        if tokens.is_empty() || tokens.len() > TOKENS_MAX || !tokens.iter().all(visible) {
            return Err(format!(
                "{file}: expected 1 to {TOKENS_MAX} tokens, one a line, \
                 of visible characters without spaces"
            ));
        }
        Ok(tokens)
    }
}

fn read(file: &NamedFile) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut limited = File::open(&file.path)?.take(FILE_BYTES_MAX + 1);
    limited.read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let why = format!("expected at most {FILE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

/// Makes a [`Security`] of settings and files.
pub struct Loader {
    settings: settings::Security,
    sealer: Sealer,
}

impl Loader {
    /// Loads by these settings.
    pub fn new(settings: settings::Security, sealer: Sealer) -> Self {
        Self { settings, sealer }
    }

    fn named_files(&self) -> Vec<&NamedFile> {
        let settings = &self.settings;
        let mut files = Vec::new();
        files.extend(&settings.auth_token_file);
        files.extend(&settings.auth_config);
        files.extend(&settings.peer_token_file);
        for tls in [&settings.api_tls, &settings.mgmt_tls]
            .into_iter()
            .flatten()
        {
            files.extend([&tls.certificate, &tls.key]);
            files.extend(&tls.client_ca);
        }
        if let Some(tls) = &settings.peer_tls {
            files.extend([&tls.certificate, &tls.key, &tls.ca]);
        }
        files.extend(settings.oidc.iter().flat_map(|oidc| &oidc.ca));
        files
    }

    fn read(&self) -> Result<Files, String> {
        let files = self.named_files().into_iter();
        files
            .map(|file| match read(file) {
                Ok(bytes) => Ok((file.clone(), bytes)),
                Err(error) => Err(format!("{file}: cannot be read: {error}")),
            })
            .collect::<Result<_, _>>()
            .map(Files)
    }

    /// What the files say. TLS whose files are as they were stays the very same: sessions
    /// and the connections of peers go on.
    fn build(
        &self,
        files: &Files,
        former: Option<(&Files, &Security)>,
    ) -> Result<Security, String> {
        let settings = &self.settings;
        let client_tokens = match &settings.auth_token_file {
            Some(file) => files.tokens(file)?,
            None if settings.auth_token.is_empty() => Vec::new(),
            None => vec![settings.auth_token.reveal().to_owned()],
        };
        let policy = self.policy(files, &client_tokens)?;
        let peer_tokens = match &settings.peer_token_file {
            Some(file) => files.tokens(file)?,
            None if settings.peer_token.is_empty() => client_tokens,
            None => vec![settings.peer_token.reveal().to_owned()],
        };
        let listener = |tls: &Option<settings::ListenerTls>, entrance| {
            let Some(tls) = tls else {
                return Ok(None);
            };
            let mut named = vec![&tls.certificate, &tls.key];
            named.extend(&tls.client_ca);
            match files
                .unchanged(former, &named)
                .map(|former| former.tls(entrance))
            {
                Some(tls) => Ok(tls.cloned()),
                None => listener_tls(files, tls).map(Some),
            }
        };
        let (peer_tls, peer_access) = match &settings.peer_tls {
            None => (None, None),
            Some(tls) => {
                let named = [&tls.certificate, &tls.key, &tls.ca];
                match files.unchanged(former, &named) {
                    Some(former) => (former.peer_tls.clone(), former.peer_access.tls.clone()),
                    None => {
                        let (server, access) = peers_tls(files, tls)?;
                        let speaks = tls.mode != PeerMode::Accept;
                        (Some(server), speaks.then_some(access))
                    }
                }
            }
        };
        Ok(Security {
            number: former.map_or(1, |(_, security)| security.number + 1),
            policy: Arc::new(policy),
            judge: former.and_then(|(_, security)| security.judge.clone()),
            peer_access: Access {
                token: PeerToken::new(peer_tokens),
                tls: peer_access,
            },
            api_tls: listener(&settings.api_tls, Entrance::Client)?,
            mgmt_tls: listener(&settings.mgmt_tls, Entrance::Management)?,
            peer_tls,
            peers_in_the_clear: settings
                .peer_tls
                .as_ref()
                .is_some_and(|tls| tls.mode != PeerMode::Require),
        })
    }

    fn policy(&self, files: &Files, tokens: &[String]) -> Result<Policy, String> {
        let settings = &self.settings;
        let policy = match &settings.auth_config {
            Some(file) => Policy::parse(files.text(file)?, &self.sealer)
                .map_err(|error| format!("{file}: {error}"))?,
            None if !tokens.is_empty() => Policy::of_tokens(tokens, &self.sealer),
            None if settings.oidc.is_some() => Policy::closed(&self.sealer),
            None => Policy::open(&self.sealer),
        };
        let Some(oidc) = &settings.oidc else {
            return Ok(policy);
        };
        if let Some(ca) = &oidc.ca {
            tls::client_config(files.of(ca), None).map_err(|error| format!("{ca}: {error}"))?;
        }
        Ok(policy.with_identity_tokens())
    }

    /// What identity tokens are checked by, where there is an issuer.
    fn oidc(&self, files: &Files) -> Option<oidc::Config> {
        let settings = self.settings.oidc.as_ref()?;
        let ca = settings.ca.as_ref();
        Some(oidc::Config {
            identity_claim: settings.identity_claim.clone(),
            scope_claim: settings.scope_claim.clone(),
            leeway: settings.leeway,
            refresh_interval: settings.refresh,
            ca_pem: ca.map(|file| files.of(file).to_vec()),
            ..oidc::Config::new(settings.issuer.clone(), &settings.audience)
        })
    }

    /// Loads for the start.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, in one line that names the setting.
    pub fn load(self) -> Result<Loaded, String> {
        let files = self.read()?;
        let security = Arc::new(self.build(&files, None)?);
        Ok(Loaded {
            loader: self,
            files,
            security,
        })
    }
}

fn listener_tls(files: &Files, listener: &settings::ListenerTls) -> Result<ServerTls, String> {
    let client_auth = match listener.client_required {
        true => ClientAuth::Require,
        false => ClientAuth::Request,
    };
    let (certificate, key) = (&listener.certificate, &listener.key);
    if let Some(ca) = &listener.client_ca {
        ClientVerifier::new(files.of(ca), client_auth).map_err(|error| format!("{ca}: {error}"))?;
    }
    tls::server_config(
        files.of(certificate),
        files.of(key),
        listener.client_ca.as_ref().map(|file| files.of(file)),
        client_auth,
    )
    .map_err(|error| in_pair(certificate, key, &error))
}

/// How a node is spoken to by its peers, and speaks to them.
fn peers_tls(files: &Files, peers: &settings::PeerTls) -> Result<(ServerTls, TlsAccess), String> {
    let (certificate, key, ca) = (&peers.certificate, &peers.key, &peers.ca);
    ClientVerifier::new(files.of(ca), ClientAuth::Require)
        .map_err(|error| format!("{ca}: {error}"))?;
    let pair = (files.of(certificate), files.of(key));
    let authorities = files.of(ca);
    let server = tls::server_config(pair.0, pair.1, Some(authorities), ClientAuth::Require)
        .map_err(|error| in_pair(certificate, key, &error))?;
    let client = tls::client_config(authorities, Some(pair))
        .map_err(|error| in_pair(certificate, key, &error))?;
    let access = TlsAccess {
        config: client.config,
        server_name: peers.server_name.clone(),
    };
    Ok((server, access))
}

/// Names the file of a certificate and its key that an error is about.
fn in_pair(certificate: &NamedFile, key: &NamedFile, error: &ConfigError) -> String {
    use ConfigError::{BadKey, EncryptedKey, KeyMismatch, Malformed, NoKey};
    match error {
        NoKey | EncryptedKey | BadKey(_) | KeyMismatch => format!("{key}: {error}"),
        Malformed(_) => format!("{certificate}, {key}: {error}"),
        _ => format!("{certificate}: {error}"),
    }
}

/// What the start has loaded.
pub struct Loaded {
    loader: Loader,
    files: Files,
    /// What is in force at first.
    pub security: Arc<Security>,
}

/// Who is told of another [`Security`].
pub struct Audience {
    /// The cores.
    pub mailboxes: Vec<Sender<Message>>,
    /// The control thread.
    pub control: Sender<ControlMessage>,
}

/// What the thread that watches is woken for.
pub enum Wake {
    /// To look at the files now.
    Look,
    /// To take over the issuer's keys.
    Keys(Arc<KeySet>),
}

/// Watches the files. See the module's comment.
pub struct Watcher {
    loaded: Loaded,
    audience: Audience,
    /// Threads that do not know what is in force: cores, and the control thread behind
    /// them.
    untold: Vec<usize>,
    /// For each thread, as many more references as messages wait in its mailbox.
    waiting: Vec<Arc<()>>,
    counters: Arc<SecurityCounters>,
    /// What was broken when it was last read, and whether that was reported.
    broken: Option<(Files, bool)>,
    /// What was last reported as unreadable.
    unreadable: Option<String>,
    fetcher: Option<Fetcher>,
    /// What was counted by fetchers that came before.
    fetched_before: (u64, u64),
    wake: mpsc::Sender<Wake>,
    woken: Receiver<Wake>,
}

impl Watcher {
    /// Watches what was loaded; to be started.
    pub fn new(loaded: Loaded, audience: Audience, counters: Arc<SecurityCounters>) -> Self {
        let threads = audience.mailboxes.len() + 1;
        let (wake, woken) = mpsc::channel();
        Self {
            loaded,
            audience,
            untold: Vec::new(),
            waiting: (0..threads).map(|_| Arc::default()).collect(),
            counters,
            broken: None,
            unreadable: None,
            fetcher: None,
            fetched_before: (0, 0),
            wake,
            woken,
        }
    }

    /// What wakes it.
    pub fn waker(&self) -> mpsc::Sender<Wake> {
        self.wake.clone()
    }

    /// Starts the thread, which runs as long as the process.
    ///
    /// # Errors
    ///
    /// When it, or the one that fetches keys, cannot be started.
    pub fn start(mut self) -> io::Result<()> {
        self.tell_of_certificates();
        self.start_fetcher()?;
        let interval = self.loaded.loader.settings.reload_interval;
        let work = move || {
            loop {
                let pause = match self.untold.is_empty() {
                    true => interval,
                    false => interval.min(TELL_AGAIN),
                };
                match self.woken.recv_timeout(pause) {
                    Ok(Wake::Keys(keys)) => self.take_keys(&keys),
                    Ok(Wake::Look) | Err(RecvTimeoutError::Timeout) => self.look(),
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                self.tell();
                self.count_fetches();
            }
        };
        thread::Builder::new()
            .name("security".to_owned())
            .spawn(work)?;
        Ok(())
    }

    /// Has the issuer's keys fetched, if there is one, by what the files say now.
    fn start_fetcher(&mut self) -> io::Result<()> {
        if let Some(former) = self.fetcher.take() {
            let counts = former.handle().counts();
            self.fetched_before.0 += counts.fetches;
            self.fetched_before.1 += counts.failures;
        }
        let Some(config) = self.loaded.loader.oidc(&self.loaded.files) else {
            return Ok(());
        };
        let wake = self.wake.clone();
        let fetcher = Fetcher::start(&config, move |keys| {
            let _ = wake.send(Wake::Keys(keys));
        });
        self.fetcher = Some(fetcher.map_err(io::Error::other)?);
        Ok(())
    }

    fn take_keys(&mut self, keys: &Arc<KeySet>) {
        tracing::info!(keys = keys.len(), "keys of the issuer are in force");
        let config = self.loaded.loader.oidc(&self.loaded.files);
        let (Some(config), Some(fetcher)) = (config, &self.fetcher) else {
            return;
        };
        let judge = judge(Rules::of(&config), Arc::clone(keys), fetcher.handle());
        let security = &self.loaded.security;
        let security = Security {
            number: security.number + 1,
            judge: Some(judge),
            ..Security::clone(security)
        };
        self.put_in_force(security);
    }

    fn count_fetches(&self) {
        if let Some(fetcher) = &self.fetcher {
            let counts = fetcher.handle().counts();
            let (fetches, failures) = self.fetched_before;
            self.counters.oidc_fetches.set(fetches + counts.fetches);
            self.counters
                .oidc_fetch_failures
                .set(failures + counts.failures);
            self.counters.oidc_keys.set(counts.keys);
            self.counters.oidc_fetched_s.set(counts.last_success_unix_s);
        }
    }

    /// Tells when certificates end, and warns of those that have ended.
    fn tell_of_certificates(&self) {
        let Some(end_s) = self.loaded.security.certificates_end_s() else {
            return;
        };
        let end_s = u64::try_from(end_s).unwrap_or(0);
        self.counters.certificate_expires_s.set(end_s);
        if end_s <= wall_time().0 / 1000 {
            tracing::warn!(end_s, "a certificate of this node has expired");
        }
    }

    fn look(&mut self) {
        let files = match self.loaded.loader.read() {
            Ok(files) => files,
            Err(error) => {
                if self.unreadable.as_ref() != Some(&error) {
                    self.report(&error);
                    self.unreadable = Some(error);
                }
                return;
            }
        };
        self.unreadable = None;
        if files == self.loaded.files {
            self.broken = None;
            self.counters.reload_failing.set(0);
            return;
        }
        let former = (&self.loaded.files, &*self.loaded.security);
        match self.loaded.loader.build(&files, Some(former)) {
            Ok(security) => {
                let number = security.number;
                tracing::info!(number, "changed credentials are in force");
                self.broken = None;
                self.counters.reloads.count();
                self.counters.reload_failing.set(0);
                let former = std::mem::replace(&mut self.loaded.files, files);
                self.put_in_force(security);
                self.tell_of_certificates();
                self.follow_authorities(&former);
            }
            Err(error) => {
                let seen = self.broken.take();
                let reported = match seen {
                    Some((before, reported)) if before == files => {
                        if !reported {
                            self.report(&error);
                        }
                        true
                    }
                    _ => false,
                };
                self.broken = Some((files, reported));
            }
        }
    }

    /// Speaks to the issuer anew when other authorities vouch for it.
    fn follow_authorities(&mut self, former: &Files) {
        let oidc = self.loaded.loader.settings.oidc.as_ref();
        let Some(ca) = oidc.and_then(|oidc| oidc.ca.as_ref()) else {
            return;
        };
        if former.of(ca) != self.loaded.files.of(ca)
            && let Err(error) = self.start_fetcher()
        {
            tracing::error!(%error, "the issuer's keys are not fetched any more");
        }
    }

    fn report(&self, error: &str) {
        tracing::error!(
            error,
            "changed credentials cannot be taken over: the former ones stay in force"
        );
        self.counters.reload_failures.count();
        self.counters.reload_failing.set(1);
    }

    fn put_in_force(&mut self, security: Security) {
        self.loaded.security = Arc::new(security);
        self.untold = (0..self.waiting.len()).collect();
    }

    /// Tells whoever has room; one message of this kind waits in a mailbox at most.
    fn tell(&mut self) {
        let security = &self.loaded.security;
        let (audience, waiting) = (&self.audience, &self.waiting);
        self.untold.retain(|&thread| {
            let waits = &waiting[thread];
            if Arc::strong_count(waits) > 1 {
                return true;
            }
            let (security, waits) = (Arc::clone(security), Arc::clone(waits));
            match audience.mailboxes.get(thread) {
                Some(core) => core.try_send(Message::Security(security, waits)).is_err(),
                None => {
                    let message = ControlMessage::Security(security, waits);
                    audience.control.try_send(message).is_err()
                }
            }
        });
    }
}

/// Checks identity tokens by these rules and keys, and asks for a fetch when that could
/// help.
fn judge(rules: Rules, keys: Arc<KeySet>, issuer: Handle) -> Judge {
    Arc::new(move |token| {
        let now_s = wall_time().0 / 1000;
        match oidc::verify(&keys, &rules, token, now_s) {
            Ok(verified) => {
                let (id, scopes) = (verified.id, verified.scopes);
                let identity = Arc::new(Identity { id, scopes });
                Outcome::Granted(identity, verified.expires_at_unix_s)
            }
            Err(refusal) => {
                if refusal.refetch_may_help() {
                    issuer.ask();
                }
                tracing::debug!(%refusal, "an identity token was refused");
                Outcome::Refused(now_s + REFUSED_TOKEN_S)
            }
        }
    })
}
