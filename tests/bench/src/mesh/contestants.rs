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
    /// XDP_TX of a frame with 50 bytes less: the same of whoever takes packets out of a tunnel.
    Pull,
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
    pub(super) const ALL: [Self; 7] =
        [Self::Floor, Self::Push, Self::Pull, Self::HivewayXdp, Self::HivewayTc, Self::Nftables, Self::Routing];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Floor => "bare XDP_TX",
            Self::Push => "XDP_TX with 50 bytes in front",
            Self::Pull => "XDP_TX with 50 bytes taken off",
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
            Self::Pull => "pull",
            Self::HivewayXdp => "xdp",
            Self::HivewayTc => "tc",
            Self::Nftables => "nft",
            Self::Routing => "route",
        }
    }

    /// Whether its packets leave the node as XDP frames.
    pub(super) fn sends_frames(self, site: Site) -> bool {
        match self {
            Self::Floor | Self::Push | Self::Pull => true,
            Self::HivewayXdp => site != Site::Local,
            Self::HivewayTc | Self::Nftables | Self::Routing => false,
        }
    }

    /// Arguments for the agent.
    pub(super) fn agent_arguments(self) -> [&'static str; 2] {
        ["--xdp", if self == Self::HivewayXdp { "native" } else { "off" }]
    }

    /// Whether a tunnel is between it and backends elsewhere.
    pub(super) fn has_tunnel(self) -> bool {
        matches!(self, Self::HivewayXdp | Self::HivewayTc)
    }

    /// Whether it decides nothing, and only others refer to it.
    pub(super) fn is_floor(self) -> bool {
        matches!(self, Self::Floor | Self::Push | Self::Pull)
    }

    /// Whether there is such a row in a case: floors with a tunnel only where somebody has one, and in its direction.
    pub(super) fn takes_part(self, case: Case) -> bool {
        match self {
            Self::Push => case.site != Site::Local && case.direction == Direction::Requests,
            Self::Pull => case.site != Site::Local && case.direction == Direction::Replies,
            _ => true,
        }
    }

    /// What its time is compared with: what generator, cable and counter cost with frames of the same lengths.
    pub(super) fn floor(self, case: Case) -> Self {
        match case.direction {
            _ if !self.has_tunnel() || case.site == Site::Local => Self::Floor,
            Direction::Requests => Self::Push,
            Direction::Replies => Self::Pull,
        }
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

/// Which of a connection's packets are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Direction {
    /// The client's.
    Requests,
    /// The backend's, on their way to the client.
    Replies,
}

/// The first published port.
pub(super) const FIRST_PORT: u16 = 20_000;

/// One line of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Case {
    pub(super) site: Site,
    /// Established flows; 0: a SYN flood.
    pub(super) flows: u32,
    pub(super) direction: Direction,
}

const fn requests(site: Site, flows: u32) -> Case {
    Case { site, flows, direction: Direction::Requests }
}

const fn replies(site: Site, flows: u32) -> Case {
    Case { site, flows, direction: Direction::Replies }
}

/// The matrix, smallest first. Cases of the same flows stand together: those are opened once for both.
pub(super) const CASES: [Case; 12] = [
    requests(Site::Remote, 1),
    replies(Site::Remote, 1),
    requests(Site::Remote, 100),
    requests(Site::Remote, 10_000),
    replies(Site::Remote, 10_000),
    requests(Site::Remote, 1_000_000),
    replies(Site::Remote, 1_000_000),
    requests(Site::ManyPorts, 1),
    requests(Site::ManyPorts, 10_000),
    requests(Site::Local, 1),
    requests(Site::Local, 10_000),
    requests(Site::Flooded, 0),
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
        let replies = if self.direction == Direction::Replies { ", replies" } else { "" };
        format!("{flows}, {ports}, backend {}{replies}", if self.site == Site::Local { "local" } else { "remote" })
    }

    /// Whether both are of the same flows.
    pub(super) fn shares_flows(&self, other: &Self) -> bool {
        (self.site, self.flows) == (other.site, other.flows)
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
        assert_eq!(CASES[5].title(), "1,000,000 flows, 1 published port, backend remote");
        assert_eq!(CASES[6].title(), "1,000,000 flows, 1 published port, backend remote, replies");
        assert_eq!(CASES[8].title(), "10,000 flows, 10,000 published ports, backend remote");
        assert_eq!(CASES[11].title(), "SYN flood, 1 published port, backend remote");
    }

    #[test]
    fn floors_have_the_frames_of_those_who_refer_to_them() {
        for (case, floor) in [
            (requests(Site::Remote, 1), Contestant::Push),
            (requests(Site::Flooded, 0), Contestant::Push),
            (replies(Site::Remote, 1), Contestant::Pull),
            (requests(Site::Local, 1), Contestant::Floor),
        ] {
            assert_eq!(Contestant::HivewayXdp.floor(case), floor, "{case:?}");
            assert_eq!(Contestant::Nftables.floor(case), Contestant::Floor);
        }
        for case in CASES {
            let there = |who: &Contestant| who.takes_part(case);
            assert!(Contestant::ALL.iter().filter(|who| there(who)).all(|who| there(&who.floor(case))), "{case:?}");
        }
    }
}
