//! Who owns a key, and who is in the cluster: pure functions of membership.

use std::borrow::Cow;

use serde::Serialize;

use super::{NodeFacts, Writer, key, key_text};
use crate::clock::Origin;
use crate::http::Status;

#[derive(Serialize)]
struct Owners<'a> {
    key: Cow<'a, str>,
    owners: &'a [String],
    node: &'a str,
}

#[derive(Serialize)]
struct Members<'a> {
    replication: u32,
    #[serde(rename = "virtualNodes")]
    virtual_nodes: u32,
    members: [Member<'a>; 1],
}

/// Both spellings, because two generations of clients read this answer: the
/// capitalised `Address` is the peer listener, the other the client listener.
#[derive(Serialize)]
struct Member<'a> {
    #[serde(rename = "ID")]
    upper_id: &'a str,
    #[serde(rename = "Address")]
    peer_address: &'a str,
    #[serde(rename = "State")]
    upper_state: &'static str,
    #[serde(rename = "Incarnation")]
    upper_incarnation: u64,
    #[serde(rename = "id")]
    id: &'a str,
    #[serde(rename = "address")]
    client_address: &'a str,
    #[serde(rename = "state")]
    state: &'static str,
    #[serde(rename = "incarnation")]
    incarnation: u64,
}

/// Answers who owns a key.
pub fn owners(raw_key: &[u8], writer: &mut Writer<'_>) {
    match key::decode(raw_key) {
        Ok(key) => {
            let facts = writer.facts;
            let body = Owners {
                key: key_text(&key),
                owners: &facts.owners,
                node: &facts.node_id,
            };
            writer.json(Status::Ok, &body);
        }
        Err(error) => writer.error(&error),
    }
}

/// Answers who is in the cluster.
pub fn members(writer: &mut Writer<'_>) {
    let facts = writer.facts;
    let member = Member {
        upper_id: &facts.node_id,
        peer_address: &facts.peer_address,
        upper_state: "alive",
        upper_incarnation: 0,
        id: &facts.node_id,
        client_address: &facts.client_address,
        state: "alive",
        incarnation: 0,
    };
    let body = Members {
        replication: facts.replication,
        virtual_nodes: facts.virtual_nodes,
        members: [member],
    };
    writer.json(Status::Ok, &body);
}

impl NodeFacts {
    /// The id of the node an origin stands for, if it is known.
    pub fn origin_name(&self, origin: Origin) -> Option<&str> {
        (origin == self.origin).then_some(self.node_id.as_str())
    }
}
