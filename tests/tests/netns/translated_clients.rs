//! Clients of the routing mesh whose address a backend's answer could not find back to: they are shown as somebody
//! else.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, PATIENCE, scenario, wait_for, with_and_without_offloads},
    peer::{self, LoadLoop},
};

use crate::{
    dsr::DSR,
    support::{Cluster, assert_even, assert_peer, web_table},
};

/// Two clients on a further interface of n3 (`<subnet>.254/24`), with that node as their gateway.
fn beside_n3(lab: &Lab, node: &Netns, subnet: &str) -> Result<Vec<Netns>> {
    node.run("ip link add inside type bridge forward_delay 0 mcast_snooping 0")?;
    node.run(&format!("ip addr add {subnet}.254/24 dev inside"))?;
    node.run("ip link set inside up")?;
    let mut clients = Vec::new();
    for host in [200, 201] {
        let client = lab.namespace(&format!("client{host}"))?;
        node.run(&format!("ip link add in{host} type veth peer name eth0 netns {}", client.name()))?;
        node.run(&format!("ip link set in{host} master inside up"))?;
        client.run(&format!("ip addr add {subnet}.{host}/24 dev eth0"))?;
        client.run("ip link set eth0 up")?;
        client.run(&format!("ip route add default via {subnet}.254"))?;
        clients.push(client);
    }
    Ok(clients)
}

/// Backends on n1, n2 and the ingress node n3 itself are reached from `subnet`, and see `seen(node)`.
fn served_as(lab: &Lab, subnet: &str, seen: &str, flags: &[&str]) -> Result<()> {
    let tasks = ["web.1", "web.2", "web.3"];
    let table = web_table(&["n1", "n2", "n3"], &[("tcp", 8080, 80), ("udp", 5353, 53)], "n1");
    let mut cluster = Cluster::start_with(lab, 3, table, flags)?;
    cluster.serve(&tasks)?;
    let clients = beside_n3(lab, &cluster.nodes[2], subnet)?;
    let target = |port: u16| format!("{subnet}.254:{port}");
    wait_for("n3 to serve its new interface", PATIENCE, || {
        let tally = peer::tcp_load(&clients[0], &target(8080), 3, 1)?;
        ensure!(tally.ok == 3, "{tally:?}");
        Ok(())
    })?;
    for client in &clients {
        let tcp = peer::tcp_load(client, &target(8080), 30, 3)?;
        assert_even(&tcp, &tasks, 10)?;
        assert_peer(&tcp, seen)?;
        let udp = peer::udp_load(client, &target(5353), 30)?;
        assert_even(&udp, &tasks, 10)?;
        assert_peer(&udp, seen)?;
        for _ in tasks {
            peer::transfer(client, &target(8080), 500_000)?;
        }
    }
    // From the same port, shown as the same address: six connections on three backends, told apart by their ports.
    let mut loops = Vec::new();
    for port in [22041, 22042, 22043] {
        for client in &clients {
            loops.push(LoadLoop::from_port(lab, client, &target(8080), port)?);
        }
    }
    loops.iter().try_for_each(|running| running.wait_answers(60))?;
    for running in loops {
        let tally = running.stop()?;
        ensure!(tally.failed == 0, "{tally:?}");
        assert_peer(&tally, seen)?;
    }
    Ok(())
}

#[test]
fn a_client_with_an_address_of_the_tasks_own_network_is_shown_as_the_gateway_bridge() {
    with_and_without_offloads(|lab| served_as(lab, "10.0.1", "172.18.0.1", &[]).context("client in 10.0.1.0/24"));
}

#[test]
fn a_client_with_an_address_of_the_gateway_bridges_subnet_is_shown_as_the_ingress_node() {
    with_and_without_offloads(|lab| {
        served_as(lab, "172.18.200", "192.168.77.13", &[]).context("client in 172.18.0.0/16")
    });
}

/// Their replies are the ingress node's to translate and to deliver, even where others leave directly.
#[test]
fn such_clients_are_served_just_the_same_where_replies_leave_directly() {
    scenario(|lab| served_as(lab, "10.0.1", "172.18.0.1", &DSR));
    scenario(|lab| served_as(lab, "172.18.200", "192.168.77.13", &DSR));
}

