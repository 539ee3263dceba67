//! Request heads.
//!
//! * A head that is accepted is refused or incomplete in every prefix, never another
//!   request, and what follows it changes nothing.
//! * Written anew from what was read, it is accepted with the same meaning.
//! * Its lines end in CR LF, and neither of the two stands anywhere else.
//! * A reader who is as lenient as any proxy finds the same framing in it.
//! * Whatever heads came before on the connection, it is read as by itself.
//! * Narrower limits refuse, but never read differently; what is incomplete is bounded.

use hypercache::http::{BodyFraming, Head, HttpVersion, Limits, Recall, RequestError, parse_head};

const WIDE: Limits = Limits {
    head_bytes_max: 16 << 10,
    target_bytes_max: 8 << 10,
    headers_max: 64,
    body_bytes_max: 4 << 20,
};

const NARROW: Limits = Limits {
    head_bytes_max: 200,
    target_bytes_max: 40,
    headers_max: 4,
    body_bytes_max: 1000,
};

const TINY: Limits = Limits {
    head_bytes_max: 40,
    target_bytes_max: 300,
    headers_max: 1,
    body_bytes_max: 0,
};

/// See the module's comment.
pub fn law(bytes: &[u8]) {
    recalled(bytes);
    let wide = parse_head(bytes, &WIDE);
    for limits in [&WIDE, &NARROW, &TINY] {
        match parse_head(bytes, limits) {
            Ok(Some(head)) => {
                accepted(bytes, limits, &head);
                let wide = wide.ok().flatten().expect("wider limits accept it too");
                assert_eq!(Meaning::of(&head), Meaning::of(&wide));
                assert_eq!(head.len, wide.len);
            }
            // An empty line may stand before it.
            Ok(None) => assert!(bytes.len() <= limits.head_bytes_max + 2),
            Err(error) => assert_refusal(error),
        }
    }
}

/// Reads heads, which a byte that stands in none parts, one after the other on one
/// connection, and the last one again.
fn recalled(bytes: &[u8]) {
    let mut recall = Recall::default();
    for head in bytes.split(|&byte| byte == 0xff) {
        for _ in 0..2 {
            let read = recall.parse_head(head, &WIDE);
            let alone = parse_head(head, &WIDE);
            assert_eq!(format!("{read:?}"), format!("{alone:?}"));
        }
    }
}

fn assert_refusal(error: RequestError) {
    let status = error.status() as u16;
    assert!((400..600).contains(&status) && !error.message().is_empty());
}

fn accepted(bytes: &[u8], limits: &Limits, head: &Head<'_>) {
    assert!(head.len <= bytes.len() && head.len <= limits.head_bytes_max + 2);
    let target = head.path.len() + head.query.map_or(0, |query| query.len() + 1);
    assert!(target <= limits.target_bytes_max);
    assert!(matches!(head.path, [b'/', ..] | b"*"));
    if let BodyFraming::Length(length) = head.body {
        assert!((1..=limits.body_bytes_max).contains(&length));
    }
    // Every prefix of a small head, some of a large one.
    let step = 1 + head.len / 512;
    for end in (0..head.len).step_by(step) {
        let prefix = parse_head(&bytes[..end], limits);
        assert!(matches!(prefix, Ok(None)), "{prefix:?} of {end} bytes");
    }
    let alone = parse_head(&bytes[..head.len], limits);
    let alone = alone.ok().flatten().expect("what follows was not needed");
    assert_eq!(Meaning::of(&alone), Meaning::of(head));

    let anew = written(head);
    let again = parse_head(&anew, &WIDE).expect("accepted again");
    let again = again.expect("complete");
    assert_eq!(again.len, anew.len());
    assert_eq!(Meaning::of(&again), Meaning::of(head));

    let lines = &bytes[..head.len];
    let pairs = lines.windows(2).filter(|pair| *pair == b"\r\n").count();
    for end in [b'\r', b'\n'] {
        assert_eq!(lines.iter().filter(|byte| **byte == end).count(), pairs);
    }
    assert_eq!(lenient_framing(lines), framing(head));
}

/// What a head says, whatever bytes say it.
#[derive(Debug, PartialEq, Eq)]
struct Meaning<'b> {
    method: &'static str,
    path: &'b [u8],
    query: Option<&'b [u8]>,
    version: HttpVersion,
    keep_alive: bool,
    expects_continue: bool,
    body: BodyFraming,
    fields: [Option<&'b [u8]>; 3],
}

impl<'b> Meaning<'b> {
    fn of(head: &Head<'b>) -> Self {
        Self {
            method: head.method.name(),
            path: head.path,
            query: head.query,
            version: head.version,
            keep_alive: head.keep_alive,
            expects_continue: head.expects_continue,
            body: head.body,
            fields: [head.accept, head.authorization, head.consistency],
        }
    }
}

/// The same request in the plainest words.
fn written(head: &Head<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(head.method.name().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.path);
    if let Some(query) = head.query {
        out.push(b'?');
        out.extend_from_slice(query);
    }
    out.extend_from_slice(match head.version {
        HttpVersion::Http10 => b" HTTP/1.0\r\n".as_slice(),
        HttpVersion::Http11 => b" HTTP/1.1\r\nHost: x\r\n",
    });
    let connection = if head.keep_alive {
        "keep-alive"
    } else {
        "close"
    };
    out.extend_from_slice(format!("Connection: {connection}\r\n").as_bytes());
    if head.expects_continue {
        out.extend_from_slice(b"Expect: 100-continue\r\n");
    }
    match head.body {
        BodyFraming::None => {}
        BodyFraming::Length(length) => {
            out.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes());
        }
        BodyFraming::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
    for (name, value) in [
        ("Accept", head.accept),
        ("Authorization", head.authorization),
        ("X-Cache-Consistency", head.consistency),
    ] {
        if let Some(value) = value {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// Every length and every coding that anybody could read out of a head.
#[derive(Debug, PartialEq, Eq)]
struct Framing {
    lengths: Vec<String>,
    codings: Vec<String>,
}

fn framing(head: &Head<'_>) -> Framing {
    let (lengths, codings) = match head.body {
        BodyFraming::None => (vec![], vec![]),
        BodyFraming::Length(length) => (vec![length.to_string()], vec![]),
        BodyFraming::Chunked => (vec![], vec!["chunked".to_owned()]),
    };
    Framing { lengths, codings }
}

/// Reads a head as the most tolerant reader would: any line end, folded lines, spaces and
/// underscores in names, lists as values.
fn lenient_framing(head: &[u8]) -> Framing {
    let text: String = head.iter().copied().map(char::from).collect();
    let mut lines: Vec<String> = Vec::new();
    for line in text.split(['\n', '\r', '\x0b', '\x0c', '\0']) {
        match lines.last_mut() {
            Some(last) if line.starts_with([' ', '\t']) => last.push_str(line),
            _ => lines.push(line.to_owned()),
        }
    }
    let (mut lengths, mut codings) = (Vec::new(), Vec::new());
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let name = name.trim().to_ascii_lowercase().replace('_', "-");
        let values = value
            .split(',')
            .map(|value| value.trim().to_ascii_lowercase());
        match name.as_str() {
            "content-length" => lengths.extend(values),
            "transfer-encoding" => codings.extend(values),
            _ => {}
        }
    }
    // Leading zeros say nothing, and no body is none.
    for length in &mut lengths {
        let digits = length.trim_start_matches('0');
        *length = digits.to_owned();
    }
    lengths.retain(|length| !length.is_empty());
    Framing { lengths, codings }
}
