//! `hiveway agent`: all flags of the contract.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use clap::{Args, ValueEnum};
use hiveway_core::{
    firewall::Ignored,
    model::{AllowEntry, AllowList, Place, Places},
};
use ipnet::Ipv4Net;

use super::{ConnectionArgs, DEFAULT_BPFFS, DEFAULT_SOCKET, DEFAULT_STATE_DIR, EngineArgs, RelayArgs};
use crate::{source::Source, uplinks::Underlay};

/// Arguments of `hiveway agent`.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// This node: its id or host name in the table. With the live sources swarm and relay it may be left out: the
    /// node's own engine knows.
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub node: String,
    /// Where the task table comes from: file:PATH (YAML or JSON, watched), engine:DIR (Docker Engine API captures
    /// nodes.json, services.json, tasks.json, networks.json), swarm (the Docker Swarm that this node belongs to, live)
    /// or relay:HOST:PORT (another node's agent).
    #[arg(long, value_name = "SOURCE")]
    pub table: Source,
    /// Interfaces where other nodes' VXLAN arrives, separated by commas: the one that carries this node's tunnel
    /// address (VTEP), or those that lead to other nodes. `auto`: that one, unless it is the loopback device, and those
    /// that routes to other nodes lead through. With the live sources `auto` if left out.
    #[arg(long, value_name = "IFACE,...|auto")]
    pub underlay: Option<Underlay>,
    /// The node's own address where tunnels arrive, where a 1:1 NAT announces another one to the other nodes. With the
    /// live sources it is found by itself.
    #[arg(long, value_name = "ADDR")]
    pub underlay_address: Option<Ipv4Addr>,
    /// This node's engine, for live sources.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The relay between agents, for live sources.
    #[command(flatten)]
    pub relay: RelayArgs,
    /// Where clients of published ports arrive: interface names separated by commas, or `all` interfaces with a global
    /// IPv4 address.
    #[arg(long, value_name = "IFACE,...|all", default_value = "all")]
    pub mesh_interfaces: MeshInterfaces,
    /// Where a task's network namespace is found, by task id, if the table does not say.
    #[arg(long, value_name = "DIR", default_value = "/run/netns")]
    pub netns_dir: PathBuf,
    /// Where the agent keeps what it must remember: addresses on the gateway bridge, original sysctls.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    /// Directory on a BPF file system where maps and links are pinned; one per agent.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
    /// Status socket for the other commands.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Serves OpenMetrics at http://ADDR:PORT/metrics.
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// UDP port of VXLAN, the same on all nodes. Without the flag it is the swarm's own data path port, which the table
    /// carries, and 4789 with files.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub vxlan_port: Option<u16>,
    /// VNI of the routing mesh's frames; must not be a network's.
    #[arg(long, value_name = "VNI", default_value_t = 16_777_214,
          value_parser = clap::value_parser!(u32).range(1..=16_777_215))]
    pub mesh_vni: u32,
    /// Where the routing mesh's hot path runs on the mesh interfaces; what it does not carry, and everything where it
    /// is off, is carried by the TC programs. `status` says what runs where, and why.
    #[arg(long, value_enum, default_value_t = XdpMode::Auto)]
    pub xdp: XdpMode,
    /// Gateway bridge: used as it is if it exists, created otherwise. Without the flag: docker_gwbridge if it exists,
    /// else hw-gwbridge.
    #[arg(long, value_name = "NAME", value_parser = interface_name)]
    pub gwbridge: Option<String>,
    /// Subnet of the gateway bridge if it is created; its first address is the bridge's.
    #[arg(long, value_name = "CIDR", default_value = "172.18.0.0/16", value_parser = gateway_subnet)]
    pub gwbridge_subnet: Ipv4Net,
    /// How replies of this node's tasks reach clients that came in through another node. Directly works only where the
    /// network lets packets with another node's address as their source out.
    #[arg(long, value_enum, default_value_t = MeshReturn::Tunnel)]
    pub mesh_return: MeshReturn,
    /// Clients that may use published ports at this node, of all services; without the flag everybody may. A service's
    /// label `hiveway.allow` can only narrow it down.
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    pub mesh_allow: Vec<AllowEntry>,
    /// Clients that may not use published ports at this node, of any service, whatever `--mesh-allow` and
    /// `hiveway.allow` say. A service's label `hiveway.deny` names further ones.
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    pub mesh_deny: Vec<AllowEntry>,
    /// Addresses of this node at which published ports answer, of all services: CIDRs and interfaces that carry them;
    /// without the flag every address. A service's label `hiveway.addresses` can only narrow it down. What is for
    /// another address is left to the stack.
    #[arg(long, value_name = "CIDR|IFACE,...", value_delimiter = ',')]
    pub mesh_addresses: Vec<Place>,
    /// What the host's packet filters may close to some clients is left to them, and a Docker engine's routing mesh is
    /// not taken over where that is everything. With this flag they are not asked: none of them, or only not these
    /// chains, named like ip:filter:DOCKER-USER.
    #[arg(long, value_name = "FAMILY:TABLE:CHAIN,...", value_delimiter = ',', num_args = 0.., require_equals = true,
          default_missing_value = "all", value_parser = chain_name)]
    pub ignore_firewall: Vec<String>,
    /// How many connections are remembered, and for how long.
    #[command(flatten)]
    pub connections: ConnectionArgs,
}

