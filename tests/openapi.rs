//! The OpenAPI document, the router's table and real answers say the same.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may fail")]

#[path = "support/node.rs"]
mod node;

use std::collections::BTreeSet;

use hypercache::api::OPENAPI_YAML;
use hypercache::api::router::ENDPOINTS;
use hypercache::auth::Scope;
use node::{Answer, Client, Node};
use serde_json::{Value, json};

fn document() -> Value {
    serde_norway::from_str(OPENAPI_YAML).expect("the document is YAML")
}

#[test]
fn the_document_lists_exactly_the_routes_that_are_served() {
    let document = document();
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let scope = operation["x-scope"].as_str().unwrap().to_owned();
            described.insert((method.to_uppercase(), path.clone(), scope));
        }
    }
    let served: BTreeSet<_> = ENDPOINTS
        .iter()
        .map(|e| {
            (
                e.method.name().to_owned(),
                e.path.to_owned(),
                e.scope.map_or("none", Scope::name).to_owned(),
            )
        })
        .collect();
    assert_eq!(described, served);
}

/// Checks real answers and remembers which of the documented ones were seen.
struct Checker {
    document: Value,
    unseen: BTreeSet<(String, String)>,
}

impl Checker {
    fn new() -> Self {
        let document = document();
        let mut unseen = BTreeSet::new();
        for methods in document["paths"].as_object().unwrap().values() {
            for operation in methods.as_object().unwrap().values() {
                for status in operation["responses"].as_object().unwrap().keys() {
                    let id = operation["operationId"].as_str().unwrap();
                    unseen.insert((id.to_owned(), status.clone()));
                }
            }
        }
        Self { document, unseen }
    }

    fn check(&mut self, id: &str, answer: &Answer) {
        let operations = self.document["paths"].as_object().unwrap().values();
        let operation = operations
            .flat_map(|methods| methods.as_object().unwrap().values())
            .find(|operation| operation["operationId"] == id)
            .unwrap_or_else(|| panic!("no operation {id}"));
        let status = answer.status.to_string();
        let mut response = &operation["responses"][&status];
        assert!(
            response.is_object(),
            "{id}: {status} is not documented: {answer:?}"
        );
        if let Some(pointer) = response["$ref"].as_str() {
            response = self.document.pointer(&pointer[1..]).unwrap();
        }
        self.unseen.remove(&(id.to_owned(), status));
        for (name, _) in response["headers"].as_object().into_iter().flatten() {
            assert!(answer.header(name).is_some(), "{id}: no {name}: {answer:?}");
        }
        let Some(content) = response["content"].as_object() else {
            return;
        };
        let media_type = answer.header("Content-Type").unwrap();
        let schema = &content
            .get(media_type)
            .unwrap_or_else(|| panic!("{id}: {media_type}"))["schema"];
        let instance = match media_type {
            "application/json" => answer.json(),
            _ => Value::String(answer.text()),
        };
        let mut root = schema.clone();
        root["components"] = self.document["components"].clone();
        let validator = jsonschema::validator_for(&root).expect("the schema is one");
        let errors: Vec<String> = validator
            .iter_errors(&instance)
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{id}: {errors:?} in {instance}");
    }
}

