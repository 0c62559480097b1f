//! A story's view of the swarm: `docker` on its nodes, and what the API says.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::{Netns, wait_for},
    swarm::{Hiveway, Node, Swarm},
};

use super::{Service, Task, api::SwarmNode, timings::Timings};

/// How long the engines may take for what they do in seconds on an idle machine, and in minutes in an emulated one on a
/// busy machine. Never the claim of a story.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// The swarm that all stories share, one after the other.
pub(crate) struct Stage {
    pub(crate) swarm: Swarm,
    /// Hiveway is to run on every node between stories.
    pub(crate) hiveway: bool,
    pub(crate) timings: Timings,
}

impl Stage {
    /// n1, n2 and n3.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        self.swarm.nodes()
    }

    /// The node of this label.
    pub(crate) fn node(&self, label: &str) -> Result<Node> {
        self.swarm.node(label)
    }

    /// The agent of the node of this label.
    pub(crate) fn agent(&self, label: &str) -> Result<Hiveway> {
        Ok(Hiveway::on(&self.node(label)?))
    }

    /// The agents that run.
    pub(crate) fn agents(&self) -> Vec<Hiveway> {
        self.nodes().iter().map(Hiveway::on).filter(Hiveway::runs).collect()
    }

    /// The client outside, 192.168.77.1.
    pub(crate) fn outside(&self) -> Netns {
        self.swarm.switch()
    }

    /// The first node whose engine answers as a manager with a quorum.
    pub(crate) fn manager(&self) -> Result<Node> {
        wait_for("a manager to answer", PATIENCE, || {
            let answers = |node: &Node| node.engine().pid().is_some() && node.api("/services").is_ok();
            self.nodes().into_iter().find(answers).context("none does")
        })
    }

    /// `docker LINE` on a manager; the line is split at blanks.
    pub(crate) fn docker(&self, line: &str) -> Result<String> {
        self.docker_on(&self.manager()?, line)
    }

    /// `docker LINE` on a node; the line is split at blanks.
    pub(crate) fn docker_on(&self, node: &Node, line: &str) -> Result<String> {
        Ok(node.docker(&line.split_whitespace().collect::<Vec<_>>())?.trim().to_owned())
    }

    /// An overlay network.
    pub(crate) fn network(&self, name: &str, options: &str) -> Result<()> {
        self.docker(&format!("network create --driver overlay {options} {name}")).map(drop)
    }

    /// `docker service create --name NAME OPTIONS_AND_IMAGE`, and waits until it runs.
    pub(crate) fn create(&self, name: &str, options_and_image: &str) -> Result<()> {
        let flags = "service create --quiet --detach --no-resolve-image --stop-grace-period 2s";
        self.docker(&format!("{flags} --name {name} {options_and_image}"))?;
        self.settle()
    }

    /// `docker service update OPTIONS NAME`, without waiting.
    pub(crate) fn update(&self, name: &str, options: &str) -> Result<()> {
        self.docker(&format!("service update --quiet --detach --no-resolve-image {options} {name}")).map(drop)
    }

    /// `docker service scale NAME=COUNT`, and waits until so many run and no others.
    pub(crate) fn scale(&self, name: &str, count: u64) -> Result<()> {
        // Managers that have just become more or fewer take no change for a moment: that is the engines' affair.
        let command = format!("service scale --detach {name}={count}");
        wait_for("the managers to take a change", PATIENCE, || self.docker(&command))?;
        self.settle()
    }

    /// All services.
    pub(crate) fn services(&self) -> Result<Vec<Service>> {
        Ok(self.list("/services")?.iter().map(Service::parse).collect())
    }

    /// The service of this name.
    pub(crate) fn service(&self, name: &str) -> Result<Service> {
        self.services()?.into_iter().find(|service| service.name == name).with_context(|| format!("no service {name}"))
    }

    /// All tasks, the ended ones too.
    pub(crate) fn tasks(&self) -> Result<Vec<Task>> {
        Ok(self.list("/tasks")?.iter().map(Task::parse).collect())
    }

    /// The tasks of a service that serve, in the order of their slots.
    pub(crate) fn serving(&self, service: &str) -> Result<Vec<Task>> {
        let id = self.service(service)?.id;
        let mut tasks: Vec<_> = self.tasks()?.into_iter().filter(|task| task.service == id && task.serves()).collect();
        tasks.sort_by_key(|task| task.slot);
        Ok(tasks)
    }

    /// The swarm's nodes, those that are down too.
    pub(crate) fn swarm_nodes(&self) -> Result<Vec<SwarmNode>> {
        Ok(self.list("/nodes")?.iter().map(SwarmNode::parse).collect())
    }

    /// The node that a task is on.
    pub(crate) fn node_of(&self, task: &Task) -> Result<Node> {
        let nodes = self.swarm_nodes()?;
        let node = nodes.iter().find(|node| node.id == task.node).context("the task's node is not in the swarm")?;
        self.node(&node.hostname)
    }

    /// `docker node update OPTIONS LABEL`, and waits until tasks have moved.
    pub(crate) fn node_update(&self, label: &str, options: &str) -> Result<()> {
        self.docker(&format!("node update {options} {label}"))?;
        self.settle()
    }

    /// Waits until the swarm calls a node ready, or not ready.
    pub(crate) fn wait_node(&self, label: &str, ready: bool) -> Result<()> {
        wait_for(&format!("{label} to be ready: {ready}"), PATIENCE, || {
            let nodes = self.swarm_nodes()?;
            let found = nodes.iter().any(|node| node.hostname == label && node.ready == ready);
            ensure!(found, "{nodes:?}");
            Ok(())
        })
    }

    /// Waits until every service has the tasks that it is to have, all of them serve, and no other task runs.
    pub(crate) fn settle(&self) -> Result<()> {
        wait_for("the swarm to settle", PATIENCE, || self.settled())
    }

    fn settled(&self) -> Result<()> {
        let (tasks, nodes) = (self.tasks()?, self.swarm_nodes()?);
        let usable = |id: &str| nodes.iter().any(|node| node.id == id && node.ready);
        for service in self.services()? {
            let global = nodes.iter().filter(|node| node.ready && node.active).count() as u64;
            let wanted = service.replicas.unwrap_or(global);
            let own = || tasks.iter().filter(|task| task.service == service.id && usable(&task.node));
            let serving = own().filter(|task| task.serves()).count() as u64;
            ensure!(serving == wanted, "{serving} of {wanted} tasks of {} serve: {:?}", service.name, brief(own()));
            let busy: Vec<_> = own().filter(|task| task.lives() && !task.serves()).collect();
            ensure!(busy.is_empty(), "tasks of {} come or go: {:?}", service.name, brief(busy.into_iter()));
            let updating = matches!(service.update.as_str(), "updating" | "rollback_started");
            ensure!(!updating, "the update of {} goes on: {}", service.name, service.update);
        }
        let services = self.services()?;
        let orphans = tasks.iter().filter(|task| {
            task.lives() && usable(&task.node) && !services.iter().any(|service| service.id == task.service)
        });
        let orphans: Vec<_> = orphans.filter(|task| !task.service.is_empty()).collect();
        ensure!(orphans.is_empty(), "tasks of removed services: {:?}", brief(orphans.into_iter()));
        Ok(())
    }

    /// Notes how long something took, for the list at the end.
    pub(crate) fn timing(&mut self, what: &str, from: Instant, to: Instant) {
        self.timings.note(what, to.saturating_duration_since(from));
    }

    fn list(&self, path: &str) -> Result<Vec<serde_json::Value>> {
        // Of any manager: asking who is one first would double the calls.
        let answer = self.nodes().iter().find_map(|node| node.api(path).ok());
        let answer = answer.map_or_else(|| self.manager()?.api(path), Ok)?;
        answer.as_array().cloned().with_context(|| format!("{path}: {answer}"))
    }
}

fn brief<'t>(tasks: impl Iterator<Item = &'t Task>) -> Vec<String> {
    let alive = tasks.filter(|task| task.lives() || task.desired == "running");
    alive.map(|task| format!("{} {} {}/{}", task.slot, task.name(), task.desired, task.state)).collect()
}
