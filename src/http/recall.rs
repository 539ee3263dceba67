//! Heads whose fields came before.
//!
//! What a client sends again and again differs in the request line: the fields are the same,
//! byte for byte. So a connection keeps the fields of its last request and what they said,
//! and reads a head whose fields are those by comparing them. (HPACK, RFC 7541, rests on the
//! same habit.)
//!
//! ```text
//!  GET /v1/cache/key HTTP/1.1 CR LF │ Host: … CR LF … CR LF CR LF
//!  └ read here, or left to          │ └ the bytes of last time, up to and with the empty
//!    [`parse_head`]                 │   line: they say what they said then
//! ```
//!
//! **Why this is safe.** What [`parse_head`] makes of fields follows from their bytes, the
//! version and the limits alone, and it reads no further than the empty line. Only what it has
//! let pass under HTTP/1.1 is kept, with its limits. A request line is read here only if it
//! has the one form that everybody reads alike: a known method, a space, a path of characters
//! that may stand there, a space, `HTTP/1.1`, CR LF. All else goes to [`parse_head`], which has
//! the last word on what is refused and why; a test compares the two on whatever it can think
//! of, and so does fuzzing.
//!
//! **Who owns it.** One connection: what others sent, credentials among it, is never compared
//! with what this one sends. There is room for the fields of requests with a body and of those
//! without, each of [`FIELDS_BYTES_MAX`] at most; longer ones are parsed each time. Where
//! fields differ each time (a `traceparent`), they are kept less and less often.

use super::request::{BodyFraming, Head, HttpVersion, Limits, Method, RequestError, parse_head};

/// The longest fields that are kept, with the empty line.
const FIELDS_BYTES_MAX: usize = 512;

/// What follows the target in a request line.
const LINE_END: &[u8] = b" HTTP/1.1\r\n";

/// What the requests of one connection had below their request line.
#[derive(Debug, Default)]
pub struct Recall {
    without_body: Kept,
    with_body: Kept,
}

/// Fields, and what they said.
#[derive(Debug, Default)]
struct Kept {
    /// As they came, with the empty line; nothing if there are none.
    bytes: Vec<u8>,
    said: Option<Said>,
    /// How many heads had other fields since these were kept or came again.
    others: u32,
}

/// What is in a [`Head`] besides the request line.
#[derive(Clone, Copy, Debug)]
struct Said {
    keep_alive: bool,
    expects_continue: bool,
    cross_origin: bool,
    body: BodyFraming,
    accept: Option<Span>,
    authorization: Option<Span>,
    consistency: Option<Span>,
    traceparent: Option<Span>,
}

/// Where in the fields a value stands.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u16,
    len: u16,
}

impl Recall {
    /// [`parse_head`], to the last letter, and quicker where the fields came before. The
    /// limits must be the same each time.
    ///
    /// # Errors
    ///
    /// As [`parse_head`].
    #[inline]
    pub fn parse_head<'b>(
        &mut self,
        buf: &'b [u8],
        limits: &Limits,
    ) -> Result<Option<Head<'b>>, RequestError> {
        if let Some(line) = Line::read(buf)
            && line.target_len <= limits.target_bytes_max
        {
            let kept = self.of(line.method);
            if let Some(head) = kept.head(&line, buf)
                && head.len <= limits.head_bytes_max
            {
                kept.others = 0;
                return Ok(Some(head));
            }
        }
        self.parse_and_keep(buf, limits)
    }

    fn parse_and_keep<'b>(
        &mut self,
        buf: &'b [u8],
        limits: &Limits,
    ) -> Result<Option<Head<'b>>, RequestError> {
        let parsed = parse_head(buf, limits)?;
        if let Some(head) = &parsed {
            self.of(head.method).keep(head, buf);
        }
        Ok(parsed)
    }

    #[inline]
    fn of(&mut self, method: Method) -> &mut Kept {
        match method {
            Method::Put | Method::Post => &mut self.with_body,
            _ => &mut self.without_body,
        }
    }
}

