//! The maps, by name.

use std::fmt;

/// A map of the data plane, as it is called in the object and pinned under `<bpffs>/maps/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapName {
    /// Node-wide settings.
    Config,
    /// Whose interface it is.
    Locals,
    /// Who answers at which overlay address.
    Endpoints,
    /// VNIs this node has joined.
    Vnis,
    /// Other nodes' tunnel addresses.
    Vteps,
    /// This node's own addresses.
    NodeAddresses,
    /// Published ports.
    Ports,
    /// Backend sets: one word each.
    Sets,
    /// Round robin positions, one per set.
    Cursors,
    /// Backend slots.
    Backends,
    /// Local tasks behind published ports.
    MeshTargets,
    /// As `AffinitySegments`, of established connections that found no room there.
    Affinity,
    /// As `FlowsSegments`, of established connections that found no room there.
    Flows,
    /// Which backend a client's connection was given, at its ingress node: in lines of memory.
    AffinitySegments,
    /// How many lines there are, and what programs have to know of them.
    AffinityHead,
    /// Connections that are translated here: in lines of memory.
    FlowsSegments,
    /// As `AffinityHead`, of those.
    FlowsHead,
    /// How many of clients' and of translated connections each service and each client prefix holds.
    Shares,
    /// Whether any direct connection is translated.
    DirectGate,
    /// Who may use restricted ports.
    Allow,
    /// Clients that are left to the host.
    Left,
    /// Clients that are shown with another address.
    Clients,
    /// Interfaces that XDP can send out of.
    XdpDevices,
    /// For how long XDP may believe what it knows.
    XdpState,
    /// The ways to other nodes.
    Hops,
    /// How large packets to other nodes may be.
    Paths,
    /// The same for all of them, and what of ICMP is believed.
    PathState,
    /// What came of probes.
    Probes,
    /// Which sources interfaces let in.
    Reverse,
    /// What the trampolines on containers' own interfaces call.
    SandboxPrograms,
    /// Where packets of links without an Ethernet header go on.
    L3Programs,
    /// Dropped packets by reason.
    Drops,
    /// Handled packets by what was done.
    Counters,
}

/// Maps that earlier versions have pinned and this one does not.
pub(crate) mod retired {
    /// `AFFINITY_SEGMENTS` has taken their place.
    pub(crate) const CLIENTS: [&str; 3] = ["AFFINITY_PENDING", "AFFINITY_PENDING_OTHER", "AFFINITY_LINES"];
    /// `FLOWS_SEGMENTS` has taken their place.
    pub(crate) const FLOWS: [&str; 2] = ["FLOWS_PENDING", "FLOWS_PENDING_OTHER"];
}

impl MapName {
    /// All maps that are pinned.
    pub const ALL: &'static [Self] = &[
        Self::Config,
        Self::Locals,
        Self::Endpoints,
        Self::Vnis,
        Self::Vteps,
        Self::NodeAddresses,
        Self::Ports,
        Self::Sets,
        Self::Cursors,
        Self::Backends,
        Self::MeshTargets,
        Self::Affinity,
        Self::Flows,
        Self::AffinitySegments,
        Self::AffinityHead,
        Self::FlowsSegments,
        Self::FlowsHead,
        Self::Shares,
        Self::DirectGate,
        Self::Allow,
        Self::Left,
        Self::Clients,
        Self::XdpDevices,
        Self::XdpState,
        Self::Hops,
        Self::Paths,
        Self::PathState,
        Self::Probes,
        Self::Reverse,
        Self::SandboxPrograms,
        Self::L3Programs,
        Self::Drops,
        Self::Counters,
    ];

    /// The name in the object and under `<bpffs>/maps/`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Config => "CONFIG",
            Self::Locals => "LOCALS",
            Self::Endpoints => "ENDPOINTS",
            Self::Vnis => "VNIS",
            Self::Vteps => "VTEPS",
            Self::NodeAddresses => "NODE_ADDRESSES",
            Self::Ports => "PORTS",
            Self::Sets => "SETS",
            Self::Cursors => "CURSORS",
            Self::Backends => "BACKENDS",
            Self::MeshTargets => "MESH_TARGETS",
            Self::Affinity => "AFFINITY",
            Self::Flows => "FLOWS",
            Self::AffinitySegments => "AFFINITY_SEGMENTS",
            Self::AffinityHead => "AFFINITY_HEAD",
            Self::FlowsSegments => "FLOWS_SEGMENTS",
            Self::FlowsHead => "FLOWS_HEAD",
            Self::Shares => "SHARES",
            Self::DirectGate => "DIRECT_GATE",
            Self::Allow => "ALLOW",
            Self::Left => "LEFT",
            Self::Clients => "CLIENTS",
            Self::XdpDevices => "XDP_DEVICES",
            Self::XdpState => "XDP_STATE",
            Self::Hops => "HOPS",
            Self::Paths => "PATHS",
            Self::PathState => "PATH_STATE",
            Self::Probes => "PROBES",
            Self::Reverse => "REVERSE",
            Self::SandboxPrograms => "SANDBOX_PROGRAMS",
            Self::L3Programs => "L3_PROGRAMS",
            Self::Drops => "DROPS",
            Self::Counters => "COUNTERS",
        }
    }
}

impl fmt::Display for MapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
