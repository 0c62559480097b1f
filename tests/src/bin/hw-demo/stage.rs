//! The demo's nodes, agents, clients, and a namespace with a web server per running task.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::symlink,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::{Agent, AgentOptions, hiveway},
    lab::{Lab, Netns, Process, wait_for},
    peer,
};

use crate::{
    capture::{Capture, Endpoint},
    show::{chapter, say},
};

/// How long a new table may take to be in force on every node.
const APPLY_LIMIT: Duration = Duration::from_secs(40);

pub(crate) struct Stage<'l> {
    pub(crate) lab: &'l Lab,
    /// By host name.
    pub(crate) nodes: BTreeMap<String, Netns>,
    pub(crate) agents: BTreeMap<String, Arc<Agent>>,
    /// 192.168.77.100, outside the nodes.
    pub(crate) client: Netns,
    /// 192.168.88.100, behind the router.
    pub(crate) outside: Netns,
    /// The table in force.
    pub(crate) capture: Capture,
    engine: PathBuf,
    netns_dir: PathBuf,
    tasks: BTreeMap<String, (Netns, Process)>,
}

impl<'l> Stage<'l> {
    /// Nodes with the addresses of the first capture, agents on them, its tasks with their servers.
    pub(crate) fn build(lab: &'l Lab) -> Result<Self> {
        chapter(
            "Three nodes, a client outside, one agent per node, the table of a real swarm (capture 02b-web3-running)",
        );
        let capture = Capture::read("02b-web3-running")?;
        let (engine, netns_dir) = (lab.directory().join("engine"), lab.directory().join("netns"));
        std::fs::create_dir_all(&engine)?;
        std::fs::create_dir_all(&netns_dir)?;
        let mut nodes = BTreeMap::new();
        for (name, address) in capture.nodes() {
            let host = address.rsplit('.').next().and_then(|byte| byte.parse().ok()).context("a node's address")?;
            nodes.insert(name.clone(), lab.node(&name, host)?);
            say(&format!("node {name}: {address}, namespace {}-{name}", lab.prefix()));
        }
        let mut stage = Self {
            lab,
            nodes,
            agents: BTreeMap::new(),
            client: lab.client()?,
            outside: lab.far_client()?,
            capture,
            engine,
            netns_dir,
            tasks: BTreeMap::new(),
        };
        stage.start_tasks(&stage.capture.endpoints())?;
        stage.capture.write(&stage.engine)?;
        stage.start_agents()?;
        stage.wait_in_force(&stage.capture)?;
        Ok(stage)
    }

    fn start_agents(&mut self) -> Result<()> {
        for (name, netns) in &self.nodes {
            let options = AgentOptions {
                node: name.clone(),
                table: format!("engine:{}", self.engine.display()),
                netns_dir: Some(self.netns_dir.clone()),
                extra: Vec::new(),
            };
            let agent = Agent::prepare(self.lab, netns, options)?;
            say(&format!("$ nsenter --net={} {}", netns.path().display(), agent.command_line()));
            agent.launch()?;
            self.agents.insert(name.clone(), agent);
        }
        for agent in self.agents.values() {
            agent.wait_ready()?;
        }
        Ok(())
    }

    /// The namespace of a task.
    pub(crate) fn task(&self, id: &str) -> Result<&Netns> {
        self.tasks.get(id).map(|(netns, _)| netns).with_context(|| format!("task {id} has no namespace"))
    }

    /// Puts a table in force: namespaces and servers for its new tasks, then the files; waits for every agent; ends the
    /// tasks that are no longer in it.
    pub(crate) fn apply(&mut self, capture: &Capture) -> Result<()> {
        let endpoints = capture.endpoints();
        self.start_tasks(&endpoints)?;
        capture.write(&self.engine)?;
        self.wait_in_force(capture)?;
        let alive: BTreeSet<&str> = endpoints.iter().map(|task| task.id.as_str()).collect();
        let gone: Vec<String> = self.tasks.keys().filter(|id| !alive.contains(id.as_str())).cloned().collect();
        for id in gone {
            std::fs::remove_file(self.netns_dir.join(&id))?;
            if let Some((netns, server)) = self.tasks.remove(&id) {
                drop(server);
                self.lab.delete_namespace(netns);
            }
        }
        self.capture = capture.clone();
        Ok(())
    }

    fn start_tasks(&mut self, endpoints: &[Endpoint]) -> Result<()> {
        for task in endpoints.iter().filter(|task| !self.tasks.contains_key(&task.id)).collect::<Vec<_>>() {
            let netns = self.lab.namespace(&format!("{}-{}", task.node, task.name))?;
            let server = peer::http_server(self.lab, &netns, 80, &format!("{}@{}", task.name, task.node))?;
            symlink(netns.path(), self.netns_dir.join(&task.id))?;
            self.tasks.insert(task.id.clone(), (netns, server));
        }
        Ok(())
    }

    fn wait_in_force(&self, capture: &Capture) -> Result<()> {
        let (backends, draining) = (capture.backends(), capture.draining());
        for (name, agent) in &self.agents {
            wait_for(&format!("agent {name} to have the table in force"), APPLY_LIMIT, || {
                let (active, leaving) = reported(&agent.json(&["service", "ls"])?);
                ensure!(active == backends && leaving == draining, "it reports {active:?}, draining {leaving:?}");
                Ok(())
            })?;
        }
        for task in capture.endpoints() {
            let netns = self.task(&task.id)?;
            wait_for(&format!("{} to be connected", task.name), APPLY_LIMIT, || {
                let addresses = netns.run("ip -4 -br addr")?;
                ensure!(addresses.contains(&format!("{}/", task.address)), "it has only {addresses}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// For `--keep`.
    pub(crate) fn how_to_look_around(&self) {
        chapter("Everything stays up until ctrl-c. Look around, in another terminal:");
        for (name, agent) in &self.agents {
            say(&format!("# node {name}"));
            if let Ok(binary) = hiveway() {
                say(&format!("{} status --socket {}", binary.display(), agent.socket().display()));
            }
            say(&format!("nsenter --net={} bash", agent.netns().path().display()));
        }
        say("# also: service ls, network ls, endpoint ls, flow ls, drops; --json where they list");
        say("# the client, which can use port 8080 of every node");
        say(&format!("nsenter --net={} curl http://192.168.77.11:8080/", self.client.path().display()));
        say("# containers");
        for (netns, _) in self.tasks.values() {
            say(&format!("nsenter --net={} curl http://10.0.1.2/", netns.path().display()));
        }
        say(&format!("# the table: swap files in {} (atomically, with mv)", self.engine.display()));
    }
}

/// Active and draining tasks of all services in `service ls --json`.
fn reported(listing: &serde_json::Value) -> (BTreeSet<String>, BTreeSet<String>) {
    let services = listing.as_array().or_else(|| listing["services"].as_array());
    let backends =
        services.into_iter().flatten().flat_map(|service| service["backends"].as_array().into_iter().flatten());
    let mut sets = (BTreeSet::new(), BTreeSet::new());
    for backend in backends {
        let task = backend["task"].as_str().unwrap_or_default().to_owned();
        if backend["state"] == "draining" {
            sets.1.insert(task)
        } else {
            sets.0.insert(task)
        };
    }
    sets
}
