//! Which request of the management listener is which operation, and who may ask for it.
//!
//! [`ENDPOINTS`] is the one list of what it serves; `Allow` and scope checks are derived
//! from it.

use crate::auth::Scope;
use crate::http::Method;

/// One operation of the management listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `GET /`
    Dashboard,
    /// `GET /health`
    Health,
    /// `GET /healthz`
    Liveness,
    /// `GET /metrics`
    Metrics,
    /// `GET /cluster/members`
    Members,
    /// `GET /cluster/ring`
    Ring,
    /// `GET /cluster/heartbeat`
    Heartbeat,
    /// `GET /cluster/events`
    Events,
    /// `GET /cluster/rebalance`
    Rebalance,
    /// `GET /dist/metrics`
    DistMetrics,
    /// `GET /dist/owners`
    Owners,
    /// `GET /stats`
    Stats,
    /// `GET /stats/cores`
    Cores,
    /// `GET /config`
    Config,
    /// `GET /cluster/partitions`
    Partitions,
    /// `GET /internal/keys`
    Keys,
    /// `GET /internal/merkle`
    Digests,
    /// `GET /debug/hotkeys`
    HotKeys,
    /// `POST /evict`
    Evict,
    /// `POST /trigger-expiration`
    Expire,
    /// `POST /clear`
    Clear,
}

/// A method on a path, the operation behind it and the scope it needs.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// The method, as it stands in a request.
    pub method: Method,
    /// The path.
    pub path: &'static str,
    /// What it does.
    pub operation: Operation,
    /// What the caller must hold; without one, credentials do not matter.
    pub scope: Option<Scope>,
}

const fn get(path: &'static str, operation: Operation, scope: Option<Scope>) -> Endpoint {
    Endpoint {
        method: Method::Get,
        path,
        operation,
        scope,
    }
}

const fn post(path: &'static str, operation: Operation, scope: Option<Scope>) -> Endpoint {
    Endpoint {
        method: Method::Post,
        path,
        operation,
        scope,
    }
}

const READ: Option<Scope> = Some(Scope::Read);
const ADMIN: Option<Scope> = Some(Scope::Admin);
const OPEN: Option<Scope> = None;

/// Everything the management listener serves.
pub const ENDPOINTS: &[Endpoint] = &[
    get("/", Operation::Dashboard, OPEN),
    get("/health", Operation::Health, OPEN),
    get("/healthz", Operation::Liveness, OPEN),
    get("/metrics", Operation::Metrics, READ),
    get("/cluster/members", Operation::Members, READ),
    get("/cluster/ring", Operation::Ring, READ),
    get("/cluster/heartbeat", Operation::Heartbeat, READ),
    get("/cluster/events", Operation::Events, READ),
    get("/cluster/rebalance", Operation::Rebalance, READ),
    get("/dist/metrics", Operation::DistMetrics, READ),
    get("/dist/owners", Operation::Owners, READ),
    get("/stats", Operation::Stats, READ),
    get("/stats/cores", Operation::Cores, READ),
    get("/config", Operation::Config, READ),
    get("/cluster/partitions", Operation::Partitions, READ),
    get("/internal/keys", Operation::Keys, READ),
    get("/internal/merkle", Operation::Digests, READ),
    get("/debug/hotkeys", Operation::HotKeys, ADMIN),
    post("/evict", Operation::Evict, ADMIN),
    post("/trigger-expiration", Operation::Expire, ADMIN),
    post("/clear", Operation::Clear, ADMIN),
];

/// Where a request leads.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// To an operation.
    Found {
        /// What is asked for.
        operation: Operation,
        /// What the caller must hold.
        scope: Option<Scope>,
    },
    /// To a path that exists, by a method it does not offer.
    WrongMethod {
        /// The value of `Allow`.
        allow: String,
    },
    /// Nowhere.
    Unknown,
}

/// Finds the operation for a method on a path. `HEAD` is answered wherever `GET` is (RFC
/// 9110 section 9.3.2).
pub fn route(method: Method, path: &[u8]) -> Route {
    let offered = match method {
        Method::Head => Method::Get,
        method => method,
    };
    let on_path = |endpoint: &&Endpoint| endpoint.path.as_bytes() == path;
    let here = ENDPOINTS.iter().filter(on_path);
    if let Some(endpoint) = here.clone().find(|endpoint| endpoint.method == offered) {
        return Route::Found {
            operation: endpoint.operation,
            scope: endpoint.scope,
        };
    }
    let mut names: Vec<&str> = here.map(|found| found.method.name()).collect();
    if names.is_empty() {
        return Route::Unknown;
    }
    if names.contains(&"GET") {
        names.push("HEAD");
    }
    Route::WrongMethod {
        allow: names.join(", "),
    }
}

/// What the caller must hold for a request to be handled: nothing where the answer is an
/// error anyway, which tells no more than this table does.
pub fn scope(method: Method, path: &[u8]) -> Option<Scope> {
    match route(method, path) {
        Route::Found { scope, .. } => scope,
        Route::WrongMethod { .. } | Route::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_reached_by_its_own_method_and_by_head() {
        for endpoint in ENDPOINTS {
            let found = Route::Found {
                operation: endpoint.operation,
                scope: endpoint.scope,
            };
            let path = endpoint.path.as_bytes();
            assert_eq!(route(endpoint.method, path), found);
            if endpoint.method == Method::Get {
                assert_eq!(route(Method::Head, path), found);
            }
        }
    }

    #[test]
    fn what_is_not_offered_is_told_from_what_does_not_exist() {
        let allow = "GET, HEAD".to_owned();
        assert_eq!(
            route(Method::Post, b"/health"),
            Route::WrongMethod { allow }
        );
        assert_eq!(route(Method::Get, b"/healthy"), Route::Unknown);
    }
}
