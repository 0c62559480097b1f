//! Nodes with an agent. The backends' node is in the table only: the far end answers in its place.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use hiveway_tests::{
    agent::{Agent, AgentOptions},
    lab::{Lab, Netns, PATIENCE, wait_for},
    table::Table,
};
use serde_json::{Value, json};

use super::{
    contestants::{Contestant, FIRST_PORT, Site},
    order::Protocol,
};

/// Services that many ports are spread over, as in a real swarm.
const PORTS_PER_SERVICE: u16 = 100;
/// Longer than any run: an idle flow must not be forgotten between two rounds.
const TIMEOUTS: &str = "udp-unreplied=2h,udp-replied=2h,tcp-half-open=2h,tcp-established=4h";

/// `--mesh-vni` of the agents, which the generator of replies has to know.
pub(super) const MESH_VNI: u32 = 16_777_214;

/// Starts an agent; returns it with the namespace of the local task, if there is one.
pub(super) fn start(
    lab: &Lab,
    node: &Netns,
    contestant: Contestant,
    site: Site,
    protocol: Protocol,
) -> Result<(Arc<Agent>, Option<Netns>)> {
    let task = (site == Site::Local).then(|| lab.namespace(&format!("{}-task", node.label()))).transpose()?;
    let file = lab.directory().join(format!("{}.json", node.label()));
    table(site, protocol, task.as_ref()).write(&file)?;
    let mut extra = ["--max-flows", "2097152", "--timeout", TIMEOUTS].map(str::to_owned).to_vec();
    extra.extend(["--mesh-vni".to_owned(), MESH_VNI.to_string()]);
    extra.extend(contestant.agent_arguments().iter().map(|&word| word.to_owned()));
    let table = format!("file:{}", file.display());
    let agent = Agent::start(lab, node, AgentOptions { node: "n1".to_owned(), table, netns_dir: None, extra })?;
    wait_for("all backends", PATIENCE, || {
        let services = agent.json(&["service", "ls"])?;
        let ready = |service: &Value| service["backends"].as_array().is_some_and(|backends| !backends.is_empty());
        ensure!(services.as_array().is_some_and(|all| !all.is_empty() && all.iter().all(ready)), "{services}");
        Ok(())
    })?;
    if let Some(task) = &task {
        wait_for("the task's interfaces", Duration::from_secs(10), || {
            ensure!(task.run("ip -4 -br addr")?.contains("172.18."), "none on the gateway bridge");
            Ok(())
        })?;
    }
    Ok((agent, task))
}

fn table(site: Site, protocol: Protocol, task: Option<&Netns>) -> Table {
    let mut table = Table::with_nodes(2).ingress();
    table.item_mut("networks", "ingress")["subnets"] =
        json!([{"subnet": "10.0.0.0/16", "gateway": "10.0.0.1", "vni": 4096}]);
    let name = match (site, protocol) {
        (Site::Flooded, _) | (_, Protocol::Tcp) => "tcp",
        (_, Protocol::Udp) => "udp",
    };
    let services = site.ports().div_ceil(PORTS_PER_SERVICE);
    let (mut vip, mut backend) = (2u32, 0x1000u32);
    for service in 0..services {
        let id = format!("s{service}");
        table = table.service(&id).vip("ingress", &address(vip));
        vip += 1;
        for port in 0..PORTS_PER_SERVICE.min(site.ports()) {
            table = table.publish(name, FIRST_PORT + service * PORTS_PER_SERVICE + port, 80 + port);
        }
        for slot in 1..=site.backends() {
            let node = if site == Site::Local { "n1" } else { "n2" };
            table = table.task(&format!("{id}.{slot}"), &id, node, &[("ingress", &address(backend))]);
            backend += 1;
            if let Some(task) = task {
                table = table.set("tasks", "netns", json!(task.path()));
            }
        }
    }
    table
}

/// An address of 10.0.0.0/16.
fn address(number: u32) -> String {
    let [_, _, high, low] = number.to_be_bytes();
    format!("10.0.{high}.{low}")
}
