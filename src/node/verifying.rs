//! Finds out off the cores whether credentials are right.
//!
//! A bcrypt hash takes tens of milliseconds and a signature tens of microseconds: neither
//! is computed on a data core. Two threads do nothing else, one for passwords, one for
//! identity tokens, so that a storm of logins delays no token. They have a lower priority
//! than the cores, which share their CPUs.
//!
//! **Full.** [`QUEUE_MAX`] checks wait for each thread, and of one user's passwords
//! [`PER_USER_MAX`] from each core (all unknown users count as one): whoever guesses
//! passwords keeps others from nothing but that user's next login. What finds no room is
//! refused as busy. Connections that show the same credentials wait for one check.
//!
//! Right passwords are remembered by the thread too, under a keyed hash: the other cores,
//! and all of them after a reload, get the answer at once.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::auth::secret::{Sealer, Tag};
use crate::auth::{Caller, Check, Gate, Identity, Outcome};
use crate::runtime::{Giver, handoff};
use crate::telemetry::security::SecurityCounters;

/// Checks that wait for one thread.
const QUEUE_MAX: usize = 1024;
/// Passwords of one user that one core has checked at once.
const PER_USER_MAX: usize = 4;
/// Right passwords that are remembered.
const KNOWN_MAX: usize = 4096;
/// How much the threads stand back behind the cores (`nice`).
const NICENESS: i32 = 10;

/// Says whom an identity token stands for.
pub type Judge = Arc<dyn Fn(&str) -> Outcome + Send + Sync>;

struct Password {
    shown: Vec<u8>,
    hash: Arc<str>,
    identity: Option<Arc<Identity>>,
    reply: Giver<Outcome>,
}

struct Token {
    shown: String,
    judge: Judge,
    reply: Giver<Outcome>,
}

/// Where checks are sent.
#[derive(Clone)]
pub struct Verifiers {
    passwords: Sender<Password>,
    tokens: Sender<Token>,
}

impl Verifiers {
    /// Starts the threads; they end with the last handle.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started.
    pub fn start(sealer: &Sealer, counters: &Arc<SecurityCounters>) -> io::Result<Self> {
        let (passwords, to_check) = bounded(QUEUE_MAX);
        let (tokens, to_judge) = bounded(QUEUE_MAX);
        let known = KnownPasswords {
            sealer: sealer.clone(),
            tags: HashSet::new(),
        };
        let counted = Arc::clone(counters);
        let work = move || check_passwords(&to_check, known, &counted);
        thread::Builder::new()
            .name("passwords".to_owned())
            .spawn(work)?;
        let counted = Arc::clone(counters);
        let work = move || judge_tokens(&to_judge, &counted);
        thread::Builder::new()
            .name("tokens".to_owned())
            .spawn(work)?;
        Ok(Self { passwords, tokens })
    }
}

/// Passwords that were found right before.
struct KnownPasswords {
    sealer: Sealer,
    tags: HashSet<Tag>,
}

impl KnownPasswords {
    fn is_right(&mut self, password: &Password, counters: &SecurityCounters) -> bool {
        // The hash has no byte 0, so the two cannot be taken for another pair.
        let pair = [password.hash.as_bytes(), b"\0", &password.shown].concat();
        let tag = self.sealer.tag(&pair);
        if self.tags.contains(&tag) {
            return true;
        }
        counters.passwords_verified.count();
        // More than 72 bytes, which bcrypt would cut, are an error: never right.
        let right = bcrypt::non_truncating_verify(&password.shown, &password.hash);
        let right = right.unwrap_or(false);
        if right {
            if self.tags.len() >= KNOWN_MAX {
                self.tags.clear();
            }
            self.tags.insert(tag);
        }
        right
    }
}

fn check_passwords(
    queue: &Receiver<Password>,
    mut known: KnownPasswords,
    counters: &SecurityCounters,
) {
    stand_back();
    for password in queue {
        let right = known.is_right(&password, counters);
        let outcome = match password.identity {
            Some(identity) if right => Outcome::Granted(identity, u64::MAX),
            _ => {
                counters.verifications_failed.count();
                Outcome::Refused(u64::MAX)
            }
        };
        password.reply.give(outcome);
    }
}

