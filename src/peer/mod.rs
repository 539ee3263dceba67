//! Nodes talking to nodes: HTTP/1.1 over the peer listener.
//!
//! * [`client`]: one keep-alive connection to one peer, one request at a time.
//! * [`answer`]: the heads of the answers it gets.
//! * [`channel`]: what it goes over, in the clear or under TLS.
//!
//! What is said stands in [`cluster::message`](crate::cluster::message) and
//! [`cluster::membership`](crate::cluster::membership); this module only carries it. What
//! the peer listener answers stands in `node::peering`.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /peer/v1/operations/{core}/{cores}` | a frame | the answers to it |
//! | `POST /peer/v1/membership` | a message | the reply, or nothing |
//! | `GET /peer/v1/keys?q&max` | | keys of this node |
//! | `POST /dist/drain` | | `draining`; for operators, as is `/health` |
//! | `GET /health` | | `ok`, or 503 and why not; needs no token |
//!
//! Everything but `/health` needs the peer token where one is configured. Every
//! request has a deadline; whoever does not answer within it is taken to have failed.

pub mod answer;
pub mod channel;
pub mod client;
pub mod keys;
pub mod token;

/// Where frames go; the core and the number of cores of the sender follow.
pub const OPERATIONS_PATH: &str = "/peer/v1/operations/";
/// Where membership messages go.
pub const MEMBERSHIP_PATH: &str = "/peer/v1/membership";
/// Where a node's keys are listed.
pub const KEYS_PATH: &str = "/peer/v1/keys";

/// Where a node is told to drain.
pub const DRAIN_PATH: &str = "/dist/drain";

/// The largest body of a request between peers, beyond the largest value.
pub const BODY_BYTES_MAX: u64 = 64 << 20;
