//! Published ports: the routing mesh.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::wait_for,
    swarm::{Hiveway, Node},
};

use crate::support::{
    Recorder, Stage,
    stage::PATIENCE,
    traffic::{all_answer, names, only_client},
};

/// Three replicas, curl on all nodes; every task sees the client's own address.
pub(crate) fn three_replicas(stage: &mut Stage) -> Result<()> {
    stage.create("web", "--replicas 3 --publish 8080:80 demo/web:1")?;
    stage.wait_mesh("web", 8080)?;
    for node in stage.nodes() {
        let said = stage.curl(&format!("http://{}:8080/", node.address()))?;
        ensure!(said.contains("peer=192.168.77.1:"), "{said}");
        let tally = stage.ask_mesh(node.address(), 8080, 9)?;
        only_client(&tally, "192.168.77.1")?;
        // Round robin per node, whatever was asked before.
        ensure!(tally.names.values().all(|&count| count == 3), "{:?}", tally.names);
    }
    Ok(())
}

/// One task per node; a node that is asked answers with all of them.
pub(crate) fn global_service(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("agent", "--mode global --network app --publish 8080:80 demo/web:1")?;
    ensure!(stage.serving("agent")?.len() == 3, "a task per node");
    stage.wait_mesh("agent", 8080)
}

/// UDP: answered on every node, client address kept, and it follows scaling.
pub(crate) fn udp(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("dns", "--replicas 2 --network app --publish 5300:53/udp demo/health:1")?;
    for node in stage.nodes() {
        let tally = stage.ask_mesh_udp(node.address(), 5300, 8)?;
        ensure!(tally.failed == 0, "{:?}", tally.errors);
        only_client(&tally, "192.168.77.1")?;
    }
    let nodes: Vec<_> = stage.nodes().iter().map(|node| node.address()).collect();
    let load = Recorder::udp(stage, &nodes, 5300)?;
    stage.scale("dns", 4)?;
    load.wait_answers(100)?;
    load.stop_without_loss()?;
    stage.agree()?;
    let tasks = stage.serving("dns")?;
    let vip = stage.service("dns")?.vips.into_iter().find(|(_, vip)| !vip.octets().starts_with(&[10, 0, 0]));
    let (_, vip) = vip.ok_or_else(|| anyhow::anyhow!("no VIP on app"))?;
    let tally = stage.ask_udp_from(&tasks[0], &format!("{vip}:53"), 8)?;
    ensure!(tally.failed == 0 && tally.names.len() == 4, "{tally:?}");
    Ok(())
}

/// An internal network has no way out, but the ingress network does: the published port answers.
pub(crate) fn internal_network(stage: &mut Stage) -> Result<()> {
    stage.network("inside", "--internal")?;
    stage.create("web", "--replicas 3 --network inside --publish 8080:80 demo/web:1")?;
    stage.wait_mesh("web", 8080)
}

/// Ports in host mode are the engine's: only nodes with a task answer, each with its own.
pub(crate) fn host_mode(stage: &mut Stage) -> Result<()> {
    stage.create("web", "--mode global --publish mode=host,published=8081,target=80 demo/web:1")?;
    for task in stage.serving("web")? {
        let address = stage.node_of(&task)?.address();
        let tally = stage.ask_mesh(address, 8081, 4)?;
        ensure!(tally.failed == 0 && tally.names.keys().eq([task.name()]), "{tally:?}");
    }
    Ok(())
}

/// Bound to one node's address, a port answers there alone, though the engines would lead it to a task at every
/// address; for processes of the nodes, too.
pub(crate) fn bound(stage: &mut Stage) -> Result<()> {
    let [bound, other] = [stage.node("n1")?, stage.node("n2")?];
    let label = format!("--label hiveway.addresses={}", bound.address());
    stage.create("web", &format!("--mode global --publish 8080:80 {label} demo/web:1"))?;
    let servers = names(&stage.serving("web")?);
    let asked = || stage.ask_mesh(bound.address(), 8080, 6);
    wait_for("the port to answer where it is bound", PATIENCE, || all_answer(&asked()?, &servers))?;
    let agent = Hiveway::on(&other);
    wait_for("the port to be closed elsewhere", PATIENCE, || {
        let before = refused(&agent)?;
        let elsewhere = stage.ask_mesh(other.address(), 8080, 1)?;
        ensure!(elsewhere.ok == 0, "it answers at {}: {elsewhere:?}", other.address());
        ensure!(refused(&agent)? > before, "nothing was dropped: {}", agent.cli(&["drops"])?);
        Ok(())
    })?;
    ensure!(answers(&bound, &bound.address().to_string()), "not for processes of the node itself");
    ensure!(
        !answers(&bound, "127.0.0.1") && !answers(&other, &other.address().to_string()),
        "for processes, elsewhere"
    );

    stage.update("web", "--label-rm hiveway.addresses")?;
    stage.wait_mesh("web", 8080)?;
    ensure!(answers(&bound, "127.0.0.1") && answers(&other, &other.address().to_string()), "not bound any more");
    Ok(())
}

/// Whether a process of the node is served at that address.
fn answers(node: &Node, address: &str) -> bool {
    let url = format!("http://{address}:8080/");
    node.run("curl", &["--silent", "--show-error", "--max-time", "3", &url]).is_ok_and(|said| said.contains("name="))
}

/// How many packets were dropped because the client may not.
fn refused(agent: &Hiveway) -> Result<u64> {
    let drops = agent.ask("drops")?;
    let rows = drops.as_array().or_else(|| drops["drops"].as_array()).context("no rows")?;
    let row = rows.iter().find(|row| row["reason"] == "not_allowed");
    Ok(row.and_then(|row| row["packets"].as_u64()).unwrap_or(0))
}

/// A container on the engine's default bridge reaches published ports at its own node's address; and nothing that the
/// engine itself listens with stands in a port's way.
pub(crate) fn default_bridge(stage: &mut Stage) -> Result<()> {
    stage.create("web", "--replicas 3 --publish 8080:80 demo/web:1")?;
    stage.wait_mesh("web", 8080)?;
    let servers = names(&stage.serving("web")?);
    for node in stage.nodes() {
        let name = format!("plain-{}", node.label());
        stage.docker_on(&node, &format!("run --detach --label story --name {name} demo/web:1"))?;
        wait_for(&format!("the port to answer a container of {}", node.label()), PATIENCE, || {
            let url = format!("http://{}:8080/", node.address());
            let script = format!("for i in 1 2 3 4 5 6; do curl --silent --max-time 3 {url} || exit 1; done");
            let said = node.docker(&["exec", &name, "sh", "-c", &script])?;
            let seen =
                said.split_whitespace().filter_map(|word| word.strip_prefix("name=")).map(str::to_owned).collect();
            ensure!(servers == seen, "{said}");
            Ok(())
        })?;
        let status = Hiveway::on(&node).ask("status")?;
        ensure!(status["shadowed"].as_array().is_some_and(Vec::is_empty), "{}", status["shadowed"]);
        ensure!(status["dead_ports"].is_null() && status["healthy"] == true, "{status:#}");
    }
    Ok(())
}
