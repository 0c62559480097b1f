//! Everything in a VLAN: the nodes' tunnel addresses and a client are on devices of VLAN 100.

use anyhow::{Result, ensure};
use hiveway_tests::{
    lab::{Capture, Netns, scenario},
    peer,
};

use crate::{
    containers_reach_each_other, is_served, nothing_dropped, paths_pass, status_says, support::Cluster, table,
};

/// A device of the VLAN on eth0, with this address in a /24.
fn join(netns: &Netns, vlan: u16, address: &str) -> Result<()> {
    netns.run(&format!("ip link add link eth0 name eth0.{vlan} type vlan id {vlan}"))?;
    netns.run(&format!("ip addr add {address}/24 dev eth0.{vlan}"))?;
    netns.run(&format!("ip link set eth0.{vlan} up"))?;
    Ok(())
}

/// With tags in the frame's metadata, as a NIC hands them over, and in the frame itself.
#[test]
#[ignore = "needs a kernel with 802.1Q: cargo xtask vm-test links"]
fn everything_works_over_a_vlan_device() {
    scenario(|lab| {
        let nodes = vec![lab.node("n1", 11)?, lab.node("n2", 12)?];
        let (client, untagged) = (lab.node("client", 100)?, lab.node("untagged", 101)?);
        join(&nodes[0], 100, "10.100.0.11")?;
        join(&nodes[1], 100, "10.100.0.12")?;
        join(&client, 100, "10.100.0.100")?;
        // A VLAN of which the nodes know nothing: its frames end at their parent interface.
        join(&client, 200, "10.200.0.100")?;
        let addresses = ["10.100.0.11", "10.100.0.12"];
        let mut cluster = Cluster::start_on(lab, nodes, table(addresses, 1450), &["--underlay", "eth0.100"])?;
        cluster.serve(&crate::WEB)?;
        let mut tunnel = Capture::start(lab, lab.switch(), "n1", "vlan 100 and udp port 4789")?;
        let mut bare = Capture::start(lab, lab.switch(), "n1", "udp port 4789")?;
        for state in ["on", "off"] {
            for netns in cluster.nodes.iter().chain([&client]) {
                netns.run(&format!("ethtool -K eth0 rxvlan {state} txvlan {state}"))?;
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
            let link: serde_json::Value = serde_json::from_str(&cluster.nodes[0].run("ip -j link show dev eth0")?)?;
            let mac = link[0]["address"].as_str().unwrap_or_default().to_owned();
            client.run("ip route replace 192.168.77.11/32 dev eth0.200 src 10.200.0.100")?;
            client.run(&format!("ip neigh replace 192.168.77.11 lladdr {mac} dev eth0.200"))?;
            let before = cluster.agents[0].counter("mesh_flow")?;
            let mut arrived = Capture::start(lab, lab.switch(), "n1", "vlan 200 and port 8080")?;
            let refused = peer::attempts(&client, "tcp", "192.168.77.11:8080", 2)?;
            arrived.wait_packets(2)?;
            ensure!(refused.ok == 0, "answered in a VLAN that the node has no device for: {refused:?}");
            let opened = cluster.agents[0].counter("mesh_flow")? - before;
            ensure!(opened == 0, "{opened} connections were opened by frames of another VLAN");
        }
        paths_pass(&cluster, 1500)?;
        nothing_dropped(&cluster)?;
        status_says(&cluster, &["10.100.0.11 on eth0.100", "eth0.100"])
    });
}
