//! Frames that are for another interface than the one they are on: in a VLAN, or for another MAC.
//!
//! A tag, and whom a frame is for, are in the skb's metadata at the hooks; so these are real frames on real interfaces.

use anyhow::{Context as _, Result, ensure};
use etherparse::{PacketBuilder, SingleVlanHeader, VlanHeader, VlanId, VlanPcp};
use hiveway_tests::{
    lab::{Capture, DISCARD_PORT, Lab, MESH_VNI, Netns, PATIENCE, scenario, wait_for},
    peer, plain,
    table::Table,
};

use crate::{
    frames::{ip, mac},
    support::{Cluster, assert_even, assert_peer, web_table},
};

const WEB: [&str; 2] = ["web.1", "web.2"];
const CLIENT: &str = "192.168.77.100";
/// VID 0: a priority, and no VLAN.
const PRIORITY: u16 = 0;

/// web.1 and web.2 on n1 and n2, published as 8080/tcp; n3 has only user.1.
fn web() -> Table {
    web_table(&["n1", "n2"], &[("tcp", 8080, 80)], "n3")
}

fn address_of(netns: &Netns, interface: &str) -> Result<[u8; 6]> {
    let link = netns.run(&format!("ip -br link show dev {interface}"))?;
    Ok(mac(link.split_whitespace().nth(2).context("no MAC")?))
}

/// A tag with priority 5.
fn tag(vid: u16) -> VlanHeader {
    VlanHeader::Single(SingleVlanHeader {
        pcp: VlanPcp::try_new(5).expect("three bits"),
        vlan_id: VlanId::try_new(vid).expect("twelve bits"),
        ..SingleVlanHeader::default()
    })
}

/// A client's first packet to 192.168.77.13:8080.
fn syn(macs: ([u8; 6], [u8; 6]), vid: Option<u16>, port: u16) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(macs.0, macs.1);
    let builder = match vid {
        Some(vid) => ethernet.vlan(tag(vid)).ipv4(ip(CLIENT), ip("192.168.77.13"), 64),
        None => ethernet.ipv4(ip(CLIENT), ip("192.168.77.13"), 64),
    };
    let builder = builder.tcp(port, 8080, 1000, 64_000).syn();
    let mut bytes = Vec::with_capacity(builder.size(0));
    builder.write(&mut bytes, &[]).expect("a vector takes everything");
    bytes
}

/// A datagram to `DISCARD_PORT` between two containers.
fn datagram(from: &str, to: &str, vid: Option<u16>) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(mac(&plain::mac_of(from)), mac(&plain::mac_of(to)));
    let builder = match vid {
        Some(vid) => ethernet.vlan(tag(vid)).ipv4(ip(from), ip(to), 64),
        None => ethernet.ipv4(ip(from), ip(to), 64),
    };
    let builder = builder.udp(4000, DISCARD_PORT);
    let mut bytes = Vec::with_capacity(builder.size(3));
    builder.write(&mut bytes, b"tag").expect("a vector takes everything");
    bytes
}

/// A tag does not reach XDP where the driver takes it off, as a veth does.
fn cluster(lab: &Lab, table: Table) -> Result<Cluster<'_>> {
    Cluster::start_with(lab, 3, table, &["--xdp", "off"])
}

#[test]
fn a_clients_frame_in_a_vlan_is_left_to_the_stack() {
    scenario(|lab| {
        let client = lab.client()?;
        let cluster = cluster(lab, web())?;
        let (node, agent) = (&cluster.nodes[2], &cluster.agents[2]);
        let macs = (address_of(&client, "eth0")?, address_of(node, "eth0")?);
        let mut arrived = Capture::start(lab, node, "eth0", "vlan 42")?;
        for port in 40_000..40_005 {
            client.send_frame("eth0", &syn(macs, Some(42), port))?;
        }
        arrived.wait_packets(5)?;
        ensure!(agent.counter("mesh_flow")? == 0, "a frame in a VLAN has opened a connection: {}", agent.diagnosis());
        // The same without a tag, and with one that names a priority only: served, and what leaves has no tag.
        let mut tunnel = Capture::start(lab, lab.switch(), "n3", "udp port 4789")?;
        let mut tagged = Capture::start(lab, lab.switch(), "n3", "vlan and udp port 4789")?;
        client.send_frame("eth0", &syn(macs, None, 40_010))?;
        client.send_frame("eth0", &syn(macs, Some(PRIORITY), 40_011))?;
        wait_for("both to be opened", PATIENCE, || {
            let flows = agent.counter("mesh_flow")?;
            ensure!(flows == 2, "{flows} connections");
            Ok(())
        })?;
        tunnel.wait_packets(2)?;
        ensure!(tagged.packets()? == 0, "an outer frame carries the client's tag");
        Ok(())
    });
}

