//! ICMP errors reach whoever must see them, in terms of what it sees: through VIPs and the routing mesh.

use anyhow::{Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, Offloads, scenario},
    table::Table,
};

use crate::{
    sockets::{connected, send_until_error, set_ip, udp},
    support::Cluster,
};

/// Published, and nobody listens behind it. As many as tracepath tries.
const CLOSED: std::ops::Range<u16> = 44444..44476;

/// web.1 on n1 and web.2 on n2, user.1 on n1; 8080/tcp and 5353/udp published, and closed ports. n3 has no task.
fn web() -> Table {
    let table = Table::with_nodes(3)
        .ingress()
        .network("app", "10.0.1", 4097)
        .service("web")
        .vip("ingress", "10.0.0.5")
        .vip("app", "10.0.1.2")
        .publish("tcp", 8080, 80)
        .publish("udp", 5353, 53)
        .publish("udp", 7000, 7777);
    CLOSED
        .fold(table, |table, port| table.publish("udp", port, 9))
        .task("web.1", "web", "n1", &[("ingress", "10.0.0.6"), ("app", "10.0.1.3")])
        .task("web.2", "web", "n2", &[("ingress", "10.0.0.7"), ("app", "10.0.1.4")])
        .service("user")
        .task("user.1", "user", "n1", &[("app", "10.0.1.9")])
}

/// As [`Cluster::start`]; nobody limits the rate of ICMP errors (Linux: one per second and destination after six).
fn start(lab: &Lab, table: Table) -> Result<Cluster<'_>> {
    let cluster = Cluster::start(lab, 3, table)?;
    for netns in ["web.1", "web.2", "user.1"].map(|task| cluster.task(task)).into_iter().chain([lab.switch()]) {
        netns.run("sysctl -qw net.ipv4.icmp_ratelimit=0")?;
    }
    Ok(cluster)
}

/// Connected sockets take an error only from the address they are connected to.
fn refused(client: &Netns, target: &str) -> Result<()> {
    // More than once, so that each backend has its turn.
    for _ in 0..4 {
        let socket = connected(client, target)?;
        socket.send(b"anybody?")?;
        let answer = socket.recv(&mut [0; 64]);
        let refused = matches!(&answer, Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED));
        ensure!(refused, "{} to {target}: {answer:?}", client.label());
    }
    Ok(())
}

#[test]
fn a_closed_udp_port_behind_a_vip_is_reported_at_once() {
    scenario(|lab| {
        let cluster = start(lab, web())?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            // web.1 is beside it, web.2 on another node; web.1 is its own backend every other time.
            refused(cluster.task("user.1"), "10.0.1.2:9")?;
            refused(cluster.task("web.1"), "10.0.1.2:9")?;
        }
        Ok(())
    });
}

#[test]
fn a_closed_udp_port_behind_a_published_port_is_reported_at_once() {
    scenario(|lab| {
        let clients = [lab.client()?, lab.far_client()?];
        let cluster = start(lab, web())?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            for node in ["192.168.77.11", "192.168.77.12", "192.168.77.13"] {
                for client in &clients {
                    refused(client, &format!("{node}:{}", CLOSED.start))?;
                }
            }
            // A node, and a container behind masquerade, are clients as well.
            refused(&cluster.nodes[2], &format!("192.168.77.11:{}", CLOSED.start))?;
            refused(cluster.task("user.1"), &format!("192.168.77.12:{}", CLOSED.start))?;
        }
        Ok(())
    });
}

#[test]
fn a_server_learns_that_its_client_is_gone() {
    scenario(|lab| {
        let (near, far) = (lab.client()?, lab.far_client()?);
        let cluster = start(lab, web())?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            for (client, target) in
                [(cluster.task("user.1"), "10.0.1.2:7777"), (&near, "192.168.77.13:7000"), (&far, "192.168.77.12:7000")]
            {
                // Twice: once for each backend.
                for _ in 0..2 {
                    gone(&cluster, client, target)?;
                }
            }
        }
        Ok(())
    });
}

/// A client asks, and has closed its socket when the answer comes.
fn gone(cluster: &Cluster<'_>, client: &Netns, target: &str) -> Result<()> {
    let server = asked(cluster, client, target)?;
    send_until_error(&server, b"too late", libc::ECONNREFUSED)
}

