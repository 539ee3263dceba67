//! Which request is which operation, who may ask for it, and what else the
//! resource offers.
//!
//! [`ENDPOINTS`] is the one list of what the client listener serves. Answers to
//! unknown methods (`Allow`), scope checks and the OpenAPI document are derived
//! from it or checked against it by tests, so they cannot drift apart.
//!
//! Paths are matched raw, before percent-decoding: `%2F` inside a key is part of
//! the key, and `/v1/cache/%6Beys` is the key `keys` while `GET /v1/cache/keys`
//! lists keys.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use crate::auth::Scope;
use crate::http::Method;

/// One operation of the client API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `GET /healthz`
    Liveness,
    /// `GET /v1/openapi.yaml`
    OpenApi,
    /// `GET /v1/cache/{key}`
    GetKey,
    /// `HEAD /v1/cache/{key}`
    HeadKey,
    /// `PUT /v1/cache/{key}`
    PutKey,
    /// `DELETE /v1/cache/{key}`
    DeleteKey,
    /// `GET /v1/cache/keys`
    ListKeys,
    /// `POST /v1/cache/batch/get`
    BatchGet,
    /// `POST /v1/cache/batch/put`
    BatchPut,
    /// `POST /v1/cache/batch/delete`
    BatchDelete,
    /// `GET /v1/owners/{key}`
    Owners,
    /// `GET /v1/me`
    Me,
    /// `GET /v1/me/can`
    MeCan,
    /// `GET /cluster/members`
    Members,
}

/// A method on a path, the operation behind it and the scope it needs.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// The method, as it stands in a request.
    pub method: Method,
    /// The path, with `{key}` for the one variable part a path may have.
    pub path: &'static str,
    /// What it does.
    pub operation: Operation,
    /// What the caller must hold; without one, credentials do not matter.
    pub scope: Option<Scope>,
}

const KEY_PATH: &str = "/v1/cache/{key}";
const OWNERS_PATH: &str = "/v1/owners/{key}";

const fn endpoint(
    method: Method,
    path: &'static str,
    operation: Operation,
    scope: Option<Scope>,
) -> Endpoint {
    Endpoint {
        method,
        path,
        operation,
        scope,
    }
}

const READ: Option<Scope> = Some(Scope::Read);
const WRITE: Option<Scope> = Some(Scope::Write);
const OPEN: Option<Scope> = None;

/// Everything the client listener serves.
pub const ENDPOINTS: &[Endpoint] = &[
    endpoint(Method::Get, KEY_PATH, Operation::GetKey, READ),
    endpoint(Method::Put, KEY_PATH, Operation::PutKey, WRITE),
    endpoint(Method::Head, KEY_PATH, Operation::HeadKey, READ),
    endpoint(Method::Delete, KEY_PATH, Operation::DeleteKey, WRITE),
    endpoint(Method::Get, "/v1/cache/keys", Operation::ListKeys, READ),
    endpoint(
        Method::Post,
        "/v1/cache/batch/get",
        Operation::BatchGet,
        READ,
    ),
    endpoint(
        Method::Post,
        "/v1/cache/batch/put",
        Operation::BatchPut,
        WRITE,
    ),
    endpoint(
        Method::Post,
        "/v1/cache/batch/delete",
        Operation::BatchDelete,
        WRITE,
    ),
    endpoint(Method::Get, OWNERS_PATH, Operation::Owners, READ),
    endpoint(Method::Get, "/v1/me", Operation::Me, READ),
    endpoint(Method::Get, "/v1/me/can", Operation::MeCan, READ),
    endpoint(Method::Get, "/cluster/members", Operation::Members, READ),
    endpoint(Method::Get, "/healthz", Operation::Liveness, OPEN),
    endpoint(Method::Get, "/v1/openapi.yaml", Operation::OpenApi, OPEN),
];

/// Where a request leads.
#[derive(Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// To an operation; `raw_key` is the still percent-encoded last part of the
    /// path, empty where the path has no variable part.
    Found {
        /// What is asked for.
        operation: Operation,
        /// What the caller must hold.
        scope: Option<Scope>,
        /// The encoded key.
        raw_key: &'a [u8],
    },
    /// To a path that exists, by a method it does not offer; `path` is the
    /// [`Endpoint::path`] whose methods [`allowed_methods`] lists.
    WrongMethod {
        /// The path of the table.
        path: &'static str,
    },
    /// Nowhere.
    Unknown,
}

