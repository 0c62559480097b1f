//! The routing mesh's hot path in XDP, with real sockets.

use std::sync::Arc;

use anyhow::{Result, ensure};
use hiveway_tests::{
    agent::Agent,
    lab::{Lab, Netns, Offloads, PATIENCE, scenario, wait_for},
    peer,
    table::Table,
};

use crate::support::{Cluster, assert_even, assert_peer, web_table};

const WEB: [&str; 2] = ["web.1", "web.2"];

/// web.1 and web.2 on n1 and n2, published as 8080/tcp and 5353/udp; n3 has only user.1.
fn web() -> Table {
    web_table(&["n1", "n2"], &[("tcp", 8080, 80), ("udp", 5353, 53)], "n3")
}

/// What XDP has carried at a node: towards backends, and back.
fn carried(agent: &Arc<Agent>) -> Result<(u64, u64)> {
    let status = agent.json(&["status"])?;
    let count = |name: &str| status["dataplane"]["counters"][name].as_u64().unwrap_or(0);
    Ok((count("xdp_forward"), count("xdp_reply")))
}

/// Real clients of every node, small and large.
fn traffic(cluster: &Cluster<'_>, clients: &[(Netns, &str)]) -> Result<()> {
    for (client, address) in clients {
        for (agent, node) in cluster.agents.iter().zip(["192.168.77.11", "192.168.77.12", "192.168.77.13"]) {
            let before = carried(agent)?;
            let tcp = peer::tcp_load(client, &format!("{node}:8080"), 20, 2)?;
            assert_even(&tcp, &WEB, 10)?;
            assert_peer(&tcp, address)?;
            let udp = peer::udp_load(client, &format!("{node}:5353"), 20)?;
            assert_even(&udp, &WEB, 10)?;
            assert_peer(&udp, address)?;
            // Each backend has one, local to its ingress node or not.
            for _ in WEB {
                peer::transfer(client, &format!("{node}:8080"), 500_000)?;
            }
            let echo = peer::udp_echo(client, &format!("{node}:5353"), 1400, 4)?;
            ensure!(echo.ok == 4, "UDP of 1400 bytes through {node}: {echo:?}");
            let after = carried(agent)?;
            let (out, back) = (after.0 - before.0, after.1 - before.1);
            ensure!(out >= 10 && back >= 10, "XDP has carried {out} packets towards backends of {node}, {back} back");
        }
    }
    Ok(())
}

fn clients(lab: &Lab) -> Result<[(Netns, &'static str); 2]> {
    Ok([(lab.client()?, "192.168.77.100"), (lab.far_client()?, "192.168.88.100")])
}

fn shows(agent: &Agent, mode: &str) -> Result<()> {
    let link = agent.netns().run("ip -d link show eth0")?;
    let found = ["xdpgeneric", "xdp"].into_iter().find(|mode| link.contains(&format!(" {mode}"))).unwrap_or("off");
    ensure!(found == mode, "{mode} expected: {link}");
    Ok(())
}

#[test]
fn generic_xdp_carries_established_connections() {
    scenario(|lab| {
        let clients = clients(lab)?;
        let mut cluster = Cluster::start_with(lab, 3, web(), &["--xdp", "generic"])?;
        cluster.serve(&WEB)?;
        shows(&cluster.agents[0], "xdpgeneric")?;
        let status = cluster.agents[0].json(&["status"])?;
        ensure!(status["node"]["xdp"][0]["mode"] == "generic", "{status}");
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            traffic(&cluster, &clients)?;
        }
        Ok(())
    });
}

/// A veth takes what XDP sends only with a program at its other end, and forgets that checksums are still to be filled
/// in: so the switch's ends have one, and nobody leaves checksums to others.
#[test]
fn native_xdp_carries_established_connections() {
    scenario(|lab| {
        let clients = clients(lab)?;
        let mut cluster = Cluster::start_with(lab, 3, web(), &["--xdp", "native"])?;
        cluster.serve(&WEB)?;
        lab.set_offloads(Offloads::Off)?;
        lab.pass_at_switch(&["n1", "n2", "n3"])?;
        let agent = cluster.agents[2].clone();
        shows(&agent, "xdp")?;
        traffic(&cluster, &clients)?;
        // The program stays without its agent, and the next one's takes its place.
        agent.sigkill();
        shows(&agent, "xdp")?;
        assert_even(&peer::tcp_load(&clients[0].0, "192.168.77.13:8080", 10, 2)?, &WEB, 5)?;
        agent.restart()?;
        let before = carried(&agent)?;
        assert_even(&peer::tcp_load(&clients[1].0, "192.168.77.13:8080", 10, 2)?, &WEB, 5)?;
        ensure!(carried(&agent)? > before, "the new agent's program carries nothing");
        agent.terminate()?;
        agent.teardown()?;
        shows(&agent, "off")
    });
}

