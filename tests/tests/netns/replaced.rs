//! Interfaces that are renamed, or taken out and made anew under the same name, while the agents run.

use std::time::Duration;

use anyhow::{Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, PATIENCE, scenario, wait_for},
    peer::{self, LoadLoop},
};
use serde_json::Value;

use crate::{
    support::{Cluster, assert_even, assert_peer},
    uplinks::{WEB, everything_works, nodes, web},
};

/// How long it may take until everything works again.
const SECONDS: Duration = Duration::from_secs(15);
const ADDRESSES: [&str; 3] = ["192.168.77.11", "192.168.77.12", "192.168.77.13"];
const CLIENT: &str = "192.168.77.100";
/// n3's second interface, and who is at its other end.
const FRONT: (&str, &str) = ("10.50.0.13", "10.50.0.100");

fn start<'l>(lab: &'l Lab, extra: &[&str]) -> Result<(Cluster<'l>, Netns)> {
    let (client, nodes) = (lab.client()?, nodes(lab)?);
    let mut cluster = Cluster::start_on(lab, nodes, web(ADDRESSES, 1450), extra)?;
    cluster.serve(&WEB)?;
    everything_works(&cluster, &client, ADDRESSES[2], CLIENT)?;
    Ok((cluster, client))
}

/// As udev or an operator does it; routes through it are gone, but for the connected one.
fn rename(node: &Netns, from: &str, to: &str) -> Result<()> {
    node.shell(&format!("ip link set {from} down; ip link set {from} name {to}; ip link set {to} up")).map(drop)
}

/// A new cable between a node and the switch, whose port `port` does not forward until it is a port of `br0`.
fn plug(lab: &Lab, node: &Netns, interface: &str, port: &str, address: &str) -> Result<()> {
    let switch = lab.switch();
    switch.run(&format!("ip link add {port} type veth peer name {interface} netns {}", node.name()))?;
    switch.run(&format!("ip link set {port} up"))?;
    node.run(&format!("ip addr add {address}/24 dev {interface}"))?;
    node.run(&format!("ip link set {interface} up")).map(drop)
}

/// n3 uses `interface` as its uplink and serves clients on it, at its address: one that is named is the uplink before
/// it has any.
fn taken(cluster: &Cluster<'_>, interface: &str) -> Result<Value> {
    let status = cluster.agents[2].json(&["status"])?;
    let node = &status["node"];
    ensure!(node["underlay"] == interface && node["mesh_interfaces"] == serde_json::json!([interface]), "{node}");
    ensure!(node["addresses"].as_array().is_some_and(|all| all.contains(&ADDRESSES[2].into())), "{node}");
    ensure!(status["failing"] == serde_json::json!([]), "{}", status["failing"]);
    Ok(status)
}

/// It is healthy with it, too.
fn works_with(cluster: &Cluster<'_>, interface: &str) -> Result<()> {
    let status = taken(cluster, interface)?;
    let lost = status["warnings"].to_string().contains("uplink");
    ensure!(status["healthy"] == true && !lost, "{status:#}");
    Ok(())
}

/// Within seconds: everything works through n3, and its status says so. Clients arrive on `interface` and `others`.
fn works_on(cluster: &Cluster<'_>, client: &Netns, interface: &str) -> Result<()> {
    wait_for(&format!("everything to work on {interface}"), SECONDS, || {
        let tally = peer::attempts(client, "tcp", &format!("{}:8080", ADDRESSES[2]), 4)?;
        assert_even(&tally, &WEB, 2)?;
        works_with(cluster, interface)
    })?;
    everything_works(cluster, client, ADDRESSES[2], CLIENT)
}

fn an_uplink_is_renamed(xdp: &str) {
    scenario(|lab| {
        let (cluster, client) = start(lab, &["--underlay", "auto", "--xdp", xdp])?;
        let node = &cluster.nodes[2];
        let mesh = LoadLoop::tcp(lab, &client, "192.168.77.13:8080", 2, true)?;
        let vip = LoadLoop::tcp(lab, cluster.task("user.1"), "10.0.1.2:80", 2, true)?;
        for (from, to) in [("eth0", "wan0"), ("wan0", "eth0")] {
            rename(node, from, to)?;
            works_on(&cluster, &client, to)?;
        }
        for load in [mesh, vip] {
            load.wait_answers(40)?;
            let tally = load.stop()?;
            ensure!(tally.failed == 0, "connections have not outlived it: {tally:?}");
        }
        Ok(())
    });
}