/// A client asks, and goes. The server's socket, connected to whom it saw.
fn asked(cluster: &Cluster<'_>, client: &Netns, target: &str) -> Result<std::net::UdpSocket> {
    let servers = [udp(cluster.task("web.1"), 7777)?, udp(cluster.task("web.2"), 7777)?];
    let asking = connected(client, target)?;
    asking.send(b"question")?;
    for server in &servers {
        server.set_read_timeout(Some(std::time::Duration::from_millis(50)))?;
    }
    let started = std::time::Instant::now();
    loop {
        for server in &servers {
            if let Ok((_, peer)) = server.recv_from(&mut [0; 64]) {
                server.connect(peer)?;
                return Ok(server.try_clone()?);
            }
        }
        ensure!(started.elapsed() < hiveway_tests::lab::PATIENCE, "no question through {target} arrived");
    }
}

#[test]
fn a_server_learns_that_its_answers_live_too_short() {
    scenario(|lab| {
        let far = lab.far_client()?;
        let cluster = start(lab, web())?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            for node in ["192.168.77.13:7000", "192.168.77.11:7000"] {
                // The task's own node is the first hop, the router between client and nodes the second.
                for hops in [1, 1, 2, 2] {
                    let server = asked(&cluster, &far, node)?;
                    set_ip(&server, libc::IP_RECVERR, 1)?;
                    server.set_ttl(hops)?;
                    send_until_error(&server, b"short-lived", libc::EHOSTUNREACH)?;
                }
            }
        }
        Ok(())
    });
}

/// The hops that traceroute shows.
fn trace(netns: &Netns, how: &str, target: &str, hops: &[&str]) -> Result<()> {
    let text = netns.run(&format!("traceroute -n -q 1 -w 5 -m 4 {how} {target}"))?;
    let seen: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    ensure!(seen == hops, "{}: traceroute {how} {target}: {text}", netns.label());
    Ok(())
}

#[test]
fn traceroute_shows_the_way_to_vips_and_published_ports() {
    scenario(|lab| {
        let (near, far) = (lab.client()?, lab.far_client()?);
        let mut cluster = start(lab, web())?;
        cluster.serve(&["web.1", "web.2"])?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            for how in ["", "-T -p 80", "-I", "-U -p 53", "-U -p 9"] {
                trace(cluster.task("user.1"), how, "10.0.1.2", &["10.0.1.2"])?;
                trace(cluster.task("user.1"), how, "10.0.1.4", &["10.0.1.4"])?;
            }
            for node in ["192.168.77.13", "192.168.77.11"] {
                // First the node as a router, which tells who has no hop left, then what serves.
                for how in ["-T -p 8080", "-U -p 5353", "-U -p 44444"] {
                    trace(&far, how, node, &["192.168.88.1", node, node])?;
                    trace(&near, how, node, &[node, node])?;
                }
                // The node itself, and what nobody publishes there.
                for how in ["-I", "-U -p 9"] {
                    trace(&far, how, node, &["192.168.88.1", node])?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn tracepath_finds_the_tunnels_mtu() {
    scenario(|lab| {
        let (near, far) = (lab.client()?, lab.far_client()?);
        let cluster = start(lab, web())?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            let reached = |netns: &Netns, target: &str, resume: &str| -> Result<()> {
                let text = netns.run(&format!("tracepath -n -m 5 {target}"))?;
                ensure!(text.contains(&format!("{target} ")) && text.contains("reached"), "{}: {text}", netns.label());
                ensure!(text.contains(resume), "{} to {target}: {text}", netns.label());
                Ok(())
            };
            reached(cluster.task("user.1"), "10.0.1.2", "pmtu 1450 hops 1 back 1")?;
            reached(cluster.task("user.1"), "10.0.1.4", "pmtu 1450 hops 1 back 1")?;
            // n3 has no task: all its clients' packets go through the tunnel. Each way the mesh is one hop, no more.
            reached(&far, "192.168.77.13", "pmtu 1450 hops 3 back 3")?;
            reached(&near, "192.168.77.13", "pmtu 1450 hops 2 back 2")?;
            // Every other time the backend is on n1 itself, where there is no tunnel.
            for _ in 0..2 {
                reached(&near, "192.168.77.11", "hops 2 back 2")?;
            }
        }
        Ok(())
    });
}
