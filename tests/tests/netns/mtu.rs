//! Underlays and networks of any MTU: what fits passes, and who sends more learns what fits.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, Offloads, PATIENCE, scenario, wait_for},
    peer,
    table::Table,
};
use serde_json::json;

use crate::{
    sockets::{connected, path_mtu, send_until_error, set_ip, udp},
    support::Cluster,
};

/// user.1 on n1, web.1 on n2, on a network with the usual MTU and one with a larger one; 8080/tcp, 5353/udp and
/// 7000/udp published. n3 has no task.
fn web() -> Table {
    Table::with_nodes(3)
        .ingress()
        .network("app", "10.0.1", 4097)
        .network("jumbo", "10.0.2", 4098)
        .set("networks", "mtu", json!(8950))
        .service("web")
        .vip("ingress", "10.0.0.5")
        .vip("app", "10.0.1.2")
        .vip("jumbo", "10.0.2.2")
        .publish("tcp", 8080, 80)
        .publish("udp", 5353, 53)
        .publish("udp", 7000, 7777)
        .task("web.1", "web", "n2", &[("ingress", "10.0.0.6"), ("app", "10.0.1.3"), ("jumbo", "10.0.2.3")])
        .service("user")
        .task("user.1", "user", "n1", &[("app", "10.0.1.9"), ("jumbo", "10.0.2.9")])
}

/// Gives the nodes' cables, and the client's, another MTU (the client's no more than 1500) and waits until the nodes
/// work with it.
fn set_underlay(lab: &Lab, cluster: &Cluster<'_>, client: &Netns, mtu: u16) -> Result<()> {
    for (netns, mtu) in cluster.nodes.iter().map(|node| (node, mtu)).chain([(client, mtu.min(1500))]) {
        lab.switch().run(&format!("ip link set {} mtu {mtu}", netns.label()))?;
        netns.run(&format!("ip link set eth0 mtu {mtu}"))?;
    }
    let user = cluster.task("user.1");
    let fits = mtu - 50;
    wait_for(&format!("n1 to know an underlay MTU of {mtu}"), PATIENCE, || {
        forget_paths(cluster)?;
        user.run(&format!("ping -c 1 -W 1 -M do -s {} 10.0.2.3", fits - 28))?;
        ensure!(!user.succeeds(&format!("ping -c 1 -W 1 -M do -s {} 10.0.2.3", fits - 27)), "more passes");
        Ok(())
    })?;
    for agent in &cluster.agents {
        wait_for(&format!("{} to be done with it", agent.netns().label()), PATIENCE, || {
            let config = agent.bpffs().join("maps/CONFIG");
            let dump = agent.netns().run(&format!("bpftool -j map dump pinned {}", config.display()))?;
            ensure!(dump.contains(&format!("\"underlay_mtu\":{mtu}")), "{dump}");
            Ok(())
        })?;
    }
    forget_paths(cluster)
}

/// Kernels remember a path's MTU for ten minutes.
fn forget_paths(cluster: &Cluster<'_>) -> Result<()> {
    for task in ["user.1", "web.1"] {
        cluster.task(task).run("ip route flush cache")?;
    }
    Ok(())
}

fn finds(netns: &Netns, target: &str, mtu: u16) -> Result<()> {
    let text = netns.run(&format!("tracepath -n -m 3 {target}"))?;
    ensure!(text.contains(&format!("pmtu {mtu} hops 1")), "{} to {target}, not {mtu}: {text}", netns.label());
    Ok(())
}

#[test]
fn every_path_has_its_mtu_on_underlays_of_1400_1500_and_9000() {
    scenario(|lab| {
        let client = lab.client()?;
        let far = lab.far_client()?;
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&["web.1"])?;
        cluster.task("web.1").run("sysctl -qw net.ipv4.icmp_ratelimit=0")?;
        for mtu in [1500, 1400, 9000] {
            set_underlay(lab, &cluster, &client, mtu)?;
            for offloads in Offloads::BOTH {
                lab.set_offloads(offloads)?;
                forget_paths(&cluster)?;
                client.run("ip route flush cache")?;
                between_containers(&cluster, mtu - 50)
                    .and_then(|()| through_the_mesh(&cluster, &client, mtu - 50))
                    .with_context(|| format!("underlay MTU {mtu}, offloads {offloads:?}"))?;
                // Behind a router this client keeps its 1500 bytes, whatever the nodes' cables take.
                for node in ["192.168.77.13", "192.168.77.12"] {
                    peer::transfer(&far, &format!("{node}:8080"), 2_000_000)
                        .with_context(|| format!("far client, underlay MTU {mtu}, offloads {offloads:?}"))?;
                }
            }
        }
        Ok(())
    });
}

