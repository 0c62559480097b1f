//! One TCP stream with iperf3.

use std::{net::Ipv4Addr, thread::available_parallelism};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::lab::Netns;
use serde::Serialize;
use serde_json::Value;

use crate::{overlay::Options, quiet::Ticks};

/// Where the servers listen.
pub(crate) const PORT: u16 = 5201;

/// What one run measured.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Stream {
    /// Received, 10⁹ bit/s.
    pub(crate) gbit: f64,
    /// Segments sent again.
    pub(crate) retransmits: u64,
    /// Core-milliseconds per 10⁹ bit, both ends and everything between them: the price where the speed is limited by
    /// something else.
    pub(crate) cpu_ms: f64,
}

/// Sends for as long as the options say, after a second of warming up.
pub(crate) fn stream(from: &Netns, to: Ipv4Addr, options: &Options) -> Result<Stream> {
    let seconds = options.seconds.to_string();
    let before = Ticks::now()?;
    let output = from
        .command("iperf3")?
        .args(["--client", &to.to_string(), "--port", &PORT.to_string(), "--time", &seconds, "--omit", "1"])
        .args(["--json", "--connect-timeout", "3000"])
        // Sender and receiver on a core each: where the scheduler happens to put them would decide otherwise.
        .args(if available_parallelism().is_ok_and(|cores| cores.get() > 1) { &["--affinity", "0,1"][..] } else { &[] })
        .args(options.window.iter().flat_map(|window| ["--window", window]))
        .args(options.congestion.iter().flat_map(|algorithm| ["--congestion", algorithm]))
        .output()
        .context("cannot start iperf3")?;
    let busy = Ticks::now()?.busy_cores_since(&before);
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text).with_context(|| format!("iperf3 said `{text}`"))?;
    ensure!(output.status.success(), "iperf3 to {to}: {}", report["error"]);
    let sum = |which: &str, field: &str| report["end"][which][field].as_f64();
    let gbit = sum("sum_received", "bits_per_second").context("iperf3 reports no speed")? / 1e9;
    Ok(Stream { gbit, cpu_ms: busy * 1e3 / gbit, retransmits: sum("sum_sent", "retransmits").unwrap_or(0.0) as u64 })
}