/// Finds the operation for a method on a raw path.
///
/// `HEAD` is answered wherever `GET` is (RFC 9110 section 9.3.2), except that on
/// a key it is an operation of its own.
#[inline]
pub fn route(method: Method, path: &[u8]) -> Route<'_> {
    if let Some(raw_key) = path.strip_prefix(b"/v1/cache/".as_slice()) {
        let lists_keys = raw_key == b"keys" && method == Method::Get;
        if !lists_keys && !raw_key.contains(&b'/') {
            return on_key(method, raw_key);
        }
    } else if let Some(raw_key) = path.strip_prefix(b"/v1/owners/".as_slice()) {
        if !raw_key.contains(&b'/') {
            return on_path(method, OWNERS_PATH, raw_key);
        }
        return Route::Unknown;
    }
    match ENDPOINTS
        .iter()
        .find(|endpoint| endpoint.path.as_bytes() == path)
    {
        Some(endpoint) => on_path(method, endpoint.path, b""),
        None => Route::Unknown,
    }
}

/// What may be the keys of requests that follow each other in `received`, by the look of it
/// and but for those in which something is encoded: a guess, for looking ahead.
pub fn keys_ahead(received: &[u8]) -> impl Iterator<Item = &[u8]> {
    static KEYS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b" /v1/cache/"));
    /// How far is looked: some dozens of requests.
    const AHEAD_BYTES_MAX: usize = 4 << 10;
    let received = &received[..received.len().min(AHEAD_BYTES_MAX)];
    let starts = KEYS.find_iter(received).map(|at| at + KEYS.needle().len());
    let keys = starts.map_while(|start| until_target_ends(&received[start..]));
    keys.filter(is_plain)
}

/// What is left of the path of a request line, unless its end has not come.
fn until_target_ends(rest: &[u8]) -> Option<&[u8]> {
    let end = memchr::memchr2(b' ', b'?', rest)?;
    Some(&rest[..end])
}

/// Whether nothing is encoded in a key: one that is encoded hashes to something else.
fn is_plain(key: &&[u8]) -> bool {
    !key.contains(&b'%')
}

/// The same of the request that begins where these bytes do.
#[inline]
pub fn first_key(received: &[u8]) -> Option<&[u8]> {
    let methods: [&[u8]; 4] = [b"GET ", b"PUT ", b"DELETE ", b"HEAD "];
    let mut targets = methods
        .iter()
        .filter_map(|method| received.strip_prefix(*method));
    let rest = targets.next()?.strip_prefix(b"/v1/cache/")?;
    until_target_ends(rest).filter(is_plain)
}

/// The path of an operation, as it stands in the table.
pub fn path_of(operation: Operation) -> &'static str {
    let mut endpoints = ENDPOINTS.iter();
    let found = endpoints.find(|endpoint| endpoint.operation == operation);
    found.map_or("", |endpoint| endpoint.path)
}

/// What the caller must hold for a request to be handled: nothing where the answer is
/// an error anyway, which tells no more than the OpenAPI document does.
#[inline]
pub fn scope(method: Method, path: &[u8]) -> Option<Scope> {
    match route(method, path) {
        Route::Found { scope, .. } => scope,
        Route::WrongMethod { .. } | Route::Unknown => None,
    }
}

/// Whether this only asks if the node lives.
pub fn is_liveness(method: Method, path: &[u8]) -> bool {
    let found = route(method, path);
    matches!(
        found,
        Route::Found {
            operation: Operation::Liveness,
            ..
        }
    )
}

/// As [`on_path`] for keys, without looking through the table for most requests there are.
#[inline]
fn on_key(method: Method, raw_key: &[u8]) -> Route<'_> {
    let (operation, scope) = match method {
        Method::Get => (Operation::GetKey, READ),
        Method::Put => (Operation::PutKey, WRITE),
        _ => return on_path(method, KEY_PATH, raw_key),
    };
    Route::Found {
        operation,
        scope,
        raw_key,
    }
}

