//! Published ports: the routing mesh.

use anyhow::{Result, ensure};

use crate::support::{Recorder, Stage, traffic::only_client};

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
