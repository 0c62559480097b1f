//! A cluster in a lab: nodes, an agent on each, a namespace per task, one table for all.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::{Agent, AgentOptions},
    lab::{Lab, Netns, PATIENCE, Process, wait_for},
    load::Tally,
    peer,
    stock::Stock,
    table::Table,
};
use serde_json::{Value, json};

pub(crate) struct Cluster<'l> {
    pub(crate) lab: &'l Lab,
    pub(crate) table: Table,
    /// n1, n2, ... in order.
    pub(crate) nodes: Vec<Netns>,
    /// One per node, in the same order.
    pub(crate) agents: Vec<Arc<Agent>>,
    pub(crate) file: PathBuf,
    tasks: BTreeMap<String, Netns>,
    servers: BTreeMap<String, Vec<Process>>,
    /// What engines would make.
    stock: Stock,
}

impl<'l> Cluster<'l> {
    /// Nodes n1 to n`count` with an agent each; every task of the table gets a namespace.
    pub(crate) fn start(lab: &'l Lab, count: u8, table: Table) -> Result<Self> {
        Self::start_with(lab, count, table, &[])
    }

    /// As [`Cluster::start`], with further arguments for the agents.
    pub(crate) fn start_with(lab: &'l Lab, count: u8, table: Table, extra: &[&str]) -> Result<Self> {
        let nodes = (1..=count).map(|n| lab.node(&format!("n{n}"), 10 + n)).collect::<Result<Vec<_>>>()?;
        Self::start_on(lab, nodes, table, extra)
    }

    /// As [`Cluster::start_with`], on nodes that are there already.
    pub(crate) fn start_on(lab: &'l Lab, nodes: Vec<Netns>, table: Table, extra: &[&str]) -> Result<Self> {
        let extra: Vec<_> = extra.iter().map(|&word| word.to_owned()).collect();
        Self::start_each(lab, nodes, table, |_| extra.clone())
    }

    /// As [`Cluster::start_on`], with arguments of its own for each node's agent.
    pub(crate) fn start_each(
        lab: &'l Lab,
        nodes: Vec<Netns>,
        table: Table,
        extra: impl Fn(&Netns) -> Vec<String>,
    ) -> Result<Self> {
        let file = lab.directory().join("table.json");
        let mut cluster = Self {
            lab,
            table,
            nodes,
            agents: Vec::new(),
            file,
            tasks: BTreeMap::new(),
            servers: BTreeMap::new(),
            stock: Stock::default(),
        };
        cluster.create_task_namespaces()?;
        cluster.table.write(&cluster.file)?;
        for node in &cluster.nodes {
            let options = AgentOptions {
                node: node.label().to_owned(),
                table: format!("file:{}", cluster.file.display()),
                netns_dir: None,
                extra: extra(node),
            };
            let agent = Agent::prepare(lab, node, options)?;
            agent.launch()?;
            cluster.agents.push(agent);
        }
        for agent in &cluster.agents {
            agent.wait_ready()?;
        }
        cluster.settle()?;
        Ok(cluster)
    }

    /// The namespace of a task.
    pub(crate) fn task(&self, id: &str) -> &Netns {
        self.tasks.get(id).unwrap_or_else(|| panic!("no namespace for task {id}"))
    }

    /// An HTTP server on 80/tcp and a UDP server on 53/udp in each of these tasks, named like the task.
    pub(crate) fn serve(&mut self, tasks: &[&str]) -> Result<()> {
        for &task in tasks {
            let netns = self.task(task).clone();
            let servers =
                vec![peer::http_server(self.lab, &netns, 80, task)?, peer::udp_server(self.lab, &netns, 53, task)?];
            self.servers.insert(task.to_owned(), servers);
        }
        Ok(())
    }

    /// Changes the table; returns when every agent has it in force.
    pub(crate) fn change(&mut self, edit: impl FnOnce(&mut Table)) -> Result<()> {
        self.write(edit)?;
        self.settle()
    }

    /// Changes the table; the agents read it some time after.
    pub(crate) fn write(&mut self, edit: impl FnOnce(&mut Table)) -> Result<()> {
        edit(&mut self.table);
        self.create_task_namespaces()?;
        self.table.write(&self.file)
    }