/// Waits until requests from `client` are answered by both tasks, which see exactly these addresses.
fn seen_as(client: &Netns, seen: &[&str]) -> Result<()> {
    wait_for(&format!("clients to be seen as {seen:?}"), PATIENCE, || {
        let tally = peer::attempts(client, "udp", "192.168.77.13:5353", 4)?;
        ensure!(tally.failed == 0, "{tally:?}");
        let tcp = peer::tcp_load(client, "192.168.77.13:8080", 4, 1)?;
        assert_even(&tcp, &["web.1", "web.2"], 2)?;
        for tally in [tally, tcp] {
            let peers: Vec<_> = tally.peers.keys().map(String::as_str).collect();
            ensure!(peers == seen, "{peers:?}");
        }
        Ok(())
    })
}

/// A VPN in a container, or a network that Hiveway does not know: the kernel's routes, tables and rules there decide.
#[test]
fn a_client_to_whom_a_task_has_a_route_of_its_own_is_shown_as_the_gateway_bridge() {
    scenario(|lab| {
        let (near, far) = (lab.client()?, lab.far_client()?);
        let table = web_table(&["n1", "n2"], &[("tcp", 8080, 80), ("udp", 5353, 53)], "n3");
        let mut cluster = Cluster::start(lab, 3, table)?;
        cluster.serve(&["web.1", "web.2"])?;
        let task = cluster.task("web.1").clone();
        seen_as(&far, &["192.168.88.100"])?;
        // What goes there is lost.
        task.run("ip link add vpn0 type veth peer name vpn1")?;
        task.run("ip addr add 10.99.0.1/24 dev vpn0")?;
        task.run("ip link set vpn0 up")?;
        task.run("ip link set vpn1 up")?;
        task.run("ip route add 192.168.88.0/24 via 10.99.0.2")?;
        seen_as(&far, &["172.18.0.1", "192.168.88.100"])?;
        seen_as(&near, &["192.168.77.100"])?;
        task.run("ip route del 192.168.88.0/24 via 10.99.0.2")?;
        seen_as(&far, &["192.168.88.100"])?;
        // All of it, as some VPNs do it: with two halves; but for some by the gateway bridge still.
        for half in ["0.0.0.0/1", "128.0.0.0/1"] {
            task.run(&format!("ip route add {half} via 10.99.0.2"))?;
        }
        task.run("ip route add 192.168.77.0/24 via 172.18.0.1")?;
        seen_as(&far, &["172.18.0.1", "192.168.88.100"])?;
        seen_as(&near, &["192.168.77.100"])?;
        // As others do it: replies from the task's own address have a table of their own. That helps TCP; a UDP socket
        // that is bound to no address finds its route before its source.
        let own = task.run("ip -4 -o addr show")?;
        let own = own.split_whitespace().find(|word| word.starts_with("172.18.")).context("no address")?;
        let own = own.split('/').next().unwrap_or_default();
        task.run("ip route add default via 172.18.0.1 table 100")?;
        task.run(&format!("ip rule add from {own} lookup 100"))?;
        let runs = || -> Result<u64> {
            let status = cluster.agents[0].json(&["status"])?;
            status["reconcile"]["runs"].as_u64().context("no number of runs")
        };
        let before = runs()?;
        wait_for("the agent to look at the rules", PATIENCE, || {
            ensure!(runs()? > before + 1, "not yet");
            Ok(())
        })?;
        seen_as(&far, &["172.18.0.1", "192.168.88.100"])?;
        task.run("ip rule add pref 100 lookup 100")?;
        seen_as(&far, &["192.168.88.100"])?;
        // A rule that selects clients, and a table that has nothing but a default route: a VPN for some destinations.
        task.run("ip route add default via 10.99.0.2 table 200")?;
        task.run("ip rule add pref 90 to 192.168.88.0/24 lookup 200")?;
        seen_as(&far, &["172.18.0.1", "192.168.88.100"])?;
        seen_as(&near, &["192.168.77.100"])?;
        task.run("ip rule del pref 90")?;
        seen_as(&far, &["192.168.88.100"])
    });
}
