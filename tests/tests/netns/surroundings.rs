//! What happens around the agent all the time, or hangs, or is taken away from it, keeps it neither from its work nor
//! from saying so.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::{Agent, AgentOptions},
    lab::{Lab, Netns, PATIENCE, Process, scenario, slowness, wait_for},
    peer::{self, LoadLoop},
    table::Table,
};
use serde_json::{Value, json};

use crate::support::{Cluster, METRICS, metric, web_table};

/// A script that runs in a node's namespace until it is dropped.
fn forever(lab: &Lab, node: &Netns, script: &str) -> Result<Process> {
    let mut command = node.command("sh")?;
    command.args(["-c", &format!("while :; do {script}; done 2>/dev/null")]);
    Process::start(command, lab.directory(), &lab.unique("forever"))
}

/// Processor time of a process so far.
fn used(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("{value} is no number"))
}

#[test]
fn links_and_addresses_that_come_and_go_all_the_time_keep_nothing_from_its_time() {
    scenario(|lab| {
        let mut cluster = Cluster::start(lab, 2, web_table(&["n1", "n2"], &[("tcp", 8080, 80)], "n1"))?;
        cluster.serve(&["web.1", "web.2"])?;
        let (node, agent) = (cluster.nodes[0].clone(), cluster.agents[0].clone());
        let pid = agent.pid().context("no agent")?;
        let churn = forever(
            lab,
            &node,
            "ip link add churn0 type bridge; ip addr add 10.99.0.1/24 dev churn0; ip link set churn0 up; \
             ip addr add 10.99.1.1/24 dev churn0; ip link del churn0",
        )?;
        std::thread::sleep(Duration::from_secs(1));
        let (cpu, runs) = (used(pid)?, number(&agent.json(&["status"])?["reconcile"]["runs"])?);
        let started = Instant::now();
        // Only a look at everything repairs this.
        node.run("sysctl -qw net.ipv4.ip_forward=0")?;
        let mut oldest = 0;
        while started.elapsed() < Duration::from_secs(15) {
            let status = agent.json(&["status"])?;
            oldest = oldest.max(status["dataplane"]["counted_seconds_ago"].as_u64().unwrap_or(0));
            std::thread::sleep(Duration::from_millis(300));
        }
        ensure!(node.run("sysctl -n net.ipv4.ip_forward")?.trim() == "1", "nothing was looked at for 15 s");
        ensure!(oldest <= 12, "connections were not swept for {oldest} s");
        let passed = started.elapsed();
        let (cpu, runs) =
            (used(pid)?.saturating_sub(cpu), number(&agent.json(&["status"])?["reconcile"]["runs"])? - runs);
        let (share, rate) = (cpu.as_secs_f64() / passed.as_secs_f64(), runs as f64 / passed.as_secs_f64());
        eprintln!("churn: {rate:.1} rounds per second, {:.0} % of a core, oldest count {oldest} s", 100.0 * share);
        ensure!(rate >= 0.2, "{rate:.1} rounds per second: nothing comes and goes");
        ensure!(rate <= 14.0 && share < 0.6, "{rate:.1} rounds per second take {:.0} % of a core", 100.0 * share);

        // Meanwhile a drain ends in its time: nothing of the task is left, and the other one serves.
        cluster.change(|table| table.remove("tasks", "web.2"))?;
        wait_for("the task that is gone to be let go", Duration::from_secs(20), || {
            let services = agent.json(&["service", "ls"])?.to_string();
            ensure!(!services.contains("web.2"), "{services}");
            Ok(())
        })?;
        drop(churn);
        Ok(())
    });
}

#[test]
fn ports_of_a_foreign_bridge_are_no_concern() {
    scenario(|lab| {
        let cluster = Cluster::start(lab, 1, web_table(&["n1"], &[("tcp", 8080, 80)], "n1"))?;
        let (node, agent) = (&cluster.nodes[0], &cluster.agents[0]);
        node.run("ip link add foreign0 type bridge")?;
        node.run("ip link add f0 type veth peer name f1")?;
        node.run("ip link set f0 master foreign0 up")?;
        // The bridge's own MTU, which is the smallest of its ports', is to stay.
        node.run("ip link add f2 type veth peer name f3")?;
        node.run("ip link set f2 master foreign0 mtu 1300 up")?;
        // The last round has seen the port where it is.
        std::thread::sleep(Duration::from_secs(6));
        let runs = || number(&agent.json(&["status"])?["reconcile"]["runs"]);
        let (before, started) = (runs()?, Instant::now());
        let flapping = forever(lab, node, "ip link set f0 mtu 1400; ip link set f0 mtu 1500; sleep 0.05")?;
        std::thread::sleep(Duration::from_secs(6));
        drop(flapping);
        let (rounds, passed) = (runs()? - before, started.elapsed());
        eprintln!("foreign port: {rounds} rounds in {passed:?}");
        ensure!(rounds <= 4, "{rounds} rounds in {passed:?} because of a foreign bridge's port");
        Ok(())
    });
}

