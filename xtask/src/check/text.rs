//! How text is set: comments and Markdown are wrapped where rustfmt wraps code.

use std::{fs, path::Path};

use anyhow::Result;

use super::files;
use crate::sh;

/// `max_width` of rustfmt.toml, in characters.
const WIDTH: usize = 120;

pub(crate) fn check() -> Result<Vec<String>> {
    let root = sh::root();
    let mut problems = Vec::new();
    for name in files::listed()? {
        let path = root.join(&name);
        let long: fn(&str) -> Vec<usize> = match Path::new(&name).extension().and_then(|it| it.to_str()) {
            Some("md") => long_prose,
            Some("rs") => long_comments,
            _ => continue,
        };
        // A link's target is judged under its own name; a deleted file is not there to judge.
        if path.is_file() && !path.is_symlink() {
            let lines = long(&fs::read_to_string(&path)?);
            problems.extend(lines.into_iter().map(|line| format!("{name}:{line}: more than {WIDTH} characters")));
        }
    }
    Ok(problems)
}

/// The numbers of lines of Markdown that are too long. Rows of tables and code may be.
fn long_prose(text: &str) -> Vec<usize> {
    let mut code = false;
    let mut long = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            code = !code;
        } else if !code && is_long(line, line.trim_start()) {
            long.push(number);
        }
    }
    long
}

/// The numbers of lines of Rust that are a comment and too long.
fn long_comments(text: &str) -> Vec<usize> {
    let comment = |line: &str| line.trim_start().starts_with("//");
    let lines = (1..).zip(text.lines()).filter(|(_, line)| comment(line));
    lines
        .filter(|(_, line)| is_long(line, line.trim_start_matches(['/', '!', ' '])))
        .map(|(number, _)| number)
        .collect()
}

/// Whether a line is too long whose text is this. A row of a table may be, and a single word (an address).
fn is_long(line: &str, text: &str) -> bool {
    line.chars().count() > WIDTH && !text.starts_with('|') && text.contains(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of so many characters, in words.
    fn words(length: usize) -> String {
        "so ".repeat(length).chars().take(length - 1).chain(['.']).collect()
    }

    #[test]
    fn prose_is_wrapped_and_tables_and_code_are_not() {
        let [fits, long] = [words(WIDTH), words(WIDTH + 1)];
        let umlauts = "ä ".repeat(WIDTH / 2);
        let row = format!("| {long} |");
        let text = format!("{fits}\n{long}\n{umlauts}\n{row}\n```\n{long}\n```\n  {long}\n{}\n", "x".repeat(200));
        assert_eq!(long_prose(&text), [2, 8]);
    }

    #[test]
    fn comments_are_wrapped_and_code_is_rustfmts() {
        let long = words(WIDTH);
        let text = format!("/// {long}\n    //! {long}\nlet a = \"{long}\"; // {long}\n// short\n//! | {long} |\n");
        assert_eq!(long_comments(&text), [1, 2]);
    }
}
