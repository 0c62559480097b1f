//! Swarms whose overlay traffic goes elsewhere than an engine sends it by default: another port, another interface.
//!
//! Both are settled when a swarm is made, so these stories make it anew under the running engines, and again as it was.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::wait_for,
    swarm::{Hiveway, Node},
};

use crate::support::{Stage, stage::PATIENCE};

const PORT: u16 = 7789;
/// How long running agents may take to follow a swarm that was made anew: they ask their engines every two seconds, and
/// workers hear of each other's tunnel addresses over the relay.
const FOLLOW: Duration = Duration::from_secs(30);

/// `swarm init --data-path-port`, while agents run: managers' and workers' take it from the table, and the usual one
/// again.
pub(crate) fn port(stage: &mut Stage) -> Result<()> {
    let flag = PORT.to_string();
    let outcome = in_another_swarm(stage, &["--data-path-port", &flag], no_flags, |stage| {
        uses_port(stage, PORT)?;
        serves(stage)?;
        // An agent that starts now learns it as well.
        for label in ["n1", "n3"] {
            let agent = stage.agent(label)?;
            agent.stop()?;
            agent.start(&[])?;
        }
        uses_port(stage, PORT)?;
        stage.agree()
    });
    outcome?;
    uses_port(stage, 4789)?;
    serves(stage)
}

/// `--data-path-addr` on every node's second interface: tunnels end there, clients still come to the first.
pub(crate) fn address(stage: &mut Stage) -> Result<()> {
    lay_second_cables(stage)?;
    let agents: Vec<_> = stage.nodes().iter().map(Hiveway::on).collect();
    agents.iter().try_for_each(|agent| agent.teardown().map(drop))?;
    let outcome = in_another_swarm(stage, &[], second_data_path, |stage| {
        stage.swarm.start_hiveway(&[])?;
        // Until a node's agent has heard where the others' tunnels end, it takes their nodes' addresses for that, on
        // eth0.
        tunnels_end(stage, "eth1", second_address, PATIENCE)?;
        serves(stage)?;
        agents.iter().try_for_each(|agent| agent.teardown().map(drop))
    });
    // The cables before the agents, which would find two interfaces again.
    remove_second_cables(stage)?;
    outcome?;
    stage.swarm.start_hiveway(&[])?;
    serves(stage)
}

/// The same under agents that go on running: they follow to the second interface, and back.
pub(crate) fn address_changes(stage: &mut Stage) -> Result<()> {
    lay_second_cables(stage)?;
    let before = pids(stage)?;
    let outcome = in_another_swarm(stage, &[], second_data_path, |stage| {
        let anew = Instant::now();
        tunnels_end(stage, "eth1", second_address, FOLLOW)?;
        stage.timing("another data path address is followed", anew, Instant::now());
        serves(stage)
    });
    let outcome = outcome.and_then(|()| {
        tunnels_end(stage, "eth0", |node| node.address().to_string(), FOLLOW)?;
        serves(stage)?;
        let now = pids(stage)?;
        ensure!(now == before, "other agents than before: {now:?} instead of {before:?}");
        Ok(())
    });
    remove_second_cables(stage)?;
    outcome
}

/// Gives every node a second interface, on a network of its own.
fn lay_second_cables(stage: &Stage) -> Result<()> {
    let switch = stage.outside();
    switch.run("ip link add br1 type bridge forward_delay 0 mcast_snooping 0")?;
    switch.run("ip addr add 192.168.78.1/24 dev br1")?;
    switch.run("ip link set br1 up")?;
    for node in stage.nodes() {
        let (cable, netns) = (format!("{}b", node.label()), node.netns());
        switch.run(&format!("ip link add {cable} type veth peer name eth1 netns {}", netns.name()))?;
        switch.run(&format!("ip link set {cable} master br1 up"))?;
        netns.run(&format!("ip addr add {}/24 dev eth1", second_address(&node)))?;
        netns.run("ip link set eth1 up")?;
    }
    Ok(())
}

fn remove_second_cables(stage: &Stage) -> Result<()> {
    let switch = stage.outside();
    switch.run("ip link del br1")?;
    stage.nodes().iter().try_for_each(|node| switch.run(&format!("ip link del {}b", node.label())).map(drop))
}

fn second_data_path(node: &Node) -> Vec<String> {
    vec!["--data-path-addr".to_owned(), second_address(node)]
}

/// Waits until every agent has this interface alone as uplink and this tunnel address, and is healthy.
fn tunnels_end(stage: &Stage, interface: &str, address: impl Fn(&Node) -> String, limit: Duration) -> Result<()> {
    wait_for(&format!("tunnels to use {interface} alone"), limit, || {
        for agent in stage.agents() {
            let status = agent.ask("status")?;
            let (node, label) = (&status["node"], agent.node().label());
            ensure!(node["underlay"] == interface, "{label}: {node}");
            ensure!(node["vtep"] == address(agent.node()).as_str(), "{label}: {node}");
            ensure!(status["healthy"] == true, "{label}: {status}");
        }
        Ok(())
    })
}

/// The processes of all agents.
pub(crate) fn pids(stage: &Stage) -> Result<Vec<u64>> {
    stage.agents().iter().map(|agent| agent.ask("status")?["pid"].as_u64().context("an agent without a pid")).collect()
}

fn second_address(node: &Node) -> String {
    let [.., last] = node.address().octets();
    format!("192.168.78.{last}")
}

pub(crate) fn no_flags(_: &Node) -> Vec<String> {
    Vec::new()
}

/// Makes the swarm anew with these flags for the first node, and those for each, and afterwards as it was, whatever
/// came of it.
fn in_another_swarm(
    stage: &mut Stage,
    init: &[&str],
    each: impl Fn(&Node) -> Vec<String> + Sync,
    told: impl FnOnce(&mut Stage) -> Result<()>,
) -> Result<()> {
    let outcome = stage.swarm.remake(init, each).and_then(|()| told(stage));
    let outcome = outcome.and_then(|()| stage.remove_all());
    let restored = stage.swarm.remake(&[], no_flags).context("the swarm as it was");
    outcome.and(restored)
}

/// A service is reached by every way.
pub(crate) fn serves(stage: &Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 6 --network app --publish 8080:80 demo/web:1")?;
    stage.wait_mesh("web", 8080)?;
    stage.agree()
}

/// Every node's engine and agent send VXLAN to this port, and the swarm has no other nodes than these.
fn uses_port(stage: &Stage, port: u16) -> Result<()> {
    wait_for(&format!("VXLAN to use port {port}"), PATIENCE, || {
        let engine = stage.docker("info --format {{.Swarm.Cluster.DataPathPort}}")?;
        ensure!(engine == port.to_string(), "the engine says {engine}");
        for agent in stage.agents() {
            let status = agent.ask("status")?;
            let (node, table) = (&status["node"], &status["table"]);
            ensure!(node["vxlan_port"] == port, "{}: {node}", agent.node().label());
            ensure!(table["unreachable"].is_null(), "{}: {table}", agent.node().label());
        }
        Ok(())
    })
}
