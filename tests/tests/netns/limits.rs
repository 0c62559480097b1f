//! An agent that may not have much: descriptors as a service manager's default has them, and a memory limit.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use dataplane_common::flow::{Flow, FlowKey};
use hiveway_tests::{
    agent::{Agent, AgentOptions},
    lab::{Lab, PATIENCE, scenario, scenario_alone, wait_for},
    peer::LoadLoop,
    table::Table,
};
use serde_json::{Value, json};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::support::{Cluster, web_table};

/// Descriptors that a process has open.
fn open_files(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[test]
fn three_hundred_tasks_fit_the_descriptors_of_a_default_limit() {
    scenario(|lab| {
        const TASKS: usize = 300;
        const LIMIT: usize = 1024;
        let node = lab.node("n1", 11)?;
        let mut table = Table::with_nodes(2).ingress().network("app", "10.0.16", 4097).service("web");
        table = table.vip("app", "10.0.16.2").vip("ingress", "10.0.0.5").publish("tcp", 8080, 80);
        let subnet = json!([{"subnet": "10.0.16.0/20", "gateway": "10.0.16.1", "vni": 4097}]);
        table = table.set("networks", "subnets", subnet);
        let addresses: Vec<_> = (0..TASKS).map(|n| format!("10.0.{}.{}", 17 + n / 200, 1 + n % 200)).collect();
        for (n, address) in addresses.iter().enumerate() {
            let space = lab.namespace(&format!("t{n}"))?;
            table = table.task(&format!("web.{n}"), "web", "n1", &[("app", address)]);
            table = table.set("tasks", "netns", json!(space.path()));
        }
        let file = lab.directory().join("table.json");
        table.write(&file)?;
        let options = AgentOptions {
            node: "n1".to_owned(),
            table: format!("file:{}", file.display()),
            netns_dir: None,
            extra: Vec::new(),
        };
        let agent = Agent::prepare(lab, &node, options)?;
        agent.wrapped_by(&["prlimit", &format!("--nofile={LIMIT}:{LIMIT}")]);
        let started = Instant::now();
        agent.launch()?;
        let pid = agent.pid().context("no agent")?;
        let (most, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        let served = thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    most.fetch_max(open_files(pid).unwrap_or(0), Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(5));
                }
            });
            let served = serves_all(&agent, TASKS, started);
            done.store(true, Ordering::Relaxed);
            served
        })?;
        let most = most.into_inner();
        let idle = open_files(pid)?;
        eprintln!("{TASKS} tasks are served after {served:?}: {most} descriptors at most, {idle} at rest");
        ensure!(most < LIMIT / 2 + LIMIT / 8, "{most} descriptors of {LIMIT}");
        ensure!(idle < LIMIT / 4, "{idle} descriptors at rest for {TASKS} tasks");
        let log = agent.log();
        ensure!(!log.contains("Too many open files") && !log.contains("os error 24"), "{log}");
        Ok(())
    });
}

/// Waits until all tasks are served, and for two more rounds; returns how long the former took.
fn serves_all(agent: &Agent, tasks: usize, started: Instant) -> Result<Duration> {
    let runs = || number(&agent.json(&["status"])?["reconcile"]["runs"]);
    // Many interfaces are made, and each question costs time that the agent could have.
    let waits = |what: &str, so: &dyn Fn() -> Result<()>| {
        wait_for(what, 4 * PATIENCE, || {
            thread::sleep(Duration::from_millis(300));
            so()
        })
    };
    waits("all tasks to be served", &|| all_served(agent, tasks))?;
    let served = started.elapsed();
    let enough = runs()? + 2;
    waits("two more rounds", &|| {
        ensure!(runs()? >= enough, "no round");
        all_served(agent, tasks)
    })?;
    Ok(served)
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("{value} is no number"))
}

