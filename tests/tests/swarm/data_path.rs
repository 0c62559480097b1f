//! Swarms whose overlay traffic goes elsewhere than an engine sends it by default: another port, another interface.
//!
//! Both are settled when a swarm is made, so these stories make it anew under the running engines, and again as it was.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::wait_for,
    swarm::{Hiveway, Node},
};

use crate::support::{Stage, stage::PATIENCE};

const PORT: u16 = 7789;

/// `swarm init --data-path-port`, while agents run: managers' and workers' take it from the table, and the usual one again.
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
    let agents: Vec<_> = stage.nodes().iter().map(Hiveway::on).collect();
    agents.iter().try_for_each(|agent| agent.teardown().map(drop))?;
    let flags = |node: &Node| vec!["--data-path-addr".to_owned(), second_address(node)];
    let outcome = in_another_swarm(stage, &[], flags, |stage| {
        stage.swarm.start_hiveway(&[])?;
        // Until a node's agent has heard where the others' tunnels end, it takes their nodes' addresses for that, on eth0.
        wait_for("tunnels to use eth1 alone", PATIENCE, || {
            for agent in stage.agents() {
                let node = &agent.ask("status")?["node"];
                ensure!(node["underlay"] == "eth1", "{}: {node}", agent.node().label());
                ensure!(node["vtep"] == second_address(agent.node()).as_str(), "{}: {node}", agent.node().label());
            }
            Ok(())
        })?;
        serves(stage)?;
        agents.iter().try_for_each(|agent| agent.teardown().map(drop))
    });
    // The cables before the agents, which would find two interfaces again.
    switch.run("ip link del br1")?;
    stage.nodes().iter().try_for_each(|node| switch.run(&format!("ip link del {}b", node.label())).map(drop))?;
    outcome?;
    stage.swarm.start_hiveway(&[])?;
    serves(stage)
}

fn second_address(node: &Node) -> String {
    let [.., last] = node.address().octets();
    format!("192.168.78.{last}")
}

fn no_flags(_: &Node) -> Vec<String> {
    Vec::new()
}

/// Makes the swarm anew with these flags for the first node, and those for each, and afterwards as it was, whatever came
/// of it.
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
fn serves(stage: &Stage) -> Result<()> {
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
