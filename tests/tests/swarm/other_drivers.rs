//! Services on swarm-scoped networks of other drivers than overlay. Their tasks have no interface on docker_gwbridge:
//! the network of their own is the way out.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::lab::wait_for;

use crate::support::Stage;

/// A bridge of every node's own, with a published port.
pub(crate) fn bridge(stage: &mut Stage) -> Result<()> {
    stage.docker("network create --driver bridge --scope swarm local")?;
    published_on(stage, "local")
}

/// Macvlan on every node's eth0, with a published port.
pub(crate) fn macvlan(stage: &mut Stage) -> Result<()> {
    for node in stage.nodes() {
        let [.., last] = node.address().octets();
        let range = format!("--subnet 192.168.79.0/24 --ip-range 192.168.79.{}/28", 16 * (last - 10));
        stage.docker_on(&node, &format!("network create --config-only {range} --opt parent=eth0 lan-config"))?;
    }
    stage.docker("network create --driver macvlan --scope swarm --config-from lan-config lan")?;
    published_on(stage, "lan")
}

/// No request hangs: it is answered, or refused at once where `status` says which task can't be reached, and why. A
/// service beside it is served as ever.
fn published_on(stage: &mut Stage, network: &str) -> Result<()> {
    stage.create("beside", "--replicas 3 --publish 8081:80 demo/web:1")?;
    stage.create("web", &format!("--replicas 3 --network {network} --publish 8080:80 demo/web:1"))?;
    let tasks = stage.serving("web")?;
    ensure!(tasks.len() == 3, "{} tasks run", tasks.len());
    for node in stage.nodes() {
        wait_for(&format!("every request to {} to end at once", node.label()), Duration::from_secs(30), || {
            for _ in 0..2 * tasks.len() {
                let begun = Instant::now();
                let tally = stage.ask_mesh(node.address(), 8080, 1)?;
                let took = begun.elapsed();
                let refused = tally.errors.keys().all(|error| error.to_lowercase().contains("refused"));
                ensure!(tally.ok == 1 || refused, "after {took:?}: {tally:?}");
            }
            Ok(())
        })?;
    }
    for task in &tasks {
        let node = stage.node_of(task)?;
        let answered = stage.ask_mesh(node.address(), 8080, 3)?.failed == 0;
        let status = stage.agent(node.label())?.ask("status")?.to_string();
        let named = status.contains(&task.id) || status.contains(&task.container);
        ensure!(answered || named, "{}: nothing is said of {}: {status}", node.label(), task.id);
    }
    stage.wait_mesh("beside", 8081)?;
    // The frame would ask for answers.
    stage.docker("service rm web").context("the end").map(drop)
}
