//! Links of ours that nothing needs any more.

use std::collections::BTreeSet;

use super::{Action, Item, Plan};
use crate::{
    desired::Desired,
    observed::{Kind, Observed},
};

pub(super) fn plan(observed: &Observed, desired: &Desired, plan: &mut Plan) {
    let mut wanted: BTreeSet<&str> = BTreeSet::new();
    for network in &desired.networks {
        wanted.insert(&network.bridge);
        wanted.extend(network.subnets.iter().map(|subnet| subnet.vxlan.as_str()));
    }
    for task in &desired.tasks {
        wanted.extend(task.interfaces.iter().map(|interface| interface.host.as_str()));
    }
    wanted.extend(desired.gateway.iter().map(|gateway| gateway.bridge.as_str()));
    let mut leftovers: Vec<_> =
        observed.links.iter().filter(|(name, link)| link.is_ours(name) && !wanted.contains(name.as_str())).collect();
    // Ports before their bridges.
    leftovers.sort_by_key(|(_, link)| link.kind == Kind::Bridge);
    for (name, _) in leftovers {
        let action = Action::DeleteLink { name: name.clone() };
        if plan.steps.iter().any(|step| step.action == action) {
            continue; // It stood in the way of something new.
        }
        plan.finish(&Item::Leftover(name.clone()), action);
    }
}
