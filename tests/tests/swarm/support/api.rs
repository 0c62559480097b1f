//! What the Engine API says, as far as stories ask.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde_json::Value;

/// A task.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) id: String,
    /// Its service's id.
    pub(crate) service: String,
    pub(crate) slot: u64,
    /// Its node's id.
    pub(crate) node: String,
    pub(crate) desired: String,
    pub(crate) state: String,
    /// The container's id, once there is one. Its first 12 digits are its host name, and so the name that it answers
    /// with.
    pub(crate) container: String,
    /// By the network's name.
    pub(crate) addresses: BTreeMap<String, Ipv4Addr>,
}

impl Task {
    pub(crate) fn parse(task: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let attachments = task["NetworksAttachments"].as_array().into_iter().flatten();
        let addresses = attachments.filter_map(|attachment| {
            let name = attachment["Network"]["Spec"]["Name"].as_str()?.to_owned();
            Some((name, address(attachment["Addresses"][0].as_str()?)?))
        });
        Self {
            id: text(&task["ID"]),
            service: text(&task["ServiceID"]),
            slot: task["Slot"].as_u64().unwrap_or(0),
            node: text(&task["NodeID"]),
            desired: text(&task["DesiredState"]),
            state: text(&task["Status"]["State"]),
            container: text(&task["Status"]["ContainerStatus"]["ContainerID"]),
            addresses: addresses.collect(),
        }
    }

    /// What it answers with.
    pub(crate) fn name(&self) -> &str {
        self.container.get(..12).unwrap_or("?")
    }

    /// Serves, and is to go on; a job's until it has ended.
    pub(crate) fn serves(&self) -> bool {
        matches!(self.desired.as_str(), "running" | "complete") && self.state == "running"
    }

    /// Has not ended.
    pub(crate) fn lives(&self) -> bool {
        matches!(
            self.state.as_str(),
            "new" | "pending" | "assigned" | "accepted" | "preparing" | "ready" | "starting" | "running"
        )
    }
}

/// A service.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) id: String,
    pub(crate) name: String,
    /// How many run at a time; `None` for a global one: as many as there are nodes.
    pub(crate) replicas: Option<u64>,
    /// By the network's id.
    pub(crate) vips: BTreeMap<String, Ipv4Addr>,
    /// In ingress mode: protocol, published port, target port.
    pub(crate) ports: Vec<(String, u16, u16)>,
    /// `completed`, `rollback_completed`, `updating` ...; empty if there was never an update.
    pub(crate) update: String,
}

impl Service {
    pub(crate) fn parse(service: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let vips = service["Endpoint"]["VirtualIPs"].as_array().into_iter().flatten();
        let ports = service["Endpoint"]["Ports"].as_array().into_iter().flatten();
        let number = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
        Self {
            id: text(&service["ID"]),
            name: text(&service["Spec"]["Name"]),
            replicas: {
                let mode = &service["Spec"]["Mode"];
                mode["Replicated"]["Replicas"].as_u64().or_else(|| mode["ReplicatedJob"]["MaxConcurrent"].as_u64())
            },
            vips: vips.filter_map(|vip| Some((text(&vip["NetworkID"]), address(vip["Addr"].as_str()?)?))).collect(),
            ports: ports
                .filter(|port| port["PublishMode"] != "host")
                .filter_map(|port| {
                    Some((text(&port["Protocol"]), number(&port["PublishedPort"])?, number(&port["TargetPort"])?))
                })
                .collect(),
            update: text(&service["UpdateStatus"]["State"]),
        }
    }
}

/// A node.
#[derive(Clone, Debug)]
pub(crate) struct SwarmNode {
    pub(crate) id: String,
    pub(crate) hostname: String,
    pub(crate) ready: bool,
    pub(crate) active: bool,
    pub(crate) manager: bool,
}

impl SwarmNode {
    pub(crate) fn parse(node: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            id: text(&node["ID"]),
            hostname: text(&node["Description"]["Hostname"]),
            ready: node["Status"]["State"] == "ready",
            active: node["Spec"]["Availability"] == "active",
            manager: node["Spec"]["Role"] == "manager",
        }
    }
}

/// The address of `10.0.1.3/24`.
fn address(text: &str) -> Option<Ipv4Addr> {
    text.split('/').next()?.parse().ok()
}
