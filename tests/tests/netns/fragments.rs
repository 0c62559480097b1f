//! Datagrams that travel in pieces: cut by their sender, or by the tunnel's kernel.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::{Capture, Lab, Netns, Offloads, PATIENCE, Process, scenario, wait_for},
    peer, plain,
    table::Table,
};
use serde_json::json;

use crate::{
    frames::{ip, mac},
    support::Cluster,
};

const WEB: [&str; 2] = ["web.1", "web.2"];
const VIP: &str = "10.0.1.2";

/// web.1 and web.2 on n1 and n2 behind a VIP and published as 5353/udp, a client container on n1; n3 has no task.
fn web() -> Table {
    Table::with_nodes(3)
        .ingress()
        .network("app", "10.0.1", 4097)
        .service("web")
        .vip("ingress", "10.0.0.5")
        .vip("app", VIP)
        .publish("udp", 5353, 53)
        .task("web.1", "web", "n1", &[("ingress", "10.0.0.6"), ("app", "10.0.1.3")])
        .task("web.2", "web", "n2", &[("ingress", "10.0.0.7"), ("app", "10.0.1.4")])
        .service("user")
        .task("user.1", "user", "n1", &[("app", "10.0.1.9")])
}

/// Servers in web.1 and web.2 that never set DF.
fn serve(lab: &Lab, cluster: &Cluster<'_>) -> Result<Vec<Process>> {
    WEB.iter().map(|task| peer::fragmentable_udp_server(lab, cluster.task(task), 53, task)).collect()
}

/// `count` datagrams of `size` bytes from a new port each (so each backend is met) come back as they are. A whole round
/// is repeated if one was lost, which on a machine that is busy can happen to a datagram in 40 pieces.
fn echoes(from: &Netns, target: &str, size: u32, count: u32) -> Result<()> {
    wait_for(&format!("{count} echoes of {size} bytes from {target}"), PATIENCE, || {
        let tally = peer::udp_echo_fragmentable(from, target, size, count)?;
        ensure!(tally.ok == u64::from(count), "{tally:?}");
        Ok(())
    })
}

