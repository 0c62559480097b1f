//! Direct server return: with `--mesh-return dsr` a backend's node answers clients of other ingress nodes itself.

use std::{io::ErrorKind, net::UdpSocket, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::Agent,
    lab::{BAD_CHECKSUM, Capture, Lab, Netns, Offloads, PATIENCE, scenario, wait_for},
    peer,
    table::Table,
};

use crate::{
    sockets::{connected, path_mtu, set_ip, udp},
    support::{Cluster, assert_even, assert_peer, strict, web_table},
};

pub(crate) const DSR: [&str; 2] = ["--mesh-return", "dsr"];
const PORTS: [(&str, u16, u16); 3] = [("tcp", 8080, 80), ("udp", 5353, 53), ("udp", 7000, 7777)];

/// web.1 on n2 alone, so that n3, where clients come in, gives everything to n2.
pub(crate) fn one_backend() -> Table {
    web_table(&["n2"], &PORTS, "n3")
}

/// web.1 and web.2 on n1 and n2; n3 has only user.1.
fn two_backends() -> Table {
    web_table(&["n1", "n2"], &PORTS, "n3")
}

/// Replies that have left a node for other nodes' clients: by the tunnel, and directly.
pub(crate) fn replies(agent: &Agent) -> Result<(u64, u64)> {
    Ok((agent.counter("mesh_return")?, agent.counter("mesh_direct_reply")?))
}

/// What `work` makes of them.
pub(crate) fn replies_of(agent: &Agent, work: impl FnOnce() -> Result<()>) -> Result<(u64, u64)> {
    let before = replies(agent)?;
    work()?;
    let after = replies(agent)?;
    Ok((after.0 - before.0, after.1 - before.1))
}

/// `client` is served at `address` by all of `backends`, in small and in large, and is seen as `seen`.
fn served(client: &Netns, address: &str, backends: &[&str], seen: &str) -> Result<()> {
    let (tcp_port, udp_port) = (format!("{address}:8080"), format!("{address}:5353"));
    let each = 10;
    let count = each * backends.len() as u32;
    let tcp = peer::tcp_load(client, &tcp_port, count, 2)?;
    assert_even(&tcp, backends, each.into())?;
    assert_peer(&tcp, seen)?;
    let udp = peer::udp_load(client, &udp_port, count)?;
    assert_even(&udp, backends, each.into())?;
    assert_peer(&udp, seen)?;
    for _ in backends {
        peer::transfer(client, &tcp_port, 1_000_000)?;
        let echo = peer::udp_echo(client, &udp_port, 1400, 4)?;
        ensure!(echo.ok == 4, "UDP of 1400 bytes: {echo:?}");
    }
    Ok(())
}

