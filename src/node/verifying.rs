//! Finds out off the cores whether credentials are right.
//!
//! A bcrypt hash takes tens of milliseconds and a signature tens of microseconds: neither
//! is computed on a data core. Two threads do nothing else, one for passwords, one for
//! identity tokens, so that a storm of logins delays no token. They have a lower priority
//! than the cores, which share their CPUs.
//!
//! **Full.** A bounded number of checks waits for each thread. Names are spread over
//! [`LANES`] by a keyed hash, whether they are users' or not, and of each lane a core has
//! [`PER_LANE_MAX`] passwords checked at once: whoever guesses one user's passwords
//! keeps few others from logging in, and learns nothing about who is a user. What finds
//! no room is refused as busy. Connections that show the same credentials wait for one
//! check.
//!
//! Right passwords are remembered under a keyed hash, by each core and by the thread, for
//! as long as the node runs: they are right by the hash they were compared with. So
//! whoever is known does not wait behind others, not even after a reload.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::auth::secret::Tag;
use crate::auth::{Caller, Check, Gate, Identity, Outcome};
use crate::runtime::{Giver, Taker, handoff};
use crate::telemetry::security::SecurityCounters;

/// Passwords that wait for their thread: some seconds of its work.
const PASSWORDS_MAX: usize = 64;
/// Identity tokens that wait for theirs.
const TOKENS_MAX: usize = 1024;
/// What the names of users are spread over.
const LANES: usize = 64;
/// Passwords of one lane that one core has checked at once.
const PER_LANE_MAX: u8 = 2;
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
    /// What a right one is remembered by.
    tag: Tag,
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
    pub fn start(counters: &Arc<SecurityCounters>) -> io::Result<Self> {
        let (passwords, to_check) = bounded(PASSWORDS_MAX);
        let (tokens, to_judge) = bounded(TOKENS_MAX);
        let counted = Arc::clone(counters);
        let work = move || check_passwords(&to_check, &counted);
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

/// Passwords that were found right before, each with the hash it is right by.
#[derive(Default)]
struct RightPasswords(HashSet<Tag>);

impl RightPasswords {
    fn contains(&self, tag: &Tag) -> bool {
        self.0.contains(tag)
    }

    fn insert(&mut self, tag: Tag) {
        if self.0.len() >= KNOWN_MAX {
            self.0.clear();
        }
        self.0.insert(tag);
    }
}

fn check_passwords(queue: &Receiver<Password>, counters: &SecurityCounters) {
    stand_back();
    let mut known = RightPasswords::default();
    for password in queue {
        let right = known.contains(&password.tag) || is_right(&password, counters);
        let outcome = match password.identity {
            Some(identity) if right => {
                known.insert(password.tag);
                Outcome::Granted(identity, u64::MAX)
            }
            _ => {
                counters.verifications_failed.count();
                Outcome::Refused(u64::MAX)
            }
        };
        password.reply.give(outcome);
    }
}

fn is_right(password: &Password, counters: &SecurityCounters) -> bool {
    counters.passwords_verified.count();
    // More than 72 bytes, which bcrypt would cut, are an error: never right.
    let verify = || bcrypt::non_truncating_verify(&password.shown, &password.hash);
    matches!(unharmed(verify), Some(Ok(true)))
}

fn judge_tokens(queue: &Receiver<Token>, counters: &SecurityCounters) {
    stand_back();
    for token in queue {
        counters.tokens_verified.count();
        let judged = unharmed(|| (token.judge)(&token.shown));
        let outcome = judged.unwrap_or(Outcome::Refused(u64::MAX));
        if matches!(outcome, Outcome::Refused(_)) {
            counters.verifications_failed.count();
        }
        token.reply.give(outcome);
    }
}

/// What `check` finds, or nothing when it panics: the next one is checked all the same.
fn unharmed<T>(check: impl FnOnce() -> T) -> Option<T> {
    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
    checked
        .inspect_err(|_| tracing::error!("verifying credentials panicked: they are refused"))
        .ok()
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
    /// How many of them are passwords, for each lane of names.
    per_lane: [Cell<u8>; LANES],
    right: RefCell<RightPasswords>,
}

impl Verifying {
    /// Nothing under way.
    pub fn new(verifiers: Verifiers) -> Self {
        Self {
            verifiers,
            pending: RefCell::default(),
            per_lane: [const { Cell::new(0) }; LANES],
            right: RefCell::default(),
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
                let outcome = self.find_out(gate, check, judge).await;
                self.pending.borrow_mut().remove(&key);
                pending.settle(outcome.clone());
                outcome
            }
            (None, None) => Outcome::Refused(u64::MAX),
        };
        gate.note(caller, number, tag, outcome);
    }

    async fn find_out(&self, gate: &Gate, check: Check, judge: Option<Judge>) -> Outcome {
        match check {
            Check::Token(shown) => {
                let Some(judge) = judge else {
                    return Outcome::Busy;
                };
                let (reply, found) = handoff();
                let token = Token {
                    shown,
                    judge,
                    reply,
                };
                match self.verifiers.tokens.try_send(token) {
                    Ok(()) => found.await.unwrap_or(Outcome::Busy),
                    Err(_) => Outcome::Busy,
                }
            }
            Check::Password {
                username,
                password,
                hash,
                identity,
            } => {
                let policy = gate.policy();
                // The hash has no byte 0, so the two cannot be taken for another pair.
                let tag = policy.tag(&[hash.as_bytes(), b"\0", &password].concat());
                if let Some(identity) = &identity
                    && self.right.borrow().contains(&tag)
                {
                    return Outcome::Granted(Arc::clone(identity), u64::MAX);
                }
                let lane = policy.tag(username.as_bytes()).lane(LANES);
                let (reply, found) = handoff();
                let password = Password {
                    shown: password,
                    hash,
                    identity,
                    tag,
                    reply,
                };
                let outcome = self.check_password(lane, password, found).await;
                if matches!(outcome, Outcome::Granted(..)) {
                    self.right.borrow_mut().insert(tag);
                }
                outcome
            }
        }
    }

    async fn check_password(
        &self,
        lane: usize,
        password: Password,
        found: Taker<Outcome>,
    ) -> Outcome {
        let under_way = &self.per_lane[lane];
        if under_way.get() >= PER_LANE_MAX || self.verifiers.passwords.try_send(password).is_err() {
            return Outcome::Busy;
        }
        under_way.set(under_way.get() + 1);
        let outcome = found.await.unwrap_or(Outcome::Busy);
        under_way.set(under_way.get() - 1);
        outcome
    }
}
