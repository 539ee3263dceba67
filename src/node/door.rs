//! One thread's door: what it goes by, who is let through, and what it has found out.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::connection::Entry;
use super::security::Security;
use super::verifying::{Verifiers, Verifying};
use crate::api::ApiError;
use crate::auth::{Admission, Caller, Gate, Refusal, Scope};
use crate::clock::UnixMs;

/// How many requests were turned away, by reason.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refused {
    /// They showed nothing that counts.
    pub unauthorized: u64,
    /// They lacked the scope.
    pub forbidden: u64,
    /// Their credentials could not be verified for want of room.
    pub busy: u64,
}

/// See the module's comment.
pub struct Door {
    gate: Gate,
    verifying: Verifying,
    security: RefCell<Arc<Security>>,
    refused: Cell<Refused>,
}

impl Door {
    /// A door that goes by `security`.
    pub fn new(security: Arc<Security>, verifiers: Verifiers, now: UnixMs) -> Self {
        let policy = Arc::clone(&security.policy);
        Self {
            gate: Gate::new(policy, security.number, now.0 / 1000),
            verifying: Verifying::new(verifiers),
            security: RefCell::new(security),
            refused: Cell::default(),
        }
    }

    /// Goes by something else from now on.
    pub fn set_security(&self, security: Arc<Security>) {
        self.gate
            .set_policy(Arc::clone(&security.policy), security.number);
        self.security.replace(security);
    }

    /// What it goes by.
    pub fn security(&self) -> Arc<Security> {
        Arc::clone(&self.security.borrow())
    }

    /// Moves the time on.
    pub fn set_now(&self, now: UnixMs) {
        self.gate.set_now(now.0 / 1000);
    }

    /// How many requests it has turned away.
    pub fn refused(&self) -> Refused {
        self.refused.get()
    }

    /// Whether a request with this `Authorization` may do what takes `scope`.
    #[inline]
    pub fn admit(
        &self,
        caller: &Caller,
        authorization: Option<&[u8]>,
        scope: Option<Scope>,
    ) -> Entry {
        match self.gate.admit(caller, authorization, scope) {
            Admission::Granted => Entry::Granted,
            Admission::Unverified => Entry::Unverified,
            Admission::Refused(refusal) => self.refuse(refusal),
        }
    }

    #[cold]
    fn refuse(&self, refusal: Refusal) -> Entry {
        let mut refused = self.refused.get();
        match refusal {
            Refusal::Unauthorized { .. } => refused.unauthorized += 1,
            Refusal::Forbidden(_) => refused.forbidden += 1,
            Refusal::Busy => refused.busy += 1,
        }
        self.refused.set(refused);
        Entry::Denied(ApiError::refused(refusal))
    }

    /// Finds out who shows these credentials.
    pub async fn verify(&self, caller: &Caller, authorization: &[u8]) {
        let judge = self.security.borrow().judge.clone();
        self.verifying
            .verify(&self.gate, caller, judge, authorization)
            .await;
    }
}
