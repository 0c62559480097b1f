//! Drain, death, and coming back: what established and new flows of every kind meet with.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use hiveway_tests::{
    lab::{Netns, PATIENCE, scenario, slowness, wait_for, with_and_without_offloads},
    load::Tally,
    peer::{self, LoadLoop},
    table::Table,
};

use crate::support::{Cluster, assert_even, assert_refused, web_table};

const WEB: [&str; 2] = ["web.1", "web.2"];

/// web.1 on n1 and web.2 on n2, user.1 on n1; published as 8080/tcp and 5353/udp.
fn web() -> Table {
    web_table(&["n1", "n2"], &[("tcp", 8080, 80), ("udp", 5353, 53)], "n1")
}

/// Who answers four new flows of each kind from a container and from outside. Not more: a kernel sends one client only
/// six ICMP errors at once (icmp_ratelimit).
fn new_flows(cluster: &Cluster<'_>, client: &Netns) -> Result<Vec<Tally>> {
    let user = cluster.task("user.1");
    Ok(vec![
        peer::tcp_load(user, "10.0.1.2:80", 4, 1)?,
        peer::udp_load(user, "10.0.1.2:53", 4)?,
        peer::tcp_load(client, "192.168.77.13:8080", 4, 1)?,
        peer::udp_load(client, "192.168.77.12:5353", 4)?,
    ])
}

#[test]
fn a_draining_task_keeps_its_flows_and_gets_no_new_ones() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        let user = cluster.task("user.1");
        // Two flows of each kind: one on either task.
        let mut kept = Vec::new();
        for _ in WEB {
            kept.push(("VIP, UDP", LoadLoop::udp(lab, user, "10.0.1.2:53")?));
            kept.push(("mesh, UDP", LoadLoop::udp(lab, &client, "192.168.77.13:5353")?));
        }
        kept.push(("VIP, TCP", LoadLoop::tcp(lab, user, "10.0.1.2:80", 2, true)?));
        kept.push(("mesh, TCP", LoadLoop::tcp(lab, &client, "192.168.77.13:8080", 2, true)?));
        cluster.change(|table| table.set_states("web.2", "shutdown", "running"))?;
        for tally in new_flows(&cluster, &client)? {
            assert_even(&tally, &["web.1"], 4).context("new flows while web.2 drains")?;
        }
        let mut drained = 0;
        for (what, running) in kept {
            running.wait_answers(60).context(what)?;
            let tally = running.stop()?;
            ensure!(tally.failed == 0, "{what}: {tally:?}");
            drained += u64::from(tally.names.contains_key("web.2"));
            ensure!(what.contains("TCP") || tally.names.len() == 1, "{what}: moved between tasks: {tally:?}");
        }
        ensure!(drained == 4, "{drained} of four kinds of flows were on web.2 until the end");
        Ok(())
    });
}

/// A client's flow, and where it goes.
enum Flow {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Flow {
    /// One whose backend is web.2.
    fn to_web2(client: &Netns, protocol: &str, target: &str) -> Result<Self> {
        let target: SocketAddr = target.parse()?;
        // Backends take turns.
        for _ in 0..8 {
            let mut flow = client.enter(|| -> Result<Self> {
                if protocol == "tcp" {
                    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
                    stream.set_nodelay(true)?;
                    return Ok(Self::Tcp(stream));
                }
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect(target)?;
                Ok(Self::Udp(socket))
            })??;
            flow.patience(PATIENCE)?;
            if flow.ask().with_context(|| format!("{protocol} {target}"))? == "web.2" {
                return Ok(flow);
            }
        }
        bail!("no flow to {target} has reached web.2")
    }

    fn patience(&self, time: Duration) -> Result<()> {
        match self {
            Self::Udp(socket) => socket.set_read_timeout(Some(time))?,
            Self::Tcp(stream) => stream.set_read_timeout(Some(time))?,
        }
        Ok(())
    }

    /// Whose answer comes.
    fn ask(&mut self) -> std::io::Result<String> {
        let mut answer = [0; 512];
        let length = match self {
            Self::Udp(socket) => {
                socket.send(b"who")?;
                socket.recv(&mut answer)?
            }
            Self::Tcp(stream) => {
                stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
                stream.read(&mut answer)?
            }
        };
        let text = String::from_utf8_lossy(&answer[..length]).into_owned();
        Ok(WEB.iter().find(|name| text.contains(*name)).map_or_else(|| text.clone(), |name| (*name).to_owned()))
    }

