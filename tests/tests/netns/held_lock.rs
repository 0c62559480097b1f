//! Another process holds the kernel's lock for links for seconds.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::Agent,
    lab::{Lab, Netns, PATIENCE, Process, scenario_alone, slowness},
};

use crate::support::{Cluster, METRICS, metric, web_table};

/// How long the lock is to be held: the agent looks at links and routes every five seconds, so that by then more than
/// one connection waits for it.
const HELD: Duration = Duration::from_secs(9);
/// Deleted first, to see how long it takes here; and the most that are deleted.
const SAMPLE: u32 = 50;
const MOST: u32 = 5000;
/// Everything that is asked over the socket answers within a second; the rest is what starting the program takes.
const ANSWER: Duration = Duration::from_millis(1500);

/// Makes bridges of one group: the kernel deletes a group under its lock, and bridges take it long.
fn bridges(lab: &Lab, other: &Netns, count: u32) -> Result<()> {
    let line = |number| format!("link add b{number} type bridge\nlink set b{number} group 72\n");
    let file = lab.directory().join("bridges");
    fs::write(&file, (0..count).map(line).collect::<String>())?;
    other.run(&format!("ip -batch {}", file.display())).map(drop)
}

fn delete(lab: &Lab, other: &Netns) -> Result<Process> {
    let mut command = other.command("ip")?;
    command.args(["link", "del", "group", "72"]);
    Process::start(command, lab.directory(), &lab.unique("delete"))
}

/// Has the lock held for [`HELD`], from now on.
fn hold(lab: &Lab, other: &Netns) -> Result<Process> {
    // Without what each deletion takes whatever it deletes.
    let sample = |count| -> Result<Duration> {
        bridges(lab, other, count)?;
        let started = Instant::now();
        delete(lab, other)?.wait(PATIENCE)?;
        Ok(started.elapsed())
    };
    let few = sample(SAMPLE)?;
    let each = sample(5 * SAMPLE)?.saturating_sub(few) / (4 * SAMPLE);
    let count = (HELD.as_micros() / each.as_micros().max(1)).try_into().unwrap_or(MOST);
    bridges(lab, other, count.min(MOST))?;
    delete(lab, other)
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

fn questions(agent: &Agent, node: &Netns, mut during: Process) -> Result<(Answers, Answers, Duration)> {
    let (mut status, mut metrics, begun) = (Answers::default(), Answers::default(), Instant::now());
    loop {
        status.ask(|| agent.cli(&["status", "--json"]).map(drop))?;
        metrics.ask(|| {
            metric(node, "hiveway_healthy")?.context("no such series")?;
            Ok(())
        })?;
        if let Some(ended) = during.try_wait()? {
            ensure!(ended.success(), "{ended}: {}", during.stderr_tail(5));
            return Ok((status, metrics, begun.elapsed()));
        }
    }
}

#[test]
fn while_another_process_holds_the_lock_for_links_status_and_metrics_answer() {
    scenario_alone(|lab| {
        let table = web_table(&["n1", "n2"], &[("tcp", 8080, 80)], "n1");
        let cluster = Cluster::start_with(lab, 2, table, &METRICS)?;
        let (node, agent) = (&cluster.nodes[0], &cluster.agents[0]);
        let other = lab.namespace("other")?;
        let during = hold(lab, &other)?;
        let (status, metrics, held) = questions(agent, node, during)?;
        eprintln!("the lock was held for {held:?}: status {status:?}, metrics {metrics:?}");
        ensure!(held > HELD / 2, "the lock was held for {held:?}: too short to show anything");
        for (what, answers) in [("status", status), ("metrics", metrics)] {
            ensure!(answers.longest < ANSWER * slowness(), "{what} took {:?} while the lock was held", answers.longest);
        }
        cluster.settle()
    });
}
