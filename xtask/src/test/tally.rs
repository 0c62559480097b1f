//! Adding up the results of several test binaries.

use std::fmt;

/// The sum of the `test result:` lines seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Tally {
    /// Counts a line of a test harness's output; other lines change nothing.
    pub(crate) fn count(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        for part in result.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else { continue };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ignored > 0 {
            writeln!(f, "{} ignored", self.ignored)?;
        }
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_result_lines_only() {
        let mut tally = Tally::default();
        tally.count("running 3 tests");
        tally.count("test x ... ok");
        tally.count("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.02s");
        tally.count(
            "test result: FAILED. 40 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        );
        assert_eq!(tally, Tally { passed: 43, failed: 2, ignored: 1 });
        assert_eq!(tally.to_string(), "1 ignored\n43 passed, 2 failed");
    }
}