/// `--xdp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum XdpMode {
    /// In the driver where `hiveway preflight --xdp IFACE` has found that it pays; elsewhere off.
    Auto,
    /// In the driver; off where the driver cannot.
    Native,
    /// In the stack, on any interface. For trying it out: seldom faster than off.
    Generic,
    /// No XDP.
    Off,
}

/// `--mesh-return`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MeshReturn {
    /// Through the tunnel to the ingress node.
    Tunnel,
    /// Directly (direct server return), with the ingress node's address as their source; what opens or ends a
    /// connection still goes through the tunnel.
    Dsr,
}

impl MeshReturn {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Dsr => "dsr",
        }
    }
}

/// `--mesh-interfaces`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MeshInterfaces {
    /// All interfaces with a global address, except container-facing bridges.
    All,
    /// These.
    Named(Vec<String>),
}

impl FromStr for MeshInterfaces {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names: Vec<_> = text.split(',').map(|name| name.trim().to_owned()).collect();
        if names == ["all"] {
            return Ok(Self::All);
        }
        if names.iter().any(|name| name == "all" || interface_name(name).is_err()) {
            return Err("not `all`, nor interface names of 1 to 15 characters separated by commas".into());
        }
        Ok(Self::Named(names))
    }
}

impl AgentArgs {
    /// What is missing, as a message naming the flag.
    pub fn missing(&self) -> Option<String> {
        let flags = [("--node ID", self.node.is_empty()), ("--underlay IFACE", self.underlay.is_none())];
        let missing = flags.into_iter().find(|(_, missing)| *missing && !self.table.is_live());
        missing.map(|(flag, _)| format!("{flag} is required with --table {}", self.table))
    }

    /// `--underlay`.
    pub fn underlay(&self) -> Underlay {
        self.underlay.clone().unwrap_or_default()
    }

    /// `--ignore-firewall`.
    pub fn ignored(&self) -> Ignored {
        match self.ignore_firewall.as_slice() {
            [] => Ignored::None,
            chains if chains.iter().any(|chain| chain == "all") => Ignored::All,
            chains => Ignored::Chains(chains.iter().cloned().collect()),
        }
    }

    /// `--mesh-allow`; `None` without the flag. IPv6 entries allow no IPv4 client.
    pub fn mesh_allow(&self) -> Option<AllowList> {
        (!self.mesh_allow.is_empty()).then(|| AllowList::new(&self.mesh_allow))
    }
}

impl AgentArgs {
    /// `--mesh-addresses`; `None` without the flag.
    pub fn mesh_addresses(&self) -> Option<Places> {
        (!self.mesh_addresses.is_empty()).then(|| Places::new(self.mesh_addresses.iter().cloned()))
    }

    /// `--mesh-deny`.
    pub fn mesh_deny(&self) -> AllowList {
        AllowList::new(&self.mesh_deny)
    }
}

pub(super) fn interface_name(text: &str) -> Result<String, String> {
    let sane = !text.is_empty() && text.len() <= 15 && !text.contains(['/', ' ', ':']) && text != "." && text != "..";
    if sane {
        Ok(text.to_owned())
    } else {
        Err("an interface name has 1 to 15 characters, no `/`, `:` or space".into())
    }
}

fn chain_name(text: &str) -> Result<String, String> {
    let parts: Vec<_> = text.split(':').collect();
    match parts.as_slice() {
        ["all"] => Ok(text.to_owned()),
        ["ip" | "inet" | "netdev", table, chain] if !table.is_empty() && !chain.is_empty() => Ok(text.to_owned()),
        _ => Err("expected FAMILY:TABLE:CHAIN like ip:filter:DOCKER-USER, with the family ip, inet or netdev".into()),
    }
}

