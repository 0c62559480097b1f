//! The ways to other nodes that the agent keeps: they follow the kernel's, and nobody believes a dead agent's.

use std::{
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::Agent,
    lab::{Capture, Lab, Netns, PATIENCE, scenario_alone, wait_for},
    peer,
};

use crate::support::{Cluster, web_table};

const ROUTER: &str = "192.168.77.20";
const N2: &str = "192.168.77.12";
/// Ingress node; its only backend is on n2.
const N3: &str = "192.168.77.13:5353";
/// How soon a change has to be followed.
const AT_ONCE: Duration = Duration::from_secs(1);

/// n3 carries in XDP what n2 serves. The last namespace is a router's, which nobody needs yet.
fn cluster(lab: &Lab) -> Result<(Cluster<'_>, Netns, Netns)> {
    cluster_with(lab, "native")
}

/// The same with XDP in this mode.
fn cluster_with<'l>(lab: &'l Lab, xdp: &str) -> Result<(Cluster<'l>, Netns, Netns)> {
    let client = lab.client()?;
    let table = web_table(&["n2"], &[("udp", 5353, 53)], "n3");
    let mut cluster = Cluster::start_with(lab, 3, table, &["--xdp", xdp])?;
    cluster.serve(&["web.1"])?;
    lab.set_offloads(hiveway_tests::lab::Offloads::Off)?;
    lab.pass_at_switch(&["n1", "n2", "n3"])?;
    let router = lab.node("router", 20)?;
    router.run(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0",
    )?;
    wait_for("answers", PATIENCE, || served(&client))?;
    Ok((cluster, client, router))
}

fn served(client: &Netns) -> Result<()> {
    let echo = peer::udp_echo(client, N3, 100, 5)?;
    ensure!(echo.ok == 5, "{echo:?}");
    Ok(())
}

/// Whether what n3 sends to n2 comes by the router; it is answered in any case.
fn comes_by(lab: &Lab, router: &Netns, client: &Netns) -> Result<bool> {
    let mut capture = Capture::start(lab, router, "eth0", &format!("udp port 4789 and dst host {N2}"))?;
    served(client)?;
    sleep(Duration::from_millis(200));
    let seen = capture.packets()? > 0;
    capture.stop()?;
    Ok(seen)
}

/// Packets that XDP has carried at a node, towards backends.
fn carried(agent: &Arc<Agent>) -> Result<u64> {
    Ok(agent.json(&["status"])?["dataplane"]["counters"]["xdp_forward"].as_u64().unwrap_or(0))
}

fn mac(node: &Netns) -> Result<String> {
    let link = node.run("ip -o link show dev eth0")?;
    let mac = link.split_once("link/ether ").and_then(|(_, rest)| rest.split_whitespace().next());
    Ok(mac.context("no MAC")?.to_owned())
}

/// n3's way to n2 is changed in all ways, and followed.
fn moves(lab: &Lab, cluster: &Cluster<'_>, client: &Netns, router: &Netns) -> Result<()> {
    let (n2, n3) = (&cluster.nodes[1], &cluster.nodes[2]);
    ensure!(!comes_by(lab, router, client)?, "by the router from the start");
    for (change, by_router) in [
        (format!("ip route add {N2}/32 via {ROUTER}"), true),
        (format!("ip route del {N2}/32"), false),
        (format!("ip neigh replace {N2} lladdr {} dev eth0 nud permanent", mac(router)?), true),
        (format!("ip neigh replace {N2} lladdr {} dev eth0 nud reachable", mac(n2)?), false),
        (format!("ip route add {N2}/32 via {ROUTER} table 100; ip rule add from 192.168.77.13 lookup 100"), true),
        ("ip rule del from 192.168.77.13 lookup 100".to_owned(), false),
    ] {
        n3.shell(&change)?;
        sleep(AT_ONCE);
        ensure!(comes_by(lab, router, client)? == by_router, "{change} was not followed");
    }
    Ok(())
}

#[test]
fn a_next_hop_that_moves_is_followed_at_once() {
    scenario_alone(|lab| {
        let (cluster, client, router) = cluster(lab)?;
        let agent = &cluster.agents[2];
        let before = carried(agent)?;
        moves(lab, &cluster, &client, &router)?;
        // XDP did all that, but perhaps a sample or what came before it knew the way.
        let more = carried(agent)? - before;
        ensure!(more >= 20, "XDP has carried only {more} packets");
        Ok(())
    });
}

