//! Words that were given up for the field's own: they do not come back.

use std::fs;

use anyhow::Result;

use super::files;
use crate::sh;

/// The word, what it is called now, and where it may stand all the same.
const WORDS: [(&str, &str, &[&str]); 11] = [
    ("conductor", "supervisor", &[]),
    ("farewell", "leaving", &[]),
    ("goodbye", "deregister", &[]),
    ("linger", "drain grace", &["tests/"]), // there: SO_LINGER
    ("lookout", "observers", &[]),
    ("mixer", "merged", &[]),
    ("newcomer", "join grace", &[]),
    ("parting", "deregister", &[]),
    ("stub", "trampoline", &[]),
    ("tapped", "attached", &[]),
    ("unsound", "inconsistent", &[]),
];

/// Tells of the past in its own words, and this list.
const EXEMPT: [&str; 2] = ["CHANGELOG.md", "xtask/src/check/words.rs"];

pub(crate) fn check() -> Result<Vec<String>> {
    let root = sh::root();
    let mut problems = Vec::new();
    for name in files::listed()? {
        let path = root.join(&name);
        let of_concern = name.ends_with(".rs") || name.ends_with(".md");
        if of_concern && !EXEMPT.contains(&name.as_str()) && path.is_file() && !path.is_symlink() {
            let found = old(&name, &fs::read_to_string(&path)?);
            problems.extend(found.into_iter().map(|(line, old, new)| format!("{name}:{line}: `{old}` is {new} now")));
        }
    }
    Ok(problems)
}

/// Lines with old words, and what these are called now.
fn old(name: &str, text: &str) -> Vec<(usize, &'static str, &'static str)> {
    let words: Vec<_> = WORDS.iter().filter(|(.., except)| !except.iter().any(|path| name.starts_with(path))).collect();
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let of_line = line.split(|c: char| !c.is_ascii_alphabetic()).map(str::to_ascii_lowercase);
        for part in of_line {
            let part = part.strip_suffix('s').unwrap_or(&part);
            found.extend(words.iter().filter(|(word, ..)| *word == part).map(|(word, new, _)| (number, *word, *new)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_word_is_found_in_names_and_prose() {
        let text = "fn load_stub() {}\n// Two Stubs, a stubborn one\nlet trampoline = 1;\n";
        assert_eq!(old("a.rs", text), [(1, "stub", "trampoline"), (2, "stub", "trampoline")]);
        assert_eq!(old("tests/a.rs", "SO_LINGER"), []);
        assert_eq!(old("src/a.rs", "SO_LINGER").len(), 1);
    }
}
