//! Builds `file:` task tables.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

/// A task table in the making. Later changes go through [`Table::task_mut`] and the like.
#[derive(Clone, Debug)]
pub struct Table(Value);

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

impl Table {
    /// A table without anything in it.
    pub fn new() -> Self {
        Self(json!({"version": 1, "nodes": [], "networks": [], "services": [], "tasks": []}))
    }

    /// Nodes n1, n2, ... with the lab's addresses 192.168.77.11, .12, ...
    pub fn with_nodes(count: u8) -> Self {
        (1..=count).fold(Self::new(), |table, n| table.node(&format!("n{n}"), &format!("192.168.77.{}", 10 + n)))
    }

    /// Adds a node.
    #[must_use]
    pub fn node(self, id: &str, address: &str) -> Self {
        self.push("nodes", json!({"id": id, "hostname": id, "address": address}))
    }

    /// Adds the ingress network: 10.0.0.0/24, VNI 4096.
    #[must_use]
    pub fn ingress(self) -> Self {
        let subnet = json!({"subnet": "10.0.0.0/24", "gateway": "10.0.0.1", "vni": 4096});
        self.push("networks", json!({"id": "ingress", "name": "ingress", "subnets": [subnet], "ingress": true}))
    }

    /// Adds a /24 network: `subnet` is its first three bytes, such as `10.0.1`.
    #[must_use]
    pub fn network(self, id: &str, subnet: &str, vni: u32) -> Self {
        let subnet = json!({"subnet": format!("{subnet}.0/24"), "gateway": format!("{subnet}.1"), "vni": vni});
        self.push("networks", json!({"id": id, "name": id, "subnets": [subnet]}))
    }

    /// Adds a service without virtual addresses and ports.
    #[must_use]
    pub fn service(self, id: &str) -> Self {
        self.push("services", json!({"id": id, "name": id, "virtual_ips": {}, "ports": []}))
    }

    /// Gives the last service an address on a network.
    #[must_use]
    pub fn vip(mut self, network: &str, address: &str) -> Self {
        self.last("services")["virtual_ips"][network] = json!(address);
        self
    }

    /// Publishes a port of the last service in ingress mode.
    #[must_use]
    pub fn publish(mut self, protocol: &str, published: u16, target: u16) -> Self {
        let port = json!({"protocol": protocol, "target_port": target, "published_port": published, "publish_mode": "ingress"});
        if let Some(ports) = self.last("services")["ports"].as_array_mut() {
            ports.push(port);
        }
        self
    }

    /// Adds a running task; `addresses` are pairs of network and address. The slot is the number after the last dot.
    #[must_use]
    pub fn task(self, id: &str, service: &str, node: &str, addresses: &[(&str, &str)]) -> Self {
        let slot: u64 = id.rsplit('.').next().and_then(|slot| slot.parse().ok()).unwrap_or(1);
        let addresses: Map<String, Value> =
            addresses.iter().map(|(network, address)| ((*network).to_owned(), json!(address))).collect();
        self.push(
            "tasks",
            json!({"id": id, "service_id": service, "slot": slot, "node_id": node,
                   "desired_state": "running", "state": "running", "addresses": addresses}),
        )
    }

    /// Sets a field of the item that was added last to `list`.
    #[must_use]
    pub fn set(mut self, list: &str, field: &str, value: Value) -> Self {
        self.last(list)[field] = value;
        self
    }

    /// The item of `list` with this id.
    pub fn item_mut(&mut self, list: &str, id: &str) -> &mut Value {
        let items = self.0[list].as_array_mut().expect("lists of a table are arrays");
        items.iter_mut().find(|item| item["id"] == id).unwrap_or_else(|| panic!("no {id} in {list}"))
    }

    /// Sets a task's desired and actual state.
    pub fn set_states(&mut self, task: &str, desired: &str, actual: &str) {
        let task = self.item_mut("tasks", task);
        task["desired_state"] = json!(desired);
        task["state"] = json!(actual);
    }

    /// Takes an item out.
    pub fn remove(&mut self, list: &str, id: &str) {
        if let Some(items) = self.0[list].as_array_mut() {
            items.retain(|item| item["id"] != id);
        }
    }

    /// The table as JSON.
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// Writes it as JSON, with an atomic rename.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_atomically(path, &serde_json::to_string_pretty(&self.0)?)
    }

    fn push(mut self, list: &str, item: Value) -> Self {
        self.0[list].as_array_mut().expect("lists of a table are arrays").push(item);
        self
    }

    fn last(&mut self, list: &str) -> &mut Value {
        self.0[list].as_array_mut().and_then(|items| items.last_mut()).expect("an item must have been added before")
    }
}

/// Replaces a file in one step, so that nobody ever reads half of it.
pub fn write_atomically(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, text).with_context(|| format!("cannot write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("cannot rename to {}", path.display()))
}
