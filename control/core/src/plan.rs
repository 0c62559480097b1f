//! The ordered difference between what is and what should be: pure, so that it is tested without a kernel.
//!
//! Planning on the result of a plan yields nothing (see `plan/tests.rs`). Steps are grouped by the item that they serve
//! (a network, a task, the gateway bridge): if one fails, the item's later steps are pointless but all others are not.

mod gateway;
mod host;
mod leftovers;
mod network;
mod shared;
mod step;
mod task;
#[cfg(test)]
mod tests;

pub use gateway::DEFAULT_GATEWAY_BRIDGE;
pub use host::alias as host_alias;
pub use step::{Action, Inner, Item, Setting, Stage, Step};

use crate::{desired::Desired, observed::Observed};

/// Node-wide facts that the plan needs besides the desired state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The underlay's own address, from which tunnels leave.
    pub local: std::net::Ipv4Addr,
    /// UDP port of VXLAN.
    pub port: u16,
    /// MTU of the underlay interface.
    pub underlay_mtu: u32,
}

/// What to do, and what cannot be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order, by stage.
    pub steps: Vec<Step>,
    /// Items that cannot be served now.
    pub blocked: Vec<Blocked>,
}

/// An item that cannot be served now, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The item.
    pub item: Item,
    /// Why, and what to do about it.
    pub why: String,
    /// It is only a matter of waiting (for a task's namespace), not an error.
    pub waiting: bool,
}

/// What leads from `observed` to `desired`.
pub fn plan(observed: &Observed, desired: &Desired, tunnel: Tunnel) -> Plan {
    let mut plan = Plan::default();
    for network in &desired.networks {
        network::plan(observed, network, tunnel, &mut plan);
    }
    if let Some(gateway) = &desired.gateway {
        gateway::plan(observed, gateway, &mut plan);
    }
    if let Some(link) = &desired.host_link {
        host::plan(observed, link, tunnel, &mut plan);
    }
    let shared = shared::losers(observed, desired);
    for task in &desired.tasks {
        match shared.get(task.id.as_str()) {
            Some(keeper) => plan.blocked(&Item::Task(task.id.clone()), shared::why(task, keeper)),
            None => task::plan(observed, task, &mut plan),
        }
    }
    leftovers::plan(observed, desired, &mut plan);
    // Stable: keeps the order within a stage.
    plan.steps.sort_by_key(|step| step.stage);
    plan
}

impl Plan {
    fn prepare(&mut self, item: &Item, action: Action) {
        self.steps.push(Step { item: item.clone(), stage: Stage::Prepare, action });
    }

    fn finish(&mut self, item: &Item, action: Action) {
        self.steps.push(Step { item: item.clone(), stage: Stage::Finish, action });
    }

    fn fill(&mut self, item: &Item, action: Action) {
        self.steps.push(Step { item: item.clone(), stage: Stage::Fill, action });
    }

    fn blocked(&mut self, item: &Item, why: String) {
        self.blocked.push(Blocked { item: item.clone(), why, waiting: false });
    }

    fn waiting(&mut self, item: &Item, why: String) {
        self.blocked.push(Blocked { item: item.clone(), why, waiting: true });
    }
}
