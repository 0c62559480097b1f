//! Overlay networks: bridge, vxlan devices and their static entries.

use std::collections::BTreeMap;

use dataplane_common::addr::Mac;

use super::{Action, Item, Plan, Setting, Tunnel};
use crate::{
    desired::{OverlayNetwork, OverlaySubnet},
    observed::{ALIAS_PREFIX, Kind, Link, Observed, Vxlan},
};

/// Destination of frames that are to be flooded.
pub(super) const FLOOD: Mac = [0; 6];

pub(super) fn plan(observed: &Observed, network: &OverlayNetwork, tunnel: Tunnel, plan: &mut Plan) {
    let item = Item::Network(network.id.clone());
    let alias = format!("{ALIAS_PREFIX}network={}", network.id);
    let bridge = match observed.links.get(&network.bridge) {
        Some(link) if !usable(link, &network.bridge, matches!(link.kind, Kind::Bridge)) => {
            plan.blocked(&item, taken(&network.bridge));
            return;
        }
        found => found,
    };
    match bridge {
        None => {
            plan.prepare(&item, Action::CreateBridge { name: network.bridge.clone(), alias, mtu: Some(network.mtu) })
        }
        Some(link) => settings(&item, &network.bridge, link, &alias, network.mtu, plan),
    }
    if bridge.is_none_or(|link| !link.up) {
        plan.prepare(&item, set(&network.bridge, Setting::Up));
    }
    for subnet in &network.subnets {
        vxlan(observed, &item, network, subnet, tunnel, plan);
    }
}

fn vxlan(
    observed: &Observed,
    item: &Item,
    network: &OverlayNetwork,
    subnet: &OverlaySubnet,
    tunnel: Tunnel,
    plan: &mut Plan,
) {
    let name = &subnet.vxlan;
    let alias = format!("{ALIAS_PREFIX}network={} vni={}", network.id, subnet.vni);
    let want = Vxlan { vni: subnet.vni, local: tunnel.local, port: tunnel.port, learning: false };
    let mut found = observed.links.get(name);
    match found {
        Some(link) if !usable(link, name, matches!(link.kind, Kind::Vxlan(_))) => {
            plan.blocked(item, taken(name));
            return;
        }
        Some(link) if link.kind != Kind::Vxlan(want) => {
            // Tunnel settings cannot be changed on an existing device.
            plan.prepare(item, Action::DeleteLink { name: name.clone() });
            found = None;
        }
        _ => {}
    }
    match found {
        None => plan.prepare(item, Action::CreateVxlan { name: name.clone(), alias, vxlan: want, mtu: network.mtu }),
        Some(link) => settings(item, name, link, &alias, network.mtu, plan),
    }
    if found.is_none_or(|link| link.master.as_ref() != Some(&network.bridge)) {
        plan.prepare(item, set(name, Setting::Master(network.bridge.clone())));
    }
    forwarding(item, subnet, found, plan);
    if found.is_none_or(|link| !link.up) {
        plan.finish(item, set(name, Setting::Up));
    }
    neighbours(item, subnet, found, plan);
}

fn forwarding(item: &Item, subnet: &OverlaySubnet, found: Option<&Link>, plan: &mut Plan) {
    let empty = Default::default();
    let have = found.map_or(&empty, |link| &link.fdb);
    let name = &subnet.vxlan;
    // One place per MAC, should a table name two; peers before what only the mesh needs.
    let peers = subnet.peers.iter().map(|peer| (peer.mac, peer.vtep));
    let places: BTreeMap<Mac, _> = subnet.mesh.iter().map(|(mac, vtep)| (*mac, *vtep)).chain(peers).collect();
    let want = places.iter().map(|(mac, vtep)| (*mac, *vtep)).chain(subnet.flood.iter().map(|vtep| (FLOOD, *vtep)));
    for (mac, vtep) in want {
        if !have.contains(&(mac, vtep)) {
            plan.fill(item, Action::AddFdb { name: name.clone(), mac, vtep });
        }
    }
    for &(mac, vtep) in have {
        let keep = if mac == FLOOD { subnet.flood.contains(&vtep) } else { places.contains_key(&mac) };
        if !keep {
            plan.fill(item, Action::RemoveFdb { name: name.clone(), mac, vtep });
        }
    }
}

fn neighbours(item: &Item, subnet: &OverlaySubnet, found: Option<&Link>, plan: &mut Plan) {
    // The kernel forgets neighbours when a device goes down.
    let empty = Default::default();
    let have = found.filter(|link| link.up).map_or(&empty, |link| &link.neighbours);
    let want: BTreeMap<_, _> = subnet.peers.iter().map(|peer| (peer.ip, peer.mac)).collect();
    let name = &subnet.vxlan;
    for (&ip, &mac) in &want {
        if have.get(&ip) != Some(&mac) {
            plan.fill(item, Action::AddNeighbour { name: name.clone(), ip, mac });
        }
    }
    for &ip in have.keys().filter(|ip| !want.contains_key(ip)) {
        plan.fill(item, Action::RemoveNeighbour { name: name.clone(), ip });
    }
}

/// Whether a link with a name of ours can be taken over: it is ours, or it has the right kind and no alias yet because
/// an agent died between making it and naming it.
pub(super) fn usable(link: &Link, name: &str, right_kind: bool) -> bool {
    link.is_ours(name) || (right_kind && link.alias.is_none())
}

pub(super) fn taken(name: &str) -> String {
    format!("interface {name} exists but is not ours (no alias beginning with {ALIAS_PREFIX:?}); rename or remove it")
}

/// Alias and MTU of an existing link.
pub(super) fn settings(item: &Item, name: &str, link: &Link, alias: &str, mtu: u32, plan: &mut Plan) {
    if link.alias.as_deref() != Some(alias) {
        plan.prepare(item, set(name, Setting::Alias(alias.to_owned())));
    }
    if link.mtu != mtu {
        plan.prepare(item, set(name, Setting::Mtu(mtu)));
    }
}

pub(super) fn set(name: &str, setting: Setting) -> Action {
    Action::Set { name: name.to_owned(), setting }
}
