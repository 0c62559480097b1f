//! IP tunnels of the kernel (gre, ipip): packets without an Ethernet header, of other link types than WireGuard's and
//! tun's.

use anyhow::Result;
use hiveway_tests::lab::{Netns, scenario};

use crate::{
    containers_reach_each_other, is_served, nothing_dropped, paths_pass, status_says, support::Cluster, table,
};

/// One end of a tunnel: a namespace, its address outside and the one inside.
struct End<'a>(&'a Netns, &'a str, &'a str);

/// A device `name` at both ends, up.
fn connect(kind: &str, name: &str, ends: [End<'_>; 2]) -> Result<()> {
    for (End(netns, outside, inside), End(_, far, _)) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
        netns.run(&format!("ip link add {name} type {kind} local {outside} remote {far} ttl 64"))?;
        netns.run(&format!("ip addr add {inside}/24 dev {name}"))?;
        netns.run(&format!("ip link set {name} up"))?;
    }
    Ok(())
}

/// `header`: what the tunnel takes off an MTU of 1500.
fn is_the_underlay(kind: &str, header: u32) {
    scenario(|lab| {
        let nodes = vec![lab.node("n1", 11)?, lab.node("n2", 12)?];
        let client = lab.client()?;
        let ends = [End(&nodes[0], "192.168.77.11", "10.8.0.11"), End(&nodes[1], "192.168.77.12", "10.8.0.12")];
        connect(kind, "tun1", ends)?;
        let (mtu, arguments) = (1500 - header, ["--underlay", "tun1", "--xdp", "generic"]);
        let mut cluster = Cluster::start_on(lab, nodes, table(["10.8.0.11", "10.8.0.12"], mtu - 50), &arguments)?;
        cluster.serve(&crate::WEB)?;
        containers_reach_each_other(&cluster)?;
        is_served(&client, "192.168.77.11", "192.168.77.100")?;
        paths_pass(&cluster, mtu.into())?;
        nothing_dropped(&cluster)?;
        status_says(&cluster, &["10.8.0.11 on tun1", "no Ethernet header"])
    });
}

fn serves_clients(kind: &str) {
    scenario(|lab| {
        let nodes = vec![lab.node("n1", 11)?, lab.node("n2", 12)?];
        let client = lab.client()?;
        let ends = [End(&nodes[0], "192.168.77.11", "10.9.0.11"), End(&client, "192.168.77.100", "10.9.0.100")];
        connect(kind, "tun1", ends)?;
        let mut cluster = Cluster::start_on(lab, nodes, table(["192.168.77.11", "192.168.77.12"], 1450), &[])?;
        cluster.serve(&crate::WEB)?;
        is_served(&client, "10.9.0.11", "10.9.0.100")?;
        is_served(&client, "192.168.77.12", "192.168.77.100")?;
        nothing_dropped(&cluster)?;
        status_says(&cluster, &["192.168.77.11 on eth0", "tun1"])
    });
}

#[test]
#[ignore = "needs a kernel with IP tunnels: cargo xtask vm-test links"]
fn a_gre_tunnel_is_the_underlay() {
    is_the_underlay("gre", 24);
}

#[test]
#[ignore = "needs a kernel with IP tunnels: cargo xtask vm-test links"]
fn an_ipip_tunnel_is_the_underlay() {
    is_the_underlay("ipip", 20);
}

#[test]
#[ignore = "needs a kernel with IP tunnels: cargo xtask vm-test links"]
fn clients_behind_a_gre_tunnel_are_served() {
    serves_clients("gre");
}

#[test]
#[ignore = "needs a kernel with IP tunnels: cargo xtask vm-test links"]
fn clients_behind_an_ipip_tunnel_are_served() {
    serves_clients("ipip");
}
