//! How a measurement is divided into runs of the generator, and what of their time is the packets'.
//!
//! Each run has a fixed cost of 20 to 30 ms: the kernel enters the generator into XDP's dispatcher, takes it out again
//! afterwards, and waits for RCU both times (`bpf_dispatcher_update`). In runs of 65,536 frames that is 300 ns and more
//! for each packet, as much as the packet itself. So a run is as long as the whole measurement, and the time of a run
//! of next to nothing, measured right before with the same frames, is subtracted: a long run alone would leave 4 % of
//! half a second to the row.

use std::{ops::Add, time::Duration};

/// Fewest frames of a run: with less its fixed cost is all that is measured.
pub(super) const LEAST: u32 = 1 << 12;
/// Most frames of a run: some seconds.
pub(super) const MOST: u32 = 1 << 24;

/// What has passed, and what the core has worked for us meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) elapsed: Duration,
    pub(super) busy: Duration,
}

impl Times {
    /// Without the fixed cost of so many runs.
    pub(super) fn without(self, runs: u32, fixed: Self) -> Self {
        Self {
            elapsed: self.elapsed.saturating_sub(fixed.elapsed * runs),
            busy: self.busy.saturating_sub(fixed.busy * runs),
        }
    }

    /// The median of each, of an odd number of them.
    pub(super) fn medians(times: &[Self]) -> Self {
        let median = |of: fn(&Self) -> Duration| {
            let mut sorted: Vec<Duration> = times.iter().map(of).collect();
            sorted.sort_unstable();
            sorted.get(sorted.len() / 2).copied().unwrap_or_default()
        };
        Self { elapsed: median(|times| times.elapsed), busy: median(|times| times.busy) }
    }
}

impl Add for Times {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { elapsed: self.elapsed + other.elapsed, busy: self.busy + other.busy }
    }
}

/// Frames that take as long as `rest` if so many took `so_far`.
pub(super) fn frames(rest: Duration, (sent, so_far): (u64, Duration)) -> u32 {
    let pace = so_far.as_secs_f64() / sent.max(1) as f64;
    if pace <= 0.0 {
        return LEAST;
    }
    (rest.as_secs_f64() / pace).clamp(LEAST.into(), MOST.into()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_run_is_as_long_as_the_rest() {
        assert_eq!(frames(500 * MS, (100_000, 20 * MS)), 2_500_000);
        assert_eq!(frames(MS, (1000, 20 * MS)), LEAST);
        assert_eq!(frames(3600 * 1000 * MS, (1_000_000, MS)), MOST);
        assert_eq!(frames(MS, (0, Duration::ZERO)), LEAST, "nothing is known yet");
    }

    #[test]
    fn a_fixed_cost_is_in_no_packet() {
        let fixed = Times { elapsed: 20 * MS, busy: MS };
        let of = |elapsed, busy| Times { elapsed: elapsed * MS, busy: busy * MS };
        let net = of(540, 502).without(2, fixed);
        assert_eq!((net.elapsed, net.busy), (500 * MS, 500 * MS));
        assert_eq!(of(30, 30).without(2, fixed).elapsed, Duration::ZERO, "never less than nothing");
        let medians = Times::medians(&[of(20, 1), of(90, 3), of(19, 2)]);
        assert_eq!((medians.elapsed, medians.busy), (20 * MS, 2 * MS));
    }
}
