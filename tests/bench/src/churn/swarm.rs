//! The table of an invented swarm.

use hiveway_tests::{lab::Netns, table::Table};
use serde_json::{Value, json};

/// Tasks of a service.
const PER_SERVICE: u32 = 5;
/// The first published port.
const FIRST_PORT: u16 = 20_000;
/// Nodes, the agent's included.
const NODES: u8 = 20;

/// How many tasks there may be: /16 subnets hold them, and their services' VIPs.
pub(super) struct Limits {
    pub(super) least: u32,
    pub(super) most: u32,
}

pub(super) const LIMITS: Limits = Limits { least: PER_SERVICE, most: 50_000 };

/// A swarm in which the agent's node has one task, a client; the others are elsewhere.
pub(super) struct Swarm {
    services: u32,
    table: Value,
    user: Value,
}

impl Swarm {
    pub(super) fn new(tasks: u32, user: &Netns) -> Self {
        let services = tasks / PER_SERVICE;
        let user = json!({
            "id": "user.1", "service_id": "user", "slot": 1, "node_id": "n1", "desired_state": "running",
            "state": "running", "addresses": {"app": app(0xffff)}, "netns": user.path(),
        });
        let mut swarm = Self { services, table: Value::Null, user };
        swarm.table = swarm.with(services);
        swarm
    }

    pub(super) fn services(&self) -> u32 {
        self.services
    }

    pub(super) fn table(&self) -> &Value {
        &self.table
    }

    /// Nodes, networks and the client only.
    pub(super) fn empty(&self) -> Value {
        self.with(0)
    }

    /// The published port that is written last, and its backends.
    pub(super) fn last_port(&self) -> (u16, u16) {
        (port(self.services - 1), PER_SERVICE as u16)
    }

    /// Ends a task that runs, or lets it run again; returns its service's port and how many backends that has now.
    pub(super) fn change(&mut self, number: usize) -> (u16, u16) {
        let ends = number.is_multiple_of(2);
        // Pairs of changes in different places.
        let service = (number as u32 / 2).wrapping_mul(7919) % self.services;
        let state = if ends { "shutdown" } else { "running" };
        let index = 1 + (service * PER_SERVICE) as usize;
        if let Some(task) = self.table["tasks"].get_mut(index) {
            task["desired_state"] = json!(state);
            task["state"] = json!(state);
        }
        (port(service), PER_SERVICE as u16 - u16::from(ends))
    }

    fn with(&self, services: u32) -> Value {
        let mut table =
            Table::with_nodes(NODES).ingress().network("app", "10.1.0", 4097).service("user").value().clone();
        for (network, subnet) in [(0, "10.0.0"), (1, "10.1.0")] {
            let subnets = &mut table["networks"][network]["subnets"][0];
            subnets["subnet"] = json!(format!("{subnet}.0/16"));
        }
        let mut all = vec![self.user.clone()];
        let mut listed: Vec<Value> = table["services"].as_array().cloned().unwrap_or_default();
        for service in 0..services {
            let id = format!("s{service}");
            let first = 2 + service * (PER_SERVICE + 1);
            listed.push(json!({
                "id": id, "name": id, "virtual_ips": {"app": app(first), "ingress": ingress(first)},
                "ports": [{"protocol": "tcp", "target_port": 80, "published_port": port(service), "publish_mode": "ingress"}],
            }));
            for slot in 1..=PER_SERVICE {
                let node = 2 + (service * PER_SERVICE + slot) % (u32::from(NODES) - 1);
                all.push(json!({
                    "id": format!("{id}.{slot}"), "service_id": id, "slot": slot, "node_id": format!("n{node}"),
                    "desired_state": "running", "state": "running",
                    "addresses": {"app": app(first + slot), "ingress": ingress(first + slot)},
                }));
            }
        }
        table["services"] = Value::Array(listed);
        table["tasks"] = Value::Array(all);
        table
    }
}

fn port(service: u32) -> u16 {
    FIRST_PORT + service as u16
}

fn app(number: u32) -> String {
    address(1, number)
}

fn ingress(number: u32) -> String {
    address(0, number)
}

fn address(network: u8, number: u32) -> String {
    let [_, _, high, low] = number.min(0xfffe).to_be_bytes();
    format!("10.{network}.{high}.{low}")
}
