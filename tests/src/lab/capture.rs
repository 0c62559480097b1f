//! Packet captures with tcpdump, dissected by tshark: an opinion on our frames that is not ours.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{Lab, Netns, Process, wait::wait_for};

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Starts to capture on an interface; returns when tcpdump listens.
    pub fn start(lab: &Lab, netns: &Netns, interface: &str, filter: &str) -> Result<Self> {
        let name = lab.unique("capture");
        let file = lab.directory().join(format!("{name}.pcap"));
        let mut command = netns.command("tcpdump")?;
        command.args(["-i", interface, "-U", "--immediate-mode", "-s", "0", "-Z", "root", "-w"]).arg(&file);
        command.args(filter.split_whitespace());
        let process = Process::start(command, lab.directory(), &name)?;
        wait_for("tcpdump to listen", Duration::from_secs(5), || {
            ensure!(process.stderr()?.contains("listening on"), "{}", process.stderr_tail(3));
            Ok(())
        })?;
        Ok(Self { process, file })
    }

    /// Ends the capture and returns the file.
    pub fn stop(mut self) -> Result<PathBuf> {
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(Duration::from_secs(5))?;
        Ok(self.file.clone())
    }

    /// Ends the capture and prints `fields` of the packets that match a display filter, one row per packet.
    pub fn dissect(self, filter: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
        let file = self.stop()?;
        tshark(&file, filter, fields)
    }
}

/// Runs tshark over a file; packets are reassembled and checksums verified.
pub fn tshark(file: &std::path::Path, filter: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut command = Command::new("tshark");
    command.env("HOME", std::env::temp_dir()).arg("-r").arg(file).args(["-Y", filter, "-T", "fields"]);
    command.args([
        "-E",
        "separator=|",
        "-o",
        "ip.check_checksum:TRUE",
        "-o",
        "tcp.check_checksum:TRUE",
        "-o",
        "udp.check_checksum:TRUE",
    ]);
    // Our test payloads on well-known ports are nothing that these would understand.
    for protocol in ["dns", "mdns", "http"] {
        command.args(["--disable-protocol", protocol]);
    }
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().context("cannot run `tshark`: `cargo xtask setup` installs it")?;
    ensure!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    let rows = String::from_utf8_lossy(&output.stdout);
    Ok(rows.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect())
}
