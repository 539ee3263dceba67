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
//! A file and its key may be read while they are being replaced, one old and one new:
//! what cannot be built is only reported when it is read a second time.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::control::ControlMessage;
use super::core::Message;
use super::verifying::Judge;
use crate::auth::Policy;
use crate::auth::secret::Sealer;
use crate::peer::client::Access;
use crate::peer::token::PeerToken;
use crate::runtime::Sender;
use crate::settings::security::{self as settings, NamedFile};
use crate::telemetry::security::SecurityCounters;

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The most tokens a file may hold.
const TOKENS_MAX: usize = 64;
/// How soon a thread is told again whose mailbox was full.
const TELL_AGAIN: Duration = Duration::from_millis(10);

/// What decides who is let in.
pub struct Security {
    /// Tells it from others; grows, and is not 0.
    pub number: u64,
    /// Whom the client and management listeners know.
    pub policy: Arc<Policy>,
    /// Who says whom identity tokens stand for.
    pub judge: Option<Judge>,
    /// What nodes show each other.
    pub peer_access: Access,
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

    fn named_files(&self) -> impl Iterator<Item = &NamedFile> {
        let settings = &self.settings;
        [
            &settings.auth_token_file,
            &settings.auth_config,
            &settings.peer_token_file,
        ]
        .into_iter()
        .flatten()
    }

    fn read(&self) -> Result<Files, String> {
        self.named_files()
            .map(|file| match read(file) {
                Ok(bytes) => Ok((file.clone(), bytes)),
                Err(error) => Err(format!("{file}: cannot be read: {error}")),
            })
            .collect::<Result<_, _>>()
            .map(Files)
    }

    fn build(&self, files: &Files, number: u64) -> Result<Security, String> {
        let settings = &self.settings;
        let client_tokens = match &settings.auth_token_file {
            Some(file) => files.tokens(file)?,
            None if settings.auth_token.is_empty() => Vec::new(),
            None => vec![settings.auth_token.reveal().to_owned()],
        };
        let policy = match &settings.auth_config {
            Some(file) => Policy::parse(files.text(file)?, &self.sealer)
                .map_err(|error| format!("{file}: {error}"))?,
            None if !client_tokens.is_empty() => Policy::of_tokens(&client_tokens, &self.sealer),
            None if settings.oidc.is_some() => Policy::closed(&self.sealer),
            None => Policy::open(&self.sealer),
        };
        let peer_tokens = match &settings.peer_token_file {
            Some(file) => files.tokens(file)?,
            None if settings.peer_token.is_empty() => client_tokens,
            None => vec![settings.peer_token.reveal().to_owned()],
        };
        Ok(Security {
            number,
            policy: Arc::new(policy),
            judge: None,
            peer_access: Access {
                token: PeerToken::new(peer_tokens),
            },
        })
    }

    /// Loads for the start.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, in one line that names the setting.
    pub fn load(self) -> Result<Loaded, String> {
        let files = self.read()?;
        let security = Arc::new(self.build(&files, 1)?);
        Ok(Loaded {
            loader: self,
            files,
            security,
        })
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
}

impl Watcher {
    /// Watches what was loaded; to be started.
    pub fn new(loaded: Loaded, audience: Audience, counters: Arc<SecurityCounters>) -> Self {
        let threads = audience.mailboxes.len() + 1;
        Self {
            loaded,
            audience,
            untold: Vec::new(),
            waiting: (0..threads).map(|_| Arc::default()).collect(),
            counters,
            broken: None,
            unreadable: None,
        }
    }

    /// Starts the thread; each message of `wake` has it look at once. It ends with the
    /// sender of those.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(mut self, wake: Receiver<()>) -> io::Result<()> {
        let interval = self.loaded.loader.settings.reload_interval;
        let work = move || {
            loop {
                let pause = match self.untold.is_empty() {
                    true => interval,
                    false => interval.min(TELL_AGAIN),
                };
                match wake.recv_timeout(pause) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => self.look(),
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                self.tell();
            }
        };
        thread::Builder::new()
            .name("security".to_owned())
            .spawn(work)?;
        Ok(())
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
        let number = self.loaded.security.number + 1;
        match self.loaded.loader.build(&files, number) {
            Ok(security) => {
                tracing::info!(number, "changed credentials are in force");
                self.broken = None;
                self.counters.reloads.count();
                self.counters.reload_failing.set(0);
                self.loaded.files = files;
                self.put_in_force(security);
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
