//! The host's packet filters cannot be read, or may close everything: said, and nothing is opened by it.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::Agent,
    lab::{Lab, Netns, PATIENCE, scenario, wait_for},
    peer::{self, LoadLoop},
};

use crate::support::{Cluster, web_table};

const TARGET: &str = "192.168.77.11:8080";

/// An `nft` in front of the machine's, which does as it is told: works, refuses to list anything, or hangs.
struct Nft {
    directory: PathBuf,
}

impl Nft {
    fn new(lab: &Lab) -> Result<Self> {
        let directory = lab.directory().join("programs");
        fs::create_dir_all(&directory)?;
        let (place, real) = (directory.display(), real()?);
        let refuses = "case \"$*\" in *list*) echo 'Error: Operation not permitted' >&2; exit 1 ;; esac";
        let script = format!(
            "#!/bin/sh\necho \"$*\" >> {place}/asked\ncase $(cat {place}/mode) in\nhangs) exec sleep 600 ;;\n\
             refuses) {refuses} ;;\nesac\nexec {} \"$@\"\n",
            real.display()
        );
        let program = directory.join("nft");
        fs::write(&program, script)?;
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let nft = Self { directory };
        nft.now("works")?;
        Ok(nft)
    }

    fn now(&self, mode: &str) -> Result<()> {
        let new = self.directory.join("mode.new");
        fs::write(&new, mode)?;
        Ok(fs::rename(new, self.directory.join("mode"))?)
    }

    /// How often it was asked this.
    fn asked(&self, what: &str) -> usize {
        let log = fs::read_to_string(self.directory.join("asked")).unwrap_or_default();
        log.lines().filter(|line| *line == what).count()
    }
}

fn real() -> Result<PathBuf> {
    let path = std::env::var("PATH")?;
    let found = path.split(':').map(|directory| Path::new(directory).join("nft")).find(|path| path.is_file());
    found.context("there is no nft")
}

/// Tables from files: nothing but Hiveway serves published ports.
fn cluster(lab: &Lab) -> Result<Cluster<'_>> {
    let mut cluster = Cluster::start(lab, 3, web_table(&["n1", "n2"], &[("tcp", 8080, 80)], "n3"))?;
    cluster.serve(&["web.1", "web.2"])?;
    Ok(cluster)
}

/// Attempts have a third of a second: on a busy machine one may fail, but not again and again.
fn served(client: &Netns) -> Result<()> {
    wait_for("the client to be served", PATIENCE, || {
        let tally = peer::attempts(client, "tcp", TARGET, 2)?;
        ensure!(tally.failed == 0, "{tally:?}");
        Ok(())
    })
}

fn closed(client: &Netns) -> Result<()> {
    let tally = peer::attempts(client, "tcp", TARGET, 2)?;
    ensure!(tally.ok == 0, "{tally:?}");
    Ok(())
}

fn failing(agent: &Agent, words: &[&str]) -> Result<()> {
    let status = agent.json(&["status"])?;
    let items = status["failing"].as_array().map(Vec::as_slice).unwrap_or_default();
    let why = items.iter().find(|item| item["item"] == "host firewall").map(|item| item["why"].to_string());
    let why = why.unwrap_or_default();
    ensure!(status["healthy"] == false && words.iter().all(|word| why.contains(word)), "{status:#}");
    Ok(())
}

fn healthy(agent: &Agent) -> Result<()> {
    let status = agent.json(&["status"])?;
    ensure!(status["healthy"] == true, "{status:#}");
    Ok(())
}

#[test]
fn a_rule_that_may_close_everything_is_named_where_nothing_else_serves() {
    scenario(|lab| {
        let client = lab.client()?;
        let cluster = cluster(lab)?;
        let (node, agent) = (&cluster.nodes[0], &cluster.agents[0]);
        wait_for("a healthy node", PATIENCE, || healthy(agent))?;
        served(&client)?;
        node.run("nft add table inet mine")?;
        node.run("nft add chain inet mine pre { type filter hook prerouting priority -300 ; }")?;
        node.run("nft add rule inet mine pre meta mark 0x7 drop")?;
        wait_for("the rule to be named", PATIENCE, || {
            failing(agent, &["inet:mine:pre", "meta mark 0x00000007 drop", "--ignore-firewall=inet:mine:pre"])
        })?;
        wait_for("published ports to be left to the stack", PATIENCE, || closed(&client))?;
        node.run("nft delete table inet mine")?;
        wait_for("a healthy node", PATIENCE, || healthy(agent).and_then(|()| served(&client)))
    });
}

