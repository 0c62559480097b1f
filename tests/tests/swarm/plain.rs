//! What the engines do by themselves; proves the frame.

use anyhow::{Result, ensure};

use crate::support::{
    Stage,
    traffic::{all_answer, names},
};

/// Every task reaches every other by its address, on whichever node.
pub(crate) fn overlay_across_nodes(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 3 --network app demo/web:1")?;
    let tasks = stage.serving("web")?;
    let nodes: std::collections::BTreeSet<_> = tasks.iter().map(|task| &task.node).collect();
    ensure!(nodes.len() == 3, "the tasks are on {} nodes", nodes.len());
    for client in &tasks {
        for server in &tasks {
            let tally = stage.ask_from(client, &server.addresses["app"].to_string(), 1)?;
            all_answer(&tally, &names(std::slice::from_ref(server)))?;
        }
    }
    Ok(())
}

/// The embedded DNS follows scaling; checked by the frame, here in the middle as well as at the end.
pub(crate) fn scaling_and_dns(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 2 --network app demo/web:1")?;
    stage.agree()?;
    stage.scale("web", 5)?;
    stage.agree()?;
    stage.scale("web", 1)
}