fn clients(lab: &Lab) -> Result<[(Netns, &'static str); 2]> {
    Ok([(lab.client()?, "192.168.77.100"), (lab.far_client()?, "192.168.88.100")])
}

/// MAC of a node's `eth0`.
fn mac(node: &Netns) -> Result<String> {
    let links: serde_json::Value = serde_json::from_str(&node.run("ip -j link show eth0")?)?;
    links[0]["address"].as_str().map(str::to_owned).context("no MAC")
}

#[test]
fn replies_leave_the_backends_node_directly_if_it_says_so() {
    scenario(|lab| {
        let clients = clients(lab)?;
        let mut cluster = Cluster::start(lab, 3, one_backend())?;
        strict(&cluster)?;
        cluster.serve(&["web.1"])?;
        let (n2, n3) = (cluster.agents[1].clone(), cluster.agents[2].clone());
        // What n3 is told makes no difference to n2's replies.
        for (of_n2, of_n3) in [(&[][..], &DSR[..]), (&DSR[..], &[][..]), (&DSR[..], &DSR[..])] {
            n2.restart_with(of_n2)?;
            n3.restart_with(of_n3)?;
            let direct = !of_n2.is_empty();
            let shown = n2.json(&["status"])?["node"]["mesh_return"].clone();
            ensure!(shown == if direct { "dsr" } else { "tunnel" }, "status says {shown}");
            for offloads in Offloads::BOTH {
                lab.set_offloads(offloads)?;
                for (client, address) in &clients {
                    let (_, unsolicited) = replies(&n3)?;
                    let handed_out = n3.counter("mesh_reply")?;
                    let work = || served(client, "192.168.77.13", &["web.1"], address);
                    let (by_tunnel, directly) = replies_of(&n2, work)
                        .with_context(|| format!("n2 {of_n2:?}, n3 {of_n3:?}, {offloads:?}, {address}"))?;
                    let handed_out = n3.counter("mesh_reply")? - handed_out;
                    // A SYN-ACK and a FIN of each of 12 connections, the first of 11 answers.
                    ensure!(by_tunnel >= 2 * 12 + 11, "only {by_tunnel} replies by the tunnel, {directly} directly");
                    ensure!(direct == (directly > 50), "{by_tunnel} replies by the tunnel, {directly} directly");
                    // A cable with native XDP at its end carries in pieces what n2 has counted as one.
                    let same = handed_out == by_tunnel || lab.is_native() && handed_out > by_tunnel;
                    ensure!(same, "n3 has handed out {handed_out} of {by_tunnel}");
                    ensure!(replies(&n3)?.1 == unsolicited, "n3 has no backend");
                }
            }
        }
        Ok(())
    });
}

#[test]
fn the_client_sees_one_address_and_two_nodes() {
    scenario(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start_with(lab, 3, one_backend(), &DSR)?;
        cluster.serve(&["web.1"])?;
        lab.set_offloads(Offloads::Off)?;
        let capture = Capture::start(lab, &client, "eth0", "src host 192.168.77.13 and not arp")?;
        peer::transfer(&client, "192.168.77.13:8080", 500_000)?;
        let one_port = peer::udp_from_port(&client, "192.168.77.13:5353", 23_456, 5, true)?;
        ensure!(one_port.ok == 5, "{one_port:?}");
        let file = capture.stop()?;
        let count =
            |filter: &str| Ok::<_, anyhow::Error>(hiveway_tests::lab::tshark(&file, filter, &["frame.number"])?.len());
        let (n2, n3) = (mac(&cluster.nodes[1])?, mac(&cluster.nodes[2])?);
        let from = |node: &str, what: &str| count(&format!("eth.src == {node} && {what}"));
        // What opens and ends a connection comes through the ingress node, the rest does not.
        let through = |what: &str| Ok::<_, anyhow::Error>((from(&n3, what)?, from(&n2, what)?));
        let (syn, fin, udp) = (through("tcp.flags.syn == 1")?, through("tcp.flags.fin == 1")?, through("udp")?);
        let data = through("tcp.len > 1000 && tcp.flags.fin == 0")?;
        let seen = format!("through n3 and directly: SYN {syn:?}, FIN {fin:?}, data {data:?}, UDP {udp:?}");
        ensure!(syn.0 >= 1 && syn.1 == 0 && fin.0 >= 1 && fin.1 == 0, "{seen}");
        // It may be the connection's turn to send one reply by the tunnel.
        ensure!(data.0 <= 1 && data.1 >= 300 && (1..=2).contains(&udp.0) && udp.0 + udp.1 == 5, "{seen}");
        ensure!(count(BAD_CHECKSUM)? == 0, "bad checksums");
        Ok(())
    });
}

#[test]
fn nodes_of_both_kinds_work_together() {
    scenario(|lab| {
        let clients = clients(lab)?;
        let mut cluster = Cluster::start(lab, 3, two_backends())?;
        strict(&cluster)?;
        cluster.agents[1].restart_with(&DSR)?;
        cluster.serve(&["web.1", "web.2"])?;
        let addresses = ["192.168.77.11", "192.168.77.12", "192.168.77.13"];
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            for (client, seen) in &clients {
                for address in addresses {
                    let before = (replies(&cluster.agents[0])?.1, replies(&cluster.agents[1])?.1);
                    served(client, address, &["web.1", "web.2"], seen)
                        .with_context(|| format!("{offloads:?}, {seen} at {address}"))?;
                    let after = (replies(&cluster.agents[0])?.1, replies(&cluster.agents[1])?.1);
                    ensure!(after.0 == before.0, "n1 answers directly, nobody has asked it to");
                    // n2 needs no tunnel for its own clients.
                    let own = address == "192.168.77.12";
                    ensure!(own == (after.1 == before.1), "at {address} n2 sent {} directly", after.1 - before.1);
                }
            }
        }
        Ok(())
    });
}

