//! What the agent says to wrong input, and that it stays calm.

use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::{Agent, hiveway},
    lab::{Lab, Netns, PATIENCE, Process, scenario, wait_for, wait_until},
    peer,
    table::Table,
};
use serde_json::json;

use crate::{
    snapshot::Snapshot,
    support::{Cluster, assert_even},
};

fn two_tasks() -> Table {
    Table::with_nodes(2)
        .network("app", "10.0.1", 4097)
        .service("a")
        .task("a.1", "a", "n1", &[("app", "10.0.1.3")])
        .task("a.2", "a", "n2", &[("app", "10.0.1.4")])
}

/// Runs an agent that is expected to end by itself: its stderr.
fn refused(lab: &Lab, node: &Netns, change: &[(&str, &str)], wrapper: &[&str]) -> Result<String> {
    let name = lab.unique("refused");
    let bpffs = format!("/sys/fs/bpf/{}-{name}", lab.prefix());
    let directory = lab.directory().join(&name).display().to_string();
    let table = format!("file:{}", lab.directory().join("table.json").display());
    let socket = format!("{directory}/agent.sock");
    let mut arguments = vec![
        ("--node", "n1"),
        ("--table", &table),
        ("--underlay", "eth0"),
        ("--bpffs", &bpffs),
        ("--state-dir", &directory),
        ("--socket", &socket),
    ];
    for (flag, value) in change {
        arguments.retain(|(other, _)| other != flag);
        arguments.push((flag, value));
    }
    let mut command = match wrapper {
        [] => node.command(hiveway()?)?,
        [program, rest @ ..] => {
            let mut command = node.command(program)?;
            command.args(rest).arg(hiveway()?);
            command
        }
    };
    command.arg("agent").args(arguments.into_iter().flat_map(|(flag, value)| [flag, value]));
    let mut process = Process::start(command, lab.directory(), &name)?;
    let status = process.wait(PATIENCE)?;
    ensure!(!status.success(), "it ended with success");
    let _ = std::fs::remove_dir_all(&bpffs);
    process.stderr()
}

fn mentions(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "the error does not mention `{word}`: {text}");
    }
    ensure!(!text.contains("panicked"), "a panic is no error message: {text}");
    Ok(())
}

#[test]
fn an_agent_that_cannot_work_says_why_and_changes_nothing() {
    scenario(|lab| {
        let node = lab.node("n1", 11)?;
        two_tasks().write(&lab.directory().join("table.json"))?;
        let before = Snapshot::of(&node)?;
        mentions(&refused(lab, &node, &[("--node", "n9")], &[])?, &["n9"])?;
        mentions(&refused(lab, &node, &[("--underlay", "eth7")], &[])?, &["eth7"])?;
        let nowhere = lab.directory().join("no-bpffs").display().to_string();
        mentions(&refused(lab, &node, &[("--bpffs", &nowhere)], &[])?, &["bpf", "mount"])?;
        mentions(&refused(lab, &node, &[("--table", "file:/nowhere.json")], &[])?, &["/nowhere.json"])?;
        mentions(&refused(lab, &node, &[("--table", "nonsense")], &[])?, &["nonsense"])?;
        let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
        mentions(&refused(lab, &node, &[], &nobody)?, &["root"])?;
        let difference = before.difference(&Snapshot::of(&node)?);
        ensure!(difference.is_empty(), "a refused agent has changed the node:\n{difference}");
        Ok(())
    });
}

#[test]
fn a_second_agent_with_the_same_pins_is_refused() {
    scenario(|lab| {
        let mut cluster = Cluster::start(lab, 2, two_tasks().node("n3", "192.168.77.13"))?;
        cluster.serve(&["a.2"])?;
        let pins = cluster.agents[0].bpffs().display().to_string();
        let said = refused(lab, &cluster.nodes[0], &[("--bpffs", &pins)], &[])?;
        mentions(&said, &["already running"])?;
        // From another node's namespace, too: pins belong to one agent.
        let other = lab.node("n3", 13)?;
        let said = refused(lab, &other, &[("--bpffs", &pins), ("--node", "n3")], &[])?;
        mentions(&said, &[&pins])?;
        ensure!(other.interfaces()? == ["eth0"], "the refused agent has begun to work: {:?}", other.interfaces()?);
        // `refused` has tried to remove only its own directory; the first agent goes on.
        assert_even(&peer::tcp_load(cluster.task("a.1"), "10.0.1.4:80", 5, 1)?, &["a.2"], 5)
    });
}

#[test]
fn an_invalid_table_is_refused_whole_and_the_last_good_one_stays() {
    scenario(|lab| {
        let mut cluster = Cluster::start(lab, 2, two_tasks())?;
        cluster.serve(&["a.1", "a.2"])?;
        let good = cluster.table.clone();
        let mut bad = good.clone();
        bad.item_mut("tasks", "a.2")["addresses"]["app"] = json!("10.0.1.3");
        bad.remove("tasks", "a.1");
        bad = bad.task("a.3", "a", "n1", &[("app", "10.0.9.9")]);
        bad.write(&cluster.file)?;
        let agent = &cluster.agents[0];
        wait_for("the agent to complain", PATIENCE, || {
            let status = agent.cli(&["status"])?;
            ensure!(status.contains("tasks[1].addresses.app"), "{status}");
            Ok(())
        })?;
        assert_even(&peer::tcp_load(cluster.task("a.1"), "10.0.1.4:80", 5, 1)?, &["a.2"], 5)?;
        let source = format!("file:{}", cluster.file.display());
        let output = validate(agent, &source)?;
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "validate ended with {}: {text}", output.status);
        mentions(&text, &["tasks[1].addresses.app"])?;
        // Not even a table: the same.
        hiveway_tests::table::write_atomically(&cluster.file, "version: [")?;
        wait_until("the agent to complain", PATIENCE, || {
            agent.cli(&["status"]).is_ok_and(|status| !status.contains("tasks[1].addresses.app"))
        })?;
        assert_even(&peer::tcp_load(cluster.task("a.1"), "10.0.1.4:80", 5, 1)?, &["a.2"], 5)?;
        // A good one again.
        cluster.change(|table| *table = good)?;
        ensure!(validate(&cluster.agents[0], &source)?.status.success(), "validate refuses a good table");
        Ok(())
    });
}

fn validate(agent: &Agent, source: &str) -> Result<Output> {
    agent.command(&["validate", "--table", source])?.output().context("validate")
}

#[test]
fn a_task_whose_namespace_vanishes_is_reported_and_connected_again_when_it_is_back() {
    scenario(|lab| {
        let mut cluster = Cluster::start(lab, 2, two_tasks().task("a.3", "a", "n2", &[("app", "10.0.1.5")]))?;
        cluster.serve(&["a.1", "a.2"])?;
        cluster.end_task("a.2");
        let agent = std::sync::Arc::clone(&cluster.agents[1]);
        wait_for("status to name the task", PATIENCE, || {
            let status = agent.cli(&["status"])?;
            ensure!(status.contains("a.2"), "{status}");
            Ok(())
        })?;
        // The others are none the worse.
        cluster.task("a.1").run("ping -c 2 -i 0.05 -W 5 10.0.1.5")?;
        cluster.change(|_| ())?;
        cluster.serve(&["a.2"])?;
        assert_even(&peer::tcp_load(cluster.task("a.1"), "10.0.1.4:80", 5, 1)?, &["a.2"], 5)?;
        wait_until("status to be content", PATIENCE, || {
            agent.cli(&["status"]).is_ok_and(|status| !status.contains("a.2"))
        })
    });
}
