//! Beside engines that can balance: before, during and after Hiveway. On a kernel without IPVS nobody else answers, so
//! these are told in a VM: `cargo xtask vm-test swarm`.

use std::{
    net::Ipv4Addr,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::wait_for,
    load::Tally,
    peer::{self, LoadLoop},
    swarm::Hiveway,
};

use crate::mesh;
use crate::support::{
    Recorder, Stage, Task,
    recorder::time_of_day,
    traffic::{all_answer, names, only_client},
};

const CLIENT: &str = "192.168.77.1";
/// How long an engine or agent may lag behind; an emulated machine is slow.
const LAG: Duration = Duration::from_secs(60);

/// The environment is real: without Hiveway the engines answer VIPs and published ports, and hide the client.
pub(crate) fn engines_alone(stage: &mut Stage) -> Result<()> {
    let client = web(stage)?;
    let tally = stage.ask_mesh(stage.node("n1")?.address(), 8080, 4)?;
    ensure!(tally.failed == 0 && !tally.peers.contains_key(CLIENT), "not as an engine does it: {tally:?}");
    let tally = ask_vip(stage, &client)?;
    let own = client.addresses["app"].to_string();
    ensure!(!tally.peers.contains_key(&own), "not as an engine does it: {tally:?}");
    Ok(())
}

/// Installed on one node after the other while clients ask: no request is lost, and from then on servers see the
/// client. A connection from before goes on in the engine's path.
pub(crate) fn installed_under_load(stage: &mut Stage) -> Result<()> {
    let client = web(stage)?;
    let vip = vip_of(stage, "web")?;
    let nodes: Vec<_> = stage.nodes().iter().map(|node| node.address()).collect();
    let directory = stage.swarm.place().directory();
    let first = format!("{}:8080", nodes[0]);
    let kept = [&LoadLoop::arguments("tcp-load", &first)[..], &["--keep-alive"]].concat();
    let kept = LoadLoop::spawn(peer::command(&stage.outside(), &kept)?, &directory, "kept", &first, 1)?;
    let through_vip = vip_loop(stage, &client, &format!("{vip}:80"), "vip")?;
    let load = Recorder::tcp(stage, &nodes, 8080)?;
    for agent in stage.nodes().iter().map(Hiveway::on) {
        agent.start(&[])?;
        load.wait_answers(20)?;
        through_vip.wait_answers(20)?;
    }
    wait_taken_over(stage)?;
    load.wait_answers(20)?;
    kept.wait_answers(20)?;
    load.stop_without_loss()?;
    without_loss("the loop to the VIP", &through_vip.stop()?)?;
    let kept = kept.stop()?;
    without_loss("the connection from before", &kept)?;
    ensure!(kept.names.len() == 1 && !kept.peers.contains_key(CLIENT), "not the engine's path: {kept:?}");
    stage.agree()
}

/// With Hiveway on all nodes: a VIP is answered for once, is balanced in turn, and the servers see the client
/// container.
pub(crate) fn vip(stage: &mut Stage) -> Result<()> {
    let client = web(stage)?;
    install(stage)?;
    let vip = vip_of(stage, "web")?;
    let own = client.addresses["app"];
    wait_for("the VIP to be ours", LAG, || only_client(&ask_vip(stage, &client)?, &own.to_string()))?;
    let tally = ask_vip(stage, &client)?;
    ensure!(tally.names.values().all(|&count| count == 4), "not in turn: {:?}", tally.names);
    // The engine's balancer has the VIP as an address, and must not answer as well.
    let script = format!(
        "arping -b -c 4 -w 8 -I $(ip -o -4 addr | grep ' {own}/' | awk '{{print $2}}') {vip}; ip neigh flush all; true"
    );
    let said = stage.in_task(&client, &script)?;
    ensure!(said.contains("Sent 4 probe") && said.contains("Received 4 response"), "{said}");
    stage.agree()
}

/// Taken down on one node after the other while clients ask: no short request is lost, and the engines answer again.
pub(crate) fn rolled_back_under_load(stage: &mut Stage) -> Result<()> {
    let client = web(stage)?;
    install(stage)?;
    let vip = vip_of(stage, "web")?;
    let nodes: Vec<_> = stage.nodes().iter().map(|node| node.address()).collect();
    let through_vip = vip_loop(stage, &client, &format!("{vip}:80"), "vip")?;
    let load = Recorder::tcp(stage, &nodes, 8080)?;
    let mut steps = Vec::new();
    for agent in stage.agents() {
        let begun = SystemTime::now();
        agent.teardown()?;
        steps.push(format!("{} {}-{}", agent.node().label(), time_of_day(begun), time_of_day(SystemTime::now())));
        load.wait_answers(20)?;
        through_vip.wait_answers(20)?;
    }
    load.stop_without_loss().with_context(|| format!("teardown: {}", steps.join(", ")))?;
    without_loss("the loop to the VIP", &through_vip.stop()?)?;
    for agent in stage.nodes().iter().map(Hiveway::on) {
        let pins = agent.node().run("sh", &["-c", "ls -A /sys/fs/bpf | wc -l"])?;
        ensure!(pins.trim() == "0", "{} has pins: {pins}", agent.node().label());
    }
    let servers = names(&stage.serving("web")?);
    for node in nodes {
        let tally = stage.ask_mesh(node, 8080, 4)?;
        all_answer(&tally, &servers)?;
        ensure!(!tally.peers.contains_key(CLIENT), "not as an engine does it: {tally:?}");
    }
    let tally = ask_vip(stage, &client)?;
    ensure!(!tally.peers.contains_key(&client.addresses["app"].to_string()), "not as an engine does it: {tally:?}");
    Ok(())
}

