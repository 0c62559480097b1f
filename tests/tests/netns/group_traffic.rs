//! Broadcast, multicast and ARP within a network: to all of its members, to nobody else, and bounded.

use anyhow::{Result, ensure};
use etherparse::{ArpEthIpv4Packet, ArpOperation, PacketBuilder};
use hiveway_tests::{
    lab::{Capture, DISCARD_PORT, MESH_VNI, Netns, PATIENCE, wait_for, with_and_without_offloads},
    peer, plain,
    table::Table,
};

use crate::{
    frames::{ip, mac},
    support::{Cluster, assert_even},
};

/// a.1 and a.3 on n1, a.2 on n2; another network with b.1 on n1 and b.2 on n3.
fn two_networks() -> Table {
    Table::with_nodes(3)
        .network("app", "10.0.1", 4097)
        .network("other", "10.0.2", 4098)
        .service("a")
        .task("a.1", "a", "n1", &[("app", "10.0.1.3")])
        .task("a.2", "a", "n2", &[("app", "10.0.1.4")])
        .task("a.3", "a", "n1", &[("app", "10.0.1.5")])
        .service("b")
        .task("b.1", "b", "n1", &[("other", "10.0.2.3")])
        .task("b.2", "b", "n3", &[("other", "10.0.2.4")])
}

/// A datagram to `DISCARD_PORT` in a group frame.
fn group_frame(from: &str, group_mac: [u8; 6], to: &str) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(mac(&plain::mac_of(from)), group_mac)
        .ipv4(ip(from), ip(to), 1)
        .udp(DISCARD_PORT, DISCARD_PORT);
    let mut bytes = Vec::with_capacity(builder.size(5));
    builder.write(&mut bytes, b"hello").expect("a vector takes everything");
    bytes
}

/// An ARP packet to all.
fn arp_frame(operation: ArpOperation, sender: (&str, &str), target: (&str, &str)) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation,
        sender_mac: mac(sender.0),
        sender_ipv4: ip(sender.1),
        target_mac: mac(target.0),
        target_ipv4: ip(target.1),
    };
    [&[0xff; 6][..], &mac(sender.0), &[8, 6], &packet.to_bytes()].concat()
}

#[test]
fn broadcast_and_multicast_reach_all_members_of_a_network_and_nobody_else() {
    with_and_without_offloads(|lab| {
        let cluster = Cluster::start(lab, 3, two_networks())?;
        let from = cluster.task("a.1");
        let watch = |task: &str| Capture::start(lab, cluster.task(task), "eth0", &format!("udp port {DISCARD_PORT}"));
        let (mut remote, mut local) = (watch("a.2")?, watch("a.3")?);
        let strangers = [watch("b.1")?, watch("b.2")?];
        // The wire towards the node that has no task of the network.
        let wire = Capture::start(lab, lab.switch(), "n3", "udp port 4789")?;
        let groups = [
            ([0xff; 6], "10.0.1.255"),
            ([0xff; 6], "255.255.255.255"),
            ([1, 0, 0x5e, 0, 0, 0xfb], "224.0.0.251"),
            ([1, 0, 0x5e, 1, 2, 3], "239.129.2.3"),
        ];
        for (group_mac, to) in groups {
            from.send_frame("eth0", &group_frame("10.0.1.3", group_mac, to))?;
        }
        let each_once = vec![["10.0.1.255"], ["255.255.255.255"], ["224.0.0.251"], ["239.129.2.3"]];
        for (name, member) in [("a.2", &mut remote), ("a.3", &mut local)] {
            member.wait_packets(4).map_err(|error| error.context(name))?;
        }
        // One in the other network, so that its captures end with something, and n3's wire, too.
        cluster.task("b.1").send_frame("eth0", &group_frame("10.0.2.3", [0xff; 6], "10.0.2.255"))?;
        let [mut b1, mut b2] = strangers;
        b1.wait_packets(1)?;
        b2.wait_packets(1)?;
        for (name, member) in [("a.2", remote), ("a.3", local)] {
            let rows = member.dissect("udp", &["ip.dst"])?;
            ensure!(rows == each_once, "{name} has seen {rows:?}");
        }
        for (name, stranger) in [("b.1", b1), ("b.2", b2)] {
            let rows = stranger.dissect("udp", &["ip.dst"])?;
            ensure!(rows == [["10.0.2.255"]], "{name} has seen {rows:?}");
        }
        // Probes, in the mesh's VNI, are for the same port.
        let filter = format!("vxlan && udp.dstport == {DISCARD_PORT} && vxlan.vni != {MESH_VNI}");
        let rows = wire.dissect(&filter, &["vxlan.vni"])?;
        ensure!(rows == [["4098"]], "n3 has been sent {rows:?}");
        Ok(())
    });
}

