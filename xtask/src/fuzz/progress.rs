//! What libFuzzer says of its progress, line by line.

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Inputs that were read.
    pub(crate) inputs: u64,
    /// Edges of the program's control flow that were taken.
    pub(crate) edges: u64,
    /// The same, told apart by how often.
    pub(crate) features: u64,
    /// Most memory, in MB.
    pub(crate) rss_mb: u64,
    /// What ended the run early.
    pub(crate) defect: Option<String>,
}

impl Progress {
    /// Takes a line in. Returns whether it is nothing but progress, of which there are many lines.
    pub(crate) fn take(&mut self, line: &str) -> bool {
        if let Some(rest) = line.strip_prefix('#') {
            // `#8192	NEW    cov: 812 ft: 1903 corp: 70/12Kb lim: 80 exec/s: 4096 rss: 49Mb L: ...`
            let mut words = rest.split_ascii_whitespace();
            let Some(Ok(inputs)) = words.next().map(str::parse) else { return false };
            self.inputs = self.inputs.max(inputs);
            let words: Vec<_> = words.collect();
            for pair in words.windows(2) {
                let digits = pair[1].trim_end_matches("Mb");
                let Ok(number) = digits.parse() else { continue };
                match pair[0] {
                    "cov:" => self.edges = number,
                    "ft:" => self.features = number,
                    "rss:" => self.rss_mb = self.rss_mb.max(number),
                    _ => {}
                }
            }
            return true;
        }
        let stat =
            |name: &str| line.strip_prefix("stat::")?.strip_prefix(name)?.trim_start_matches(':').trim().parse().ok();
        if let Some(inputs) = stat("number_of_executed_units") {
            self.inputs = inputs;
        }
        if let Some(mb) = stat("peak_rss_mb") {
            self.rss_mb = mb;
        }
        if let Some((_, why)) = line.split_once("ERROR: libFuzzer: ") {
            self.defect = Some(why.trim().to_owned());
        }
        line.starts_with("stat::")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_taken_from_what_libfuzzer_says() {
        let mut progress = Progress::default();
        assert!(progress.take("#4\tINITED cov: 700 ft: 701 corp: 3/9b exec/s: 0 rss: 41Mb"));
        assert!(progress.take("#8192\tpulse  cov: 812 ft: 1903 corp: 70/12Kb lim: 80 exec/s: 4096 rss: 49Mb"));
        assert!(!progress.take("INFO: Seed: 1"));
        let so_far = Progress { inputs: 8192, edges: 812, features: 1903, rss_mb: 49, defect: None };
        assert_eq!(progress, so_far);
        assert!(progress.take("stat::number_of_executed_units: 9001"));
        assert!(progress.take("stat::peak_rss_mb:              52"));
        assert!(!progress.take("==7== ERROR: libFuzzer: deadly signal"));
        let end = Progress { inputs: 9001, rss_mb: 52, defect: Some("deadly signal".into()), ..so_far };
        assert_eq!(progress, end);
    }
}
