//! What the demo shows, in order.

use std::time::Duration;

use anyhow::{Context as _, Result};
use hiveway_tests::{
    lab::Netns,
    load::Tally,
    peer::{self, LoadLoop},
};

use crate::{
    capture::{Capture, Endpoint},
    report::Report,
    show::{chapter, run, say},
    stage::Stage,
};

/// The published port of the captured service.
const PORT: u16 = 8080;
const CLIENT: &str = "192.168.77.100";

pub(crate) fn tell(stage: &mut Stage<'_>, report: &mut Report) -> Result<()> {
    look(stage, report)?;
    overlay(stage, report)?;
    vip(stage, report)?;
    published_port(stage, report, "02b: every node")?;
    outside(stage, report)?;
    scaling(stage, report)
}

fn look(stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    chapter("What an agent knows");
    let agent = stage.agents.values().next().context("no agent")?;
    for what in [&["status"][..], &["service", "ls"]] {
        say(&format!("$ hiveway {} --socket {}", what.join(" "), agent.socket().display()));
        agent.cli(what)?.lines().for_each(say);
    }
    report.note("agents", "3 ready", &format!("{} ready", stage.agents.len()), stage.agents.len() == 3);
    Ok(())
}

fn overlay(stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    chapter("Containers on different nodes reach each other over the overlay network");
    let tasks = stage.capture.endpoints();
    let from = tasks.first().context("no task")?;
    for to in tasks.iter().filter(|task| task.node != from.node) {
        let line = format!("ping -c 3 -i 0.1 -W 1 {}", to.address);
        let ok = run(stage.task(&from.id)?, &line).is_ok_and(|output| output.contains(" 0% packet loss"));
        let seen = if ok { "3 of 3 answered" } else { "lost packets" };
        report.note(
            &format!("ping {} ({}) to {} ({})", from.name, from.node, to.name, to.node),
            "3 of 3 answered",
            seen,
            ok,
        );
    }
    Ok(())
}

fn vip(stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    chapter("The service's virtual address, from a container: round robin");
    let (tasks, vip) = (stage.capture.endpoints(), stage.capture.vip()?);
    let from = tasks.first().context("no task")?;
    let netns = stage.task(&from.id)?;
    for _ in 0..3 {
        run(netns, &format!("curl -s --max-time 5 http://{vip}/"))?;
    }
    let ping = run(netns, &format!("ping -c 1 -W 1 {vip}"));
    let seen = ping.as_ref().map_or_else(|error| format!("{error:#}"), |_| "answered".to_owned());
    report.note("ping of the VIP", "answered", &seen, ping.is_ok());
    even(report, &format!("VIP {vip} from {}", from.name), netns, &format!("{vip}:80"), &tasks, None)
}

/// Port 8080 on every node, from outside.
fn published_port(stage: &Stage<'_>, report: &mut Report, what: &str) -> Result<()> {
    chapter(&format!("Port {PORT} on every node, from outside; the servers see the client's own address ({what})"));
    let tasks = stage.capture.endpoints();
    for (name, address) in stage.capture.nodes() {
        run(&stage.client, &format!("curl -s --max-time 5 http://{address}:{PORT}/"))?;
        let own = tasks.iter().filter(|task| task.node == name && task.backend).count();
        let title = format!("{what}: {name} ({own} own backends)");
        even(report, &title, &stage.client, &format!("{address}:{PORT}"), &tasks, Some(CLIENT))?;
    }
    Ok(())
}

/// Ten requests per backend: each answers exactly ten, and sees `client`.
fn even(
    report: &mut Report,
    what: &str,
    netns: &Netns,
    target: &str,
    tasks: &[Endpoint],
    client: Option<&str>,
) -> Result<()> {
    let names: Vec<String> =
        tasks.iter().filter(|task| task.backend).map(|task| format!("{}@{}", task.name, task.node)).collect();
    let count = u32::try_from(names.len() * 10)?;
    say(&format!("$ nsenter --net={} hw-lab-peer tcp-load --target {target} --count {count}", netns.path().display()));
    let tally = peer::tcp_load(netns, target, count, 1)?;
    let fair = names.iter().all(|name| tally.names.get(name) == Some(&10)) && tally.names.len() == names.len();
    let peers: Vec<&str> = tally.peers.keys().map(String::as_str).collect();
    let seen_client = client.is_none_or(|client| peers == [client]);
    let expected = match client {
        Some(client) => format!("{} × 10, client {client}", names.len()),
        None => format!("{} × 10", names.len()),
    };
    let ok = tally.failed == 0 && fair && seen_client;
    report.note(what, &expected, &summary(&tally, client.is_some()), ok);
    Ok(())
}