#[test]
fn real_answers_are_as_documented() {
    let node = Node::start(&[
        ("HYPERCACHE_BATCH_LIMIT", "5"),
        ("HYPERCACHE_VALUE_LIMIT", "1000"),
    ]);
    let mut client = node.connect();
    let mut checker = Checker::new();
    let six = json!({"keys": vec!["k"; 6]}).to_string();
    let six_items = json!({"items": vec![json!({"key": "k", "value": "v"}); 6]}).to_string();
    let long = "k".repeat(1025);

    checker.check("putKey", &client.put("/v1/cache/k?ttl=1h", b"v"));
    checker.check("putKey", &client.put("/v1/cache/plain", b"v"));
    checker.check("putKey", &client.put("/v1/cache/k?ttl=x", b"v"));
    checker.check("putKey", &client.put("/v1/cache/k", &[0; 1001]));
    checker.check("getKey", &client.get("/v1/cache/k"));
    for key in ["k", "plain"] {
        let accept = "Accept: application/json\r\n";
        checker.check(
            "getKey",
            &client.request("GET", &format!("/v1/cache/{key}"), accept, b""),
        );
    }
    checker.check("getKey", &client.get(&format!("/v1/cache/{long}")));
    checker.check("getKey", &client.get("/v1/cache/none"));
    checker.check("headKey", &client.request("HEAD", "/v1/cache/k", "", b""));
    checker.check(
        "headKey",
        &client.request("HEAD", "/v1/cache/none", "", b""),
    );
    checker.check(
        "headKey",
        &client.request("HEAD", &format!("/v1/cache/{long}"), "", b""),
    );
    checker.check("listKeys", &client.get("/v1/cache/keys"));
    checker.check("listKeys", &client.get("/v1/cache/keys?limit=0"));
    checker.check(
        "batchGet",
        &client.post("/v1/cache/batch/get", r#"{"keys":["k","none","","plain"]}"#),
    );
    checker.check("batchGet", &client.post("/v1/cache/batch/get", "{"));
    checker.check("batchGet", &client.post("/v1/cache/batch/get", &six));
    let items = r#"{"items":[{"key":"a","value":"v","ttl_ms":5},{"key":"","value":"v"}]}"#;
    checker.check("batchPut", &client.post("/v1/cache/batch/put", items));
    checker.check("batchPut", &client.post("/v1/cache/batch/put", "{}"));
    checker.check("batchPut", &client.post("/v1/cache/batch/put", &six_items));
    checker.check(
        "batchDelete",
        &client.post("/v1/cache/batch/delete", r#"{"keys":["a",""]}"#),
    );
    checker.check("batchDelete", &client.post("/v1/cache/batch/delete", "[]"));
    checker.check("batchDelete", &client.post("/v1/cache/batch/delete", &six));
    checker.check("owners", &client.get("/v1/owners/k"));
    checker.check("owners", &client.get(&format!("/v1/owners/{long}")));
    checker.check(
        "deleteKey",
        &client.request("DELETE", "/v1/cache/k", "", b""),
    );
    checker.check(
        "deleteKey",
        &client.request("DELETE", &format!("/v1/cache/{long}"), "", b""),
    );
    checker.check("me", &client.get("/v1/me"));
    checker.check("meCan", &client.get("/v1/me/can?capability=cache.read"));
    checker.check("meCan", &client.get("/v1/me/can"));
    checker.check("members", &client.get("/cluster/members"));
    checker.check("liveness", &client.get("/healthz"));
    let served = client.get("/v1/openapi.yaml");
    checker.check("openapi", &served);
    assert_eq!(served.text(), OPENAPI_YAML);

    // A node that waits for its cluster, and one that is going to leave.
    let joining = Node::start(&[
        ("HYPERCACHE_SEEDS", "a@127.0.0.1:1,b@127.0.0.1:2"),
        ("HYPERCACHE_JOIN_TIMEOUT", "24h"),
    ]);
    let mut client = joining.connect();
    checker.check("getKey", &client.get("/v1/cache/k"));
    checker.check("headKey", &client.request("HEAD", "/v1/cache/k", "", b""));
    checker.check("putKey", &client.put("/v1/cache/k", b"v"));
    checker.check(
        "deleteKey",
        &client.request("DELETE", "/v1/cache/k", "", b""),
    );
    checker.check("listKeys", &client.get("/v1/cache/keys"));
    let peers = node.serving["peer"].as_str().unwrap();
    Client::connect(peers).post("/dist/drain", "");
    let drained = |target, body| node.connect().post(target, body);
    checker.check("batchPut", &drained("/v1/cache/batch/put", items));
    checker.check(
        "batchDelete",
        &drained("/v1/cache/batch/delete", r#"{"keys":["a"]}"#),
    );

    assert!(
        checker.unseen.is_empty(),
        "documented and never answered: {:?}",
        checker.unseen
    );
}
