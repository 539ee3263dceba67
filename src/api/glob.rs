//! Which keys a listing is about: a prefix, or a pattern as Go's `path.Match` has it.
//!
//! `*` matches any run of characters but `/`, `?` one character but `/`, `[…]` one
//! of a class (`^` negates, `a-z` is a range, `\` escapes). A pattern is checked
//! whole before it is used. Matching goes back only to the last star, so its time
//! is bounded by the product of the lengths.
//!
//! Characters are those of UTF-8; bytes that are none count as one character each.

/// Which keys to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyFilter {
    /// Those that begin so; all, when it is empty.
    Prefix(Vec<u8>),
    /// Those that match as a whole.
    Glob(Pattern),
}

/// A checked pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    parts: Vec<Part>,
}

/// The pattern is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPattern;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Star,
    One,
    Literal(Char),
    Class {
        negated: bool,
        ranges: Vec<(Char, Char)>,
    },
}

/// A character's code point; a byte that belongs to none is 0x11_0000 above its value.
type Char = u32;

impl KeyFilter {
    /// Reads `q`: a prefix, unless it has one of `*?[`.
    ///
    /// # Errors
    ///
    /// [`BadPattern`] for a malformed pattern.
    pub fn parse(q: &[u8]) -> Result<Self, BadPattern> {
        if q.iter().any(|byte| matches!(byte, b'*' | b'?' | b'[')) {
            Pattern::new(q).map(Self::Glob)
        } else {
            Ok(Self::Prefix(q.to_vec()))
        }
    }

    /// Whether a key is to be listed.
    pub fn matches(&self, key: &[u8]) -> bool {
        match self {
            Self::Prefix(prefix) => key.starts_with(prefix),
            Self::Glob(pattern) => pattern.matches(key),
        }
    }
}

impl Pattern {
    /// Checks a pattern.
    ///
    /// # Errors
    ///
    /// [`BadPattern`] for an unfinished class or escape, and an empty class. A reversed
    /// range is none: it matches nothing.
    pub fn new(pattern: &[u8]) -> Result<Self, BadPattern> {
        let mut chars = Chars(pattern);
        let mut parts = Vec::new();
        while let Some(char) = chars.next() {
            parts.push(match char {
                STAR => Part::Star,
                QUESTION => Part::One,
                OPEN => class(&mut chars)?,
                ESCAPE => Part::Literal(chars.next().ok_or(BadPattern)?),
                char => Part::Literal(char),
            });
        }
        Ok(Self { parts })
    }

    /// Whether the whole of `text` matches.
    pub fn matches(&self, text: &[u8]) -> bool {
        let mut text = Chars(text);
        let mut part = 0;
        // Where to go on after the last star, and the text it has not taken yet.
        let mut retry: Option<(usize, Chars<'_>)> = None;
        loop {
            let before = text;
            let next = text.next();
            match (self.parts.get(part), next) {
                (Some(Part::Star), _) => {
                    text = before;
                    part += 1;
                    retry = Some((part, before));
                    continue;
                }
                (None, None) => return true,
                (Some(expected), Some(char)) if expected.takes(char) => {
                    part += 1;
                    continue;
                }
                _ => {}
            }
            // A mismatch: let the last star take one character more.
            let Some((after_star, mut untaken)) = retry else {
                return false;
            };
            match untaken.next() {
                None | Some(SLASH) => return false,
                Some(_) => {
                    retry = Some((after_star, untaken));
                    part = after_star;
                    text = untaken;
                }
            }
        }
    }
}

impl Part {
    fn takes(&self, char: Char) -> bool {
        match self {
            Self::Star => false,
            Self::One => char != SLASH,
            Self::Literal(literal) => *literal == char,
            Self::Class { negated, ranges } => {
                ranges
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&char))
                    != *negated
            }
        }
    }
}

const STAR: Char = b'*' as Char;
const QUESTION: Char = b'?' as Char;
const OPEN: Char = b'[' as Char;
const CLOSE: Char = b']' as Char;
const ESCAPE: Char = b'\\' as Char;
const NOT: Char = b'^' as Char;
const DASH: Char = b'-' as Char;
const SLASH: Char = b'/' as Char;

