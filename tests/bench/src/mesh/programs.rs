//! What the kernel's own clock says of the node's programs.

use std::time::Duration;

use anyhow::Result;
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};

/// The bench's own, which are not the node's: who makes the packets, and who counts them.
const OURS: [&str; 5] = ["generate", "replay", "replay_tunnel", "far_end", "sink"];

/// Runs `work` while the kernel takes the time of each run of a program. Returns what all programs of nodes took. The
/// clock costs each run some 25 ns, which an empty program has as well, and keeps the processor from doing two things
/// at once: how long a packet takes meanwhile says nothing.
pub(super) fn timed<R>(work: impl FnOnce() -> Result<R>) -> Result<(R, Duration)> {
    let clock = enable_stats(Stats::RunTime)?;
    let before = total()?;
    let done = work()?;
    let after = total()?;
    drop(clock);
    Ok((done, after.saturating_sub(before)))
}

/// Since they were loaded.
fn total() -> Result<Duration> {
    let mut total = Duration::ZERO;
    for program in loaded_programs() {
        let program = program?;
        if !OURS.contains(&program.name_as_str().unwrap_or_default()) {
            total += program.run_time();
        }
    }
    Ok(total)
}
