//! Nodes, managers and agents that go away and come back.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{lab::wait_for, swarm::Hiveway};

use crate::support::{Recorder, Stage, stage::PATIENCE};

/// A node dies without a word: the others answer with what is left, then with the replacements; it comes back.
pub(crate) fn node_death_and_return(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 4 --network app --publish 8080:80 demo/web:1")?;
    stage.wait_mesh("web", 8080)?;
    let node = stage.node("n3")?;
    node.die()?;
    stage.wait_node("n3", false)?;
    stage.settle()?;
    stage.agree()?;
    node.revive()?;
    stage.wait_node("n3", true)?;
    Hiveway::on(&node).start(&[])?;
    stage.settle()?;
    stage.scale("web", 6)?;
    stage.wait_mesh("web", 8080)
}

/// A worker, then the manager, is rebooted before the swarm has called it down: engine, tasks and agent end at once,
/// the kernel forgets what it had, and all of them are started at the same time.
pub(crate) fn nodes_rebooted(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 4 --network app --publish 8080:80 demo/web:1")?;
    stage.create("client", "--mode global --network app demo/web:1")?;
    stage.wait_mesh("web", 8080)?;
    for label in ["n3", "n1"] {
        let (node, agent) = (stage.node(label)?, stage.agent(label)?);
        let before: Vec<_> = stage.tasks()?.into_iter().filter(|task| task.lives()).collect();
        node.die()?;
        node.plug_in()?;
        node.start_engine()?;
        wait_for(&format!("{label} to have its own file systems"), PATIENCE, || {
            let first = node.run("cat", &["/proc/1/comm"])?;
            ensure!(first.trim() == "docker-init", "its first process is still {first}");
            Ok(())
        })?;
        agent.launch(&[])?;
        node.wait_engine()?;
        agent.wait_ready()?;
        stage.wait_node(label, true)?;
        wait_for(&format!("the tasks of {label} to be replaced"), PATIENCE, || {
            let (nodes, now) = (stage.swarm_nodes()?, stage.tasks()?);
            let id = nodes.iter().find(|node| node.hostname == label).map(|node| node.id.as_str());
            let stale = now.iter().filter(|task| {
                task.lives() && Some(task.node.as_str()) == id && before.iter().any(|old| old.id == task.id)
            });
            ensure!(stale.count() == 0, "some are still those of before");
            Ok(())
        })?;
        stage.agree().with_context(|| format!("after the reboot of {label}"))?;
    }
    stage.scale("web", 6)?;
    stage.wait_mesh("web", 8080)
}

/// The agent of each node in turn is killed under load: traffic does not notice, and it finds everything again.
pub(crate) fn agents_killed(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 3 --network app --publish 8080:80 demo/health:1")?;
    stage.wait_mesh("web", 8080)?;
    let nodes: Vec<_> = stage.nodes().iter().map(|node| node.address()).collect();
    let load = Recorder::tcp(stage, &nodes, 8080)?;
    for agent in stage.agents() {
        agent.kill()?;
        load.wait_answers(200)?;
        agent.start(&[])?;
        load.wait_answers(50)?;
    }
    load.stop_without_loss()?;
    Ok(())
}

/// The engine of a worker, then of the manager, restarts under its agent: its containers are replaced, and the agent
/// finds engine, manager and sandboxes again by itself.
pub(crate) fn engines_restarted(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 4 --network app --publish 8080:80 demo/web:1")?;
    stage.wait_mesh("web", 8080)?;
    for label in ["n2", "n1"] {
        let node = stage.node(label)?;
        let agent = Hiveway::on(&node);
        let before = agent.ask("status")?["pid"].clone();
        node.restart_engine()?;
        for label in ["n1", "n2", "n3"] {
            stage.wait_node(label, true)?;
        }
        stage.settle()?;
        stage.agree().with_context(|| format!("after the engine of {label}"))?;
        let status = agent.ask("status")?;
        ensure!(before.is_u64() && status["pid"] == before, "another agent: {status}");
        ensure!(status["table"]["unreachable"].is_null(), "{}", status["table"]);
    }
    // What the agents knew of sandboxes and managers is not only what they had.
    stage.scale("web", 6)?;
    stage.wait_mesh("web", 8080)
}

/// A worker becomes a manager and a worker again: its agent changes where it gets the table from, unnoticed.
pub(crate) fn promote_and_demote(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 3 --network app --publish 8080:80 demo/health:1")?;
    stage.wait_mesh("web", 8080)?;
    let nodes: Vec<_> = stage.nodes().iter().map(|node| node.address()).collect();
    let load = Recorder::tcp(stage, &nodes, 8080)?;
    stage.docker("node promote n2")?;
    wait_role(stage, "n2", true)?;
    stage.scale("web", 4)?;
    stage.agree()?;
    stage.docker("node demote n2")?;
    wait_role(stage, "n2", false)?;
    stage.scale("web", 3)?;
    stage.agree()?;
    load.stop_without_loss()?;
    Ok(())
}

/// The managers lose each other: there is nobody to change the table, and traffic goes on by the last one.
pub(crate) fn quorum_lost_and_found(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 3 --network app --publish 8080:80 demo/health:1")?;
    stage.docker("node promote n2 n3")?;
    wait_role(stage, "n2", true)?;
    wait_role(stage, "n3", true)?;
    stage.wait_mesh("web", 8080)?;
    let nodes: Vec<_> = stage.nodes().iter().map(|node| node.address()).collect();
    let load = Recorder::tcp(stage, &nodes, 8080)?;
    // In the switch: a rule on the nodes might look like their own firewall's.
    let switch = stage.outside();
    switch.shell(
        "nft add table bridge lab && nft add chain bridge lab forward '{ type filter hook forward priority 0; }'",
    )?;
    switch.shell("nft add rule bridge lab forward ip protocol tcp tcp dport 2377 drop")?;
    let outcome = (|| {
        wait_for("the quorum to be lost", PATIENCE, || {
            let answers: Vec<_> = stage.nodes().iter().map(|node| node.api("/services").is_ok()).collect();
            ensure!(!answers.contains(&true), "{answers:?}");
            Ok(())
        })?;
        wait_for("every agent to say that its table is not the managers'", PATIENCE, || {
            for agent in stage.agents() {
                let status = agent.ask("status")?;
                ensure!(!status["table"]["unreachable"].is_null(), "{}", status["table"]);
            }
            Ok(())
        })?;
        load.wait_answers(500)
    })();
    switch.shell("nft delete table bridge lab")?;
    outcome?;
    for label in ["n1", "n2", "n3"] {
        stage.wait_node(label, true)?;
    }
    // Leaders change a few times until the managers have found each other.
    wait_for("the managers to take a change", PATIENCE, || stage.docker("service scale --detach web=5"))?;
    stage.settle()?;
    stage.agree()?;
    load.stop_without_loss()?;
    for label in ["n2", "n3"] {
        stage.docker_on(&stage.node("n1")?, &format!("node demote {label}"))?;
        wait_role(stage, label, false)?;
    }
    Ok(())
}

/// Waits until the node's own engine is a manager, or a worker.
fn wait_role(stage: &Stage, label: &str, manager: bool) -> Result<()> {
    let node = stage.node(label)?;
    wait_for(&format!("{label} to change its role"), PATIENCE, || {
        let seen = stage.docker_on(&node, "info --format {{.Swarm.ControlAvailable}}")?;
        ensure!(seen == manager.to_string(), "manager: {seen}");
        Ok(())
    })
}
