//! `hiveway preflight --xdp` measures interfaces, and `--xdp auto` goes by what it has found.

use std::{fs, path::Path, process::Output};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::{Agent, hiveway},
    lab::{Netns, PATIENCE, Process, scenario, tap, wait_for},
};
use serde_json::Value;

use crate::support::{Cluster, web_table};

/// `hiveway preflight --xdp INTERFACE...`, and its exit code.
fn preflight(node: &Netns, state: &Path, interfaces: &[&str], more: &[&str]) -> Result<(Option<i32>, String)> {
    let mut command = node.command(hiveway()?)?;
    command.arg("preflight").arg("--state-dir").arg(state).args(more);
    for name in interfaces {
        command.args(["--xdp", name]);
    }
    let Output { status, stdout, stderr } = command.output()?;
    ensure!(stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
    Ok((status.code(), String::from_utf8_lossy(&stdout).into_owned()))
}

fn as_json(node: &Netns, state: &Path, interface: &str) -> Result<(Option<i32>, Value)> {
    let (code, text) = preflight(node, state, &[interface], &["--json"])?;
    let mut said: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(said["ok"] == (code == Some(0)), "{said:#}");
    Ok((code, said["interfaces"][0].take()))
}

/// Offloads, flags, state and XDP program of an interface, and of a veth its other end's offloads.
fn as_it_is(lab_switch: &Netns, node: &Netns, interface: &str) -> Result<String> {
    let link = node.run(&format!("ip -d -o link show {interface}"))?;
    let features = node.run(&format!("ethtool -k {interface}"))?;
    let peer =
        if interface == "eth0" { lab_switch.run(&format!("ethtool -k {}", node.label()))? } else { String::new() };
    Ok([link, features, peer].concat())
}

#[test]
fn what_xdp_costs_is_measured_and_the_interface_is_as_before() {
    scenario(|lab| {
        let (node, state) = (lab.node("n1", 11)?, lab.directory().join("state"));
        let _carrier = tap(&node, "tap0")?;
        node.run("ip link add vx0 type vxlan id 77 dstport 4999")?;
        for name in ["tap0", "vx0"] {
            node.run(&format!("ip link set {name} up"))?;
        }
        node.run("ip link add down0 type vxlan id 78 dstport 4999")?;
        for (name, driver, verdict, why, attached) in [
            ("eth0", "veth", "does_not_pay", "a veth: XDP in its driver turns off segmentation offload", false),
            ("vx0", "vxlan", "does_not_pay", "the driver refuses an XDP program: it has no XDP", false),
            ("tap0", "tun", "pays", "switches off no offload and does not interrupt the link", true),
        ] {
            let before = as_it_is(lab.switch(), &node, name)?;
            ensure!(!before.contains(" xdp"), "{before}");
            let (code, found) = as_json(&node, &state, name)?;
            let after = as_it_is(lab.switch(), &node, name)?;
            ensure!(before == after, "{name} is not as before:\n{before}\nbut\n{after}");
            ensure!(code == Some(0) && found["driver"] == driver && found["verdict"] == verdict, "{found:#}");
            ensure!(found["why"].as_str().is_some_and(|said| said.contains(why)), "{found:#}");
            ensure!(found["attached"] == attached && found["not_as_before"] == serde_json::json!([]), "{found:#}");
        }
        let record: Value = serde_json::from_slice(&fs::read(state.join("xdp-measured.json"))?)?;
        let names: Vec<_> = record["interfaces"].as_array().into_iter().flatten().map(|row| &row["name"]).collect();
        ensure!(record["version"] == 1 && names == ["eth0", "vx0", "tap0"], "{record:#}");
        for (name, why) in [("down0", "it is down or has no carrier"), ("none0", "there is no interface none0")] {
            let (code, said) = preflight(&node, &state, &[name], &[])?;
            ensure!(code == Some(1) && said.contains(&format!("NOT MEASURED  {name}: {why}")), "{said}");
        }
        // A program of others' stays, and so does what is known of the interface.
        lab.pass_at(&node, &["tap0"])?;
        let (before, known) = (as_it_is(lab.switch(), &node, "tap0")?, fs::read(state.join("xdp-measured.json"))?);
        ensure!(before.contains(" xdp"), "{before}");
        let (code, said) = preflight(&node, &state, &["tap0", "vx0"], &[])?;
        ensure!(
            code == Some(1) && said.contains("NOT MEASURED  tap0: an XDP program is attached there already"),
            "{said}"
        );
        ensure!(said.contains("does not pay  vx0 (driver vxlan): "), "the others are measured: {said}");
        ensure!(as_it_is(lab.switch(), &node, "tap0")? == before, "another one's program is not as before");
        let of_tap = |bytes: &[u8]| -> Result<Value> {
            let record: Value = serde_json::from_slice(bytes)?;
            let rows = record["interfaces"].as_array().context("no rows")?;
            Ok(rows.iter().find(|row| row["name"] == "tap0").context("no tap0")?.clone())
        };
        ensure!(of_tap(&known)? == of_tap(&fs::read(state.join("xdp-measured.json"))?)?, "{record:#}");
        // So does one on a bridge above: the kernel has no other below it.
        let _carrier = tap(&node, "tap1")?;
        for command in ["link add br0 type bridge", "link set br0 up", "link set tap1 master br0 up"] {
            node.run(&format!("ip {command}"))?;
        }
        lab.pass_at(&node, &["br0"])?;
        let (code, said) = preflight(&node, &state, &["tap1,vx0"], &[])?;
        ensure!(code == Some(1) && said.contains("NOT MEASURED  tap1: an XDP program is attached there"), "{said}");
        ensure!(said.contains("does not pay  vx0 (driver vxlan): "), "two at once: {said}");
        Ok(())
    });
}

/// As a driver would do that turns an offload off for XDP and leaves it so.
#[test]
fn an_offload_that_goes_off_with_the_program_is_a_cost_and_is_put_back() {
    scenario(|lab| {
        let (node, state) = (lab.node("n1", 11)?, lab.directory().join("state"));
        let _carrier = tap(&node, "tap0")?;
        node.run("ip link set tap0 up")?;
        let before = as_it_is(lab.switch(), &node, "tap0")?;
        ensure!(before.contains("tx-vlan-offload: on"), "{before}");
        let is_attached = || Ok::<_, anyhow::Error>(node.run("ip -o link show tap0")?.contains(" xdp "));
        let start = || {
            let mut command = node.command(hiveway()?)?;
            command.args(["preflight", "--json", "--xdp", "tap0", "--state-dir"]).arg(&state);
            let mut process = Process::start(command, lab.directory(), &lab.unique("preflight"))?;
            while !is_attached()? && process.try_wait()?.is_none() {}
            Ok::<_, anyhow::Error>(process)
        };
        // On a busy machine the second may be over before the offload is off.
        wait_for("the offload to go off while the program is attached", PATIENCE, || {
            let process = start()?;
            node.run("ethtool -K tap0 txvlan off")?;
            let said = process.finish(PATIENCE)?;
            let after = as_it_is(lab.switch(), &node, "tap0")?;
            node.run("ethtool -K tap0 txvlan on")?;
            let found = serde_json::from_str::<Value>(&said)?["interfaces"][0].take();
            ensure!(found["offloads_off"] == serde_json::json!(["tx-vlan-hw-insert"]), "too late: {found:#}");
            ensure!(found["verdict"] == "does_not_pay" && found["not_as_before"] == serde_json::json!([]), "{found:#}");
            ensure!(after == before, "{before}\nbut\n{after}");
            Ok(())
        })?;
        // One that is killed meanwhile leaves no program.
        let mut process = start()?;
        process.kill();
        wait_for("the program to go", PATIENCE, || {
            ensure!(!is_attached()?, "it is attached");
            Ok(())
        })
    });
}

/// Waits until `status` says of an interface that mode and, as the reason, that.
fn says(agent: &Agent, interface: &str, mode: &str, why: &str) -> Result<()> {
    agent.wait_status(&format!("{mode} on {interface} ({why})"), |status| {
        let rows = status["node"]["xdp"].as_array().context("no xdp")?;
        let row = rows.iter().find(|row| row["interface"] == interface).context("no such interface")?;
        let said = row["why"].as_str().unwrap_or_default();
        ensure!(row["mode"] == mode && said.contains(why) && said.is_empty() == why.is_empty(), "{row}");
        Ok(())
    })
}

#[test]
fn auto_is_on_where_it_was_measured_to_pay() {
    scenario(|lab| {
        let node = lab.node("n1", 11)?;
        let _carrier = tap(&node, "tap0")?;
        node.run("ip link add vx0 type vxlan id 77 dstport 4999")?;
        for (name, address) in [("tap0", "192.168.91.1/24"), ("vx0", "192.168.92.1/24")] {
            node.run(&format!("ip addr add {address} dev {name}"))?;
            node.run(&format!("ip link set {name} up"))?;
        }
        let cluster = Cluster::start_on(lab, vec![node.clone()], web_table(&["n1"], &[], "n1"), &["--xdp", "auto"])?;
        let (agent, state) = (&cluster.agents[0], cluster.agents[0].state_dir());
        says(agent, "eth0", "off", "a veth")?;
        for name in ["tap0", "vx0"] {
            let command = format!("`hiveway preflight --xdp {name} --state-dir {}` does", state.display());
            says(agent, name, "off", &format!("not measured on this interface yet: {command}"))?;
            let (code, said) = preflight(&node, &state, &[name], &[])?;
            ensure!(code == Some(0), "{said}");
        }
        // The running agent goes by it.
        says(agent, "tap0", "native", "")?;
        says(agent, "vx0", "off", "the driver refuses an XDP program: it has no XDP")?;
        let link = || node.run("ip -d link show tap0");
        ensure!(link()?.contains(" xdp "), "{}", link()?);
        let (code, said) = preflight(&node, &state, &["tap0"], &[])?;
        ensure!(code == Some(1) && said.contains("If it is the agent's"), "{said}");
        agent.terminate()?;
        agent.restart()?;
        says(agent, "tap0", "native", "")?;
        node.run("ip link set tap0 address 02:00:00:00:00:99")?;
        says(agent, "tap0", "off", "this is 02:00:00:00:00:99")?;
        ensure!(!link()?.contains(" xdp "), "{}", link()?);
        fs::write(state.join("xdp-measured.json"), "{")?;
        says(agent, "tap0", "off", "xdp-measured.json cannot be used")?;
        agent.wait_log("--xdp auto: ")?;
        agent.terminate()?;
        agent.teardown()?;
        ensure!(!state.exists(), "{} is left", state.display());
        Ok(())
    });
}
