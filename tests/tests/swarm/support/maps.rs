//! What an agent knows, compared with the API.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use hiveway_tests::swarm::Hiveway;
use serde_json::Value;

use super::{Service, Stage, Task};

impl Stage {
    /// `service ls`: the services that this node must know, and of each that it knows exactly the tasks that serve.
    pub(crate) fn backends_agree(&self, agent: &Hiveway, services: &[Service], tasks: &[Task]) -> Result<()> {
        let label = agent.node().label();
        let node = self.swarm_nodes()?.into_iter().find(|node| node.hostname == label);
        let (id, manager) = node.map_or_else(Default::default, |node| (node.id, node.manager));
        let listed = agent.ask("services")?;
        let rows = || listed.as_array().into_iter().flatten();
        for row in rows() {
            let known = services.iter().any(|service| row["id"] == service.id.as_str());
            ensure!(known, "{label} lists {}, which the API does not", row["name"]);
        }
        for service in services {
            // Without an address (ports in host mode only) there is nothing to balance.
            let balanced = |task: &&Task| task.service == service.id && task.serves() && !task.addresses.is_empty();
            let own: Vec<_> = tasks.iter().filter(balanced).collect();
            let networks: BTreeSet<_> = own.iter().flat_map(|task| task.addresses.keys()).collect();
            let joined = tasks.iter().any(|task| {
                task.node == id && task.serves() && task.addresses.keys().any(|name| networks.contains(name))
            });
            let Some(row) = rows().find(|row| row["id"] == service.id.as_str()) else {
                let must = manager || joined || !service.ports.is_empty();
                ensure!(!must, "{label} does not list {}", service.name);
                continue;
            };
            let expected: BTreeSet<_> = own.iter().map(|task| task.id.as_str()).collect();
            let backends = row["backends"].as_array().into_iter().flatten();
            let seen: BTreeSet<_> =
                backends.filter(|b| b["state"] == "active").filter_map(|b| b["task"].as_str()).collect();
            ensure!(seen == expected, "{label} has the backends {seen:?} of {}, not {expected:?}", service.name);
        }
        Ok(())
    }

    /// No endpoint and no flow is one of a task that has ended, and nothing fails or waits.
    pub(crate) fn maps_are_clean(&self, agent: &Hiveway, tasks: &[Task]) -> Result<()> {
        let label = agent.node().label();
        // Standalone containers are tasks that the API hides.
        let ended: BTreeSet<_> = tasks.iter().filter(|task| !task.lives()).map(|task| task.id.as_str()).collect();
        for what in ["endpoints", "flows"] {
            let rows = agent.ask(what)?;
            let stale: Vec<_> = rows
                .as_array()
                .into_iter()
                .flatten()
                .filter(|row| row["task"].as_str().is_some_and(|task| ended.contains(task)))
                .collect();
            ensure!(stale.is_empty(), "{label} has {what} of tasks that have ended: {stale:?}");
        }
        let status = agent.ask("status")?;
        for list in ["failing", "waiting"] {
            let rows = status[list].as_array().map_or(0, Vec::len);
            ensure!(rows == 0, "{label}: {list}: {}", status[list]);
        }
        Ok(())
    }

    /// After a story has removed its services: nothing of them is left on any node.
    pub(crate) fn nothing_left(&self) -> Result<()> {
        for agent in self.agents() {
            hiveway_tests::lab::wait_for("nothing to be left", super::stage::PATIENCE, || {
                for what in ["services", "endpoints"] {
                    let rows = agent.ask(what)?;
                    let count = rows.as_array().map_or(0, Vec::len);
                    ensure!(count == 0, "{} still has {what}: {rows}", agent.node().label());
                }
                let flows = agent.ask("flows")?;
                let of_tasks = |row: &&Value| row["kind"] != "own";
                let count = flows.as_array().into_iter().flatten().filter(of_tasks).count();
                ensure!(count == 0, "{} still has flows: {flows}", agent.node().label());
                Ok(())
            })?;
        }
        Ok(())
    }
}
