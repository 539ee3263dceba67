//! The operator's page: one file without a build step, which asks this node for all it
//! shows.
//!
//! The page holds no data and is served to anyone. Its policy lets it run its own script,
//! apply its own style and speak to its own origin, and nothing else. Script and style are
//! named by their hashes, which are taken from the page itself.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::api::Writer;
use crate::http::Status;

const PAGE: &str = include_str!("dashboard.html");

/// The page and what a browser is told about it.
pub struct Dashboard {
    policy: String,
}

impl Dashboard {
    /// Prepares the page for being served.
    pub fn new() -> Self {
        let source = |tag| element(PAGE, tag).map_or_else(|| "'none'".to_owned(), hash_source);
        Self {
            policy: format!(
                "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; \
                 img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
                source("script"),
                source("style"),
            ),
        }
    }

    /// Answers with the page.
    pub fn answer(&self, writer: &mut Writer<'_>) {
        let headers: &[(&str, &[u8])] = &[
            ("Content-Security-Policy", self.policy.as_bytes()),
            ("X-Content-Type-Options", b"nosniff"),
            ("Referrer-Policy", b"no-referrer"),
            ("Cache-Control", b"no-cache"),
        ];
        let body = PAGE.as_bytes();
        writer.respond(Status::Ok, "text/html; charset=utf-8", body, headers);
    }
}

impl Default for Dashboard {
    fn default() -> Self {
        Self::new()
    }
}

/// What stands in the first element of a name, which has no attributes.
fn element<'a>(page: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = page.split_once(&format!("<{name}>"))?;
    let (inside, _) = rest.split_once(&format!("</{name}>"))?;
    Some(inside)
}

/// How a policy names an inline script or style (CSP level 3, section 2.3.1).
fn hash_source(inline: &str) -> String {
    let hash = digest::digest(&digest::SHA256, inline.as_bytes());
    format!("'sha256-{}'", STANDARD.encode(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tags of the page without what stands in script, style and comments.
    fn markup() -> String {
        let mut markup = PAGE.to_owned();
        for name in ["script", "style"] {
            markup = markup.replace(element(PAGE, name).unwrap(), "");
        }
        let mut tags = String::new();
        let mut rest = markup.as_str();
        while let Some((before, comment)) = rest.split_once("<!--") {
            tags.push_str(before);
            rest = comment.split_once("-->").unwrap().1;
        }
        tags + rest
    }

    #[test]
    fn the_policy_names_the_one_script_and_the_one_style_by_their_hashes() {
        let policy = Dashboard::new().policy;
        let markup = markup();
        for (name, directive) in [("script", "script-src"), ("style", "style-src")] {
            let opening = format!("<{name}");
            assert_eq!(markup.matches(&opening).count(), 1, "{name}");
            let (_, rest) = PAGE.split_once(&format!("<{name}>")).unwrap();
            let end = rest.find(&format!("</{name}>")).unwrap();
            let hash = digest::digest(&digest::SHA256, &rest.as_bytes()[..end]);
            let source = format!("{directive} 'sha256-{}';", STANDARD.encode(hash));
            assert!(policy.contains(&source), "{policy}");
        }
        assert!(!policy.contains("-inline"), "{policy}");
    }

    #[test]
    fn a_hash_is_that_of_the_standard() {
        // FIPS 180-4, the message "abc".
        let source = "'sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0='";
        assert_eq!(hash_source("abc"), source);
    }

    #[test]
    fn the_page_fetches_nothing_from_elsewhere() {
        let page = PAGE.replace("http://www.w3.org/2000/svg", "");
        for elsewhere in ["http:", "https:", "ws:", "wss:", "@import", "url(", "\"//"] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
        assert!(!markup().contains(" src="));
    }

    #[test]
    fn the_page_has_nothing_its_policy_forbids() {
        let markup = markup().to_ascii_lowercase();
        assert!(!markup.contains("style="));
        assert!(!markup.contains("javascript:"));
        let handler = |word: &str| word.starts_with("on") && word.contains('=');
        let mut words = markup.split_ascii_whitespace();
        assert_eq!(words.find(|word| handler(word)), None);
    }

    #[test]
    fn the_page_makes_text_of_what_it_is_told() {
        let script = element(PAGE, "script").unwrap();
        for sink in ["innerHTML", "outerHTML", "insertAdjacent", "document.write"] {
            assert!(!script.contains(sink), "{sink}");
        }
        for other in ["eval(", "Function(", "localStorage", "document.cookie"] {
            assert!(!script.contains(other), "{other}");
        }
    }

    #[test]
    fn the_page_is_small() {
        assert!(PAGE.len() <= 64 << 10, "{} bytes", PAGE.len());
    }
}