/// Every way there is, with these sizes.
fn everywhere(lab: &Lab, cluster: &Cluster<'_>, clients: &[Netns], sizes: &[u32]) -> Result<()> {
    for offloads in Offloads::BOTH {
        lab.set_offloads(offloads)?;
        let user = cluster.task("user.1");
        for &size in sizes {
            let what = || format!("{offloads:?}, {size} bytes");
            echoes(user, "10.0.1.4:53", size, 1).with_context(what)?;
            echoes(user, &format!("{VIP}:53"), size, 2).with_context(what)?;
            for client in clients {
                // Ingress node and backend's node are one, or two.
                for node in ["192.168.77.11", "192.168.77.13"] {
                    echoes(client, &format!("{node}:5353"), size, 2).with_context(what)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn large_datagrams_come_back_through_overlay_vip_and_mesh() {
    scenario(|lab| {
        let clients = [lab.client()?, lab.far_client()?];
        let cluster = Cluster::start(lab, 3, web())?;
        let _servers = serve(lab, &cluster)?;
        // 1472 bytes of payload are a full packet of the client's, too big for the tunnel. 2960 and 3010: a last piece
        // that fits, behind pieces that do not.
        everywhere(lab, &cluster, &clients, &[1472, 3010, 60_000])?;
        for agent in &cluster.agents {
            let drops = agent.json(&["drops"])?;
            ensure!(agent.dropped("bad_inner_source")? == 0 && agent.dropped("mtu_exceeded")? == 0, "{drops}");
        }
        Ok(())
    });
}

#[test]
fn packets_too_big_for_a_small_underlay_are_fragmented_by_the_tunnel() {
    scenario(|lab| {
        lab.set_underlay_mtu(1400);
        let clients = [lab.client()?];
        // The network's MTU is 1450 all the same, as after a change of the underlay.
        let table = web();
        let cluster = Cluster::start(lab, 3, table)?;
        let _servers = serve(lab, &cluster)?;
        everywhere(lab, &cluster, &clients, &[1372, 1422, 4000])
    });
}

#[test]
fn jumbo_frames_pass_whole_and_in_pieces() {
    scenario(|lab| {
        lab.set_underlay_mtu(9000);
        let clients = [lab.client()?];
        let mut table = web();
        table.item_mut("networks", "app")["mtu"] = json!(8950);
        let cluster = Cluster::start(lab, 3, table)?;
        let _servers = serve(lab, &cluster)?;
        everywhere(lab, &cluster, &clients, &[8922, 8972, 30_000])
    });
}

/// The pieces of a UDP datagram without a checksum, `size` bytes of payload each, as Ethernet frames.
fn pieces(from: (&str, &str), to: (&str, &str), port: u16, id: u16, size: usize, count: usize) -> Vec<Vec<u8>> {
    let length = size * count;
    let mut datagram = Vec::with_capacity(length);
    for word in [40_000, port, u16::try_from(length).unwrap_or(u16::MAX), 0] {
        datagram.extend_from_slice(&word.to_be_bytes());
    }
    datagram.resize(length, 0x42);
    let piece = |(number, payload): (usize, &[u8])| {
        let mut header = etherparse::Ipv4Header::new(
            u16::try_from(payload.len()).unwrap_or_default(),
            64,
            etherparse::IpNumber::UDP,
            ip(from.1),
            ip(to.1),
        )
        .unwrap_or_default();
        header.identification = id;
        header.dont_fragment = false;
        header.more_fragments = number + 1 < count;
        let offset = u16::try_from(number * size / 8).unwrap_or_default();
        header.fragment_offset = etherparse::IpFragOffset::try_new(offset).unwrap_or_default();
        header.header_checksum = header.calc_header_checksum();
        [&mac(to.0)[..], &mac(from.0), &[8, 0], &header.to_bytes(), payload].concat()
    };
    datagram.chunks(size).enumerate().map(piece).collect()
}

#[test]
fn pieces_without_their_first_are_dropped_and_later_ones_may_come_in_any_order() {
    scenario(|lab| {
        let cluster = Cluster::start(lab, 3, web())?;
        let (user, agent) = (cluster.task("user.1"), &cluster.agents[0]);
        let mut seen = WEB
            .iter()
            .map(|task| Capture::start(lab, cluster.task(task), "eth0", "udp or (ip[6:2] & 0x1fff != 0)"))
            .collect::<Result<Vec<_>>>()?;
        let from = (&*plain::mac_of("10.0.1.9"), "10.0.1.9");
        let to = ("02:48:57:00:00:01", VIP);
        let send = |id: u16, order: &[usize]| -> Result<()> {
            let all = pieces(from, to, 53, id, 480, 4);
            order.iter().try_for_each(|&number| user.send_frame("eth0", &all[number]))
        };
        let before = agent.dropped("fragment")?;
        // Complete, in order and out of order behind the first.
        send(1, &[0, 1, 2, 3])?;
        send(2, &[0, 3, 1, 2])?;
        // The first is missing; the first comes late: what was before it is lost, and so is the datagram.
        send(3, &[1, 2, 3])?;
        send(4, &[1, 0, 2, 3])?;
        agent.wait_dropped("fragment", before + 4)?;
        // One more, so that all of the others have arrived when it has.
        send(5, &[0, 1, 2, 3])?;
        wait_for("the last datagram", PATIENCE, || {
            let packets = seen.iter_mut().map(Capture::packets).collect::<Result<Vec<_>>>()?;
            // 1, 2 and 5 whole, of 4 all but one piece, of 3 none.
            ensure!(packets.iter().sum::<u64>() == 3 * 4 + 3, "{packets:?}");
            Ok(())
        })?;
        ensure!(agent.dropped("fragment")? == before + 4, "{}", agent.json(&["drops"])?);
        let mut whole = Vec::new();
        for capture in seen {
            let file = capture.stop()?;
            let rows = hiveway_tests::lab::tshark(&file, "udp.length == 1920", &["ip.id", "ip.dst"])?;
            // All pieces of one flow are with one backend.
            whole.extend(rows.into_iter().map(|row| row[0].clone()));
        }
        whole.sort();
        ensure!(whole == ["0x0001", "0x0002", "0x0005"], "the backends put together {whole:?}");
        Ok(())
    });
}
