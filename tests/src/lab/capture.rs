//! Packet captures with tcpdump, dissected by tshark: an opinion on our frames that is not ours.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::{
    Lab, Netns, Process,
    wait::{PATIENCE, wait_for},
};

/// What tshark is to know. Everything else is disabled: it would take test payloads on ports that happen to be some
/// protocol's (37008 is TZSP's, 44818 EtherNet/IP's) for that protocol, and call them malformed.
const PROTOCOLS: [&str; 11] = ["arp", "data", "eth", "ethertype", "frame", "icmp", "igmp", "ip", "tcp", "udp", "vxlan"];

/// A display filter: a checksum that a receiver would not accept. TCP's 0xffff for a computed 0 is the same number in
/// ones' complement (RFC 1624 section 3) and what Linux writes when it fills in a checksum in software, so one segment
/// in 65,536 carries it; tshark calls it bad.
pub const BAD_CHECKSUM: &str = "ip.checksum.status == \"Bad\" || udp.checksum.status == \"Bad\" || \
     (tcp.checksum.status == \"Bad\" && !(tcp.checksum == 0xffff && tcp.checksum_calculated == 0))";

/// The VNI of the routing mesh's frames and of the agents' probes, without `--mesh-vni`.
pub const MESH_VNI: u32 = 16_777_214;

/// UDP port of datagrams that nothing answers and a capture counts.
pub const DISCARD_PORT: u16 = 9;

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
        // A buffer of 16 MiB holds what comes while tcpdump waits for the processor.
        command.args(["-i", interface, "-U", "--immediate-mode", "-B", "16384", "-s", "0", "-Z", "root", "-w"]);
        command.arg(&file);
        command.args(filter.split_whitespace());
        let process = Process::start(command, lab.directory(), &name)?;
        wait_for("tcpdump to listen", PATIENCE, || {
            ensure!(process.stderr()?.contains("listening on"), "{}", process.stderr_tail(3));
            Ok(())
        })?;
        Ok(Self { process, file })
    }

    /// Waits until at least this many packets have been captured.
    pub fn wait_packets(&mut self, count: u64) -> Result<()> {
        wait_for(&format!("{count} packets"), PATIENCE, || {
            let report = self.report()?;
            ensure!(report.captured >= count, "{report:?}");
            Ok(())
        })
    }

    /// How many packets have been captured so far.
    pub fn packets(&mut self) -> Result<u64> {
        Ok(self.report()?.captured)
    }

    /// Ends the capture and returns the file, with every packet that has passed the interface by now.
    pub fn stop(mut self) -> Result<PathBuf> {
        self.drain()?;
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(PATIENCE)?;
        Ok(self.file.clone())
    }

    /// Ends the capture and prints `fields` of the packets that match a display filter, one row per packet.
    pub fn dissect(self, filter: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
        let file = self.stop()?;
        tshark(&file, filter, fields)
    }

    /// Waits until tcpdump has written as many packets as its filter has let through: it does not look for more when it
    /// is interrupted, and on a busy machine it lags behind.
    fn drain(&mut self) -> Result<()> {
        wait_for("tcpdump to catch up", PATIENCE, || {
            let report = self.report()?;
            ensure!(report.captured + report.dropped >= report.received, "{report:?}");
            Ok(())
        })
    }

    /// What tcpdump says of itself when asked with SIGUSR1: `3 packets captured, 4 packets received by filter, 0
    /// packets dropped by kernel`.
    fn report(&mut self) -> Result<Report> {
        let earlier = self.process.stderr()?.matches("received by filter").count();
        self.process.signal(Signal::SIGUSR1)?;
        let line = wait_for("tcpdump's counts", PATIENCE, || {
            let text = self.process.stderr()?;
            // A line that is not whole yet is still being written.
            let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let line = whole.filter(|line| line.contains("received by filter")).nth(earlier);
            line.map(str::to_owned).context("not yet")
        })?;
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let &[captured, received, dropped, ..] = &numbers[..] else { bail!("tcpdump said {line}") };
        Ok(Report { captured, received, dropped })
    }
}

#[derive(Debug)]
struct Report {
    captured: u64,
    received: u64,
    dropped: u64,
}

/// Runs tshark over a file; packets are reassembled and checksums verified.
pub fn tshark(file: &Path, filter: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut command = Command::new("tshark");
    command.env("WIRESHARK_CONFIG_DIR", configuration(file)?);
    command.arg("-r").arg(file).args(["-Y", filter, "-T", "fields", "-E", "separator=|"]);
    for protocol in ["ip", "tcp", "udp"] {
        command.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
    }
    for field in fields {
        command.args(["-e", field]);
    }
    let rows = output(command)?;
    Ok(rows.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect())
}

/// A configuration directory beside a capture in which all but [`PROTOCOLS`] are disabled.
fn configuration(file: &Path) -> Result<PathBuf> {
    let directory = file.with_extension("wireshark");
    let disabled = directory.join("disabled_protos");
    if !disabled.exists() {
        fs::create_dir_all(&directory)?;
        let mut command = Command::new("tshark");
        command.args(["-G", "protocols"]).env("WIRESHARK_CONFIG_DIR", &directory);
        // Name, short name, filter name; `_ws.malformed` and the like are tshark's own findings.
        let listing = output(command)?;
        let names = listing.lines().filter_map(|line| line.split('\t').nth(2));
        let others: Vec<_> = names.filter(|name| !PROTOCOLS.contains(name) && !name.starts_with("_ws.")).collect();
        ensure!(others.len() > 100, "`tshark -G protocols` said {listing}");
        fs::write(&disabled, others.join("\n") + "\n")?;
    }
    Ok(directory)
}

fn output(mut command: Command) -> Result<String> {
    let output = command.output().context("cannot run `tshark`: `cargo xtask setup` installs it")?;
    ensure!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
