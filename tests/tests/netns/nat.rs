//! Nodes behind 1:1 NAT: the address that others know is on none of their interfaces.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, Offloads, PATIENCE, scenario, wait_for},
    peer,
    table::Table,
};

use crate::support::{Cluster, assert_even, assert_peer, web_table};

const WEB: [&str; 3] = ["web.1", "web.2", "web.3"];

/// web.1 to web.3 on n1 to n3, published as 8080/tcp and 5353/udp; user.1 on n3.
fn web() -> Table {
    web_table(&["n1", "n2", "n3"], &[("tcp", 8080, 80), ("udp", 5353, 53)], "n3")
}

/// Its own address.
fn private(host: u8) -> String {
    format!("10.99.{host}.2")
}

/// A node with [`private`] on `eth0`. The switch translates 192.168.77.`host` into it and back, whoever talks to whom.
fn behind_nat(lab: &Lab, label: &str, host: u8) -> Result<Netns> {
    let (netns, switch, own) = (lab.namespace(label)?, lab.switch(), private(host));
    switch.run(&format!(
        "ip link add eth0 netns {} type veth peer name {label} netns {}",
        netns.name(),
        switch.name()
    ))?;
    switch.run(&format!("ip addr add 10.99.{host}.1/24 dev {label}"))?;
    switch.run(&format!("ip link set {label} up"))?;
    switch.run(&format!("ip addr add 192.168.77.{host}/32 dev br0"))?;
    netns.run(&format!("ip addr add {own}/24 dev eth0"))?;
    netns.run("ip link set eth0 up")?;
    netns.run(&format!("ip route add default via 10.99.{host}.1"))?;
    switch.run("nft add table ip nat")?;
    switch.run("nft add chain ip nat in { type nat hook prerouting priority dstnat; }")?;
    switch.run("nft add chain ip nat out { type nat hook postrouting priority srcnat; }")?;
    translate(switch, host, &own)?;
    Ok(netns)
}

/// 192.168.77.`host` leads to `own`, and what comes from there has it as its source.
fn translate(switch: &Netns, host: u8, own: &str) -> Result<()> {
    switch.run(&format!("nft add rule ip nat in ip daddr 192.168.77.{host} dnat to {own}"))?;
    switch.run(&format!("nft add rule ip nat out ip saddr {own} snat to 192.168.77.{host}")).map(drop)
}

#[test]
fn mesh_vips_and_overlay_work_between_nodes_behind_nat() {
    scenario(|lab| {
        let client = lab.client()?;
        let nodes = vec![lab.node("n1", 11)?, behind_nat(lab, "n2", 12)?, behind_nat(lab, "n3", 13)?];
        let mut cluster = Cluster::start_each(lab, nodes, web(), |node| match node.label() {
            "n2" => vec!["--underlay-address".into(), private(12)],
            "n3" => vec!["--underlay-address".into(), private(13)],
            _ => Vec::new(),
        })?;
        cluster.serve(&WEB)?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            let what = |from: &str, to: &str| format!("{offloads:?}: {from} to {to}");
            for node in ["192.168.77.11", "192.168.77.12", "192.168.77.13"] {
                let tcp = peer::tcp_load(&client, &format!("{node}:8080"), 30, 2)?;
                assert_even(&tcp, &WEB, 10).with_context(|| what("client", node))?;
                assert_peer(&tcp, "192.168.77.100")?;
                let udp = peer::udp_load(&client, &format!("{node}:5353"), 30)?;
                assert_even(&udp, &WEB, 10).with_context(|| what("client", node))?;
                peer::transfer(&client, &format!("{node}:8080"), 500_000).with_context(|| what("client", node))?;
            }
            // A container to a VIP, and straight to each task; the nodes themselves.
            let user = cluster.task("user.1");
            assert_even(&peer::tcp_load(user, "10.0.1.2:80", 30, 2)?, &WEB, 10).with_context(|| what("user", "VIP"))?;
            for (task, address) in [("web.1", "10.0.1.3"), ("web.2", "10.0.1.4"), ("web.3", "10.0.1.5")] {
                assert_even(&peer::tcp_load(user, &format!("{address}:80"), 5, 1)?, &[task], 5)
                    .with_context(|| what("user", task))?;
                user.run(&format!("ping -c 2 -i 0.05 -W 5 {address}")).with_context(|| what("user", task))?;
                peer::transfer(user, &format!("{address}:80"), 500_000).with_context(|| what("user", task))?;
            }
            for (node, announced) in cluster.nodes.iter().zip(["192.168.77.11", "192.168.77.12", "192.168.77.13"]) {
                let own = peer::tcp_load(node, "127.0.0.1:8080", 15, 1)?;
                assert_even(&own, &WEB, 5).with_context(|| what(node.label(), "itself"))?;
                assert_peer(&own, announced)?;
            }
        }
        for agent in &cluster.agents {
            let drops = agent.cli(&["drops"])?;
            ensure!(drops.contains("no drops"), "{drops}");
        }
        let status = cluster.agents[1].json(&["status"])?;
        ensure!(
            status["healthy"] == true
                && status["node"]["vtep"] == "192.168.77.12"
                && status["node"]["underlay_address"] == "10.99.12.2",
            "{status}"
        );
        Ok(())
    });
}

