//! `flow ls`.

use std::net::{Ipv4Addr, SocketAddrV4};

use dataplane::{ConnectionRow, Kind, monotonic_now};
use dataplane_common::addr::NetId;
use serde::Serialize;

use crate::agent::shared::{Shared, Snapshot};

/// A row of `flow ls`: a connection, whatever this node does for it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FlowView {
    /// `vip`, `mesh` (served here), `ingress` (handed on to another node), `direct` or `own`.
    kind: &'static str,
    protocol: String,
    /// Network's name, for `vip` and `direct`.
    network: Option<String>,
    client: SocketAddrV4,
    /// What the client talks to.
    address: SocketAddrV4,
    /// The client as the backend sees it; null for `ingress` and `own`.
    shown_as: Option<SocketAddrV4>,
    /// The backend's address and port; for `ingress` its address on the ingress network, without a port.
    backend: Option<String>,
    task: Option<String>,
    service: Option<String>,
    /// For `mesh` the ingress node's tunnel address, for `ingress` that of the backend's node.
    node: Option<Ipv4Addr>,
    state: &'static str,
    age_seconds: u64,
    idle_seconds: u64,
}

pub(super) fn flows(shared: &Shared, snapshot: &Snapshot) -> Result<Vec<FlowView>, String> {
    let rows = shared.connections().rows().map_err(|error| error.to_string())?;
    let now = monotonic_now();
    Ok(rows.iter().map(|row| view(row, snapshot, now)).collect())
}

fn view(row: &ConnectionRow, snapshot: &Snapshot, now: u64) -> FlowView {
    let (kind, network) = match row.kind {
        Kind::Vip(net) => ("vip", Some(net)),
        Kind::Mesh => ("mesh", None),
        Kind::Ingress => ("ingress", None),
        Kind::Direct(net) => ("direct", Some(net)),
        Kind::Own => ("own", None),
    };
    let backend = row.backend.map(|backend| match row.kind {
        Kind::Ingress => backend.ip().to_string(),
        _ => backend.to_string(),
    });
    let (task, service) = snapshot
        .tags
        .get(&row.tag)
        .map_or((None, None), |(task, service)| (Some(task.to_owned()), service.map(str::to_owned)));
    FlowView {
        kind,
        protocol: protocol(row.proto),
        network: network.map(|net| network_name(snapshot, net)),
        client: row.client,
        address: row.address,
        shown_as: row.shown_as,
        backend,
        task,
        service,
        node: row.peer,
        state: row.state.name(row.proto),
        age_seconds: seconds(now, row.created),
        idle_seconds: seconds(now, row.last_seen),
    }
}

fn network_name(snapshot: &Snapshot, net: NetId) -> String {
    let network = snapshot.model.networks.values().find(|network| network.net_id() == net);
    network.map_or_else(|| format!("vni {}", u32::from_be_bytes(net)), |network| network.name.clone())
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
