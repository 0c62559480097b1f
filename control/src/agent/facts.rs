//! What only the kernel knows, taken from what was observed.

use std::{collections::BTreeMap, net::Ipv4Addr};

use dataplane_common::mesh::MAX_NODE_ADDRESSES;
use hiveway_core::{
    DEFAULT_GATEWAY_MTU, DEFAULT_HOST_IP, Facts, Settings,
    firewall::LeftEntries,
    observed::{Kind, Link, Replies},
    plan::DEFAULT_GATEWAY_BRIDGE,
    sandbox::Sandbox,
};

use crate::{
    cli::{AgentArgs, MeshReturn},
    engine_mesh::has_ipvs,
    mesh,
    uplinks::{self, Underlay, Uplinks},
};

const DOCKER_BRIDGE: &str = "docker_gwbridge";

/// The gateway bridge to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gateway {
    /// Name.
    pub(super) name: String,
    /// Made by us, or to be made by us.
    pub(super) ours: bool,
}

/// Which bridge is the gateway bridge.
pub(super) fn gateway(args: &AgentArgs, links: &BTreeMap<String, Link>) -> Gateway {
    let is_bridge = |name: &str| links.get(name).is_some_and(|link| link.kind == Kind::Bridge);
    let name = match &args.gwbridge {
        Some(name) => name.clone(),
        None if is_bridge(DOCKER_BRIDGE) => DOCKER_BRIDGE.to_owned(),
        None => DEFAULT_GATEWAY_BRIDGE.to_owned(),
    };
    let ours = links.get(&name).is_none_or(|link| {
        link.is_ours(&name) || (name == DEFAULT_GATEWAY_BRIDGE && link.alias.is_none() && link.kind == Kind::Bridge)
    });
    Gateway { name, ours }
}

/// The settings that the desired state depends on.
///
/// # Errors
/// When an adopted gateway bridge has no address.
pub(super) fn settings(
    args: &AgentArgs,
    vxlan_port: u16,
    gateway: &Gateway,
    links: &BTreeMap<String, Link>,
    uplinks: &Uplinks,
) -> Result<Settings, String> {
    let subnet = match links.get(&gateway.name).filter(|_| !gateway.ours) {
        None => args.gwbridge_subnet,
        // With its host bits: they are the containers' next hop.
        Some(bridge) => *bridge
            .addresses
            .first()
            .ok_or_else(|| format!("the adopted gateway bridge {} has no IPv4 address; give it one", gateway.name))?,
    };
    Ok(Settings {
        node: args.node.clone(),
        vtep: None,
        vxlan_port,
        mesh_vni: args.mesh_vni,
        gwbridge: gateway.name.clone(),
        gwbridge_subnet: subnet,
        gateway_mtu: uplinks.mtu.min(DEFAULT_GATEWAY_MTU),
        mesh_allow: args.mesh_allow(),
        mesh_deny: args.mesh_deny(),
        mesh_addresses: args.mesh_addresses(),
        direct_return: args.mesh_return == MeshReturn::Dsr,
        host_ip: DEFAULT_HOST_IP,
        mesh_refused: None,
    })
}

/// Whether tunnels can still arrive: the tunnel address is on an interface, and the uplinks are there and up.
///
/// # Errors
/// What is wrong.
pub(super) fn underlay(
    args: &AgentArgs,
    vtep: Ipv4Addr,
    links: &BTreeMap<String, Link>,
    uplinks: &Uplinks,
) -> Result<(), String> {
    if let Underlay::Named(names) = args.underlay()
        && let Some(gone) = names.iter().find(|name| !links.contains_key(*name))
    {
        return Err(format!("interface {gone} is gone"));
    }
    uplinks::check(&args.underlay(), links, vtep)?;
    let down = uplinks.names.iter().find(|name| links.get(*name).is_some_and(|link| !link.up));
    down.map_or(Ok(()), |name| Err(format!("interface {name} is down")))
}

/// Interface indices and the addresses that clients talk to.
///
/// # Errors
/// When the interfaces that `--underlay` names are gone.
pub(super) fn facts(
    args: &AgentArgs,
    links: &BTreeMap<String, Link>,
    gateway: &Gateway,
    sandboxes: &BTreeMap<String, Sandbox>,
    uplinks: &Uplinks,
    replies: &BTreeMap<String, Replies>,
    left: LeftEntries,
) -> Result<Facts, String> {
    if let Underlay::Named(names) = args.underlay()
        && uplinks.names.is_empty()
    {
        return Err(format!(
            "underlay interface {} is gone; maps stay as they are until it is back",
            Underlay::Named(names)
        ));
    }
    let mut node_addresses = mesh::addresses(links, &gateway.name);
    while node_addresses.len() > MAX_ANSWERING {
        node_addresses.pop_last();
    }
    Ok(Facts {
        ifindex: links.iter().map(|(name, link)| (name.clone(), link.index)).collect(),
        underlay_ifindex: uplinks.only,
        underlay_mac: uplinks.mac,
        underlay_mtu: u16::try_from(uplinks.mtu).unwrap_or(u16::MAX),
        underlay_ip: uplinks.own_address,
        node_addresses,
        engine_balances: has_ipvs(),
        left,
        sandboxes: sandboxes.clone(),
        replies: replies.clone(),
    })
}

/// Addresses of this node that published ports can answer at: all that the map holds, but for the host link's.
pub const MAX_ANSWERING: usize = MAX_NODE_ADDRESSES as usize - 1;

/// Whether published ports answer at all addresses of this node.
///
/// # Errors
/// How many they do not answer at.
pub(super) fn addresses(links: &BTreeMap<String, Link>, gateway: &Gateway) -> Result<(), String> {
    let there = mesh::addresses(links, &gateway.name).len();
    if there <= MAX_ANSWERING {
        return Ok(());
    }
    Err(format!(
        "this node has {there} addresses, and published ports answer at {MAX_ANSWERING} of them at most: the last {} in \
         numerical order are left to the stack",
        there - MAX_ANSWERING
    ))
}
