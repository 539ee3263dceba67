//! Patterns of listings: the first line is the pattern, the rest the key.
//!
//! * A second matcher, which tries everything and remembers what it tried, agrees.
//! * What is malformed is malformed for every key, and what has no wildcard is a prefix.

use std::collections::HashMap;

use hypercache::api::glob::{KeyFilter, Pattern};

/// See the module's comment.
pub fn law(bytes: &[u8]) {
    let at = bytes.iter().position(|&byte| byte == b'\n');
    let (pattern, key) = bytes.split_at(at.unwrap_or(bytes.len()));
    let key = key.strip_prefix(b"\n").unwrap_or(key);

    let checked = Pattern::new(pattern);
    let parts = read_slowly(&chars(pattern));
    assert_eq!(checked.is_ok(), parts.is_some());
    let filter = KeyFilter::parse(pattern);
    if !pattern.iter().any(|byte| b"*?[".contains(byte)) {
        let prefix = filter.expect("a prefix is never malformed");
        assert_eq!(prefix.matches(key), key.starts_with(pattern));
    } else {
        assert_eq!(filter.is_ok(), checked.is_ok());
    }
    // The slow matcher takes the product of the lengths in memory.
    if let (Ok(checked), Some(parts)) = (checked, parts)
        && parts.len() * key.len() <= 1 << 16
    {
        let expected = Slow {
            parts: &parts,
            text: &chars(key),
            known: HashMap::new(),
        }
        .matches(0, 0);
        assert_eq!(checked.matches(key), expected);
    }
}

/// A character, or a byte that belongs to none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Char {
    Text(char),
    Byte(u8),
}

enum Part {
    Star,
    One,
    Literal(Char),
    Class(bool, Vec<(Char, Char)>),
}

fn chars(bytes: &[u8]) -> Vec<Char> {
    let mut chars = Vec::new();
    for chunk in bytes.utf8_chunks() {
        chars.extend(chunk.valid().chars().map(Char::Text));
        chars.extend(chunk.invalid().iter().map(|&byte| Char::Byte(byte)));
    }
    chars
}

fn read_slowly(pattern: &[Char]) -> Option<Vec<Part>> {
    use Char::Text;
    let (mut parts, mut at) = (Vec::new(), 0);
    while let Some(&char) = pattern.get(at) {
        at += 1;
        parts.push(match char {
            Text('*') => Part::Star,
            Text('?') => Part::One,
            Text('\\') => {
                at += 1;
                Part::Literal(*pattern.get(at - 1)?)
            }
            Text('[') => {
                let negated = pattern.get(at) == Some(&Text('^'));
                at += usize::from(negated);
                let mut ranges = Vec::new();
                while ranges.is_empty() || *pattern.get(at)? != Text(']') {
                    let low = class_char(pattern, &mut at)?;
                    let high = if *pattern.get(at)? == Text('-') {
                        at += 1;
                        class_char(pattern, &mut at)?
                    } else {
                        low
                    };
                    ranges.push((low, high));
                }
                at += 1;
                Part::Class(negated, ranges)
            }
            char => Part::Literal(char),
        });
    }
    Some(parts)
}

fn class_char(pattern: &[Char], at: &mut usize) -> Option<Char> {
    *at += 1;
    match *pattern.get(*at - 1)? {
        Char::Text('-' | ']') => None,
        Char::Text('\\') => {
            *at += 1;
            pattern.get(*at - 1).copied()
        }
        char => Some(char),
    }
}

struct Slow<'a> {
    parts: &'a [Part],
    text: &'a [Char],
    known: HashMap<(usize, usize), bool>,
}

impl Slow<'_> {
    fn matches(&mut self, part: usize, at: usize) -> bool {
        if let Some(&known) = self.known.get(&(part, at)) {
            return known;
        }
        let slash = Char::Text('/');
        let matches = match (self.parts.get(part), self.text.get(at).copied()) {
            (None, char) => char.is_none(),
            (Some(Part::Star), char) => {
                self.matches(part + 1, at)
                    || char.is_some_and(|char| char != slash) && self.matches(part, at + 1)
            }
            (Some(_), None) => false,
            (Some(Part::One), Some(char)) => char != slash && self.matches(part + 1, at + 1),
            (Some(Part::Literal(literal)), Some(char)) => {
                *literal == char && self.matches(part + 1, at + 1)
            }
            (Some(Part::Class(negated, ranges)), Some(char)) => {
                let within = ranges
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&char));
                within != *negated && self.matches(part + 1, at + 1)
            }
        };
        self.known.insert((part, at), matches);
        matches
    }
}
