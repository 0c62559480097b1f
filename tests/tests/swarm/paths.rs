//! What `hiveway check` says of the paths between nodes, on managers and on workers.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{lab::wait_for, swarm::Hiveway};
use serde_json::Value;

use crate::support::{Stage, stage::PATIENCE};

/// Agents report their paths, and the manager's names the direction that fails between two workers.
pub(crate) fn matrix(stage: &mut Stage) -> Result<()> {
    let [manager, worker] = [stage.agent("n1")?, stage.agent("n2")?];
    in_order(&manager)?;
    let shown = manager.cli(&["check"])?;
    ensure!(shown.contains("FROM \\ TO") && shown.contains("All nodes"), "{shown}");
    let own = worker.ask("check")?;
    ensure!(own["role"] == "worker" && own["nodes"].is_null() && own["all_passing"] == true, "{own:#}");
    let shown = worker.cli(&["check"])?;
    ensure!(shown.contains("`hiveway check` on a manager shows those of all nodes"), "{shown}");

    let (from, to) = (stage.node("n2")?.address(), stage.node("n3")?.address());
    let switch = stage.outside();
    switch.run("nft add table netdev paths")?;
    switch.run("nft add chain netdev paths closed { type filter hook ingress device n2 priority 0 ; }")?;
    switch.run(&format!("nft add rule netdev paths closed ip saddr {from} ip daddr {to} udp dport 4789 drop"))?;
    let named = wait_for("the manager to name the direction", PATIENCE, || {
        let check = manager.ask("check")?;
        let problems: Vec<_> = check["problems"].as_array().into_iter().flatten().collect();
        let text = format!("packets from n2 ({from}) to n3 ({to}), UDP port 4789, are lost on the way");
        let is = |problem: &&&Value| problem["problem"].as_str().is_some_and(|problem| problem.starts_with(&text));
        ensure!(problems.iter().filter(is).count() == 1, "{check:#}");
        ensure!(check["passing"] == true && check["all_passing"] == false, "{check:#}");
        Ok(())
    });
    let exit = manager.command(&["check", "--wait", "0"]).and_then(|mut command| Ok(command.output()?));
    switch.run("nft delete table netdev paths")?;
    named?;
    let exit = exit?;
    let text = String::from_utf8_lossy(&exit.stdout);
    ensure!(exit.status.code() == Some(1) && text.contains("FAILING"), "{}: {text}", exit.status);
    in_order(&manager)?;

    // An agent that does not run: its data plane answers, and its row is missing.
    worker.stop()?;
    let missed = wait_for("the manager to miss the row of n2", PATIENCE, || {
        let check = manager.ask("check")?;
        ensure!(check["problems"].to_string().contains("no report from n2 for "), "{check:#}");
        ensure!(check["all_passing"] == true, "{check:#}");
        Ok(())
    });
    worker.start(&[])?;
    missed?;
    in_order(&manager)
}

/// Waits until the manager's agent knows all rows, and all paths pass.
fn in_order(manager: &Hiveway) -> Result<()> {
    wait_for("all paths between all nodes to pass", PATIENCE, || {
        let check = manager.ask("check")?;
        ensure!(check["role"] == "manager" && check["all_passing"] == true, "{check:#}");
        let rows = check["nodes"].as_array().context("no rows")?;
        let whole = |row: &&Value| row["missing"].is_null() && row["counts"]["passing"] == 2;
        ensure!(rows.len() == 3 && rows.iter().filter(whole).count() == 3, "{check:#}");
        ensure!(check["problems"].as_array().is_some_and(Vec::is_empty), "{check:#}");
        Ok(())
    })
}
