//! Services by name, in containers.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use crate::support::{
    Stage,
    traffic::{all_answer, names},
};

/// `curl http://web` in containers of every node: all tasks in turn, and each sees the container that asks.
pub(crate) fn vip(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 3 --network app demo/web:1")?;
    stage.create("client", "--mode global --network app demo/web:1")?;
    stage.agree()?;
    let servers = names(&stage.serving("web")?);
    for client in stage.serving("client")? {
        let tally = stage.ask_from(&client, "web", 9)?;
        all_answer(&tally, &servers)?;
        ensure!(tally.names.values().all(|&count| count == 3), "not in turn: {:?}", tally.names);
        let own = client.addresses["app"].to_string();
        ensure!(tally.peers.keys().eq([&own]), "the servers saw {:?} instead of {own}", tally.peers);
    }
    Ok(())
}

/// `--endpoint-mode dnsrr`: no VIP, the name gives the tasks.
pub(crate) fn dnsrr(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 3 --network app --endpoint-mode dnsrr demo/web:1")?;
    let service = stage.service("web")?;
    ensure!(service.vips.is_empty(), "{:?}", service.vips);
    stage.agree()?;
    for client in stage.serving("web")? {
        let tally = stage.ask_from(&client, "web", 3)?;
        ensure!(tally.failed == 0, "{:?}", tally.errors);
    }
    stage.scale("web", 2)
}

/// An attachable network: a standalone container finds the service, and the service it.
pub(crate) fn attachable(stage: &mut Stage) -> Result<()> {
    stage.network("app", "--attachable")?;
    stage.create("web", "--replicas 3 --network app demo/web:1")?;
    let servers = names(&stage.serving("web")?);
    for node in stage.nodes() {
        let name = format!("probe-{}", node.label());
        stage.docker_on(&node, &format!("run --detach --label story --network app --name {name} demo/web:1"))?;
        hiveway_tests::lab::wait_for("the VIP to answer the container", super::support::stage::PATIENCE, || {
            let script = "for i in 1 2 3 4 5 6; do curl --silent --max-time 3 http://web/ || exit 1; done";
            let said = node.docker(&["exec", &name, "sh", "-c", script])?;
            let seen: BTreeSet<_> =
                said.split_whitespace().filter_map(|word| word.strip_prefix("name=")).map(str::to_owned).collect();
            ensure!(seen == servers, "{said}");
            Ok(())
        })?;
        let client = stage.serving("web")?.into_iter().next().context("no task")?;
        let tally = stage.ask_from(&client, &name, 2)?;
        ensure!(tally.failed == 0, "{:?}", tally.errors);
    }
    stage.agree()
}
