//! What holds for the mesh's maps, whatever the table.

#[path = "support/generate.rs"]
mod generate;
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
};

use dataplane_common::{
    endpoint::{EndpointKey, endpoint_flag::VIP_BACKEND, kind, local_flag},
    mesh::{shown_as, target_flag::LOCAL_ONLY},
    service::PortKey,
    state::{MapState, SetKey},
};
use generate::table;
use hiveway_core::{
    Desired, Facts, GatewayAddresses, Model, Settings, TaskRole, derive,
    desired::Role,
    map_state,
    model::{AllowList, Task, parse_allow},
    table::parse_file,
    tag,
};
use ipnet::Ipv4Net;
use proptest::prelude::*;
use serde_json::Value;
use support::facts;

struct World {
    model: Model,
    desired: Desired,
    facts: Facts,
    state: MapState,
}

fn world(table: &Value, mesh_allow: Option<AllowList>) -> World {
    let model = parse_file(&table.to_string(), Path::new("t.json")).expect("generated tables are valid").model;
    let settings = Settings { mesh_allow, ..Settings::new("n0") };
    let desired = derive(&model, &settings, &mut GatewayAddresses::new()).expect("the node is in the table");
    let facts = facts(&desired);
    let state = map_state(&model, &desired, &settings, &facts);
    World { model, desired, facts, state }
}

impl World {
    /// Index of the task's interface on the gateway bridge.
    fn gateway(&self, task: &str) -> Option<u32> {
        let task = self.desired.tasks.iter().find(|t| t.id == task)?;
        let interface = task.interfaces.iter().find(|i| i.role == Role::Gateway)?;
        self.facts.ifindex.get(&interface.host).copied()
    }

    fn flows(&self, task: &Task) -> bool {
        matches!(self.model.role(task), TaskRole::Backend | TaskRole::Draining)
    }

    /// Ports in ingress mode, of services and of their tasks.
    fn everywhere(&self) -> BTreeSet<(u8, u16)> {
        let of_services = self.model.services.values().flat_map(|s| &s.ports);
        let of_tasks =
            self.model.tasks.values().filter(|t| self.flows(t) && t.service.is_some()).flat_map(|t| &t.ports);
        of_services.chain(of_tasks).filter_map(|p| p.ingress()).collect()
    }
}

