//! Who may use which published port, and at which addresses.

use std::collections::{BTreeMap, BTreeSet};

use dataplane_common::service::{CLASSES, MAX_ACCESS, NOWHERE, PortKey};
use ipnet::Ipv4Net;

use super::Maps;
use crate::{
    desired::{Binding, LeftOut},
    docker_api::closing,
    model::{Access, AllowList, Oddity, Service, oddities},
    settings::Settings,
    topology::Topology,
};

/// Ports that not every client may use, by (IP protocol number, port).
pub(crate) type Restricted = BTreeMap<(u8, u16), Access>;

/// Who may use the ports that answer here. A port whose lists the map has no room for is closed to all, and named.
pub(crate) fn restricted(topology: &Topology<'_>, settings: &Settings) -> (Restricted, Vec<LeftOut>) {
    let (mut found, mut left_out, mut room) = (Restricted::new(), Vec::new(), MAX_ACCESS as usize);
    let everywhere = topology.answered().map(|(key, port)| (key, port.service));
    let here = topology.host_ports.iter().map(|(key, port)| (key, port.service));
    for (key, service) in everywhere.chain(here) {
        let Some(service) = topology.model.services.get(service) else { continue };
        // A manager's agent has said so already, unless it is of an earlier version.
        let what = format!("service {} ({})", service.name, service.id);
        for (key, text) in &service.labels {
            left_out.extend(oddities(key, text).into_iter().filter_map(|oddity| match oddity {
                Oddity::Unreadable(why) => Some(closing(key, &what, &why)),
                Oddity::Ignored(_) => None,
            }));
        }
        let Some(access) = access(service, settings) else { continue };
        let size = access.allow.len() + access.deny.len();
        if size <= room {
            room -= size;
            found.insert(*key, access);
            continue;
        }
        found.insert(*key, Access::default());
        left_out.push(LeftOut {
            what: format!("port {} of service {} ({})", key.1, service.name, service.id),
            why: format!(
                "the lists of who may use published ports have more than {MAX_ACCESS} entries in all, each counted for \
                 each port; until they are shorter the port is closed to all"
            ),
        });
    }
    (found, left_out)
}

/// `None`: every client may use the service's ports.
fn access(service: &Service, settings: &Settings) -> Option<Access> {
    let (allow, deny) = (service.allowed(settings.mesh_allow.as_ref()), service.denied(&settings.mesh_deny));
    (allow.is_some() || !deny.nets().is_empty()).then(|| Access::new(allow, &deny))
}

/// The different sets of addresses that ports are bound to, in the order of their classes.
fn distinct(bound: &BTreeMap<(u8, u16), Binding>) -> Vec<&Binding> {
    let all: BTreeSet<&Binding> = bound.values().collect();
    all.into_iter().take(CLASSES.into()).collect()
}

/// Bound ports that there is no class left for: they answer nowhere.
pub(crate) fn without_class(topology: &Topology<'_>, bound: &BTreeMap<(u8, u16), Binding>) -> Vec<LeftOut> {
    let distinct = distinct(bound);
    let service = |key| {
        let everywhere = topology.published.get(key).map(|port| port.service);
        let id = everywhere.or_else(|| topology.host_ports.get(key).map(|port| port.service)).unwrap_or_default();
        topology.model.services.get(id).map_or(id, |service| service.name.as_str())
    };
    let left = bound.iter().filter(|(_, binding)| !distinct.contains(binding));
    left.map(|(key, _)| LeftOut {
        what: format!("port {} of service {}", key.1, service(key)),
        why: format!(
            "published ports are bound to more than {CLASSES} different sets of addresses; until there are fewer it \
             answers at none"
        ),
    })
    .collect()
}

impl Maps<'_> {
    /// The addresses of each class, and the classes of bound ports.
    pub(super) fn classes(&mut self) -> Vec<AllowList> {
        let (desired, facts) = (self.desired, self.facts);
        let bound = &desired.bound;
        let distinct = distinct(bound);
        for ((proto, port), binding) in bound {
            let class = distinct.iter().position(|other| *other == binding).and_then(|class| u8::try_from(class).ok());
            let key = PortKey { proto: *proto, _pad: 0, port: port.to_be_bytes() };
            self.state.bound.insert(key, class.unwrap_or(NOWHERE));
        }
        let addresses = |name: &str| -> Vec<Ipv4Net> { facts.carried.get(name).cloned().unwrap_or_default() };
        distinct.into_iter().map(|binding| binding.nets(&addresses)).collect()
    }
}
