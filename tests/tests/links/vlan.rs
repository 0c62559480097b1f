//! Everything in a VLAN: the nodes' tunnel addresses and a client are on devices of VLAN 100.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::Agent,
    lab::{Capture, Lab, Netns, scenario},
    peer,
};

use crate::{
    containers_reach_each_other, is_served, nothing_dropped, paths_pass, status_says, support::Cluster, table,
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