#[test]
fn rules_that_change_all_the_time_keep_no_container_and_no_pin_waiting() {
    scenario(|lab| {
        const LATE: [&str; 4] = ["late.1", "late.2", "late.3", "late.4"];
        let node = lab.node("n1", 11)?;
        // A swarm that is large enough for its rounds to be spared.
        let mut table = (0..20).fold(Table::with_nodes(2), |table, n| {
            let (network, subnet) = (format!("net{n}"), format!("10.1.{n}"));
            let table = table.network(&network, &subnet, 5000 + n).service(&network);
            let table = table.vip(&network, &format!("{subnet}.2"));
            (10..110).fold(table, |table, host| {
                table.task(&format!("{network}.{host}"), &network, "n2", &[(&network, &format!("{subnet}.{host}"))])
            })
        });
        table = table.network("app", "10.0.1", 4097).service("late");
        for (host, task) in (3..).zip(LATE) {
            table = table.task(task, "late", "n1", &[("app", &format!("10.0.1.{host}"))]).set(
                "tasks",
                "netns",
                json!(format!("/run/netns/{}-{task}", lab.prefix())),
            );
        }
        let file = lab.directory().join("table.json");
        table.write(&file)?;
        let options = AgentOptions {
            node: "n1".to_owned(),
            table: format!("file:{}", file.display()),
            netns_dir: None,
            extra: Vec::new(),
        };
        let agent = Agent::start(lab, &node, options)?;
        let churn = forever(lab, &node, "nft add table ip churn; nft delete table ip churn; sleep 0.05")?;
        let mut longest = Duration::ZERO;
        for (host, task) in (3..).zip(LATE) {
            std::thread::sleep(Duration::from_millis(1700));
            let space = lab.namespace(task)?;
            let started = Instant::now();
            wait_for(&format!("{task} to be connected"), PATIENCE, || {
                let seen = space.run("ip -4 -br addr")?;
                ensure!(seen.contains(&format!("10.0.1.{host}/")), "it has {seen}");
                Ok(())
            })?;
            longest = longest.max(started.elapsed());
        }
        let status = agent.json(&["status"])?;
        eprintln!("late namespaces are connected in {longest:?}; a round takes {}", status["reconcile"]);
        ensure!(longest < Duration::from_secs(2) * slowness(), "a late namespace waited {longest:?}");
        fs::remove_dir_all(agent.bpffs())?;
        let started = Instant::now();
        wait_for("the pins to be there again", PATIENCE, || {
            ensure!(agent.bpffs().join("maps/FLOWS").exists(), "no pin");
            Ok(())
        })?;
        eprintln!("pins are there again after {:?}", started.elapsed());
        ensure!(
            started.elapsed() < Duration::from_secs(2) * slowness(),
            "pins were missing for {:?}",
            started.elapsed()
        );
        drop(churn);
        Ok(())
    });
}

/// Stops one thread of a process, as if a system call did not come back.
struct Frozen(libc::pid_t);

impl Frozen {
    /// The thread must be waiting, or it may hold what the others need.
    fn new(pid: u32, thread: u32) -> Result<Self> {
        let state = |wanted: &str| -> Result<bool> {
            let stat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat"))?;
            Ok(stat.rsplit(')').next().unwrap_or_default().trim().starts_with(wanted))
        };
        let thread_id = thread.cast_signed();
        wait_for("the thread to wait", PATIENCE, || {
            ensure!(state("S")?, "it runs");
            Ok(())
        })?;
        let trace = |request| {
            // SAFETY: attaches to a thread of a process of this test's own; no memory of ours is touched.
            let done = unsafe { libc::ptrace(request, thread_id, 0, 0) };
            ensure!(done == 0, "ptrace: {}", std::io::Error::last_os_error());
            Ok(())
        };
        trace(libc::PTRACE_SEIZE)?;
        trace(libc::PTRACE_INTERRUPT)?;
        wait_for("the thread to stop", PATIENCE, || {
            ensure!(state("t")?, "it runs");
            Ok(())
        })?;
        Ok(Self(thread_id))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }
}

/// The thread of that name.
fn thread(pid: u32, name: &str) -> Result<u32> {
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
            return path.file_name().and_then(|id| id.to_str()?.parse().ok()).context("a thread without a number");
        }
    }
    anyhow::bail!("no thread {name}")
}

/// Asks as people do, and insists on an answer within a second; starting the program is not the agent's.
fn asked(agent: &Agent, what: &[&str]) -> Result<Value> {
    let started = Instant::now();
    let answer = agent.json(what)?;
    let took = started.elapsed();
    ensure!(took < Duration::from_millis(1500), "{what:?} took {took:?}");
    Ok(answer)
}

