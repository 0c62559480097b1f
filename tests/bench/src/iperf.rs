//! TCP streams, and small UDP packets, with iperf3.

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

/// Payload of a UDP packet in a frame of 64 bytes, the four of its checksum included.
const SMALL: usize = 64 - 4 - 14 - 20 - 8;

/// Sends for as long as the options say, after a second of warming up, in that many streams.
pub(crate) fn stream(from: &Netns, to: Ipv4Addr, streams: usize, options: &Options) -> Result<Stream> {
    let before = Ticks::now()?;
    let streams = streams.to_string();
    let tcp = options.window.iter().flat_map(|window| ["--window", window]);
    let tcp = tcp.chain(options.congestion.iter().flat_map(|algorithm| ["--congestion", algorithm]));
    let report = run(from, to, options, tcp.chain(["--parallel", &streams]))?;
    let busy = Ticks::now()?.busy_cores_since(&before);
    let sum = |which: &str, field: &str| report["end"][which][field].as_f64();
    let gbit = sum("sum_received", "bits_per_second").context("iperf3 reports no speed")? / 1e9;
    Ok(Stream { gbit, cpu_ms: busy * 1e3 / gbit, retransmits: sum("sum_sent", "retransmits").unwrap_or(0.0) as u64 })
}

/// UDP packets of 64 bytes, as many as the sender's core can make: how many thousand arrive per second.
pub(crate) fn small_packets(from: &Netns, to: Ipv4Addr, options: &Options) -> Result<f64> {
    let length = SMALL.to_string();
    let report = run(from, to, options, ["--udp", "--bitrate", "0", "--length", &length])?;
    // Its count of lost packets includes those of the warming up; what was received does not.
    let sum = |field: &str| {
        let value = report["end"]["sum_received"][field].as_f64();
        value.with_context(|| format!("iperf3 reports no {field}"))
    };
    Ok(sum("bytes")? / SMALL as f64 / sum("seconds")? / 1e3)
}

fn run<'a>(from: &Netns, to: Ipv4Addr, options: &Options, more: impl IntoIterator<Item = &'a str>) -> Result<Value> {
    let seconds = options.seconds.to_string();
    let output = from
        .command("iperf3")?
        .args(["--client", &to.to_string(), "--port", &PORT.to_string(), "--time", &seconds, "--omit", "1"])
        .args(["--json", "--connect-timeout", "3000"])
        // Sender and receiver on a core each: where the scheduler happens to put them would decide otherwise.
        .args(if available_parallelism().is_ok_and(|cores| cores.get() > 1) { &["--affinity", "0,1"][..] } else { &[] })
        .args(more)
        .output()
        .context("cannot start iperf3")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text).with_context(|| format!("iperf3 said `{text}`"))?;
    ensure!(output.status.success(), "iperf3 to {to}: {}", report["error"]);
    Ok(report)
}
