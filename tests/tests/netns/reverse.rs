//! Sources that the reverse-path filter of an interface (`rp_filter`) refuses open no connection to a published port;
//! the kernel drops and counts them.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;
use hiveway_tests::{
    lab::{Lab, Netns, PATIENCE, scenario, wait_for},
    peer,
    table::Table,
};
use serde_json::json;

use crate::{
    frames::{ip, mac},
    support::{Cluster, assert_even, assert_peer, web_table},
};

/// Of n1: a node's own processes come with it, so lists name it.
const TUNNEL: &str = "192.168.77.11";
const MALLORY: [u8; 6] = [2, 0, 0, 0, 0x66, 0x66];
/// Lengths of headers.
const ETHERNET: usize = 14;
const IPV4: usize = 20;
/// A change of the sysctl is in force within this time.
const FOLLOWED: Duration = Duration::from_secs(1);

/// web.1 on n1; n3 has no task. `allow`: the service's list.
fn web(allow: &str) -> Table {
    let mut table = web_table(&["n1"], &[("tcp", 8080, 80), ("udp", 5353, 53)], "n1");
    table.item_mut("services", "web")["labels"] = json!({"hiveway.allow": allow});
    table
}

/// Another network of n3's, 192.168.`net`.0/24 on `eth1`: a cable to `other`, which has 192.168.`net`.100 on
/// `interface`.
fn second_network(n3: &Netns, net: u8, (other, interface): (&Netns, &str)) -> Result<()> {
    n3.run(&format!("ip link add eth1 type veth peer name {interface} netns {}", other.name()))?;
    for (end, interface, host) in [(n3, "eth1", 13), (other, interface, 100)] {
        end.run(&format!("ip addr add 192.168.{net}.{host}/24 dev {interface}"))?;
        end.run(&format!("ip link set {interface} up"))?;
    }
    Ok(())
}

/// MAC of its `eth1`.
fn second_mac(node: &Netns) -> Result<String> {
    let link = node.run("ip -o link show dev eth1")?;
    let address = link.split("link/ether ").nth(1).and_then(|rest| rest.split_whitespace().next());
    Ok(address.context("no MAC")?.to_owned())
}

fn nodes(lab: &Lab) -> Result<Vec<Netns>> {
    (1..=3).map(|n| lab.node(&format!("n{n}"), 10 + n)).collect()
}

/// n3 has its uplinks at both of its interfaces.
fn with_two_uplinks<'l>(lab: &'l Lab, nodes: Vec<Netns>) -> Result<Cluster<'l>> {
    let extra = |node: &Netns| match node.label() {
        "n3" => vec!["--underlay".to_owned(), "eth0,eth1".to_owned()],
        _ => Vec::new(),
    };
    Cluster::start_each(lab, nodes, web("192.168.0.0/16"), extra)
}

/// The sysctl of an interface of n3's, or of `all`.
fn set_filter(cluster: &Cluster<'_>, interface: &str, mode: u8) -> Result<()> {
    cluster.nodes[2].run(&format!("sysctl -qw net.ipv4.conf.{interface}.rp_filter={mode}")).map(drop)
}

/// What the kernel of n3 has refused.
fn refused(cluster: &Cluster<'_>) -> Result<u64> {
    let text = cluster.nodes[2].run("nstat -asz TcpExtIPReversePathFilter")?;
    let value = text.lines().find_map(|line| line.strip_prefix("TcpExtIPReversePathFilter"));
    let value = value.and_then(|rest| rest.split_whitespace().next()).with_context(|| text.clone())?;
    value.parse().context(text.clone())
}

/// Frames of another host's making, each the first one of its connection.
struct Forger<'c> {
    cluster: &'c Cluster<'c>,
    from: (&'c Netns, &'static str),
    /// MAC and address of n3 where they arrive.
    to: ([u8; 6], &'static str),
    port: u16,
}

impl<'c> Forger<'c> {
    fn new(cluster: &'c Cluster<'_>, from: (&'c Netns, &'static str), to: &'static str) -> Result<Self> {
        Ok(Self { cluster, from, to: (mac(&second_mac(&cluster.nodes[2])?), to), port: 4000 })
    }

