//! Who may use published ports: `--mesh-allow` and the label `hiveway.allow`.

use anyhow::{Result, ensure};
use hiveway_tests::{
    agent::Agent,
    lab::{Netns, PATIENCE, scenario, wait_for, with_and_without_offloads},
    peer::{self, LoadLoop},
    table::Table,
};
use serde_json::{Value, json};

use crate::support::{Cluster, assert_even, assert_peer};

const NEAR: &str = "192.168.77.100";
const FAR: &str = "192.168.88.100";

/// web.1 on n1, published as 8080/tcp and 5353/udp; n2 has no task. `allow` is the label of the service.
fn web(allow: &str) -> Table {
    Table::with_nodes(2)
        .ingress()
        .service("web")
        .set("services", "labels", json!({"hiveway.allow": allow}))
        .publish("tcp", 8080, 80)
        .publish("udp", 5353, 53)
        .task("web.1", "web", "n1", &[("ingress", "10.0.0.6")])
}

/// Waits until this list is in force everywhere.
fn in_force(cluster: &Cluster<'_>, allow: &Value) -> Result<()> {
    for agent in &cluster.agents {
        wait_for("the allow list to be in force", PATIENCE, || {
            let seen = agent.json(&["service", "ls"])?[0]["allow"].clone();
            ensure!(seen == *allow, "{}: {seen}", agent.netns().label());
            Ok(())
        })?;
    }
    Ok(())
}

/// Puts another label in force.
fn relabel(cluster: &mut Cluster<'_>, label: &str, allow: &Value) -> Result<()> {
    cluster.change(|table| table.item_mut("services", "web")["labels"]["hiveway.allow"] = json!(label))?;
    in_force(cluster, allow)
}

fn address(node: &Agent) -> &'static str {
    if node.netns().label() == "n1" { "192.168.77.11" } else { "192.168.77.12" }
}

fn served(client: &Netns, source: &str, cluster: &Cluster<'_>) -> Result<()> {
    for node in &cluster.agents {
        let (ip, before) = (address(node), node.dropped("not_allowed")?);
        for tally in
            [peer::tcp_load(client, &format!("{ip}:8080"), 4, 2)?, peer::udp_load(client, &format!("{ip}:5353"), 4)?]
        {
            assert_even(&tally, &["web.1"], 4)?;
            assert_peer(&tally, source)?;
        }
        ensure!(node.dropped("not_allowed")? == before, "{ip}: {}", node.json(&["drops"])?);
    }
    Ok(())
}

/// Nothing comes back, and the ingress node counts it.
fn shut_out(client: &Netns, cluster: &Cluster<'_>) -> Result<()> {
    for node in &cluster.agents {
        let (ip, before) = (address(node), node.dropped("not_allowed")?);
        let udp = peer::attempts(client, "udp", &format!("{ip}:5353"), 3)?;
        ensure!((udp.ok, udp.failed) == (0, 3), "through {ip}: {udp:?}");
        ensure!(node.dropped("not_allowed")? == before + 3, "{ip}: {}", node.json(&["drops"])?);
        let tcp = peer::attempts(client, "tcp", &format!("{ip}:8080"), 2)?;
        ensure!((tcp.ok, tcp.failed) == (0, 2), "through {ip}: {tcp:?}");
        ensure!(tcp.errors.keys().all(|why| !why.contains("refused")), "dropped, not refused: {tcp:?}");
        node.wait_dropped("not_allowed", before + 5)?;
    }
    Ok(())
}

