//! `hw-lab-peer` from a scenario's side: servers and load generators in a namespace.

use std::{
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::built,
    lab::{Lab, Netns, Process, wait_for},
    load::Tally,
};

/// A `hw-lab-peer` command in a namespace.
pub fn command(netns: &Netns, arguments: &[&str]) -> Result<Command> {
    let mut command = netns.command(binary()?)?;
    command.args(arguments);
    Ok(command)
}

fn binary() -> Result<PathBuf> {
    built("hw-lab-peer", "HW_LAB_PEER", "cargo build -p hiveway-tests")
}

/// Starts a server and waits until it listens.
fn server(lab: &Lab, netns: &Netns, arguments: &[&str]) -> Result<Process> {
    let process = Process::start(command(netns, arguments)?, lab.directory(), &lab.unique(netns.label()))?;
    wait_for("the server to listen", Duration::from_secs(5), || {
        ensure!(process.stderr()?.contains("listening"), "{}", process.stderr_tail(3));
        Ok(())
    })?;
    Ok(process)
}

/// An HTTP server that answers `name=<name> peer=<client>`.
pub fn http_server(lab: &Lab, netns: &Netns, port: u16, name: &str) -> Result<Process> {
    server(lab, netns, &["http", "--port", &port.to_string(), "--name", name])
}

/// A UDP server: answers its name to `who`, anything else with itself.
pub fn udp_server(lab: &Lab, netns: &Netns, port: u16, name: &str) -> Result<Process> {
    server(lab, netns, &["udp-echo", "--port", &port.to_string(), "--name", name])
}

/// `count` TCP connections with one request each, `concurrency` at a time, from ports that no load has used before:
/// each is a new flow.
pub fn tcp_load(netns: &Netns, target: &str, count: u32, concurrency: u32) -> Result<Tally> {
    let (port, count, concurrency) = (fresh_ports(count), count.to_string(), concurrency.to_string());
    let load = ["tcp-load", "--target", target, "--first-port", &port];
    run(netns, &[&load[..], &["--count", &count, "--concurrency", &concurrency]].concat())
}

/// `count` UDP requests from a port each that no load has used before: each is a new flow.
pub fn udp_load(netns: &Netns, target: &str, count: u32) -> Result<Tally> {
    let port = fresh_ports(count);
    run(netns, &["udp-load", "--target", target, "--first-port", &port, "--count", &count.to_string()])
}

/// The first of `count` source ports that no load of this process has used yet (or not for some 20,000 flows).
fn fresh_ports(count: u32) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = NEXT.fetch_add(count, Ordering::Relaxed);
    (10_000 + first % 22_768).to_string()
}

/// One UDP request of `size` bytes that has to come back as it is.
pub fn udp_echo(netns: &Netns, target: &str, size: u32, count: u32) -> Result<Tally> {
    let (size, count) = (size.to_string(), count.to_string());
    run(netns, &["udp-load", "--target", target, "--count", &count, "--size", &size])
}

/// `segments` UDP datagrams of `size` bytes sent with one call and cut on the way (UDP_SEGMENT), as QUIC does.
pub fn udp_segmented(netns: &Netns, target: &str, size: u32, segments: u32) -> Result<Tally> {
    let (size, segments) = (size.to_string(), segments.to_string());
    run(netns, &["udp-load", "--target", target, "--count", "5", "--size", &size, "--segments", &segments])
}

/// Uploads and downloads `bytes` over HTTP; both checksums must match.
pub fn transfer(netns: &Netns, target: &str, bytes: u64) -> Result<()> {
    let tally = run(netns, &["transfer", "--target", target, "--bytes", &bytes.to_string()])?;
    ensure!(tally.ok == 2 && tally.failed == 0, "transfer of {bytes} bytes with {target}: {tally:?}");
    Ok(())
}

/// A load loop that runs until [`LoadLoop::stop`].
pub struct LoadLoop(Process);

impl LoadLoop {
    /// One request after the other in `concurrency` threads, each on a new connection, or with `keep_alive` all of a
    /// thread's requests on one.
    pub fn tcp(lab: &Lab, netns: &Netns, target: &str, concurrency: u32, keep_alive: bool) -> Result<Self> {
        let concurrency = concurrency.to_string();
        let more: &[&str] = if keep_alive { &["--keep-alive"] } else { &[] };
        Self::start(lab, netns, target, &[&["--concurrency", &concurrency], more].concat())
    }

    /// One request after the other on one connection from this port.
    pub fn from_port(lab: &Lab, netns: &Netns, target: &str, port: u16) -> Result<Self> {
        Self::start(lab, netns, target, &["--keep-alive", "--first-port", &port.to_string()])
    }

    fn start(lab: &Lab, netns: &Netns, target: &str, more: &[&str]) -> Result<Self> {
        let basic = ["tcp-load", "--target", target, "--loop-until-stdin-closes", "--pause-ms", "3"];
        let command = command(netns, &[&basic, more].concat())?;
        Ok(Self(Process::start(command, lab.directory(), &lab.unique("load"))?))
    }

    /// Ends the loop: its tally.
    pub fn stop(self) -> Result<Tally> {
        let text = self.0.finish(Duration::from_secs(15))?;
        serde_json::from_str(&text).with_context(|| format!("load said `{text}`"))
    }
}

fn run(netns: &Netns, arguments: &[&str]) -> Result<Tally> {
    let output = command(netns, arguments)?.stdin(std::process::Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "load ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).with_context(|| format!("load said `{text}`"))
}