    /// Asks until UDP is answered by web.1, or TCP is reset: how long after `start` that is.
    fn moves_on(&mut self, start: Instant) -> Result<Duration> {
        self.patience(Duration::from_millis(20))?;
        let tcp = matches!(self, Self::Tcp(_));
        while start.elapsed() < PATIENCE {
            match self.ask() {
                Ok(name) if !tcp && name == "web.1" => return Ok(start.elapsed()),
                Ok(name) => bail!("an answer of {name:?}"),
                Err(error) if tcp && error.kind() == ErrorKind::ConnectionReset => return Ok(start.elapsed()),
                Err(error) if tcp && !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    bail!(error)
                }
                // No answer; for UDP, an ICMP error as well.
                Err(_) => {}
            }
        }
        bail!("it has not moved on")
    }
}

/// Its endpoint stays for packets that are on their way, which must not keep its clients waiting; those whose flow is
/// younger than that may wait.
#[test]
fn clients_of_a_dead_task_that_leaves_the_table_at_once_move_on_at_once() {
    /// A table is in force some 50 ms after it was written, on a machine that has the time (clients move on within
    /// 100); the drain grace is two seconds.
    const LIMIT: Duration = Duration::from_millis(1000);
    const DRAIN_GRACE: Duration = Duration::from_millis(2100);
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let table = web().task("user.2", "user", "n2", &[("app", "10.0.1.10")]);
        let mut cluster = Cluster::start(lab, 3, table)?;
        cluster.serve(&WEB)?;
        let mut flows = Vec::new();
        for (what, from, host, ports) in [
            ("through another node", &client, "192.168.77.13", (5353, 8080)),
            ("through the task's node", &client, "192.168.77.12", (5353, 8080)),
            ("through a VIP", cluster.task("user.1"), "10.0.1.2", (53, 80)),
            ("through a VIP on the task's node", cluster.task("user.2"), "10.0.1.2", (53, 80)),
        ] {
            for (protocol, port) in [("udp", ports.0), ("tcp", ports.1)] {
                let flow = Flow::to_web2(from, protocol, &format!("{host}:{port}"))?;
                flows.push((format!("{protocol} {what}"), flow));
            }
        }
        thread::sleep(DRAIN_GRACE);
        cluster.crash_task("web.2")?;
        cluster.table.remove("tasks", "web.2");
        cluster.table.write(&cluster.file)?;
        let start = Instant::now();
        let took = thread::scope(|scope| {
            let ask = |(what, flow): (String, Flow)| {
                let mut flow = flow;
                scope.spawn(move || Ok((flow.moves_on(start).with_context(|| what.clone())?, what)))
            };
            let waiting: Vec<_> = flows.into_iter().map(ask).collect();
            let ended = waiting
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            ended.collect::<Result<Vec<_>>>()
        })?;
        eprintln!("clients of a departed task move on after {took:?}");
        ensure!(took.iter().all(|(took, _)| *took < LIMIT * slowness()), "{took:?}");
        cluster.settle()
    });
}

#[test]
fn a_service_scaled_to_zero_refuses_everything_at_once_and_comes_back() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        let kept = [
            LoadLoop::tcp(lab, cluster.task("user.1"), "10.0.1.2:80", 2, true)?,
            LoadLoop::tcp(lab, &client, "192.168.77.13:8080", 2, true)?,
        ];
        for task in WEB {
            cluster.crash_task(task)?;
        }
        cluster.change(|table| WEB.iter().for_each(|task| table.set_states(task, "shutdown", "failed")))?;
        for tally in new_flows(&cluster, &client)? {
            assert_refused(&tally, 4)?;
        }
        for running in kept {
            // Both connections are reset, and the new ones that the loop then tries are refused.
            running.wait_failures(4)?;
            let tally = running.stop()?;
            let silent = tally.errors.keys().any(|why| why.contains("no answer"));
            ensure!(!silent && tally.errors.keys().any(|why| why.contains("reset")), "{tally:?}");
        }
        // Other tasks, as an engine would start them.
        cluster.change(|table| {
            WEB.iter().for_each(|task| table.remove("tasks", task));
            *table = table.clone().task("web.3", "web", "n2", &[("ingress", "10.0.0.8"), ("app", "10.0.1.5")]).task(
                "web.4",
                "web",
                "n3",
                &[("ingress", "10.0.0.9"), ("app", "10.0.1.6")],
            );
        })?;
        cluster.serve(&["web.3", "web.4"])?;
        for tally in new_flows(&cluster, &client)? {
            assert_even(&tally, &["web.3", "web.4"], 2)?;
        }
        Ok(())
    });
}

