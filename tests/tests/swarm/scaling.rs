//! Services that change.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::lab::wait_for;

use crate::support::{Recorder, Stage, recorder::last_answer_of, stage::PATIENCE};

/// 2, 3, 9, 2 replicas while clients ask: none is turned away, and the ones that go get no new connection.
pub(crate) fn scale(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 2 --network app --publish 8080:80 demo/health:1")?;
    stage.wait_mesh("web", 8080)?;
    let nodes: Vec<_> = stage.nodes().iter().map(|node| node.address()).collect();
    let load = Recorder::tcp(stage, &nodes, 8080)?;
    for count in [3, 9] {
        stage.time_backends("scale-up seen by the API -> maps on every node", "web", count, |stage| {
            stage.docker(&format!("service scale --detach web={count}")).map(drop)
        })?;
        stage.settle()?;
        load.wait_answers(50)?;
    }
    let before = stage.serving("web")?;
    stage.docker("service scale --detach web=2")?;
    let victims = wait_for("the API to have the scale-down", PATIENCE, || {
        let left = stage.serving("web")?;
        ensure!(left.len() == 2, "{} serve", left.len());
        Ok(before.iter().filter(|task| left.iter().all(|other| other.id != task.id)).cloned().collect::<Vec<_>>())
    })?;
    let decided = Instant::now();
    stage.settle()?;
    let (so_far, requests) = (load.events(), load.stop_without_loss()?);
    ensure!(requests > 500, "only {requests} requests in all that time");
    for victim in victims {
        // It was asked before; the last time is when it left the rotation.
        let last = last_answer_of(&so_far, victim.name()).context("a task was never asked")?;
        stage.timing("scale-down seen by the API -> last new connection", decided, last);
        let late = last.saturating_duration_since(decided).as_millis();
        ensure!(late < 1000, "{} was asked {late} ms after the scale-down", victim.name());
    }
    Ok(())
}

/// Drained: the node's tasks move elsewhere, and it still answers for them. Active again: it gets new ones.
pub(crate) fn drain_and_activate(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 6 --network app --publish 8080:80 demo/health:1")?;
    stage.wait_mesh("web", 8080)?;
    let nodes: Vec<_> = stage.nodes().iter().map(|node| node.address()).collect();
    let load = Recorder::tcp(stage, &nodes, 8080)?;
    stage.node_update("n3", "--availability drain")?;
    for task in stage.serving("web")? {
        ensure!(stage.node_of(&task)?.label() != "n3", "a task is still on the drained node");
    }
    stage.agree()?;
    stage.node_update("n3", "--availability active")?;
    stage.scale("web", 9)?;
    let on_it =
        stage.serving("web")?.iter().filter(|task| stage.node_of(task).is_ok_and(|n| n.label() == "n3")).count();
    ensure!(on_it > 0, "no task on the node that is active again");
    load.stop_without_loss()?;
    Ok(())
}

/// A port is published on a running service, then leads to another port of its tasks.
pub(crate) fn ports_change(stage: &mut Stage) -> Result<()> {
    stage.create("web", "--replicas 3 --publish 8080:80 demo/health:1")?;
    stage.wait_mesh("web", 8080)?;
    let nodes: Vec<_> = stage.nodes().iter().map(|node| node.address()).collect();
    let load = Recorder::tcp(stage, &nodes, 8080)?;
    stage.update("web", "--publish-add 8090:8080 --update-monitor 1s")?;
    wait_update(stage, "web")?;
    stage.wait_mesh("web", 8090)?;
    // While tasks are replaced, some serve one target port and some the other.
    stage.update("web", "--publish-rm 80 --publish-add 8080:8080")?;
    wait_update(stage, "web")?;
    stage.wait_mesh("web", 8080)?;
    // Removed by their target port, which is now the same: this takes 8090 away, and 8080 back to where it led.
    stage.update("web", "--publish-rm 8080 --publish-add 8080:80")?;
    wait_update(stage, "web")?;
    stage.wait_mesh("web", 8080)?;
    load.stop_without_loss()?;
    for address in nodes {
        wait_for("the removed port to be refused", PATIENCE, || {
            let tally = stage.ask_mesh(address, 8090, 1)?;
            ensure!(tally.ok == 0, "{address} still answers");
            Ok(())
        })?;
    }
    Ok(())
}

/// `--publish-add` on a service that has published nothing, of both protocols; `--publish-rm` until nothing is left.
pub(crate) fn ports_come_and_go(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 3 --network app --update-monitor 1s --update-parallelism 3 demo/health:1")?;
    stage.create("beside", "--replicas 3 --network app --publish 8090:80 demo/health:1")?;
    let nodes: Vec<_> = stage.nodes().iter().map(|node| node.address()).collect();
    let load = Recorder::tcp(stage, &nodes, 8090)?;
    let closed = |port: u16| -> Result<()> {
        for address in &nodes {
            wait_for(&format!("port {port} of {address} to be refused"), PATIENCE, || {
                let tally = stage.ask_mesh(*address, port, 1)?;
                ensure!(tally.errors.keys().any(|error| error.to_lowercase().contains("refused")), "{tally:?}");
                Ok(())
            })?;
        }
        Ok(())
    };
    closed(8080)?;
    stage.update("web", "--publish-add 8080:80 --publish-add published=5300,target=53,protocol=udp")?;
    wait_update(stage, "web")?;
    stage.wait_mesh("web", 8080)?;
    stage.agree()?;
    stage.update("web", "--publish-rm 80 --publish-add 8081:80")?;
    wait_update(stage, "web")?;
    closed(8080)?;
    stage.wait_mesh("web", 8081)?;
    stage.agree()?;
    stage.update("web", "--publish-rm 53/udp --publish-rm 80")?;
    wait_update(stage, "web")?;
    closed(8081)?;
    ensure!(stage.service("web")?.ports.is_empty(), "{:?}", stage.service("web")?.ports);
    // The name goes on, and so does the service beside it.
    stage.agree()?;
    load.stop_without_loss().map(drop)
}

/// Waits until an update has been carried through.
pub(crate) fn wait_update(stage: &Stage, name: &str) -> Result<()> {
    wait_for(&format!("the update of {name}"), PATIENCE * 3, || {
        let state = stage.service(name)?.update;
        ensure!(state.ends_with("completed"), "{state}");
        Ok(())
    })?;
    stage.settle()
}
