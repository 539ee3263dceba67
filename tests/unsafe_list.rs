//! The list of unsafe code in docs/unsafe.md is whole: every file that has any stands
//! there with how much.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeMap;
use std::path::Path;

/// How often the word stands in the code of each file below `folder`.
fn count(folder: &Path, root: &Path, counts: &mut BTreeMap<String, usize>) {
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.unwrap().path();
        if path.is_dir() {
            count(&path, root, counts);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let found = text.lines().map(unsafe_words).sum();
            if found > 0 {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                counts.insert(name.to_owned(), found);
            }
        }
    }
}

fn unsafe_words(line: &str) -> usize {
    let code = line.split("//").next().unwrap_or_default();
    let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| *word == KEYWORD).count()
}

/// Put together here, or this file would have to be on the list.
const KEYWORD: &str = concat!("un", "safe");

#[test]
fn every_file_with_unsafe_code_is_listed_with_how_much() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeMap::new();
    for folder in [
        "src",
        "tests",
        "benches",
        "perf",
        "fuzz/src",
        "fuzz/fuzz_targets",
    ] {
        count(&root.join(folder), root, &mut found);
    }
    let document = root.join("docs").join(format!("{KEYWORD}.md"));
    let document = std::fs::read_to_string(document).unwrap();
    // Rows of the tables: | `file` | count | why | proof |
    let listed: BTreeMap<String, usize> = document
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
            let file = cells.next()?.trim_end_matches('`').to_owned();
            Some((file, cells.next()?.parse().ok()?))
        })
        .collect();
    assert_eq!(found, listed, "what is found, and what the document lists");
}
