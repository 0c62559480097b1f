//! The lab: pairs of nodes with agents, two nodes of plain Linux with nftables, a client outside, containers with a
//! server.
//!
//! ```text
//!  outside ─ n1 (agent) ── n2 (agent) ─ server     published port; n1 has no task of it; a pair for each mode
//!          └ p1 (nft)  ── p2 (plain)  ─ server     DNAT + masquerade, routed: no tunnel
//!  client on n1 ─ VIP ─ server on n2                    overlay
//!  client on p1 ─ DNAT in its own namespace ─ server on p2     bridge + kernel VXLAN
//! ```

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, Process, wait_for},
    plain::{self, PlainEndpoint},
};
use serde::de::DeserializeOwned;

use super::agents::{MODES, Mode, Pair};
use crate::rr::Latency;

pub(super) const CONNECTIONS: u16 = 5203;
pub(super) const REQUESTS: u16 = 5202;
const VNI: u32 = 5001;
/// This program, also when a newer one has been built over it since it was started.
const OURSELVES: &str = "/proc/self/exe";

/// A way from a client to a server.
#[derive(Debug)]
pub(super) struct Path {
    /// Stable name in the JSON.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// What it is compared with.
    pub(super) direct: &'static str,
    pub(super) nftables: &'static str,
    /// Whose agents it goes through, if any.
    mode: Option<&'static Mode>,
    from: Client,
    to: Ipv4Addr,
}

#[derive(Clone, Copy, Debug)]
enum Client {
    Outside,
    Container,
    PlainContainer,
}

/// Between containers of the first pair of nodes.
const fn overlay_path(name: &'static str, title: &'static str, to: [u8; 4]) -> Path {
    Path { mode: Some(&MODES[0]), ..path(name, title, Client::Container, to) }
}

/// To a published port of a pair of nodes.
const fn mesh(mode: &'static Mode) -> Path {
    let to = [192, 168, 77, mode.hosts[0]];
    Path { mode: Some(mode), ..path(mode.name, mode.title, Client::Outside, to) }
}

const fn path(name: &'static str, title: &'static str, from: Client, to: [u8; 4]) -> Path {
    let (direct, nftables) = match from {
        Client::Outside => ("outside_direct", "outside_nftables"),
        Client::Container => ("direct", "nftables"),
        Client::PlainContainer => ("kernel_vxlan", "nftables"),
    };
    let [a, b, c, d] = to;
    Path { name, title, direct, nftables, mode: None, from, to: Ipv4Addr::new(a, b, c, d) }
}

pub(super) const PATHS: [Path; 10] = [
    path("outside_direct", "from outside: routed to the container", Client::Outside, SERVER_ROUTED),
    mesh(&MODES[0]),
    mesh(&MODES[1]),
    mesh(&MODES[2]),
    mesh(&MODES[3]),
    path("outside_nftables", "from outside: nftables DNAT + masquerade", Client::Outside, [192, 168, 77, 13]),
    overlay_path("direct", "overlay: Hiveway, direct", [10, 0, 1, 5]),
    overlay_path("vip", "overlay: Hiveway, VIP", [10, 0, 1, 2]),
    path("kernel_vxlan", "overlay: kernel VXLAN, direct", Client::PlainContainer, [10, 9, 0, 2]),
    path("nftables", "overlay: kernel VXLAN, nftables DNAT", Client::PlainContainer, [10, 9, 0, 100]),
];

/// The plain server's address that is routed to: p2 has it behind a bridge.
const SERVER_ROUTED: [u8; 4] = [172, 19, 0, 2];

/// The lab with its servers and agents running.
pub(super) struct Stage {
    outside: Netns,
    container: Netns,
    plain_container: Netns,
    _servers: Vec<Process>,
    pairs: Vec<Pair>,
}

impl Stage {
    /// `xdp`: of the agents whose mode does not say.
    pub(super) fn build(lab: &Lab, paths: &[&Path], xdp: &str) -> Result<Self> {
        // The switch stands for a wire: netfilter, on by default where br_netfilter is loaded, would cost every packet.
        lab.switch().succeeds("sysctl -qw net.bridge.bridge-nf-call-iptables=0");
        let (p1, p2) = (lab.node("p1", 13)?, lab.node("p2", 14)?);
        let outside = lab.client()?;
        let task = |label: &str| lab.namespace(label);
        let container = task("container")?;
        let (plain_container, plain_server, routed) = (task("pclient")?, task("pserver")?, task("routed")?);
        overlay(&p1, &p2, &plain_container, &plain_server)?;
        published(&p1, &p2, &routed)?;
        outside.run("ip route add 172.19.0.0/16 via 192.168.77.14")?;
        dnat(&plain_container, "output", "10.9.0.100", "10.9.0.2", false)?;
        let mut pairs = Vec::new();
        for mode in &MODES {
            if paths.iter().any(|path| path.mode.is_some_and(|of| of.name == mode.name)) {
                pairs.push(Pair::start(lab, mode, &container, xdp)?);
            }
        }
        let mut servers = Vec::new();
        for netns in pairs.iter().map(|pair| &pair.server).chain([&plain_server, &routed]) {
            servers.extend(serve(lab, netns)?);
        }
        Ok(Self { outside, container, plain_container, _servers: servers, pairs })
    }

