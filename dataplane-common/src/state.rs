//! The desired contents of all maps as one plain value, the seam between the pure core (which computes it) and the
//! `dataplane` crate (which writes it).

use alloc::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    vec::Vec,
};

use crate::{
    addr::{Ip4, NetId, Port, VniBytes},
    config::Config,
    endpoint::{Endpoint, EndpointKey, Local, VniInfo, Vtep},
    mesh::{ClientPrefix, ClientRule, NodeAddress, Target, TargetKey},
    service::{AllowPrefix, Backend, LeftPrefix, PortKey},
};

/// What a backend set belongs to. Set ids are handed out by the `dataplane` crate and never leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKey {
    /// A service's VIP on one network; there is an [`Endpoint`] of kind VIP with the same network and address.
    Vip {
        /// Network id.
        net: NetId,
        /// The VIP.
        ip: Ip4,
    },
    /// A published port, in ingress mode or of a local task in host mode; map `PORTS` is derived from these keys.
    Port {
        /// IP protocol number.
        proto: u8,
        /// Published port.
        port: Port,
    },
}

/// Everything that the maps should hold, except what packets write themselves (flows, affinity, counters).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapState {
    /// Node-wide settings.
    pub config: Config,
    /// By index of the host-side veth.
    pub locals: BTreeMap<u32, Local>,
    /// Who answers at which overlay address. [`Endpoint::set`] of VIPs is 0 here and filled in when it is written.
    pub endpoints: BTreeMap<EndpointKey, Endpoint>,
    /// VNIs this node has joined.
    pub vnis: BTreeMap<VniBytes, VniInfo>,
    /// Other nodes' tunnel addresses.
    pub vteps: BTreeMap<Ip4, Vtep>,
    /// This node's own addresses at which published ports answer.
    pub node_addresses: BTreeMap<Ip4, NodeAddress>,
    /// Backend sets, each sorted by (ip, tag); an empty one means "service without backends" and must be kept.
    pub sets: BTreeMap<SetKey, Vec<Backend>>,
    /// Local tasks behind published ports.
    pub targets: BTreeMap<TargetKey, Target>,
    /// Published ports that only some clients may use.
    pub restricted: BTreeSet<PortKey>,
    /// Who they are: (prefix length as in map `ALLOW`, prefix). A restricted port without any is closed to all.
    pub allow: BTreeSet<(u32, AllowPrefix)>,
    /// Who they are not, although a shorter prefix in `allow` holds them.
    pub deny: BTreeSet<(u32, AllowPrefix)>,
    /// Published ports that answer at some of this node's addresses only, with their class.
    pub bound: BTreeMap<PortKey, u8>,
    /// Clients that are left to the host: (prefix length as in map `LEFT`, prefix). There may be many, and they seldom
    /// change.
    pub left: Arc<BTreeSet<(u32, LeftPrefix)>>,
    /// Which entries of `left` published ports have to be asked about: bits of [`crate::service::port_flag::LEFT`].
    pub left_flags: BTreeMap<PortKey, u8>,
    /// Clients that are shown with another address: (prefix length as in map `CLIENTS`, prefix) → rule.
    pub clients: BTreeMap<(u32, ClientPrefix), ClientRule>,
}

/// A part of a [`MapState`] that is another one now: of tasks on other nodes, and of the sets that they are in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapChange {
    /// `None`: there is nobody at this address any more. Never a VIP's.
    pub endpoints: BTreeMap<EndpointKey, Option<Endpoint>>,
    /// Sets that exist, with their new content.
    pub sets: BTreeMap<SetKey, Vec<Backend>>,
}

impl MapChange {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.sets.is_empty()
    }
}
