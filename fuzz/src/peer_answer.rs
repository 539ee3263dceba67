//! The heads of peers' answers.
//!
//! * A head that is accepted is incomplete in every prefix and the same whatever follows.
//! * It names one status and one length, within bounds, and no other framing.

use std::io::ErrorKind;

use hypercache::peer::answer::{ANSWER_BYTES_MAX, parse_head};

/// See the module's comment.
pub fn law(bytes: &[u8]) {
    let head = match parse_head(bytes) {
        Ok(Some(head)) => head,
        Ok(None) => return,
        Err(error) => {
            let expected = [ErrorKind::InvalidData, ErrorKind::PermissionDenied];
            assert!(expected.contains(&error.kind()));
            return;
        }
    };
    assert!(head.len <= bytes.len() && head.body_len <= ANSWER_BYTES_MAX);
    for end in (0..head.len).step_by(1 + head.len / 512) {
        assert!(matches!(parse_head(&bytes[..end]), Ok(None)));
    }
    let alone = parse_head(&bytes[..head.len]);
    assert_eq!(alone.ok(), Some(Some(head)));
    let closes = if head.closes { "close" } else { "keep-alive" };
    let anew = format!(
        "HTTP/1.1 200 OK\r\nConnection: {closes}\r\nContent-Length: {}\r\n\r\n",
        head.body_len
    );
    let again = parse_head(anew.as_bytes()).ok().flatten().expect("a head");
    assert_eq!((again.body_len, again.closes), (head.body_len, head.closes));
    let text: String = bytes[..head.len].iter().copied().map(char::from).collect();
    let text = text.to_ascii_lowercase();
    assert_eq!(text.matches("\ncontent-length:").count(), 1);
    assert!(!text.contains("\ntransfer-encoding:"));
}
