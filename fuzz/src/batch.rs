//! Batch bodies: the first byte chooses the batch, the rest is the body.
//!
//! * Another reader of JSON accepts what is accepted, and finds the same items.
//! * What is refused is refused with 400 or 413; what nests deeply, always.
//! * Each item has a place in the answer, and only keys of an allowed length are asked
//!   for.

use std::borrow::Cow;
use std::sync::Arc;

use hypercache::api::batch::{self, Kind};
use hypercache::api::{Api, ApiError, Job, NodeFacts};
use hypercache::clock::UnixMs;
use hypercache::cluster::Consistency;
use hypercache::hash::{CoreCount, CoreId};
use hypercache::http::{Connection, Status};
use hypercache::operations::{Action, Exchange};
use hypercache::store::KEY_BYTES_MAX;
use serde_json::Value;

const ITEMS_MAX: usize = 50;
const NOW: UnixMs = UnixMs(1_800_000_000_000);

/// See the module's comment.
pub fn law(bytes: &[u8]) {
    let Some((choice, body)) = bytes.split_first() else {
        return;
    };
    let kind = match choice % 3 {
        0 => Kind::Get,
        1 => Kind::Put,
        _ => Kind::Delete,
    };
    let api = Api {
        facts: Arc::new(NodeFacts {
            node_id: "n0".to_owned(),
            read_consistency: Consistency::One,
            write_consistency: Consistency::One,
            batch_items_max: ITEMS_MAX,
        }),
        core: CoreId::new(0),
        cores: CoreCount::ONE,
    };
    let planned = batch::plan(
        kind,
        Cow::Borrowed(body),
        Consistency::One,
        Connection::Close,
    );
    let Job::Batch(mut request) = planned else {
        panic!("it is a batch");
    };
    let mut exchange = Exchange::new(CoreCount::ONE);
    let asked = request.ask(&api, &mut exchange, NOW);
    let batches = exchange.batch_count();
    let mut keys = Vec::new();
    for slot in 0..batches {
        let batch = exchange.take(slot).expect("a batch");
        for index in 0..batch.len() {
            let operation = batch.operation(index);
            assert!((1..=KEY_BYTES_MAX).contains(&operation.key.len()));
            assert!(std::str::from_utf8(operation.key).is_ok());
            let put = matches!(operation.action, Action::Put { .. });
            assert_eq!(put, kind == Kind::Put);
            keys.push(operation.key.to_vec());
        }
    }
    match asked {
        Ok(entries) => {
            assert!(entries.len() <= ITEMS_MAX && keys.len() <= entries.len());
            let named = named_keys(kind, body).expect("another reader accepts it");
            assert_eq!(named.len(), entries.len());
            // Those that were asked for are among those named, in order.
            let mut named = named.iter();
            for key in &keys {
                assert!(named.any(|name| name.as_bytes() == key.as_slice()));
            }
        }
        Err(error) => refused(&error, body, batches),
    }
}

fn refused(error: &ApiError, body: &[u8], batches: usize) {
    assert!(matches!(
        error.status,
        Status::BadRequest | Status::PayloadTooLarge
    ));
    assert!(!error.message.is_empty() && error.message.len() < 1000 + body.len());
    assert_eq!(batches, 0, "nothing is asked of a batch that is refused");
}

/// The keys of a batch, as serde_json finds them.
fn named_keys(kind: Kind, body: &[u8]) -> Option<Vec<String>> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let list = if kind == Kind::Put { "items" } else { "keys" };
    let items = body.get(list)?.as_array()?.iter();
    items
        .map(|item| match kind {
            Kind::Put => Some(
                item.get("key")
                    .map_or("", |key| key.as_str().unwrap_or("\0"))
                    .to_owned(),
            ),
            Kind::Get | Kind::Delete => item.as_str().map(str::to_owned),
        })
        .collect()
}