fn summary(tally: &Tally, with_client: bool) -> String {
    let mut text = tally.spread();
    if with_client {
        text += &format!(", client {}", tally.peers.keys().cloned().collect::<Vec<_>>().join(" "));
    }
    if tally.failed > 0 {
        text += &format!(", {} FAILED {:?}", tally.failed, tally.errors);
    }
    text
}

fn outside(stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    chapter("A container reaches the outside through the gateway bridge, masqueraded as its node");
    let _server = peer::http_server(stage.lab, &stage.outside, 80, "outside")?;
    for task in stage.capture.endpoints() {
        let node = stage.capture.nodes().into_iter().find(|(name, _)| *name == task.node).context("its node")?.1;
        let answer = run(stage.task(&task.id)?, "curl -s --max-time 5 http://192.168.88.100/");
        let seen = answer.unwrap_or_else(|error| format!("{error:#}"));
        let ok = seen.contains(&format!("name=outside peer={node}:"));
        report.note(
            &format!("{} ({}) to 192.168.88.100", task.name, task.node),
            &format!("as {node}"),
            seen.trim(),
            ok,
        );
    }
    Ok(())
}

fn scaling(stage: &mut Stage<'_>, report: &mut Report) -> Result<()> {
    say(
        "Between two captures the agents see what the engine publishes then: new tasks start, old ones drain, and end.",
    );
    for (name, what) in [
        ("03b-scale-6-done", "03b, 6 tasks"),
        ("05b-drain-n3-done", "05b, n3 drained"),
        ("06b-scale-2-done", "06b, 2 tasks"),
    ] {
        chapter(&format!("Capture {name} applied live, under a request loop on every node"));
        let loops = start_loops(stage)?;
        switch(stage, &Capture::read(name)?)?;
        let mut total = Tally::default();
        for running in loops {
            total.merge(running.stop()?);
        }
        let seen = format!("{} answered, {} failed, slowest {} ms", total.ok, total.failed, total.slowest_ms);
        let seen = if total.failed == 0 { seen } else { format!("{seen}: {:?}", total.errors) };
        report.note(&format!("{what}: request loop"), "none failed", &seen, total.failed == 0 && total.ok > 100);
        published_port(stage, report, what)?;
    }
    let names = stage.capture.nodes();
    let idle = names.iter().find(|(name, _)| stage.capture.endpoints().iter().all(|task| task.node != *name));
    let seen = idle.map_or_else(|| "none".to_owned(), |(name, _)| name.clone());
    report.note("06b: a node without any task answers too", "n2", &seen, seen == "n2");
    Ok(())
}

/// Goes from the present capture to the next one, through what lies between.
fn switch(stage: &mut Stage<'_>, next: &Capture) -> Result<()> {
    let before = stage.capture.clone();
    std::thread::sleep(Duration::from_millis(600));
    stage.apply(&next.with_new_tasks_starting(&before))?;
    stage.apply(&next.with_old_tasks_draining(&before))?;
    // The engine gives old tasks two seconds and their grace; requests here take milliseconds.
    std::thread::sleep(Duration::from_millis(600));
    stage.apply(next)?;
    std::thread::sleep(Duration::from_millis(600));
    Ok(())
}

/// A request loop towards the published port of every node.
fn start_loops(stage: &Stage<'_>) -> Result<Vec<LoadLoop>> {
    let mut loops = Vec::new();
    for (_, address) in stage.capture.nodes() {
        let (target, netns) = (format!("{address}:{PORT}"), stage.client.path());
        say(&format!(
            "$ nsenter --net={} hw-lab-peer tcp-load --target {target} --loop-until-stdin-closes",
            netns.display()
        ));
        loops.push(LoadLoop::tcp(stage.lab, &stage.client, &target, 1, false)?);
    }
    Ok(loops)
}
