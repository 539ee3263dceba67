//! Who owns a key, and who is in the cluster: pure functions of membership.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use super::{Writer, key, key_text};
use crate::clock::Origin;
use crate::cluster::View;
use crate::hash::{KeyHash, PartitionId};
use crate::http::Status;

/// The ids of a partition's owners, the primary first.
#[derive(Clone, Copy, Debug)]
pub struct OwnerIds<'a> {
    view: &'a View,
    partition: PartitionId,
}

impl<'a> OwnerIds<'a> {
    /// The owners of a key.
    pub fn of(view: &'a View, key: &[u8]) -> Self {
        let partition = KeyHash::of(key).partition();
        Self { view, partition }
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = &'a str> {
        self.view.owner_ids(self.partition)
    }
}

impl Serialize for OwnerIds<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// The node that wrote an item, as the API names it: its id, or the hash of its id in
/// hexadecimal once it has left and the id is no longer known.
pub fn origin_name(view: &View, origin: Origin) -> Cow<'_, str> {
    match view.origin_name(origin) {
        Some(id) => Cow::Borrowed(id),
        None => Cow::Owned(origin.node().to_string()),
    }
}

#[derive(Serialize)]
struct Owners<'a> {
    key: Cow<'a, str>,
    owners: OwnerIds<'a>,
    node: &'a str,
}

/// Who is in the cluster, as the client listener tells it.
#[derive(Serialize)]
struct Members<'a> {
    replication: usize,
    #[serde(rename = "virtualNodes")]
    virtual_nodes: u32,
    members: Vec<Member<'a>>,
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
            let body = Owners {
                key: key_text(&key),
                owners: OwnerIds::of(writer.view, &key),
                node: &writer.facts.node_id,
            };
            writer.json(Status::Ok, &body);
        }
        Err(error) => writer.error(&error),
    }
}

/// Answers who is in the cluster.
pub fn members(writer: &mut Writer<'_>) {
    let view = writer.view;
    let members = view.members().into_iter().map(|node| Member {
        upper_id: &node.id,
        peer_address: &node.peer_address,
        upper_state: node.state.name(),
        upper_incarnation: node.incarnation,
        id: &node.id,
        client_address: &node.client_address,
        state: node.state.name(),
        incarnation: node.incarnation,
    });
    let body = Members {
        replication: view.replication_wanted(),
        virtual_nodes: view.virtual_nodes(),
        members: members.collect(),
    };
    writer.json(Status::Ok, &body);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_is_no_member_keeps_one_name() {
        let view = View::alone("here", 1, 8);
        assert_eq!(origin_name(&view, Origin::of("here", 3)), "here");
        let name = origin_name(&view, Origin::of("gone", 3));
        assert_eq!(name, origin_name(&view, Origin::of("gone", 4)));
        assert!(name.len() == 6 && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