/// n2's elastic address is exchanged for another one, in the NAT and in the table, under running agents.
#[test]
fn an_announced_address_that_changes_is_followed() {
    scenario(|lab| {
        let client = lab.client()?;
        let nodes = vec![lab.node("n1", 11)?, behind_nat(lab, "n2", 12)?];
        let mut table = web_table(&["n1", "n2"], &[("tcp", 8080, 80)], "n1");
        table.remove("nodes", "n3");
        let mut cluster = Cluster::start_each(lab, nodes, table, |node| match node.label() {
            "n2" => vec!["--underlay-address".into(), private(12)],
            _ => Vec::new(),
        })?;
        let tasks = ["web.1", "web.2"];
        cluster.serve(&tasks)?;
        let served = |cluster: &Cluster<'_>, n2: &str| -> Result<()> {
            wait_for(&format!("paths between n1 and {n2}"), PATIENCE, || {
                let [n1, other] = [0, 1].map(|agent: usize| cluster.agents[agent].json(&["status"]));
                let (n1, other) = (n1?, other?);
                let node = &other["node"];
                ensure!(node["vtep"] == n2 && node["underlay_address"] == private(12).as_str(), "{node}");
                ensure!(n1["paths"][0]["address"] == n2, "{}", n1["paths"]);
                ensure!(n1["healthy"] == true && other["healthy"] == true, "{n1}\n{other}");
                Ok(())
            })?;
            for node in ["192.168.77.11", n2] {
                let tcp = peer::tcp_load(&client, &format!("{node}:8080"), 20, 2)?;
                assert_even(&tcp, &tasks, 10).with_context(|| format!("client to {node}"))?;
            }
            let user = cluster.task("user.1");
            assert_even(&peer::tcp_load(user, "10.0.1.2:80", 20, 2)?, &tasks, 10).context("user to VIP")
        };
        served(&cluster, "192.168.77.12")?;

        let switch = lab.switch();
        switch.run("ip addr del 192.168.77.12/32 dev br0")?;
        switch.run("ip addr add 192.168.77.22/32 dev br0")?;
        switch.run("nft flush chain ip nat in")?;
        switch.run("nft flush chain ip nat out")?;
        translate(switch, 22, &private(12))?;
        // A router that is not told to forget translates the nodes' tunnels as before for as long as there are packets.
        switch.run("nft add chain ip nat forget { type filter hook prerouting priority raw; }")?;
        switch.run("nft add rule ip nat forget ct zone set 22")?;
        cluster.change(|table| table.item_mut("nodes", "n2")["address"] = "192.168.77.22".into())?;
        served(&cluster, "192.168.77.22")
    });
}
