//! Floods of connections that never go on: established ones do not suffer, and new ones succeed meanwhile.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::Agent,
    lab::{Netns, PATIENCE, scenario, scenario_alone, wait_for},
    load::Tally,
    peer::{self, Flood},
    table::Table,
};
use serde_json::Value;

use crate::support::Cluster;

const WEB: [&str; 2] = ["web.1", "web.2"];
/// Small tables and short times, so that the flood fills the tables many times over and the sweep works on it; room for
/// a second of it, which is how long a new connection's proof may take here.
const SCALED: [&str; 6] = [
    "--max-flows",
    "65536",
    "--max-pending",
    "16384",
    "--timeout",
    "tcp-half-open=2s,tcp-half-closed=2s,tcp-closing=2s,udp-unreplied=2s,udp-replied=4s",
];
/// Four times the pending tables' room: each packet of the flood makes one or two entries.
const PACKETS: u64 = 65_536;

fn web() -> Table {
    Table::with_nodes(2)
        .ingress()
        .network("app", "10.0.1", 4097)
        .service("web")
        .vip("ingress", "10.0.0.5")
        .vip("app", "10.0.1.2")
        .publish("tcp", 8080, 80)
        .publish("udp", 8080, 53)
        .task("web.1", "web", "n1", &[("ingress", "10.0.0.6"), ("app", "10.0.1.3")])
        .task("web.2", "web", "n2", &[("ingress", "10.0.0.7"), ("app", "10.0.1.4")])
        .service("user")
        .task("user.1", "user", "n1", &[("app", "10.0.1.20")])
        .task("user.2", "user", "n1", &[("app", "10.0.1.21")])
}

/// A connection that is used now and then.
struct Visitor(TcpStream);

impl Visitor {
    fn connect(netns: &Netns, target: &str) -> Result<Self> {
        let stream = netns.enter(|| TcpStream::connect(target))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut visitor = Self(stream);
        visitor.ask()?;
        Ok(visitor)
    }