fn gateway_subnet(text: &str) -> Result<Ipv4Net, String> {
    let net: Ipv4Net = text.parse().map_err(|_| "not an IPv4 subnet like 172.18.0.0/16".to_owned())?;
    if net.prefix_len() > 29 {
        return Err("too small: use a prefix of at most 29 bits".into());
    }
    if net.addr() != net.network() {
        return Err(format!("has host bits set: did you mean {}?", net.trunc()));
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(more: &[&str]) -> Result<AgentArgs, clap::Error> {
        let base = ["hiveway", "agent", "--node", "n1", "--table", "file:/t.yaml", "--underlay", "eth0"];
        match Cli::try_parse_from(base.iter().chain(more))?.command {
            Command::Agent(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_the_contract() {
        let args = parse(&[]).unwrap();
        assert_eq!((args.vxlan_port, args.mesh_vni), (None, 16_777_214));
        assert_eq!(args.mesh_interfaces, MeshInterfaces::All);
        assert_eq!(args.gwbridge_subnet.to_string(), "172.18.0.0/16");
        assert_eq!((args.xdp, args.mesh_return), (XdpMode::Auto, MeshReturn::Tunnel));
    }

    #[test]
    fn modes_are_named_as_they_are_shown() {
        for mode in ["auto", "native", "generic", "off"] {
            parse(&["--xdp", mode]).unwrap();
        }
        for mode in ["tunnel", "dsr"] {
            assert_eq!(parse(&["--mesh-return", mode]).unwrap().mesh_return.name(), mode);
        }
    }

    #[test]
    fn live_sources_know_who_and_where_the_node_is() {
        let parse = |flags: &[&str]| match Cli::try_parse_from(["hiveway", "agent"].iter().chain(flags)) {
            Ok(Cli { command: Command::Agent(args) }) => args.missing(),
            other => panic!("{other:?}"),
        };
        assert_eq!(parse(&["--table", "swarm"]), None);
        assert_eq!(parse(&["--table", "relay:h:1"]), None);
        assert!(parse(&["--table", "file:/t", "--underlay", "eth0"]).unwrap().starts_with("--node"));
        assert!(parse(&["--table", "engine:/t", "--node", "n1"]).unwrap().starts_with("--underlay"));
    }

    #[test]
    fn allowed_clients_are_a_list() {
        assert_eq!(parse(&[]).unwrap().mesh_allow(), None);
        let allow = |text: &str| parse(&["--mesh-allow", text]).unwrap().mesh_allow().unwrap();
        let shown: Vec<_> = allow("203.0.113.7,10.0.0.0/8,fd00::/8").nets().iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.0.0.0/8", "203.0.113.7/32"]);
        assert!(allow("fd00::/8").nets().is_empty(), "restricted all the same");
    }

    #[test]
    fn chains_may_be_ignored() {
        assert_eq!(parse(&[]).unwrap().ignored(), Ignored::None);
        assert_eq!(parse(&["--ignore-firewall"]).unwrap().ignored(), Ignored::All);
        let two = ["ip:filter:DOCKER-USER".to_owned(), "netdev:f:in".to_owned()];
        let flag = format!("--ignore-firewall={}", two.join(","));
        assert_eq!(parse(&[&flag, "--xdp", "off"]).unwrap().ignored(), Ignored::Chains(two.into()));
    }

    #[test]
    fn interfaces_are_a_list() {
        let args = parse(&["--mesh-interfaces", "eth0,eth1"]).unwrap();
        assert_eq!(args.mesh_interfaces, MeshInterfaces::Named(vec!["eth0".into(), "eth1".into()]));
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for flags in [
            ["--vxlan-port", "0"],
            ["--mesh-vni", "16777216"],
            ["--gwbridge-subnet", "172.18.0.1/16"],
            ["--gwbridge-subnet", "172.18.0.0/30"],
            ["--gwbridge", "a-name-that-is-too-long"],
            ["--metrics", "localhost"],
            ["--xdp", "fast"],
            ["--mesh-return", "direct"],
            ["--mesh-allow", "all"],
            ["--mesh-allow", ""],
            ["--mesh-allow", "10.0.0.1/8"],
            ["--mesh-deny", "10.0.0.1/8"],
            ["--mesh-addresses", "10.0.0.1/8"],
            ["--mesh-addresses", "eth0,"],
            ["--ignore-firewall=DOCKER-USER", "--xdp=off"],
            ["--ignore-firewall=", "--xdp=off"],
            ["--mesh-interfaces=", "--xdp=off"],
            ["--mesh-interfaces", ","],
            ["--mesh-interfaces", "eth0,"],
            ["--mesh-interfaces", "eth0,all"],
            ["--mesh-interfaces", "a-name-that-is-too-long"],
            ["--mesh-allow=", "--xdp=off"],
            ["--mesh-deny=", "--xdp=off"],
            ["--mesh-addresses=", "--xdp=off"],
            ["--timeout=", "--xdp=off"],
            ["--state-dir=", "--xdp=off"],
            ["--netns-dir=", "--xdp=off"],
        ] {
            assert_eq!(parse(&flags).unwrap_err().exit_code(), 2, "{flags:?}");
        }
    }
}
