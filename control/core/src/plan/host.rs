//! The host link: a veth pair in the node's own namespace. Its near end carries the route to the address that stands
//! for published ports; at its far end the programs see the node as a client of the routing mesh.

use dataplane_common::{
    addr::{HOST_MAC, HOST_PEER_MAC},
    headers::ENCAP_LEN,
};
use ipnet::Ipv4Net;

use super::{
    Action, Item, Plan, Setting, Tunnel,
    network::{set, settings, taken, usable},
};
use crate::{
    desired::HostLink,
    names::{HOST, HOST_FAR},
    observed::{ALIAS_PREFIX, HostEnd, Kind, Link, Observed},
};

/// A veth's largest. What the node sends is kept small by the route; what comes back from a task of this node is as
/// large as the task's interface allows.
const MTU: u32 = 65_535;

pub(super) fn plan(observed: &Observed, link: &HostLink, tunnel: Tunnel, plan: &mut Plan) {
    let item = Item::HostLink;
    let ends = [HOST, HOST_FAR].map(|name| observed.links.get(name));
    for (name, found) in [HOST, HOST_FAR].into_iter().zip(ends) {
        if found.is_some_and(|found| !usable(found, name, matches!(found.kind, Kind::Veth { .. }))) {
            return plan.blocked(&item, taken(name));
        }
    }
    let kept = pair(ends);
    match kept {
        None => {
            let near = ends[0];
            if near.is_some() {
                plan.prepare(&item, Action::DeleteLink { name: HOST.to_owned() });
            }
            // The other end of a pair goes with it.
            if let Some(far) = ends[1]
                && near.is_none_or(|near| near.kind != Kind::Veth { peer: far.index })
            {
                plan.prepare(&item, Action::DeleteLink { name: HOST_FAR.to_owned() });
            }
            plan.prepare(&item, Action::CreateHostLink { mtu: MTU });
        }
        Some(ends) => {
            for (name, found) in [HOST, HOST_FAR].into_iter().zip(ends) {
                settings(&item, name, found, &alias(name), MTU, plan);
            }
        }
    }
    // What belongs to a link that is down, or that will be made anew, is gone.
    let fresh = HostEnd::default();
    let up = |found: Option<&Link>| found.is_some_and(|found| found.up);
    let [near, far] = [0, 1].map(|end| kept.map(|ends| ends[end]));
    if kept.is_none() || !observed.host.route_localnet {
        plan.prepare(&item, set(HOST, Setting::RouteLocalnet));
    }
    for (name, found) in [(HOST, near), (HOST_FAR, far)] {
        if !up(found) {
            plan.prepare(&item, set(name, Setting::Up));
        }
    }
    let have = if up(near) { &observed.host } else { &fresh };
    let mtu = tunnel.underlay_mtu.saturating_sub(ENCAP_LEN as u32);
    if have.routes.get(&Ipv4Net::from(link.ip)) != Some(&mtu) {
        plan.prepare(&item, Action::HostRoute { to: link.ip, mtu });
    }
    if have.neighbours.get(&link.ip) != Some(&HOST_PEER_MAC) {
        let name = HOST.to_owned();
        plan.prepare(&item, Action::AddNeighbour { name, ip: link.ip, mac: HOST_PEER_MAC });
    }
}

/// Both ends, if they are the two ends of one pair with the MACs that the programs write.
fn pair(ends: [Option<&Link>; 2]) -> Option<[&Link; 2]> {
    let [Some(near), Some(far)] = ends else { return None };
    let same = near.kind == Kind::Veth { peer: far.index }
        && far.kind == Kind::Veth { peer: near.index }
        && near.mac == HOST_MAC
        && far.mac == HOST_PEER_MAC;
    same.then_some([near, far])
}

/// Alias of an end.
pub fn alias(name: &str) -> String {
    format!("{ALIAS_PREFIX}host link {name}")
}