impl Kept {
    /// The head, if its fields are these.
    #[inline]
    fn head<'b>(&self, line: &Line<'b>, buf: &'b [u8]) -> Option<Head<'b>> {
        let said = self.said.as_ref()?;
        let fields = buf[line.len..].get(..self.bytes.len())?;
        if fields != self.bytes {
            return None;
        }
        let value = |span: Option<Span>| {
            span.map(|span| {
                let start = usize::from(span.start);
                &fields[start..start + usize::from(span.len)]
            })
        };
        Some(Head {
            len: line.len + fields.len(),
            method: line.method,
            path: line.path,
            query: line.query,
            version: HttpVersion::Http11,
            keep_alive: said.keep_alive,
            expects_continue: said.expects_continue,
            body: said.body,
            accept: value(said.accept),
            authorization: value(said.authorization),
            consistency: value(said.consistency),
            traceparent: value(said.traceparent),
            cross_origin: said.cross_origin,
        })
    }

    /// Keeps the fields of a head that has passed, unless they differ all the time.
    fn keep(&mut self, head: &Head<'_>, buf: &[u8]) {
        self.others = self.others.saturating_add(1);
        // After the first, second, fourth … that differs.
        if head.version != HttpVersion::Http11 || !self.others.is_power_of_two() {
            return;
        }
        // A line end before the request line is no part of it.
        let skipped = buf
            .iter()
            .take_while(|&&byte| b"\r\n".contains(&byte))
            .count();
        let Some(line_end) = memchr::memchr(b'\n', &buf[skipped..head.len]) else {
            return;
        };
        let fields = &buf[skipped + line_end + 1..head.len];
        if fields.len() > FIELDS_BYTES_MAX {
            return;
        }
        // Of just this size: nobody accounts for it.
        self.bytes = fields.to_vec();
        self.said = Said::of(head, fields);
    }
}

impl Said {
    /// Nothing, if a value does not stand in the fields.
    fn of(head: &Head<'_>, fields: &[u8]) -> Option<Self> {
        let span = |value: Option<&[u8]>| match value {
            None => Some(None),
            Some(value) => Span::of(value, fields).map(Some),
        };
        Some(Self {
            keep_alive: head.keep_alive,
            expects_continue: head.expects_continue,
            cross_origin: head.cross_origin,
            body: head.body,
            accept: span(head.accept)?,
            authorization: span(head.authorization)?,
            consistency: span(head.consistency)?,
            traceparent: span(head.traceparent)?,
        })
    }
}

impl Span {
    fn of(value: &[u8], fields: &[u8]) -> Option<Self> {
        // An empty value may stand anywhere.
        let start = match value {
            [] => 0,
            value => (value.as_ptr() as usize).checked_sub(fields.as_ptr() as usize)?,
        };
        let len = value.len();
        (start + len <= fields.len()).then_some(Self {
            start: u16::try_from(start).ok()?,
            len: u16::try_from(len).ok()?,
        })
    }
}

/// A request line of the plain form.
struct Line<'b> {
    method: Method,
    path: &'b [u8],
    query: Option<&'b [u8]>,
    target_len: usize,
    /// With its end.
    len: usize,
}

impl<'b> Line<'b> {
    /// Nothing if it has another form, or has not come whole.
    #[inline]
    fn read(buf: &'b [u8]) -> Option<Self> {
        let (method, from) = match buf {
            [b'G', b'E', b'T', b' ', b'/', ..] => (Method::Get, 4),
            [b'P', b'U', b'T', b' ', b'/', ..] => (Method::Put, 4),
            [b'H', b'E', b'A', b'D', b' ', b'/', ..] => (Method::Head, 5),
            [b'P', b'O', b'S', b'T', b' ', b'/', ..] => (Method::Post, 5),
            [b'D', b'E', b'L', b'E', b'T', b'E', b' ', b'/', ..] => (Method::Delete, 7),
            _ => return None,
        };
        let rest = &buf[from..];
        let (end, question) = target_end(rest)?;
        if !rest[end..].starts_with(LINE_END) {
            return None;
        }
        let (path, query) = match question {
            None => (&rest[..end], None),
            Some(at) => (&rest[..at], Some(&rest[at + 1..end])),
        };
        Some(Self {
            method,
            path,
            query,
            target_len: end,
            len: from + end + LINE_END.len(),
        })
    }
}

