//! The stage: the generator's namespace, and a cable from it to each node.
//!
//! ```text
//!  generator                          node (one per contestant and site)
//!   tc-remote ─────────────────────── eth0 192.168.77.11, all next hops are the other end of the cable
//!   nft-local ─────────────────────── eth0 192.168.77.11 ── bridge ── task's namespace
//! ```

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::Agent,
    lab::{Lab, Netns, PATIENCE, wait_for},
};

use super::{
    contestants::{Case, Contestant, FIRST_PORT, Site},
    hiveway,
    order::{Protocol, Target, Tunnel},
    stack::{self, LOCAL_TASK, REMOTE_TASK, mac},
    traffic::Traffic,
};
use crate::maps;

/// Address of every node.
pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 11);

/// Tunnel address of the backends' node.
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 12);

/// A contestant on a node of its own.
pub(super) struct Instance {
    pub(super) contestant: Contestant,
    pub(super) site: Site,
    pub(super) target: Target,
    /// Its cable's end in the generator's namespace.
    pub(super) port: u32,
    agent: Option<Arc<Agent>>,
}

/// What Hiveway's maps hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Established {
    /// Flows that were established, since the start.
    pub(super) flows: u64,
    /// Kernel memory of all maps.
    pub(super) map_bytes: u64,
}

impl Instance {
    /// The tunnel that replies from other nodes come in by.
    pub(super) fn tunnel(&self) -> Option<Tunnel> {
        let tunnelled = self.contestant.has_tunnel() || self.contestant == Contestant::Pull;
        tunnelled.then_some(Tunnel { from: OTHER, to: NODE, vni: hiveway::MESH_VNI })
    }

    /// What Hiveway's maps hold, if it is Hiveway that forwards.
    pub(super) fn established(&self) -> Result<Option<Established>> {
        let Some(agent) = &self.agent else { return Ok(None) };
        let status = agent.json(&["status"])?;
        let counter = &status["dataplane"]["counters"]["flow_promoted"];
        let flows = counter["packets"].as_u64().or(counter.as_u64()).with_context(|| format!("status: {status}"))?;
        Ok(Some(Established { flows, map_bytes: maps::memory(agent.bpffs())? }))
    }
}

/// Everything that is measured.
pub(super) struct Stage {
    pub(super) generator: Netns,
    pub(super) instances: Vec<Instance>,
}

impl Stage {
    pub(super) fn build(
        lab: &Lab,
        traffic: &mut Traffic,
        contestants: &[Contestant],
        cases: &[Case],
        protocol: Protocol,
    ) -> Result<Self> {
        let mut sites: Vec<Site> = cases.iter().map(|case| case.site).collect();
        sites.sort_unstable();
        sites.dedup();
        let generator = lab.namespace("gen")?;
        let mut stage = Self { generator, instances: Vec::new() };
        for site in sites {
            let needed = |who: &&Contestant| cases.iter().any(|case| case.site == site && who.takes_part(*case));
            for &contestant in contestants.iter().filter(needed) {
                let what = format!("{}, {}", contestant.title(), site.label());
                eprintln!("bench: setting up {what}");
                match stage.instance(lab, traffic, contestant, site, protocol) {
                    Ok(instance) => stage.instances.push(instance),
                    Err(error) if format!("{error:#}").contains("--xdp native is not supported") => {
                        eprintln!("bench: left out, the agent has no XDP program");
                    }
                    Err(error) => return Err(error.context(what)),
                }
            }
        }
        Ok(stage)
    }

    pub(super) fn instance_of(&self, contestant: Contestant, site: Site) -> Option<&Instance> {
        self.instances.iter().find(|instance| instance.contestant == contestant && instance.site == site)
    }

    fn instance(
        &self,
        lab: &Lab,
        traffic: &mut Traffic,
        contestant: Contestant,
        site: Site,
        protocol: Protocol,
    ) -> Result<Instance> {
        let node = lab.namespace(&format!("{}-{}", contestant.label(), site.label()))?;
        let port = format!("{}-{}", contestant.label(), site.label());
        let target_macs = self.cable(&node, &port)?;
        let (mut agent, mut task) = (None, None);
        match contestant {
            Contestant::Floor => traffic.attach_xdp("bounce", &node, "eth0")?,
            Contestant::Push => traffic.attach_xdp("push", &node, "eth0")?,
            Contestant::Pull => traffic.attach_xdp("pull", &node, "eth0")?,
            Contestant::HivewayXdp | Contestant::HivewayTc => {
                let (started, local) = hiveway::start(lab, &node, contestant, site, protocol)?;
                (agent, task) = (Some(started), local);
            }
            Contestant::Nftables | Contestant::Routing => {
                task = (site == Site::Local).then(|| stack::task(lab, &node)).transpose()?;
                if contestant == Contestant::Nftables {
                    stack::nftables(&node, site, protocol)?;
                }
            }
        }
        traffic.attach_far_end(&self.generator, &port)?;
        if contestant.sends_frames(site) {
            traffic.attach_xdp("sink", &self.generator, &port)?;
        }
        for interface in task.as_ref().map_or(Ok(vec![]), Netns::interfaces)? {
            traffic.attach_far_end(task.as_ref().context("no task")?, &interface)?;
        }
        let address = match (contestant, site) {
            (Contestant::Routing, Site::Local) => LOCAL_TASK.parse()?,
            (Contestant::Routing, _) => REMOTE_TASK.parse()?,
            _ => NODE,
        };
        let (src_mac, dst_mac) = target_macs;
        let (ports, backends) = (site.ports(), site.backends());
        let target = Target { dst_mac, src_mac, address, first_port: FIRST_PORT, ports, backends };
        let port = self.generator.enter(|| nix::net::if_::if_nametoindex(port.as_str()))??;
        Ok(Instance { contestant, site, target, port, agent })
    }

    /// Returns the MACs of the generator's end and the node's.
    fn cable(&self, node: &Netns, port: &str) -> Result<([u8; 6], [u8; 6])> {
        let name = node.name();
        self.generator.run(&format!("ip link add {port} type veth peer name eth0 netns {name}"))?;
        self.generator.run(&format!("ip link set {port} up"))?;
        // New interfaces take the defaults; redirects would be sent for every packet that leaves where it came in.
        node.run(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
             net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0 \
             net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf.eth0.send_redirects=0",
        )?;
        node.run(&format!("ip addr add {NODE}/24 dev eth0"))?;
        node.run("ip link set eth0 up")?;
        // A veth without XDP takes XDP frames only where it has NAPI, which GRO switches on; cards have both.
        node.run("ethtool -K eth0 gro on")?;
        wait_for("the cable", PATIENCE, || {
            ensure!(node.run("ip -br link show dev eth0")?.contains("LOWER_UP"), "no carrier");
            Ok(())
        })?;
        let (near, far) = (mac(&self.generator, port)?, mac(node, "eth0")?);
        node.run("ip route add default via 192.168.77.1")?;
        for neighbour in [Ipv4Addr::new(192, 168, 77, 1), OTHER] {
            node.run(&format!("ip neigh replace {neighbour} lladdr {near} dev eth0 nud permanent"))?;
        }
        Ok((bytes(&near)?, bytes(&far)?))
    }
}

fn bytes(mac: &str) -> Result<[u8; 6]> {
    let bytes: Result<Vec<u8>, _> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).with_context(|| format!("{mac} is no MAC"))
}
