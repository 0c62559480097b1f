//! Who may use published ports, beside an engine: its own mesh serves what the programs leave to the stack, and knows
//! no lists. A rule on n1 stands for it, which leads 8080/tcp of every address of the node to web.1.

use std::time::Duration;

use anyhow::{Result, ensure};
use etherparse::PacketBuilder;
use hiveway_tests::{
    agent::Agent,
    lab::{Capture, Lab, Netns, PATIENCE, Process, scenario, wait_for},
    peer::{self, LoadLoop},
};
use serde_json::json;

use crate::{
    firewall, forged,
    frames::{ip, mac},
    support::{Cluster, assert_even, assert_peer},
};

const NEAR: &str = "192.168.77.100";
const FAR: &str = "192.168.88.100";
/// The interface of web.1 on the engine's gateway bridge.
const BEHIND: &str = "eth2";

/// With who may use the service's ports.
fn start<'l>(lab: &'l Lab, allow: &str, extra: &[&str]) -> Result<Cluster<'l>> {
    let mut cluster = firewall::cluster(lab, extra, |_| Ok(()))?;
    relabel(&mut cluster, allow)?;
    Ok(cluster)
}

fn relabel(cluster: &mut Cluster<'_>, allow: &str) -> Result<()> {
    cluster.change(|table| table.item_mut("services", "web")["labels"] = json!({"hiveway.allow": allow}))?;
    wait_for("the list to be in force", PATIENCE, || {
        let all = cluster.agents[0].json(&["service", "ls"])?;
        let seen =
            all.as_array().into_iter().flatten().any(|one| one["name"] == "web" && one["allow"] == json!([allow]));
        ensure!(seen, "{all}");
        Ok(())
    })
}

/// The engine's mesh serves the client.
fn served(client: &Netns, target: &str, shown: &str) -> Result<()> {
    let tally = peer::attempts(client, "tcp", target, 3)?;
    assert_even(&tally, &["web.1"], 3)?;
    assert_peer(&tally, shown)
}

/// Nobody answers, and it is counted.
fn shut_out(client: &Netns, target: &str, agent: &Agent) -> Result<()> {
    let before = agent.dropped("not_allowed")?;
    let tally = peer::attempts(client, "tcp", target, 2)?;
    ensure!((tally.ok, tally.failed) == (0, 2), "{target} from {}: {tally:?}", client.label());
    ensure!(tally.errors.keys().all(|why| !why.contains("refused")), "dropped, not refused: {tally:?}");
    agent.wait_dropped("not_allowed", before + 2)
}

#[test]
fn lists_hold_at_addresses_and_interfaces_that_are_left_to_the_stack() {
    scenario(|lab| {
        let (near, far) = (lab.client()?, lab.far_client()?);
        let mut cluster = start(lab, "192.168.88.0/24", &["--mesh-interfaces", "eth0"])?;
        let (node, agent) = (cluster.nodes[0].clone(), cluster.agents[0].clone());
        near.run("ip route add 172.18.0.0/16 via 192.168.77.11")?;
        lab.switch().run("ip route add 172.18.0.0/16 via 192.168.77.11")?;
        let side = lab.namespace("side")?;
        node.run(&format!("ip link add side type veth peer name eth0 netns {}", side.name()))?;
        node.run("ip addr add 10.60.0.1/24 dev side")?;
        node.run("ip link set side up")?;
        side.run("ip addr add 10.60.0.2/24 dev eth0")?;
        side.run("ip link set eth0 up")?;
        shut_out(&near, "172.18.0.1:8080", &agent)?;
        shut_out(&side, "10.60.0.1:8080", &agent)?;
        served(&far, "172.18.0.1:8080", FAR)?;

        // The node's own containers and processes have the tunnel address, whatever address of the node they ask.
        let kept = LoadLoop::tcp(lab, &far, "172.18.0.1:8080", 1, true)?;
        kept.wait_answers(5)?;
        relabel(&mut cluster, "192.168.77.11/32")?;
        for (client, target) in [(cluster.task("web.1"), "172.18.0.1:8080"), (&node, "127.0.0.1:8080")] {
            let tally = peer::attempts(client, "tcp", target, 4)?;
            ensure!(tally.failed == 0, "{target} from {}: {tally:?}", client.label());
        }
        shut_out(&far, "172.18.0.1:8080", &agent)?;
        let tally = kept.stop()?;
        ensure!(tally.failed == 0 && tally.ok > 5, "an established connection broke: {tally:?}");
        relabel(&mut cluster, "10.60.0.0/24")?;
        served(&side, "10.60.0.1:8080", "10.60.0.2")?;
        shut_out(&near, "172.18.0.1:8080", &agent)
    });
}

