//! `flow ls`.

use std::net::SocketAddrV4;

use dataplane::{AffinityRow, FlowRow, monotonic_now};
use dataplane_common::{addr::Tag, flow::flag};
use serde::Serialize;

use crate::agent::shared::{Shared, Snapshot};

/// A row of `flow ls`: one direction of a connection that this node translates, or a client's connection that it hands
/// on as ingress node.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FlowView {
    /// `vip`, `mesh` (at the backend's node) or `ingress` (at the ingress node).
    kind: &'static str,
    /// `request` or `reply`.
    direction: &'static str,
    protocol: String,
    /// Network's name, for `vip`.
    network: Option<String>,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    /// After translation; the backend's address for `ingress`, without port.
    translated_source: Option<SocketAddrV4>,
    translated_destination: Option<SocketAddrV4>,
    task: Option<String>,
    service: Option<String>,
    age_seconds: u64,
    idle_seconds: u64,
    /// `fin`, `rst`, `seen`, `replied`.
    flags: Vec<&'static str>,
}

pub(super) fn flows(shared: &Shared, snapshot: &Snapshot) -> Result<Vec<FlowView>, String> {
    let (rows, affinity) = {
        let dataplane = shared.dataplane();
        (dataplane.flows().map_err(|e| e.to_string())?, dataplane.affinity().map_err(|e| e.to_string())?)
    };
    let now = monotonic_now();
    let translated = rows.iter().map(|row| translated(row, snapshot, now));
    Ok(translated.chain(affinity.iter().map(|row| ingress(row, snapshot, now))).collect())
}

fn translated(row: &FlowRow, snapshot: &Snapshot, now: u64) -> FlowView {
    let (source, destination) = row.before();
    let (translated_source, translated_destination) = row.after();
    let (task, service) = who(snapshot, row.tag());
    let network = row.network().map(|net| {
        let name = snapshot.model.networks.values().find(|network| network.net_id() == net);
        name.map_or_else(|| format!("vni {}", u32::from_be_bytes(net)), |network| network.name.clone())
    });
    FlowView {
        kind: if network.is_some() { "vip" } else { "mesh" },
        direction: if row.is_reply() { "reply" } else { "request" },
        protocol: protocol(row.key.proto),
        network,
        source,
        destination,
        translated_source: Some(translated_source),
        translated_destination: Some(translated_destination),
        task,
        service,
        age_seconds: seconds(now, row.flow.created),
        idle_seconds: seconds(now, row.flow.last_seen),
        flags: flags(row.flow.flags),
    }
}

fn ingress(row: &AffinityRow, snapshot: &Snapshot, now: u64) -> FlowView {
    let (task, service) = who(snapshot, row.affinity.tag);
    FlowView {
        kind: "ingress",
        direction: "request",
        protocol: protocol(row.key.proto),
        network: None,
        source: row.client(),
        destination: row.published(),
        translated_source: None,
        translated_destination: None,
        task,
        service,
        age_seconds: seconds(now, row.affinity.created),
        idle_seconds: seconds(now, row.affinity.last_seen),
        flags: flags(row.affinity.flags),
    }
}

fn who(snapshot: &Snapshot, tag: Tag) -> (Option<String>, Option<String>) {
    snapshot.tags.get(&tag).map_or((None, None), |(task, service)| (Some(task.clone()), service.clone()))
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        132 => "sctp".into(),
        other => other.to_string(),
    }
}

fn seconds(now: u64, then: u64) -> u64 {
    now.saturating_sub(then) / 1_000_000_000
}

fn flags(bits: u8) -> Vec<&'static str> {
    [(flag::SEEN, "seen"), (flag::FIN, "fin"), (flag::RST, "rst"), (flag::REPLIED, "replied")]
        .into_iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| name)
        .collect()
}
