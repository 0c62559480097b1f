//! Nodes behind a 1:1 NAT: each announces an address that is on none of its interfaces, as clouds' elastic addresses
//! are.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{lab::wait_for, swarm::Node};

use crate::{
    data_path::{no_flags, pids, serves},
    support::{
        Stage,
        traffic::{all_answer, names},
    },
};

/// How long running agents may take to follow a swarm that announces other addresses.
const FOLLOW: Duration = Duration::from_secs(30);

/// The swarm is made anew with announced addresses under running agents, which find their own addresses by themselves,
/// and again as it was. The nodes reach each other through the router alone, which translates both ways.
pub(crate) fn one_to_one(stage: &mut Stage) -> Result<()> {
    let before = pids(stage)?;
    let outcome = translate(stage).and_then(|()| {
        stage.swarm.remake_announcing(&[], listens_at_its_own, announced)?;
        behind_nat(stage)?;
        let now = pids(stage)?;
        ensure!(now == before, "other agents than before: {now:?} instead of {before:?}");
        // An agent that starts now finds its own address as well, on a manager and on a worker.
        for label in ["n1", "n3"] {
            let agent = stage.agent(label)?;
            agent.stop()?;
            agent.start(&[])?;
        }
        follow(stage)?;
        stage.agree()?;
        leave(stage)?;
        stage.remove_all()
    });
    let restored = isolate(stage, false)
        .and_then(|()| stage.swarm.remake(&[], no_flags).context("the swarm as it was"))
        .and_then(|()| stage.outside().run("nft delete table ip lab-nat").map(drop))
        .and_then(|()| stage.outside().run("ip route del 203.0.113.0/24").map(drop));
    outcome.and(restored)?;
    wait_for("nodes without NAT", FOLLOW, || {
        for agent in stage.agents() {
            let status = agent.ask("status")?;
            let node = &status["node"];
            let own = agent.node().address().to_string();
            ensure!(node["vtep"] == own.as_str() && node["underlay_address"].is_null(), "{node}");
            ensure!(status["healthy"] == true, "{}: {status}", agent.node().label());
        }
        Ok(())
    })?;
    serves(stage)
}

/// Every way leads through the router, and the agents say which addresses they use.
fn behind_nat(stage: &mut Stage) -> Result<()> {
    let anew = Instant::now();
    follow(stage)?;
    stage.timing("an announced address is followed", anew, Instant::now());
    let [n1, n2] = ["n1", "n2"].map(|label| stage.node(label));
    ensure!(!n1?.netns().succeeds(&format!("ping -c 1 -W 1 {}", n2?.address())), "the nodes reach each other directly");
    serves(stage)?;
    // A service with one task: two of the three nodes forward to another one.
    stage.create("one", "--replicas 1 --network app --publish 8081:80 demo/web:1")?;
    stage.wait_mesh("one", 8081)?;
    let one = names(&stage.serving("one")?);
    for node in stage.nodes() {
        // From outside, at the announced address.
        all_answer(&stage.ask_mesh(announced(&node), 8081, 10)?, &one)?;
        all_answer(&stage.ask_mesh(announced(&node), 8080, 12)?, &names(&stage.serving("web")?))?;
    }
    // From container to container, over the engines' own tunnels.
    let web = stage.serving("web")?;
    for client in &web {
        for server in &web {
            let address = server.addresses.get("app").context("a task without an address")?;
            let tally = stage.ask_from(client, &address.to_string(), 1)?;
            all_answer(&tally, &names(std::slice::from_ref(server)))
                .with_context(|| format!("from {} to {}", client.name(), server.name()))?;
        }
    }
    for agent in stage.agents() {
        let text = agent.cli(&["status"])?;
        let both = format!("{} (NAT, here {})", announced(agent.node()), agent.node().address());
        ensure!(text.contains(&both), "no {both:?} in {text}");
    }
    Ok(())
}

/// The only manager's agent goes for good, and tells the others so over the NAT; it comes back.
fn leave(stage: &Stage) -> Result<()> {
    let manager = stage.agent("n1")?;
    let said = manager.teardown()?;
    let deregistered = said.lines().filter(|line| line.starts_with("deregistered at node ")).count();
    ensure!(deregistered == 2, "n1 has not told both others: {said}");
    let others = [stage.agent("n2")?, stage.agent("n3")?];
    wait_for("the others to send nothing to n1 any more", FOLLOW, || {
        for agent in &others {
            let paths = &agent.ask("status")?["paths"];
            ensure!(paths.as_array().is_some_and(|paths| paths.len() == 1), "{}: {paths}", agent.node().label());
        }
        Ok(())
    })?;
    manager.start(&[])?;
    follow(stage)?;
    stage.agree()
}

/// Waits until every agent knows both of its addresses and is healthy: probes have passed to every other node.
fn follow(stage: &Stage) -> Result<()> {
    wait_for("agents to know their announced and their own addresses", FOLLOW, || {
        for agent in stage.agents() {
            let status = agent.ask("status")?;
            let (node, label) = (&status["node"], agent.node().label());
            ensure!(node["vtep"] == announced(agent.node()).to_string().as_str(), "{label}: {node}");
            ensure!(node["underlay_address"] == agent.node().address().to_string().as_str(), "{label}: {node}");
            ensure!(node["underlay"] == "eth0", "{label}: {node}");
            ensure!(status["healthy"] == true, "{label}: {status}");
        }
        Ok(())
    })
}

/// Makes the switch the router that translates between each node's own address and the announced one.
fn translate(stage: &Stage) -> Result<()> {
    let switch = stage.outside();
    // Where the kernel's bridges ask iptables, a packet for a node of the same bridge is not routed once it is
    // translated, but handed on as a frame, which isolation stops.
    switch.shell("cd /proc/sys/net/bridge 2>/dev/null && echo 0 >bridge-nf-call-iptables || true")?;
    // Else it would tell the nodes of shorter ways, of which there are none.
    switch.run("sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.br0.send_redirects=0")?;
    switch.run("ip route add 203.0.113.0/24 dev br0")?;
    switch.run("nft add table ip lab-nat")?;
    for (chain, hook, priority) in
        [("in", "prerouting", "dstnat"), ("own", "output", "-100"), ("out", "postrouting", "srcnat")]
    {
        switch.run(&format!("nft add chain ip lab-nat {chain} {{ type nat hook {hook} priority {priority}; }}"))?;
    }
    for node in stage.nodes() {
        let (own, announced) = (node.address(), announced(&node));
        for chain in ["in", "own"] {
            switch.run(&format!("nft add rule ip lab-nat {chain} ip daddr {announced} dnat to {own}"))?;
        }
        switch.run(&format!("nft add rule ip lab-nat out ip saddr {own} snat to {announced}"))?;
    }
    isolate(stage, true)
}

/// Whether the switch hands nothing from one node's cable to another's: then the router is the only way between them.
fn isolate(stage: &Stage, isolated: bool) -> Result<()> {
    let state = if isolated { "on" } else { "off" };
    let switch = stage.outside();
    stage
        .nodes()
        .iter()
        .try_for_each(|node| switch.run(&format!("bridge link set dev {} isolated {state}", node.label())).map(drop))
}

/// What a node announces: no interface carries it.
fn announced(node: &Node) -> Ipv4Addr {
    let [.., last] = node.address().octets();
    Ipv4Addr::new(203, 0, 113, last)
}

fn listens_at_its_own(node: &Node) -> Vec<String> {
    vec!["--listen-addr".to_owned(), format!("{}:2377", node.address())]
}