/// A server of 8080/tcp on the engine's gateway bridge of `node`.
fn behind(lab: &Lab, node: &Netns, name: &str, address: &str) -> Result<(Netns, [Process; 2])> {
    let there = lab.namespace(name)?;
    node.run(&format!("ip link add {name} type veth peer name eth0 netns {}", there.name()))?;
    node.run(&format!("ip link set {name} master docker_gwbridge up"))?;
    there.run(&format!("ip addr add {address}/16 dev eth0"))?;
    there.run("ip link set eth0 up")?;
    there.run("ip route add default via 172.18.0.1")?;
    let servers = [peer::http_server(lab, &there, 8080, "web.1")?, peer::http_server(lab, &there, 8081, "web.1")?];
    Ok((there, servers))
}

/// Where the engine's mesh leads published ports is an address like others to who has a route to it, and answers them.
/// So does a container that listens at a published port.
#[test]
fn lists_and_bindings_hold_behind_the_engines_gateway_bridge() {
    const SANDBOX: &str = "172.18.0.9";
    const CONTAINER: &str = "172.18.0.10";
    const LEADS: &str = "iptables-nft -t nat -A DOCKER-INGRESS -p tcp --dport 8080 -j DNAT --to-destination";
    scenario(|lab| {
        let (near, far) = (lab.client()?, lab.far_client()?);
        near.run("ip route add 172.18.0.0/16 via 192.168.77.11")?;
        lab.switch().run("ip route add 172.18.0.0/16 via 192.168.77.11")?;
        // Behind the rule of web.1, which takes all there is.
        let mut cluster = firewall::cluster(lab, &[], |node| node.run(&format!("{LEADS} {SANDBOX}:8080")).map(drop))?;
        let (node, agent) = (cluster.nodes[0].clone(), cluster.agents[0].clone());
        let _behind = [behind(lab, &node, "sandbox", SANDBOX)?, behind(lab, &node, "container", CONTAINER)?];
        relabel(&mut cluster, "192.168.88.0/24")?;
        for address in [SANDBOX, CONTAINER] {
            shut_out(&near, &format!("{address}:8080"), &agent)?;
            served(&far, &format!("{address}:8080"), FAR)?;
            // No port of the swarm's.
            served(&near, &format!("{address}:8081"), NEAR)?;
        }
        // The node's own processes may ask containers, as with the engine alone, but not in everybody's stead.
        let refused = |address: &str| -> Result<bool> {
            Ok(peer::attempts(&node, "tcp", &format!("{address}:8080"), 2)?.ok == 0)
        };
        ensure!(refused(SANDBOX)? && !refused(CONTAINER)?, "from the node itself");
        node.run(&format!("{LEADS} {CONTAINER}:8080"))?;
        wait_for("the other address to be known", PATIENCE, || {
            ensure!(refused(CONTAINER)?, "it is answered");
            Ok(())
        })?;

        let kept = LoadLoop::tcp(lab, &far, &format!("{SANDBOX}:8080"), 1, true)?;
        kept.wait_answers(5)?;
        relabel(&mut cluster, "192.168.77.0/24")?;
        shut_out(&far, &format!("{SANDBOX}:8080"), &agent)?;
        let tally = kept.stop()?;
        ensure!(tally.failed == 0 && tally.ok > 5, "an established connection broke: {tally:?}");
        served(&near, &format!("{SANDBOX}:8080"), NEAR)?;

        // A port that answers at one address of the node's.
        cluster.change(|table| {
            table.item_mut("services", "web")["labels"] = json!({"hiveway.addresses": "192.168.77.11"});
        })?;
        wait_for("the binding to be in force", PATIENCE, || shut_out(&near, &format!("{SANDBOX}:8080"), &agent))?;
        shut_out(&far, &format!("{CONTAINER}:8080"), &agent)
    });
}