    /// Who answers.
    fn ask(&mut self) -> Result<String> {
        self.0.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: keep-alive\r\n\r\n")?;
        let mut text = String::new();
        let mut buffer = [0; 1024];
        while !text.contains("name=") {
            let read = self.0.read(&mut buffer).context("no answer on the old connection")?;
            ensure!(read > 0, "the old connection was closed");
            text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        let name = text.split("name=").nth(1).and_then(|rest| rest.split_whitespace().next());
        name.map(str::to_owned).with_context(|| format!("it says {text}"))
    }

    fn port(&self) -> Result<u16> {
        Ok(self.0.local_addr()?.port())
    }
}

/// Entries of a connection table, as the last sweep has counted.
fn entries(agent: &Agent, table: &str) -> Result<u64> {
    let status = agent.json(&["status"])?;
    let tables = status["dataplane"]["tables"].as_array().cloned().unwrap_or_default();
    let found = tables.iter().find(|row| row["name"] == table).and_then(|row| row["entries"].as_u64());
    found.with_context(|| format!("no entries of {table} in {tables:?}"))
}

fn wait_entries(agent: &Agent, table: &str, what: impl Fn(u64) -> bool) -> Result<()> {
    wait_for(&format!("enough of {table}'s entries at {}", agent.netns().label()), PATIENCE, || {
        let now = entries(agent, table)?;
        ensure!(what(now), "{now} entries");
        Ok(())
    })
}

/// The connection from that port, as `flow ls` shows it.
fn listed(agent: &Agent, kind: &str, port: u16) -> Result<Value> {
    let rows = agent.json(&["flow", "ls"])?;
    let client = |row: &Value| row["client"].as_str().is_some_and(|client| client.ends_with(&format!(":{port}")));
    let rows = rows.as_array().into_iter().flatten();
    let mut found = rows.filter(|row| row["kind"] == kind && client(row));
    let row = found.next().with_context(|| format!("no {kind} connection from port {port} is listed"))?;
    ensure!(found.next().is_none(), "it is listed twice");
    Ok(row.clone())
}

/// Twenty new connections had an answer each; whose it was the flood has a say in.
fn all_answered(tally: &Tally) -> Result<()> {
    ensure!(tally.ok == 20 && tally.failed == 0, "new connections during the flood: {tally:?}");
    Ok(())
}

fn mac(netns: &Netns, interface: &str) -> Result<String> {
    let listing = netns.run(&format!("ip -br link show {interface}"))?;
    listing.split_whitespace().nth(2).map(str::to_owned).with_context(|| format!("no MAC in {listing}"))
}

#[test]
fn a_flood_of_a_published_port_leaves_old_connections_alone_and_lets_new_ones_in() {
    scenario_alone(|lab| {
        let (client, attacker) = (lab.client()?, lab.node("attacker", 66)?);
        let mut cluster = Cluster::start_with(lab, 2, web(), &SCALED)?;
        cluster.serve(&WEB)?;
        // One to each backend, through n1.
        let mut old =
            [Visitor::connect(&client, "192.168.77.11:8080")?, Visitor::connect(&client, "192.168.77.11:8080")?];
        let names = [old[0].ask()?, old[1].ask()?];
        ensure!(names[0] != names[1], "both connections are {}'s", names[0]);

        let next_hop = mac(&cluster.nodes[0], "eth0")?;
        let flood = Flood::start(lab, &attacker, "eth0", &next_hop, "192.168.77.11:8080", None)?;
        wait_entries(&cluster.agents[0], "affinity_pending", |entries| entries > 1000)?;
        wait_entries(&cluster.agents[1], "flows_pending", |entries| entries > 1000)?;
        all_answered(&peer::tcp_load(&client, "192.168.77.11:8080", 20, 1)?)?;
        flood.wait_sent(PACKETS)?;
        flood.stop()?;
        for (visitor, name) in old.iter_mut().zip(&names) {
            ensure!(visitor.ask()? == *name, "another backend answers");
        }
        // Nothing of it is left, and what is left is shown as what it is.
        wait_entries(&cluster.agents[0], "affinity_pending", |entries| entries < 10)?;
        wait_entries(&cluster.agents[0], "affinity", |entries| entries < 100)?;
        wait_entries(&cluster.agents[1], "flows_pending", |entries| entries < 10)?;
        for (visitor, name) in old.iter().zip(&names) {
            let kind = if name == "web.1" { "mesh" } else { "ingress" };
            let row = listed(&cluster.agents[0], kind, visitor.port()?)?;
            ensure!(row["state"] == "established" && row["task"] == **name, "{row}");
        }
        Ok(())
    });
}

#[test]
fn a_flood_of_a_vip_leaves_old_connections_alone_and_lets_new_ones_in() {
    scenario_alone(|lab| {
        let mut cluster = Cluster::start_with(lab, 2, web(), &SCALED)?;
        cluster.serve(&WEB)?;
        let (client, attacker) = (cluster.task("user.1").clone(), cluster.task("user.2").clone());
        let mut old = [Visitor::connect(&client, "10.0.1.2:80")?, Visitor::connect(&client, "10.0.1.2:80")?];
        let names = [old[0].ask()?, old[1].ask()?];
        ensure!(names[0] != names[1], "both connections are {}'s", names[0]);

        // A container can only use its own address.
        let addresses = attacker.run("ip -4 -br addr")?;
        let interface = addresses.lines().find(|line| line.contains("10.0.1.21/")).context("no interface")?;
        let interface = interface.split(['@', ' ']).next().context("no interface")?.to_owned();
        let flood = Flood::start(lab, &attacker, &interface, "02:48:57:00:00:01", "10.0.1.2:80", Some("10.0.1.21"))?;
        wait_entries(&cluster.agents[0], "flows_pending", |entries| entries > 1000)?;
        all_answered(&peer::tcp_load(&client, "10.0.1.2:80", 20, 1)?)?;
        flood.wait_sent(PACKETS)?;
        flood.stop()?;
        for (visitor, name) in old.iter_mut().zip(&names) {
            ensure!(visitor.ask()? == *name, "another backend answers");
        }
        wait_entries(&cluster.agents[0], "flows_pending", |entries| entries < 10)?;
        for (visitor, name) in old.iter().zip(&names) {
            let row = listed(&cluster.agents[0], "vip", visitor.port()?)?;
            ensure!(row["state"] == "established" && row["task"] == **name, "{row}");
        }
        Ok(())
    });
}

#[test]
fn who_takes_more_than_a_share_of_a_table_is_told_of_and_served() {
    scenario(|lab| {
        let client = lab.client()?;
        let table = Table::with_nodes(1).ingress().service("web").publish("tcp", 8080, 80);
        let table = table.task("web.1", "web", "n1", &[("ingress", "10.0.0.6")]);
        // Of TCP, what finds no share is forgotten after being idle for as long as what is half closed.
        let sizes = ["--max-flows", "1024", "--timeout", "tcp-closing=1s,tcp-half-closed=20s"];
        let mut cluster = Cluster::start_with(lab, 1, table, &sizes)?;
        cluster.serve(&["web.1"])?;
        let agent = &cluster.agents[0];
        let full = |wanted: bool| {
            wait_for(&format!("connections without a share: {wanted}"), PATIENCE, || {
                let status = agent.json(&["status"])?;
                let warnings = status["dataplane"]["warnings"].to_string();
                let said = warnings.contains("have found no share")
                    && warnings.contains("most from 192.168.77.0/24, most to port 8080/tcp of service web");
                ensure!(said == wanted, "{status:#}");
                ensure!(status["healthy"] == true, "a client alone makes the node unhealthy: {status:#}");
                Ok(())
            })
        };
        full(false)?;
        // Two entries each, and one client gets two thirds.
        let mut visitors =
            (0..470).map(|_| Visitor::connect(&client, "192.168.77.11:8080")).collect::<Result<Vec<_>>>()?;
        full(true)?;
        for visitor in &mut visitors {
            ensure!(visitor.ask()? == "web.1", "somebody else answers");
        }
        drop(visitors);
        full(false)
    });
}
