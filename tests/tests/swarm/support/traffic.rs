//! Requests: from outside to published ports, and in containers.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{lab::wait_for, load::Tally, peer};

use super::{Stage, Task};

impl Stage {
    /// `count` TCP connections from outside to a published port of one node.
    pub(crate) fn ask_mesh(&self, node: Ipv4Addr, port: u16, count: u32) -> Result<Tally> {
        peer::tcp_load(&self.outside(), &format!("{node}:{port}"), count, 1)
    }

    /// `count` UDP requests from outside to a published port of one node.
    pub(crate) fn ask_mesh_udp(&self, node: Ipv4Addr, port: u16, count: u32) -> Result<Tally> {
        peer::udp_load(&self.outside(), &format!("{node}:{port}"), count)
    }

    /// `curl` from outside, as one types it: what it prints.
    pub(crate) fn curl(&self, url: &str) -> Result<String> {
        self.outside().run(&format!("curl --silent --show-error --max-time 5 {url}"))
    }

    /// Runs a shell command in a task's container: stdout.
    pub(crate) fn in_task(&self, task: &Task, script: &str) -> Result<String> {
        self.node_of(task)?.docker(&["exec", &task.container, "sh", "-c", script])
    }

    /// `count` requests with curl in a task's container, one after the other. `host` is a name or an address.
    pub(crate) fn ask_from(&self, task: &Task, host: &str, count: usize) -> Result<Tally> {
        let curl = format!("curl --silent --show-error --max-time 5 http://{host}/ 2>&1 || echo failed $?");
        let said = self.in_task(task, &format!("for i in $(seq {count}); do {curl}; done"))?;
        let mut tally = Tally::default();
        for line in said.lines() {
            if line.starts_with("name=") { tally.answer(line, 0) } else { tally.failure(line) }
        }
        Ok(tally)
    }

    /// As [`Stage::ask_from`] with UDP; `target` is an address and a port.
    pub(crate) fn ask_udp_from(&self, task: &Task, target: &str, count: usize) -> Result<Tally> {
        let said = self.in_task(task, &format!("hw-lab-peer udp-load --target {target} --count {count}"))?;
        serde_json::from_str(&said).with_context(|| said)
    }

    /// The addresses that the engine's DNS gives for a name in a task's container, without its own (the VIP's or
    /// tasks').
    pub(crate) fn resolve(&self, task: &Task, name: &str) -> Result<BTreeSet<Ipv4Addr>> {
        // The first address is the server's; the query for IPv6 makes busybox fail whatever the other has said.
        let said = self.in_task(task, &format!("nslookup {name} 2>&1 || true"))?;
        let after = said.split_once("Name:").map_or("", |(_, rest)| rest);
        Ok(after.lines().filter_map(|line| line.strip_prefix("Address: ")?.trim().parse().ok()).collect())
    }

    /// Waits until every one of these nodes answers on a published port, and with exactly the service's tasks.
    pub(crate) fn wait_mesh(&self, service: &str, port: u16) -> Result<()> {
        for node in self.nodes() {
            wait_for(&format!("{service} on {}:{port}", node.label()), Duration::from_secs(30), || {
                let names = names(&self.serving(service)?);
                let tally = self.ask_mesh(node.address(), port, 2 * u32::try_from(names.len())?)?;
                all_answer(&tally, &names)
            })?;
        }
        Ok(())
    }
}

/// What these tasks answer with.
pub(crate) fn names(tasks: &[Task]) -> BTreeSet<String> {
    tasks.iter().map(|task| task.name().to_owned()).collect()
}

/// Fails unless exactly these have answered, and every request was answered.
pub(crate) fn all_answer(tally: &Tally, names: &BTreeSet<String>) -> Result<()> {
    let seen: BTreeSet<_> = tally.names.keys().cloned().collect();
    ensure!(tally.failed == 0, "{} of {} failed: {:?}", tally.failed, tally.failed + tally.ok, tally.errors);
    ensure!(seen == *names, "answers of {seen:?} instead of {names:?}");
    Ok(())
}

/// Fails unless the servers have seen this client alone.
pub(crate) fn only_client(tally: &Tally, client: &str) -> Result<()> {
    ensure!(tally.peers.keys().eq([client]), "the servers saw {:?} instead of {client}", tally.peers);
    Ok(())
}
