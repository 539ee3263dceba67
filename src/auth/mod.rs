//! Who you are and what you may do.

pub mod identity;
pub mod oidc;

pub use identity::{Identity, Scope, Scopes};
