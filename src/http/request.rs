//! Request heads (RFC 9112 sections 2 to 6), parsed in place and strictly.
//!
//! httparse finds the line and the fields; everything that decides where a
//! message ends, and everything httparse tolerates but two parsers could read
//! differently, is checked here. Nothing is allocated. A head is refused as soon
//! as it is over a limit, complete or not.

use std::mem::MaybeUninit;

use super::response::Status;

/// The most header fields a head may have, whatever the limits say.
const HEADERS_CAP: usize = 128;

/// What a request may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of request line and fields together.
    pub head_bytes_max: usize,
    /// Bytes of the request target.
    pub target_bytes_max: usize,
    /// Header fields; at most 128.
    pub headers_max: usize,
    /// Bytes of the body, decoded.
    pub body_bytes_max: u64,
}

/// A request method; unknown ones are [`Method::Other`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `GET`
    Get,
    /// `HEAD`
    Head,
    /// `PUT`
    Put,
    /// `POST`
    Post,
    /// `DELETE`
    Delete,
    /// `OPTIONS`
    Options,
    /// Any other token.
    Other,
}

impl Method {
    #[inline]
    fn of(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "PUT" => Self::Put,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            _ => Self::Other,
        }
    }

    /// Its name on the wire; `*` for an unknown one.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Other => "*",
        }
    }
}

/// The protocol versions served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// How the end of the body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is none.
    None,
    /// It has this many bytes, within the body limit.
    Length(u64),
    /// It comes in chunks.
    Chunked,
}

/// A request head, borrowed from the input.
#[derive(Clone, Copy, Debug)]
pub struct Head<'b> {
    /// Bytes from the start of the input to the end of the head.
    pub len: usize,
    /// The method.
    pub method: Method,
    /// The path, still percent-encoded.
    pub path: &'b [u8],
    /// What follows the first `?`.
    pub query: Option<&'b [u8]>,
    /// The protocol version.
    pub version: HttpVersion,
    /// Whether the connection may serve another request.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Where the body ends.
    pub body: BodyFraming,
    /// The `Accept` field; the first one if there are several.
    pub accept: Option<&'b [u8]>,
    /// The `Authorization` field.
    pub authorization: Option<&'b [u8]>,
    /// The first `X-Cache-Consistency` field, unread.
    pub consistency: Option<&'b [u8]>,
    /// The `traceparent` field, unread; empty when there is more than one, which is like
    /// none.
    pub traceparent: Option<&'b [u8]>,
    /// Whether a browser says that a page of another site asks (RFC 6454): its `Origin` is
    /// not where this request was sent to.
    pub cross_origin: bool,
}

/// Why a request is refused. Each closes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// Not a request line and fields as RFC 9112 has them.
    Malformed,
    /// A line that does not end in CR LF.
    BareLineEnd,
    /// A protocol version other than 1.0 and 1.1.
    Version,
    /// A target that is neither a path nor an `http` URL.
    Target,
    /// A target over the limit.
    TargetTooLong,
    /// More or longer fields than the limits allow.
    HeadTooLarge,
    /// No `Host`, more than one, or one that names no host.
    Host,
    /// A `Content-Length` that is not one plain number, given once.
    ContentLength,
    /// Both `Content-Length` and `Transfer-Encoding`.
    BothLengths,
    /// A `Transfer-Encoding` that cannot be trusted.
    TransferEncoding,
    /// A transfer coding that is not served.
    UnknownCoding,
    /// An expectation other than `100-continue`.
    Expectation,
    /// More than one `Authorization`: who asks would depend on who reads.
    Authorization,
    /// A body over the limit.
    BodyTooLarge,
    /// Chunks that are none.
    Chunk,
    /// A trailer that is no field, or one that would say where a message ends.
    Trailer,
}

impl RequestError {
    /// The status to answer with.
    pub fn status(self) -> Status {
        match self {
            Self::Version => Status::HttpVersionNotSupported,
            Self::TargetTooLong => Status::UriTooLong,
            Self::HeadTooLarge => Status::HeaderFieldsTooLarge,
            Self::UnknownCoding => Status::NotImplemented,
            Self::Expectation => Status::ExpectationFailed,
            Self::BodyTooLarge => Status::PayloadTooLarge,
            _ => Status::BadRequest,
        }
    }