fn lists() -> impl Strategy<Value = Option<AllowList>> {
    let texts = vec![None, Some("10.0.0.0/16"), Some("192.0.2.0/24,10.0.0.128/25"), Some("fd00::/8")];
    prop::sample::select(texts).prop_map(|text| text.map(|t| AllowList::new(&parse_allow(t).expect("a list"))))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Per task that clients come to: exactly the subnets that are connected in its namespace, and loopback.
    #[test]
    fn clients_are_the_connected_subnets(table in table()) {
        let world = world(&table, None);
        let mut expected: BTreeMap<(u32, Ipv4Net), u8> = BTreeMap::new();
        let reached: BTreeSet<u32> = world.state.targets.values().map(|t| t.ifindex).collect();
        for task in world.model.tasks.values() {
            let Some(gateway) = world.gateway(&task.id).filter(|index| reached.contains(index)) else { continue };
            for network in task.addresses.keys().map(|id| &world.model.networks[id]) {
                expected.extend(network.subnets.iter().map(|s| ((gateway, s.subnet), shown_as::GATEWAY)));
            }
            for subnet in ["172.18.0.0/16", "127.0.0.0/8"] {
                expected.insert((gateway, subnet.parse().expect("a subnet")), shown_as::INGRESS_NODE);
            }
        }
        let clients = world.state.clients.iter().map(|((length, prefix), rule)| {
            let net = Ipv4Net::new(prefix.ip.into(), (length - 32) as u8).expect("a prefix length");
            assert_eq!(net, net.trunc(), "no host bits");
            ((u32::from_be_bytes(prefix.ifindex), net), rule.shown_as)
        });
        prop_assert_eq!(clients.collect::<BTreeMap<_, _>>(), expected);
    }

    /// A port in host mode answers exactly where a task has it, and at most one task gets new connections: a running
    /// one of this node.
    #[test]
    fn host_mode_ports_are_those_of_local_tasks(table in table()) {
        let world = world(&table, None);
        let everywhere = world.everywhere();
        let mut running: BTreeMap<(u8, u16), Vec<[u8; 8]>> = BTreeMap::new();
        for task in world.model.tasks.values().filter(|t| world.flows(t) && t.node.as_deref() == Some("n0")) {
            if world.gateway(&task.id).is_none() || task.service.is_none() {
                continue;
            }
            for key in task.ports.iter().filter_map(|p| p.host()).filter(|key| !everywhere.contains(key)) {
                let tags = running.entry(key).or_default();
                tags.extend((world.model.role(task) == TaskRole::Backend).then(|| tag(&task.id)));
            }
        }
        let all: BTreeSet<_> = everywhere.iter().chain(running.keys()).copied().collect();
        prop_assert_eq!(&world.desired.published, &all);
        for ((proto, port), tags) in &running {
            let key = SetKey::Port { proto: *proto, port: port.to_be_bytes() };
            let set = &world.state.sets[&key];
            prop_assert_eq!(set.len(), tags.len().min(1));
            for backend in set {
                prop_assert!(tags.contains(&backend.tag));
                prop_assert_eq!(backend.vtep, world.state.config.vtep);
                let target = world.state.targets.iter().find(|(k, _)| k.ip == backend.ip && k.port == port.to_be_bytes() && k.proto == *proto);
                let (_, target) = target.expect("a backend has a target");
                prop_assert_eq!((target.tag, target.ip, target.flags), (backend.tag, backend.ip, LOCAL_ONLY));
            }
        }
    }

    /// Nobody but who both lists allow may use a port, and who they allow may; ports without a list are not restricted.
    #[test]
    fn both_allow_lists_count(table in table(), node in lists(), ip in prop_oneof![
        any::<u32>(), (0u32..512).prop_map(|low| 0x0a00_0000 + low), (0u32..256).prop_map(|low| 0xc000_0200 + low),
    ]) {
        let ip = Ipv4Addr::from_bits(ip);
        let world = world(&table, node.clone());
        let within = |list: &AllowList| list.nets().iter().any(|net| net.contains(&ip));
        for key in world.state.sets.keys() {
            let SetKey::Port { proto, port } = key else { continue };
            let number = (*proto, u16::from_be_bytes(*port));
            let owner = world.model.services.values().find(|s| {
                let own = s.ports.iter().any(|p| p.ingress().or(p.host()) == Some(number));
                own || world.model.tasks.values().any(|t| {
                    t.service.as_ref() == Some(&s.id) && t.ports.iter().any(|p| p.ingress().or(p.host()) == Some(number))
                })
            });
            let label = owner.expect("somebody publishes it").labels.get("hiveway.allow");
            let label = label.map(|text| AllowList::new(&parse_allow(text).expect("a list")));
            let key = PortKey { proto: *proto, _pad: 0, port: *port };
            let restricted = world.state.restricted.contains(&key);
            prop_assert_eq!(restricted, label.is_some() || node.is_some());
            let matched = world.state.allow.iter().any(|(length, prefix)| {
                prefix.port == key && Ipv4Net::new(prefix.ip.into(), (length - 32) as u8).expect("a length").contains(&ip)
            });
            let allowed = label.as_ref().is_none_or(within) && node.as_ref().is_none_or(within);
            prop_assert_eq!(!restricted || matched, allowed, "{} at {:?}", ip, key);
        }
    }

    /// Whoever is or was behind a VIP is flagged as such, and nobody else.
    #[test]
    fn endpoints_behind_vips_are_flagged(table in table()) {
        let world = world(&table, None);
        for (key, set) in &world.state.sets {
            let SetKey::Vip { net, .. } = key else { continue };
            for backend in set {
                let of = world.state.endpoints.iter().find(|(k, _)| k.net == *net && k.ip == backend.ip);
                prop_assert!(of.is_some_and(|(_, e)| e.flags & VIP_BACKEND != 0));
            }
        }
        for (key, endpoint) in &world.state.endpoints {
            let service = world.model.tasks.values().find(|t| tag(&t.id) == endpoint.tag).and_then(|t| t.service.as_ref());
            let network = world.model.networks.values().find(|n| n.net_id() == key.net).expect("known");
            let vip = service.is_some_and(|id| world.model.services[id].virtual_ips.contains_key(&network.id));
            let task = [kind::LOCAL, kind::REMOTE].contains(&endpoint.kind);
            prop_assert_eq!(endpoint.flags & VIP_BACKEND != 0, task && vip, "{:?}", key);
        }
        for local in world.state.locals.values().filter(|local| local.tag != [0; 8] && local.net != [0; 4]) {
            let endpoint = world.state.endpoints[&EndpointKey { net: local.net, ip: local.ip }];
            prop_assert_eq!(local.tag, endpoint.tag);
            prop_assert_eq!(local.flags & local_flag::VIP_BACKEND != 0, endpoint.flags & VIP_BACKEND != 0);
        }
    }
}
