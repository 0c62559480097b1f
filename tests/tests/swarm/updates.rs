//! Rolling updates and failing health checks.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hiveway_tests::lab::wait_for;

use crate::{
    scaling::wait_update,
    support::{Recorder, Stage, recorder::last_answer_of, stage::PATIENCE, traffic::names},
};

/// 15 replicas with a health check, a new image and back again, and not one request from outside is lost.
pub(crate) fn rolling_update_and_rollback(stage: &mut Stage) -> Result<()> {
    // Fifteen checks of half a second each would keep a small machine busy with nothing else.
    let health = "--health-interval 3s --health-timeout 10s";
    let how = "--update-parallelism 3 --update-monitor 1s --rollback-parallelism 3 --rollback-monitor 1s";
    stage.create("web", &format!("--replicas 15 {health} {how} --publish 8080:80 demo/health:1"))?;
    stage.wait_mesh("web", 8080)?;
    let nodes: Vec<_> = stage.nodes().iter().map(|node| node.address()).collect();
    let first = names(&stage.serving("web")?);
    let load = Recorder::tcp(stage, &nodes, 8080)?;
    let started = Instant::now();
    stage.update("web", "--image demo/health:2")?;
    wait_update(stage, "web")?;
    stage.timing("rolling update of 15 replicas", started, Instant::now());
    ensure!(first.is_disjoint(&names(&stage.serving("web")?)), "a task was not replaced");
    load.wait_answers(100)?;
    stage.docker("service rollback --quiet --detach web")?;
    wait_update(stage, "web")?;
    let slowest = load.events().iter().map(|event| event.took).max().context("no requests")?;
    let requests = load.stop_without_loss()?;
    stage.timings.note("slowest request during update and rollback", slowest);
    ensure!(requests > 500, "only {requests} requests in all that time");
    Ok(())
}

/// A task fails its health check: no new connection gets there, long before the swarm has replaced it.
pub(crate) fn failing_health_check(stage: &mut Stage) -> Result<()> {
    stage.create("web", "--replicas 3 --publish 8080:80 demo/health:1")?;
    stage.wait_mesh("web", 8080)?;
    let nodes: Vec<_> = stage.nodes().iter().map(|node| node.address()).collect();
    let load = Recorder::tcp(stage, &nodes, 8080)?;
    for victim in stage.serving("web")? {
        stage.in_task(&victim, "touch /tmp/sick")?;
        let node = stage.node_of(&victim)?;
        let path = format!("/containers/{}/json", victim.container);
        let unhealthy = wait_for("the engine to call it unhealthy", PATIENCE, || {
            let health = &node.api(&path)?["State"]["Health"]["Status"];
            ensure!(health == "unhealthy", "{health}");
            Ok(Instant::now())
        })?;
        wait_for("the swarm to replace it", PATIENCE, || {
            let serving = stage.serving("web")?;
            if serving.iter().any(|task| task.id == victim.id) {
                bail!("it still serves")
            }
            ensure!(serving.len() == 3, "{} serve", serving.len());
            Ok(())
        })?;
        let last = last_answer_of(&load.events(), victim.name()).context("it was never asked")?;
        stage.timing("unhealthy -> last new connection", unhealthy, last);
        let late = last.saturating_duration_since(unhealthy);
        ensure!(late < Duration::from_millis(1000), "{} was asked {late:?} after it was unhealthy", victim.name());
        stage.settle()?;
    }
    load.stop_without_loss()?;
    Ok(())
}
