//! The programs, by name.

use std::{fmt, str::FromStr};

/// A program of the data plane.
///
/// Append only: on kernels without TCX the numbers are part of what a restarted agent recognises its filters by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// On the host side of every overlay veth.
    FromContainer = 0,
    /// On the host side of every gateway-bridge veth.
    FromGateway = 1,
    /// On the VTEP's interface: tunnelled frames, and the mesh.
    FromUnderlay = 2,
    /// On further interfaces where clients of the mesh arrive.
    FromClient = 3,
    /// On the kernel's vxlan devices: the slow path's sender check.
    FromVxlan = 4,
    /// On the way out of the VTEP's interface and of those where clients arrive, while a UDP port is published: the
    /// node's own use of published ports.
    ToOutside = 5,
    /// On the way out of a container's own interface on a network that the engine carries, behind a trampoline.
    FromSandbox = 6,
    /// On the way in there.
    ToSandbox = 7,
    /// In front of `from_underlay` and `from_client`, where XDP is wanted: the mesh's hot path. Attached by
    /// [`Dataplane::attach_xdp`](crate::Dataplane::attach_xdp) only.
    XdpMesh = 8,
    /// As `FromUnderlay`, on a link without an Ethernet header.
    FromUnderlayL3 = 9,
    /// As `FromClient`, on a link without an Ethernet header.
    FromClientL3 = 10,
    /// As `ToOutside`, on a link without an Ethernet header.
    ToOutsideL3 = 11,
    /// As `XdpMesh`, in drivers. Its links are pinned under the name of that one.
    XdpMeshFrags = 12,
}

/// Which side of a device a program runs at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What the device receives.
    Ingress,
    /// What leaves through it.
    Egress,
}

impl Program {
    /// All programs.
    pub const ALL: &'static [Self] = &[
        Self::FromContainer,
        Self::FromGateway,
        Self::FromUnderlay,
        Self::FromClient,
        Self::FromVxlan,
        Self::ToOutside,
        Self::FromSandbox,
        Self::ToSandbox,
        Self::XdpMesh,
        Self::FromUnderlayL3,
        Self::FromClientL3,
        Self::ToOutsideL3,
        Self::XdpMeshFrags,
    ];

    /// Name of the function in the object, and part of the names of pinned links.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromContainer => "from_container",
            Self::FromGateway => "from_gateway",
            Self::FromUnderlay => "from_underlay",
            Self::FromClient => "from_client",
            Self::FromVxlan => "from_vxlan",
            Self::ToOutside => "to_outside",
            Self::FromSandbox => "from_sandbox",
            Self::ToSandbox => "to_sandbox",
            Self::XdpMesh => "xdp_mesh",
            Self::FromUnderlayL3 => "from_underlay_l3",
            Self::FromClientL3 => "from_client_l3",
            Self::ToOutsideL3 => "to_outside_l3",
            Self::XdpMeshFrags => "xdp_mesh_frags",
        }
    }

    /// Where it runs.
    pub const fn direction(self) -> Direction {
        match self {
            Self::ToOutside | Self::ToOutsideL3 | Self::FromSandbox => Direction::Egress,
            _ => Direction::Ingress,
        }
    }

    /// Whether it runs before the kernel has made a socket buffer; the others are TC programs.
    pub const fn is_xdp(self) -> bool {
        matches!(self, Self::XdpMesh | Self::XdpMeshFrags)
    }

    /// Whether it runs on the host's own interfaces, which are renamed now and then, unlike those that the agent makes.
    pub(crate) const fn on_hosts_interfaces(self) -> bool {
        !self.in_sandbox() && !matches!(self, Self::FromContainer | Self::FromGateway | Self::FromVxlan)
    }

    /// Whether it runs in containers' own namespaces, behind a trampoline. Such programs are attached by
    /// [`Dataplane::attach_sandbox`](crate::Dataplane::attach_sandbox) only.
    pub const fn in_sandbox(self) -> bool {
        matches!(self, Self::FromSandbox | Self::ToSandbox)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no program of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no program is called `{0}`")]
pub struct UnknownProgram(pub String);

impl FromStr for Program {
    type Err = UnknownProgram;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().copied().find(|p| p.name() == name).ok_or_else(|| UnknownProgram(name.to_owned()))
    }
}