/// XDP at the ingress node carries only established connections: what makes them so comes by the tunnel.
#[test]
fn xdp_on_the_ingress_node_carries_what_it_carries_otherwise() {
    scenario(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start_with(lab, 3, one_backend(), &[&DSR[..], &["--xdp", "generic"]].concat())?;
        cluster.serve(&["web.1"])?;
        let (n2, n3) = (cluster.agents[1].clone(), cluster.agents[2].clone());
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            let before = n3.counter("xdp_forward")?;
            let (_, direct) = replies_of(&n2, || served(&client, "192.168.77.13", &["web.1"], "192.168.77.100"))?;
            let carried = n3.counter("xdp_forward")? - before;
            ensure!(direct > 50 && carried >= 10, "{offloads:?}: {carried} carried by XDP, {direct} replies directly");
        }
        Ok(())
    });
}

/// Clients that are nodes, or live on one: at an address of their own node through the host link, which no reply could
/// find from elsewhere; the backend's node itself; and a third node, which is a client as any other.
#[test]
fn nodes_and_their_containers_are_answered_wherever_the_backend_is() {
    scenario(|lab| {
        let mut cluster = Cluster::start_with(lab, 3, one_backend(), &DSR)?;
        strict(&cluster)?;
        cluster.serve(&["web.1"])?;
        let n2 = cluster.agents[1].clone();
        let user = cluster.task("user.1");
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            for (client, address, seen, directly) in [
                (&cluster.nodes[2], "127.0.0.1", "192.168.77.13", false),
                (&cluster.nodes[2], "192.168.77.13", "192.168.77.13", false),
                (user, "192.168.77.13", "192.168.77.13", false),
                (&cluster.nodes[1], "192.168.77.13", "192.168.77.12", false),
                (&cluster.nodes[0], "192.168.77.13", "192.168.77.11", true),
                (user, "192.168.77.11", "192.168.77.13", true),
            ] {
                let (_, direct) = replies_of(&n2, || served(client, address, &["web.1"], seen))
                    .with_context(|| format!("{} at {address}, {offloads:?}", client.label()))?;
                ensure!(directly == (direct > 0), "{} at {address}: {direct} directly", client.label());
            }
        }
        Ok(())
    });
}

/// n3 routes for its client, so the way from n2 to it leads through n3, which would not believe a packet with its own
/// address from outside.
#[test]
fn a_client_behind_its_ingress_node_is_answered_through_the_tunnel() {
    scenario(|lab| {
        let mut cluster = Cluster::start_with(lab, 3, one_backend(), &DSR)?;
        cluster.serve(&["web.1"])?;
        let (node, client) = (&cluster.nodes[2], lab.namespace("inside")?);
        node.run(&format!("ip link add inside type veth peer name eth0 netns {}", client.name()))?;
        node.run("ip addr add 192.168.90.1/24 dev inside")?;
        node.run("ip link set inside up")?;
        client.run("ip addr add 192.168.90.100/24 dev eth0")?;
        client.run("ip link set eth0 up")?;
        client.run("ip route add default via 192.168.90.1")?;
        lab.prepare_cable(node, "inside", (&client, "eth0"))?;
        cluster.nodes[1].run("ip route add 192.168.90.0/24 via 192.168.77.13")?;
        wait_for("n3 to serve its new interface", PATIENCE, || {
            let tally = peer::tcp_load(&client, "192.168.90.1:8080", 3, 1)?;
            ensure!(tally.ok == 3, "{tally:?}");
            Ok(())
        })?;
        for address in ["192.168.90.1", "192.168.77.13"] {
            let (_, direct) =
                replies_of(&cluster.agents[1], || served(&client, address, &["web.1"], "192.168.90.100"))?;
            ensure!(direct == 0, "{direct} directly");
        }
        Ok(())
    });
}

