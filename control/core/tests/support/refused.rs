//! Tables that are refused: every problem, each with its path.

use std::path::Path;

use hiveway_core::{Problem, Severity, table::parse_file};

use super::{BASE, base_with};

pub(crate) fn problems(text: &str) -> Vec<Problem> {
    parse_file(text, Path::new("table.yaml")).expect_err("must be refused")
}

/// Asserts that `text` is refused for exactly these reasons: (path, part of the message).
#[track_caller]
pub(crate) fn refused(text: &str, expected: &[(&str, &str)]) {
    let errors: Vec<_> = problems(text).into_iter().filter(|p| p.severity == Severity::Error).collect();
    let fits = errors.len() == expected.len()
        && errors.iter().zip(expected).all(|(p, (path, part))| p.path == *path && p.message.contains(part));
    let shown: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert!(fits, "expected {expected:#?}, found {shown:#?}");
}

/// [`refused`] for the base table with one part replaced.
#[track_caller]
pub(crate) fn with(from: &str, to: &str, expected: &[(&str, &str)]) {
    refused(&base_with(from, to), expected);
}

/// [`refused`] for the base table with more of something.
#[track_caller]
pub(crate) fn with_more(section: &str, item: &str, expected: &[(&str, &str)]) {
    let next = match section {
        "nodes" => "networks:\n",
        "networks" => "services:\n",
        "services" => "tasks:\n",
        _ => return refused(&format!("{BASE}{item}\n"), expected),
    };
    refused(&base_with(next, &format!("{item}\n{next}")), expected);
}
