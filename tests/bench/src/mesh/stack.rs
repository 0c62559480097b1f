//! Nodes on which the kernel's own stack forwards: nftables, and plain routing.

use std::{io::Write as _, path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::lab::{AtLeast, Lab, Netns};

use super::{
    contestants::{FIRST_PORT, Site},
    order::Protocol,
    stage::NODE,
};

/// Task's address on the bridge of a node with a local backend.
pub(super) const LOCAL_TASK: &str = "172.19.0.2";
/// First backend elsewhere; reached by the default route.
pub(super) const REMOTE_TASK: &str = "10.1.0.1";
const TARGET_PORT: u16 = 80;

/// Makes the kernel's connection table large enough for a million flows, for the whole machine: there is no setting per
/// namespace.
pub(super) fn make_room() -> Result<AtLeast> {
    AtLeast::set(Path::new("/proc/sys/net/netfilter/nf_conntrack_max"), 2 << 20)
}

/// A container behind a bridge, as an engine makes one, for sites with a local backend; returns its namespace.
pub(super) fn task(lab: &Lab, node: &Netns) -> Result<Netns> {
    let task = lab.namespace(&format!("{}-task", node.label()))?;
    node.shell(
        "ip link add br0 type bridge forward_delay 0 mcast_snooping 0
         ip addr add 172.19.0.1/16 dev br0
         ip link set br0 up",
    )?;
    let name = task.name();
    node.run(&format!("ip link add task type veth peer name eth0 netns {name}"))?;
    node.run("ip link set task master br0 up")?;
    task.shell(&format!(
        "ip addr add {LOCAL_TASK}/16 dev eth0
         ip link set eth0 up
         ip route add default via 172.19.0.1"
    ))?;
    // Resolves both ends' neighbours for good.
    ensure!(node.succeeds(&format!("ping -c 1 -W 5 {LOCAL_TASK}")), "no answer from the container");
    let inside = mac(&task, "eth0")?;
    node.run(&format!("ip neigh replace {LOCAL_TASK} lladdr {inside} dev br0 nud permanent"))?;
    let bridge = mac(node, "br0")?;
    task.run(&format!("ip neigh replace 172.19.0.1 lladdr {bridge} dev eth0 nud permanent"))?;
    Ok(task)
}

/// DNAT to the backends in turn, and masquerade, so that replies come back.
pub(super) fn nftables(node: &Netns, site: Site, protocol: Protocol) -> Result<()> {
    node.run(
        "sysctl -qw net.netfilter.nf_conntrack_udp_timeout=7200 net.netfilter.nf_conntrack_udp_timeout_stream=7200",
    )?;
    // A card has verified the checksums of what it receives; our frames come without that.
    node.run("sysctl -qw net.netfilter.nf_conntrack_checksum=0")?;
    let last = FIRST_PORT + site.ports() - 1;
    let ports: Vec<String> = (FIRST_PORT..=last).map(|port| port.to_string()).collect();
    let backends = if site == Site::Local {
        format!("0 : {LOCAL_TASK}")
    } else {
        (0..site.backends()).map(|n| format!("{n} : 10.1.0.{}", n + 1)).collect::<Vec<_>>().join(", ")
    };
    let protocol = match (site, protocol) {
        (Site::Flooded, _) | (_, Protocol::Tcp) => "tcp",
        (_, Protocol::Udp) => "udp",
    };
    let (ports, count) = (ports.join(", "), site.backends());
    load(
        node,
        &format!(
            "table ip bench {{
               set published {{
                 type inet_service
                 elements = {{ {ports} }}
               }}
               chain in {{
                 type nat hook prerouting priority dstnat
                 ip daddr {NODE} {protocol} dport @published dnat to numgen inc mod {count} map {{ {backends} }}:{TARGET_PORT}
               }}
               chain out {{
                 type nat hook postrouting priority srcnat
                 ct status dnat masquerade
               }}
             }}\n"
        ),
    )
}

fn load(node: &Netns, rules: &str) -> Result<()> {
    let mut nft = node.command("nft")?;
    let mut nft = nft.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(rules.as_bytes())?;
    }
    let output = nft.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// An interface's MAC.
pub(super) fn mac(netns: &Netns, interface: &str) -> Result<String> {
    let listing = netns.run(&format!("ip -br link show dev {interface}"))?;
    listing.split_whitespace().nth(2).map(str::to_owned).with_context(|| format!("no MAC in {listing}"))
}