    /// A datagram, a SYN, and a datagram in two pieces, as if from `source`. Returns how many have opened a connection,
    /// and how many the kernel has refused.
    fn send(&mut self, source: &str) -> Result<(u64, u64)> {
        let n3 = &self.cluster.agents[2];
        let before = (n3.counter("mesh_flow")?, refused(self.cluster)?);
        let (to_mac, to) = self.to;
        let head = || PacketBuilder::ethernet2(MALLORY, to_mac).ipv4(ip(source), ip(to), 64);
        let (mut udp, mut tcp, mut long) = (Vec::new(), Vec::new(), Vec::new());
        head().udp(self.port, 5353).write(&mut udp, b"question").expect("a vector takes everything");
        head().tcp(self.port, 8080, 1, 1000).syn().write(&mut tcp, &[]).expect("a vector takes everything");
        head().udp(self.port + 1, 5353).write(&mut long, &[7; 72]).expect("a vector takes everything");
        let [first, last] = cut(&long, self.port, 64);
        self.port += 2;
        for frame in [udp, tcp, first, last] {
            self.from.0.send_frame(self.from.1, &frame)?;
        }
        let mut found = (0, 0);
        wait_for("all of them to be judged", PATIENCE, || {
            found = (n3.counter("mesh_flow")? - before.0, refused(self.cluster)? - before.1);
            ensure!(found.0 + found.1 == 3, "{} of 3 have opened a connection, {} were refused", found.0, found.1);
            Ok(())
        })?;
        Ok(found)
    }

    /// From now on, or after a moment in which the agent follows a change, all of them have this fate.
    fn fate(&mut self, what: &str, source: &str, opens: bool) -> Result<()> {
        let deadline = Instant::now() + FOLLOWED;
        let expected = if opens { (3, 0) } else { (0, 3) };
        loop {
            let found = self.send(source)?;
            if found == expected {
                break;
            }
            ensure!(Instant::now() < deadline, "{what}: from {source} {found:?} were opened and refused");
            sleep(Duration::from_millis(50));
        }
        let found = self.send(source)?;
        ensure!(found == expected, "{what}: from {source} {found:?} were opened and refused after a while");
        Ok(())
    }
}