/// TC takes what the agent keeps, too: as long as it may be believed, and no longer.
#[test]
fn without_xdp_next_hops_are_followed_as_well() {
    scenario_alone(|lab| {
        let (cluster, client, router) = cluster_with(lab, "off")?;
        moves(lab, &cluster, &client, &router)?;
        let (n2, n3) = (&cluster.nodes[1], &cluster.nodes[2]);
        // Who follows nothing, but is alive, is believed for three seconds after the last look; there is one a second.
        cluster.agents[2].freeze()?;
        let frozen = Instant::now();
        n3.run(&format!("ip neigh replace {N2} lladdr {} dev eth0 nud permanent", mac(&router)?))?;
        let asked = comes_by(lab, &router, &client)?;
        ensure!(
            !asked || frozen.elapsed() > Duration::from_secs(2),
            "the kernel was asked, or the agent is not frozen"
        );
        sleep(Duration::from_secs(4));
        ensure!(comes_by(lab, &router, &client)?, "a frozen agent's way is believed");
        cluster.agents[2].thaw()?;
        n3.run(&format!("ip neigh replace {N2} lladdr {} dev eth0 nud reachable", mac(n2)?))?;
        sleep(AT_ONCE);
        ensure!(!comes_by(lab, &router, &client)?, "not followed again");
        Ok(())
    });
}

#[test]
fn neighbours_that_only_xdp_uses_are_confirmed() {
    scenario_alone(|lab| {
        let (cluster, ..) = cluster(lab)?;
        let (n2, n3) = (&cluster.nodes[1], &cluster.nodes[2]);
        n3.run("sysctl -qw net.ipv4.neigh.eth0.delay_first_probe_time=1")?;
        n3.run(&format!("ip neigh replace {N2} lladdr {} dev eth0 nud stale", mac(n2)?))?;
        // Nobody sends anything.
        wait_for("n2 to be confirmed", Duration::from_secs(8), || {
            let neighbour = n3.run(&format!("ip neigh show {N2} dev eth0"))?;
            ensure!(neighbour.contains("REACHABLE"), "{neighbour}");
            Ok(())
        })
    });
}

#[test]
fn a_router_that_is_another_machine_now_is_found_again() {
    scenario_alone(|lab| {
        let (cluster, client, router) = cluster(lab)?;
        let (n3, agent) = (&cluster.nodes[2], &cluster.agents[2]);
        // As fast as the kernel can: confirmed for a second, then asked again after one, three times.
        n3.run(
            "sysctl -qw net.ipv4.neigh.eth0.base_reachable_time_ms=1000 net.ipv4.neigh.eth0.delay_first_probe_time=1 \
             net.ipv4.neigh.eth0.retrans_time_ms=200",
        )?;
        n3.run(&format!("ip route add {N2}/32 via {ROUTER}"))?;
        sleep(AT_ONCE);
        ensure!(comes_by(lab, &router, &client)?, "not by the router");
        // Nobody is told: to the kernel the neighbour is as good as ever until it has not answered.
        router.run("ip link set dev eth0 address 02:00:00:00:77:20")?;
        ensure!(served(&client).is_err(), "served by a router that does not hear its old address");
        wait_for("the way to be found again", Duration::from_secs(20), || served(&client))?;
        let before = carried(agent)?;
        wait_for("XDP to go on with it", PATIENCE, || {
            served(&client)?;
            let more = carried(agent)? - before;
            ensure!(more >= 10, "XDP has carried only {more} packets");
            Ok(())
        })
    });
}

#[test]
fn a_dead_agents_ways_are_not_believed() {
    const ENOUGH: u64 = 300;
    scenario_alone(|lab| {
        let (cluster, client, router) = cluster(lab)?;
        let n3 = &cluster.nodes[2];
        let agent = cluster.agents[2].clone();
        ensure!(!comes_by(lab, &router, &client)?, "by the router from the start");
        let load = peer::LoadLoop::udp_from_port(lab, &client, N3, 40_000)?;
        load.wait_answers(20)?;
        let before = carried(&agent)?;
        agent.sigkill();
        sleep(Duration::from_secs(4));
        n3.run(&format!("ip neigh replace {N2} lladdr {} dev eth0 nud permanent", mac(&router)?))?;
        ensure!(comes_by(lab, &router, &client)?, "a dead agent's way is believed");
        load.wait_answers(ENOUGH)?;
        agent.restart()?;
        let more = carried(&agent)? - before;
        ensure!(more >= ENOUGH, "XDP has carried only {more} packets meanwhile");
        drop(load);
        served(&client)
    });
}

#[test]
fn what_is_not_published_any_more_is_not_carried_any_more() {
    scenario_alone(|lab| {
        let (mut cluster, client, _) = cluster(lab)?;
        let agent = cluster.agents[2].clone();
        let load = peer::LoadLoop::udp_from_port(lab, &client, N3, 40_000)?;
        load.wait_answers(20)?;
        let before = carried(&agent)?;
        load.wait_answers(20)?;
        ensure!(carried(&agent)? > before, "not carried by XDP");
        cluster.change(|table| {
            table.item_mut("services", "web")["ports"] = serde_json::json!([]);
        })?;
        let before = carried(&agent)?;
        sleep(AT_ONCE);
        ensure!(carried(&agent)? == before, "carried on though it is not published");
        drop(load);
        Ok(())
    });
}