    /// Ends a task's processes and deletes its namespace, as an engine does.
    pub(crate) fn end_task(&mut self, task: &str) {
        self.servers.remove(task);
        if let Some(netns) = self.tasks.remove(task) {
            self.lab.delete_namespace(netns);
        }
    }

    /// Ends a task without a word: no FIN or RST of its processes leaves the namespace.
    pub(crate) fn crash_task(&mut self, task: &str) -> Result<()> {
        let netns = self.task(task);
        for interface in netns.interfaces()? {
            netns.run(&format!("ip link set {interface} down"))?;
        }
        self.end_task(task);
        Ok(())
    }

    /// Waits until every agent reports exactly the table's backends, and every local task is connected.
    pub(crate) fn settle(&self) -> Result<()> {
        let expected = expected_backends(self.table.value());
        for agent in &self.agents {
            let what = format!("agent {} to have the new table in force", agent.netns().label());
            wait_for(&what, PATIENCE, || {
                let seen = reported_backends(&agent.json(&["service", "ls"])?);
                ensure!(seen == expected, "it reports {seen:?} instead of {expected:?}");
                // Paths to nodes that a scenario has no agent on fail.
                let status = agent.json(&["status"])?;
                let idle = |list: &str| status[list].as_array().is_some_and(Vec::is_empty);
                let settled = status["ready"] == true && idle("failing") && idle("waiting");
                ensure!(settled && status["table"]["refused"].is_null(), "{status:#}");
                Ok(())
            })?;
        }
        for task in self.table.value()["tasks"].as_array().into_iter().flatten() {
            let Some(netns) = task["id"].as_str().and_then(|id| self.tasks.get(id)) else { continue };
            if !is_endpoint(task) || !self.has_agent(task) {
                continue;
            }
            for address in task["addresses"].as_object().into_iter().flatten().filter_map(|(_, ip)| ip.as_str()) {
                wait_for(&format!("{} to have {address}", netns.label()), PATIENCE, || {
                    let addresses = netns.run("ip -4 -br addr")?;
                    ensure!(addresses.contains(&format!("{address}/")), "it has {addresses}");
                    // Addresses come before the agent sets up the other ends: until then nothing can be sent.
                    let mut interfaces = addresses.lines().filter(|line| line.starts_with("eth"));
                    let up = interfaces.all(|line| line.split_whitespace().nth(1) == Some("UP"));
                    ensure!(up, "not all is connected: {addresses}");
                    Ok(())
                })?;
            }
        }
        self.lab.refresh_offloads()
    }

    fn has_agent(&self, task: &Value) -> bool {
        self.agents.iter().any(|agent| task["node_id"] == agent.netns().label())
    }

    pub(crate) fn create_task_namespaces(&mut self) -> Result<()> {
        let mut missing = Vec::new();
        for task in self.table.value()["tasks"].as_array().into_iter().flatten() {
            let id = task["id"].as_str().context("a task without an id")?;
            if is_endpoint(task) && !self.tasks.contains_key(id) {
                missing.push(id.to_owned());
            }
        }
        for id in missing {
            let netns = self.lab.namespace(&format!("t-{id}"))?;
            self.table.item_mut("tasks", &id)["netns"] = json!(netns.path());
            let task = self.table.item_mut("tasks", &id).clone();
            self.stock.plug(self.lab, &self.nodes, self.table.value(), &task, &netns)?;
            self.tasks.insert(id, netns);
        }
        self.stock.sync(self.table.value())
    }
}

/// The usual small swarm: three nodes, `web.1`, `web.2`, ... on the nodes given, and `user.1` to ask them.
///
/// `web` has the VIPs 10.0.1.2 and 10.0.0.5 and `ports` (protocol, published, target); web.N has 10.0.1.(2+N) and
/// 10.0.0.(5+N), user.1 10.0.1.9.
pub(crate) fn web_table(nodes: &[&str], ports: &[(&str, u16, u16)], user: &str) -> Table {
    let table = Table::with_nodes(3).ingress().network("app", "10.0.1", 4097);
    let table = table.service("web").vip("ingress", "10.0.0.5").vip("app", "10.0.1.2");
    let table =
        ports.iter().fold(table, |table, (protocol, published, target)| table.publish(protocol, *published, *target));
    let table = (1..).zip(nodes).fold(table, |table, (slot, node)| {
        let (ingress, app) = (format!("10.0.0.{}", 5 + slot), format!("10.0.1.{}", 2 + slot));
        table.task(&format!("web.{slot}"), "web", node, &[("ingress", &ingress), ("app", &app)])
    });
    table.service("user").task("user.1", "user", user, &[("app", "10.0.1.9")])
}