/// Whether every task has its interfaces, and nothing fails or waits.
fn all_served(agent: &Agent, tasks: usize) -> Result<()> {
    let status = agent.json(&["status"])?;
    let none = |list: &str| status[list].as_array().is_some_and(Vec::is_empty);
    ensure!(status["ready"] == true && none("failing") && none("waiting"), "{status:#}");
    let served = agent.json(&["service", "ls"])?[0]["backends"].as_array().map_or(0, Vec::len);
    ensure!(served == tasks && status["local_tasks"] == tasks, "{served} of {tasks}");
    Ok(())
}

/// A control group with a memory limit, removed when it is dropped.
struct MemoryGroup {
    path: PathBuf,
    /// The file that says the limit.
    limit: PathBuf,
}

impl MemoryGroup {
    fn new(lab: &Lab, mib: u64) -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let (root, file) = if root.join("cgroup.controllers").exists() {
            fs::write(root.join("cgroup.subtree_control"), "+memory").context("no memory controller")?;
            (root.to_owned(), "memory.max")
        } else {
            (root.join("memory"), "memory.limit_in_bytes")
        };
        let path = root.join(lab.prefix());
        fs::create_dir(&path).with_context(|| format!("{}: no control groups", path.display()))?;
        let group = Self { limit: path.join(file), path };
        fs::write(&group.limit, (mib << 20).to_string())?;
        Ok(group)
    }

    /// What starts a program in it.
    fn wrapper(&self) -> [String; 4] {
        let script = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", self.path.display());
        ["sh".to_owned(), "-ec".to_owned(), script, "sh".to_owned()]
    }

    /// The most that was in use, or what is where the kernel does not keep that, in MiB.
    fn used(&self) -> Result<u64> {
        let files = ["memory.max_usage_in_bytes", "memory.peak", "memory.current"].map(|name| self.path.join(name));
        let text = files.iter().find_map(|file| fs::read_to_string(file).ok()).context("no usage")?;
        Ok(text.trim().parse::<u64>()? >> 20)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A group that has processes cannot be removed; after a failure an agent lives on to be asked why.
        let above = self.path.parent().map(|above| above.join("cgroup.procs"));
        let left = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        for (pid, above) in left.lines().zip(above.iter().cycle()) {
            let _ = fs::write(above, pid);
        }
        let _ = fs::remove_dir(&self.path);
    }
}

/// Copies both entries of the one established connection for `count` other clients, 198.18.0.0 and on.
fn multiply(agent: &Agent, count: u32) -> Result<()> {
    const CLIENT: [u8; 4] = [192, 168, 77, 100];
    let data = MapData::from_pin(agent.bpffs().join("maps/FLOWS"))?;
    let mut flows: HashMap<_, [u8; 20], [u8; 48]> = Map::HashMap(data).try_into()?;
    let there: Vec<_> = flows.iter().collect::<Result<_, _>>()?;
    ensure!(there.len() == 2, "{} entries of one connection", there.len());
    for n in 0..count {
        let other = Ipv4Addr::from_bits(0xc612_0000 + n).octets();
        for (key, flow) in &there {
            let mut key = FlowKey::read_from_bytes(key).ok().context("no key")?;
            let mut flow = Flow::read_from_bytes(flow).ok().context("no entry")?;
            for address in [&mut key.src, &mut key.dst, &mut flow.src, &mut flow.dst] {
                if *address == CLIENT {
                    *address = other;
                }
            }
            let (key, flow) = (<[u8; 20]>::try_from(key.as_bytes())?, <[u8; 48]>::try_from(flow.as_bytes())?);
            // The kernel keeps some entries ready, and refuses one while it fetches more.
            let started = Instant::now();
            while let Err(error) = flows.insert(key, flow, 0) {
                ensure!(started.elapsed() < Duration::from_secs(5), "entry {n}: {error:?}");
                thread::yield_now();
            }
        }
    }
    Ok(())
}