#[test]
fn a_part_that_hangs_is_named_and_everything_else_answers() {
    scenario(|lab| {
        let table = web_table(&["n1"], &[("tcp", 8080, 80)], "n1");
        let mut cluster = Cluster::start_with(lab, 3, table, &METRICS)?;
        cluster.serve(&["web.1"])?;
        let (node, agent) = (&cluster.nodes[0], cluster.agents[0].clone());
        let notified = UnixDatagram::bind(lab.directory().join("notify"))?;
        notified.set_nonblocking(true)?;
        agent.terminate()?;
        agent.set_variable("NOTIFY_SOCKET", &lab.directory().join("notify").display().to_string());
        agent.set_variable("WATCHDOG_USEC", "4000000");
        agent.restart()?;
        let fed = || {
            let (mut fed, mut buffer) = (0, [0; 256]);
            while let Ok(length) = notified.recv(&mut buffer) {
                fed += usize::from(buffer[..length].starts_with(b"WATCHDOG=1"));
            }
            fed
        };
        wait_for("systemd's watchdog to be fed", PATIENCE, || {
            ensure!(fed() > 0, "no food");
            Ok(())
        })?;
        let pid = agent.pid().context("no agent")?;
        // The loop runs on the main thread.
        let frozen = Frozen::new(pid, pid)?;
        let started = Instant::now();
        wait_for("the hanging loop to be named", Duration::from_secs(60), || {
            let status = asked(&agent, &["status"])?;
            let named = status["failing"].as_array().into_iter().flatten().any(|item| item["item"] == "reconciliation");
            ensure!(named && status["healthy"] == false, "{status:#}");
            Ok(())
        })?;
        eprintln!("a hanging loop is named after {:?}", started.elapsed());
        for what in [&["flow", "ls"][..], &["drops"], &["service", "ls"], &["endpoint", "ls"]] {
            asked(&agent, what)?;
        }
        ensure!(metric(node, "hiveway_healthy")? == Some(0.0), "the metrics say something else");
        agent.wait_log("reconciliation: not heard of")?;
        // What was sent before has waited to be read.
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(200));
            fed();
        }
        std::thread::sleep(Duration::from_secs(4));
        ensure!(fed() == 0, "systemd's watchdog is fed while the loop hangs");
        drop(frozen);
        wait_for("systemd's watchdog to be fed again", PATIENCE, || {
            ensure!(fed() > 0, "no food");
            Ok(())
        })?;
        wait_for("the agent to be healthy again", PATIENCE, || {
            let status = agent.json(&["status"])?;
            ensure!(status["healthy"] == true, "{status:#}");
            Ok(())
        })?;
        // A thread beside it hangs: what it brings is the last answer.
        let frozen = Frozen::new(pid, thread(pid, "sweep")?)?;
        for what in [&["status"][..], &["flow", "ls"], &["drops"]] {
            asked(&agent, what)?;
        }
        drop(frozen);
        Ok(())
    });
}

/// Processes that have this word on their command line.
fn running(word: &str) -> Result<usize> {
    let all = fs::read_dir("/proc")?.flatten().filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    Ok(all.filter(|line| line.split(|byte| *byte == 0).any(|found| found == word.as_bytes())).count())
}

#[test]
fn programs_that_hang_end_with_the_agent() {
    use std::os::unix::fs::PermissionsExt as _;
    scenario(|lab| {
        let cluster = Cluster::start(lab, 1, web_table(&["n1"], &[("tcp", 8080, 80)], "n1"))?;
        let (node, agent) = (&cluster.nodes[0], &cluster.agents[0]);
        agent.terminate()?;
        // A number that no other sleeps for.
        let (programs, hangs) = (lab.directory().join("programs"), lab.directory().join("hangs"));
        let number = format!("{}", 1_000_000 + std::process::id());
        fs::create_dir(&programs)?;
        let nft = node.shell("command -v nft")?;
        let script = format!(
            "#!/bin/sh\n[ -e {} ] && {{ sleep {number} & wait; }}\nexec {} \"$@\"\n",
            hangs.display(),
            nft.trim()
        );
        fs::write(programs.join("nft"), script)?;
        fs::set_permissions(programs.join("nft"), fs::Permissions::from_mode(0o755))?;
        agent.programs_from(&programs);
        agent.restart()?;
        fs::write(&hangs, "")?;
        // The host's rules are read on a thread of its own.
        node.run("iptables-nft -t raw -A PREROUTING -s 203.0.113.7 -j DROP")?;
        wait_for("a program to hang", PATIENCE, || {
            ensure!(running(&number)? > 0, "none hangs");
            Ok(())
        })?;
        // Some are killed in their time; others hang then.
        agent.terminate()?;
        wait_for("the programs to be gone", Duration::from_secs(2), || {
            let left = running(&number)?;
            ensure!(left == 0, "{left} are left");
            Ok(())
        })
    });
}

