//! The firewall and the sysctls that a desired state asks for.

use std::collections::BTreeSet;

use hiveway_core::{Desired, Model, Settings};

use super::facts::Gateway;
use crate::nft::{Firewall, Masquerade};

/// Published TCP and UDP ports, whichever protocol.
pub(super) fn ports(desired: &Desired) -> BTreeSet<u16> {
    desired.published.iter().map(|(_, port)| *port).collect()
}

/// The table that belongs to `desired`.
pub(super) fn firewall(model: &Model, desired: &Desired, settings: &Settings, gateway: &Gateway) -> Firewall {
    let masquerade = desired
        .gateway
        .as_ref()
        .filter(|_| gateway.ours)
        .map(|bridge| Masquerade { bridge: bridge.bridge.clone(), subnet: bridge.address });
    let networks = model.networks.values().flat_map(|network| &network.subnets);
    Firewall {
        vxlan_port: settings.vxlan_port,
        vteps: desired.vteps.clone(),
        vnis: networks.map(|subnet| subnet.vni.get()).chain([settings.mesh_vni]).collect(),
        masquerade,
        published: ports(desired),
    }
}
