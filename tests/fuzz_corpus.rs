//! What the fuzzer has found worth keeping, replayed without it: every input of every
//! corpus still keeps the law of its target (`fuzz/src/lib.rs`).

#![allow(
    dead_code,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "the laws are written to panic, and shared with the fuzz targets"
)]

use std::path::{Path, PathBuf};

#[path = "../fuzz/src/lib.rs"]
mod laws;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz")
        .join(name)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn every_law_has_a_target_and_a_corpus() {
    let laws: Vec<String> = laws::LAWS
        .iter()
        .map(|(name, _)| name.to_string())
        .collect();
    assert_eq!(names(&folder("corpus")), laws);
    let targets = laws.iter().map(|name| format!("{name}.rs"));
    assert_eq!(names(&folder("fuzz_targets")), targets.collect::<Vec<_>>());
}

#[test]
fn every_kept_input_keeps_its_law() {
    for (name, law) in laws::LAWS {
        let corpus = folder("corpus").join(name);
        let inputs = names(&corpus);
        assert!(!inputs.is_empty(), "the corpus of {name} is empty");
        for input in inputs {
            let bytes = std::fs::read(corpus.join(&input)).unwrap();
            let kept = std::panic::catch_unwind(|| law(&bytes));
            assert!(kept.is_ok(), "fuzz/corpus/{name}/{input} breaks its law");
        }
    }
}

#[test]
fn corpora_are_small_enough_to_keep() {
    for (name, _) in laws::LAWS {
        let corpus = folder("corpus").join(name);
        let inputs = names(&corpus);
        let bytes: u64 = inputs
            .iter()
            .map(|input| corpus.join(input).metadata().unwrap().len())
            .sum();
        assert!(
            bytes <= 300_000,
            "{name} has {bytes} bytes: run fuzz/minimise"
        );
    }
}