/// Cuts the IPv4 packet in an Ethernet frame behind `at` bytes of its payload.
fn cut(frame: &[u8], id: u16, at: usize) -> [Vec<u8>; 2] {
    let (head, payload) = frame.split_at(ETHERNET + IPV4);
    [(0, &payload[..at], true), (at, &payload[at..], false)].map(|(offset, piece, more)| {
        let mut frame = [head, piece].concat();
        let header = &mut frame[ETHERNET..ETHERNET + IPV4];
        let flags = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
        for (at, value) in [(2, (IPV4 + piece.len()) as u16), (4, id), (6, flags), (10, 0)] {
            header[at..at + 2].copy_from_slice(&value.to_be_bytes());
        }
        let sum: u32 = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        header[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        frame
    })
}

/// An outsider behind n3's second interface has what a list of the service names: n1's tunnel address.
#[test]
fn a_forged_tunnel_address_is_on_no_list_where_the_interface_checks_sources() {
    for xdp in [&[][..], &["--xdp", "generic"][..]] {
        scenario(|lab| {
            let (nodes, mallory) = (nodes(lab)?, lab.namespace("mallory")?);
            second_network(&nodes[2], 90, (&mallory, "eth0"))?;
            let table = web("192.168.77.11, 192.168.90.0/24, 203.0.113.0/24");
            let mut cluster = Cluster::start_on(lab, nodes, table, xdp)?;
            cluster.serve(&["web.1"])?;
            let honest = || -> Result<()> {
                let tcp = peer::tcp_load(&mallory, "192.168.90.13:8080", 4, 2)?;
                assert_even(&tcp, &["web.1"], 4)?;
                assert_peer(&tcp, "192.168.90.100")?;
                assert_even(&peer::udp_load(&mallory, "192.168.90.13:5353", 4)?, &["web.1"], 4)
            };
            let mut forger = Forger::new(&cluster, (&mallory, "eth0"), "192.168.90.13")?;
            forger.fate("no filter, which is the kernel's bar too", TUNNEL, true)?;
            for (interface, mode, opens) in [
                ("eth1", 1, false),
                ("eth1", 0, true),
                ("all", 1, false),
                ("eth1", 2, true),
                ("all", 0, true),
                ("eth1", 1, false),
                ("default", 2, false),
            ] {
                set_filter(&cluster, interface, mode)?;
                forger.fate(&format!("{interface} {mode}"), TUNNEL, opens).with_context(|| format!("{xdp:?}"))?;
                honest().with_context(|| format!("{interface} {mode}, {xdp:?}"))?;
            }
            // Loose: any route will do. Without one there is none.
            set_filter(&cluster, "eth1", 2)?;
            forger.fate("loose", "203.0.113.7", true)?;
            cluster.nodes[2].run("ip route del default")?;
            forger.fate("loose, without a route", "203.0.113.7", false)?;
            set_filter(&cluster, "eth1", 1)?;
            forger.fate("strict, without a route", "203.0.113.7", false)?;
            honest()?;
            // What a dead agent has left is in force, and the next one sees what has changed meanwhile.
            let agent = &cluster.agents[2];
            agent.sigkill();
            set_filter(&cluster, "eth1", 0)?;
            agent.restart()?;
            forger.fate("no filter after a restart", TUNNEL, true)
        });
    }
}

/// The client's packets arrive on n3's second uplink, and the way back to it leads over the first.
#[test]
fn asymmetric_routes_are_served_where_the_filter_is_loose() {
    scenario(|lab| {
        let (nodes, client) = (nodes(lab)?, lab.client()?);
        second_network(&nodes[2], 78, (&client, "eth1"))?;
        let eth1 = second_mac(&nodes[2])?;
        client.run("ip addr flush dev eth1")?;
        client.run("ip route add 192.168.78.13 dev eth1 src 192.168.77.100")?;
        client.run(&format!("ip neigh replace 192.168.78.13 lladdr {eth1} dev eth1 nud permanent"))?;
        let mut cluster = with_two_uplinks(lab, nodes)?;
        cluster.serve(&["web.1"])?;
        let served = || -> Result<()> {
            let tcp = peer::tcp_load(&client, "192.168.78.13:8080", 6, 2)?;
            assert_even(&tcp, &["web.1"], 6)?;
            assert_peer(&tcp, "192.168.77.100")?;
            assert_even(&peer::udp_load(&client, "192.168.78.13:5353", 6)?, &["web.1"], 6)
        };
        for (mode, serves) in [(0, true), (1, false), (2, true)] {
            set_filter(&cluster, "eth1", mode)?;
            sleep(FOLLOWED / 2);
            if serves {
                served().with_context(|| format!("rp_filter {mode}"))?;
                continue;
            }
            let before = refused(&cluster)?;
            let tally = peer::attempts(&client, "udp", "192.168.78.13:5353", 3)?;
            ensure!((tally.ok, tally.failed) == (0, 3), "{tally:?}");
            ensure!(refused(&cluster)? >= before + 3, "the kernel has not refused them");
            // The way there is the way back.
            assert_even(&peer::tcp_load(&client, "192.168.77.13:8080", 4, 2)?, &["web.1"], 4)?;
        }
        Ok(())
    });
}

/// The default route has a next hop at each of n3's uplinks: what arrives on either is let in, but for sources that a
/// better route leads to.
#[test]
fn every_uplink_of_a_multipath_route_is_a_way_back() {
    scenario(|lab| {
        let (nodes, far, switch) = (nodes(lab)?, lab.far_client()?, lab.switch());
        second_network(&nodes[2], 78, (switch, "second"))?;
        nodes[2].run("ip route replace default nexthop via 192.168.77.1 nexthop via 192.168.78.100")?;
        let mut cluster = with_two_uplinks(lab, nodes)?;
        cluster.serve(&["web.1"])?;
        set_filter(&cluster, "all", 1)?;
        let mut forger = Forger::new(&cluster, (switch, "second"), "192.168.78.13")?;
        forger.fate("a node's tunnel address", TUNNEL, false)?;
        // Each address of n3's over its own uplink, then over the other one.
        for crossed in [false, true] {
            if crossed {
                switch.run("ip route add 192.168.77.13 via 192.168.78.13")?;
            }
            for policy in [0, 1] {
                cluster.nodes[2].run(&format!("sysctl -qw net.ipv4.fib_multipath_hash_policy={policy}"))?;
                for address in ["192.168.77.13", "192.168.78.13"] {
                    let before = refused(&cluster)?;
                    let tcp = peer::tcp_load(&far, &format!("{address}:8080"), 20, 2)?;
                    assert_even(&tcp, &["web.1"], 20)?;
                    assert_peer(&tcp, "192.168.88.100")?;
                    assert_even(&peer::udp_load(&far, &format!("{address}:5353"), 20)?, &["web.1"], 20)?;
                    ensure!(refused(&cluster)? == before, "the kernel has refused some");
                }
            }
        }
        forger.fate("a node's tunnel address", TUNNEL, false)
    });
}
