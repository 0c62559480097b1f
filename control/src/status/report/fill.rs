//! Connection tables that run full, and connections that find no share of them.

use dataplane::{Kept, KeptClients, KeptService, PerTable};
use dataplane_common::addr::NetId;

use super::flows::{network_name, protocol};
use crate::agent::shared::{Shared, Snapshot};

/// Part of a table's room, in percent, from which on it counts as full: time is left to do something.
const FULL: u64 = 90;

/// Tables of established connections that are nearly full, by the last sweep, with what to do about it. Pending entries
/// make room for one another: their tables may be full.
pub(super) fn nearly_full(shared: &Shared) -> Vec<String> {
    let Some((_, report)) = shared.sweeps().last else { return Vec::new() };
    full(report.left, shared.connections().capacity())
}

/// Connections that have found no share of these tables, by the last sweep, with whose they are. A warning, and no
/// reason to call the node unhealthy: it serves them, and everybody who holds less is not concerned.
pub(super) fn without_share(shared: &Shared, snapshot: &Snapshot) -> Option<String> {
    kept(&shared.sweeps().last?.1.kept, snapshot)
}

/// What is said of entries that have found no share of the established tables.
fn kept(kept: &Kept, snapshot: &Snapshot) -> Option<String> {
    let Kept { entries: 1.., service: Some(service), clients: Some(clients) } = kept else { return None };
    let clients = match clients {
        KeptClients::Prefix(prefix) => format!("{prefix}/24"),
        KeptClients::Container(net, ip) => format!("{ip} on network {}", network_name(snapshot, *net)),
    };
    let service = match service {
        KeptService::Port(proto, port) => {
            let name =
                published(snapshot, *proto, *port).map_or_else(String::new, |name| format!(" of service {name}"));
            format!("port {port}/{}{name}", protocol(*proto))
        }
        KeptService::Address(net, ip) => {
            let name = owner(snapshot, *net, *ip).map_or_else(String::new, |name| format!(" of service {name}"));
            format!("{ip} on network {}{name}", network_name(snapshot, *net))
        }
    };
    Some(format!(
        "{} entries of connections have found no share of the connection tables, most from {clients}, most to {service}: of \
         what is free these clients or that service hold too much, or all that is not TCP; they are served, and stay among \
         the connections that others displace. `hiveway flow ls` shows them; shorter idle times (`--timeout`) make room, \
         and so does a larger `--max-flows`",
        kept.entries
    ))
}

/// The service that publishes this port.
fn published(snapshot: &Snapshot, proto: u8, port: u16) -> Option<&str> {
    let mut services = snapshot.model.services.values();
    let found = services.find(|service| service.ports.iter().any(|of| of.ingress() == Some((proto, port))))?;
    Some(&found.name)
}

/// The service whose virtual address this is.
fn owner(snapshot: &Snapshot, net: NetId, ip: std::net::Ipv4Addr) -> Option<&str> {
    let network = snapshot.model.networks.values().find(|network| network.net_id() == net)?;
    let mut services = snapshot.model.services.values();
    let found = services.find(|service| service.virtual_ips.get(&network.id) == Some(&ip))?;
    Some(&found.name)
}

fn full(left: PerTable<usize>, room: PerTable<u32>) -> Vec<String> {
    let tables = [("flows", left.flows, room.flows), ("affinity", left.affinity, room.affinity)];
    tables
        .into_iter()
        .filter(|(_, entries, room)| *entries as u64 * 100 > u64::from(*room) * FULL)
        .map(|(name, entries, room)| {
            format!(
                "connection table {name} is nearly full: {entries} of {room} entries; what finds no room stays among the \
                 connections that others displace. `hiveway flow ls` shows whose they are; shorter idle times (`--timeout`) make \
                 room, and so does a larger `--max-flows`"
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_table<T: Copy>(flows: T, affinity: T, pending: T) -> PerTable<T> {
        PerTable {
            flows,
            affinity,
            flows_pending: pending,
            affinity_pending: pending,
            flows_pending_other: pending,
            affinity_pending_other: pending,
        }
    }

    #[test]
    fn more_than_nine_tenths_of_an_established_table_is_full() {
        let room = per_table(1000, 1000, 10);
        let left = |flows, affinity| per_table(flows, affinity, 10);
        assert_eq!(full(left(900, 900), room), Vec::<String>::new());
        let [only] = &full(left(901, 0), room)[..] else { panic!("flows") };
        assert!(
            only.contains("table flows is nearly full: 901 of 1000 entries") && only.contains("--max-flows"),
            "{only}"
        );
        assert_eq!(full(left(1000, 1000), room).len(), 2);
    }

    #[test]
    fn a_full_share_is_told_with_whose_it_is() {
        let text = "version: 1\nnodes: [{id: n1, hostname: one, address: 192.0.2.1}]\nnetworks: [{id: app, name: app, \
                    subnets: [{subnet: 10.0.1.0/24, gateway: 10.0.1.1, vni: 4097}]}]\nservices: [{id: w, name: web, \
                    virtual_ips: {app: 10.0.1.2}, ports: [{target_port: 80, published_port: 8080}]}]\n";
        let model = hiveway_core::table::parse_file(text, std::path::Path::new("t.yaml")).unwrap().model;
        let snapshot = Snapshot { model: model.into(), ..Snapshot::default() };
        assert_eq!(kept(&Kept::default(), &snapshot), None);
        let said = |clients, service| {
            kept(&Kept { entries: 3, service: Some(service), clients: Some(clients) }, &snapshot).unwrap()
        };
        let prefix = KeptClients::Prefix([198, 51, 100, 0].into());
        let text = said(prefix, KeptService::Port(6, 8080));
        let whose = "most from 198.51.100.0/24, most to port 8080/tcp of service web:";
        assert!(text.starts_with("3 entries") && text.contains(whose) && text.contains("--max-flows"), "{text}");
        assert!(said(prefix, KeptService::Port(17, 8080)).contains("most to port 8080/udp:"), "nobody's");
        let net = [0, 0, 16, 1];
        let container = KeptClients::Container(net, [10, 0, 1, 7].into());
        let text = said(container, KeptService::Address(net, [10, 0, 1, 2].into()));
        assert!(
            text.contains("from 10.0.1.7 on network app, most to 10.0.1.2 on network app of service web:"),
            "{text}"
        );
    }
}