/// Where the characters end that may stand in a target (RFC 3986, and what is let pass besides:
/// `!` to `~` without `#`), and where the first `?` is. Nothing if they do not end well before
/// the bytes do.
#[inline]
fn target_end(bytes: &[u8]) -> Option<(usize, Option<usize>)> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    // The high bit of each byte of which the low seven bits are this one's.
    let equal = |word: u64, byte: u8| {
        let differs = (word ^ (ONES * u64::from(byte))) | HIGH;
        !(differs - ONES) & HIGH
    };
    let mut question = None;
    for (number, chunk) in bytes.as_chunks::<8>().0.iter().enumerate() {
        let word = u64::from_le_bytes(*chunk);
        // No borrow goes from one byte to the next: each is at least 0x80.
        let below = !((word | HIGH) - ONES * 0x21) & HIGH;
        let ends = below | equal(word, 0x7f) | equal(word, b'#') | (word & HIGH);
        let marks = equal(word, b'?');
        let place = |bits: u64| 8 * number + bits.trailing_zeros() as usize / 8;
        if marks != 0 && question.is_none() {
            question = Some(place(marks));
        }
        if ends != 0 {
            let end = place(ends);
            return Some((end, question.filter(|&at| at < end)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        head_bytes_max: 300,
        target_bytes_max: 60,
        headers_max: 8,
        body_bytes_max: 5000,
    };

    fn told(head: Result<Option<Head<'_>>, RequestError>) -> String {
        format!("{head:?}")
    }

    /// Whether this one is read without parsing its fields.
    fn is_recalled(recall: &mut Recall, buf: &[u8]) -> bool {
        let line = Line::read(buf);
        line.is_some_and(|line| recall.of(line.method).head(&line, buf).is_some())
    }

    #[test]
    fn fields_that_come_again_are_recalled_with_all_they_said() {
        let mut recall = Recall::default();
        let fields = "Host: x\r\nAccept: a/b\r\nAuthorization: Bearer t\r\nOrigin: http://y\r\n\
            X-Cache-Consistency: ONE\r\ntraceparent: p\r\nConnection: close\r\n\r\n";
        let get = |target: &str| format!("GET {target} HTTP/1.1\r\n{fields}trailing");
        recall.parse_head(get("/a").as_bytes(), &LIMITS).unwrap();
        for target in ["/a", "/v1/cache/key?ttl=1&x=?", "/%20!~", "/?", "//x"] {
            let input = get(target);
            assert!(is_recalled(&mut recall, input.as_bytes()), "{target}");
            let recalled = recall.parse_head(input.as_bytes(), &LIMITS);
            let head = recalled.unwrap().unwrap();
            assert_eq!(head.authorization, Some(&b"Bearer t"[..]));
            assert!(head.cross_origin && !head.keep_alive);
            let recalled = told(recall.parse_head(input.as_bytes(), &LIMITS));
            assert_eq!(recalled, told(parse_head(input.as_bytes(), &LIMITS)));
        }
    }

    #[test]
    fn requests_with_a_body_and_without_have_fields_of_their_own() {
        let mut recall = Recall::default();
        let get = b"GET /k HTTP/1.1\r\nHost: x\r\n\r\n";
        let put = b"PUT /k HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n";
        for input in [&get[..], put] {
            assert!(!is_recalled(&mut recall, input));
            recall.parse_head(input, &LIMITS).unwrap();
        }
        assert!(is_recalled(&mut recall, get) && is_recalled(&mut recall, put));
        let delete = b"DELETE /k HTTP/1.1\r\nHost: x\r\n\r\n";
        assert!(is_recalled(&mut recall, delete));
    }

    #[test]
    fn fields_that_differ_each_time_are_kept_ever_less_often() {
        let mut recall = Recall::default();
        let input = |number: u32| format!("GET / HTTP/1.1\r\nHost: x\r\nn: {number}\r\n\r\n");
        let mut kept = Vec::new();
        for number in 1..=100 {
            let input = input(number);
            recall.parse_head(input.as_bytes(), &LIMITS).unwrap();
            if is_recalled(&mut recall, input.as_bytes()) {
                kept.push(number);
            }
        }
        assert_eq!(kept, [1, 2, 4, 8, 16, 32, 64]);
        // What comes again is kept at the next power of two, and for good.
        for _ in 101..=128 {
            recall.parse_head(input(7).as_bytes(), &LIMITS).unwrap();
        }
        assert!(is_recalled(&mut recall, input(7).as_bytes()));
    }

    #[test]
    fn fields_longer_than_what_is_kept_are_parsed_each_time() {
        let limits = Limits {
            head_bytes_max: 2000,
            ..LIMITS
        };
        for (len, recalled) in [(FIELDS_BYTES_MAX, true), (FIELDS_BYTES_MAX + 1, false)] {
            let filler = "v".repeat(len - "Host: x\r\nf: \r\n\r\n".len());
            let input = format!("GET / HTTP/1.1\r\nHost: x\r\nf: {filler}\r\n\r\n");
            let mut recall = Recall::default();
            recall.parse_head(input.as_bytes(), &limits).unwrap();
            assert_eq!(is_recalled(&mut recall, input.as_bytes()), recalled);
        }
    }

    #[test]
    fn a_target_ends_before_whatever_may_not_stand_in_it() {
        for byte in 0..=u8::MAX {
            for at in 0..20 {
                let mut bytes = [b'a'; 40];
                bytes[at] = byte;
                bytes[30] = b' ';
                let passes = matches!(byte, 0x21..=0x7e) && byte != b'#';
                let end = if passes { 30 } else { at };
                let question = (byte == b'?').then_some(at);
                assert_eq!(target_end(&bytes), Some((end, question)), "{byte} at {at}");
            }
        }
        assert_eq!(target_end(b"/short "), None);
    }

    fn line() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "(GET|PUT|POST|HEAD|DELETE|OPTIONS) /[a-c?]{0,9} HTTP/1\\.1\r\n",
            1 => "(GET|PUT) /[ -~]{50,70} HTTP/1\\.[01]\r\n",
            1 => "(\r\n)?(GET|PUT|get|G) {1,2}(/|http://x/|\\*)[!-~\u{e9}]{0,12} {1,2}HTTP/[12]\\.[01]\r?\n",
        ]
    }

    fn fields() -> impl Strategy<Value = String> {
        let field = prop_oneof![
            4 => Just("Host: x\r\n".to_owned()),
            1 => Just("Content-Length: 7\r\n".to_owned()),
            1 => Just("Content-Length: 6000\r\n".to_owned()),
            1 => Just("Transfer-Encoding: chunked\r\n".to_owned()),
            1 => Just("Connection: close\r\n".to_owned()),
            1 => Just("Expect: 100-continue\r\n".to_owned()),
            1 => Just("traceparent:\r\n".to_owned()),
            1 => "(Accept|Authorization|traceparent|X-Cache-Consistency|Origin): [ -~]{0,20}\r?\n",
            1 => "[ -~]{0,20}\r\n",
        ];
        prop::collection::vec(field, 0..4).prop_map(|fields| fields.concat())
    }

    proptest! {
        #[test]
        fn whatever_came_before_a_head_is_read_as_ever(
            lines in prop::collection::vec(line(), 1..8),
            fields in prop::collection::vec(fields(), 2),
            picks in prop::collection::vec(0..2_usize, 8),
            cut in 0..200_usize,
            flip in prop::option::of((0..200_usize, any::<u8>())),
        ) {
            let mut recall = Recall::default();
            for (number, line) in lines.iter().enumerate() {
                let mut input = format!("{line}{}\r\nbody", fields[picks[number]]).into_bytes();
                if number + 1 == lines.len() {
                    if let Some((at, byte)) = flip && at < input.len() {
                        input[at] = byte;
                    }
                    input.truncate(input.len().max(cut) - cut / 4);
                }
                let recalled = told(recall.parse_head(&input, &LIMITS));
                prop_assert_eq!(recalled, told(parse_head(&input, &LIMITS)));
            }
        }
    }
}