#[inline]
fn on_path<'a>(method: Method, path: &'static str, raw_key: &'a [u8]) -> Route<'a> {
    let offered = |method| {
        ENDPOINTS
            .iter()
            .find(|endpoint| endpoint.method == method && endpoint.path == path)
    };
    let found = match method {
        Method::Head => offered(Method::Head).or_else(|| offered(Method::Get)),
        method => offered(method),
    };
    match found {
        Some(endpoint) => Route::Found {
            operation: endpoint.operation,
            scope: endpoint.scope,
            raw_key,
        },
        None => Route::WrongMethod { path },
    }
}

/// The value of `Allow` for a path of the table.
pub fn allowed_methods(path: &str) -> String {
    let mut names: Vec<&str> = ENDPOINTS
        .iter()
        .filter(|endpoint| endpoint.path == path)
        .map(|endpoint| endpoint.method.name())
        .collect();
    if names.contains(&"GET") && !names.contains(&"HEAD") {
        names.push("HEAD");
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_way_to_keys_leads_where_the_table_says() {
        for method in [
            Method::Get,
            Method::Put,
            Method::Head,
            Method::Delete,
            Method::Post,
        ] {
            assert_eq!(on_key(method, b"k"), on_path(method, KEY_PATH, b"k"));
        }
    }

    #[test]
    fn keys_of_requests_that_follow_are_guessed() {
        let received =
            b"GET /v1/cache/one HTTP/1.1\r\nHost: a\r\n\r\nPUT /v1/cache/two?ttl=1s HTTP/1.1\r\n\
            Content-Length: 2\r\n\r\nxxGET /healthz HTTP/1.1\r\n\r\nGET /v1/cache/cut";
        let keys: Vec<_> = keys_ahead(received).collect();
        assert_eq!(keys, [b"one", b"two"]);
        assert_eq!(keys_ahead(b" /v1/cache/").count(), 0);
    }

    #[test]
    fn the_first_key_is_that_of_the_request_which_begins_here() {
        let get = b"GET /v1/cache/one HTTP/1.1\r\n\r\nGET /v1/cache/two HTTP/1.1";
        assert_eq!(first_key(get), Some(&b"one"[..]));
        let delete = b"DELETE /v1/cache/ab?x=%20 HTTP/1.1";
        assert_eq!(first_key(delete), Some(&b"ab"[..]));
        for other in [
            &b"GET /v1/cache/on"[..],
            b"GET /health HTTP/1.1",
            b"XGET /v1/cache/k H",
            b"GET /v1/cache/a%20b HTTP/1.1",
            b"",
        ] {
            assert_eq!(first_key(other), None);
        }
    }

    fn operation(method: Method, path: &str) -> Option<Operation> {
        match route(method, path.as_bytes()) {
            Route::Found { operation, .. } => Some(operation),
            _ => None,
        }
    }

    #[test]
    fn every_endpoint_is_reached_by_its_own_method_and_path() {
        for endpoint in ENDPOINTS {
            let path = endpoint.path.replace("{key}", "some%2Fkey");
            assert_eq!(
                operation(endpoint.method, &path),
                Some(endpoint.operation),
                "{endpoint:?}"
            );
        }
    }

    #[test]
    fn reference_defect_14_the_key_named_keys_is_shadowed_only_for_get() {
        assert_eq!(
            operation(Method::Get, "/v1/cache/keys"),
            Some(Operation::ListKeys)
        );
        assert_eq!(
            operation(Method::Get, "/v1/cache/%6Beys"),
            Some(Operation::GetKey)
        );
        assert_eq!(
            operation(Method::Put, "/v1/cache/keys"),
            Some(Operation::PutKey)
        );
        assert_eq!(
            operation(Method::Head, "/v1/cache/keys"),
            Some(Operation::HeadKey)
        );
        assert_eq!(
            operation(Method::Delete, "/v1/cache/keys"),
            Some(Operation::DeleteKey)
        );
    }

    #[test]
    fn a_raw_slash_is_never_part_of_a_key() {
        assert_eq!(route(Method::Get, b"/v1/cache/a/b"), Route::Unknown);
        assert_eq!(route(Method::Get, b"/v1/owners/a/b"), Route::Unknown);
    }

    #[test]
    fn a_wrong_method_names_the_right_ones() {
        let Route::WrongMethod { path } = route(Method::Post, b"/v1/cache/k") else {
            panic!("POST on a key is not offered")
        };
        assert_eq!(allowed_methods(path), "GET, PUT, HEAD, DELETE");
        assert_eq!(allowed_methods("/v1/me"), "GET, HEAD");
    }
}
