//! Membership messages, and a node that receives them: the input is messages, each behind
//! its length in two bytes.
//!
//! * What is decoded is encoded to the very same bytes: there is one form.
//! * A node survives any messages in any order. It remembers a bounded number of members
//!   and waits with a bounded number of messages, and whatever it says can be read.

use std::sync::Arc;

use hypercache::cluster::membership::{
    ACTIONS_MAX, Action, Config, Identity, MEMBERS_MAX, Membership, Message, Seed,
};
use hypercache::cluster::rng::Rng;

/// Messages of one input.
const MESSAGES_MAX: usize = 32;

/// See the module's comment.
pub fn law(bytes: &[u8]) {
    one(bytes);
    for seeds in [vec![], vec![seed()]] {
        let mut node = Membership::new(CONFIG, identity(), 1_000, seeds, 1_000);
        let mut rng = Rng::new(1);
        let mut now_ms = 1_000;
        let mut rest = bytes;
        for _ in 0..MESSAGES_MAX {
            let Some((length, after)) = rest.split_first_chunk::<2>() else {
                break;
            };
            let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
            let (message, after) = after.split_at(length);
            rest = after;
            if let Some(message) = one(message)
                && let Some(reply) = node.receive(now_ms, &mut rng, message)
            {
                says(&reply);
            }
            now_ms += 100;
            node.tick(now_ms, &mut rng);
            let mut actions = 0;
            while let Some(action) = node.poll_action() {
                actions += 1;
                if let Action::Send { message, .. } = action {
                    says(&message);
                }
            }
            assert!(actions <= ACTIONS_MAX + 1);
            assert!(node.members().count() <= MEMBERS_MAX);
        }
        node.leave(now_ms);
        node.tick(now_ms + 1_000_000, &mut rng);
    }
}

const CONFIG: Config = Config {
    clock_skew_ms: 10_000,
    heartbeat_ms: 100,
    gossip_interval_ms: 300,
    indirect_probes: 2,
    dead_grace_ms: 1_000,
    join_timeout_ms: 1_000,
    replication: 3,
};

fn identity() -> Identity {
    Identity {
        id: Arc::from("a"),
        peer_address: Arc::from("a:1"),
        client_address: Arc::from("a:2"),
    }
}

fn seed() -> Seed {
    Seed {
        id: None,
        address: Arc::from("b:1"),
    }
}

fn one(bytes: &[u8]) -> Option<Message> {
    let message = Message::decode(bytes).ok()?;
    let mut again = Vec::new();
    message.encode(&mut again);
    assert_eq!(again, bytes);
    Some(message)
}

fn says(message: &Message) {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    assert_eq!(Message::decode(&bytes).as_ref(), Ok(message));
}
