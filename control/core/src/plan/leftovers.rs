//! Links of ours that nothing needs any more.

use std::collections::BTreeSet;

use super::{Action, Item, Plan, Setting};
use crate::{
    desired::Desired,
    names,
    observed::{Kind, Link, Observed},
};

/// The gateway bridge of an engine.
const ENGINES: &str = "docker_gwbridge";

/// Two ends of one veth pair.
fn pair(one: &Link, other: &Link) -> bool {
    one.kind == Kind::Veth { peer: other.index } && other.kind == Kind::Veth { peer: one.index }
}

pub(super) fn plan(observed: &Observed, desired: &Desired, plan: &mut Plan) {
    let mut wanted: BTreeSet<&str> = BTreeSet::new();
    for network in &desired.networks {
        wanted.insert(&network.bridge);
        wanted.extend(network.subnets.iter().map(|subnet| subnet.vxlan.as_str()));
    }
    for task in &desired.tasks {
        wanted.extend(task.interfaces.iter().map(|interface| interface.host.as_str()));
    }
    if desired.host_link.is_some() {
        wanted.extend([names::HOST, names::HOST_FAR]);
    }
    wanted.extend(desired.gateway.iter().map(|gateway| gateway.bridge.as_str()));
    let mut leftovers: Vec<_> =
        observed.links.iter().filter(|(name, link)| link.is_ours(name) && !wanted.contains(name.as_str())).collect();
    // Ports before their bridges.
    leftovers.sort_by_key(|(_, link)| link.kind == Kind::Bridge);
    for (name, link) in leftovers {
        // The host link's two ends go together.
        if name == names::HOST_FAR && observed.links.get(names::HOST).is_some_and(|near| pair(near, link)) {
            continue;
        }
        let action = Action::DeleteLink { name: name.clone() };
        if plan.steps.iter().any(|step| step.action == action) {
            continue; // It stood in the way of something new.
        }
        plan.finish(&Item::Leftover(name.clone()), action);
    }
    strays(observed, desired, &wanted, plan);
}

/// Ports of bridges of ours that we have not made. A container with NET_ADMIN and no user namespace can put one there
/// through the veth that leads to the node's namespace, and behind it be whoever it says: no program looks at it. They
/// are taken off the bridge, and stay: some cannot be deleted, and whose they are is not known.
///
/// An engine that starts later takes a gateway bridge with the name that it has for it as its own.
fn strays(observed: &Observed, desired: &Desired, wanted: &BTreeSet<&str>, plan: &mut Plan) {
    let bridges = desired.networks.iter().map(|network| &network.bridge);
    let bridges = bridges.chain(desired.gateway.iter().map(|gateway| &gateway.bridge)).filter(|name| *name != ENGINES);
    let ours: BTreeSet<_> =
        bridges.filter(|name| observed.links.get(*name).is_some_and(|link| link.is_ours(name))).collect();
    for (name, link) in &observed.links {
        if let Some(bridge) = link.master.as_ref().filter(|bridge| ours.contains(bridge))
            && !wanted.contains(name.as_str())
            && !link.is_ours(name)
        {
            let item = Item::Stray { name: name.clone(), bridge: bridge.clone() };
            plan.prepare(&item, Action::Set { name: name.clone(), setting: Setting::NoMaster });
        }
    }
}
