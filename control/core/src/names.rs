//! Names of the interfaces we create: at most 15 bytes, recognisable as ours, derived from what they are for.

use dataplane_common::endpoint::SANDBOX_BIT;

use crate::{desired::IfName, tag::hash64};

/// Network id that stands for the gateway bridge in [`veth`].
pub const GATEWAY: &str = "gateway";

/// The node's own end of the host link.
pub const HOST: &str = "hw-host";
/// Its other end, where the node is a client of the routing mesh.
pub const HOST_FAR: &str = "hw-mesh";

/// What the names of overlay networks' bridges begin with.
pub const BRIDGE: &str = "hwb";

/// Bridge of a network: `hwb` + VNI of its first subnet.
pub fn bridge(vni: u32) -> IfName {
    format!("{BRIDGE}{vni}")
}

/// Kernel vxlan device of a VNI.
pub fn vxlan(vni: u32) -> IfName {
    format!("hwx{vni}")
}

/// Host side of a task's veth on a network ([`GATEWAY`] for the gateway bridge): `hwv` + 48 bits of a hash, in hex.
pub fn veth(task_id: &str, network_id: &str) -> IfName {
    format!("hwv{:012x}", hash64(&[task_id, network_id]) >> 16)
}

/// What the interface of a task on a network of the engine's is called in the maps.
pub fn overlay_port(task_id: &str, network_id: &str) -> u32 {
    SANDBOX_BIT | (hash64(&[task_id, network_id]) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fit_into_an_interface_name() {
        for name in [bridge(0xff_ffff), vxlan(0xff_ffff), veth("5kjv4jsfuqb08390uuegqss8z", GATEWAY)] {
            assert!(name.len() <= 15 && name.starts_with("hw"), "{name}");
        }
    }

    #[test]
    fn differ_per_task_and_network() {
        let all = [veth("a", "n"), veth("b", "n"), veth("a", "m"), veth("a", GATEWAY), veth("an", "")];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