    /// Whether the path's agents work as its title says.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let of_path = |pair: &&Pair| path.mode.is_some_and(|mode| mode.name == pair.mode.name);
        self.pairs.iter().find(of_path).map_or(Ok(()), Pair::check)
    }

    pub(super) fn connections(&self, path: &Path, seconds: f64) -> Result<Latency> {
        self.measure("connections-client", path, CONNECTIONS, seconds)
    }

    pub(super) fn requests(&self, path: &Path, seconds: f64) -> Result<Latency> {
        self.measure("rr-client", path, REQUESTS, seconds)
    }

    fn measure<T: DeserializeOwned>(&self, how: &str, path: &Path, port: u16, seconds: f64) -> Result<T> {
        let from = match path.from {
            Client::Outside => &self.outside,
            Client::Container => &self.container,
            Client::PlainContainer => &self.plain_container,
        };
        let target = format!("{}:{port}", path.to);
        let mut client = from.command(OURSELVES)?;
        let output = client.args([how, "--target", &target, "--seconds", &seconds.to_string()]).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", path.title, error.trim());
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// Bridge and kernel VXLAN, as an engine makes its overlays.
fn overlay(p1: &Netns, p2: &Netns, client: &Netns, server: &Netns) -> Result<()> {
    let (vtep1, vtep2) = ("192.168.77.13", "192.168.77.14");
    plain::network(p1, VNI, vtep1)?;
    plain::network(p2, VNI, vtep2)?;
    plain::attach(p1, VNI, client, "10.9.0.1")?;
    plain::attach(p2, VNI, server, "10.9.0.2")?;
    plain::remote(p1, VNI, &PlainEndpoint { ip: "10.9.0.2", vtep: vtep2.to_owned() })?;
    plain::remote(p2, VNI, &PlainEndpoint { ip: "10.9.0.1", vtep: vtep1.to_owned() })
}

/// A container behind a bridge of p2, and p1 that leads clients to it: without a tunnel, which is kind to nftables.
fn published(p1: &Netns, p2: &Netns, server: &Netns) -> Result<()> {
    for node in [p1, p2] {
        node.run(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0",
        )?;
    }
    p2.run("ip link add br0 type bridge forward_delay 0 mcast_snooping 0")?;
    p2.run("ip addr add 172.19.0.1/16 dev br0")?;
    p2.run("ip link set br0 up")?;
    p2.run(&format!("ip link add routed type veth peer name eth0 netns {}", server.name()))?;
    p2.run("ip link set routed master br0 up")?;
    let address = Ipv4Addr::from(SERVER_ROUTED);
    server.run(&format!("ip addr add {address}/16 dev eth0"))?;
    server.run("ip link set eth0 up")?;
    server.run("ip route add default via 172.19.0.1")?;
    p1.run("ip route add 172.19.0.0/16 via 192.168.77.14")?;
    dnat(p1, "prerouting", "192.168.77.13", &address.to_string(), true)
}

fn dnat(netns: &Netns, hook: &str, from: &str, to: &str, masquerade: bool) -> Result<()> {
    let back = "chain back { type nat hook postrouting priority srcnat; ct status dnat masquerade; }";
    netns.shell(&format!(
        "nft -f - <<'END'\ntable ip bench {{\n  chain there {{ type nat hook {hook} priority -100; ip daddr {from} tcp \
         dport {{ {REQUESTS}, {CONNECTIONS} }} dnat to numgen inc mod 1 map {{ 0 : {to} }}; }}\n  {}\n}}\nEND",
        if masquerade { back } else { "" }
    ))?;
    Ok(())
}

/// Both servers.
fn serve(lab: &Lab, netns: &Netns) -> Result<Vec<Process>> {
    let servers = [("rr-server", REQUESTS), ("connections-server", CONNECTIONS)].into_iter().map(|(what, port)| {
        let mut command = netns.command(OURSELVES)?;
        command.args([what, "--port", &port.to_string()]);
        Process::start(command, lab.directory(), &lab.unique(what))
    });
    let servers = servers.collect::<Result<Vec<_>>>()?;
    wait_for("the servers to listen", Duration::from_secs(5), || {
        let sockets = netns.run("ss -Hltn")?;
        ensure!([REQUESTS, CONNECTIONS].iter().all(|port| sockets.contains(&format!(":{port} "))), "{sockets}");
        Ok(())
    })?;
    Ok(servers)
}