    /// What is wrong, for a person.
    pub fn message(self) -> &'static str {
        match self {
            Self::Malformed => "malformed request",
            Self::BareLineEnd => "lines must end in CR LF",
            Self::Version => "only HTTP/1.0 and HTTP/1.1 are served",
            Self::Target => "malformed request target",
            Self::TargetTooLong => "the request target is too long",
            Self::HeadTooLarge => "the request head is too large",
            Self::Host => "exactly one Host field that names a host is required",
            Self::ContentLength => "malformed or repeated Content-Length",
            Self::BothLengths => "both Content-Length and Transfer-Encoding",
            Self::TransferEncoding => "malformed Transfer-Encoding",
            Self::UnknownCoding => "only the chunked transfer coding is served",
            Self::Expectation => "only the expectation 100-continue is served",
            Self::Authorization => "more than one Authorization field",
            Self::BodyTooLarge => "the body is too large",
            Self::Chunk => "malformed chunked body",
            Self::Trailer => "malformed or forbidden trailer field",
        }
    }
}

/// Parses the head at the start of `buf`; `None` while it is incomplete.
///
/// # Errors
///
/// As soon as no continuation could make it a request that is served.
#[inline]
pub fn parse_head<'b>(buf: &'b [u8], limits: &Limits) -> Result<Option<Head<'b>>, RequestError> {
    // An empty line before the request line is ignored (RFC 9112 section 2.2).
    let skipped = if buf.starts_with(b"\r\n") { 2 } else { 0 };
    let input = &buf[skipped..];

    let mut storage = [MaybeUninit::<httparse::Header<'b>>::uninit(); HEADERS_CAP];
    let headers_max = limits.headers_max.min(HEADERS_CAP);
    let mut request = httparse::Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(input, &mut storage[..headers_max]);
    let len = match parsed {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => {
            refuse_partial(input, limits)?;
            return Ok(None);
        }
        // Which version it would be is told by the whole line only: what is refused must
        // not depend on how its bytes arrive.
        Err(httparse::Error::Version) if memchr::memchr(b'\n', input).is_none() => {
            refuse_partial(input, limits)?;
            return Ok(None);
        }
        Err(error) => return Err(malformed(error, input, limits)),
    };
    if len > limits.head_bytes_max {
        return Err(oversized(input, limits));
    }
    check_line_ends(&input[..len])?;

    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(RequestError::Malformed);
    };
    if target.len() > limits.target_bytes_max {
        return Err(RequestError::TargetTooLong);
    }
    let method = Method::of(method);
    let version = if version == 0 {
        HttpVersion::Http10
    } else {
        HttpVersion::Http11
    };
    let (path, query) = split_target(target.as_bytes(), method)?;
    let fields = Fields::read(request.headers)?;
    fields
        .finish(version, limits, |fields, body| Head {
            len: skipped + len,
            method,
            path,
            query,
            version,
            keep_alive: fields.keep_alive(version),
            expects_continue: fields.expects_continue && version == HttpVersion::Http11,
            body,
            accept: fields.accept,
            authorization: fields.authorization,
            consistency: fields.consistency,
            traceparent: fields.traceparent,
            cross_origin: fields.is_cross_origin(),
        })
        .map(Some)
}

/// Whether this is the start of a request by `HEAD`, whatever else is wrong with it: then
/// its answer has no body (RFC 9110 section 9.3.2).
pub fn begins_with_head(buf: &[u8]) -> bool {
    buf.strip_prefix(b"\r\n")
        .unwrap_or(buf)
        .starts_with(b"HEAD ")
}

/// What an incomplete head may already be refused for.
#[cold]
fn refuse_partial(input: &[u8], limits: &Limits) -> Result<(), RequestError> {
    if input.len() > limits.head_bytes_max {
        return Err(oversized(input, limits));
    }
    let line_end = memchr::memchr(b'\n', input);
    if line_end.is_none() && target_of(input).len() > limits.target_bytes_max {
        return Err(RequestError::TargetTooLong);
    }
    check_line_ends(input)
}

/// The part of an unfinished request line that belongs to the target.
fn target_of(line: &[u8]) -> &[u8] {
    let after_method = memchr::memchr(b' ', line).map_or(&[][..], |at| &line[at + 1..]);
    let end = memchr::memchr(b' ', after_method).unwrap_or(after_method.len());
    &after_method[..end]
}

