//! The parts of the Engine API's objects that we look at (API 1.41; later ones only add).
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
            pub(super) struct $ty {
                $(#[serde(rename = $name, deserialize_with = "nullable")] pub(super) $field: $kind,)+
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
    }
    Description {
        hostname: String = "Hostname",
    }
    NodeStatus {
        state: String = "State",
        addr: String = "Addr",
    }
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
    Ipam {
        config: Vec<IpamConfig> = "Config",
    }
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
    ServiceSpec {
        name: String = "Name",
        labels: BTreeMap<String, String> = "Labels",
        endpoint_spec: EndpointSpec = "EndpointSpec",
    }
    EndpointSpec {
        mode: String = "Mode",
    }
    /// What the manager has allocated, as opposed to what was asked for.
    Endpoint {
        ports: Vec<Port> = "Ports",
        virtual_ips: Vec<VirtualIp> = "VirtualIPs",
    }
    Port {
        protocol: String = "Protocol",
        target_port: u32 = "TargetPort",
        published_port: u32 = "PublishedPort",
        publish_mode: String = "PublishMode",
    }
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
    }
    TaskStatus {
        state: String = "State",
    }
    Attachment {
        network: AttachedNetwork = "Network",
        addresses: Vec<String> = "Addresses",
    }
    AttachedNetwork {
        id: String = "ID",
    }
}
