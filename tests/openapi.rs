//! The OpenAPI document, the router's table and real answers say the same.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may fail")]

#[path = "support/files.rs"]
mod files;
#[path = "support/node.rs"]
mod node;

use std::collections::BTreeSet;

use files::Folder;
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
    let described: BTreeSet<_> = operations(&document)
        .into_iter()
        .map(|((method, path), operation)| {
            let scope = operation["x-scope"].as_str().unwrap();
            (method.to_uppercase(), path.to_owned(), scope.to_owned())
        })
        .collect();
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

#[test]
fn the_document_asks_for_credentials_where_a_scope_is_needed() {
    let document = document();
    let schemes = document["components"]["securitySchemes"]
        .as_object()
        .unwrap();
    let any: BTreeSet<_> = document["security"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|alternative| alternative.as_object().unwrap().keys())
        .collect();
    assert_eq!(any, schemes.keys().collect());
    for (_, operation) in operations(&document) {
        let open = operation["x-scope"] == "none";
        let own = operation.get("security");
        assert_eq!(own, open.then_some(&json!([])), "{operation}");
    }
}

/// Every operation of the document, with its method and path.
fn operations(document: &Value) -> Vec<((&str, &str), &Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap();
            methods
                .iter()
                .map(|(method, operation)| ((&**method, &**path), operation))
        })
        .collect()
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
        for (_, operation) in operations(&document) {
            for status in operation["responses"].as_object().unwrap().keys() {
                let id = operation["operationId"].as_str().unwrap();
                unseen.insert((id.to_owned(), status.clone()));
            }
        }
        Self { document, unseen }
    }

    fn check(&mut self, id: &str, answer: &Answer) {
        let operations = operations(&self.document);
        let (_, operation) = operations
            .iter()
            .find(|(_, operation)| operation["operationId"] == id)
            .unwrap_or_else(|| panic!("no operation {id}"));
        let status = answer.status.to_string();
        let mut response = &operation["responses"][&status];
        assert!(
            response.is_object(),
            "{id}: {status} is not documented: {answer:?}"
        );
        self.unseen.remove(&(id.to_owned(), status.clone()));
        response = self.resolved(response);
        for (name, header) in response["headers"].as_object().into_iter().flatten() {
            let there = answer.header(name).is_some();
            let required = self.resolved(header)["required"] == true;
            assert!(there || !required, "{id}: no {name}: {answer:?}");
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
            "application/yaml" => serde_norway::from_slice(&answer.body).unwrap(),
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

    fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(pointer) => self.document.pointer(&pointer[1..]).unwrap(),
            None => value,
        }
    }

    /// Has every operation that needs a scope refuse requests for the reasons that have
    /// nothing to do with what it does, as far as it documents them.
    fn check_refusals(&mut self) {
        let folder = Folder::new();
        let tokens = "tokens: [{id: r, token: read, scopes: [read]}, {id: w, token: write, scopes: [write]}]";
        let policy = folder.file("policy.yaml", tokens);
        let with_policy = ("HYPERCACHE_AUTH_CONFIG", policy.as_str());
        let node = Node::start(&[with_policy, ("HYPERCACHE_TARGET_LIMIT", "256")]);
        let impatient = Node::start(&[with_policy, ("HYPERCACHE_READ_TIMEOUT", "50ms")]);
        // Nobody answers there, so that no identity token can be verified.
        let waiting = Node::start(&[
            ("HYPERCACHE_OIDC_ISSUER", "http://127.0.0.1:1"),
            ("HYPERCACHE_OIDC_AUDIENCE", "cache"),
        ]);
        let document = self.document.clone();
        for ((method, path), operation) in operations(&document) {
            let id = operation["operationId"].as_str().unwrap();
            let (good, other) = match operation["x-scope"].as_str().unwrap() {
                "read" => ("read", "write"),
                "write" => ("write", "read"),
                _ => continue,
            };
            let method = method.to_uppercase();
            let target = path.replace("{key}", "k");
            let bearer = |token| format!("Authorization: Bearer {token}\r\n");
            let good = bearer(good);
            let long = format!("{}?{}", path.replace("{key}", "k"), "x".repeat(256));
            let cases = [
                (400, &node, &target, format!("{good}{good}")),
                (401, &node, &target, String::new()),
                (401, &node, &target, bearer("wrong")),
                (403, &node, &target, bearer(other)),
                (
                    408,
                    &impatient,
                    &target,
                    format!("{good}Content-Length: 5\r\n"),
                ),
                (414, &node, &long, good.clone()),
                (431, &node, &target, bearer(&"x".repeat(17 << 10))),
                (503, &waiting, &target, bearer("a.b.c")),
            ];
            for (status, node, target, headers) in cases {
                // Only what has a body or a key to send can be slow or long.
                let documented = operation["responses"].get(status.to_string()).is_some();
                if !documented && [408, 414].contains(&status) {
                    continue;
                }
                let mut client = node.connect();
                let answer = client.request(&method, target, &headers, b"");
                assert_eq!(answer.status, status, "{id}: {answer:?}");
                self.check(id, &answer);
                assert!(status != 503 || answer.header("Retry-After").is_some());
            }
        }
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

    checker.check_refusals();

    assert!(
        checker.unseen.is_empty(),
        "documented and never answered: {:?}",
        checker.unseen
    );
}