#[test]
fn a_container_cannot_choose_the_vlan_of_the_outer_frame() {
    scenario(|lab| {
        let table = Table::with_nodes(3).network("app", "10.0.1", 4097).service("a");
        let table = table.task("a.1", "a", "n1", &[("app", "10.0.1.3")]).task("a.2", "a", "n2", &[("app", "10.0.1.4")]);
        let cluster = cluster(lab, table)?;
        let (liar, agent) = (cluster.task("a.1"), &cluster.agents[0]);
        let mut seen = Capture::start(lab, cluster.task("a.2"), "eth0", &format!("udp port {DISCARD_PORT}"))?;
        // But for probes, which are in the mesh's VNI.
        let filter = format!("udp port 4789 and udp[12:4] != {}", MESH_VNI << 8);
        let mut tunnel = Capture::start(lab, lab.switch(), "n1", &filter)?;
        let mut tagged = Capture::start(lab, lab.switch(), "n1", "vlan")?;
        let before = agent.dropped("unsupported_protocol")?;
        for _ in 0..3 {
            liar.send_frame("eth0", &datagram("10.0.1.3", "10.0.1.4", Some(42)))?;
        }
        agent.wait_dropped("unsupported_protocol", before + 3)?;
        // On the gateway bridge, towards the outside.
        let gateway = liar.interfaces()?.into_iter().find(|name| name != "lo" && name != "eth0");
        let gateway = gateway.expect("the task has an interface on the gateway bridge");
        let own = liar.run(&format!("ip -4 -o addr show dev {gateway}"))?;
        let own =
            own.split_whitespace().find_map(|word| word.strip_suffix("/16")).expect("it has an address").to_owned();
        for _ in 0..3 {
            liar.send_frame(&gateway, &datagram(&own, "172.18.0.1", Some(42)))?;
        }
        agent.wait_dropped("unsupported_protocol", before + 6)?;
        ensure!(agent.dropped("unsupported_protocol")? == before + 6, "{}", agent.json(&["drops"])?);
        ensure!(tunnel.packets()? == 0, "a tagged frame has left the node");
        // A priority is no VLAN.
        liar.send_frame("eth0", &datagram("10.0.1.3", "10.0.1.4", Some(PRIORITY)))?;
        seen.wait_packets(1)?;
        tunnel.wait_packets(1)?;
        ensure!(tagged.packets()? == 0, "the outer frame carries the container's tag");
        Ok(())
    });
}

/// Two nodes have one address, and the switch is a hub: as soon as an interface is promiscuous, the hooks of both see
/// all.
fn only_the_node_meant_answers(lab: &Lab, xdp: &str) -> Result<()> {
    let client = lab.client()?;
    let mut cluster = Cluster::start_with(lab, 3, web(), &["--xdp", xdp])?;
    cluster.serve(&WEB)?;
    for node in &cluster.nodes[1..] {
        node.run("ip addr add 192.168.77.50/32 dev eth0")?;
        node.run("ip link set eth0 promisc on")?;
    }
    lab.switch().run("ip link set br0 type bridge ageing_time 0")?;
    let meant = address_of(&cluster.nodes[1], "eth0")?.map(|byte| format!("{byte:02x}")).join(":");
    client.run(&format!("ip neigh replace 192.168.77.50 lladdr {meant} dev eth0"))?;
    for agent in &cluster.agents[1..] {
        wait_for("both nodes to have the address", PATIENCE, || {
            let status = agent.json(&["status"])?.to_string();
            ensure!(status.contains("\"192.168.77.50\""), "{status}");
            Ok(())
        })?;
    }
    let flows = || cluster.agents[2].counter("mesh_flow");
    let before = flows()?;
    let seen = Capture::start(lab, &cluster.nodes[2], "eth0", "tcp dst port 8080")?;
    let tally = peer::tcp_load(&client, "192.168.77.50:8080", 40, 2)?;
    ensure!(!seen.dissect("tcp", &["ip.dst"])?.is_empty(), "the other node's interface does not see the frames");
    ensure!(flows()? == before, "the other node has opened connections, too: {before} before, now {}", flows()?);
    assert_even(&tally, &WEB, 20)
}

/// Where the probe stands in an outer frame, and its nonce in it.
const PROBE_AT: usize = 92;
const NONCE_AT: usize = PROBE_AT + 8;

/// A frame of a node's tunnel: `inner` from n1 to n3, to this MAC.
fn tunnelled(target: [u8; 6], vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend_from_slice(&(vni << 8).to_be_bytes());
    payload.extend_from_slice(inner);
    let builder = PacketBuilder::ethernet2(mac("02:00:00:00:00:11"), target);
    let builder = builder.ipv4(ip("192.168.77.11"), ip("192.168.77.13"), 64).udp(50_000, 4789);
    let mut bytes = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut bytes, &payload).expect("a vector takes everything");
    bytes
}