/// Which limit a head over the size limit has broken.
#[cold]
fn oversized(input: &[u8], limits: &Limits) -> RequestError {
    if target_of(input).len() > limits.target_bytes_max {
        RequestError::TargetTooLong
    } else {
        RequestError::HeadTooLarge
    }
}

#[cold]
fn malformed(error: httparse::Error, input: &[u8], limits: &Limits) -> RequestError {
    match error {
        httparse::Error::TooManyHeaders => RequestError::HeadTooLarge,
        httparse::Error::Version if looks_versioned(input) => RequestError::Version,
        _ if input.len() > limits.head_bytes_max => oversized(input, limits),
        _ => RequestError::Malformed,
    }
}

/// Whether a request line is whole but for naming another `HTTP/digit.digit`: then
/// the version is wrong, and not the line.
fn looks_versioned(input: &[u8]) -> bool {
    let line = &input[..memchr::memchr(b'\n', input).unwrap_or(input.len())];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.split(|&byte| byte == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(_), Some(_), Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None) => {
            major.is_ascii_digit() && minor.is_ascii_digit()
        }
        _ => false,
    }
}

/// Every LF must follow a CR: httparse lets a bare LF pass as a line end (RFC 9112
/// section 2.2 allows it, smuggling needs it). A CR without LF it refuses itself.
#[inline]
fn check_line_ends(head: &[u8]) -> Result<(), RequestError> {
    let Some((first, rest)) = head.split_first() else {
        return Ok(());
    };
    // Without a branch for each line, so that the compiler can look at many bytes at once.
    let pairs = head.iter().zip(rest);
    let bare = pairs.fold(*first == b'\n', |bare, (before, byte)| {
        bare | ((*byte == b'\n') & (*before != b'\r'))
    });
    match bare {
        false => Ok(()),
        true => Err(RequestError::BareLineEnd),
    }
}

/// Splits a target into path and query: origin-form, absolute-form of `http`, and
/// `*` for OPTIONS (RFC 9112 section 3.2).
#[inline]
fn split_target(target: &[u8], method: Method) -> Result<(&[u8], Option<&[u8]>), RequestError> {
    if !target.iter().fold(true, |good, byte| {
        good & matches!(byte, 0x21..=0x7e if *byte != b'#')
    }) {
        return Err(RequestError::Target);
    }
    let origin = match target {
        [b'/', ..] => target,
        b"*" if method == Method::Options => target,
        _ => {
            let scheme = target
                .get(..7)
                .filter(|scheme| scheme.eq_ignore_ascii_case(b"http://"));
            let rest = scheme
                .map(|scheme| &target[scheme.len()..])
                .ok_or(RequestError::Target)?;
            let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
            let end = end.unwrap_or(rest.len());
            if end == 0 {
                return Err(RequestError::Target);
            }
            match &rest[end..] {
                [] => b"/",
                [b'?', ..] => return Err(RequestError::Target),
                path => path,
            }
        }
    };
    Ok(match memchr::memchr(b'?', origin) {
        None => (origin, None),
        Some(at) => (&origin[..at], Some(&origin[at + 1..])),
    })
}

/// The fields that matter to the connection or to every handler.
#[derive(Default)]
struct Fields<'b> {
    hosts: usize,
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    accept: Option<&'b [u8]>,
    authorization: Option<&'b [u8]>,
    consistency: Option<&'b [u8]>,
    traceparent: Option<&'b [u8]>,
    host: &'b [u8],
    origin: Option<&'b [u8]>,
}

impl<'b> Fields<'b> {
    #[inline]
    fn is_cross_origin(&self) -> bool {
        self.origin.is_some_and(|origin| {
            let at = origin.windows(3).position(|part| part == b"://");
            at.is_none_or(|at| !origin[at + 3..].eq_ignore_ascii_case(self.host))
        })
    }

