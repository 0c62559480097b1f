//! Networks.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{api, items::insert};
use crate::{
    desired::LeftOut,
    model::{Carrier, DEFAULT_MTU, Id, MAX_MTU, MIN_MTU, Network, Subnet, Vni},
};

const VNI_LIST: &str = "com.docker.network.driver.overlay.vxlanid_list";
const MTU: &str = "com.docker.network.driver.mtu";
const ENCRYPTED: &str = "encrypted";

/// A capture's networks.
pub(super) struct Networks {
    pub(super) usable: BTreeMap<Id, Network>,
    /// Ids of all others: left out and named once, or none of the swarm's. What refers to them is not named again.
    pub(super) unusable: BTreeSet<String>,
}

pub(super) fn load(raw: Vec<api::Network>, carrier: Carrier, left_out: &mut Vec<LeftOut>) -> Networks {
    let mut usable: BTreeMap<Id, Network> = BTreeMap::new();
    let mut unusable = BTreeSet::new();
    for raw in raw {
        if raw.scope != "swarm" {
            // The engine's own `bridge`, `host`, `none`, `docker_gwbridge`, or a user's local network.
            unusable.insert(raw.id);
            continue;
        }
        let what = format!("network {} ({})", raw.name, raw.id);
        match network(&raw, carrier, left_out).and_then(|n| clash(n, &usable)) {
            Ok(network) => insert(&mut usable, network.id.clone(), network, || what, left_out),
            Err(why) => {
                left_out.push(LeftOut { what, why });
                unusable.insert(raw.id);
            }
        }
    }
    Networks { usable, unusable }
}

fn network(raw: &api::Network, carrier: Carrier, left_out: &mut Vec<LeftOut>) -> Result<Network, String> {
    if raw.driver != "overlay" {
        return Err(format!("its driver is {}; only overlay networks are carried", raw.driver));
    }
    let encrypted = raw.options.get(ENCRYPTED).is_some_and(|v| v != "false");
    if encrypted && carrier == Carrier::Hiveway {
        return Err("encrypted networks are not supported yet and never carried in cleartext".into());
    }
    let vnis = raw.options.get(VNI_LIST).ok_or("the manager has not given it a VNI yet")?;
    let vnis: Vec<&str> = vnis.split(',').map(str::trim).collect();
    if vnis.len() != raw.ipam.config.len() {
        let (vnis, subnets) = (vnis.len(), raw.ipam.config.len());
        return Err(format!("it has {vnis} VNIs for {subnets} subnets; there must be one each"));
    }
    let mut subnets = Vec::new();
    for (config, vni) in raw.ipam.config.iter().zip(vnis) {
        let vni = vni.parse().ok().and_then(Vni::new).ok_or_else(|| format!("{vni:?} is no VNI"))?;
        match subnet(config, vni)? {
            Some(subnet) => subnets.push(subnet),
            None => left_out.push(LeftOut {
                what: format!("subnet {} of network {} ({})", config.subnet, raw.name, raw.id),
                why: "IPv6 is not supported yet".into(),
            }),
        }
    }
    if subnets.is_empty() {
        return Err("it has no IPv4 subnet, and IPv6 is not supported yet".into());
    }
    subnets.sort();
    let mtu = match raw.options.get(MTU) {
        None => DEFAULT_MTU,
        Some(mtu) => mtu
            .parse()
            .ok()
            .filter(|m| (MIN_MTU..=MAX_MTU).contains(m))
            .ok_or_else(|| format!("its MTU {mtu:?} is not between {MIN_MTU} and {MAX_MTU}"))?,
    };
    Ok(Network {
        id: Id::from(&raw.id),
        name: raw.name.clone(),
        subnets,
        ingress: raw.ingress,
        internal: raw.internal && !raw.ingress,
        mtu,
        carrier,
        encrypted,
    })
}

/// `None` for IPv6.
fn subnet(config: &api::IpamConfig, vni: Vni) -> Result<Option<Subnet>, String> {
    let net = match config.subnet.parse() {
        Ok(IpNet::V4(net)) => net.trunc(),
        Ok(IpNet::V6(_)) => return Ok(None),
        Err(_) => return Err(format!("{:?} is no subnet", config.subnet)),
    };
    // With or without a prefix length, depending on who made the network.
    let gateway = config.gateway.split('/').next().unwrap_or_default();
    let gateway = gateway.parse().map_err(|_| format!("subnet {net} has no gateway yet"))?;
    let subnet = Subnet { vni, subnet: net, gateway };
    if net.prefix_len() > 30 || !subnet.usable(gateway) {
        return Err(format!("{gateway} can't be the gateway of {net}"));
    }
    Ok(Some(subnet))
}

/// Refuses what can't be told apart from a network that is there already.
fn clash(network: Network, others: &BTreeMap<Id, Network>) -> Result<Network, String> {
    let vnis: BTreeSet<Vni> = network.subnets.iter().map(|s| s.vni).collect();
    if vnis.len() != network.subnets.len() {
        return Err("two of its subnets have the same VNI".into());
    }
    for other in others.values().filter(|o| o.id != network.id) {
        if let Some(shared) = other.subnets.iter().find(|s| vnis.contains(&s.vni)) {
            return Err(format!("network {} has its VNI {} too", other.name, shared.vni));
        }
        if other.ingress && network.ingress {
            return Err(format!("network {} is the ingress network already", other.name));
        }
    }
    Ok(network)
}
