//! Figures as Markdown.

use std::fmt::Write as _;

use crate::figures::{self, Figures, Table};

const WIDTH: usize = 120;

/// All runs, one after the other; the machine once for those that were measured on the same.
pub(super) fn render(runs: &[Figures]) -> String {
    let mut text = String::new();
    let mut machine = None;
    for run in runs {
        if machine.replace(&run.machine) != Some(&run.machine) {
            let _ = writeln!(text, "{}\n", wrapped(&format!("Machine: {}", run.machine)));
        }
        let _ = writeln!(text, "### bench {}\n", run.bench);
        let mut how = format!("{} Commit {}, {}.", run.how, run.commit, run.time);
        if run.disturbed > 0 {
            let (disturbed, all) = (run.disturbed, run.measurements);
            let _ = write!(how, " **{disturbed} of {all} measurements were disturbed by others.**");
        }
        let _ = writeln!(text, "{}\n", wrapped(&how));
        run.tables.iter().for_each(|table| self::table(&mut text, table));
        if !run.aims.is_empty() {
            self::table(&mut text, &figures::aims(&run.aims));
        }
    }
    text.trim_end().to_owned()
}

/// A paragraph in lines of at most [`WIDTH`] characters, as `cargo xtask check` wants them.
fn wrapped(paragraph: &str) -> String {
    let (mut text, mut line) = (String::new(), 0);
    for word in paragraph.split_whitespace() {
        let length = word.chars().count();
        if line > 0 && line + 1 + length > WIDTH {
            text.push('\n');
            line = 0;
        } else if line > 0 {
            text.push(' ');
            line += 1;
        }
        text.push_str(word);
        line += length;
    }
    text
}

fn table(text: &mut String, table: &Table) {
    if !table.title.is_empty() {
        let _ = writeln!(text, "{}:\n", table.title);
    }
    let _ = writeln!(text, "| {} |", table.head.join(" | "));
    let _ = writeln!(text, "|---|{}", "---:|".repeat(table.head.len().saturating_sub(1)));
    for row in &table.rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Aim;

    #[test]
    fn paragraphs_are_wrapped() {
        assert_eq!(wrapped("a  b\nc"), "a b c");
        let text = wrapped(&"word ".repeat(100));
        assert!(text.lines().all(|line| line.len() <= WIDTH && line.len() + 5 > WIDTH || text.ends_with(line)));
        assert_eq!(text.split_whitespace().count(), 100);
    }

    #[test]
    fn a_run() {
        let mut table = Table::new("Speed", &["path", "Gbit/s"]);
        table.row("raw", ["17.3".to_owned()]);
        let run = Figures {
            bench: "overlay".into(),
            how: "Two rounds.".into(),
            tables: vec![table],
            aims: vec![Aim::at_least("across / raw", 0.9, 0.95)],
            measurements: 4,
            disturbed: 1,
            ..Figures::default()
        };
        let text = render(&[run.clone(), run]);
        assert_eq!(text.matches("Machine: ").count(), 1);
        assert!(text.contains("Speed:\n\n| path | Gbit/s |\n|---|---:|\n| raw | 17.3 |\n"), "{text}");
        assert!(text.contains("Aims:\n\n| aim | measured | low | aim is |  |\n|---|---:|---:|---:|---:|\n"), "{text}");
        assert!(text.contains("\n| across / raw | 0.90 |  | 0.95 | **missed** |\n"), "{text}");
        assert!(text.contains("**1 of 4 measurements were disturbed by others.**"), "{text}");
    }
}
