//! WireGuard: packets without an Ethernet header, from a real driver.

use std::{io::Write as _, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::lab::{Lab, Netns, scenario};

use crate::{
    containers_reach_each_other, is_served, nothing_dropped, paths_pass, status_says, support::Cluster, table,
};

/// One end of a WireGuard network: a namespace, its address outside and the one inside.
struct End<'a> {
    netns: &'a Netns,
    outside: &'a str,
    inside: &'a str,
}

/// Runs `wg`, with this on its standard input.
fn wg(arguments: &[&str], input: &str) -> Result<String> {
    let mut command = std::process::Command::new("wg");
    let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("wg")?;
    child.stdin.take().context("no pipe to wg")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "wg {arguments:?} failed");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A device `name` at each end, up, which reaches all others.
fn connect(lab: &Lab, name: &str, port: u16, ends: &[End<'_>]) -> Result<()> {
    let keys = ends.iter().map(|_| wg(&["genkey"], "")).collect::<Result<Vec<_>>>()?;
    let public = keys.iter().map(|key| wg(&["pubkey"], key)).collect::<Result<Vec<_>>>()?;
    for (end, key) in ends.iter().zip(&keys) {
        let file = lab.directory().join(lab.unique("key"));
        std::fs::write(&file, key)?;
        end.netns.run(&format!("ip link add {name} type wireguard"))?;
        end.netns.run(&format!("wg set {name} listen-port {port} private-key {}", file.display()))?;
        for (other, peer) in ends.iter().zip(&public).filter(|(other, _)| other.inside != end.inside) {
            let (outside, inside) = (other.outside, other.inside);
            end.netns.run(&format!("wg set {name} peer {peer} allowed-ips {inside}/32 endpoint {outside}:{port}"))?;
        }
        end.netns.run(&format!("ip addr add {}/24 dev {name}", end.inside))?;
        end.netns.run(&format!("ip link set {name} mtu 1420 up"))?;
    }
    Ok(())
}

#[test]
#[ignore = "needs a kernel with WireGuard: cargo xtask vm-test links"]
fn wireguard_is_the_underlay() {
    scenario(|lab| {
        let nodes = vec![lab.node("n1", 11)?, lab.node("n2", 12)?];
        let client = lab.client()?;
        connect(
            lab,
            "wg0",
            51_820,
            &[
                End { netns: &nodes[0], outside: "192.168.77.11", inside: "10.8.0.11" },
                End { netns: &nodes[1], outside: "192.168.77.12", inside: "10.8.0.12" },
                End { netns: &client, outside: "192.168.77.100", inside: "10.8.0.100" },
            ],
        )?;
        let arguments = ["--underlay", "wg0", "--xdp", "generic"];
        let mut cluster = Cluster::start_on(lab, nodes, table(["10.8.0.11", "10.8.0.12"], 1370), &arguments)?;
        cluster.serve(&crate::WEB)?;
        containers_reach_each_other(&cluster)?;
        // Clients in the VPN and outside.
        is_served(&client, "10.8.0.12", "10.8.0.100")?;
        is_served(&client, "192.168.77.11", "192.168.77.100")?;
        paths_pass(&cluster, 1420)?;
        nothing_dropped(&cluster)?;
        status_says(&cluster, &["10.8.0.11 on wg0", "no Ethernet header"])
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: cargo xtask vm-test links"]
fn clients_behind_wireguard_are_served() {
    scenario(|lab| {
        let nodes = vec![lab.node("n1", 11)?, lab.node("n2", 12)?];
        let client = lab.client()?;
        connect(
            lab,
            "wg1",
            51_821,
            &[
                End { netns: &nodes[0], outside: "192.168.77.11", inside: "10.9.0.11" },
                End { netns: &client, outside: "192.168.77.100", inside: "10.9.0.100" },
            ],
        )?;
        let mut cluster = Cluster::start_on(lab, nodes, table(["192.168.77.11", "192.168.77.12"], 1450), &[])?;
        cluster.serve(&crate::WEB)?;
        is_served(&client, "10.9.0.11", "10.9.0.100")?;
        is_served(&client, "192.168.77.12", "192.168.77.100")?;
        nothing_dropped(&cluster)?;
        status_says(&cluster, &["192.168.77.11 on eth0", "wg1"])
    });
}
