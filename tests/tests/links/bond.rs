//! A bond of two cables as underlay.

use anyhow::{Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, PATIENCE, scenario, wait_for},
    peer::LoadLoop,
};

use crate::{
    containers_reach_each_other, is_served, nothing_dropped, paths_pass, status_says, support::Cluster, table,
};

/// A node whose address is on `bond0`, of which the cables to the switch's ports `LABEL` and `LABEL-b` are the slaves.
fn bonded(lab: &Lab, label: &str, host: u8) -> Result<Netns> {
    let (netns, switch) = (lab.namespace(label)?, lab.switch());
    netns.run("ip link add bond0 type bond mode active-backup miimon 50")?;
    for (slave, port) in [("eth0", label.to_owned()), ("eth1", format!("{label}-b"))] {
        switch.run(&format!("ip link add {port} type veth peer name {slave} netns {}", netns.name()))?;
        switch.run(&format!("ip link set {port} master br0 up"))?;
        netns.run(&format!("ip link set {slave} master bond0"))?;
    }
    netns.run("ip link set bond0 type bond primary eth0")?;
    netns.run(&format!("ip addr add 192.168.77.{host}/24 dev bond0"))?;
    netns.run("ip link set bond0 up")?;
    netns.run("ip route add default via 192.168.77.1")?;
    active(&netns, "eth0")?;
    Ok(netns)
}

/// Waits until this slave carries the bond's traffic.
fn active(netns: &Netns, slave: &str) -> Result<()> {
    wait_for(&format!("{slave} to be the active slave"), PATIENCE, || {
        let bond: serde_json::Value = serde_json::from_str(&netns.run("ip -d -j link show dev bond0")?)?;
        let now = &bond[0]["linkinfo"]["info_data"]["active_slave"];
        ensure!(now == slave, "it is {now}");
        Ok(())
    })
}

#[test]
#[ignore = "needs a kernel with bonding: cargo xtask vm-test links"]
fn a_bond_fails_over_without_a_lost_request() {
    scenario(|lab| {
        let nodes = vec![bonded(lab, "n1", 11)?, bonded(lab, "n2", 12)?];
        let client = lab.client()?;
        let arguments = ["--underlay", "bond0", "--xdp", "native"];
        let addresses = ["192.168.77.11", "192.168.77.12"];
        let mut cluster = Cluster::start_on(lab, nodes, table(addresses, 1450), &arguments)?;
        cluster.serve(&crate::WEB)?;
        containers_reach_each_other(&cluster)?;
        is_served(&client, "192.168.77.11", "192.168.77.100")?;
        paths_pass(&cluster, 1500)?;
        // Under load: the mesh through n1 to both, and a VIP from n2.
        let mesh = LoadLoop::tcp(lab, &client, "192.168.77.11:8080", 2, false)?;
        let vip = LoadLoop::tcp(lab, cluster.task("user.1"), "10.0.1.2:80", 2, false)?;
        lab.switch().run("ip link set n1 down")?;
        active(&cluster.nodes[0], "eth1")?;
        for load in [&mesh, &vip] {
            load.wait_answers(20)?;
        }
        for load in [mesh, vip] {
            let tally = load.stop()?;
            ensure!(tally.failed == 0, "{tally:?}");
        }
        containers_reach_each_other(&cluster)?;
        is_served(&client, "192.168.77.11", "192.168.77.100")?;
        paths_pass(&cluster, 1500)?;
        nothing_dropped(&cluster)?;
        // Where the agent has put its programs: on the bond, nothing on its slaves.
        for slave in ["eth0", "eth1"] {
            let attached = cluster.nodes[0].run(&format!("bpftool net show dev {slave}"))?;
            ensure!(!attached.contains("from_underlay") && !attached.contains("xdp_mesh"), "{slave}: {attached}");
        }
        status_says(&cluster, &["192.168.77.11 on bond0", "a bond runs the driver's programs on its slaves"])
    });
}
