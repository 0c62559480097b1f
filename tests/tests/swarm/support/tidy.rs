//! Between stories: the swarm as it was, whatever the story has done to it.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{lab::wait_for, swarm::Hiveway};

use super::{Stage, stage::PATIENCE};

impl Stage {
    /// Nodes up, active, n1 the only manager; no services, no networks; agents running; nothing left in the maps.
    pub(crate) fn tidy(&self) -> Result<()> {
        for node in self.nodes() {
            if node.engine().pid().is_none() {
                if node.netns().path().exists() {
                    node.start_engine().and_then(|()| node.wait_engine())
                } else {
                    node.revive()
                }
                .with_context(|| format!("{} does not come back", node.label()))?;
            }
        }
        self.remove_all()?;
        self.restore_nodes()?;
        if self.hiveway {
            for node in self.nodes() {
                let agent = Hiveway::on(&node);
                if !agent.runs() {
                    agent.start(&[])?;
                }
            }
            self.nothing_left()?;
        } else {
            self.agents().iter().try_for_each(|agent| agent.teardown().map(drop))?;
        }
        Ok(())
    }

    /// No containers, services and networks of stories any more.
    pub(crate) fn remove_all(&self) -> Result<()> {
        for node in self.nodes() {
            // Standalone containers; those of services go with their services.
            let containers = self.docker_on(&node, "ps --all --quiet --filter label=story")?;
            for container in containers.lines() {
                self.docker_on(&node, &format!("rm --force {container}"))?;
            }
        }
        for service in self.services()? {
            self.docker(&format!("service rm {}", service.id))?;
        }
        wait_for("the services' tasks to end", PATIENCE, || {
            let left = self.tasks()?.into_iter().filter(|task| task.lives()).count();
            ensure!(left == 0, "{left} live");
            Ok(())
        })?;
        let list = "network ls --no-trunc --filter type=custom --format {{.ID}}={{.Name}}";
        let of_story = |(_, name): &(&str, &str)| !matches!(*name, "ingress" | "docker_gwbridge");
        let said = self.docker(&format!("{list} --filter scope=swarm"))?;
        for (id, name) in said.lines().filter_map(|line| line.split_once('=')).filter(of_story) {
            // Refused until the last task has let go of it.
            wait_for(&format!("network {name} to go"), PATIENCE, || self.docker(&format!("network rm {id}")))?;
        }
        for node in self.nodes() {
            let said = self.docker_on(&node, &format!("{list} --filter scope=local"))?;
            for (id, _) in said.lines().filter_map(|line| line.split_once('=')).filter(of_story) {
                self.docker_on(&node, &format!("network rm {id}"))?;
            }
        }
        Ok(())
    }

    fn restore_nodes(&self) -> Result<()> {
        for node in self.nodes() {
            self.wait_node(node.label(), true)?;
        }
        for node in self.swarm_nodes()? {
            if !node.active {
                self.docker(&format!("node update --availability active {}", node.id))?;
            }
            if node.manager && node.hostname != "n1" {
                self.docker_on(&self.node("n1")?, &format!("node demote {}", node.id))?;
            }
        }
        Ok(())
    }
}
