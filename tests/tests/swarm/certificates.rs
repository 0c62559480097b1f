//! The swarm's certificates change under the agents, and other ways to the table.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{lab::wait_for, swarm::Node};

use crate::support::{Recorder, Stage, stage::PATIENCE};

/// The swarm gets a new root CA, and every node a new certificate: requests go on, and so do tables and reports.
pub(crate) fn ca_rotated(stage: &mut Stage) -> Result<()> {
    let load = start(stage)?;
    let root = |node: &Node| node.run("sha256sum", &["/var/lib/docker/swarm/certificates/swarm-root-ca.crt"]);
    let before = stage.nodes().iter().map(root).collect::<Result<Vec<_>>>()?;
    stage.docker("swarm ca --rotate --quiet")?;
    for (node, before) in stage.nodes().iter().zip(before) {
        wait_for(&format!("{} to have the new root", node.label()), PATIENCE, || {
            let now = root(node)?;
            ensure!(now != before, "{now}");
            Ok(())
        })?;
    }
    // Whatever is left of the old one ends with it.
    wait_for("the relay to work again", PATIENCE, || connected(stage))?;
    stage.scale("web", 5)?;
    stage.agree()?;
    // An agent that starts now knows the new root only.
    for label in ["n1", "n3"] {
        let agent = stage.agent(label)?;
        agent.stop()?;
        agent.start(&[])?;
    }
    wait_for("the relay to work with new agents", PATIENCE, || connected(stage))?;
    stage.scale("web", 3)?;
    stage.agree()?;
    load.stop_without_loss().map(drop)
}

/// The manager's key becomes unreadable for the agent: it says so and how to help, the rest goes on; and comes back.
pub(crate) fn autolocked(stage: &mut Stage) -> Result<()> {
    let load = start(stage)?;
    let (manager, agent) = (stage.node("n1")?, stage.agent("n1")?);
    stage.docker("swarm update --autolock=true")?;
    wait_for("the key to be encrypted", PATIENCE, || {
        let key = manager.run("cat", &["/var/lib/docker/swarm/certificates/swarm-node.key"])?;
        ensure!(key.contains("ENCRYPTED"), "{}", key.lines().next().unwrap_or_default());
        Ok(())
    })?;
    agent.stop()?;
    agent.start(&[])?;
    wait_for("the agent to say why it serves no tables", PATIENCE, || {
        let relay = agent.ask("status")?["relay"].take();
        ensure!(relay.to_string().contains("--autolock=false"), "{relay}");
        Ok(())
    })?;
    load.wait_answers(100)?;
    stage.docker("swarm update --autolock=false")?;
    wait_for("the relay to work again", PATIENCE, || connected(stage))?;
    stage.scale("web", 4)?;
    stage.agree()?;
    load.stop_without_loss().map(drop)
}

/// An agent that is told where its tables come from.
pub(crate) fn relay_by_address(stage: &mut Stage) -> Result<()> {
    let load = start(stage)?;
    let agent = stage.agent("n3")?;
    agent.stop()?;
    agent.start(&["--table", "relay:192.168.77.11:4788"])?;
    let status = agent.ask("status")?;
    ensure!(status["table"]["source"].to_string().contains("relay"), "{}", status["table"]);
    stage.scale("web", 5)?;
    stage.agree()?;
    agent.stop()?;
    agent.start(&[])?;
    stage.scale("web", 3)?;
    stage.agree()?;
    load.stop_without_loss().map(drop)
}

/// A published service, and a request loop to all nodes.
fn start(stage: &Stage) -> Result<Recorder> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 3 --network app --publish 8080:80 demo/health:1")?;
    stage.wait_mesh("web", 8080)?;
    let nodes: Vec<_> = stage.nodes().iter().map(|node| node.address()).collect();
    Recorder::tcp(stage, &nodes, 8080)
}

/// The manager's agent has those of both workers connected, and theirs are tables of now.
fn connected(stage: &Stage) -> Result<()> {
    let relay = stage.agent("n1")?.ask("status")?["relay"].take();
    let agents = relay["agents"].as_array().context("no relay")?;
    ensure!(agents.len() == 2, "{relay}");
    for agent in stage.agents() {
        let table = agent.ask("status")?["table"].take();
        ensure!(table["unreachable"].is_null(), "{table}");
    }
    Ok(())
}
