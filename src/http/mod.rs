//! HTTP/1.1, bytes in and bytes out: request heads, body framing, response heads.
//!
//! Pure: no sockets, no async, and no idea what is served. What can be read in two
//! ways is refused, because a proxy in front of us may read it the other way
//! (RFC 9112 section 11.2); a refused request closes its connection.

mod body;
mod recall;
mod request;
mod response;
mod uri;

pub use body::{ChunkedDecoder, Decoded};
pub use recall::Recall;
pub use request::{
    BodyFraming, Head, HttpVersion, Limits, Method, RequestError, begins_with_head, parse_head,
};
pub use response::{
    CONTINUE, Connection, HttpDate, ResponseHead, Status, push_number, write_ok_json,
    write_ok_octets,
};
pub use uri::{BadEscape, Query, percent_decode};