fn mac_of(netns: &Netns, interface: &str) -> Result<[u8; 6]> {
    Ok(mac(&forged::mac_of(netns, interface)?))
}

/// An Ethernet frame with a SYN of `source`, from a port of its own.
fn syn(macs: ([u8; 6], [u8; 6]), source: &str, port: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(macs.0, macs.1).ipv4(ip(source), ip("192.168.77.11"), 64);
    let mut frame = Vec::new();
    builder.tcp(port, 8080, 1, 1024).syn().write(&mut frame, b"").expect("a vector takes everything");
    frame
}

/// The same packet in two pieces, the first with eight bytes of TCP.
fn in_pieces(frame: &[u8]) -> [Vec<u8>; 2] {
    const ETH: usize = 14;
    const IP: usize = 20;
    const FIRST: usize = 8;
    let piece = |payload: &[u8], place: u16| {
        let mut piece = [&frame[..ETH + IP], payload].concat();
        piece[ETH + 2..ETH + 4].copy_from_slice(&((IP + payload.len()) as u16).to_be_bytes());
        piece[ETH + 6..ETH + 8].copy_from_slice(&place.to_be_bytes());
        piece[ETH + 10..ETH + 12].fill(0);
        let sum = piece[ETH..ETH + IP].chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum::<u32>();
        let sum = (sum & 0xffff) + (sum >> 16);
        piece[ETH + 10..ETH + 12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        piece
    };
    let payload = &frame[ETH + IP..];
    [piece(&payload[..FIRST], 0x2000), piece(&payload[FIRST..], (FIRST / 8) as u16)]
}

/// The same packet behind two priority tags.
fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 0, 0x81, 0, 0, 0], &frame[12..]].concat()
}

#[test]
fn lists_hold_for_packets_that_are_left_to_the_stack() {
    scenario(|lab| {
        let (near, far) = (lab.client()?, lab.far_client()?);
        let cluster = start(lab, "192.168.88.0/24", &[])?;
        let agent = &cluster.agents[0];
        let macs = (mac("02:00:00:00:66:66"), mac_of(&cluster.nodes[0], "eth0")?);
        // What came in pieces leaves in pieces.
        let mut behind = Capture::start(lab, cluster.task("web.1"), BEHIND, "tcp and dst host 172.18.0.3")?;
        let before = agent.dropped("not_allowed")?;
        for (port, source) in (4000..).zip([NEAR, "240.0.0.1", "192.168.78.9"]) {
            for piece in in_pieces(&syn(macs, source, port)) {
                near.send_frame("eth0", &piece)?;
            }
            near.send_frame("eth0", &tagged(&syn(macs, source, port + 100)))?;
        }
        // Without a piece or a tag it is the programs that ask the list.
        near.send_frame("eth0", &syn(macs, "240.0.0.1", 4200))?;
        agent.wait_dropped("not_allowed", before + 7)?;
        // Who may open connections does.
        let router = mac_of(lab.switch(), "far")?;
        for piece in in_pieces(&syn((mac_of(&far, "eth0")?, router), FAR, 4300)) {
            far.send_frame("eth0", &piece)?;
        }
        behind.wait_packets(1)?;
        std::thread::sleep(Duration::from_millis(200));
        let rows = behind.dissect("ip", &["ip.src"])?;
        ensure!(rows.iter().all(|row| row[0] == FAR), "web.1 has seen {rows:?}");
        Ok(())
    });
}
