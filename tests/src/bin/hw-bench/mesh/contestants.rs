//! Who forwards, and where.

use clap::ValueEnum;
use serde::Serialize;

use super::order::Protocol;

/// Who forwards a published port's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(super) enum Contestant {
    /// Bare XDP_TX: what generator, cable and counter cost by themselves.
    Floor,
    /// XDP_TX of a frame with 50 bytes more: what a tunnel costs whoever decides nothing.
    Push,
    /// The agent with `--xdp native`; left out while it has no such program.
    HivewayXdp,
    /// The agent's TC programs.
    HivewayTc,
    /// DNAT, in turn to each backend, and masquerade.
    Nftables,
    /// Neither ports nor backends: the kernel forwards to an address.
    Routing,
}

impl Contestant {
    pub(super) const ALL: [Self; 6] =
        [Self::Floor, Self::Push, Self::HivewayXdp, Self::HivewayTc, Self::Nftables, Self::Routing];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Floor => "bare XDP_TX",
            Self::Push => "XDP_TX with 50 bytes in front",
            Self::HivewayXdp => "Hiveway, native XDP",
            Self::HivewayTc => "Hiveway, TC",
            Self::Nftables => "nftables DNAT + masquerade",
            Self::Routing => "plain kernel routing",
        }
    }

    /// Name in namespaces' names.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Push => "push",
            Self::HivewayXdp => "xdp",
            Self::HivewayTc => "tc",
            Self::Nftables => "nft",
            Self::Routing => "route",
        }
    }

    /// Whether its packets leave the node as XDP frames.
    pub(super) fn sends_frames(self, site: Site) -> bool {
        match self {
            Self::Floor | Self::Push => true,
            Self::HivewayXdp => site != Site::Local,
            Self::HivewayTc | Self::Nftables | Self::Routing => false,
        }
    }

    /// Arguments for the agent.
    pub(super) fn agent_arguments(self) -> [&'static str; 2] {
        ["--xdp", if self == Self::HivewayXdp { "native" } else { "off" }]
    }
}

/// What a node has to serve. Each contestant has a node of its own for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Site {
    /// One published port, 32 backends on another node.
    Remote,
    /// 10,000 published ports, 8 backends each on another node.
    ManyPorts,
    /// One published port, one backend on this node.
    Local,
    /// As `Remote`; apart, so that what a flood leaves behind is in nobody's way.
    Flooded,
}

impl Site {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Remote => "remote",
            Self::ManyPorts => "ports",
            Self::Local => "local",
            Self::Flooded => "flood",
        }
    }

    /// Published ports, from [`FIRST_PORT`] on.
    pub(super) fn ports(self) -> u16 {
        if self == Self::ManyPorts { 10_000 } else { 1 }
    }

    /// Backends of each port.
    pub(super) fn backends(self) -> u32 {
        match self {
            // A masquerade has 64,000 ports towards each backend, which a million flows would exhaust with less.
            Self::Remote | Self::Flooded => 32,
            Self::ManyPorts => 8,
            Self::Local => 1,
        }
    }
}

/// The first published port.
pub(super) const FIRST_PORT: u16 = 20_000;

/// One line of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Case {
    pub(super) site: Site,
    /// Established flows; 0: a SYN flood.
    pub(super) flows: u32,
}

/// The matrix, smallest first.
pub(super) const CASES: [Case; 9] = [
    Case { site: Site::Remote, flows: 1 },
    Case { site: Site::Remote, flows: 100 },
    Case { site: Site::Remote, flows: 10_000 },
    Case { site: Site::Remote, flows: 1_000_000 },
    Case { site: Site::ManyPorts, flows: 1 },
    Case { site: Site::ManyPorts, flows: 10_000 },
    Case { site: Site::Local, flows: 1 },
    Case { site: Site::Local, flows: 10_000 },
    Case { site: Site::Flooded, flows: 0 },
];

impl Case {
    pub(super) fn protocol(self, established: Protocol) -> Protocol {
        if self.flows == 0 { Protocol::Tcp } else { established }
    }

    pub(super) fn title(self) -> String {
        let flows = match self.flows {
            0 => "SYN flood".to_owned(),
            1 => "1 flow".to_owned(),
            flows => format!("{} flows", grouped(flows)),
        };
        let ports = match self.site.ports() {
            1 => "1 published port".to_owned(),
            ports => format!("{} published ports", grouped(ports.into())),
        };
        format!("{flows}, {ports}, backend {}", if self.site == Site::Local { "local" } else { "remote" })
    }
}

fn grouped(number: u32) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles() {
        assert_eq!(CASES[3].title(), "1,000,000 flows, 1 published port, backend remote");
        assert_eq!(CASES[5].title(), "10,000 flows, 10,000 published ports, backend remote");
        assert_eq!(CASES[8].title(), "SYN flood, 1 published port, backend remote");
    }
}
