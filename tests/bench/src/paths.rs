//! The lab of the bench, and the paths through it that are compared.
//!
//! Nodes n1 and n2 have an agent; p1 and p2 are plain Linux on the same switch, so that "raw" and the kernel's overlay
//! are measured without any program of ours attached.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::{Agent, AgentOptions},
    lab::{Lab, Netns, Process, wait_for},
    plain::{self, PlainEndpoint},
    table::Table,
};
use serde_json::json;

use crate::{iperf, offloads::Setting, overlay::Options, rr::Latency};

/// Where the request/response servers listen.
const RR_PORT: u16 = 5202;

const PLAIN_VNI: u32 = 5001;

/// This program, also when a newer one has been built over it since it was started.
const OURSELVES: &str = "/proc/self/exe";

/// From a client's namespace to an address at which both servers listen.
#[derive(Debug)]
pub(crate) struct Path {
    /// Stable name in the JSON.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    from: Netns,
    to: Ipv4Addr,
}

impl Path {
    pub(crate) fn streams(&self, count: usize, options: &Options) -> Result<iperf::Stream> {
        iperf::stream(&self.from, self.to, count, options).context(self.title)
    }

    /// Thousands of packets of 64 bytes per second.
    pub(crate) fn small_packets(&self, options: &Options) -> Result<f64> {
        iperf::small_packets(&self.from, self.to, options).context(self.title)
    }

    pub(crate) fn latency(&self, seconds: f64) -> Result<Latency> {
        let target = format!("{}:{RR_PORT}", self.to);
        let mut client = self.from.command(OURSELVES)?;
        let output = client.args(["rr-client", "--target", &target, "--seconds", &seconds.to_string()]).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", self.title, error.trim());
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// The lab with its servers and agents running.
pub(crate) struct Setup<'l> {
    lab: &'l Lab,
    nodes: Vec<Netns>,
    pub(crate) paths: Vec<Path>,
    _servers: Vec<Process>,
    _agents: Vec<Arc<Agent>>,
}

impl<'l> Setup<'l> {
    pub(crate) fn start(lab: &'l Lab) -> Result<Self> {
        // The switch stands for a wire: netfilter, on by default where br_netfilter is loaded, would cost every packet.
        lab.switch().succeeds("sysctl -qw net.bridge.bridge-nf-call-iptables=0");
        let node = |label: &str, host| lab.node(label, host);
        let (n1, n2, p1, p2) = (node("n1", 11)?, node("n2", 12)?, node("p1", 13)?, node("p2", 14)?);
        let task = |label: &str| lab.namespace(label);
        let (client, local, remote) = (task("client")?, task("local")?, task("remote")?);
        let (plain_client, plain_server) = (task("pclient")?, task("pserver")?);
        kernel_overlay(&p1, &p2, &plain_client, &plain_server)?;
        let agents =
            hiveway_overlay(lab, &[&n1, &n2], &[("c.1", &client), ("local.1", &local), ("remote.1", &remote)])?;

        let mut servers = Vec::new();
        for netns in [&n2, &p2, &local, &remote, &plain_server] {
            servers.extend(serve(lab, netns)?);
        }
        let path = |name, title, from: &Netns, to: [u8; 4]| Path { name, title, from: from.clone(), to: to.into() };
        let paths = vec![
            path("raw", "raw underlay", &p1, [192, 168, 77, 14]),
            path("raw_attached", "raw underlay, our programs attached", &n1, [192, 168, 77, 12]),
            path("kernel_vxlan", "bridge + kernel VXLAN", &plain_client, [10, 9, 0, 2]),
            path("local", "Hiveway, one node", &client, [10, 0, 1, 4]),
            path("across", "Hiveway, across nodes", &client, [10, 0, 1, 5]),
            path("vip", "Hiveway, VIP across nodes", &client, [10, 0, 1, 2]),
        ];
        Ok(Self { lab, nodes: vec![n1, n2, p1, p2], paths, _servers: servers, _agents: agents })
    }

    pub(crate) fn apply(&self, setting: Setting) -> Result<()> {
        self.nodes.iter().try_for_each(|node| setting.apply(node, self.lab.switch()))
    }
}

fn kernel_overlay(p1: &Netns, p2: &Netns, client: &Netns, server: &Netns) -> Result<()> {
    let (vtep1, vtep2) = ("192.168.77.13", "192.168.77.14");
    plain::network(p1, PLAIN_VNI, vtep1)?;
    plain::network(p2, PLAIN_VNI, vtep2)?;
    plain::attach(p1, PLAIN_VNI, client, "10.9.0.1")?;
    plain::attach(p2, PLAIN_VNI, server, "10.9.0.2")?;
    plain::remote(p1, PLAIN_VNI, &PlainEndpoint { ip: "10.9.0.2", vtep: vtep2.to_owned() })?;
    plain::remote(p2, PLAIN_VNI, &PlainEndpoint { ip: "10.9.0.1", vtep: vtep1.to_owned() })
}

fn hiveway_overlay(lab: &Lab, nodes: &[&Netns], tasks: &[(&str, &Netns)]) -> Result<Vec<Arc<Agent>>> {
    let mut table = Table::with_nodes(2).network("app", "10.0.1", 4097);
    table = table.service("c").service("local").service("remote").vip("app", "10.0.1.2");
    let places = [("c.1", "n1", "10.0.1.3"), ("local.1", "n1", "10.0.1.4"), ("remote.1", "n2", "10.0.1.5")];
    for (id, node, address) in places {
        let netns = tasks.iter().find(|(task, _)| *task == id).context("a task without a namespace")?.1;
        let service = id.trim_end_matches(".1");
        table = table.task(id, service, node, &[("app", address)]).set("tasks", "netns", json!(netns.path()));
    }
    let file = lab.directory().join("table.json");
    table.write(&file)?;
    let source = format!("file:{}", file.display());
    let options = |node: &Netns| AgentOptions {
        node: node.label().into(),
        table: source.clone(),
        netns_dir: None,
        extra: vec![],
    };
    let agents = nodes.iter().map(|node| Agent::start(lab, node, options(node))).collect::<Result<Vec<_>>>()?;
    for (task, netns) in tasks {
        wait_for(&format!("{task} to have its interface"), Duration::from_secs(10), || {
            let addresses = netns.run("ip -4 -br addr")?;
            ensure!(addresses.contains("10.0.1."), "it has {addresses}");
            Ok(())
        })?;
    }
    Ok(agents)
}

/// iperf3 and the request/response server.
fn serve(lab: &Lab, netns: &Netns) -> Result<[Process; 2]> {
    let start = |command, name: &str| Process::start(command, lab.directory(), &lab.unique(name));
    let mut iperf = netns.command("iperf3")?;
    iperf.args(["--server", "--port", &iperf::PORT.to_string()]);
    let mut rr = netns.command(OURSELVES)?;
    rr.args(["rr-server", "--port", &RR_PORT.to_string()]);
    let servers = [start(iperf, "iperf3")?, start(rr, "rr")?];
    wait_for("the servers to listen", Duration::from_secs(5), || {
        let sockets = netns.run("ss -Hltn")?;
        ensure!([iperf::PORT, RR_PORT].iter().all(|port| sockets.contains(&format!(":{port} "))), "{sockets}");
        Ok(())
    })?;
    Ok(servers)
}
