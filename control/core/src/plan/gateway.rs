//! The gateway bridge: ours if we made it, otherwise used as it is.

use super::{Action, Item, Plan, Setting, network::set};
use crate::{
    desired::GatewayBridge,
    observed::{GATEWAY_ALIAS, Kind, Observed},
};

/// Name of the bridge that we create unless told otherwise.
pub const DEFAULT_GATEWAY_BRIDGE: &str = "hw-gwbridge";

pub(super) fn plan(observed: &Observed, gateway: &GatewayBridge, plan: &mut Plan) {
    let item = Item::Gateway;
    let name = &gateway.bridge;
    let Some(link) = observed.links.get(name) else {
        plan.prepare(&item, Action::CreateBridge { name: name.clone(), alias: GATEWAY_ALIAS.to_owned(), mtu: None });
        plan.prepare(&item, set(name, Setting::AddAddress(gateway.address)));
        plan.prepare(&item, set(name, Setting::Up));
        return;
    };
    if link.kind != Kind::Bridge {
        plan.blocked(&item, format!("{name} is not a bridge; name another one with --gwbridge"));
        return;
    }
    // Only a bridge with our default name can be one that an agent made but did not live to name.
    let unnamed = link.alias.is_none() && name == DEFAULT_GATEWAY_BRIDGE;
    if !link.is_ours(name) && !unnamed {
        if !link.up {
            plan.blocked(&item, format!("adopted gateway bridge {name} is down; set it up"));
        }
        return;
    }
    if unnamed {
        plan.prepare(&item, set(name, Setting::Alias(GATEWAY_ALIAS.to_owned())));
    }
    if !link.addresses.contains(&gateway.address) {
        plan.prepare(&item, set(name, Setting::AddAddress(gateway.address)));
    }
    if !link.up {
        plan.prepare(&item, set(name, Setting::Up));
    }
}
