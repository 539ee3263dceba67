//! Who you are and what you may do.
//!
//! ```text
//! request -> Credentials -> Gate (one per core) -> Granted | Refused | Unverified
//!                             |   ^                                       |
//!                        Policy   +------ verdict <- off the cores <- Check
//! ```
//!
//! [`Policy`] says whom a node knows; it is immutable and replaced whole when a file or
//! an issuer's keys change. A [`Gate`] is one core's door: it finds the identity behind
//! a request by the contract's order (bearer token, HTTP Basic, client certificate,
//! identity token; the first that matches wins) and remembers it per connection.
//!
//! Everything here is pure: time is an argument, and what takes long (a bcrypt hash, a
//! signature) is handed out as a [`Check`], carried out elsewhere, and comes back as an
//! [`Outcome`].
//!
//! **Secrets.** Tokens are kept and looked up as keyed hashes under a key that only this
//! process knows, so neither memory nor the time of a lookup tells anything about them.
//! No secret appears in a log, an error or a `Debug` text.
//!
//! **Full.** What a gate remembers of credentials is bounded; beyond that it forgets and
//! asks again. When checks cannot be carried out for want of room, the request is
//! refused as busy, never let in.
//!
//! **Change.** Each policy has a number. What was remembered under another number counts
//! for nothing, so a credential that was taken away stops working with the next request
//! of a connection that is already open.

pub mod credentials;
pub mod gate;
pub mod identity;
pub mod oidc;
pub mod policy;
pub mod secret;

pub use credentials::Credentials;
pub use gate::{Admission, Caller, Check, Gate, Outcome, Refusal};
pub use identity::{Identity, Scope, Scopes};
pub use policy::Policy;
