//! `flow ls`.

use std::{
    mem,
    net::{Ipv4Addr, SocketAddrV4},
    ops::ControlFlow,
};

use dataplane::{ConnectionRow, Kind, monotonic_now};
use dataplane_common::addr::NetId;
use hiveway_core::near::closest;
use serde::Serialize;

use super::Answers;
use crate::{
    agent::shared::Snapshot,
    plain,
    status::protocol::{End, FlowFilter, Response},
};

/// A row of `flow ls`: a connection, whatever this node does for it.
#[derive(Clone, Debug, Serialize)]
struct FlowView {
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

/// Rows that are handed on together.
const CHUNK: usize = 256;

/// Hands the connections that the filter leaves in to `send`, some at a time, in any order; ends early when `send` says
/// no. What is in memory does not grow with their number.
///
/// # Errors
/// When the filter is wrong, there are no connections yet, or maps cannot be read.
pub fn flows(answers: &Answers, filter: &FlowFilter, mut send: impl FnMut(Response) -> bool) -> Result<(), String> {
    let shared = match answers {
        Answers::Agent(shared) => shared,
        Answers::Starting(starting) => return Err(starting.no_answer()),
    };
    let (snapshot, now, clients) = (shared.snapshot(), monotonic_now(), filter.clients()?);
    let services = service_names(filter, &snapshot)?;
    let (mut chunk, mut found, mut more, mut listening) = (Vec::new(), 0, false, true);
    let limit = filter.limit.unwrap_or(usize::MAX);
    let read = shared.connections().each_row(|row| {
        let wanted = clients.contains(row.client.ip())
            && filter.state.as_deref().is_none_or(|state| state == row.state.name(row.proto));
        if !wanted {
            return ControlFlow::Continue(());
        }
        let view = view(&row, &snapshot, now);
        if services.as_ref().is_some_and(|names| !view.service.as_ref().is_some_and(|name| names.contains(name))) {
            return ControlFlow::Continue(());
        }
        if found >= limit {
            more = true;
            return ControlFlow::Break(());
        }
        found += 1;
        chunk.extend(serde_json::to_value(view).map(plain::bounded));
        if chunk.len() >= CHUNK {
            listening = send(Response::Rows(mem::take(&mut chunk)));
        }
        if listening { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    read.map_err(|error| error.to_string())?;
    if listening && (chunk.is_empty() || send(Response::Rows(chunk))) {
        send(Response::End(End { rows: found, more }));
    }
    Ok(())
}

/// The names that rows show for the service that the filter names by name or id; `None`: it names none.
///
/// # Errors
/// That there is no such service.
fn service_names(filter: &FlowFilter, snapshot: &Snapshot) -> Result<Option<Vec<String>>, String> {
    let Some(wanted) = filter.service.as_deref() else { return Ok(None) };
    let services = &snapshot.model.services;
    if let Some(service) = services.get(wanted) {
        return Ok(Some(vec![service.name.clone(), wanted.to_owned()]));
    }
    let names = || services.values().map(|service| service.name.as_str());
    if names().any(|name| name == wanted) || snapshot.tags.has_service(wanted) {
        return Ok(Some(vec![wanted.to_owned()]));
    }
    let hint = closest(wanted, names())
        .map_or_else(|| "`hiveway service ls` lists them".to_owned(), |near| format!("did you mean {near:?}?"));
    Err(format!("there is no service {wanted:?} in this node's table; {hint}"))
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

pub(super) fn network_name(snapshot: &Snapshot, net: NetId) -> String {
    let network = snapshot.model.networks.values().find(|network| network.net_id() == net);
    network.map_or_else(|| format!("vni {}", u32::from_be_bytes(net)), |network| network.name.clone())
}

pub(super) fn protocol(number: u8) -> String {
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