#[test]
fn a_label_says_who_may_use_a_published_port() {
    with_and_without_offloads(|lab| {
        let (near, far) = (lab.client()?, lab.far_client()?);
        let mut cluster = Cluster::start(lab, 2, web("192.168.77.0/24"))?;
        cluster.serve(&["web.1"])?;
        in_force(&cluster, &json!(["192.168.77.0/24"]))?;
        served(&near, NEAR, &cluster)?;
        shut_out(&far, &cluster)?;

        // Another list counts for new connections at once; those that there are go on.
        let kept = LoadLoop::tcp(lab, &near, "192.168.77.12:8080", 1, true)?;
        kept.wait_answers(5)?;
        relabel(&mut cluster, "10.9.0.0/16, 192.168.88.100", &json!(["10.9.0.0/16", "192.168.88.100/32"]))?;
        served(&far, FAR, &cluster)?;
        shut_out(&near, &cluster)?;
        // The node itself comes with its tunnel address, and that is not on the list either.
        let (n1, before) = (&cluster.agents[0], cluster.agents[0].dropped("not_allowed")?);
        let own = peer::attempts(n1.netns(), "udp", "127.0.0.1:5353", 3)?;
        ensure!((own.ok, n1.dropped("not_allowed")?) == (0, before + 3), "{own:?}, {}", n1.json(&["drops"])?);
        let tally = kept.stop()?;
        ensure!(tally.failed == 0 && tally.ok > 5, "an established connection broke: {tally:?}");

        // Without the label everybody may.
        cluster.change(|table| table.item_mut("services", "web")["labels"] = json!({}))?;
        in_force(&cluster, &Value::Null)?;
        served(&near, NEAR, &cluster)?;
        served(&far, FAR, &cluster)
    });
}

#[test]
fn the_nodes_own_list_and_the_label_both_count() {
    scenario(|lab| {
        let (near, far) = (lab.client()?, lab.far_client()?);
        let own = ["--mesh-allow", "192.168.77.0/25,192.168.88.0/24"];
        let mut cluster = Cluster::start_with(lab, 2, web("192.168.0.0/16"), &own)?;
        cluster.serve(&["web.1"])?;
        in_force(&cluster, &json!(["192.168.77.0/25", "192.168.88.0/24"]))?;
        served(&near, NEAR, &cluster)?;
        served(&far, FAR, &cluster)?;
        relabel(&mut cluster, "192.168.77.0/24", &json!(["192.168.77.0/25"]))?;
        served(&near, NEAR, &cluster)?;
        shut_out(&far, &cluster)?;
        relabel(&mut cluster, "10.0.0.0/8", &json!([]))?;
        shut_out(&near, &cluster)?;
        shut_out(&far, &cluster)?;
        ensure!(cluster.agents[0].cli(&["service", "ls"])?.contains("nobody"), "not shown");
        Ok(())
    });
}

#[test]
fn denied_clients_are_shut_out_whatever_is_allowed_and_what_they_have_open_goes_on() {
    scenario(|lab| {
        let (near, far) = (lab.client()?, lab.far_client()?);
        let own = ["--mesh-deny", "192.168.88.0/24"];
        let mut cluster = Cluster::start_with(lab, 2, web("192.168.0.0/16"), &own)?;
        cluster.serve(&["web.1"])?;
        in_force(&cluster, &json!(["192.168.0.0/16"]))?;
        served(&near, NEAR, &cluster)?;
        shut_out(&far, &cluster)?;
        ensure!(cluster.agents[0].cli(&["service", "ls"])?.contains("but 192.168.88.0/24"), "not shown");

        let kept = LoadLoop::tcp(lab, &near, "192.168.77.12:8080", 1, true)?;
        cluster.change(|table| table.item_mut("services", "web")["labels"] = json!({"hiveway.deny": NEAR}))?;
        in_force(&cluster, &Value::Null)?;
        shut_out(&near, &cluster)?;
        let tally = kept.stop()?;
        ensure!(tally.failed == 0 && tally.ok > 5, "an established connection broke: {tally:?}");
        // The nodes themselves are still let in.
        served(&cluster.nodes[1], "192.168.77.12", &cluster)?;
        cluster.change(|table| table.item_mut("services", "web")["labels"] = json!({}))?;
        in_force(&cluster, &Value::Null)?;
        wait_for("the label's list to be gone", PATIENCE, || served(&near, NEAR, &cluster))?;
        shut_out(&far, &cluster)
    });
}
