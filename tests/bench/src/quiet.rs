//! What the cores did while we measured, and whether somebody else used them: a compiler next door halves every figure.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// Part of all cores' time in user space that our own load may need; the rest of its work is the kernel's.
const OWN: f64 = 0.12;
/// Nothing of ours runs between measurements.
const IDLE: f64 = 0.04;

/// Clock ticks of all cores since boot.
pub(crate) struct Ticks {
    user: f64,
    idle: f64,
    all: f64,
}

impl Ticks {
    pub(crate) fn now() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/stat")?).context("/proc/stat has no line `cpu`")
    }

    /// `cpu user nice system idle iowait irq softirq steal ...`
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields: Vec<f64> = line.split_whitespace().take(8).filter_map(|field| field.parse().ok()).collect();
        let field = |index: usize| fields.get(index).copied();
        Some(Self { user: field(0)? + field(1)?, idle: field(3)? + field(4)?, all: fields.iter().sum() })
    }

    /// How many cores were busy on average.
    pub(crate) fn busy_cores_since(&self, before: &Self) -> f64 {
        let cores = thread::available_parallelism().map_or(1, usize::from) as f64;
        cores * (1.0 - (self.idle - before.idle) / (self.all - before.all).max(1.0))
    }

    fn user_share_since(&self, before: &Self) -> f64 {
        (self.user - before.user) / (self.all - before.all).max(1.0)
    }
}

/// Waits until nobody computes, at most that long, then runs `measure`, and says whether somebody disturbed it.
pub(crate) fn undisturbed<T>(patience: Duration, measure: impl Fn() -> Result<T>) -> Result<(T, bool)> {
    let started = Instant::now();
    loop {
        while user_share()? > IDLE && started.elapsed() < patience {}
        let before = Ticks::now()?;
        let measured = measure()?;
        let disturbed = Ticks::now()?.user_share_since(&before) > OWN;
        if !disturbed || started.elapsed() >= patience {
            return Ok((measured, disturbed));
        }
    }
}

fn user_share() -> Result<f64> {
    let before = Ticks::now()?;
    thread::sleep(Duration::from_millis(200));
    Ok(Ticks::now()?.user_share_since(&before))
}

#[cfg(test)]
mod tests {
    use super::Ticks;

    #[test]
    fn reads_proc_stat() {
        let before = Ticks::parse("cpu  100 10 50 800 0 0 40 0 0 0\ncpu0 1 1 1 1\n").unwrap();
        let after = Ticks::parse("cpu  140 20 100 800 0 0 40 0 0 0\n").unwrap();
        assert_eq!((before.user, before.all), (110.0, 1000.0));
        assert_eq!(after.user_share_since(&before), 0.5);
        assert!(after.busy_cores_since(&before) >= 1.0, "none was idle");
        assert!(Ticks::parse("intr 5").is_none());
    }
}
