//! The reference: what the table says, and who may answer by it. It knows nothing of packets, nodes' maps or time.

use std::path::PathBuf;

use hiveway_tests::table::Table;
use serde_json::json;

/// n1, n2 and n3.
pub(crate) const NODES: usize = 3;

/// One of [`SERVICES`].
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
    /// Addresses on the networks `app` and `ingress`; none for `dnsrr`.
    pub(crate) vips: Option<(&'static str, &'static str)>,
    /// Published ports for 80/tcp and 53/udp.
    pub(crate) tcp: Option<u16>,
    pub(crate) udp: Option<u16>,
}

pub(crate) const SERVICES: [Service; 3] = [
    Service { name: "web", vips: Some(("10.0.1.2", "10.0.0.2")), tcp: Some(8080), udp: Some(5353) },
    Service { name: "api", vips: Some(("10.0.1.3", "10.0.0.3")), tcp: Some(8081), udp: None },
    Service { name: "raw", vips: None, tcp: None, udp: None },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Has its network and no flows yet.
    Starting,
    Active,
    /// Keeps its flows and gets no new ones.
    Draining,
    /// Failed: in the table for one more batch, without its network.
    Failed,
}

#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) service: usize,
    pub(crate) node: usize,
    /// Last byte of its addresses on both networks.
    pub(crate) host: u8,
    pub(crate) netns: PathBuf,
    pub(crate) state: State,
}

impl Task {
    pub(crate) fn address(&self) -> String {
        format!("10.0.1.{}", self.host)
    }
}

/// A container that only asks: node and address.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) node: usize,
    pub(crate) address: &'static str,
    pub(crate) netns: PathBuf,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Reference {
    pub(crate) tasks: Vec<Task>,
    pub(crate) users: Vec<User>,
    pub(crate) down: [bool; NODES],
    pub(crate) published: [bool; SERVICES.len()],
}

impl Reference {
    /// Tasks that have their network.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Task> {
        self.tasks.iter().filter(|task| task.state != State::Failed)
    }

    pub(crate) fn endpoint(&self, id: &str) -> Option<&Task> {
        self.endpoints().find(|task| task.id == id)
    }

    /// Who gets new flows of a service.
    pub(crate) fn backends(&self, service: usize) -> Vec<&Task> {
        let serves = |task: &&Task| task.service == service && task.state == State::Active && !self.down[task.node];
        self.tasks.iter().filter(serves).collect()
    }

    /// The same for a published port: nobody while it is not published.
    pub(crate) fn mesh_backends(&self, service: usize) -> Vec<&Task> {
        if self.published[service] { self.backends(service) } else { Vec::new() }
    }

    /// As a task table. `batch` names a service, so that agents can be asked which table they have in force.
    pub(crate) fn table(&self, batch: u64) -> Table {
        let mut table = Table::with_nodes(3).ingress().network("app", "10.0.1", 4097);
        for (number, down) in self.down.iter().enumerate() {
            let node = table.item_mut("nodes", &format!("n{}", number + 1));
            node["state"] = json!(if *down { "down" } else { "ready" });
        }
        for (service, published) in SERVICES.iter().zip(self.published) {
            table = table.service(service.name);
            match service.vips {
                Some((app, ingress)) => table = table.vip("app", app).vip("ingress", ingress),
                None => table = table.set("services", "endpoint_mode", json!("dnsrr")),
            }
            let ports = [("tcp", service.tcp, 80), ("udp", service.udp, 53)];
            for (protocol, port, target) in ports.into_iter().filter(|_| published) {
                if let Some(port) = port {
                    table = table.publish(protocol, port, target);
                }
            }
        }
        for task in &self.tasks {
            let (node, ingress) = (format!("n{}", task.node + 1), format!("10.0.0.{}", task.host));
            let addresses = [("app", &*task.address()), ("ingress", &*ingress)];
            table = table.task(&task.id, SERVICES[task.service].name, &node, &addresses);
            table = table.set("tasks", "netns", json!(task.netns));
            let (desired, actual) = match task.state {
                State::Starting => ("running", "starting"),
                State::Active => ("running", "running"),
                State::Draining => ("shutdown", "running"),
                State::Failed => ("shutdown", "failed"),
            };
            table.set_states(&task.id, desired, actual);
        }
        table = table.service("user");
        for (number, user) in self.users.iter().enumerate() {
            let (id, node) = (format!("user.{}", number + 1), format!("n{}", user.node + 1));
            table = table.task(&id, "user", &node, &[("app", user.address)]);
            table = table.set("tasks", "netns", json!(user.netns));
        }
        table.service("batch").set("services", "name", json!(batch_name(batch)))
    }
}

pub(crate) fn batch_name(batch: u64) -> String {
    format!("batch-{batch}")
}
