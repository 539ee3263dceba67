//! One thread's door: what it goes by, who is let through, and what it has found out.
//!
//! A certificate is verified when a connection is made, and again with the first request
//! after other authorities have come into force. Who is not trusted any more, or whose
//! certificate has ended, is expelled from a connection that is open.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};

use super::connection::Entry;
use super::security::{Entrance, Security};
use super::verifying::{Verifiers, Verifying};
use crate::api::ApiError;
use crate::auth::{Admission, Caller, Gate, Refusal, Scope};
use crate::clock::UnixMs;
use crate::tls::config::{chain_end, subject_cn};
use crate::tls::{ClientVerifier, TlsStream};

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

/// A connection as the door knows it.
pub struct Visitor {
    caller: Caller,
    entrance: Entrance,
    /// What was shown when the connection was made, its own certificate first.
    certificates: Vec<CertificateDer<'static>>,
    /// The number of the [`Security`] by which they are good.
    good_under: Cell<u64>,
    /// Who found them good.
    good_by: RefCell<Option<ClientVerifier>>,
    /// The first second in which one of them is good no more.
    ends_s: u64,
}

impl Visitor {
    /// A connection in the clear.
    pub fn in_the_clear(entrance: Entrance) -> Self {
        Self {
            caller: Caller::default(),
            entrance,
            certificates: Vec::new(),
            good_under: Cell::new(0),
            good_by: RefCell::new(None),
            ends_s: u64::MAX,
        }
    }

    /// A connection whose handshake was made by `security`.
    pub fn over_tls(entrance: Entrance, stream: &TlsStream, security: &Security) -> Self {
        let certificates = stream.peer_certificates().unwrap_or_default();
        let common_name = certificates.first().and_then(|own| subject_cn(own));
        Self {
            caller: Caller::new(true, common_name),
            entrance,
            certificates: certificates.to_vec(),
            good_under: Cell::new(security.number),
            good_by: RefCell::new(security.clients(entrance).cloned()),
            ends_s: ends_s(certificates),
        }
    }

    /// Whether nobody can listen in.
    pub fn is_encrypted(&self) -> bool {
        self.caller.is_encrypted()
    }

    /// Who speaks here.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }
}

/// The first second in which one of these certificates is good no more.
fn ends_s(certificates: &[CertificateDer<'_>]) -> u64 {
    if certificates.is_empty() {
        return u64::MAX;
    }
    // What cannot be read, or ended before 1970, is good for nothing.
    let last = chain_end(certificates).and_then(|last| u64::try_from(last).ok());
    last.map_or(0, |last| last.saturating_add(1))
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
        visitor: &Visitor,
        authorization: Option<&[u8]>,
        scope: Option<Scope>,
    ) -> Entry {
        if let Err(expelled) = self.check_certificates(visitor) {
            return expelled;
        }
        if scope.is_none() {
            return Entry::Open;
        }
        match self.gate.admit(&visitor.caller, authorization, scope) {
            Admission::Granted => Entry::Granted,
            Admission::Unverified => Entry::Unverified,
            Admission::Refused(refusal) => self.refuse(refusal),
        }
    }

    /// Expels who was let in by a certificate that is good no more.
    #[inline]
    pub fn check_certificates(&self, visitor: &Visitor) -> Result<(), Entry> {
        if visitor.certificates.is_empty() {
            return Ok(());
        }
        let is_known = visitor.good_under.get() == self.gate.number();
        if is_known && self.gate.now_s() < visitor.ends_s {
            return Ok(());
        }
        self.verify_certificates(visitor)
    }

    /// Whether an answer that goes on may go on.
    pub fn still_admits(&self, visitor: &Visitor, scope: Option<Scope>) -> bool {
        self.check_certificates(visitor).is_ok() && self.gate.still_admits(&visitor.caller, scope)
    }

    #[cold]
    fn verify_certificates(&self, visitor: &Visitor) -> Result<(), Entry> {
        let security = self.security.borrow();
        let clients = security.clients(visitor.entrance);
        let in_time = self.gate.now_s() < visitor.ends_s;
        // Most changes are none of the authorities: those need no look at signatures.
        let by_the_same = match (&*visitor.good_by.borrow(), clients) {
            (Some(former), Some(clients)) => former.is(clients),
            (former, clients) => former.is_none() && clients.is_none(),
        };
        let verifies = |clients: &ClientVerifier| {
            let verified = clients.verify(&visitor.certificates, UnixTime::now());
            verified.is_ok()
        };
        if in_time && (by_the_same || clients.is_none_or(verifies)) {
            visitor.good_under.set(self.gate.number());
            visitor.good_by.replace(clients.cloned());
            return Ok(());
        }
        let mut refused = self.refused.get();
        refused.unauthorized += 1;
        self.refused.set(refused);
        Err(Entry::Expelled(ApiError::certificate_no_longer_good()))
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
    pub async fn verify(&self, visitor: &Visitor, authorization: &[u8]) {
        let judge = self.security.borrow().judge.clone();
        self.verifying
            .verify(&self.gate, &visitor.caller, judge, authorization)
            .await;
    }
}
