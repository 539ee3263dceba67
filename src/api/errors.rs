//! The errors clients see: `{"error": text, "code": CODE}` with their status.

use std::borrow::Cow;

use serde::Serialize;

use crate::auth::Refusal;
use crate::http::{RequestError, Status};

/// What a program may want to know besides the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Details {
    /// Owners that answered.
    pub reached: usize,
    /// Owners that had to.
    pub needed: usize,
}

/// An error as the contract words it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: Status,
    /// The stable word programs compare.
    pub code: &'static str,
    /// What a person needs to know.
    pub message: Cow<'static, str>,
    /// The methods a path offers, for 405.
    pub allow: Option<String>,
    /// Seconds after which trying again makes sense, for 503.
    pub retry_after_s: Option<u32>,
    /// How to identify oneself, for 401.
    pub challenge: Option<&'static str>,
    /// More about it, for programs.
    pub details: Option<Details>,
}

/// Asks for a bearer token (RFC 6750 section 3).
const BEARER: &str = "Bearer realm=\"hypercache\"";
/// Asks for that or a password (RFC 7617 section 2).
const BEARER_OR_BASIC: &str =
    "Bearer realm=\"hypercache\", Basic realm=\"hypercache\", charset=\"UTF-8\"";

impl ApiError {
    fn new(status: Status, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            allow: None,
            retry_after_s: None,
            challenge: None,
            details: None,
        }
    }

    /// 400: what was sent is malformed.
    pub fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Status::BadRequest, "BAD_REQUEST", message)
    }

    /// 404: the key holds nothing, or there is no such path.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Status::NotFound, "NOT_FOUND", message)
    }

    /// 405, naming the methods that are offered.
    pub fn method_not_allowed(allow: String) -> Self {
        let mut error = Self::new(
            Status::MethodNotAllowed,
            "METHOD_NOT_ALLOWED",
            "method not allowed",
        );
        error.allow = Some(allow);
        error
    }

    /// 413: over a limit.
    pub fn too_large(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Status::PayloadTooLarge, "TOO_LARGE", message)
    }

    /// 500: our fault.
    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Status::InternalServerError, "INTERNAL", message)
    }

    /// 503: not now, but soon.
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        let mut error = Self::new(Status::ServiceUnavailable, "INTERNAL", message);
        error.retry_after_s = Some(1);
        error
    }

    /// 503: the node holds as much for others as it may.
    pub fn crowded() -> Self {
        Self::unavailable("too many bytes of requests and answers are under way; try again")
    }

    /// 503: there are as many connections as there may be.
    pub fn too_many_connections() -> Self {
        Self::unavailable("too many connections; try again")
    }

    /// 401: credentials are missing or wrong.
    pub fn unauthorized() -> Self {
        let mut error = Self::new(
            Status::Unauthorized,
            "UNAUTHORIZED",
            "credentials are missing or wrong",
        );
        error.challenge = Some(BEARER);
        error
    }

    /// 401: the certificate that let a connection in is not trusted any more.
    pub fn certificate_no_longer_good() -> Self {
        let mut error = Self::unauthorized();
        error.message = Cow::Borrowed("the certificate of this connection is no longer good");
        error
    }

    /// A request that was not admitted.
    pub fn refused(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Forbidden(scope) => Self::new(
                Status::Forbidden,
                "FORBIDDEN",
                format!("this identity lacks the scope {}", scope.name()),
            ),
            Refusal::Busy => {
                Self::unavailable("credentials cannot be verified at the moment; try again")
            }
            Refusal::Unauthorized {
                in_the_clear,
                takes_passwords,
            } => {
                let mut error = Self::unauthorized();
                if in_the_clear {
                    error.message = Cow::Borrowed("passwords are not taken without TLS");
                }
                if takes_passwords {
                    error.challenge = Some(BEARER_OR_BASIC);
                }
                error
            }
        }
    }

    /// The refusal of what a page of another site asks for through somebody's browser.
    pub fn cross_origin() -> Self {
        Self::new(
            Status::Forbidden,
            "FORBIDDEN",
            "controls are not taken from pages of other sites",
        )
    }

    /// Whether it is who asks, and not what is asked, that is wrong.
    pub fn is_about_the_caller(&self) -> bool {
        matches!(self.status, Status::Unauthorized | Status::Forbidden)
    }

    /// 503: too few owners answered in time.
    pub fn unreached(writes: bool, reached: usize, needed: usize) -> Self {
        let message = if writes {
            format!(
                "not acknowledged: when too few owners were left, {reached} of the {needed} \
                 needed had taken the write; it may survive or be lost"
            )
        } else {
            format!("too few owners can be reached: {reached} of the {needed} needed answered")
        };
        let mut error = Self::unavailable(message);
        error.details = Some(Details { reached, needed });
        error
    }

    /// 503: this node has just started and knows no other yet.
    pub fn joining() -> Self {
        Self::unavailable("the node is joining its cluster")
    }

    /// 503: this node is going to leave and takes no more writes.
    pub fn draining() -> Self {
        Self::new(
            Status::ServiceUnavailable,
            "DRAINING",
            "node is draining; redirect to a peer",
        )
    }

    /// 408: the request did not arrive in time.
    pub fn request_timeout() -> Self {
        Self::new(
            Status::RequestTimeout,
            "BAD_REQUEST",
            "the request did not arrive in time",
        )
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let status = error.status();
        let code = match status {
            Status::PayloadTooLarge => "TOO_LARGE",
            _ => "BAD_REQUEST",
        };
        Self::new(status, code, error.message())
    }
}
