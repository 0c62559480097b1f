//! Tasks: a veth pair per interface, and the inside of the namespace.

use std::collections::BTreeSet;

use super::{
    Action, Inner, Item, Plan, Setting,
    network::{set, settings, taken, usable},
};
use crate::{
    desired::{IfName, Interface, LocalTask, Role},
    observed::{ALIAS_PREFIX, InnerLink, Inside, Kind, Link, Namespace, Observed},
};

pub(super) fn plan(observed: &Observed, task: &LocalTask, plan: &mut Plan) {
    let item = Item::Task(task.id.clone());
    let inside = match observed.namespaces.get(&task.id) {
        Some(Namespace::Present(inside)) => inside,
        Some(Namespace::Unread { why, begun: false, .. }) => return plan.waiting(&item, why.clone()),
        Some(Namespace::Unusable { why } | Namespace::Unread { why, .. }) => return plan.blocked(&item, why.clone()),
        Some(Namespace::Missing { path }) => {
            let vanished = task.interfaces.iter().any(|i| observed.links.contains_key(&i.host));
            let what = if vanished { "has vanished" } else { "is not there yet" };
            return plan.waiting(&item, format!("network namespace {path} {what}; waiting for it"));
        }
        None => return plan.waiting(&item, "network namespace was not looked at yet".to_owned()),
    };
    let kept: Vec<Option<(&Link, &InnerLink)>> =
        task.interfaces.iter().map(|interface| pair(observed, inside, interface)).collect();
    // All that has to go goes first: interfaces may have swapped names.
    let mut gone = BTreeSet::new();
    for (interface, _) in task.interfaces.iter().zip(&kept).filter(|(_, kept)| kept.is_none()) {
        match observed.links.get(&interface.host) {
            Some(link) if !usable(link, &interface.host, matches!(link.kind, Kind::Veth { .. })) => {
                return plan.blocked(&item, taken(&interface.host));
            }
            Some(_) => drop(gone.insert(interface.host.clone())),
            None => {}
        }
        match holder(observed, inside, &interface.container) {
            Holder::Nobody => {}
            Holder::Ours(name) => drop(gone.insert(name.clone())),
            Holder::Foreign => {
                let name = &interface.container;
                let why = format!("its namespace already has an interface {name} that is not ours; remove it");
                return plan.blocked(&item, why);
            }
        }
    }
    for name in gone {
        plan.prepare(&item, Action::DeleteLink { name });
    }
    if let Some(interface) = task.interfaces.first().filter(|_| !inside.loopback_up) {
        plan.prepare(&item, inner(task, interface, Inner::LoopbackUp));
    }
    for (interface, kept) in task.interfaces.iter().zip(kept) {
        node_side(&item, task, interface, kept.map(|(link, _)| link), plan);
        container_side(&item, task, interface, kept.map(|(_, link)| link), plan);
        if kept.is_none_or(|(link, _)| !link.up) {
            plan.finish(&item, set(&interface.host, Setting::Up));
        }
    }
}

/// Whether one of the task's interfaces leads into this namespace.
pub(super) fn is_wired(observed: &Observed, inside: &Inside, task: &LocalTask) -> bool {
    task.interfaces.iter().any(|interface| pair(observed, inside, interface).is_some())
}

/// Both ends of an interface's veth pair, if they are what they should be.
fn pair<'a>(observed: &'a Observed, inside: &'a Inside, interface: &Interface) -> Option<(&'a Link, &'a InnerLink)> {
    let host = observed.links.get(&interface.host)?;
    let container = inside.links.get(&interface.container)?;
    let Kind::Veth { peer } = host.kind else { return None };
    // Indices are unique per namespace only; the MAC tells apart what by chance has the same ones. A pair whose MAC was
    // changed is made anew.
    let same = peer == container.index && container.peer == Some(host.index) && container.mac == interface.mac;
    same.then_some((host, container))
}

/// Who has an interface of some name inside a namespace.
enum Holder<'a> {
    Nobody,
    /// The far end of this veth of ours.
    Ours(&'a IfName),
    Foreign,
}

fn holder<'a>(observed: &'a Observed, inside: &Inside, container: &str) -> Holder<'a> {
    let Some(there) = inside.links.get(container) else { return Holder::Nobody };
    let near = observed.links.iter().find(|(_, host)| {
        matches!(host.kind, Kind::Veth { peer } if peer == there.index) && there.peer == Some(host.index)
    });
    match near {
        Some((name, host)) if host.is_ours(name) => Holder::Ours(name),
        _ => Holder::Foreign,
    }
}

fn node_side(item: &Item, task: &LocalTask, interface: &Interface, found: Option<&Link>, plan: &mut Plan) {
    let host = &interface.host;
    let alias = alias(task, interface);
    match found {
        None => plan.prepare(
            item,
            Action::CreateVeth {
                task: task.id.clone(),
                host: host.clone(),
                alias,
                container: interface.container.clone(),
                mac: interface.mac,
                mtu: interface.mtu,
            },
        ),
        Some(link) => settings(item, host, link, &alias, interface.mtu, plan),
    }
    let master = found.and_then(|link| link.master.as_ref());
    if master != Some(&interface.bridge) {
        plan.prepare(item, set(host, Setting::Master(interface.bridge.clone())));
    }
    let isolated = found.is_some_and(|link| link.isolated) && master == Some(&interface.bridge);
    if interface.role == Role::Gateway && !isolated {
        plan.prepare(item, set(host, Setting::Isolated));
    }
}

fn container_side(item: &Item, task: &LocalTask, interface: &Interface, found: Option<&InnerLink>, plan: &mut Plan) {
    // What a fresh veth end looks like.
    let fresh = InnerLink { mac: interface.mac, mtu: interface.mtu, ..InnerLink::default() };
    let link = found.unwrap_or(&fresh);
    let mut step = |action| plan.prepare(item, inner(task, interface, action));
    if link.mtu != interface.mtu {
        step(Inner::Mtu(interface.mtu));
    }
    // Exactly this address: nothing could be sent from another one.
    let mut lost_routes = false;
    for address in link.addresses.iter().filter(|address| **address != interface.address) {
        step(Inner::RemoveAddress(*address));
        lost_routes = true;
    }
    if !link.addresses.contains(&interface.address) {
        step(Inner::AddAddress(interface.address));
    }
    if !link.up {
        step(Inner::Up);
    }
    // A link that is down has no routes, and removing an address may take routes along.
    let stale = !link.up || lost_routes;
    for &(to, via) in &interface.routes {
        if stale || !link.routes.contains_key(&(to, via)) {
            step(Inner::AddRoute(to, via));
        }
    }
    for (&(to, via), _) in link.routes.iter().filter(|(_, ours)| **ours && link.up) {
        let wanted = interface.routes.iter().any(|(destination, _)| *destination == to);
        if !wanted {
            step(Inner::RemoveRoute(to, via));
        }
    }
}

/// Alias of a host-side veth.
fn alias(task: &LocalTask, interface: &Interface) -> String {
    match interface.role {
        Role::Overlay { net, .. } => format!("{ALIAS_PREFIX}task={} net={net}", task.id),
        Role::Gateway => format!("{ALIAS_PREFIX}task={} net=gateway", task.id),
    }
}

fn inner(task: &LocalTask, interface: &Interface, inner: Inner) -> Action {
    Action::Inside { task: task.id.clone(), container: interface.container.clone(), inner }
}
