//! A network whose traffic the engines encrypt: needs a kernel with ESP, so it is told in a VM too.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{lab::wait_for, swarm::Hiveway};
use serde_json::Value;

use crate::{
    balancer::ask_vip,
    support::{
        Stage,
        traffic::{all_answer, names},
    },
};

const LAG: Duration = Duration::from_secs(60);

/// The VIP is balanced by us, before the engine encrypts; nothing of the network is on the wire in cleartext.
pub(crate) fn encrypted_network(stage: &mut Stage) -> Result<()> {
    stage.network("app", "--opt encrypted")?;
    stage.create("web", "--mode global --network app demo/web:1")?;
    stage.create("client", "--mode global --network app demo/web:1")?;
    for agent in stage.nodes().iter().map(Hiveway::on) {
        agent.start(&[])?;
    }
    let vni = vni(stage)?;
    let servers = names(&stage.serving("web")?);
    let directory = stage.swarm.place().directory();
    for client in stage.serving("client")? {
        let own = client.addresses["app"].to_string();
        let file = directory.join(format!("{own}.pcap"));
        let mut capture = capture(stage, &file)?;
        let asked = wait_for("the VIP of an encrypted network to be ours", LAG, || {
            let tally = ask_vip(stage, &client)?;
            all_answer(&tally, &servers)?;
            ensure!(tally.peers.keys().eq([&own]), "the servers saw {:?} instead of {own}", tally.peers);
            Ok(())
        });
        capture.kill()?;
        capture.wait()?;
        asked?;
        let packets = fs::read(&file)?;
        ensure!(packets.len() > 1000, "the capture has {} bytes", packets.len());
        // The agents' probes are tunnelled, too, in the ingress network.
        let clear = count(&file, &format!("udp port 4789 and udp[12:4] >> 8 = {vni}"))?;
        let encrypted = count(&file, "ip proto 50")?;
        ensure!(clear == 0 && encrypted > 0, "{clear} packets of the network in cleartext, {encrypted} encrypted");
    }
    stage.agree()
}

/// The VNI of the network, as the engines know it.
fn vni(stage: &Stage) -> Result<u32> {
    let networks: Value = serde_json::from_str(&stage.docker("network inspect app")?)?;
    let vni = networks[0]["Options"]["com.docker.network.driver.overlay.vxlanid_list"].as_str();
    vni.context("the engine tells no VNI")?.parse().context("the network's VNI")
}

/// All that the nodes say to each other, at the switch; written packet by packet.
fn capture(stage: &Stage, file: &Path) -> Result<std::process::Child> {
    let file = file.to_str().context("plain text")?;
    let arguments = ["--immediate-mode", "-U", "-n", "-Z", "root", "-i", "br0", "-w", file];
    let mut command = stage.outside().command("tcpdump")?;
    let mut child = command.args(arguments).stderr(std::process::Stdio::null()).spawn().context("tcpdump")?;
    // It writes the file's header when it listens.
    let listening = wait_for("tcpdump to listen", LAG, || {
        ensure!(fs::metadata(file).is_ok_and(|meta| meta.len() >= 24), "no header yet");
        Ok(())
    });
    if listening.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    listening.map(|()| child)
}

/// Packets of a capture that match.
fn count(file: &Path, filter: &str) -> Result<usize> {
    let output = Command::new("tcpdump").arg("-n").arg("-r").arg(file).arg(filter).output().context("tcpdump")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).lines().count())
}