#[test]
fn an_uplink_that_is_renamed_goes_on() {
    an_uplink_is_renamed("off");
}

#[test]
fn an_uplink_with_xdp_that_is_renamed_goes_on() {
    an_uplink_is_renamed("generic");
}

/// The new interface has another index and another MAC.
fn an_uplink_is_replaced(underlay: &str, xdp: &str) {
    scenario(|lab| {
        let (cluster, client) = start(lab, &["--underlay", underlay, "--xdp", xdp])?;
        let node = &cluster.nodes[2];
        let mesh = LoadLoop::tcp(lab, &client, "192.168.77.13:8080", 2, true)?;
        mesh.wait_answers(20)?;
        node.run("ip link del eth0")?;
        wait_for("its absence to be said", SECONDS, || {
            let status = cluster.agents[2].json(&["status"])?;
            let failing = status["failing"].to_string();
            ensure!(status["healthy"] == false && failing.contains("\"underlay\""), "{status:#}");
            ensure!(status["node"]["underlay"] == "none", "{}", status["node"]);
            Ok(())
        })?;
        plug(lab, node, "eth0", "n3", ADDRESSES[2])?;
        node.run("ip route add default via 192.168.77.1")?;
        // Until the programs are attached to it, the kernel answers on a new interface, with RST for a published port.
        // A switch's port forwards later than that; and any ARP request of the node's tells clients of the new MAC.
        wait_for("the new interface to be taken", SECONDS, || taken(&cluster, "eth0").map(drop))?;
        lab.switch().run("ip link set n3 master br0")?;
        // As the new interface's first ARP packet would.
        client.run("ip neigh flush all")?;
        works_on(&cluster, &client, "eth0")?;
        mesh.wait_answers(40)?;
        let tally = mesh.stop()?;
        ensure!(tally.failed == 0, "connections have not outlived it: {tally:?}");
        Ok(())
    });
}

#[test]
fn an_uplink_that_is_replaced_comes_back() {
    an_uplink_is_replaced("auto", "off");
}

#[test]
fn a_named_uplink_with_xdp_that_is_replaced_comes_back() {
    an_uplink_is_replaced("eth0", "generic");
}

/// A named uplink is that name's: under another one it is missed, and its own one back it works again.
#[test]
fn a_named_uplink_that_is_renamed_is_missed_until_it_is_back() {
    scenario(|lab| {
        let (cluster, client) = start(lab, &["--underlay", "eth0"])?;
        let node = &cluster.nodes[2];
        rename(node, "eth0", "wan0")?;
        wait_for("its absence to be said", SECONDS, || {
            let status = cluster.agents[2].json(&["status"])?;
            let failing = status["failing"].to_string();
            ensure!(status["healthy"] == false && failing.contains("interface eth0 is gone"), "{status:#}");
            Ok(())
        })?;
        rename(node, "wan0", "eth0")?;
        works_on(&cluster, &client, "eth0")
    });
}

/// A swarm whose n3 has a second interface, `front`, and a visitor at its other end.
fn with_front<'l>(lab: &'l Lab, mesh_interfaces: &str, xdp: &str) -> Result<(Cluster<'l>, Netns)> {
    let (nodes, visitor) = (nodes(lab)?, lab.namespace("visitor")?);
    connect(&nodes[2], &visitor, "front")?;
    let mut cluster = Cluster::start_each(lab, nodes, web(ADDRESSES, 1450), |node| {
        let named = if node.label() == "n3" { mesh_interfaces } else { "all" };
        ["--mesh-interfaces", named, "--xdp", xdp].map(str::to_owned).into()
    })?;
    cluster.serve(&WEB)?;
    Ok((cluster, visitor))
}

