//! Names that look alike, for hints after typing errors.

/// The longest name that is looked for, in characters: a distance takes time and memory for each pair of characters.
const LONGEST: usize = 128;
/// Bytes of a character at most.
const BYTES: usize = 4;

/// The candidate that was probably meant: at most two typing errors away.
pub fn closest<'c>(wanted: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    if wanted.len() > LONGEST * BYTES {
        return None;
    }
    let limit = (wanted.chars().count() / 3).clamp(1, 2);
    let alike = |c: &&str| c.len().abs_diff(wanted.len()) <= limit * BYTES;
    // A hint is not worth walking ten thousand ids for each of ten thousand errors.
    candidates
        .take(2000)
        .filter(alike)
        .map(|c| (distance(wanted, c), c))
        .filter(|(d, _)| *d <= limit)
        .min()
        .map(|(_, c)| c)
}

/// How many characters to insert, delete, replace or swap with their neighbour (optimal string alignment).
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let substituted = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substituted.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_or_two_typing_errors_are_found() {
        let known = ["addresses", "ports", "größe"];
        for (wanted, near) in [
            ("adresses", Some("addresses")),
            ("addersess", Some("addresses")),
            ("prots", Some("ports")),
            ("grösse", Some("größe")),
            ("groesse", None),
            ("größ", Some("größe")),
            ("nodes", None),
        ] {
            assert_eq!(closest(wanted, known.into_iter()), near, "{wanted}");
        }
    }

    /// A label's name can have four million characters, and a table's ids as many.
    #[test]
    fn names_that_no_one_types_are_not_looked_for() {
        let long = "n".repeat(5000);
        assert_eq!(closest(&long[1..], [long.as_str()].into_iter()), None);
        assert_eq!(closest("nn", [long.as_str()].into_iter()), None);
    }
}