fn between_containers(cluster: &Cluster<'_>, fits: u16) -> Result<()> {
    let user = cluster.task("user.1");
    for (subnet, own) in [("10.0.1", 1450), ("10.0.2", 8950)] {
        let (vip, direct) = (format!("{subnet}.2"), format!("{subnet}.3"));
        let path = fits.min(own);
        // TCP learns it from what it is told about its first large segments.
        for target in [&vip, &direct] {
            peer::transfer(user, &format!("{target}:80"), 2_000_000)?;
        }
        user.run("ip route flush cache")?;
        user.run(&format!("ping -c 1 -W 5 -M do -s {} {direct}", path - 28))?;
        let longer = user.output(&format!("ping -c 1 -W 5 -M do -s {} {direct}", path - 27))?;
        let text = format!("{}{}", String::from_utf8_lossy(&longer.stdout), String::from_utf8_lossy(&longer.stderr));
        ensure!(!longer.status.success(), "{} bytes pass: {text}", path + 1);
        let told = if path < own { format!("mtu = {path}") } else { format!("mtu={path}") };
        ensure!(text.contains(&told), "nobody says {told}: {text}");
        for target in [&vip, &direct] {
            user.run("ip route flush cache")?;
            finds(user, target, path)?;
        }
    }
    Ok(())
}

fn through_the_mesh(cluster: &Cluster<'_>, client: &Netns, fits: u16) -> Result<()> {
    // The container's interface has 1500, and the client's no more.
    let path = fits.min(1500);
    for node in ["192.168.77.13", "192.168.77.12"] {
        peer::transfer(client, &format!("{node}:8080"), 2_000_000)?;
        let echo = peer::udp_echo(client, &format!("{node}:5353"), u32::from(path) - 28, 4)?;
        ensure!(echo.ok == 4, "UDP that fits through {node}: {echo:?}");
    }
    // n3 has no task, so there is a tunnel in the way of question and answer.
    let server = udp(cluster.task("web.1"), 7777)?;
    let asking = connected(client, "192.168.77.13:7000")?;
    asking.send(b"question")?;
    let (_, seen) = server.recv_from(&mut [0; 64])?;
    server.connect(seen)?;
    server.send(b"answer")?;
    asking.recv(&mut [0; 64]).context("no answer")?;
    for (who, socket) in [("client", &asking), ("server", &server)] {
        set_ip(socket, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)?;
        send_until_error(socket, &vec![7; usize::from(path) - 27], libc::EMSGSIZE).context(who)?;
        ensure!(path_mtu(socket)? == i32::from(path), "{who}: {} instead of {path}", path_mtu(socket)?);
        let sent = socket.send(&vec![7; usize::from(path) - 28]).context("what fits")?;
        ensure!(sent == usize::from(path) - 28, "{who}: only {sent} bytes sent");
    }
    Ok(())
}

#[test]
fn a_server_learns_of_a_narrow_path_to_its_client() {
    scenario(|lab| {
        let far = lab.far_client()?;
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&["web.1"])?;
        // The client's cable takes 1300 bytes, but the client does not say so: only the router does, when a full
        // segment comes.
        lab.switch().run("ip link set far mtu 1300")?;
        far.run("ip link set eth0 mtu 1300")?;
        far.run("ip route replace default via 192.168.88.1 advmss 1460")?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            for node in ["192.168.77.13", "192.168.77.12"] {
                cluster.task("web.1").run("ip route flush cache")?;
                peer::transfer(&far, &format!("{node}:8080"), 2_000_000)?;
                let route = cluster.task("web.1").run("ip route get 192.168.88.100")?;
                ensure!(route.contains("mtu 1300"), "{offloads:?}, {node}: the server's route is {route}");
            }
        }
        Ok(())
    });
}
