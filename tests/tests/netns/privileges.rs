//! The agent with the capabilities that the documentation names, and with each of them missing.

use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::hiveway,
    lab::{Netns, PATIENCE, scenario, wait_for},
    peer,
};
use serde_json::Value;

use crate::support::{Cluster, assert_even, web_table};

/// README.md, SECURITY.md and docs/examples/hiveway.service.
const NEEDED: [&str; 3] = ["net_admin", "net_raw", "sys_admin"];
/// Without it the agent works, and says what it cannot tell.
const OWNERS: &str = "sys_ptrace";

const WEB: [&str; 2] = ["web.1", "web.2"];

/// What runs a program of root's with these capabilities and no others.
fn with_only<'a>(capabilities: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let set: String = capabilities.into_iter().map(|name| format!(",+{name}")).collect();
    let setpriv = ["setpriv", "--no-new-privs"].map(str::to_owned);
    setpriv.into_iter().chain([format!("--bounding-set=-all{set}"), format!("--inh-caps=-all{set}")]).collect()
}

fn words(line: &[String]) -> Vec<&str> {
    line.iter().map(String::as_str).collect()
}

/// Requests through a VIP, and through published ports at another node than the backends'.
fn works(cluster: &Cluster<'_>, client: &Netns) -> Result<()> {
    let user = cluster.task("user.1");
    for offers in [
        peer::tcp_load(user, "10.0.1.2:80", 10, 2)?,
        peer::udp_load(user, "10.0.1.2:53", 10)?,
        peer::tcp_load(client, "192.168.77.13:8080", 10, 2)?,
        peer::udp_load(client, "192.168.77.13:5353", 10)?,
        peer::tcp_load(&cluster.nodes[0], "127.0.0.1:8080", 10, 2)?,
    ] {
        assert_even(&offers, &WEB, 5)?;
    }
    user.run("ping -c 1 -W 5 192.168.77.100").map(drop)
}

/// What `status` warns of.
fn warnings(cluster: &Cluster<'_>) -> Result<String> {
    Ok(cluster.agents[0].json(&["status"])?["warnings"].to_string())
}

#[test]
fn the_documented_capabilities_are_enough() {
    scenario(|lab| {
        let client = lab.client()?;
        let table = web_table(&["n1", "n2"], &[("tcp", 8080, 80), ("udp", 5353, 53)], "n1");
        let mut cluster = Cluster::start_with(lab, 3, table, &["--xdp", "generic"])?;
        // Everything is made anew by agents that have no other privileges.
        let (all, fewest) = (with_only(NEEDED.into_iter().chain([OWNERS])), with_only(NEEDED));
        for agent in &cluster.agents {
            agent.terminate()?;
            agent.wrapped_by(&words(&all));
            agent.teardown()?;
            agent.restart()?;
        }
        cluster.settle()?;
        cluster.serve(&WEB)?;
        works(&cluster, &client)?;
        // Another process listens, with more privileges than the agent's.
        let _listener = peer::http_server(lab, &cluster.nodes[0], 8080, "shadowed")?;
        let shadowed = |named: bool| {
            wait_for("the process on a published port to be seen", PATIENCE, || {
                let shadowed = cluster.agents[0].json(&["status"])?["shadowed"].take();
                ensure!(shadowed.as_array().is_some_and(|rows| !rows.is_empty()), "nothing is seen");
                ensure!(shadowed.to_string().contains("hw-lab-peer") == named, "{shadowed}");
                ensure!(warnings(&cluster)?.contains("CAP_SYS_PTRACE") != named, "{}", warnings(&cluster)?);
                Ok(())
            })
        };
        shadowed(true)?;
        cluster.agents[0].terminate()?;
        cluster.agents[0].wrapped_by(&words(&fewest));
        cluster.agents[0].restart()?;
        cluster.settle()?;
        shadowed(false)?;
        works(&cluster, &client)?;
        for agent in &cluster.agents {
            let log = agent.log();
            ensure!(!log.contains("ERROR") && !log.contains("not permitted"), "{log}");
            agent.terminate()?;
            let said = agent.teardown()?;
            ensure!(said.contains("done") && !said.contains("error"), "{said}");
        }
        Ok(())
    });
}

/// Runs `hiveway` so, with what every agent of these scenarios is given.
fn run(node: &Netns, capabilities: &[String], arguments: &[&str]) -> Result<Output> {
    let (program, words) = capabilities.split_first().context("no wrapper")?;
    Ok(node.command(program)?.args(words).arg(hiveway()?).args(arguments).output()?)
}

#[test]
fn a_capability_that_is_missing_is_named() {
    scenario(|lab| {
        let node = lab.node("n1", 11)?;
        let file = lab.directory().join("table.json");
        web_table(&["n1"], &[], "n1").write(&file)?;
        let (table, state) = (format!("file:{}", file.display()), lab.directory().join("state").display().to_string());
        let agent = ["agent", "--node", "n1", "--underlay", "eth0", "--table", &table, "--state-dir", &state];
        for missing in NEEDED {
            let rest = with_only(NEEDED.into_iter().filter(|name| *name != missing));
            let name = format!("missing CAP_{}:", missing.to_uppercase());
            for arguments in [&["preflight"][..], &agent] {
                let output = run(&node, &rest, arguments)?;
                let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                let said = said.concat();
                ensure!(output.status.code() == Some(1) && said.contains(&name), "without {missing}: {said}");
            }
        }
        ensure!(node.interfaces()? == ["eth0"], "a refused agent has begun: {:?}", node.interfaces()?);
        let output = run(&node, &with_only(NEEDED), &["preflight", "--json"])?;
        let found: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(found["ok"] == true && found["checks"][0].to_string().contains("CAP_SYS_PTRACE"), "{found:#}");
        let output = run(&node, &with_only(NEEDED.into_iter().chain([OWNERS])), &["preflight", "--json"])?;
        let found: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(found["ok"] == true && !found["checks"][0].to_string().contains("CAP_"), "{found:#}");
        Ok(())
    });
}
