//! VLAN devices: as underlay and for clients, and what XDP does on the interface that carries them.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use hiveway_tests::{
    agent::Agent,
    lab::{Capture, Lab, Netns, Offloads, PATIENCE, scenario, wait_for},
    peer,
};

use crate::{
    containers_reach_each_other, is_served, nothing_dropped, paths_pass, status_says, support::Cluster, table, table_of,
};

/// A device of the VLAN on an interface, with this address in a /24.
fn join(netns: &Netns, parent: &str, vlan: u16, address: &str) -> Result<()> {
    netns.run(&format!("ip link add link {parent} name {parent}.{vlan} type vlan id {vlan}"))?;
    netns.run(&format!("ip addr add {address}/24 dev {parent}.{vlan}"))?;
    netns.run(&format!("ip link set {parent}.{vlan} up"))?;
    Ok(())
}

fn mac_of(netns: &Netns, interface: &str) -> Result<String> {
    let link: serde_json::Value = serde_json::from_str(&netns.run(&format!("ip -j link show dev {interface}"))?)?;
    Ok(link[0]["address"].as_str().context("no MAC")?.to_owned())
}

/// Sends two SYNs in a VLAN, out of the client's device of it, to a published port of n1 and the MAC of its parent
/// interface. They must be seen on the interface `there`, and open nothing.
fn opens_nothing(
    lab: &Lab,
    agent: &Agent,
    (client, device, source): (&Netns, &str, &str),
    mac: &str,
    (there, interface): (&Netns, &str),
) -> Result<()> {
    client.run(&format!("ip route replace 192.168.77.11/32 dev {device} src {source}"))?;
    client.run(&format!("ip neigh replace 192.168.77.11 lladdr {mac} dev {device}"))?;
    let before = agent.counter("mesh_flow")?;
    let vid = device.split_once('.').context("eth0.200, say")?.1;
    let mut arrived = Capture::start(lab, there, interface, &format!("vlan {vid} and port 8080"))?;
    let refused = peer::attempts(client, "tcp", "192.168.77.11:8080", 2)?;
    let none_opened = || {
        let opened = agent.counter("mesh_flow")? - before;
        ensure!(opened == 0, "{opened} connections were opened by frames of another VLAN");
        Ok(())
    };
    // What XDP takes is not seen to arrive.
    none_opened()?;
    arrived.wait_packets(2)?;
    ensure!(refused.ok == 0, "answered in a VLAN that the node serves nothing in: {refused:?}");
    none_opened()
}

/// With tags in the frame's metadata, as a NIC hands them over, and in the frame itself.
#[test]
#[ignore = "needs a kernel with 802.1Q: cargo xtask vm-test links"]
fn everything_works_over_a_vlan_device() {
    scenario(|lab| {
        let nodes = vec![lab.node("n1", 11)?, lab.node("n2", 12)?];
        let (client, untagged) = (lab.node("client", 100)?, lab.node("untagged", 101)?);
        join(&nodes[0], "eth0", 100, "10.100.0.11")?;
        join(&nodes[1], "eth0", 100, "10.100.0.12")?;
        join(&client, "eth0", 100, "10.100.0.100")?;
        // A VLAN of which the nodes know nothing: its frames end at their parent interface.
        join(&client, "eth0", 200, "10.200.0.100")?;
        let addresses = ["10.100.0.11", "10.100.0.12"];
        let mut cluster = Cluster::start_on(lab, nodes, table(addresses, 1450), &["--underlay", "eth0.100"])?;
        cluster.serve(&crate::WEB)?;
        let mut tunnel = Capture::start(lab, lab.switch(), "n1", "vlan 100 and udp port 4789")?;
        // In this order: what follows `vlan` in a filter is looked for behind a tag.
        let mut bare = Capture::start(lab, lab.switch(), "n1", "udp port 4789 and not vlan")?;
        for state in ["on", "off"] {
            for netns in cluster.nodes.iter().chain([&client]) {
                netns.run(&format!("ethtool -K eth0 rxvlan {state} txvlan {state}"))?;
                // Where a tag is when it arrives is up to the end of the cable that has sent it.
                lab.switch().run(&format!("ethtool -K {} txvlan {state}", netns.label()))?;
            }
            containers_reach_each_other(&cluster)?;
            for address in addresses {
                is_served(&client, address, "10.100.0.100")?;
            }
            // The parent has an address of its own, for clients without a tag.
            is_served(&untagged, "192.168.77.11", "192.168.77.101")?;
            tunnel.wait_packets(20)?;
            ensure!(bare.packets()? == 0, "tunnels have left the VLAN");
            // To the node's MAC and one of its addresses, in the other VLAN.
            let from = (&client, "eth0.200", "10.200.0.100");
            opens_nothing(lab, &cluster.agents[0], from, &mac_of(&cluster.nodes[0], "eth0")?, (lab.switch(), "n1"))?;
        }
        paths_pass(&cluster, 1500)?;
        nothing_dropped(&cluster)?;
        status_says(&cluster, &["10.100.0.11 on eth0.100", "eth0.100"])
    });
}

