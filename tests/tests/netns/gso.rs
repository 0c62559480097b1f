//! Packets that are segmented late, larger or of other kinds than TCP makes them by default.

use anyhow::{Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, scenario},
    peer,
};

use crate::support::{Cluster, web_table};

/// web.1 on n2 with a VIP and a published port, user.1 on n1.
fn start(lab: &Lab) -> Result<Cluster<'_>> {
    let table = web_table(&["n2"], &[("tcp", 8080, 80), ("udp", 5353, 53)], "n1");
    let mut cluster = Cluster::start(lab, 3, table)?;
    cluster.serve(&["web.1"])?;
    Ok(cluster)
}

fn dropped(cluster: &Cluster<'_>, reason: &str) -> Result<u64> {
    cluster.agents.iter().map(|agent| agent.dropped(reason)).sum()
}

/// Bytes and packets that went out of an interface; what is segmented later counts once.
fn sent(netns: &Netns, interface: &str) -> Result<(u64, u64)> {
    let shown: serde_json::Value = serde_json::from_str(&netns.run(&format!("ip -s -j link show dev {interface}"))?)?;
    let tx = &shown[0]["stats64"]["tx"];
    Ok((tx["bytes"].as_u64().unwrap_or(0), tx["packets"].as_u64().unwrap_or(0)))
}

/// BIG TCP: packets of up to 180,000 bytes, whose length their IP header cannot say, nor the one around them.
#[test]
fn packets_of_more_than_64_kilobytes_are_not_lost() {
    const SIZE: u32 = 180_000;
    scenario(|lab| {
        let client = lab.client()?;
        let cluster = start(lab)?;
        let (user, web) = (cluster.task("user.1"), cluster.task("web.1"));
        for (netns, interface) in [(user, "eth0"), (web, "eth0"), (web, "eth1"), (web, "eth2"), (&client, "eth0")] {
            if netns.interfaces()?.iter().any(|name| name == interface) {
                peer::big_tcp(netns, interface, SIZE)?;
            }
        }
        for (from, what, target) in [
            (user, "the VIP", "10.0.1.2:80"),
            (user, "the task", "10.0.1.3:80"),
            (&client, "the mesh", "192.168.77.11:8080"),
            (&client, "the mesh, at home", "192.168.77.12:8080"),
        ] {
            peer::transfer(from, target, 30_000_000)?;
            ensure!(dropped(&cluster, "mtu_exceeded")? == 0, "{what}: packets were lost");
        }
        // Cut by the first device that takes no more than 64 kB; then by none until they are there.
        for node in &cluster.nodes {
            peer::big_tcp(node, "eth0", SIZE)?;
        }
        let before = sent(&cluster.nodes[0], "eth0")?;
        peer::transfer(user, "10.0.1.3:80", 30_000_000)?;
        let after = sent(&cluster.nodes[0], "eth0")?;
        eprintln!("{} bytes in {} packets left the node", after.0 - before.0, after.1 - before.1);
        ensure!(dropped(&cluster, "mtu_exceeded")? == 0, "packets were lost");
        Ok(())
    });
}

/// A client's datagrams that its own kernel leaves to be cut. A NIC, or the kernel for one that cannot, cuts them before they
/// are on the wire. Devices that hand on as a whole what is in a tunnel are virtual ones; what arrives so is counted.
#[test]
fn datagrams_in_one_packet_go_through_the_mesh_or_are_counted() {
    scenario(|lab| {
        let client = lab.client()?;
        let cluster = start(lab)?;
        for target in ["192.168.77.12:5353", "192.168.77.11:5353"] {
            cluster.nodes[0].run("ethtool -K eth0 tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off")?;
            let echo = peer::udp_segmented(&client, target, 1300, 20)?;
            ensure!(echo.ok == 5, "{target}: {echo:?}");
        }
        ensure!(dropped(&cluster, "unsupported_gso")? == 0, "cut before they left");
        cluster.nodes[0].run("ethtool -K eth0 tx-udp_tnl-segmentation on")?;
        let echo = peer::udp_segmented(&client, "192.168.77.11:5353", 1300, 20)?;
        let drops = dropped(&cluster, "unsupported_gso")?;
        ensure!(echo.ok == 0 && drops == 5, "{drops} are counted of {echo:?}");
        Ok(())
    });
}