/// One node with Hiveway, one without: both answer with both backends, by published port and by VIP.
pub(crate) fn mixed_cluster(stage: &mut Stage) -> Result<()> {
    let client = web(stage)?;
    let ours = stage.agent("n1")?;
    ours.start(&[])?;
    let servers = stage.serving("web")?;
    for node in stage.nodes() {
        wait_for(&format!("{} to answer with both", node.label()), LAG, || {
            all_answer(&stage.ask_mesh(node.address(), 8080, 4)?, &names(&servers))
        })?;
    }
    // The backend here sees the client; the one there is reached as an engine would reach it.
    let here = servers.iter().find(|task| stage.node_of(task).is_ok_and(|node| node.label() == "n1"));
    let here = here.context("no task of web on n1")?.name().to_owned();
    wait_for("the mesh of n1 to be ours", LAG, || {
        let tally = stage.ask_mesh(ours.node().address(), 8080, 8)?;
        all_answer(&tally, &names(&servers))?;
        ensure!(tally.names[&here] == 4, "not in turn: {:?}", tally.names);
        ensure!(tally.peers.get(CLIENT) == Some(&4), "seen by its own address 4 times of 8: {:?}", tally.peers);
        Ok(())
    })?;
    for client in [client, other_client(stage)?] {
        let tally = ask_vip(stage, &client)?;
        let own = client.addresses["app"].to_string();
        let with_us = stage.node_of(&client)?.label() == "n1";
        ensure!(tally.peers.contains_key(&own) == with_us, "{own} on n1: {with_us}, {tally:?}");
    }
    stage.agree()
}

/// Bound to one node's address, a port is closed at the others, though the engines could serve it there.
pub(crate) fn bound(stage: &mut Stage) -> Result<()> {
    stage.nodes().iter().map(Hiveway::on).try_for_each(|agent| agent.start(&[]))?;
    mesh::bound(stage)
}

/// A published service with a task per node, and clients of it; it answers. The client on n1.
fn web(stage: &Stage) -> Result<Task> {
    stage.network("app", "")?;
    let all = "--mode global --network app";
    stage.create("web", &format!("{all} --publish 8080:80 demo/web:1"))?;
    stage.create("client", &format!("{all} demo/web:1"))?;
    stage.wait_mesh("web", 8080)?;
    let servers = names(&stage.serving("web")?);
    for client in stage.serving("client")? {
        wait_for("the VIP to answer with all", LAG, || all_answer(&ask_vip(stage, &client)?, &servers))?;
    }
    client_on(stage, true)
}

fn other_client(stage: &Stage) -> Result<Task> {
    client_on(stage, false)
}

fn client_on(stage: &Stage, first: bool) -> Result<Task> {
    for task in stage.serving("client")? {
        if (stage.node_of(&task)?.label() == "n1") == first {
            return Ok(task);
        }
    }
    anyhow::bail!("no such client")
}

/// Eight requests to the VIP of `web`, all of them answered.
pub(crate) fn ask_vip(stage: &Stage, client: &Task) -> Result<Tally> {
    let tally = stage.ask_from(client, &vip_of(stage, "web")?.to_string(), 8)?;
    ensure!(tally.failed == 0, "{tally:?}");
    Ok(tally)
}

/// Its VIP on network `app`.
pub(crate) fn vip_of(stage: &Stage, service: &str) -> Result<Ipv4Addr> {
    let (ids, vips) = (stage.network_ids()?, stage.service(service)?.vips);
    let (app, _) = ids.iter().find(|(_, name)| name == "app").context("no network app")?;
    vips.get(app).copied().with_context(|| format!("{service} has no VIP on app: {vips:?}"))
}

/// Hiveway on all nodes, and the mesh its.
pub(crate) fn install(stage: &Stage) -> Result<()> {
    stage.nodes().iter().map(Hiveway::on).try_for_each(|agent| agent.start(&[]))?;
    wait_taken_over(stage)
}

/// Until servers see the client itself, whichever node it asks.
fn wait_taken_over(stage: &Stage) -> Result<()> {
    stage.nodes().iter().try_for_each(|node| {
        wait_for(&format!("the mesh of {} to be ours", node.label()), LAG, || {
            only_client(&stage.ask_mesh(node.address(), 8080, 4)?, CLIENT)
        })
    })
}

/// A loop in a container, each request on a connection of its own.
fn vip_loop(stage: &Stage, client: &Task, target: &str, name: &str) -> Result<LoadLoop> {
    let exec = ["exec", "--interactive", &client.container, "hw-lab-peer"];
    let arguments = [&exec[..], &LoadLoop::arguments("tcp-load", target)].concat();
    let command = stage.node_of(client)?.docker_command(&arguments);
    // Stories share the directory, and what a process says is appended.
    let name = format!("{name}-{}", client.container);
    LoadLoop::spawn(command, &stage.swarm.place().directory(), &name, target, 1)
}

fn without_loss(what: &str, tally: &Tally) -> Result<()> {
    ensure!(tally.failed == 0, "{what}: {} lost of {}: {:?}", tally.failed, tally.failed + tally.ok, tally.errors);
    Ok(())
}
