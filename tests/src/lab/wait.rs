//! Waiting for something with a limit and a reason.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long to wait for what takes well under a second on a machine that has nothing else to do. It is never the claim
/// of a scenario, only where it gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How many times longer than on a machine of its own everything may take: `HIVEWAY_TEST_SLOWNESS`, for emulated ones.
pub fn slowness() -> u32 {
    std::env::var("HIVEWAY_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Calls `probe` until it returns a value; fails with `what` and the last reason after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let limit = limit * slowness();
    let started = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() >= limit => bail!("waited {limit:?} for {what}: {error:#}"),
            Err(_) => std::thread::sleep(Duration::from_millis(30)),
        }
    }
}

/// Calls `probe` until it is true.
pub fn wait_until(what: &str, limit: Duration, mut probe: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, limit, || if probe() { Ok(()) } else { bail!("still not so") })
}