/// The first frame of a capture.
fn first_frame(capture: Capture) -> Result<Vec<u8>> {
    let file = std::fs::read(capture.stop()?)?;
    // Behind the file's header one for each frame, with the length that was captured.
    let header = file.get(24..40).context("nothing was captured")?;
    let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
    Ok(file.get(40..40 + length).context("the capture is cut off")?.to_vec())
}

/// What a hub shows a promiscuous interface of the others' tunnels: neither is a container's packet taken out, nor a
/// probe answered, although the tunnel's address is the node's own.
fn only_the_node_meant_takes_tunnels(lab: &Lab, xdp: &str) -> Result<()> {
    let sender = lab.client()?;
    let cluster = Cluster::start_with(lab, 3, web(), &["--xdp", xdp])?;
    let (node, agent) = (&cluster.nodes[2], &cluster.agents[2]);
    node.run("ip link set eth0 promisc on")?;
    let (meant, another) = (address_of(node, "eth0")?, mac("02:00:00:00:00:99"));
    // A request of n1's own; kind 1, in the mesh's VNI.
    let requests = format!("src 192.168.77.11 and udp port 4789 and udp[12:4] = {} and udp[59] = 1", MESH_VNI << 8);
    let mut probes = Capture::start(lab, node, "eth0", &requests)?;
    probes.wait_packets(1)?;
    let probe = first_frame(probes)?;
    ensure!(probe.len() >= NONCE_AT + 8 && probe[PROBE_AT..PROBE_AT + 2] == [1, 1], "not a probe: {probe:?}");
    let probe = |target: [u8; 6], nonce: u8| {
        let mut frame = probe.clone();
        frame[..6].copy_from_slice(&target);
        frame[NONCE_AT..NONCE_AT + 8].fill(nonce);
        frame
    };
    let answers = |nonce: &str| {
        let filter = format!("src 192.168.77.13 and udp port 4789 and udp[66:4] = 0x{}", nonce.repeat(4));
        Capture::start(lab, lab.switch(), "n3", &filter)
    };
    let (mut wrong, mut right) = (answers("ee")?, answers("dd")?);
    let mut delivered = Capture::start(lab, cluster.task("user.1"), "eth0", &format!("udp port {DISCARD_PORT}"))?;
    let mut seen = Capture::start(lab, node, "eth0", "ether dst 02:00:00:00:00:99")?;
    let inner = datagram("10.0.1.3", "10.0.1.9", None);
    let drops = agent.json(&["drops"])?;
    for _ in 0..5 {
        sender.send_frame("eth0", &tunnelled(another, 4097, &inner))?;
        sender.send_frame("eth0", &probe(another, 0xee))?;
    }
    seen.wait_packets(10)?;
    // The same to the node's own MAC: behind those, and taken.
    sender.send_frame("eth0", &tunnelled(meant, 4097, &inner))?;
    sender.send_frame("eth0", &probe(meant, 0xdd))?;
    delivered.wait_packets(1)?;
    right.wait_packets(1)?;
    ensure!(delivered.packets()? == 1, "a packet for another host was taken out of its tunnel");
    ensure!(wrong.packets()? == 0, "a probe for another host was answered");
    let now = agent.json(&["drops"])?;
    ensure!(now == drops, "frames for another host were dropped: {drops} before, now {now}");
    Ok(())
}

#[test]
fn tunnels_for_another_host_are_left_to_the_stack() {
    scenario(|lab| only_the_node_meant_takes_tunnels(lab, "off"));
}

#[test]
fn xdp_leaves_tunnels_for_another_host_too() {
    scenario(|lab| only_the_node_meant_takes_tunnels(lab, "generic"));
}

#[test]
fn frames_for_another_host_are_left_to_the_stack() {
    scenario(|lab| only_the_node_meant_answers(lab, "off"));
}

#[test]
fn xdp_leaves_frames_for_another_host_too() {
    scenario(|lab| only_the_node_meant_answers(lab, "generic"));
}

/// As keepalived makes it with `use_vmac`: a macvlan device with the group's MAC holds the address.
#[test]
fn an_address_with_a_virtual_mac_answers() {
    scenario(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        let node = &cluster.nodes[2];
        node.run("ip link add vrrp.51 link eth0 address 00:00:5e:00:01:33 type macvlan mode private")?;
        node.run("ip addr add 192.168.77.50/32 dev vrrp.51")?;
        node.run("ip link set vrrp.51 up")?;
        client.run("ip neigh replace 192.168.77.50 lladdr 00:00:5e:00:01:33 dev eth0")?;
        wait_for("the address to answer", PATIENCE, || {
            let tally = peer::attempts(&client, "tcp", "192.168.77.50:8080", 2)?;
            ensure!(tally.failed == 0, "{tally:?}");
            Ok(())
        })?;
        let tally = peer::tcp_load(&client, "192.168.77.50:8080", 20, 2)?;
        assert_even(&tally, &WEB, 10)?;
        assert_peer(&tally, CLIENT)?;
        peer::transfer(&client, "192.168.77.50:8080", 1_000_000)
    });
}