#[test]
fn pins_that_are_taken_away_are_made_anew_under_traffic() {
    scenario(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 2, web_table(&["n2"], &[("tcp", 8080, 80)], "n1"))?;
        cluster.serve(&["web.1"])?;
        let kept = LoadLoop::tcp(lab, &client, "192.168.77.11:8080", 1, true)?;
        kept.wait_answers(20)?;
        let agent = &cluster.agents[0];
        fs::remove_dir_all(agent.bpffs())?;
        wait_for("the pins to be there again", PATIENCE, || {
            ensure!(agent.bpffs().join("maps/FLOWS").exists(), "no pin");
            let links = fs::read_dir(agent.bpffs().join("links"))?.count();
            ensure!(links > 0, "no links");
            Ok(())
        })?;
        kept.wait_answers(50)?;
        let tally = kept.stop()?;
        ensure!(tally.failed == 0, "connections ended: {tally:?}");
        agent.wait_log("were gone")?;
        let tally = peer::tcp_load(&client, "192.168.77.11:8080", 20, 2)?;
        ensure!(tally.ok == 20, "{tally:?}");
        // The next agent finds everything.
        agent.terminate()?;
        agent.restart()?;
        let tally = peer::tcp_load(&client, "192.168.77.11:8080", 20, 2)?;
        ensure!(tally.ok == 20, "{tally:?}");
        Ok(())
    });
}

#[test]
fn a_task_takes_one_descriptor_of_a_round() {
    scenario(|lab| {
        const TASKS: usize = 60;
        let mut cluster = Cluster::start(lab, 1, web_table(&["n1"], &[("tcp", 8080, 80)], "n1"))?;
        let agent = cluster.agents[0].clone();
        let pid = agent.pid().context("no agent")?;
        let open = || -> Result<usize> { Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count()) };
        let before = (0..20).map(|_| open()).collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0);
        // A third more than one per task, and what programs that it runs take for a moment.
        let room = before + TASKS + 40;
        let limited = std::process::Command::new("prlimit")
            .args(["--pid", &pid.to_string(), &format!("--nofile={room}:{room}")])
            .status()?;
        ensure!(limited.success(), "prlimit ended with {limited}");
        cluster.change(|table| {
            *table = (2..=TASKS).fold(table.clone(), |table, n| {
                let (ingress, app) = (format!("10.0.0.{}", 100 + n), format!("10.0.1.{}", 100 + n));
                table.task(&format!("web.{n}"), "web", "n1", &[("ingress", &ingress), ("app", &app)])
            });
        })?;
        let mut most = 0;
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(12) {
            most = most.max(open()?);
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = agent.json(&["status"])?;
        eprintln!("{TASKS} tasks: {before} descriptors before, {most} at most, limit {room}");
        ensure!(status["failing"].as_array().is_some_and(Vec::is_empty), "{:#}", status["failing"]);
        Ok(())
    });
}

#[test]
fn connections_are_filtered_where_they_are_read() {
    scenario(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 2, web_table(&["n2"], &[("tcp", 8080, 80), ("udp", 5353, 53)], "n1"))?;
        cluster.serve(&["web.1"])?;
        let kept = LoadLoop::tcp(lab, &client, "192.168.77.12:8080", 1, true)?;
        kept.wait_answers(5)?;
        peer::udp_load(&client, "192.168.77.12:5353", 4)?;
        peer::udp_load(cluster.task("user.1"), "10.0.1.2:53", 3)?;
        let agent = &cluster.agents[1];
        let rows = |filter: &[&str]| -> Result<usize> {
            let found = agent.json(&[&["flow", "ls"], filter].concat())?;
            found.as_array().map(Vec::len).with_context(|| format!("no list: {found}"))
        };
        let all = rows(&[])?;
        ensure!(all >= 5, "{all} connections");
        ensure!(rows(&["--service", "web"])? == all && rows(&["--service", "user"])? == 0, "by service");
        let why = rows(&["--service", "wbe"]).expect_err("there is no such service").to_string();
        ensure!(why.contains("there is no service \"wbe\"") && why.contains("did you mean \"web\"?"), "{why}");
        ensure!(rows(&["--client", "192.168.77.100"])? == all && rows(&["--client", "10.0.0.0/8"])? == 0, "by client");
        ensure!(rows(&["--state", "established"])? == 1, "by state");
        ensure!(rows(&["--limit", "2"])? == 2, "by number");
        let text = agent.cli(&["flow", "ls", "--state", "established"])?;
        ensure!(text.lines().count() == 2 && text.contains("192.168.77.100"), "{text}");
        drop(kept);
        Ok(())
    });
}
