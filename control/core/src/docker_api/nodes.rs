//! Nodes.

use std::{collections::BTreeMap, net::IpAddr};

use super::{api, items::insert, services::on_network};
use crate::{
    desired::LeftOut,
    model::{ByNetwork, Dataplane, Id, Model, Node, NodeState},
};

/// All of them, and when each has joined. A machine that has joined anew is listed twice with one address, and all that
/// are behind one NAT have the same: see [`Loaded::settle`](super::Loaded::settle).
pub(super) fn load(raw: Vec<api::Node>, left_out: &mut Vec<LeftOut>) -> (BTreeMap<Id, Node>, BTreeMap<Id, String>) {
    let mut nodes = BTreeMap::new();
    let mut joined = BTreeMap::new();
    for raw in raw {
        let what = format!("node {} ({})", raw.description.hostname, raw.id);
        match node(&raw) {
            Ok(node) => {
                joined.entry(node.id.clone()).or_insert(raw.created_at);
                insert(&mut nodes, node.id.clone(), node, || what, left_out);
            }
            Err(why) => left_out.push(LeftOut { what, why }),
        }
    }
    (nodes, joined)
}

fn node(raw: &api::Node) -> Result<Node, String> {
    let state = match raw.status.state.as_str() {
        "" => NodeState::Unknown,
        name => name.parse()?,
    };
    let address = match address(raw).ok_or("the manager knows no address of it")? {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => return Err(format!("its address {ip} is IPv6, which is not supported yet")),
    };
    let hostname = if raw.description.hostname.is_empty() { &raw.id } else { &raw.description.hostname };
    Ok(Node {
        id: Id::from(&raw.id),
        hostname: hostname.clone(),
        state,
        address,
        vtep: address,
        dataplane: Dataplane::Hiveway,
        vxlan_port: None,
        addresses: ByNetwork::default(),
    })
}

/// Nodes' own addresses on networks. Those that are not usable are passed over in silence: nobody misses them unless a
/// stock node sends from there, and the manager gives new ones as networks change.
pub(super) fn own_addresses(attachments: Vec<(String, Vec<api::Attachment>)>, model: &mut Model) {
    for (id, attachments) in attachments {
        let Some(node) = model.nodes.get_mut(id.as_str()) else { continue };
        for attachment in attachments {
            let Some(network) = model.networks.get(attachment.network.id.as_str()) else { continue };
            if let Some(ip) = attachment.addresses.iter().find_map(|text| on_network(network, text).ok()) {
                node.addresses.insert(network.id.clone(), ip);
            }
        }
    }
}

/// Where the node connected from. A manager may see itself as 0.0.0.0; its own entry then has the address.
fn address(raw: &api::Node) -> Option<IpAddr> {
    let host = raw.manager_status.addr.rsplit_once(':').map_or("", |(host, _)| host);
    let candidates = [raw.status.addr.as_str(), host.trim_matches(['[', ']'])];
    candidates.iter().filter_map(|a| a.parse::<IpAddr>().ok()).find(|ip| !ip.is_unspecified())
}
