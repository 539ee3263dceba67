//! Who the caller is: `/v1/me` and `/v1/me/can`.
//!
//! Until authentication is built every caller is `anonymous` and holds every
//! scope; a node that is given credentials to check refuses to start instead.

use serde::Serialize;

use super::{ApiError, Writer, key_text};
use crate::http::{Query, Status};

const SCOPES: &[&str] = &["read", "write", "admin"];
const CAPABILITIES: &[&str] = &["cache.read", "cache.write", "cache.admin"];

#[derive(Serialize)]
struct Me {
    id: &'static str,
    scopes: &'static [&'static str],
    capabilities: &'static [&'static str],
}

#[derive(Serialize)]
struct Can {
    capability: &'static str,
    allowed: bool,
}

/// Answers who the caller is.
pub fn me(writer: &mut Writer<'_>) {
    writer.json(
        Status::Ok,
        &Me {
            id: "anonymous",
            scopes: SCOPES,
            capabilities: CAPABILITIES,
        },
    );
}

/// Answers whether the caller holds one capability.
pub fn can(query: Option<&[u8]>, writer: &mut Writer<'_>) {
    match asked_capability(query) {
        Ok(capability) => writer.json(
            Status::Ok,
            &Can {
                capability,
                allowed: true,
            },
        ),
        Err(error) => writer.error(&error),
    }
}

fn asked_capability(query: Option<&[u8]>) -> Result<&'static str, ApiError> {
    let expected = || CAPABILITIES.join(", ");
    for pair in Query::new(query.unwrap_or_default()) {
        let (name, value) =
            pair.map_err(|_| ApiError::bad_request("the query has a malformed percent escape"))?;
        if name.as_ref() == b"capability" {
            return CAPABILITIES
                .iter()
                .find(|known| known.as_bytes() == value.as_ref())
                .copied()
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