/// As operators set it: source validation on every node.
pub(crate) fn strict(cluster: &Cluster<'_>) -> Result<()> {
    cluster.nodes.iter().try_for_each(|node| node.run("sysctl -qw net.ipv4.conf.all.rp_filter=1").map(drop))
}

/// Where agents serve metrics that scenarios read: `--metrics`.
pub(crate) const METRICS: [&str; 2] = ["--metrics", "127.0.0.1:9464"];

/// The value of a series, like `hiveway_path_up{peer="192.0.2.1"}`; `None` if there is no such series.
pub(crate) fn metric(node: &Netns, series: &str) -> Result<Option<f64>> {
    let text = node.enter(|| -> Result<String> {
        let mut stream = TcpStream::connect(METRICS[1])?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })??;
    ensure!(text.contains("# EOF"), "not metrics: {text}");
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map(|value| value.parse().with_context(|| format!("{series} is {value}"))).transpose()
}

/// Fails unless these series have these values.
pub(crate) fn assert_metrics(node: &Netns, expected: &[(&str, Option<f64>)]) -> Result<()> {
    expected.iter().try_for_each(|(series, value)| {
        let seen = metric(node, series)?;
        ensure!(seen == *value, "{series} is {seen:?}, not {value:?}");
        Ok(())
    })
}

fn is_endpoint(task: &Value) -> bool {
    ["assigned", "accepted", "preparing", "ready", "starting", "running"].iter().any(|&state| task["state"] == state)
}

/// Service → task → "active" or "draining", by the rules of the table (ready nodes only).
fn expected_backends(table: &Value) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut services: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for service in table["services"].as_array().into_iter().flatten() {
        services.insert(word(&service["id"]), BTreeMap::new());
    }
    for task in table["tasks"].as_array().into_iter().flatten() {
        if task["state"] != "running" || task["addresses"].as_object().is_none_or(serde_json::Map::is_empty) {
            continue;
        }
        let state = if task["desired_state"] == "running" { "active" } else { "draining" };
        if let Some(backends) = services.get_mut(&word(&task["service_id"])) {
            backends.insert(word(&task["id"]), state.to_owned());
        }
    }
    services
}

fn reported_backends(listing: &Value) -> BTreeMap<String, BTreeMap<String, String>> {
    let rows = listing.as_array().or_else(|| listing["services"].as_array());
    let mut services: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for service in rows.into_iter().flatten() {
        let backends = services.entry(word(&service["id"])).or_default();
        for backend in service["backends"].as_array().into_iter().flatten() {
            backends.insert(word(&backend["task"]), word(&backend["state"]));
        }
    }
    services
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Fails unless every request was answered and each of `names` answered exactly `each` times.
pub(crate) fn assert_even(tally: &Tally, names: &[&str], each: u64) -> Result<()> {
    let expected: BTreeMap<String, u64> = names.iter().map(|&name| (name.to_owned(), each)).collect();
    ensure!(tally.failed == 0, "{} of {} failed: {:?}", tally.failed, tally.ok + tally.failed, tally.errors);
    ensure!(tally.names == expected, "uneven: {:?}, expected {each} each of {names:?}", tally.names);
    Ok(())
}

/// Fails unless all of `count` requests were refused, rather than left without an answer.
pub(crate) fn assert_refused(tally: &Tally, count: u64) -> Result<()> {
    let refused = tally.errors.keys().all(|why| why.contains("refused"));
    ensure!(tally.failed == count && tally.ok == 0 && refused, "not all refused: {tally:?}");
    Ok(())
}

/// Fails unless the servers saw exactly this client address.
pub(crate) fn assert_peer(tally: &Tally, address: &str) -> Result<()> {
    ensure!(
        tally.peers.len() == 1 && tally.peers.contains_key(address),
        "servers saw {:?} instead of {address}",
        tally.peers
    );
    Ok(())
}
