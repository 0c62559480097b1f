//! Connections as rows to show.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    ops::ControlFlow,
};

use dataplane_common::{
    addr::{NetId, Tag},
    flow::{Affinity, AffinityKey, Flow, FlowKey, MESH_ZONE, STOCK_ZONE, flag},
};

use super::{
    Connections, Stage,
    decide::affinity_state,
    pairs::{Half, Pair, is_reply, pair},
    state::State,
};
use crate::table::MapFault;

/// What this node does for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Translates a service's address on this network.
    Vip(NetId),
    /// Delivers to a task of its own what came to a published port, here or at another node.
    Mesh,
    /// Hands on what came to a published port to another node.
    Ingress,
    /// Keeps a direct connection to a task apart from those through a service's address on this network.
    Direct(NetId),
    /// Leaves packets of its own (or a masqueraded container's) connection to the stack.
    Own,
}

/// A connection, whatever number of entries it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionRow {
    /// What this node does for it.
    pub kind: Kind,
    /// IP protocol number.
    pub proto: u8,
    /// Who opened it; for [`Kind::Own`] the other end.
    pub client: SocketAddrV4,
    /// What the client talks to; for [`Kind::Own`] the address and port of this node.
    pub address: SocketAddrV4,
    /// The client as the backend sees it, where that is known here.
    pub shown_as: Option<SocketAddrV4>,
    /// The backend's address. Its port is zero for [`Kind::Ingress`], where the other node knows it; a node without
    /// Hiveway does not, and gets the published port.
    pub backend: Option<SocketAddrV4>,
    /// For [`Kind::Mesh`] the tunnel address of the ingress node, for [`Kind::Ingress`] that of the backend's node.
    pub peer: Option<Ipv4Addr>,
    /// The task that serves; zero for [`Kind::Own`].
    pub tag: Tag,
    /// How far it has come.
    pub state: State,
    /// When it began, on the clock of [`monotonic_now`](crate::monotonic_now).
    pub created: u64,
    /// When a packet was last seen, same clock.
    pub last_seen: u64,
}

impl Connections {
    /// Hands all connections to `each` in any order, until it breaks, a buffer's worth of entries at a time. One that
    /// came to a published port here and is served here is one row. What changes meanwhile may be missing or come
    /// twice.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn each_row(&self, mut each: impl FnMut(ConnectionRow) -> ControlFlow<()>) -> Result<(), MapFault> {
        let get = |key: &FlowKey| self.translated.get(key);
        let mut show = |row: Option<ConnectionRow>| row.map_or(ControlFlow::Continue(()), &mut each);
        let broken = self.translated.for_each(&|| (), |here| flow_row(here, get).map(&mut show))?;
        if broken.is_continue() {
            let _ = self.clients.for_each(&|| (), |found| affinity_row(found, get).map(&mut show))?;
        }
        Ok(())
    }

    /// All connections, in order of kind and client.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn rows(&self) -> Result<Vec<ConnectionRow>, MapFault> {
        let mut rows = Vec::new();
        self.each_row(|row| {
            rows.push(row);
            ControlFlow::Continue(())
        })?;
        rows.sort_by_key(|row| (row.kind, row.proto, row.client, row.address));
        Ok(rows)
    }
}

/// The row of an entry of a translated connection, unless the other one tells of it.
fn flow_row<E>(
    here: Half,
    get: impl FnOnce(&FlowKey) -> Result<Option<(Stage, Flow)>, E>,
) -> Result<Option<ConnectionRow>, E> {
    Ok(pair(here, get)?.map(|pair| translated(&pair)))
}

/// The row of a client's entry, unless the connection is delivered here: then it is translated as well, and shown so.
fn affinity_row<E>(
    (key, stage, entry): (AffinityKey, Stage, Affinity),
    get: impl Fn(&FlowKey) -> Result<Option<(Stage, Flow)>, E>,
) -> Result<Option<ConnectionRow>, E> {
    let ends = ((key.client, key.client_port), (key.node, key.port));
    for zone in [MESH_ZONE, STOCK_ZONE].into_iter().filter(|_| entry.flags & flag::OWN == 0) {
        let delivered = get(&FlowKey::new(zone, ends.0, ends.1, key.proto))?;
        if delivered.is_some_and(|(_, flow)| flow.tag == entry.tag && !is_reply(&flow)) {
            return Ok(None);
        }
    }
    Ok(Some(handed_on(&key, stage, &entry)))
}

fn translated(pair: &Pair) -> ConnectionRow {
    let (key, _, flow) = pair.first();
    let (before, after) = (
        (socket(key.src, key.sport), socket(key.dst, key.dport)),
        (socket(flow.src, flow.sport), socket(flow.dst, flow.dport)),
    );
    // A reply entry tells the same story backwards.
    let (client, address, shown_as, backend) =
        if is_reply(&flow) { (after.1, after.0, before.1, before.0) } else { (before.0, before.1, after.0, after.1) };
    let direct = flow.flags & flag::DIRECT != 0;
    ConnectionRow {
        kind: match (key.zone, direct) {
            (MESH_ZONE, _) => Kind::Mesh,
            (STOCK_ZONE, _) => Kind::Ingress,
            (net, true) => Kind::Direct(net),
            (net, false) => Kind::Vip(net),
        },
        proto: key.proto,
        client,
        address,
        shown_as: Some(shown_as),
        backend: Some(backend),
        peer: (key.zone == MESH_ZONE || key.zone == STOCK_ZONE).then(|| flow.peer.into()),
        tag: flow.tag,
        state: pair.state(),
        created: pair.created(),
        last_seen: pair.last_seen(),
    }
}

fn handed_on(key: &AffinityKey, stage: Stage, entry: &Affinity) -> ConnectionRow {
    let own = entry.flags & flag::OWN != 0;
    ConnectionRow {
        kind: if own { Kind::Own } else { Kind::Ingress },
        proto: key.proto,
        client: socket(key.client, key.client_port),
        address: socket(key.node, key.port),
        shown_as: None,
        backend: (!own).then(|| socket(entry.ip, [0; 2])),
        peer: (!own).then(|| entry.vtep.into()),
        tag: entry.tag,
        state: affinity_state(key, stage, entry),
        created: entry.created,
        last_seen: entry.last_seen,
    }
}

fn socket(ip: [u8; 4], port: [u8; 2]) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(ip), u16::from_be_bytes(port))
}

#[cfg(test)]
mod tests;
