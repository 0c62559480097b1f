//! Jobs: services whose tasks are to end. Until then the engine's own balancer serves them as it does any other.

use anyhow::{Result, ensure};
use hiveway_tests::lab::wait_for;

use crate::support::{Stage, stage::PATIENCE};

/// `--mode global-job`: a task per node, reached by name and by published port.
pub(crate) fn global(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("job", "--mode global-job --network app --publish 8080:80 demo/web:1")?;
    ensure!(stage.serving("job")?.len() == 3, "a task per node");
    stage.wait_mesh("job", 8080)?;
    stage.agree()
}

/// `--mode replicated-job`: tasks are reached, the one that replaces a failed one too, and those that have ended are
/// not.
pub(crate) fn replicated(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("job", "--mode replicated-job --replicas 4 --network app --publish 8080:80 demo/web:1")?;
    stage.create("client", "--mode global --network app demo/web:1")?;
    stage.wait_mesh("job", 8080)?;
    let tasks = stage.serving("job")?;
    ensure!(tasks.len() == 4, "{} tasks run", tasks.len());
    let victim = &tasks[0];
    stage.docker_on(&stage.node_of(victim)?, &format!("kill {}", victim.container))?;
    wait_for("the failed task to be replaced", PATIENCE, || {
        let now = stage.serving("job")?;
        ensure!(now.len() == 4 && now.iter().all(|task| task.id != victim.id), "{} tasks run", now.len());
        Ok(())
    })?;
    stage.wait_mesh("job", 8080)?;
    stage.agree()
}
