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
use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData};
use dataplane_common::{
    flow::{Flow, FlowKey},
    line::{self, Layout as _, Line, Translated, state},
};
use hiveway_tests::{
    agent::{Agent, AgentOptions},
    lab::{Lab, PATIENCE, scenario, scenario_alone, wait_for},
    peer::LoadLoop,
    table::Table,
};
use serde_json::{Value, json};
use zerocopy::transmute;

use crate::support::{Cluster, web_table};

/// Descriptors that a process has open.
fn open_files(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// What `work` returns, and the largest figure meanwhile.
fn most_during<T>(figure: impl Fn() -> Result<usize> + Sync, work: impl FnOnce() -> Result<T>) -> Result<(T, usize)> {
    let (most, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(figure().unwrap_or(0), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })?;
    let most = most.into_inner();
    ensure!(most > 0, "no figure was read");
    Ok((result, most))
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
        let (served, most) = most_during(|| open_files(pid), || serves_all(&agent, TASKS, started))?;
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

/// Established entries of TCP in lines of `FLOWS_SEGMENTS`, as `FLOWS` would have them.
fn in_lines(agent: &Agent) -> Result<Vec<(FlowKey, Flow)>> {
    let data = MapData::from_pin(agent.bpffs().join("maps/FLOWS_SEGMENTS"))?;
    let segments: ArrayOfMaps<_, Array<_, [Line; line::SLOTS]>> = Map::ArrayOfMaps(data).try_into()?;
    let mut found = Vec::new();
    // The first half is TCP's.
    for segment in (0..line::SEGMENTS).map_while(|nth| segments.get(&nth, 0).ok()) {
        for bucket in segment.iter() {
            let lines = bucket?.into_iter();
            found.extend(lines.filter(|line| line[Translated::STATE] & state::BITS == state::ESTABLISHED).map(read));
        }
    }
    Ok(found)
}

fn read(line: Line) -> (FlowKey, Flow) {
    let [low, high, value @ ..] = line;
    let seen = line[Translated::STATE];
    let [zone, src, dst, [a, b, c, d]]: [[u8; 4]; 4] = transmute!([low, high]);
    let key = FlowKey::new(zone, (src, [a, b]), (dst, [c, d]), (seen & Translated::KEY_BITS) as u8);
    let mut flow: Flow = transmute!(value);
    flow.created = line::before(flow.last_seen, Translated::created(seen));
    (key, flow)
}

/// Copies both entries of the one established connection for `count` other clients, 198.18.0.0 and on. They go to the
/// map of entries that find no line, from where the agent moves them to lines.
fn multiply(agent: &Agent, count: u32) -> Result<()> {
    const CLIENT: [u8; 4] = [192, 168, 77, 100];
    let there = in_lines(agent)?;
    ensure!(there.len() == 2, "{} entries of one connection: {there:?}", there.len());
    let data = MapData::from_pin(agent.bpffs().join("maps/FLOWS"))?;
    let mut flows: HashMap<_, [u8; 20], [u8; 48]> = Map::HashMap(data).try_into()?;
    for n in 0..count {
        let other = Ipv4Addr::from_bits(0xc612_0000 + n).octets();
        for (mut key, mut flow) in there.iter().copied() {
            for address in [&mut key.src, &mut key.dst, &mut flow.src, &mut flow.dst] {
                if *address == CLIENT {
                    *address = other;
                }
            }
            let (key, flow): ([u8; 20], [u8; 48]) = (transmute!(key), transmute!(flow));
            // The map may be full until a sweep has counted what is there, and the lines have grown.
            let started = Instant::now();
            while let Err(error) = flows.insert(key, flow, 0) {
                ensure!(started.elapsed() < 2 * PATIENCE, "entry {n}: {error:?}");
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
    // About one of a hundred stays there, because both buckets of its key are full.
    let few = count as usize / 25;
    let mut before = few;
    wait_for("nearly all to be in lines", 2 * PATIENCE, || {
        thread::sleep(Duration::from_millis(500));
        let left = flows.keys().take(few).count();
        let moving = left != std::mem::replace(&mut before, left);
        ensure!(left < few && !moving, "{left} entries or more are not");
        Ok(())
    })?;
    eprintln!("{before} of {} entries found no line", 2 * count);
    Ok(())
}

/// Memory that is a process's own, in MiB. `VmRSS` has all lines besides, which it has mapped.
fn own_memory(pid: u32) -> Result<usize> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let figure = line.and_then(|text| text.split_whitespace().next()).context("no figure")?;
    Ok(figure.parse::<usize>()? >> 10)
}

/// Processor time of a process so far.
fn processor(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// Looks for `all` connections with and without filters; returns what listing all has taken of the agent's time.
fn lists(agent: &Agent, pid: u32, all: usize) -> Result<Duration> {
    let rows = |filter: &[&str]| -> Result<usize> {
        // To be counted, they need not be read.
        Ok(agent.cli(&[&["flow", "ls", "--json"], filter].concat())?.matches("\"client\":").count())
    };
    // What finds a line meanwhile may be missing.
    wait_for("all to be listed", 2 * PATIENCE, || {
        let seen = rows(&[])?;
        ensure!(seen == all, "{seen} are listed, not {all}");
        Ok(())
    })?;
    let used = processor(pid)?;
    rows(&[])?;
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
    Ok(took)
}

#[test]
fn many_connections_are_swept_and_listed_within_192_mib() {
    const CONNECTIONS: u32 = 180_000;
    // Used at most: what there is without a connection, 64 MiB for the lines, and 40 for the copies, which are in the
    // map of entries that find no line until the lines are there.
    const MIB: u64 = 192;
    // What sweeping and listing take of the agent's own, in MiB, for any number of connections: 4 at most, measured.
    const OWN: usize = 12;
    // Lines for their entries, and few for what has proved nothing: the limit is enough for as many in one of the four
    // halves of tables, but not for four that are full.
    const SIZES: [&str; 4] = ["--max-flows", "2097152", "--max-pending", "1024"];
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
        let (before, all) = (own_memory(pid)?, CONNECTIONS as usize + 1);
        let (took, most) = most_during(
            || own_memory(pid),
            || {
                multiply(&agent, CONNECTIONS)?;
                lists(&agent, pid, all)
            },
        )?;
        let grown = most.saturating_sub(before);
        eprintln!("{all} connections: listed in {took:?} of the agent's time, its own {before} MiB and {grown} more");
        ensure!(took < Duration::from_secs(60), "listing has taken {took:?} of the agent's time");
        ensure!(grown < OWN, "{grown} MiB more for {all} connections");

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
        let refused = agent.restart_with(&["--max-flows", "67108864"]).err().context("it has started")?.to_string();
        ensure!(refused.contains("--max-flows") && refused.contains(&format!("{MIB} MiB")), "{refused}");
        agent.sigkill();
        Ok(())
    });
}