#[test]
fn unread_rules_open_nothing_and_end_nothing() {
    scenario(|lab| {
        let (banned, other) = (lab.client()?, lab.far_client()?);
        let nft = Nft::new(lab)?;
        let cluster = cluster(lab)?;
        let (node, agent) = (&cluster.nodes[0], &cluster.agents[0]);
        agent.terminate()?;
        agent.programs_from(&nft.directory);
        agent.restart()?;
        let others = LoadLoop::tcp(lab, &other, TARGET, 2, true)?;
        node.run("nft add table inet ban")?;
        node.run("nft add chain inet ban pre { type filter hook prerouting priority -300 ; }")?;
        node.run("nft add rule inet ban pre ip saddr 192.168.77.100 tcp dport 8080 drop")?;
        wait_for("the ban to hold", PATIENCE, || closed(&banned))?;
        wait_for("a healthy node", PATIENCE, || healthy(agent))?;

        nft.now("refuses")?;
        wait_for("it to be said", PATIENCE, || failing(agent, &["Operation not permitted", "stays in force"]))?;
        closed(&banned)?;
        served(&other)?;

        // Nothing is known after a restart, but what is in force.
        agent.terminate()?;
        agent.restart()?;
        wait_for("it to be said", PATIENCE, || {
            failing(agent, &["Operation not permitted", "before the agent was restarted"])
        })?;
        closed(&banned)?;
        served(&other)?;
        nft.now("works")?;
        wait_for("a healthy node", PATIENCE, || healthy(agent))?;
        closed(&banned)?;
        let others = others.stop()?;
        ensure!(others.failed == 0, "the takeover has ended meanwhile: {others:?}");

        // A first start takes nothing over before they were read.
        nft.now("refuses")?;
        agent.terminate()?;
        agent.teardown()?;
        agent.restart()?;
        failing(agent, &["Operation not permitted", "are not served"])?;
        closed(&other)?;
        nft.now("works")?;
        wait_for("published ports to be served", PATIENCE, || served(&other).and_then(|()| healthy(agent)))?;
        closed(&banned)
    });
}

/// Each change of any rule is heard. Only a meaning for published ports makes everything be looked at.
#[test]
fn changes_that_mean_nothing_cost_no_look_at_everything() {
    scenario(|lab| {
        let nft = Nft::new(lab)?;
        let cluster = cluster(lab)?;
        let (node, agent) = (&cluster.nodes[0], &cluster.agents[0]);
        agent.terminate()?;
        agent.programs_from(&nft.directory);
        agent.restart()?;
        node.run("nft add table inet mine")?;
        node.run("nft add chain inet mine in { type filter hook input priority 0 ; }")?;
        wait_for("a healthy node", PATIENCE, || healthy(agent))?;
        let runs = || -> Result<u64> { agent.json(&["status"])?["reconcile"]["runs"].as_u64().context("no runs") };
        let (before, readings, started) = (runs()?, nft.asked("-j -t list ruleset"), Instant::now());
        for port in 0..20 {
            node.run(&format!("nft add rule inet mine in tcp dport {} drop", 2000 + port))?;
            sleep(Duration::from_millis(500));
        }
        let (looks, by_time) = (runs()? - before, started.elapsed().as_secs() / 5 + 1);
        let readings = nft.asked("-j -t list ruleset") - readings;
        ensure!(readings >= 4, "{readings} readings only: nothing is shown");
        ensure!(looks <= by_time + 1, "{looks} looks at everything for {readings} readings in {:?}", started.elapsed());

        // What fails has its turn later and later, whatever is heard.
        nft.now("refuses")?;
        let own = "-j list table inet hiveway";
        let before = nft.asked(own);
        for port in 0..40 {
            node.run(&format!("nft add rule inet mine in udp dport {} drop", 2000 + port))?;
            sleep(Duration::from_millis(100));
        }
        let asked = nft.asked(own) - before;
        ensure!((1..=10).contains(&asked), "our own table was asked for {asked} times");
        Ok(())
    });
}

#[test]
fn an_nft_that_hangs_keeps_nobody_waiting() {
    scenario(|lab| {
        let client = lab.client()?;
        let nft = Nft::new(lab)?;
        let cluster = cluster(lab)?;
        let (node, agent) = (&cluster.nodes[0], &cluster.agents[0]);
        agent.terminate()?;
        agent.programs_from(&nft.directory);
        agent.restart()?;
        wait_for("a healthy node", PATIENCE, || healthy(agent))?;
        nft.now("hangs")?;
        node.run("nft add table inet mine")?;
        let (mut slowest, mut most) = (Duration::ZERO, 0);
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(25) {
            let asked = Instant::now();
            agent.json(&["status"])?;
            slowest = slowest.max(asked.elapsed());
            most = most.max(children(agent)?);
            sleep(Duration::from_millis(200));
        }
        eprintln!("status took {slowest:?} at most; {most} children at most");
        ensure!(most <= 4, "{most} programs of the agent at once");
        ensure!(slowest < Duration::from_secs(3), "status took {slowest:?}");
        failing(agent, &["has not answered within 5000 ms"])?;
        served(&client)?;
        nft.now("works")?;
        wait_for("a healthy node", Duration::from_secs(60), || healthy(agent))?;
        wait_for("no children", PATIENCE, || {
            let left = children(agent)?;
            ensure!(left == 0, "{left} left");
            Ok(())
        })
    });
}

/// Processes that the agent has started and that are there, dead ones that were not waited for included.
fn children(agent: &Agent) -> Result<usize> {
    let agent = agent.pid().context("no agent")?.to_string();
    let all = fs::read_dir("/proc")?.flatten();
    let stats = all.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    // After the name in parentheses: state, parent.
    let parent = |stat: &String| Some(stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.to_owned());
    Ok(stats.filter(|stat| parent(stat).as_ref() == Some(&agent)).count())
}