#[test]
fn a_container_that_floods_its_network_is_slowed_down_and_still_works() {
    with_and_without_offloads(|lab| {
        let mut cluster = Cluster::start(lab, 3, two_networks())?;
        cluster.serve(&["a.2", "a.3"])?;
        let (from, agent) = (cluster.task("a.1"), &cluster.agents[0]);
        let frame = group_frame("10.0.1.3", [1, 0, 0x5e, 0, 0, 0xfb], "224.0.0.251");
        // Many more per second than may be, however slow this machine is: until it shows.
        wait_for("group_rate to be counted", PATIENCE, || {
            from.send_frames("eth0", &frame, 5_000)?;
            ensure!(agent.dropped("group_rate")? > 0, "{}", agent.json(&["drops"])?);
            Ok(())
        })?;
        for (to, name) in [("10.0.1.4:80", "a.2"), ("10.0.1.5:80", "a.3")] {
            assert_even(&peer::tcp_load(from, to, 20, 2)?, &[name], 20)?;
        }
        // Its neighbour may send as before.
        let mut seen =
            Capture::start(lab, cluster.task("a.2"), "eth0", &format!("udp port {DISCARD_PORT} and src 10.0.1.5"))?;
        let quiet = cluster.task("a.3");
        let theirs = group_frame("10.0.1.5", [1, 0, 0x5e, 0, 0, 0xfb], "224.0.0.251");
        for _ in 0..50 {
            quiet.send_frame("eth0", &theirs)?;
        }
        seen.wait_packets(50)
    });
}

/// What a container's neighbour table says of an address.
fn neighbour(task: &Netns, address: &str) -> Result<String> {
    Ok(task.run(&format!("ip neigh show {address}"))?.trim().to_owned())
}

#[test]
fn gratuitous_arp_duplicate_addresses_and_probes_poison_nobody() {
    with_and_without_offloads(|lab| {
        let mut cluster = Cluster::start(lab, 3, two_networks())?;
        cluster.serve(&["a.2", "a.3"])?;
        let (liar, victim, agent) = (cluster.task("a.1"), cluster.task("a.3"), &cluster.agents[0]);
        let (own, theirs) = (plain::mac_of("10.0.1.3"), plain::mac_of("10.0.1.4"));
        // The victim knows a.2, and would learn from what it hears.
        victim.run("sysctl -qw net.ipv4.conf.eth0.arp_accept=1")?;
        assert_even(&peer::tcp_load(victim, "10.0.1.4:80", 1, 1)?, &["a.2"], 1)?;
        let mut heard = Capture::start(lab, victim, "eth0", "arp")?;
        let before = (agent.dropped("spoofed_ip")?, agent.dropped("spoofed_mac")?);
        let zero = "00:00:00:00:00:00";
        for _ in 0..3 {
            // "10.0.1.4 is mine", as announcement and as answer; with a foreign hardware address inside.
            liar.send_frame("eth0", &arp_frame(ArpOperation::REQUEST, (&own, "10.0.1.4"), (zero, "10.0.1.4")))?;
            liar.send_frame("eth0", &arp_frame(ArpOperation::REPLY, (&own, "10.0.1.4"), (&theirs, "10.0.1.5")))?;
            liar.send_frame(
                "eth0",
                &arp_frame(ArpOperation::REQUEST, ("02:00:00:00:00:09", "10.0.1.3"), (zero, "10.0.1.3")),
            )?;
        }
        agent.wait_dropped("spoofed_ip", before.0 + 6)?;
        agent.wait_dropped("spoofed_mac", before.1 + 3)?;
        let mut told = Capture::start(lab, liar, "eth0", "arp and arp[6:2] = 2")?;
        // A probe for a.2's address (RFC 5227: without a sender) and an announcement of the own one are in order.
        liar.send_frame("eth0", &arp_frame(ArpOperation::REQUEST, (&own, "0.0.0.0"), (zero, "10.0.1.4")))?;
        liar.send_frame("eth0", &arp_frame(ArpOperation::REQUEST, (&own, "10.0.1.3"), (zero, "10.0.1.3")))?;
        wait_for("the announcement", PATIENCE, || {
            let seen = neighbour(victim, "10.0.1.3")?;
            ensure!(seen.contains(&own), "{seen}");
            Ok(())
        })?;
        heard.wait_packets(1)?;
        let rows = heard.dissect("arp.src.proto_ipv4 == 10.0.1.4", &["arp.src.hw_mac"])?;
        ensure!(rows.iter().all(|row| row[0] == theirs), "the victim heard of a.2: {rows:?}");
        let seen = neighbour(victim, "10.0.1.4")?;
        ensure!(seen.is_empty() || seen.contains(&theirs), "a.2 is {seen} to a.3");
        assert_even(&peer::tcp_load(victim, "10.0.1.4:80", 5, 1)?, &["a.2"], 5)?;
        // Whoever asks whether an address is free is told that it is not.
        told.wait_packets(1)?;
        let rows = told.dissect("arp.opcode == 2", &["arp.src.proto_ipv4", "arp.src.hw_mac"])?;
        ensure!(rows == [["10.0.1.4", &*theirs]], "the liar was told {rows:?}");
        Ok(())
    });
}
