//! Links that the development kind of machine cannot make: VLAN devices, WireGuard, IP tunnels, bonds. Real agents and
//! real sockets in namespaces, as in the scenarios of `tests/netns`, on Debian's kernels: `cargo xtask vm-test links`.

#[path = "../netns/support.rs"]
#[expect(dead_code, reason = "the scenarios of tests/netns use all of it")]
mod support;

mod bond;
mod tunnels;
mod vlan;
mod wireguard;

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::{Netns, PATIENCE, wait_for},
    peer,
    table::Table,
};
use serde_json::json;

use crate::support::{Cluster, assert_even, assert_peer, web_table};

const WEB: [&str; 2] = ["web.1", "web.2"];

/// n1 with web.1, n2 with web.2 and user.1, whose tunnel addresses are these; published as 8080/tcp and 5353/udp.
fn table(tunnel_addresses: [&str; 2], mtu: u32) -> Table {
    table_of(["n1", "n2"], tunnel_addresses, mtu)
}

/// The same with web.1 and web.2 on these nodes.
fn table_of(web: [&str; 2], tunnel_addresses: [&str; 2], mtu: u32) -> Table {
    let mut table = web_table(&web, &[("tcp", 8080, 80), ("udp", 5353, 53)], "n2");
    table.remove("nodes", "n3");
    for (node, address) in ["n1", "n2"].into_iter().zip(tunnel_addresses) {
        table.item_mut("nodes", node)["address"] = json!(address);
    }
    for network in ["ingress", "app"] {
        table.item_mut("networks", network)["mtu"] = json!(mtu);
    }
    table
}

/// Overlay and VIP between the nodes, small and large.
fn containers_reach_each_other(cluster: &Cluster<'_>) -> Result<()> {
    let user = cluster.task("user.1");
    for (name, task) in [("web.1", "10.0.1.3"), ("web.2", "10.0.1.4")] {
        assert_even(&peer::tcp_load(user, &format!("{task}:80"), 2, 1)?, &[name], 2).context("a task")?;
    }
    assert_even(&peer::tcp_load(user, "10.0.1.2:80", 4, 2)?, &WEB, 2).context("the VIP")?;
    for target in ["10.0.1.3:80", "10.0.1.2:80", "10.0.1.2:80"] {
        peer::transfer(user, target, 60_000).with_context(|| format!("60 kB to {target}"))?;
    }
    Ok(())
}

/// The published ports of one of a node's addresses, small and large, over TCP and UDP, with the client's own address.
fn is_served(client: &Netns, node: &str, seen: &str) -> Result<()> {
    let tcp = peer::tcp_load(client, &format!("{node}:8080"), 4, 2)?;
    assert_even(&tcp, &WEB, 2).with_context(|| format!("TCP to {node}"))?;
    assert_peer(&tcp, seen)?;
    for _ in WEB {
        peer::transfer(client, &format!("{node}:8080"), 60_000).with_context(|| format!("60 kB from {node}"))?;
    }
    let udp = peer::udp_load(client, &format!("{node}:5353"), 4)?;
    assert_even(&udp, &WEB, 2).with_context(|| format!("UDP to {node}"))?;
    assert_peer(&udp, seen)
}

/// Every agent's probes pass in full size.
fn paths_pass(cluster: &Cluster<'_>, mtu: u64) -> Result<()> {
    for agent in &cluster.agents {
        wait_for(&format!("full-size probes of {} to pass", agent.netns().label()), 2 * PATIENCE, || {
            let check = agent.json(&["check", "--wait", "0"])?;
            let path = &check["paths"][0];
            ensure!(path["state"] == "passing" && path["passed"] == mtu, "{check:#}");
            ensure!(agent.json(&["status"])?["healthy"] == true, "status is not healthy");
            Ok(())
        })?;
    }
    Ok(())
}

/// What `status` must say, in text.
fn status_says(cluster: &Cluster<'_>, words: &[&str]) -> Result<()> {
    let status = cluster.agents[0].cli(&["status"])?;
    eprintln!("{status}");
    for word in words {
        ensure!(status.contains(word), "status does not say `{word}`:\n{status}");
    }
    Ok(())
}

/// No agent has dropped anything.
fn nothing_dropped(cluster: &Cluster<'_>) -> Result<()> {
    for agent in &cluster.agents {
        let drops = agent.cli(&["drops"])?;
        ensure!(drops.contains("no drops"), "{}: {drops}", agent.netns().label());
    }
    Ok(())
}
