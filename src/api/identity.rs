//! Who the caller is: `/v1/me` and `/v1/me/can`.

use serde::{Serialize, Serializer};

use super::{ApiError, Writer, key_text};
use crate::auth::{Identity, Scope, Scopes};
use crate::http::{Query, Status};

#[derive(Serialize)]
struct Me<'a> {
    id: &'a str,
    #[serde(serialize_with = "names")]
    scopes: Scopes,
    #[serde(serialize_with = "capabilities")]
    capabilities: Scopes,
}

#[derive(Serialize)]
struct Can {
    capability: &'static str,
    allowed: bool,
}

fn names<S: Serializer>(scopes: &Scopes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(scopes.iter().map(Scope::name))
}

fn capabilities<S: Serializer>(scopes: &Scopes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(scopes.iter().map(Scope::capability))
}

/// Answers who the caller is.
pub fn me(caller: &Identity, writer: &mut Writer<'_>) {
    let me = Me {
        id: &caller.id,
        scopes: caller.scopes,
        capabilities: caller.scopes,
    };
    writer.json(Status::Ok, &me);
}

/// Answers whether the caller holds one capability.
pub fn can(caller: &Identity, query: Option<&[u8]>, writer: &mut Writer<'_>) {
    match asked_capability(query) {
        Ok(scope) => writer.json(
            Status::Ok,
            &Can {
                capability: scope.capability(),
                allowed: caller.scopes.contains(scope),
            },
        ),
        Err(error) => writer.error(&error),
    }
}

fn asked_capability(query: Option<&[u8]>) -> Result<Scope, ApiError> {
    let expected = || Scope::ALL.map(Scope::capability).join(", ");
    for pair in Query::new(query.unwrap_or_default()) {
        let (name, value) =
            pair.map_err(|_| ApiError::bad_request("the query has a malformed percent escape"))?;
        if name.as_ref() == b"capability" {
            return Scope::ALL
                .into_iter()
                .find(|known| known.capability().as_bytes() == value.as_ref())
                .ok_or_else(|| {
                    let value = key_text(&value);
                    ApiError::bad_request(format!(
                        "unknown capability {value:?}, expected one of {}",
                        expected()
                    ))
                });
        }
    }
    Err(ApiError::bad_request(format!(
        "missing capability, expected one of {}",
        expected()
    )))
}