fn connect(node: &Netns, visitor: &Netns, interface: &str) -> Result<()> {
    node.run(&format!("ip link add {interface} type veth peer name eth0 netns {}", visitor.name()))?;
    for (netns, name, address) in [(node, interface, FRONT.0), (visitor, "eth0", FRONT.1)] {
        netns.run(&format!("ip addr add {address}/24 dev {name}"))?;
        netns.run(&format!("ip link set {name} up"))?;
    }
    Ok(())
}

/// Published ports of n3 answer the visitor, or do not; `status` lists exactly these interfaces.
fn visitor_is_served(cluster: &Cluster<'_>, visitor: &Netns, so: bool, interfaces: &[&str]) -> Result<()> {
    wait_for(&format!("the visitor to be served: {so}, on {interfaces:?}"), SECONDS, || {
        let tally = peer::attempts(visitor, "tcp", &format!("{}:8080", FRONT.0), 4)?;
        if so {
            assert_even(&tally, &WEB, 2)?;
            assert_peer(&tally, FRONT.1)?;
            assert_even(&peer::attempts(visitor, "udp", &format!("{}:5353", FRONT.0), 4)?, &WEB, 2)?;
        } else {
            ensure!(tally.ok == 0, "{tally:?}");
        }
        let status = cluster.agents[2].json(&["status"])?;
        ensure!(status["node"]["mesh_interfaces"] == serde_json::json!(interfaces), "{}", status["node"]);
        let xdp = status["node"]["xdp"].as_array().into_iter().flatten();
        let xdp: Vec<_> = xdp.filter_map(|row| row["interface"].as_str()).collect();
        ensure!(xdp == interfaces, "{}", status["node"]);
        ensure!(status["healthy"] == true, "{status:#}");
        Ok(())
    })
}

fn a_client_facing_interface_is_changed(xdp: &str) {
    scenario(|lab| {
        let (cluster, visitor) = with_front(lab, "all", xdp)?;
        let node = &cluster.nodes[2];
        visitor_is_served(&cluster, &visitor, true, &["eth0", "front"])?;
        let kept = LoadLoop::tcp(lab, &visitor, &format!("{}:8080", FRONT.0), 2, true)?;
        kept.wait_answers(20)?;
        rename(node, "front", "dmz0")?;
        visitor_is_served(&cluster, &visitor, true, &["dmz0", "eth0"])?;
        kept.wait_answers(20)?;
        let tally = kept.stop()?;
        ensure!(tally.failed == 0, "connections have not outlived it: {tally:?}");
        for (old, new) in [("dmz0", "dmz0"), ("dmz0", "front")] {
            node.run(&format!("ip link del {old}"))?;
            connect(node, &visitor, new)?;
            let mut all = ["eth0", new];
            all.sort_unstable();
            visitor_is_served(&cluster, &visitor, true, &all)?;
            peer::transfer(&visitor, &format!("{}:8080", FRONT.0), 1_000_000)?;
        }
        Ok(())
    });
}

#[test]
fn a_client_facing_interface_that_is_renamed_or_replaced_answers_again() {
    a_client_facing_interface_is_changed("off");
}

#[test]
fn so_does_one_with_xdp() {
    a_client_facing_interface_is_changed("generic");
}

#[test]
fn a_named_client_facing_interface_answers_under_its_name_only() {
    scenario(|lab| {
        let (cluster, visitor) = with_front(lab, "front", "off")?;
        let node = &cluster.nodes[2];
        visitor_is_served(&cluster, &visitor, true, &["eth0", "front"])?;
        rename(node, "front", "dmz0")?;
        visitor_is_served(&cluster, &visitor, false, &["eth0"])?;
        rename(node, "dmz0", "front")?;
        visitor_is_served(&cluster, &visitor, true, &["eth0", "front"])?;
        node.run("ip link del front")?;
        wait_for("it to be missed", PATIENCE, || {
            let node = cluster.agents[2].json(&["status"])?["node"].take();
            ensure!(node["mesh_interfaces"] == serde_json::json!(["eth0"]), "{node}");
            Ok(())
        })?;
        connect(node, &visitor, "front")?;
        visitor_is_served(&cluster, &visitor, true, &["eth0", "front"])
    });
}