fn judge_tokens(queue: &Receiver<Token>, counters: &SecurityCounters) {
    stand_back();
    for token in queue {
        counters.tokens_verified.count();
        let outcome = (token.judge)(&token.shown);
        if matches!(outcome, Outcome::Refused(_)) {
            counters.verifications_failed.count();
        }
        token.reply.give(outcome);
    }
}

/// Lowers this thread's priority; where that is not allowed it stays as it is.
fn stand_back() {
    let _ = rustix::process::nice(NICENESS);
}

/// A check under way, for all connections that wait for it.
#[derive(Default)]
struct Pending {
    outcome: RefCell<Option<Outcome>>,
    waiting: RefCell<Vec<Waker>>,
}

impl Pending {
    async fn outcome(&self) -> Outcome {
        poll_fn(|context| match &*self.outcome.borrow() {
            Some(outcome) => Poll::Ready(outcome.clone()),
            None => {
                self.waiting.borrow_mut().push(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    fn settle(&self, outcome: Outcome) {
        *self.outcome.borrow_mut() = Some(outcome);
        for waker in self.waiting.borrow_mut().drain(..) {
            waker.wake();
        }
    }
}

/// One core's checks under way.
pub struct Verifying {
    verifiers: Verifiers,
    /// By the number of the policy and the credentials.
    pending: RefCell<HashMap<(u64, Tag), Rc<Pending>>>,
    /// How many of them are one user's passwords; unknown users have no name.
    per_user: RefCell<HashMap<String, usize>>,
}

impl Verifying {
    /// Nothing under way.
    pub fn new(verifiers: Verifiers) -> Self {
        Self {
            verifiers,
            pending: RefCell::default(),
            per_user: RefCell::default(),
        }
    }

    /// Finds out who shows these credentials and has the gate remember it. Without a
    /// judge, the issuer's keys are yet to come, identity tokens have to wait.
    pub async fn verify(
        &self,
        gate: &Gate,
        caller: &Caller,
        judge: Option<Judge>,
        authorization: &[u8],
    ) {
        let number = gate.number();
        let (tag, check) = gate.check(authorization);
        let waits_for = self.pending.borrow().get(&(number, tag)).cloned();
        let outcome = match (waits_for, check) {
            (Some(pending), _) => pending.outcome().await,
            (None, Some(check)) => {
                let pending = Rc::new(Pending::default());
                let key = (number, tag);
                let others = Rc::clone(&pending);
                self.pending.borrow_mut().insert(key, others);
                let outcome = self.find_out(check, judge).await;
                self.pending.borrow_mut().remove(&key);
                pending.settle(outcome.clone());
                outcome
            }
            (None, None) => Outcome::Refused(u64::MAX),
        };
        gate.note(caller, number, tag, outcome);
    }

    async fn find_out(&self, check: Check, judge: Option<Judge>) -> Outcome {
        let (reply, found) = handoff();
        match check {
            Check::Token(shown) => {
                let Some(judge) = judge else {
                    return Outcome::Busy;
                };
                let token = Token {
                    shown,
                    judge,
                    reply,
                };
                if self.verifiers.tokens.try_send(token).is_err() {
                    return Outcome::Busy;
                }
                found.await.unwrap_or(Outcome::Busy)
            }
            Check::Password {
                username,
                password,
                hash,
                identity,
            } => {
                let user = identity.as_ref().map(|_| username).unwrap_or_default();
                if !self.begin(&user) {
                    return Outcome::Busy;
                }
                let password = Password {
                    shown: password,
                    hash,
                    identity,
                    reply,
                };
                let outcome = match self.verifiers.passwords.try_send(password) {
                    Ok(()) => found.await.unwrap_or(Outcome::Busy),
                    Err(_) => Outcome::Busy,
                };
                self.end(&user);
                outcome
            }
        }
    }

    fn begin(&self, user: &str) -> bool {
        let mut per_user = self.per_user.borrow_mut();
        let count = per_user.entry(user.to_owned()).or_default();
        let has_room = *count < PER_USER_MAX;
        *count += usize::from(has_room);
        has_room
    }

    fn end(&self, user: &str) {
        let mut per_user = self.per_user.borrow_mut();
        if let Some(count) = per_user.get_mut(user) {
            *count -= 1;
            if *count == 0 {
                per_user.remove(user);
            }
        }
    }
}
