//! The firewall and the sysctls that a desired state asks for.

use std::collections::{BTreeMap, BTreeSet};

use dataplane_common::headers::{ENCAP_LEN, IPV4_LEN, TCP_LEN};
use hiveway_core::{Desired, Model, Settings, names, observed::Link};

use super::facts::Gateway;
use crate::{
    nft::{Firewall, HostRules, Masquerade},
    uplinks::Uplinks,
};

/// Published TCP and UDP ports, whichever protocol.
pub(super) fn ports(desired: &Desired) -> BTreeSet<u16> {
    desired.published.iter().map(|(_, port)| *port).collect()
}

/// The table that belongs to `desired`.
pub(super) fn firewall(
    model: &Model,
    desired: &Desired,
    settings: &Settings,
    gateway: &Gateway,
    links: &BTreeMap<String, Link>,
    uplinks: &Uplinks,
) -> Firewall {
    let masquerade = desired
        .gateway
        .as_ref()
        .filter(|_| gateway.ours)
        .map(|bridge| Masquerade { bridge: bridge.bridge.clone(), subnet: bridge.address });
    let networks = model.networks.values().flat_map(|network| &network.subnets);
    Firewall {
        vxlan_port: settings.vxlan_port,
        vteps: desired.vteps.clone(),
        vtep: desired.vtep,
        bridge: Some(gateway.name.clone()),
        vnis: networks.map(|subnet| subnet.vni.get()).chain([settings.mesh_vni]).collect(),
        masquerade,
        published: ports(desired),
        host: host(desired, gateway, links, uplinks),
    }
}

/// Translations into the host link, once both of its ends are up: before, they would lead nowhere.
fn host(desired: &Desired, gateway: &Gateway, links: &BTreeMap<String, Link>, uplinks: &Uplinks) -> Option<HostRules> {
    let (link, vtep) = (desired.host_link?, desired.vtep?);
    let up = |name: &str| links.get(name).is_some_and(|link| link.up && link.is_ours(name));
    if !up(names::HOST) || !up(names::HOST_FAR) {
        return None;
    }
    let room = uplinks.mtu.saturating_sub((ENCAP_LEN + IPV4_LEN + TCP_LEN) as u32);
    Some(HostRules {
        ip: link.ip,
        vtep,
        // Containers of a stock engine may be on it before a task of ours is.
        bridge: links.contains_key(&gateway.name).then(|| gateway.name.clone()),
        ports: desired.published.clone(),
        mss: u16::try_from(room).unwrap_or(u16::MAX),
    })
}
