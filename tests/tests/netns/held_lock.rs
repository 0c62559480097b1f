//! Another process holds the kernel's lock for links for seconds.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::Agent,
    lab::{Lab, Netns, Process, scenario_alone},
};

use crate::support::{Cluster, METRICS, metric, web_table};

/// Links that are deleted at once, several times: the lock is handed over in between, so that rounds come to requests
/// in containers' namespaces, where more connections wait for it.
const GROUPS: [u32; 3] = [71, 72, 73];
const BRIDGES: u32 = 150;
/// For all of it, at least: else nothing was held up.
const HELD: Duration = Duration::from_secs(3);
/// Everything that is asked over the socket answers within a second; the rest is what starting the program takes.
const ANSWER: Duration = Duration::from_millis(1500);

/// Has the kernel delete many bridges under its lock, group by group.
fn hold(lab: &Lab, other: &Netns) -> Result<Vec<Process>> {
    let names = GROUPS.iter().flat_map(|group| (0..BRIDGES).map(move |number| (group, number)));
    let script: String = names
        .map(|(group, number)| {
            format!("link add b{group}x{number} type bridge\nlink set b{group}x{number} group {group}\n")
        })
        .collect();
    let file = lab.directory().join("bridges");
    fs::write(&file, script)?;
    other.run(&format!("ip -batch {}", file.display()))?;
    let delete = |group: &u32| {
        let mut command = other.command("ip")?;
        command.args(["link", "del", "group", &group.to_string()]);
        Process::start(command, lab.directory(), &lab.unique("delete"))
    };
    GROUPS.iter().map(delete).collect()
}

/// The longest answer to a question, and how often it was asked.
#[derive(Debug, Default)]
struct Answers {
    longest: Duration,
    count: u32,
}

impl Answers {
    fn ask(&mut self, question: impl FnOnce() -> Result<()>) -> Result<()> {
        let asked = Instant::now();
        question()?;
        self.longest = self.longest.max(asked.elapsed());
        self.count += 1;
        Ok(())
    }
}

fn questions(agent: &Agent, node: &Netns, during: &mut Vec<Process>) -> Result<(Answers, Answers, Duration)> {
    let (mut status, mut metrics, begun) = (Answers::default(), Answers::default(), Instant::now());
    while !during.is_empty() {
        status.ask(|| agent.cli(&["status", "--json"]).map(drop))?;
        metrics.ask(|| {
            metric(node, "hiveway_healthy")?.context("no such series")?;
            Ok(())
        })?;
        let mut left = Vec::new();
        for mut process in during.drain(..) {
            match process.try_wait()? {
                None => left.push(process),
                Some(ended) => ensure!(ended.success(), "{ended}: {}", process.stderr_tail(5)),
            }
        }
        *during = left;
    }
    Ok((status, metrics, begun.elapsed()))
}

#[test]
fn while_another_process_holds_the_lock_for_links_status_and_metrics_answer() {
    scenario_alone(|lab| {
        let nodes = ["n1"; 6];
        let cluster = Cluster::start_with(lab, 2, web_table(&nodes, &[("tcp", 8080, 80)], "n1"), &METRICS)?;
        let (node, agent) = (&cluster.nodes[0], &cluster.agents[0]);
        let other = lab.namespace("other")?;
        let mut during = hold(lab, &other)?;
        let (status, metrics, held) = questions(agent, node, &mut during)?;
        eprintln!("the lock was held for {held:?}: status {status:?}, metrics {metrics:?}");
        ensure!(held > HELD, "the lock was held for {held:?}: too short to show anything");
        for (what, answers) in [("status", status), ("metrics", metrics)] {
            ensure!(answers.longest < ANSWER, "{what} took {:?} while the lock was held", answers.longest);
        }
        cluster.settle()
    });
}
