//! After every story: for every running service the API, DNS, VIP, mesh and `service ls` agree.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{lab::wait_for, swarm::Hiveway};

use super::{
    Service, Stage, Task,
    stage::PATIENCE,
    traffic::{all_answer, names},
};

/// The ports that the images serve.
const HTTP: [u16; 2] = [80, 8080];
const DNS: u16 = 53;
/// How long agents may lag behind the API.
const LAG: Duration = Duration::from_secs(20);

impl Stage {
    /// Fails if anything disagrees with the API, or a map holds anything stale.
    pub(crate) fn agree(&self) -> Result<()> {
        self.settle()?;
        for agent in self.agents() {
            self.agent_agrees(&agent)?;
        }
        for service in self.services()? {
            let tasks = self.serving(&service.name)?;
            if !tasks.is_empty() {
                self.service_agrees(&service, &tasks).with_context(|| format!("service {}", service.name))?;
            }
        }
        Ok(())
    }

    fn service_agrees(&self, service: &Service, tasks: &[Task]) -> Result<()> {
        let names = names(tasks);
        let twice = 2 * names.len();
        let (ids, all) = (self.network_ids()?, self.tasks()?);
        for (network, vip) in ids.iter().filter(|(_, name)| name != "ingress") {
            let clients = all.iter().filter(|task| task.serves() && task.addresses.contains_key(vip));
            let clients = one_per_node(clients);
            if !tasks.iter().any(|task| task.addresses.contains_key(vip)) {
                continue;
            }
            for client in clients {
                let place = || format!("from {} on network {vip}", client.name());
                self.dns_agrees(service, tasks, client, network, vip).with_context(place)?;
                if let Some(address) = service.vips.get(network)
                    && self.takes_over(client)?
                {
                    let asked = || all_answer(&self.ask_from(client, &address.to_string(), twice)?, &names);
                    wait_for("the VIP to be balanced over all tasks", LAG, asked).with_context(place)?;
                }
            }
        }
        for &(ref protocol, published, target) in &service.ports {
            for agent in self.agents() {
                let address = agent.node().address();
                let what = format!("{published}/{protocol} on {}", agent.node().label());
                let count = u32::try_from(twice)?;
                wait_for(&what, LAG, || match (protocol.as_str(), target) {
                    ("tcp", port) if HTTP.contains(&port) => {
                        all_answer(&self.ask_mesh(address, published, count)?, &names)
                    }
                    ("udp", DNS) => all_answer(&self.ask_mesh_udp(address, published, count)?, &names),
                    // Nobody serves there.
                    _ => Ok(()),
                })?;
            }
        }
        Ok(())
    }

    /// The service's name gives its VIP (or tasks), `tasks.` its tasks. The engines gossip about names: it takes a
    /// while.
    fn dns_agrees(&self, service: &Service, tasks: &[Task], client: &Task, id: &str, network: &str) -> Result<()> {
        let addresses: std::collections::BTreeSet<Ipv4Addr> =
            tasks.iter().filter_map(|task| task.addresses.get(network)).copied().collect();
        // With several networks in common the engine answers for any of them.
        if client.addresses.keys().filter(|name| *name != "ingress").count() > 1 {
            return Ok(());
        }
        let expected = service.vips.get(id).map_or_else(|| addresses.clone(), |vip| [*vip].into());
        let tasks_name = format!("tasks.{}", service.name);
        for (name, expected) in [(&service.name, &expected), (&tasks_name, &addresses)] {
            wait_for(&format!("{name} to resolve"), PATIENCE, || {
                let seen = self.resolve(client, name)?;
                ensure!(seen == *expected, "it gives {seen:?} instead of {expected:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    fn agent_agrees(&self, agent: &Hiveway) -> Result<()> {
        let label = agent.node().label();
        wait_for(&format!("the agent of {label} to agree with the API"), LAG, || {
            let (services, tasks) = (self.services()?, self.tasks()?);
            self.backends_agree(agent, &services, &tasks)?;
            self.maps_are_clean(agent, &tasks)
        })
    }

    /// Whether a task's node balances VIPs itself.
    fn takes_over(&self, task: &Task) -> Result<bool> {
        Ok(Hiveway::on(&self.node_of(task)?).runs())
    }

    /// Ids and names of the overlay networks.
    pub(crate) fn network_ids(&self) -> Result<Vec<(String, String)>> {
        let said = self.docker("network ls --no-trunc --filter driver=overlay --format {{.ID}}={{.Name}}")?;
        let pairs = said.lines().filter_map(|line| line.split_once('='));
        Ok(pairs.map(|(id, name)| (id.to_owned(), name.to_owned())).collect())
    }
}

fn one_per_node<'t>(tasks: impl Iterator<Item = &'t Task>) -> Vec<&'t Task> {
    let mut chosen: Vec<&Task> = Vec::new();
    for task in tasks {
        if !chosen.iter().any(|other| other.node == task.node) {
            chosen.push(task);
        }
    }
    chosen
}