/// The rest of a class, behind its `[`.
fn class(chars: &mut Chars<'_>) -> Result<Part, BadPattern> {
    let mut ahead = *chars;
    let negated = ahead.next() == Some(NOT);
    if negated {
        *chars = ahead;
    }
    let mut ranges = Vec::new();
    loop {
        let mut ahead = *chars;
        if ahead.next() == Some(CLOSE) && !ranges.is_empty() {
            *chars = ahead;
            return Ok(Part::Class { negated, ranges });
        }
        let low = class_char(chars)?;
        let mut ahead = *chars;
        let high = if ahead.next() == Some(DASH) {
            *chars = ahead;
            class_char(chars)?
        } else {
            low
        };
        ranges.push((low, high));
    }
}

fn class_char(chars: &mut Chars<'_>) -> Result<Char, BadPattern> {
    let char = match chars.next() {
        None | Some(DASH | CLOSE) => return Err(BadPattern),
        Some(ESCAPE) => chars.next().ok_or(BadPattern)?,
        Some(char) => char,
    };
    // A class that is not closed is malformed, wherever the text ends.
    if chars.0.is_empty() {
        Err(BadPattern)
    } else {
        Ok(char)
    }
}

/// The characters of a byte string.
#[derive(Clone, Copy)]
struct Chars<'a>(&'a [u8]);

impl Iterator for Chars<'_> {
    type Item = Char;

    fn next(&mut self) -> Option<Char> {
        let (&first, rest) = self.0.split_first()?;
        if first.is_ascii() {
            self.0 = rest;
            return Some(Char::from(first));
        }
        let len = (2..=self.0.len().min(4)).find_map(|len| {
            let char = std::str::from_utf8(&self.0[..len]).ok()?.chars().next()?;
            Some((len, Char::from(char)))
        });
        let (len, char) = len.unwrap_or((1, 0x11_0000 + Char::from(first)));
        self.0 = &self.0[len..];
        Some(char)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        for (pattern, text, matches) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a\u{263a}b", true),
            ("a[^a]b", "a\u{263a}b", true),
            ("a???b", "a\u{263a}b", false),
            ("[a-\u{3b6}]*", "\u{3b1}", true),
            ("*[a-\u{3b6}]", "A", false),
            ("a?b", "a/b", false),
            ("a*b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[\\-]", "-", true),
            ("[x\\-]", "x", true),
            ("[x\\-]", "z", false),
            ("[z-a]", "m", false),
            ("*x", "xxx", true),
            ("", "", true),
            ("*", "", true),
        ] {
            let checked = Pattern::new(pattern.as_bytes()).unwrap();
            assert_eq!(
                checked.matches(text.as_bytes()),
                matches,
                "{pattern:?} {text:?}"
            );
        }
    }

    #[test]
    fn malformed_patterns_are_refused_whatever_the_text() {
        for pattern in [
            "[]a]", "[-]", "[x-]", "[-x]", "\\", "[a-b-c]", "[", "[^", "[^bc", "a[", "abc[", "*[",
        ] {
            assert_eq!(
                Pattern::new(pattern.as_bytes()),
                Err(BadPattern),
                "{pattern:?}"
            );
        }
    }

    #[test]
    fn without_wildcards_it_is_a_prefix() {
        let filter = KeyFilter::parse(b"a\\").unwrap();
        assert!(filter.matches(b"a\\b") && !filter.matches(b"ab"));
        assert!(KeyFilter::parse(b"").unwrap().matches(b"anything"));
    }

    #[test]
    fn many_stars_take_bounded_time() {
        let pattern = Pattern::new("a*".repeat(100).as_bytes()).unwrap();
        let mut text = "a".repeat(1000).into_bytes();
        text.push(b'/');
        assert!(!pattern.matches(&text));
    }

    #[test]
    fn bytes_that_are_no_text_are_characters_too() {
        assert!(Pattern::new(b"?\xff").unwrap().matches(b"\xfe\xff"));
    }
}