/// The far client talks to an address of n3's in another network. A router that checks sources strictly, as clouds do,
/// lets n3 send with that address, and n2 not: connections open, because that is the tunnel's part, and hang.
#[test]
fn a_router_that_checks_sources_lets_only_the_tunnel_through() {
    scenario(|lab| {
        let far = lab.far_client()?;
        let mut cluster = Cluster::start_with(lab, 3, one_backend(), &DSR)?;
        cluster.serve(&["web.1"])?;
        let (switch, n3) = (lab.switch(), &cluster.nodes[2]);
        switch.run(&format!("ip link add second type veth peer name eth1 netns {}", n3.name()))?;
        switch.run("ip addr add 192.168.99.1/24 dev second")?;
        switch.run("ip link set second up")?;
        n3.run("ip addr add 192.168.99.13/24 dev eth1")?;
        n3.run("ip link set eth1 up")?;
        lab.prepare_cable(n3, "eth1", (switch, "second"))?;
        n3.run("ip route add default via 192.168.99.1 dev eth1 table 99")?;
        n3.run("ip rule add from 192.168.99.13 table 99")?;
        let target = "192.168.99.13:8080";
        wait_for("n3 to serve its new interface", PATIENCE, || {
            let tally = peer::tcp_load(&far, target, 3, 1)?;
            ensure!(tally.ok == 3, "{tally:?}");
            Ok(())
        })?;
        for (filter, flags, passes) in [(1, &[][..], true), (1, &DSR[..], false), (2, &DSR[..], true)] {
            switch.run(&format!("sysctl -qw net.ipv4.conf.br0.rp_filter={filter}"))?;
            cluster.agents[1].restart_with(flags)?;
            if passes {
                assert_even(&peer::tcp_load(&far, target, 5, 1)?, &["web.1"], 5)?;
                continue;
            }
            let tally = peer::attempts(&far, "tcp", target, 3)?;
            ensure!(tally.ok == 0, "{tally:?}");
            let refused = tally.errors.keys().any(|why| why.contains("refused"));
            ensure!(!refused, "{tally:?}");
        }
        Ok(())
    });
}

/// No tunnel, so full-sized datagrams of the server's need not be cut, and one that is too big for the client's own
/// link is the router's to report, to the ingress node, which hands it on.
#[test]
fn the_direct_way_has_its_own_mtu() {
    scenario(|lab| {
        let far = lab.far_client()?;
        let mut cluster = Cluster::start_with(lab, 3, one_backend(), &DSR)?;
        cluster.serve(&["web.1"])?;
        let server = udp(cluster.task("web.1"), 7777)?;
        let asking = connected(&far, "192.168.77.13:7000")?;
        asking.send(b"question")?;
        let (_, seen) = server.recv_from(&mut [0; 64])?;
        ensure!(seen.ip().to_string() == "192.168.88.100", "{seen}");
        server.connect(seen)?;
        set_ip(&server, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)?;
        for size in [10, 1472, 1472] {
            server.send(&vec![7; size])?;
            ensure!(asking.recv(&mut [0; 2000]).context("a datagram of full size")? == size);
        }
        lab.switch().run("ip link set far mtu 1300")?;
        far.run("ip link set eth0 mtu 1300")?;
        server.send(&[7; 1472])?;
        wait_for("the server to be told", PATIENCE, || {
            ensure!(path_mtu(&server)? == 1300, "{}", path_mtu(&server)?);
            Ok(())
        })?;
        // TCP that was not told by its peer learns it, too.
        far.run("ip route replace default via 192.168.88.1 advmss 1460")?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            cluster.task("web.1").run("ip route flush cache")?;
            let (_, direct) = replies_of(&cluster.agents[1], || peer::transfer(&far, "192.168.77.13:8080", 2_000_000))?;
            ensure!(direct > 50, "{direct} directly");
            let route = cluster.task("web.1").run("ip route get 192.168.88.100")?;
            ensure!(route.contains("mtu 1300"), "{offloads:?}: the server's route is {route}");
        }
        Ok(())
    });
}

/// Answers in pieces: all of one datagram go one way.
#[test]
fn datagrams_in_pieces_arrive_whole() {
    scenario(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start_with(lab, 3, one_backend(), &DSR)?;
        cluster.serve(&["web.1"])?;
        let server = udp(cluster.task("web.1"), 7777)?;
        set_ip(&server, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            let asking = connected(&client, "192.168.77.13:7000")?;
            asking.send(b"question")?;
            let (_, seen) = server.recv_from(&mut [0; 64])?;
            let before = replies(&cluster.agents[1])?;
            for _ in 0..4 {
                server.send_to(&[7; 4000], seen)?;
                receive(&asking, 4000).with_context(|| format!("{offloads:?}"))?;
            }
            let after = replies(&cluster.agents[1])?;
            // Three pieces each.
            ensure!((after.0 - before.0, after.1 - before.1) == (3, 9), "{before:?}, then {after:?}");
        }
        Ok(())
    });
}

/// The next datagram has this size.
pub(crate) fn receive(socket: &UdpSocket, size: usize) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    match socket.recv(&mut vec![0; 65_536]) {
        Ok(read) => {
            ensure!(read == size, "{read} bytes instead of {size}");
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => anyhow::bail!("nothing came"),
        Err(error) => Err(error.into()),
    }
}