/// Moves the machine's two NICs, which a cable joins, into namespaces, as `nic0` with this address in a /24.
fn join_by_nics(ends: [(&Netns, &str); 2]) -> Result<()> {
    let is_nic = |name: &String| Path::new("/sys/class/net").join(name).join("device").exists();
    let names = fs::read_dir("/sys/class/net")?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let nics: Vec<_> = names.filter(is_nic).collect();
    ensure!(nics.len() == 2, "two NICs are needed, not {nics:?}: cargo xtask vm-test links");
    for (nic, (netns, address)) in nics.iter().zip(ends) {
        let mut command = Command::new("ip");
        let moved = command.args(["link", "set", nic, "netns", netns.name(), "name", "nic0"]).output()?;
        ensure!(moved.status.success(), "{nic}: {}", String::from_utf8_lossy(&moved.stderr));
        netns.run(&format!("ip addr add {address}/24 dev nic0"))?;
        netns.run("ip link set nic0 up")?;
    }
    Ok(())
}

/// Waits until XDP is in this mode on an interface, for a reason that has all these words.
fn xdp_is(agent: &Agent, interface: &str, mode: &str, words: &[&str]) -> Result<()> {
    wait_for(&format!("XDP to be {mode} on {interface}"), PATIENCE, || {
        let status = agent.json(&["status"])?;
        let all = status["node"]["xdp"].as_array().cloned().unwrap_or_default();
        let Some(on) = all.iter().find(|on| on["interface"] == interface) else { bail!("{}", status["node"]) };
        let why = on["why"].as_str().unwrap_or_default();
        ensure!(on["mode"] == mode && words.iter().all(|&word| why.contains(word)), "{on}");
        ensure!(words.iter().all(|&word| agent.log().contains(word)), "the log does not say so");
        Ok(())
    })
}

/// On a NIC, whose driver takes tags off or not, and on a veth, where a tag is wherever the other end has put it. The
/// NIC's VLAN device has no address, so nothing is served there. XDP on the NIC would see its frames without their tag.
#[test]
#[ignore = "needs a kernel with 802.1Q and two NICs with a cable between them: cargo xtask vm-test links"]
fn xdp_is_off_where_it_would_not_see_tags() {
    scenario(|lab| {
        let nodes = vec![lab.node("n1", 11)?, lab.node("n2", 12)?];
        let beside = lab.namespace("beside")?;
        join_by_nics([(&nodes[0], "192.168.90.1"), (&beside, "192.168.90.100")])?;
        let addresses = ["192.168.77.11", "192.168.77.12"];
        // Both backends are on the other node: XDP opens connections to no others.
        let table = table_of(["n2", "n2"], addresses, 1450);
        let mut cluster = Cluster::start_on(lab, nodes, table, &["--xdp", "native"])?;
        cluster.serve(&crate::WEB)?;
        // What XDP sends over a veth needs a program at the other end, and checksums that are complete.
        lab.set_offloads(Offloads::Off)?;
        lab.pass_at_switch(&["n1", "n2"])?;
        let (node, agent) = (&cluster.nodes[0], cluster.agents[0].clone());
        let mac = mac_of(node, "nic0")?;
        let is_served = || is_served(&beside, "192.168.90.1", "192.168.90.100");
        node.run("ethtool -K nic0 rxvlan on")?;
        for interface in ["nic0", "eth0"] {
            xdp_is(&agent, interface, "native", &[])?;
        }
        let before = agent.counter("xdp_forward")?;
        is_served().context("by XDP")?;
        ensure!(agent.counter("xdp_forward")? > before, "XDP has carried nothing");

        join(&beside, "nic0", 100, "192.168.91.100")?;
        let tagged = (&beside, "nic0.100", "192.168.91.100");
        node.run("ip link add link nic0 name nic0.100 type vlan id 100")?;
        node.run("ip link set nic0.100 up")?;
        let why = ["nic0.100 is a VLAN device on nic0", "`ethtool -K nic0 rxvlan off`"];
        xdp_is(&agent, "nic0", "off", &why)?;
        xdp_is(&agent, "eth0", "native", &[])?;
        opens_nothing(lab, &agent, tagged, &mac, (node, "nic0")).context("TC alone")?;
        is_served().context("by TC")?;

        node.run("ethtool -K nic0 rxvlan off")?;
        xdp_is(&agent, "nic0", "native", &[])?;
        opens_nothing(lab, &agent, tagged, &mac, (node, "nic0")).context("XDP with tags in frames")?;
        is_served().context("by XDP beside a VLAN device")?;

        node.run("ethtool -K nic0 rxvlan on")?;
        xdp_is(&agent, "nic0", "off", &why)?;
        node.run("ip link delete nic0.100")?;
        xdp_is(&agent, "nic0", "native", &[])?;

        node.run("ip link add link eth0 name eth0.100 type vlan id 100")?;
        node.run("ethtool -K eth0 rxvlan off")?;
        xdp_is(&agent, "eth0", "off", &["eth0.100 is a VLAN device on eth0", "a veth"])?;
        node.run("ip link delete eth0.100")?;
        xdp_is(&agent, "eth0", "native", &[])
    });
}