    #[inline]
    fn read(headers: &[httparse::Header<'b>]) -> Result<Self, RequestError> {
        let mut fields = Self::default();
        for header in headers {
            let name = header.name.as_bytes();
            let value = header.value;
            match name.len() {
                4 if name.eq_ignore_ascii_case(b"host") => {
                    check_host(value)?;
                    fields.hosts += 1;
                    fields.host = value;
                }
                6 if name.eq_ignore_ascii_case(b"accept") => {
                    fields.accept = fields.accept.or(Some(value));
                }
                6 if name.eq_ignore_ascii_case(b"origin") => {
                    fields.origin = fields.origin.or(Some(value));
                }
                6 if name.eq_ignore_ascii_case(b"expect") => {
                    if !value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(RequestError::Expectation);
                    }
                    fields.expects_continue = true;
                }
                10 if name.eq_ignore_ascii_case(b"connection") => fields.connection(value),
                11 if name.eq_ignore_ascii_case(b"traceparent") => {
                    fields.traceparent = Some(match fields.traceparent {
                        None => value,
                        Some(_) => b"",
                    });
                }
                13 if name.eq_ignore_ascii_case(b"authorization") => {
                    if fields.authorization.is_some() {
                        return Err(RequestError::Authorization);
                    }
                    fields.authorization = Some(value);
                }
                14 if name.eq_ignore_ascii_case(b"content-length") => {
                    if fields.content_length.is_some() {
                        return Err(RequestError::ContentLength);
                    }
                    fields.content_length = Some(content_length(value)?);
                }
                17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                    if fields.chunked {
                        return Err(RequestError::TransferEncoding);
                    }
                    transfer_encoding(value)?;
                    fields.chunked = true;
                }
                // A proxy that takes `_` for `-`, as CGI does, would go by it.
                14 if name.eq_ignore_ascii_case(b"content_length") => {
                    return Err(RequestError::ContentLength);
                }
                17 if name.eq_ignore_ascii_case(b"transfer_encoding") => {
                    return Err(RequestError::TransferEncoding);
                }
                19 if name.eq_ignore_ascii_case(b"x-cache-consistency") => {
                    fields.consistency = fields.consistency.or(Some(value));
                }
                _ => {}
            }
        }
        Ok(fields)
    }

    /// Options of `Connection`: a list of tokens, repeated fields add to it.
    fn connection(&mut self, value: &[u8]) {
        for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn keep_alive(&self, version: HttpVersion) -> bool {
        !self.close && (version == HttpVersion::Http11 || self.keep_alive)
    }

    #[inline]
    fn finish<T>(
        self,
        version: HttpVersion,
        limits: &Limits,
        build: impl FnOnce(Self, BodyFraming) -> T,
    ) -> Result<T, RequestError> {
        // RFC 9112 section 3.2: required in 1.1, and never twice.
        if self.hosts > 1 || (self.hosts == 0 && version == HttpVersion::Http11) {
            return Err(RequestError::Host);
        }
        let body = match (self.chunked, self.content_length) {
            (true, Some(_)) => return Err(RequestError::BothLengths),
            (true, None) if version == HttpVersion::Http10 => {
                return Err(RequestError::TransferEncoding);
            }
            (true, None) => BodyFraming::Chunked,
            (false, None | Some(0)) => BodyFraming::None,
            (false, Some(length)) if length > limits.body_bytes_max => {
                return Err(RequestError::BodyTooLarge);
            }
            (false, Some(length)) => BodyFraming::Length(length),
        };
        Ok(build(self, body))
    }
}

/// A name or an address and perhaps a port, or nothing (RFC 9110 section 7.2). What could
/// be a list or hold user information is refused: another reader may take another part of
/// it for the host.
#[inline]
fn check_host(value: &[u8]) -> Result<(), RequestError> {
    let good = value.iter().fold(true, |good, &byte| {
        good & matches!(byte, 0x21..=0x7e)
            & !matches!(byte, b',' | b'@' | b'/' | b'\\' | b'?' | b'#')
    });
    good.then_some(()).ok_or(RequestError::Host)
}

/// One plain decimal number; no sign, no space, no list (RFC 9110 section 8.6).
fn content_length(value: &[u8]) -> Result<u64, RequestError> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(RequestError::ContentLength);
    }
    value
        .iter()
        .try_fold(0_u64, |length, digit| {
            length.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        })
        .ok_or(RequestError::ContentLength)
}

