//! Installing Hiveway on some nodes only, removing it, and nodes that leave the swarm.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{lab::wait_for, swarm::Hiveway};

use crate::support::{Recorder, Stage, stage::PATIENCE};

/// One node goes without Hiveway: its tasks are still reached from the others, by name and by published port.
pub(crate) fn mixed_cluster(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 3 --network app --publish 8080:80 demo/health:1")?;
    stage.wait_mesh("web", 8080)?;
    let others: Vec<_> = stage.nodes().iter().take(2).map(|node| node.address()).collect();
    let load = Recorder::tcp(stage, &others, 8080)?;
    let agent = stage.agent("n3")?;
    agent.teardown()?;
    stage.agree()?;
    load.wait_answers(200)?;
    agent.start(&[])?;
    stage.agree()?;
    load.stop_without_loss()?;
    Ok(())
}

/// Torn down, a node has nothing of Hiveway left, and what is Docker's is as it was before.
pub(crate) fn roll_back(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 3 --network app --publish 8080:80 demo/web:1")?;
    stage.wait_mesh("web", 8080)?;
    for agent in stage.agents() {
        agent.teardown()?;
        let node = agent.node();
        let programs = node.run("sh", &["-c", "bpftool net show 2>/dev/null | grep -c hiveway || true"])?;
        let pins = node.run("ls", &["-A", "/sys/fs/bpf"])?;
        let rules = node.run("nft", &["list", "tables"])?;
        ensure!(!pins.contains("hiveway"), "{} has pins: {pins}", node.label());
        ensure!(programs.trim() == "0", "{} has programs attached", node.label());
        ensure!(!rules.contains("hiveway"), "{} has tables: {rules}", node.label());
        // The overlay is the engine's: containers still reach each other.
        let tasks = stage.serving("web")?;
        let (client, server) = (tasks.first().context("no task")?, tasks.last().context("no task")?);
        let tally = stage.ask_from(client, &server.addresses["app"].to_string(), 3)?;
        ensure!(tally.failed == 0, "{:?}", tally.errors);
    }
    for node in stage.nodes() {
        Hiveway::on(&node).start(&[])?;
    }
    stage.wait_mesh("web", 8080)
}

/// A node leaves the swarm: its agent programs nothing any more. It joins again and takes part.
pub(crate) fn swarm_leave(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 3 --network app --publish 8080:80 demo/web:1")?;
    stage.wait_mesh("web", 8080)?;
    let (node, agent) = (stage.node("n3")?, stage.agent("n3")?);
    let former = stage.swarm_nodes()?.into_iter().find(|node| node.hostname == "n3").context("no n3")?;
    stage.docker_on(&node, "swarm leave")?;
    stage.wait_node("n3", false)?;
    stage.settle()?;
    wait_for("the agent of the node that left to know nothing", PATIENCE, || {
        let services = agent.ask("services")?;
        ensure!(services.as_array().is_some_and(Vec::is_empty), "{services}");
        Ok(())
    })?;
    stage.docker(&format!("node rm --force {}", former.id))?;
    let token = stage.docker("swarm join-token --quiet worker")?;
    stage.docker_on(&node, &format!("swarm join --token {token} 192.168.77.11"))?;
    stage.wait_node("n3", true)?;
    stage.scale("web", 6)?;
    stage.wait_mesh("web", 8080)
}