/// A driver takes a program at an MTU of more than a page only if it copes with frames in several buffers.
#[test]
fn native_xdp_carries_small_packets_of_interfaces_with_jumbo_frames() {
    const JUMBO: u32 = 9000;
    scenario(|lab| {
        lab.set_underlay_mtu(JUMBO);
        let client = lab.client()?;
        let mut cluster = Cluster::start_with(lab, 3, web(), &["--xdp", "native"])?;
        cluster.serve(&WEB)?;
        lab.set_offloads(Offloads::Off)?;
        lab.pass_at_switch(&["n1", "n2", "n3"])?;
        shows(&cluster.agents[2], "xdp")?;
        let before = carried(&cluster.agents[2])?;
        assert_even(&peer::udp_load(&client, "192.168.77.13:5353", 20)?, &WEB, 10)?;
        let after = carried(&cluster.agents[2])?;
        let (out, back) = (after.0 - before.0, after.1 - before.1);
        ensure!(out >= 10 && back >= 10, "XDP has carried {out} packets towards backends, {back} back");
        // In several buffers: TC carries them.
        let echo = peer::udp_echo(&client, "192.168.77.13:5353", 8000, 4)?;
        ensure!(echo.ok == 4, "UDP of 8000 bytes: {echo:?}");
        let link = cluster.nodes[2].run("ip -o link show eth0")?;
        ensure!(link.contains(&format!("mtu {JUMBO} ")), "{link}");
        ensure!(carried(&cluster.agents[2])? == after, "XDP has carried some of them");
        Ok(())
    });
}

/// From one interface to the other, both ways: a redirect, which native XDP on a veth takes only between its likes.
#[test]
fn clients_behind_another_interface_are_carried_across() {
    scenario(|lab| {
        let beside = lab.namespace("beside")?;
        let mut cluster = Cluster::start_with(lab, 3, web(), &["--xdp", "native"])?;
        cluster.serve(&WEB)?;
        let (node, agent) = (&cluster.nodes[2], &cluster.agents[2]);
        node.run(&format!("ip link add eth1 type veth peer name eth0 netns {}", beside.name()))?;
        node.run("ip addr add 192.168.90.1/24 dev eth1")?;
        node.run("ip link set eth1 up")?;
        beside.run("ip addr add 192.168.90.100/24 dev eth0")?;
        beside.run("ip link set eth0 up")?;
        lab.set_offloads(Offloads::Off)?;
        lab.pass_at_switch(&["n1", "n2", "n3"])?;
        lab.pass_at(&beside, &["eth0"])?;
        wait_for("XDP on eth1", PATIENCE, || {
            let status = agent.json(&["status"])?;
            let xdp = status["node"]["xdp"].as_array().cloned().unwrap_or_default();
            let native = xdp.iter().any(|on| on["interface"] == "eth1" && on["mode"] == "native");
            ensure!(native, "{}", status["node"]);
            Ok(())
        })?;
        let before = carried(agent)?;
        let answers = peer::tcp_load(&beside, "192.168.90.1:8080", 20, 2)?;
        assert_even(&answers, &WEB, 10)?;
        assert_peer(&answers, "192.168.90.100")?;
        peer::transfer(&beside, "192.168.90.1:8080", 500_000)?;
        let after = carried(agent)?;
        let (out, back) = (after.0 - before.0, after.1 - before.1);
        ensure!(out >= 40 && back >= 40, "XDP has carried {out} packets towards backends, {back} back");
        Ok(())
    });
}

#[test]
fn auto_is_off_on_a_veth_and_says_why() {
    scenario(|lab| {
        let cluster = Cluster::start_with(lab, 1, Table::with_nodes(1), &["--xdp", "auto"])?;
        shows(&cluster.agents[0], "off")?;
        let status = cluster.agents[0].cli(&["status"])?;
        ensure!(status.contains("off on eth0 (a veth:"), "{status}");
        Ok(())
    });
}
