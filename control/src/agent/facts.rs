//! What only the kernel knows, taken from what was observed.

use std::{collections::BTreeMap, net::Ipv4Addr};

use hiveway_core::{
    DEFAULT_GATEWAY_MTU, DEFAULT_HOST_IP, Facts, Settings,
    observed::{Kind, Link},
    plan::DEFAULT_GATEWAY_BRIDGE,
    sandbox::Sandbox,
};

use crate::{
    cli::{AgentArgs, MeshReturn},
    mesh,
};

const DOCKER_BRIDGE: &str = "docker_gwbridge";
/// There while the kernel's IPVS is loaded, with which engines balance.
const IPVS: &str = "/proc/net/ip_vs";

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
        gateway_mtu: links
            .get(&args.underlay)
            .map_or(DEFAULT_GATEWAY_MTU, |underlay| underlay.mtu.min(DEFAULT_GATEWAY_MTU)),
        mesh_allow: args.mesh_allow(),
        direct_return: args.mesh_return == MeshReturn::Dsr,
        host_ip: DEFAULT_HOST_IP,
        mesh_refused: None,
    })
}

/// Whether the underlay still carries the tunnel address.
///
/// # Errors
/// What it carries instead.
pub(super) fn underlay(args: &AgentArgs, vtep: Ipv4Addr, links: &BTreeMap<String, Link>) -> Result<(), String> {
    let name = &args.underlay;
    let link = links.get(name).ok_or_else(|| format!("interface {name} is gone"))?;
    let addresses: Vec<_> = link.addresses.iter().map(|address| address.addr()).collect();
    if !addresses.contains(&vtep) {
        return Err(format!("interface {name} does not carry the tunnel address {vtep} but {addresses:?}"));
    }
    if link.up { Ok(()) } else { Err(format!("interface {name} is down")) }
}

/// Interface indices and the addresses that clients talk to.
///
/// # Errors
/// When the underlay interface is gone.
pub(super) fn facts(
    args: &AgentArgs,
    links: &BTreeMap<String, Link>,
    gateway: &Gateway,
    sandboxes: &BTreeMap<String, Sandbox>,
) -> Result<Facts, String> {
    let underlay = links.get(&args.underlay).ok_or_else(|| {
        format!("underlay interface {} is gone; maps stay as they are until it is back", args.underlay)
    })?;
    Ok(Facts {
        ifindex: links.iter().map(|(name, link)| (name.clone(), link.index)).collect(),
        underlay_ifindex: underlay.index,
        underlay_mac: underlay.mac,
        underlay_mtu: u16::try_from(underlay.mtu).unwrap_or(u16::MAX),
        node_addresses: mesh::addresses(links, &gateway.name),
        engine_balances: std::path::Path::new(IPVS).exists(),
        sandboxes: sandboxes.clone(),
    })
}