/// A figure of `/proc/PID/status`, in MiB.
fn memory(pid: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let figure = line.and_then(|text| text.split_whitespace().next()).context("no figure")?;
    Ok(figure.parse::<u64>()? >> 10)
}

/// Processor time of a process so far.
fn processor(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

#[test]
fn two_hundred_thousand_connections_are_swept_and_listed_within_160_mib() {
    const CONNECTIONS: u32 = 200_000;
    const MIB: u64 = 160;
    // Room for their entries, and little for what has proved nothing: the limit is enough for as many in one of the two
    // tables, but not for two that are full.
    const SIZES: [&str; 4] = ["--max-flows", "524288", "--max-pending", "1024"];
    scenario_alone(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 1, web_table(&["n1"], &[("tcp", 8080, 80)], "n1"))?;
        cluster.serve(&["web.1"])?;
        let agent = cluster.agents[0].clone();
        let group = MemoryGroup::new(lab, MIB)?;
        agent.terminate()?;
        agent.teardown()?;
        agent.wrapped_by(&group.wrapper().each_ref().map(String::as_str));
        agent.restart_with(&SIZES)?;
        cluster.settle()?;
        let pid = agent.pid().context("no agent")?;
        let said = agent.cli(&["status"])?;
        ensure!(said.contains("lower --max-flows to") && said.contains(&group.limit.display().to_string()), "{said}");
        let kept = LoadLoop::tcp(lab, &client, "192.168.77.11:8080", 1, true)?;
        kept.wait_answers(5)?;
        multiply(&agent, CONNECTIONS)?;
        let all = CONNECTIONS as usize + 1;
        let (before, used) = (memory(pid, "VmRSS")?, processor(pid)?);
        let rows = |filter: &[&str]| -> Result<usize> {
            // To be counted, they need not be read.
            Ok(agent.cli(&[&["flow", "ls", "--json"], filter].concat())?.matches("\"client\":").count())
        };
        ensure!(rows(&[])? == all, "not all are listed");
        let took = processor(pid)?.saturating_sub(used);
        for (filter, expected) in [
            (&["--service", "web", "--limit", "900"][..], 900),
            (&["--service", "user"], 0),
            (&["--client", "198.18.7.0/24"], 256),
            (&["--client", "192.168.77.100", "--state", "established"], 1),
            (&["--state", "closing"], 0),
        ] {
            let seen = rows(filter)?;
            ensure!(seen == expected, "{seen} of {filter:?}, not {expected}");
        }
        let grown = memory(pid, "VmHWM")?.saturating_sub(before);
        eprintln!("{all} connections: listed in {took:?} of the agent's time, {before} MiB and {grown} more");
        ensure!(took < Duration::from_secs(60), "listing has taken {took:?} of the agent's time");
        ensure!(grown < 24, "{grown} MiB more for {all} connections");

        // The next agent takes over as many, and sweeps them first. Service managers and containers make the control
        // group anew.
        kept.wait_answers(5)?;
        agent.terminate()?;
        let used = group.used()?;
        drop(group);
        let group = MemoryGroup::new(lab, MIB)?;
        agent.restart()?;
        wait_for("the next agent's sweep to count all", PATIENCE, || {
            let seen = agent.json(&["status"])?["dataplane"]["flows"].as_u64().context("nothing was counted")?;
            ensure!(seen == 2 * all as u64, "{seen} entries");
            Ok(())
        })?;
        kept.wait_answers(5)?;
        ensure!(kept.stop()?.failed == 0, "the connection ended");
        eprintln!("{used} MiB of {MIB} for the first agent at most, {} for the second", group.used()?);

        // More than there can be is refused, before the kernel would end it.
        agent.terminate()?;
        let refused = agent.restart_with(&["--max-flows", "16777216"]).err().context("it has started")?.to_string();
        ensure!(refused.contains("--max-flows") && refused.contains(&format!("{MIB} MiB")), "{refused}");
        agent.sigkill();
        Ok(())
    });
}
