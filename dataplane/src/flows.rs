//! Maps `FLOWS` and `AFFINITY` as rows to show.

use std::net::{Ipv4Addr, SocketAddrV4};

use dataplane_common::{
    addr::{NetId, Tag},
    flow::{Affinity, AffinityKey, Flow, FlowKey, MESH_ZONE, flag},
};

use crate::{table::MapFault, tables::Tables};

/// An entry of `FLOWS`: one direction of a translated connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRow {
    /// The key.
    pub key: FlowKey,
    /// The value.
    pub flow: Flow,
}

impl FlowRow {
    /// The network, or `None` for a connection that came through the routing mesh.
    pub fn network(&self) -> Option<NetId> {
        (self.key.zone != MESH_ZONE).then_some(self.key.zone)
    }

    /// Whether this is the direction from the backend to the client.
    pub fn is_reply(&self) -> bool {
        self.flow.flags & flag::REPLY != 0
    }

    /// Source and destination before translation.
    pub fn before(&self) -> (SocketAddrV4, SocketAddrV4) {
        (socket(self.key.src, self.key.sport), socket(self.key.dst, self.key.dport))
    }

    /// Source and destination after translation.
    pub fn after(&self) -> (SocketAddrV4, SocketAddrV4) {
        (socket(self.flow.src, self.flow.sport), socket(self.flow.dst, self.flow.dport))
    }

    /// The task that serves.
    pub fn tag(&self) -> Tag {
        self.flow.tag
    }
}

/// An entry of `AFFINITY`: a client's connection at this ingress node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityRow {
    /// The key.
    pub key: AffinityKey,
    /// The value.
    pub affinity: Affinity,
}

impl AffinityRow {
    /// The client.
    pub fn client(&self) -> SocketAddrV4 {
        socket(self.key.client, self.key.client_port)
    }

    /// What it talks to: an address of this node and a published port.
    pub fn published(&self) -> SocketAddrV4 {
        socket(self.key.node, self.key.port)
    }
}

fn socket(ip: [u8; 4], port: [u8; 2]) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(ip), u16::from_be_bytes(port))
}

impl Tables {
    /// All entries of `FLOWS`, in order of keys.
    pub(crate) fn flow_rows(&self) -> Result<Vec<FlowRow>, MapFault> {
        Ok(self.flows.read()?.into_iter().map(|(key, flow)| FlowRow { key, flow }).collect())
    }

    /// All entries of `AFFINITY`, in order of keys.
    pub(crate) fn affinity_rows(&self) -> Result<Vec<AffinityRow>, MapFault> {
        Ok(self.affinity.read()?.into_iter().map(|(key, affinity)| AffinityRow { key, affinity }).collect())
    }
}
