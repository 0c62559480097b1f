//! The parts of the Engine API's objects that we look at (API 1.41; later ones only add). A manager's push stream is
//! turned into the same; it has a little more to say, which stands under names of its own.
//!
//! Go writes absent lists and objects as `null`, leaves them out, or writes zero values: all three read the same here.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// `null` as the default.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Declares structs whose fields all have defaults and may be `null`.
macro_rules! objects {
    ($($(#[$doc:meta])* $ty:ident { $($field:ident: $kind:ty = $name:literal,)+ })+) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Default, Deserialize)]
            #[serde(default)]
            pub struct $ty {
                $(
                    #[doc = concat!("`", $name, "`.")]
                    #[serde(rename = $name, deserialize_with = "nullable")]
                    pub $field: $kind,
                )+
            }
        )+
    };
}

objects! {
    /// An element of `/nodes`.
    Node {
        id: String = "ID",
        created_at: String = "CreatedAt",
        description: Description = "Description",
        status: NodeStatus = "Status",
        manager_status: ManagerStatus = "ManagerStatus",
        // Push stream only: the node's own addresses.
        attachments: Vec<Attachment> = "NetworksAttachments",
        // Push stream only: UDP port of the swarm's VXLAN.
        data_path_port: u32 = "DataPathPort",
    }
    /// What a node says of itself.
    Description {
        hostname: String = "Hostname",
    }
    /// What the managers think of a node.
    NodeStatus {
        state: String = "State",
        addr: String = "Addr",
    }
    /// Only managers have one.
    ManagerStatus {
        addr: String = "Addr",
    }

    /// An element of `/networks`.
    Network {
        id: String = "Id",
        name: String = "Name",
        scope: String = "Scope",
        driver: String = "Driver",
        ingress: bool = "Ingress",
        internal: bool = "Internal",
        ipam: Ipam = "IPAM",
        options: BTreeMap<String, String> = "Options",
    }
    /// How addresses are given out.
    Ipam {
        config: Vec<IpamConfig> = "Config",
    }
    /// A subnet.
    IpamConfig {
        subnet: String = "Subnet",
        gateway: String = "Gateway",
    }

    /// An element of `/services`.
    Service {
        id: String = "ID",
        spec: ServiceSpec = "Spec",
        endpoint: Endpoint = "Endpoint",
    }
    /// What was asked for.
    ServiceSpec {
        name: String = "Name",
        labels: BTreeMap<String, String> = "Labels",
        endpoint_spec: EndpointSpec = "EndpointSpec",
    }
    /// How clients find the tasks.
    EndpointSpec {
        mode: String = "Mode",
    }
    /// What the manager has allocated, as opposed to what was asked for.
    Endpoint {
        ports: Vec<Port> = "Ports",
        virtual_ips: Vec<VirtualIp> = "VirtualIPs",
    }
    /// A published port.
    Port {
        protocol: String = "Protocol",
        target_port: u32 = "TargetPort",
        published_port: u32 = "PublishedPort",
        publish_mode: String = "PublishMode",
    }
    /// A virtual address.
    VirtualIp {
        network: String = "NetworkID",
        addr: String = "Addr",
    }

    /// An element of `/tasks`.
    Task {
        id: String = "ID",
        service: String = "ServiceID",
        slot: u64 = "Slot",
        created_at: String = "CreatedAt",
        node: String = "NodeID",
        status: TaskStatus = "Status",
        desired_state: String = "DesiredState",
        attachments: Vec<Attachment> = "NetworksAttachments",
        // Push stream only: the ports that the task was made with.
        endpoint: Option<Endpoint> = "Endpoint",
    }
    /// Where a task is.
    TaskStatus {
        state: String = "State",
    }
    /// A place on a network.
    Attachment {
        network: AttachedNetwork = "Network",
        addresses: Vec<String> = "Addresses",
    }
    /// The network.
    AttachedNetwork {
        id: String = "ID",
    }
}

/// All objects of a swarm.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// As `/nodes` lists them.
    pub nodes: Vec<Node>,
    /// As `/networks` lists them.
    pub networks: Vec<Network>,
    /// As `/services` lists them.
    pub services: Vec<Service>,
    /// As `/tasks` lists them.
    pub tasks: Vec<Task>,
}