#[test]
fn a_task_with_the_addresses_of_another_one_never_gets_its_flows() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        let user = cluster.task("user.1");
        let kept = [
            (LoadLoop::tcp(lab, user, "10.0.1.2:80", 2, true)?, true),
            (LoadLoop::tcp(lab, &client, "192.168.77.13:8080", 2, true)?, true),
            (LoadLoop::udp(lab, user, "10.0.1.2:53")?, false),
            (LoadLoop::udp(lab, user, "10.0.1.2:53")?, false),
            (LoadLoop::udp(lab, &client, "192.168.77.13:5353")?, false),
            (LoadLoop::udp(lab, &client, "192.168.77.13:5353")?, false),
        ];
        // In one table: web.2 is gone, a task of another service has its addresses, on another node.
        cluster.crash_task("web.2")?;
        cluster.change(|table| {
            table.remove("tasks", "web.2");
            let addresses = [("ingress", "10.0.0.7"), ("app", "10.0.1.4")];
            *table = table.clone().service("db").task("db.1", "db", "n3", &addresses);
        })?;
        cluster.serve(&["db.1"])?;
        for (running, tcp) in kept {
            if tcp {
                running.wait_failures(1)?;
            }
            running.wait_answers(60)?;
            let tally = running.stop()?;
            ensure!(!tally.names.contains_key("db.1"), "a flow of web.2 reached its successor: {tally:?}");
            ensure!(!tcp || !tally.errors.keys().any(|why| why.contains("no answer")), "left hanging: {tally:?}");
        }
        // The successor is reached under its own name.
        wait_for("db.1 to answer", PATIENCE, || {
            assert_even(&peer::tcp_load(cluster.task("user.1"), "10.0.1.4:80", 1, 1)?, &["db.1"], 1)
        })
    });
}

#[test]
fn a_service_without_a_vip_is_reached_task_by_task() {
    scenario(|lab| {
        let table = web().service("raw").set("services", "endpoint_mode", serde_json::json!("dnsrr"));
        let table = table.task("raw.1", "raw", "n1", &[("app", "10.0.1.20")]);
        let table = table.task("raw.2", "raw", "n2", &[("app", "10.0.1.21")]);
        let mut cluster = Cluster::start(lab, 3, table)?;
        cluster.serve(&["raw.1", "raw.2"])?;
        let user = cluster.task("user.1");
        for (task, address) in [("raw.1", "10.0.1.20"), ("raw.2", "10.0.1.21")] {
            assert_even(&peer::tcp_load(user, &format!("{address}:80"), 10, 2)?, &[task], 10)?;
            assert_even(&peer::udp_load(user, &format!("{address}:53"), 10)?, &[task], 10)?;
        }
        for agent in &cluster.agents {
            let services = agent.json(&["service", "ls"])?;
            let raw = services.as_array().into_iter().flatten().find(|service| service["id"] == "raw");
            let raw = raw.context("service ls does not name it")?;
            ensure!(raw["vips"].as_object().is_none_or(serde_json::Map::is_empty), "{raw}");
        }
        Ok(())
    });
}

#[test]
fn two_services_publish_one_port_number_on_tcp_and_udp() {
    scenario(|lab| {
        let client = lab.client()?;
        let table = web_table(&["n1"], &[("tcp", 5300, 80)], "n1").service("dns").vip("ingress", "10.0.0.20");
        let table = table.publish("udp", 5300, 53).task("dns.1", "dns", "n2", &[("ingress", "10.0.0.21")]);
        let mut cluster = Cluster::start(lab, 3, table)?;
        cluster.serve(&["web.1", "dns.1"])?;
        for node in ["192.168.77.11", "192.168.77.12", "192.168.77.13"] {
            let target = format!("{node}:5300");
            assert_even(&peer::tcp_load(&client, &target, 10, 2)?, &["web.1"], 10)?;
            assert_even(&peer::udp_load(&client, &target, 10)?, &["dns.1"], 10)?;
        }
        Ok(())
    });
}
