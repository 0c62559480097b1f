//! Adding up the results of several test binaries.

use std::{fmt, mem};

/// The sum of the `test result:` lines seen so far, and the names of the tests that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    /// Tests that failed, each with what ran it.
    names: Vec<String>,
    /// The last list of names of the test binary that is running.
    listed: Vec<String>,
}

impl Tally {
    /// Counts a line of the output of `suite`'s test harness; other lines change nothing.
    ///
    /// The names come from the list that a harness ends with: `test NAME ... FAILED` may be torn by what a child
    /// process of the test prints.
    pub(crate) fn count(&mut self, suite: &str, line: &str) {
        if line == "failures:" {
            // The list of names is the second block under this heading; the first one has the output of each test.
            self.listed.clear();
        } else if let Some(name) = line.strip_prefix("    ").filter(|name| !name.contains(char::is_whitespace)) {
            self.listed.push(name.to_owned());
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.add(suite, result);
        }
    }

    fn add(&mut self, suite: &str, result: &str) {
        let listed = mem::take(&mut self.listed);
        for part in result.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else { continue };
            match what {
                "passed" => self.passed += count,
                "failed" => {
                    self.failed += count;
                    if count > 0 {
                        self.names.extend(listed.iter().map(|name| format!("{name} ({suite})")));
                    }
                }
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }

    /// Counts a failure that has no test's name: something did not build, or died.
    pub(crate) fn unnamed(&mut self, what: String) {
        self.failed += 1;
        self.names.push(what);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.names.is_empty() {
            writeln!(f, "failed:")?;
            for name in &self.names {
                writeln!(f, "    {name}")?;
            }
        }
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
    fn adds_up_result_lines_and_names_what_failed() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test x ... ok",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.02s",
            "test mesh::shares ... a child's wordFAILED",
            "failures:",
            "",
            "---- mesh::shares stdout ----",
            "    diagnosis",
            "",
            "failures:",
            "    mesh::shares",
            "    vip::hairpin",
            "",
            "test result: FAILED. 40 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            "    indented",
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            tally.count("netns", line);
        }
        tally.unnamed("the VM ended with 2".to_owned());
        assert_eq!((tally.passed, tally.failed, tally.ignored), (44, 3, 1));
        assert_eq!(
            tally.to_string(),
            "failed:\n    mesh::shares (netns)\n    vip::hairpin (netns)\n    the VM ended with 2\n\
             1 ignored\n44 passed, 3 failed"
        );
    }
}
