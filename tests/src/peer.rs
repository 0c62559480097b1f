//! `hw-lab-peer` from a scenario's side: servers and load generators in a namespace.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::built,
    lab::{Lab, Netns, PATIENCE, Process, wait_for},
    load::{ANSWERS_PER_REPORT, Tally},
};

/// A `hw-lab-peer` command in a namespace.
pub fn command(netns: &Netns, arguments: &[&str]) -> Result<Command> {
    let mut command = netns.command(binary()?)?;
    command.args(arguments);
    Ok(command)
}

pub(crate) fn binary() -> Result<PathBuf> {
    built("hw-lab-peer", "HW_LAB_PEER", "cargo build -p hiveway-tests")
}

/// Starts a server and waits until it listens.
fn server(lab: &Lab, netns: &Netns, arguments: &[&str]) -> Result<Process> {
    let process = Process::start(command(netns, arguments)?, lab.directory(), &lab.unique(netns.label()))?;
    wait_for("the server to listen", PATIENCE, || {
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

/// As [`udp_server`], but its answers go without DF and may be fragmented on their way.
pub fn fragmentable_udp_server(lab: &Lab, netns: &Netns, port: u16, name: &str) -> Result<Process> {
    server(lab, netns, &["udp-echo", "--port", &port.to_string(), "--name", name, "--fragmentable"])
}

/// `count` TCP connections with one request each, `concurrency` at a time, from ports that no load has used before:
/// each is a new flow.
pub fn tcp_load(netns: &Netns, target: &str, count: u32, concurrency: u32) -> Result<Tally> {
    let (port, count, concurrency) = (fresh_ports(count), count.to_string(), concurrency.to_string());
    let load = ["tcp-load", "--target", target, "--first-port", &port];
    run(netns, &[&load[..], &["--count", &count, "--concurrency", &concurrency]].concat())
}

/// As [`tcp_load`], from these ports: `first_port` and up, whoever has used them before.
pub fn tcp_load_from(netns: &Netns, target: &str, first_port: u16, count: u64, concurrency: u32) -> Result<Tally> {
    let (port, count, concurrency) = (first_port.to_string(), count.to_string(), concurrency.to_string());
    let load = ["tcp-load", "--target", target, "--first-port", &port];
    run(netns, &[&load[..], &["--count", &count, "--concurrency", &concurrency]].concat())
}

/// `count` UDP requests from a port each that no load has used before: each is a new flow.
pub fn udp_load(netns: &Netns, target: &str, count: u32) -> Result<Tally> {
    let port = fresh_ports(count);
    run(netns, &["udp-load", "--target", target, "--first-port", &port, "--count", &count.to_string()])
}

/// As [`tcp_load`] (`tcp`) or [`udp_load`] (`udp`), but gives up on each request after a third of a second: for those
/// that nobody is to answer. A SYN is not sent again in that time.
pub fn attempts(netns: &Netns, protocol: &str, target: &str, count: u32) -> Result<Tally> {
    let (kind, port, count) = (format!("{protocol}-load"), fresh_ports(count), count.to_string());
    run(netns, &[&kind, "--target", target, "--first-port", &port, "--count", &count, "--timeout-ms", "333"])
}

/// The first of `count` source ports that no load of this process has used yet (or not for some 20,000 flows).
fn fresh_ports(count: u32) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = NEXT.fetch_add(count, Ordering::Relaxed);
    (10_000 + first % 22_768).to_string()
}

/// `count` UDP requests from one socket that is bound to `port`, connected to the target or not.
pub fn udp_from_port(netns: &Netns, target: &str, port: u16, count: u32, connected: bool) -> Result<Tally> {
    let (port, count) = (port.to_string(), count.to_string());
    let mut arguments = vec!["udp-load", "--target", target, "--first-port", &port, "--same-port", "--count", &count];
    if !connected {
        arguments.push("--unconnected");
    }
    run(netns, &arguments)
}

/// One UDP request of `size` bytes that has to come back as it is.
pub fn udp_echo(netns: &Netns, target: &str, size: u32, count: u32) -> Result<Tally> {
    let (size, count) = (size.to_string(), count.to_string());
    run(netns, &["udp-load", "--target", target, "--count", &count, "--size", &size])
}

/// As [`udp_echo`], but the requests go without DF and may be fragmented on their way.
pub fn udp_echo_fragmentable(netns: &Netns, target: &str, size: u32, count: u32) -> Result<Tally> {
    let (size, count) = (size.to_string(), count.to_string());
    run(netns, &["udp-load", "--target", target, "--count", &count, "--size", &size, "--fragmentable"])
}

/// `segments` UDP datagrams of `size` bytes sent with one call and cut on the way (UDP_SEGMENT), as QUIC does.
pub fn udp_segmented(netns: &Netns, target: &str, size: u32, segments: u32) -> Result<Tally> {
    let (size, segments) = (size.to_string(), segments.to_string());
    run(netns, &["udp-load", "--target", target, "--count", "5", "--size", &size, "--segments", &segments])
}

/// As [`udp_echo`], with the answers only: for each request the server sends `segments` datagrams with one call
/// (UDP_SEGMENT).
pub fn udp_burst(netns: &Netns, target: &str, size: u32, segments: u32) -> Result<Tally> {
    let (size, segments) = (size.to_string(), segments.to_string());
    run(netns, &["udp-load", "--target", target, "--count", "5", "--size", &size, "--burst", &segments])
}

/// Lets IPv4 packets that are segmented or were merged be `size` bytes large on an interface (BIG TCP).
pub fn big_tcp(netns: &Netns, interface: &str, size: u32) -> Result<()> {
    let output = command(netns, &["big-tcp", "--interface", interface, "--size", &size.to_string()])?.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
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
    /// thread's requests on one. Returns when every thread has had an answer.
    pub fn tcp(lab: &Lab, netns: &Netns, target: &str, concurrency: u32, keep_alive: bool) -> Result<Self> {
        let threads = concurrency.to_string();
        let more: &[&str] = if keep_alive { &["--keep-alive"] } else { &[] };
        Self::start(lab, netns, "tcp-load", target, &[&["--concurrency", &threads], more].concat(), concurrency)
    }

    /// One request after the other on one connection from this port.
    pub fn from_port(lab: &Lab, netns: &Netns, target: &str, port: u16) -> Result<Self> {
        Self::start(lab, netns, "tcp-load", target, &["--keep-alive", "--first-port", &port.to_string()], 1)
    }

    /// One UDP request after the other from one port; each is given up after 300 ms.
    pub fn udp(lab: &Lab, netns: &Netns, target: &str) -> Result<Self> {
        Self::start(lab, netns, "udp-load", target, &["--same-port", "--timeout-ms", "300"], 1)
    }

    /// As [`LoadLoop::udp`], from this port, also after failures.
    pub fn udp_from_port(lab: &Lab, netns: &Netns, target: &str, port: u16) -> Result<Self> {
        let port = port.to_string();
        let more = ["--same-port", "--first-port", &port, "--timeout-ms", "300"];
        Self::start(lab, netns, "udp-load", target, &more, 1)
    }

    fn start(lab: &Lab, netns: &Netns, load: &str, target: &str, more: &[&str], threads: u32) -> Result<Self> {
        let command = command(netns, &[&Self::arguments(load, target)[..], more].concat())?;
        Self::spawn(command, lab.directory(), &lab.unique("load"), target, threads)
    }

    /// What every loop tells `hw-lab-peer`; `load` is `tcp-load` or `udp-load`.
    pub fn arguments<'a>(load: &'a str, target: &'a str) -> Vec<&'a str> {
        let mut arguments = vec![load, "--target", target, "--loop-until-stdin-closes", "--pause-ms", "3"];
        if load == "tcp-load" {
            // Longer than any change of the table takes on a slow machine, and less than PATIENCE.
            arguments.extend(["--timeout-ms", "40000"]);
        }
        arguments
    }

    /// Starts a loop, wherever `command` runs it; returns when every thread has had an answer.
    pub fn spawn(command: Command, directory: &Path, name: &str, target: &str, threads: u32) -> Result<Self> {
        let started = Self(Process::start(command, directory, name)?);
        wait_for(&format!("first answers of {target}"), PATIENCE, || {
            let seen = started.count("first answer")?;
            ensure!(seen >= threads as usize, "{seen} of {threads} threads; {}", started.0.stderr_tail(3));
            Ok(())
        })?;
        Ok(started)
    }

    /// Waits for at least this many further answers.
    pub fn wait_answers(&self, more: u64) -> Result<()> {
        // What came in before this call and was not reported yet does not count.
        let wanted = self.answers()? + ANSWERS_PER_REPORT + more;
        wait_for(&format!("{more} more answers"), PATIENCE, || {
            let seen = self.answers()?;
            ensure!(seen >= wanted, "{seen} of {wanted}; {}", self.0.stderr_tail(3));
            Ok(())
        })
    }

    /// Waits until this many requests have failed in all.
    pub fn wait_failures(&self, count: usize) -> Result<()> {
        wait_for(&format!("{count} failed requests"), PATIENCE, || {
            let seen = self.count("failure after")?;
            ensure!(seen >= count, "{seen} so far");
            Ok(())
        })
    }

    /// Answers so far, by the last report.
    fn answers(&self) -> Result<u64> {
        let text = self.0.stderr()?;
        let last = text.lines().rev().find_map(|line| line.strip_prefix("answers: "));
        Ok(last.and_then(|number| number.parse().ok()).unwrap_or(0))
    }

    fn count(&self, start: &str) -> Result<usize> {
        Ok(self.0.stderr()?.lines().filter(|line| line.starts_with(start)).count())
    }

    /// Ends the loop: its tally.
    pub fn stop(self) -> Result<Tally> {
        let text = self.0.finish(PATIENCE)?;
        serde_json::from_str(&text).with_context(|| format!("load said `{text}`"))
    }
}

/// Packets of connections that never go on, from invented sources, until this is dropped or stopped.
pub struct Flood(Process);

impl Flood {
    /// Floods `target` with frames out of `interface` towards the MAC `next_hop`; from its own address if `source` says
    /// so, from invented ones otherwise.
    pub fn start(
        lab: &Lab,
        netns: &Netns,
        interface: &str,
        next_hop: &str,
        target: &str,
        source: Option<&str>,
    ) -> Result<Self> {
        let basic = ["flood", "--interface", interface, "--next-hop", next_hop, "--target", target];
        let source = source.map(|source| ["--source", source]);
        let more = source.as_ref().map_or(&[][..], |source| source);
        let command = command(netns, &[&basic, more].concat())?;
        Ok(Self(Process::start(command, lab.directory(), &lab.unique("flood"))?))
    }

    /// Waits until this many packets have been sent in all.
    pub fn wait_sent(&self, count: u64) -> Result<()> {
        wait_for(&format!("{count} packets of the flood"), PATIENCE, || {
            let text = self.0.stderr()?;
            let last = text.lines().rev().find_map(|line| line.strip_prefix("sent: "));
            let sent: u64 = last.and_then(|number| number.parse().ok()).unwrap_or(0);
            ensure!(sent >= count, "{sent} so far; {}", self.0.stderr_tail(3));
            Ok(())
        })
    }

    /// Ends it.
    pub fn stop(self) -> Result<()> {
        self.0.finish(PATIENCE).map(|_| ())
    }
}

fn run(netns: &Netns, arguments: &[&str]) -> Result<Tally> {
    let output = command(netns, arguments)?.stdin(std::process::Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "load ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).with_context(|| format!("load said `{text}`"))
}
