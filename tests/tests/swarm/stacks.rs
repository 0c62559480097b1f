//! `docker stack`.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::lab::wait_for;

use crate::{
    scaling::wait_update,
    support::{Recorder, Stage, stage::PATIENCE, traffic::names},
};

/// Two stacks have a service `web` each, on a network of their own: a name means one's own.
pub(crate) fn same_names(stage: &mut Stage) -> Result<()> {
    for (stack, port) in [("one", 8081), ("two", 8082)] {
        deploy(stage, stack, port)?;
    }
    stage.settle()?;
    stage.agree()?;
    for (stack, port) in [("one", 8081), ("two", 8082)] {
        let own = names(&stage.serving(&format!("{stack}_web"))?);
        for client in stage.serving(&format!("{stack}_client"))? {
            let tally = stage.ask_from(&client, "web", 4)?;
            let foreign: Vec<_> = tally.names.keys().filter(|name| !own.contains(*name)).collect();
            ensure!(tally.failed == 0 && foreign.is_empty(), "in stack {stack}: {tally:?}");
        }
        stage.wait_mesh(&format!("{stack}_web"), port)?;
    }
    Ok(())
}

/// `docker stack rm` under load: the other stack notices nothing, and nothing of this one stays.
pub(crate) fn removed_under_load(stage: &mut Stage) -> Result<()> {
    for (stack, port) in [("one", 8081), ("two", 8082)] {
        deploy(stage, stack, port)?;
    }
    stage.settle()?;
    stage.wait_mesh("one_web", 8081)?;
    stage.wait_mesh("two_web", 8082)?;
    let nodes: Vec<_> = stage.nodes().iter().map(|node| node.address()).collect();
    let (goes, stays) = (Recorder::tcp(stage, &nodes, 8081)?, Recorder::tcp(stage, &nodes, 8082)?);
    stage.docker("stack rm one")?;
    for address in &nodes {
        wait_for("the removed port to be refused", PATIENCE, || {
            let tally = stage.ask_mesh(*address, 8081, 1)?;
            ensure!(tally.ok == 0, "{address} still answers");
            Ok(())
        })?;
    }
    stage.settle()?;
    stays.wait_answers(100)?;
    stays.stop_without_loss()?;
    // Its own load fails once it is gone, of course; it must not have hung.
    let events = goes.stop()?;
    let slow = events.iter().filter(|event| event.took.as_secs() >= 4).count();
    ensure!(slow == 0, "{slow} of {} requests hung", events.len());
    stage.agree()
}

/// `docker stack deploy` with a health check in the file: who fails it is out of rotation and replaced, and a second
/// deployment changes what the file changes.
pub(crate) fn with_healthcheck(stage: &mut Stage) -> Result<()> {
    let file = |image: &str, replicas: u32| {
        format!(
            "version: '3.8'
services:
  web:
    image: {image}
    ports: ['8080:80']
    stop_grace_period: 2s
    healthcheck: {{test: [CMD, test, '!', -e, /tmp/sick], interval: 1s, timeout: 5s, retries: 2}}
    deploy: {{replicas: {replicas}, update_config: {{parallelism: 1, monitor: 1s}}}}
"
        )
    };
    deploy_file(stage, "one", &file("demo/web:1", 3))?;
    stage.settle()?;
    stage.wait_mesh("one_web", 8080)?;
    let nodes: Vec<_> = stage.nodes().iter().map(|node| node.address()).collect();
    let load = Recorder::tcp(stage, &nodes, 8080)?;
    let victim = stage.serving("one_web")?.into_iter().next().context("no task")?;
    stage.in_task(&victim, "touch /tmp/sick")?;
    wait_for("the sick task to be replaced", PATIENCE, || {
        let serving = stage.serving("one_web")?;
        let replaced = serving.len() == 3 && serving.iter().all(|task| task.id != victim.id);
        ensure!(replaced, "{} serve", serving.len());
        Ok(())
    })?;
    stage.agree()?;
    deploy_file(stage, "one", &file("demo/web:2", 5))?;
    wait_update(stage, "one_web")?;
    ensure!(stage.serving("one_web")?.len() == 5, "five replicas");
    stage.wait_mesh("one_web", 8080)?;
    load.stop_without_loss()?;
    stage.agree()
}

/// A stack of two services on a network of its own.
fn deploy(stage: &Stage, stack: &str, port: u16) -> Result<()> {
    let text = format!(
        "version: '3.8'
services:
  web:
    image: demo/health:1
    ports: ['{port}:80']
    stop_grace_period: 2s
    deploy: {{replicas: 2}}
  client:
    image: demo/web:1
    stop_grace_period: 2s
    deploy: {{mode: global}}
"
    );
    deploy_file(stage, stack, &text)
}

fn deploy_file(stage: &Stage, stack: &str, text: &str) -> Result<()> {
    let file = stage.swarm.place().directory().join(format!("{stack}.yml"));
    fs::write(&file, text)?;
    let how = "stack deploy --resolve-image never --compose-file";
    stage.docker(&format!("{how} {} {stack}", file.display())).map(drop)
}
