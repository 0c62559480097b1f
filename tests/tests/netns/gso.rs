//! Packets that are segmented late, larger or of other kinds than TCP makes them by default.

use anyhow::{Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, scenario},
    peer,
};

use crate::{
    support::{Cluster, web_table},
    takeover,
};

const WEB_NODES: [&str; 2] = ["n1", "n2"];

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
    // Both ends compute checksums of it without optimisation, on a machine that may be busy.
    const BYTES: u64 = 6_000_000;
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
            peer::transfer(from, target, BYTES)?;
            ensure!(dropped(&cluster, "mtu_exceeded")? == 0, "{what}: packets were lost");
        }
        // Cut by the first device that takes no more than 64 kB; then by none until they are there.
        for node in &cluster.nodes {
            peer::big_tcp(node, "eth0", SIZE)?;
        }
        let before = sent(&cluster.nodes[0], "eth0")?;
        peer::transfer(user, "10.0.1.3:80", BYTES)?;
        let after = sent(&cluster.nodes[0], "eth0")?;
        eprintln!("{} bytes in {} packets left the node", after.0 - before.0, after.1 - before.1);
        ensure!(dropped(&cluster, "mtu_exceeded")? == 0, "packets were lost");
        Ok(())
    });
}

/// A client's datagrams that its own kernel leaves to be cut. A NIC, or the kernel for one that cannot, cuts them
/// before they are on the wire. Devices that hand on as a whole what is in a tunnel are virtual ones; what arrives so
/// is counted.
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

/// A server that sends many datagrams with one call, as QUIC servers do: its answers leave through a VIP, the overlay
/// and the routing mesh, from containers on our networks and on an engine's.
#[test]
fn servers_that_send_many_datagrams_with_one_call_are_heard() {
    for (whose, table) in
        [("ours", web_table(&WEB_NODES, &[("udp", 5353, 53)], "n3")), ("an engine's", takeover::web())]
    {
        scenario(|lab| {
            let client = lab.client()?;
            let nodes = match whose {
                "ours" => (1..=3).map(|n| lab.node(&format!("n{n}"), 10 + n)).collect::<Result<Vec<_>>>()?,
                _ => takeover::nodes(lab)?,
            };
            let mut cluster = Cluster::start_on(lab, nodes, table.clone(), &[])?;
            cluster.serve(&takeover::WEB)?;
            let user = cluster.task("user.1");
            let of_our_own = if whose == "ours" { "off" } else { "on" };
            let left = takeover::late_segmentation(user, "eth0")?;
            ensure!(left == [of_our_own, of_our_own], "networks are {whose}, UDP and SCTP on eth0: {left:?}");
            for (from, target) in [
                (user, "10.0.1.3:53"),
                (user, "10.0.1.2:53"),
                (&client, "192.168.77.11:5353"),
                (&client, "192.168.77.12:5353"),
                (&client, "192.168.77.13:5353"),
            ] {
                let heard = peer::udp_burst(from, target, 1300, 20)?;
                ensure!(heard.ok == 5, "networks are {whose}, {} asks {target}: {heard:?}", from.label());
                if from.label() != client.label() {
                    let echo = peer::udp_segmented(from, target, 1300, 20)?;
                    ensure!(echo.ok == 5, "networks are {whose}, {} asks {target}: {echo:?}", from.label());
                }
            }
            ensure!(dropped(&cluster, "unsupported_gso")? == 0, "networks are {whose}: packets were lost");
            Ok(())
        });
    }
}
