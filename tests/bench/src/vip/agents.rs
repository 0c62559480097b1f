//! Pairs of nodes with agents: clients come in at the first one, the server is on the second one.

use std::sync::Arc;

use anyhow::{Result, ensure};
use hiveway_tests::{
    agent::{Agent, AgentOptions},
    lab::{Lab, Netns, PATIENCE, wait_for},
    table::Table,
};
use serde_json::json;

use super::stage::{CONNECTIONS, REQUESTS};

/// How the agents of a pair are started.
#[derive(Debug)]
pub(super) struct Mode {
    /// Stable name, of its path in the JSON too.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    nodes: [&'static str; 2],
    /// Last bytes of their addresses.
    pub(super) hosts: [u8; 2],
    /// `--xdp native`; otherwise as the bench was told.
    native: bool,
    /// `--mesh-return dsr`.
    dsr: bool,
}

/// The first one has the overlay network, too.
pub(super) const MODES: [Mode; 4] = [
    Mode {
        name: "mesh",
        title: "from outside: Hiveway, published port",
        nodes: ["n1", "n2"],
        hosts: [11, 12],
        native: false,
        dsr: false,
    },
    Mode {
        name: "mesh_native",
        title: "from outside: Hiveway, native XDP",
        nodes: ["x1", "x2"],
        hosts: [21, 22],
        native: true,
        dsr: false,
    },
    Mode {
        name: "mesh_dsr",
        title: "from outside: Hiveway, direct server return (DSR)",
        nodes: ["d1", "d2"],
        hosts: [23, 24],
        native: false,
        dsr: true,
    },
    Mode {
        name: "mesh_native_dsr",
        title: "from outside: Hiveway, native XDP + DSR",
        nodes: ["b1", "b2"],
        hosts: [25, 26],
        native: true,
        dsr: true,
    },
];

/// Two nodes with their agents.
pub(super) struct Pair {
    pub(super) mode: &'static Mode,
    pub(super) server: Netns,
    agents: Vec<Arc<Agent>>,
}

impl Pair {
    /// `container`: a client on the overlay network of the first mode. `xdp`: of the agents, unless the mode says.
    pub(super) fn start(lab: &Lab, mode: &'static Mode, container: &Netns, xdp: &str) -> Result<Self> {
        let [first, second] = mode.nodes;
        let with_overlay = mode.name == MODES[0].name;
        let server = lab.namespace(&format!("server-{second}"))?;
        let (mut table, mut nodes) = (Table::new(), Vec::new());
        for (label, host) in mode.nodes.into_iter().zip(mode.hosts) {
            nodes.push(lab.node(label, host)?);
            table = table.node(label, &format!("192.168.77.{host}"));
        }
        table = table.ingress();
        if with_overlay {
            table = table.network("app", "10.0.1", 4097).service("client");
            table = table.task("client.1", "client", first, &[("app", "10.0.1.3")]);
            table = table.set("tasks", "netns", json!(container.path()));
        }
        table = table.service("server");
        if with_overlay {
            table = table.vip("app", "10.0.1.2");
        }
        let (app, ingress) = (("app", "10.0.1.5"), ("ingress", "10.0.0.5"));
        let addresses = if with_overlay { vec![app, ingress] } else { vec![ingress] };
        table = table
            .publish("tcp", REQUESTS, REQUESTS)
            .publish("tcp", CONNECTIONS, CONNECTIONS)
            .task("server.1", "server", second, &addresses)
            .set("tasks", "netns", json!(server.path()));
        let file = lab.directory().join(format!("table-{first}.json"));
        table.write(&file)?;
        let xdp = if mode.native { "native" } else { xdp };
        let mut extra = ["--xdp", xdp].map(str::to_owned).to_vec();
        if mode.dsr {
            extra.extend(["--mesh-return", "dsr"].map(str::to_owned));
        }
        let mut agents = Vec::new();
        for node in &nodes {
            if xdp == "native" {
                lab.prepare_for_xdp(node.label())?;
            }
            let (node_id, table) = (node.label().to_owned(), format!("file:{}", file.display()));
            let options = AgentOptions { node: node_id, table, netns_dir: None, extra: extra.clone() };
            agents.push(Agent::start(lab, node, options)?);
        }
        let pair = Self { mode, server, agents };
        pair.wait_ready(with_overlay.then_some(container))?;
        Ok(pair)
    }

    fn wait_ready(&self, container: Option<&Netns>) -> Result<()> {
        for agent in &self.agents {
            wait_for("the published port's backend", PATIENCE, || {
                let services = agent.json(&["service", "ls"])?;
                let server = services.as_array().and_then(|all| all.iter().find(|service| service["name"] == "server"));
                let ready =
                    server.and_then(|server| server["backends"].as_array()).is_some_and(|backends| backends.len() == 1);
                ensure!(ready, "{services}");
                Ok(())
            })?;
        }
        let overlay = container.is_some();
        for netns in container.into_iter().chain([&self.server]) {
            wait_for("a container's interfaces", PATIENCE, || {
                let addresses = netns.run("ip -4 -br addr")?;
                let ready = addresses.contains("172.18.") && (!overlay || addresses.contains("10.0.1."));
                ensure!(ready, "it has {addresses}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Whether it has carried packets as the mode says.
    pub(super) fn check(&self) -> Result<()> {
        let [ingress, backend] = &self.agents[..] else { return Ok(()) };
        let counted = [(self.mode.native, ingress, "xdp_forward"), (self.mode.dsr, backend, "mesh_direct_reply")];
        for (wanted, agent, counter) in counted {
            ensure!(!wanted || agent.counter(counter)? > 0, "{}: no packet is counted as {counter}", self.mode.title);
        }
        Ok(())
    }
}
