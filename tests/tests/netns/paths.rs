//! Paths between nodes that take less than the nodes' own interfaces.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, PATIENCE, scenario, wait_for, with_and_without_offloads},
    peer,
    table::Table,
};

use crate::support::{Cluster, web_table};

/// web.1 on n2, user.1 on n1.
fn table() -> Table {
    web_table(&["n2"], &[("tcp", 8080, 80), ("udp", 7000, 7777)], "n1")
}

/// Leads what n1 and n2 send to each other through a router, which passes on packets of `mtu` bytes at most.
fn narrow(lab: &Lab, cluster: &Cluster<'_>, mtu: u16) -> Result<()> {
    let switch = lab.switch();
    for name in ["all", "br0"] {
        switch.run(&format!("sysctl -qw net.ipv4.conf.{name}.send_redirects=0"))?;
    }
    for (node, other) in [(&cluster.nodes[0], "192.168.77.12"), (&cluster.nodes[1], "192.168.77.11")] {
        switch.run(&format!("ip route replace {other}/32 dev br0 mtu {mtu}"))?;
        node.run(&format!("ip route replace {other}/32 via 192.168.77.1"))?;
    }
    Ok(())
}

/// A megabyte each way through the mesh, a VIP and the overlay.
fn transfers(client: &Netns, user: &Netns) -> Result<()> {
    for (from, target) in [(client, "192.168.77.11:8080"), (user, "10.0.1.2:80"), (user, "10.0.1.3:80")] {
        peer::transfer(from, target, 1_000_000).with_context(|| format!("{} to {target}", from.label()))?;
    }
    Ok(())
}

fn finds(user: &Netns, target: &str, mtu: u16) -> Result<()> {
    user.run("ip route flush cache")?;
    let text = user.run(&format!("tracepath -n -m 3 {target}"))?;
    ensure!(text.contains(&format!("pmtu {mtu} hops 1")), "{target}, not {mtu}: {text}");
    Ok(())
}

#[test]
fn a_router_with_a_smaller_mtu_is_believed() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, table())?;
        cluster.serve(&["web.1"])?;
        let _server = peer::fragmentable_udp_server(lab, cluster.task("web.1"), 7777, "web.1")?;
        narrow(lab, &cluster, 1400)?;
        let user = cluster.task("user.1");
        transfers(&client, user)?;
        for target in ["10.0.1.2", "10.0.1.3"] {
            finds(user, target, 1350)?;
        }
        // Without DF the outer packet is fragmented.
        let echo = peer::udp_echo_fragmentable(&client, "192.168.77.11:7000", 1440, 4)?;
        ensure!(echo.ok == 4, "UDP without DF: {echo:?}");
        // What is known outlives the agents.
        for agent in &cluster.agents {
            agent.sigkill();
        }
        transfers(&client, user)
    });
}

#[test]
fn a_route_with_a_smaller_mtu_counts() {
    scenario(|lab| {
        let cluster = Cluster::start(lab, 2, table())?;
        let user = cluster.task("user.1");
        finds(user, "10.0.1.3", 1450)?;
        cluster.nodes[0].run("ip route replace 192.168.77.12/32 dev eth0 mtu 1380")?;
        wait_for("n1 to keep to the route's MTU", PATIENCE, || finds(user, "10.0.1.3", 1330))?;
        // What the kernel was told about the path counts as well.
        cluster.nodes[0].run("ip route del 192.168.77.12/32")?;
        wait_for("n1 to forget it", PATIENCE, || finds(user, "10.0.1.3", 1450))?;
        narrow(lab, &cluster, 1400)?;
        // No packet of a tunnel has met the router yet.
        let ping = cluster.nodes[0].output("ping -c 1 -W 1 -M do -s 1450 192.168.77.12")?;
        ensure!(!ping.status.success(), "the path is not narrow");
        let route = cluster.nodes[0].run("ip route get 192.168.77.12")?;
        ensure!(route.contains("mtu 1400"), "the kernel has not learned it: {route}");
        wait_for("n1 to keep to what the kernel knows", PATIENCE, || {
            let paths = path_limits(&cluster)?;
            ensure!(paths.contains("\"route\":1400"), "{paths}");
            Ok(())
        })?;
        finds(user, "10.0.1.3", 1350)
    });
}

/// Map `PATHS` on n1.
fn path_limits(cluster: &Cluster<'_>) -> Result<String> {
    let map = cluster.agents[0].bpffs().join("maps/PATHS");
    let dump = cluster.nodes[0].run(&format!("bpftool -j map dump pinned {}", map.display()))?;
    Ok(dump.replace(' ', ""))
}
