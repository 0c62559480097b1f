//! The tables in the documentation are valid.

use std::{fs, path::Path};

use hiveway_core::table::parse_file;

/// Fenced YAML blocks that are whole tables.
fn tables(page: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(page);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split_once("\n```"));
    blocks.map(|(block, _)| block.to_owned()).filter(|block| block.contains("version: 1")).collect()
}

#[test]
fn examples_are_valid() {
    for page in ["README.md", "docs/table.md"] {
        let tables = tables(page);
        assert!(!tables.is_empty(), "{page} has an example");
        for table in tables {
            let parsed = parse_file(&table, Path::new("t.yaml")).unwrap_or_else(|p| panic!("{page}: {p:#?}\n{table}"));
            assert_eq!(parsed.warnings, [], "{page}");
        }
    }
}
