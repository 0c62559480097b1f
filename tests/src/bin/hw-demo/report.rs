//! The table at the end.

#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

struct Row {
    what: String,
    expected: String,
    seen: String,
    ok: bool,
}

impl Report {
    /// Adds a row and says it at once.
    pub(crate) fn note(&mut self, what: &str, expected: &str, seen: &str, ok: bool) {
        let mark = if ok { "ok" } else { "NOT OK" };
        println!("  -> {mark}: {what}: {seen}");
        let (what, expected, seen) = (what.to_owned(), expected.to_owned(), seen.to_owned());
        self.rows.push(Row { what, expected, seen, ok });
    }

    pub(crate) fn all_ok(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.ok)
    }

    pub(crate) fn print(&self) {
        let width =
            |field: fn(&Row) -> &str| self.rows.iter().map(|row| field(row).chars().count()).max().unwrap_or(0).max(8);
        let (what, expected) = (width(|row| &row.what), width(|row| &row.expected));
        println!("\n{:6}  {:what$}  {:expected$}  seen", "", "what", "expected");
        for row in &self.rows {
            let mark = if row.ok { "ok" } else { "NOT OK" };
            println!("{mark:6}  {:what$}  {:expected$}  {}", row.what, row.expected, row.seen);
        }
    }
}
