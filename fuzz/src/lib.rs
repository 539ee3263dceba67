//! What must hold for any bytes that come from outside: one law per reader.
//!
//! A law takes bytes and panics when they break it. It is pure and decides everything by
//! the bytes alone, so that an input that breaks it once breaks it always. The fuzzer
//! looks for such inputs (`fuzz/run`); `tests/fuzz_corpus.rs` includes this file and
//! replays the kept corpora with stable Rust on every test run.
//!
//! That nothing takes exponential time or unbounded memory is the fuzzer's to see: it
//! kills an input that takes a minute or two gigabytes.

pub mod batch;
pub mod chunked;
pub mod connection;
pub mod cuts;
pub mod duration;
pub mod glob;
pub mod head;
pub mod membership;
pub mod oidc;
pub mod peer_answer;
pub mod peer_frame;
pub mod peer_serve;
pub mod policy;
pub mod settings;
pub mod uri;

/// A law: does nothing, or panics.
pub type Law = fn(&[u8]);

/// Every law by the name of its fuzz target and of its corpus.
pub const LAWS: &[(&str, Law)] = &[
    ("batch", batch::law),
    ("chunked", chunked::law),
    ("connection", connection::law),
    ("duration", duration::law),
    ("glob", glob::law),
    ("head", head::law),
    ("membership", membership::law),
    ("oidc", oidc::law),
    ("peer_answer", peer_answer::law),
    ("peer_frame", peer_frame::law),
    ("peer_serve", peer_serve::law),
    ("policy", policy::law),
    ("settings", settings::law),
    ("uri", uri::law),
];