/// Exactly `chunked`; other codings alone are unknown, beside it suspicious.
fn transfer_encoding(value: &[u8]) -> Result<(), RequestError> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let mut codings = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let names_chunked = value
        .to_ascii_lowercase()
        .windows(b"chunked".len())
        .any(|part| part == b"chunked");
    let tokens = codings.all(|coding| {
        !coding.is_empty()
            && coding
                .iter()
                .all(|&byte| byte.is_ascii_alphanumeric() || byte == b'-')
    });
    if tokens && !names_chunked {
        return Err(RequestError::UnknownCoding);
    }
    Err(RequestError::TransferEncoding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        head_bytes_max: 1000,
        target_bytes_max: 200,
        headers_max: 10,
        body_bytes_max: 5000,
    };

    #[test]
    fn a_head_is_read_field_by_field() {
        let input = b"PUT /v1/cache/a%20b?ttl=1s HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\
            Accept: a/b\r\nAuthorization: Bearer t\r\nExpect: 100-Continue\r\n\r\nbody";
        let head = parse_head(input, &LIMITS).unwrap().unwrap();
        assert_eq!(head.len, input.len() - 4);
        assert_eq!(
            (head.method, head.path),
            (Method::Put, &b"/v1/cache/a%20b"[..])
        );
        assert_eq!(
            (head.query, head.body),
            (Some(&b"ttl=1s"[..]), BodyFraming::Length(12))
        );
        assert_eq!(head.accept, Some(&b"a/b"[..]));
        assert_eq!(head.authorization, Some(&b"Bearer t"[..]));
        assert!(head.keep_alive && head.expects_continue);
    }

    #[test]
    fn two_parents_of_a_trace_are_none() {
        let parsed = |fields: &str| {
            let input = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
            let head = parse_head(input.as_bytes(), &LIMITS).unwrap().unwrap();
            head.traceparent.map(<[u8]>::to_vec)
        };
        assert_eq!(parsed(""), None);
        assert_eq!(parsed("TraceParent: a\r\n"), Some(b"a".to_vec()));
        let twice = "traceparent: a\r\ntraceparent: a\r\n";
        assert_eq!(parsed(twice), Some(Vec::new()));
    }

    #[test]
    fn a_host_names_one_host_or_nothing() {
        let parsed = |host: &str| {
            let input = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            parse_head(input.as_bytes(), &LIMITS).map(|head| head.is_some())
        };
        for host in ["x", "example.org:80", "[::1]:8080", "", "a_b-c~"] {
            assert_eq!(parsed(host), Ok(true), "{host:?}");
        }
        for host in [
            "a b", "a, b", "a,b", "u@h", "h/p", "h\\p", "h?q", "h#f", "\u{e9}",
        ] {
            assert_eq!(parsed(host), Err(RequestError::Host), "{host:?}");
        }
    }

    #[test]
    fn a_framing_field_with_underscores_is_refused() {
        let parsed = |field: &str| {
            let input = format!("PUT / HTTP/1.1\r\nHost: x\r\n{field}: 5\r\n\r\n");
            parse_head(input.as_bytes(), &LIMITS).map(|head| head.is_some())
        };
        assert_eq!(parsed("Content_Length"), Err(RequestError::ContentLength));
        assert_eq!(
            parsed("transfer_encoding"),
            Err(RequestError::TransferEncoding)
        );
        assert_eq!(parsed("Content_Length_"), Ok(true));
    }

    fn field() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("Host: x\r\n".to_owned()),
            Just("Content-Length: 7\r\n".to_owned()),
            Just("Transfer-Encoding: chunked\r\n".to_owned()),
            Just("Connection: close\r\n".to_owned()),
            "[ -~]{0,20}\r\n",
            "[A-Za-z-]{1,10}: [ -~]{0,20}\r?\n",
        ]
    }

    proptest! {
        #[test]
        fn a_prefix_is_incomplete_or_refused_but_never_another_request(
            line in prop_oneof![Just("GET /k HTTP/1.1\r\n".to_owned()), "[ -~]{0,30}\r\n"],
            fields in prop::collection::vec(field(), 0..5),
            noise in prop::collection::vec(any::<u8>(), 0..10),
        ) {
            let mut input = line.into_bytes();
            input.extend(fields.concat().into_bytes());
            input.extend(b"\r\n");
            input.extend(noise);
            let whole = parse_head(&input, &LIMITS).map(|head| head.map(|head| head.len));
            for end in 0..input.len() {
                match (parse_head(&input[..end], &LIMITS), &whole) {
                    (Ok(None), _) => {}
                    (Ok(Some(head)), Ok(Some(len))) => prop_assert_eq!(head.len, *len),
                    (Ok(Some(_)), other) => prop_assert!(false, "a prefix passed: {:?}", other),
                    (Err(_), whole) => prop_assert!(whole.is_err(), "a prefix was refused"),
                }
            }
        }

        #[test]
        fn any_bytes_are_survived(input in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_head(&input, &LIMITS);
        }
    }
}
