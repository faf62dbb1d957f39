//! The table of docs/reliability.md has every row of the suite of faults.

use std::fs;
use std::path::Path;

#[test]
fn the_document_tells_of_every_row() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/reliability.md")).expect("the document");
    let mut rows = 0;
    for file in fs::read_dir(root.join("tests/faults")).expect("the suite") {
        let source = fs::read_to_string(file.expect("a file").path()).expect("a source");
        for fault in faults(&source) {
            rows += 1;
            assert!(
                document.contains(&format!("| {fault} | passed |")),
                "the table has no row `{fault}`: take it anew from `cargo test --test faults`"
            );
        }
    }
    assert!(rows > 100, "{rows} rows: has the suite moved?");
}

/// The sentences above the rows of a source.
fn faults(source: &str) -> Vec<String> {
    let Some((_, rows)) = source.split_once("\nrows! {\n") else {
        return Vec::new();
    };
    let mut faults = Vec::new();
    let mut sentence = Vec::new();
    for line in rows.lines() {
        if let Some(words) = line.strip_prefix("    /// ") {
            sentence.push(words.trim());
            continue;
        }
        let is_row = line.starts_with("    fn ");
        let words = std::mem::take(&mut sentence).join(" ");
        if is_row {
            faults.push(words.trim_end_matches('.').to_string());
        }
    }
    faults
}
