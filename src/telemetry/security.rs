//! What a node counts about who is let in, beyond its cores: changed by the threads that
//! verify credentials, re-read files and answer the management listener, read when scraped.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that any thread may change.
#[derive(Debug, Default)]
pub struct Shared(AtomicU64);

impl Shared {
    /// Adds one.
    pub fn count(&self) {
        self.add(1);
    }

    /// Adds so many.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Replaces it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// See the module's comment.
#[derive(Debug, Default)]
pub struct SecurityCounters {
    /// Passwords compared with a bcrypt hash.
    pub passwords_verified: Shared,
    /// Identity tokens whose signature was verified.
    pub tokens_verified: Shared,
    /// Credentials that were verified and found wrong.
    pub verifications_failed: Shared,
    /// Times that changed files were taken over.
    pub reloads: Shared,
    /// Times that changed files could not be taken over.
    pub reload_failures: Shared,
    /// 1 while files are not as they are in force, because they cannot be taken over.
    pub reload_failing: Shared,
    /// Management connections turned away because there are as many as there may be.
    pub management_connections_refused: Shared,
    /// Idle management connections that were closed to make room for others.
    pub management_connections_displaced: Shared,
    /// Management requests that showed no credentials that count.
    pub management_unauthorized: Shared,
    /// Management requests by callers that lack the scope.
    pub management_forbidden: Shared,
    /// Management requests whose credentials could not be verified then.
    pub management_verifications_refused: Shared,
    /// TLS handshakes on the management listener that became connections.
    pub management_handshakes: Shared,
    /// Those that came to no good end.
    pub management_handshakes_failed: Shared,
    /// Those that took too long.
    pub management_handshakes_timed_out: Shared,
    /// Those that were not begun because as many as may be were under way.
    pub management_handshakes_refused: Shared,
    /// Fetches of the issuer's keys that have ended.
    pub oidc_fetches: Shared,
    /// Those of them that failed.
    pub oidc_fetch_failures: Shared,
    /// How many keys of the issuer are in use.
    pub oidc_keys: Shared,
    /// When keys were last fetched, in seconds since 1970; 0 before they were.
    pub oidc_fetched_s: Shared,
    /// When the first certificate in use ends, in seconds since 1970; 0 without any.
    pub certificate_expires_s: Shared,
}
