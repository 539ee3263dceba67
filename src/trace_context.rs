//! Which trace something belongs to, and as what: the `traceparent` of W3C Trace Context.
//!
//! Parsed strictly, in place and without allocation; a header that is not as it should be
//! is none. Versions to come are read as far as version 00 goes, as the specification asks
//! (section 3.2.3). `tracestate` is not carried: it would have to be copied with every
//! request, sampled or not, and nothing here has anything to say in it.

use opentelemetry::{SpanId, TraceFlags, TraceId};

/// How long a `traceparent` of version 00 is.
pub const HEADER_BYTES: usize = 55;

/// The version that is written, and the one that no header may have.
const VERSION: &[u8; 2] = b"00";
const VERSION_INVALID: &[u8] = b"ff";

/// A span, as others refer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace it is part of.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
    /// Whether it is recorded; other flags are not passed on.
    pub flags: TraceFlags,
}

impl Context {
    /// Whether the span is recorded.
    #[inline]
    pub fn is_sampled(&self) -> bool {
        self.flags.is_sampled()
    }

    /// Reads a `traceparent`; nothing for one that is not valid.
    pub fn parse(header: &[u8]) -> Option<Self> {
        let (fixed, rest) = header.split_at_checked(HEADER_BYTES)?;
        let mut fields = fixed.split(|&byte| byte == b'-');
        let (version, trace) = (fields.next()?, fields.next()?);
        let (span, flags) = (fields.next()?, fields.next()?);
        if fields.next().is_some() || version == VERSION_INVALID {
            return None;
        }
        hex::<2>(version)?;
        // Only a later version may say more, in another field.
        let more = version != VERSION && rest.first() == Some(&b'-');
        if !rest.is_empty() && !more {
            return None;
        }
        let trace = TraceId::from(hex::<32>(trace)?);
        let span = SpanId::from(hex::<16>(span)? as u64);
        let flags = TraceFlags::new(hex::<2>(flags)? as u8) & TraceFlags::SAMPLED;
        let valid = trace != TraceId::INVALID && span != SpanId::INVALID;
        valid.then_some(Self { trace, span, flags })
    }

    /// As a `traceparent`.
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [b'-'; HEADER_BYTES];
        header[..2].copy_from_slice(VERSION);
        put_hex(&self.trace.to_bytes(), &mut header[3..35]);
        put_hex(&self.span.to_bytes(), &mut header[36..52]);
        put_hex(&[self.flags.to_u8()], &mut header[53..]);
        header
    }
}

/// The number that exactly so many lowercase digits are.
fn hex<const DIGITS: usize>(text: &[u8]) -> Option<u128> {
    if text.len() != DIGITS {
        return None;
    }
    text.iter().try_fold(0, |number, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

fn put_hex(bytes: &[u8], into: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, digits) in bytes.iter().zip(into.chunks_exact_mut(2)) {
        digits[0] = DIGITS[usize::from(byte >> 4)];
        digits[1] = DIGITS[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXAMPLE: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parsed(header: &str) -> Option<Context> {
        Context::parse(header.as_bytes())
    }

    #[test]
    fn the_example_of_the_specification_is_read_and_written() {
        let context = Context::parse(EXAMPLE).unwrap();
        assert_eq!(
            context.trace.to_string(),
            "4bf92f3577b34da6a3ce929d0e0e4736"
        );
        assert_eq!(context.span.to_string(), "00f067aa0ba902b7");
        assert!(context.is_sampled());
        assert_eq!(context.header(), EXAMPLE);
    }

    #[test]
    fn only_the_flag_that_is_known_is_passed_on() {
        let unsampled = parsed("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-fe");
        let context = unsampled.unwrap();
        assert!(!context.is_sampled());
        assert!(context.header().ends_with(b"-00"));
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        for good in [
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what",
            "fe-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
        ] {
            assert_eq!(parsed(good), Context::parse(EXAMPLE), "{good}");
        }
    }

    #[test]
    fn what_is_not_as_it_should_be_is_nothing() {
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 ",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
            "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
            "00-4bf92f3577b34da6a3ce929d0e0e47-3600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba-2b7-01",
        ] {
            assert_eq!(parsed(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace in 1_u128.., span in 1_u64.., sampled: bool) {
            let flags = TraceFlags::default().with_sampled(sampled);
            let context = Context { trace: trace.into(), span: span.into(), flags };
            prop_assert_eq!(Context::parse(&context.header()), Some(context));
        }

        #[test]
        fn any_bytes_are_survived(header in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Context::parse(&header);
        }
    }
}
