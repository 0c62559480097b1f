//! A node as a Docker engine makes it, by hand: per network a namespace with a bridge and a vxlan device (made in the
//! node's namespace and moved, so that its tunnel socket is the node's), `docker_gwbridge` in the node's, and
//! containers with an interface on each.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    lab::{Lab, Netns, PATIENCE, wait_for},
    plain::mac_of,
};

/// The engines' gateway bridge.
pub const GATEWAY_BRIDGE: &str = "docker_gwbridge";

/// The stock side of a lab's nodes.
#[derive(Debug, Default)]
pub struct Stock {
    /// One per node and network with a container there: `ov-<node>-<network>`.
    overlays: Vec<Netns>,
    /// Containers so far; each gets the next address on its gateway bridge.
    containers: u8,
}

/// Makes `docker_gwbridge`, as an engine does when it joins a swarm.
pub fn gateway_bridge(node: &Netns) -> Result<()> {
    node.run(&format!("ip link add {GATEWAY_BRIDGE} type bridge forward_delay 0 mcast_snooping 0"))?;
    node.run(&format!("ip addr add 172.18.0.1/16 dev {GATEWAY_BRIDGE}"))?;
    node.run(&format!("ip link set {GATEWAY_BRIDGE} up"))?;
    node.run("sysctl -qw net.ipv4.ip_forward=1")?;
    node.run("nft add table ip dockernat")?;
    node.run("nft add chain ip dockernat post { type nat hook postrouting priority 100 ; }")?;
    node.run(&format!("nft add rule ip dockernat post ip saddr 172.18.0.0/16 oifname != {GATEWAY_BRIDGE} masquerade"))?;
    Ok(())
}

impl Stock {
    /// Makes the interfaces of a task on networks with `carrier: engine`, in the engine's order: user networks by name,
    /// ingress, gateway bridge. Other tasks are left alone.
    pub fn plug(&mut self, lab: &Lab, nodes: &[Netns], table: &Value, task: &Value, netns: &Netns) -> Result<()> {
        let Some(node) = nodes.iter().find(|node| task["node_id"] == node.label()) else { return Ok(()) };
        let mut networks: Vec<(&Value, &str)> = engine_networks(table)
            .filter_map(|network| Some((network, task["addresses"][network["id"].as_str()?].as_str()?)))
            .collect();
        if networks.is_empty() {
            return Ok(());
        }
        networks.sort_by_key(|(network, _)| (network["ingress"] == true, network["name"].as_str()));
        for (index, (network, ip)) in networks.iter().enumerate() {
            let overlay = self.overlay(lab, node, network)?;
            interface(
                &overlay,
                netns,
                "br0",
                &format!("v{}", ip.replace('.', "")),
                &format!("eth{index}"),
                ip,
                24,
                1450,
            )?;
        }
        self.containers += 1;
        let (port, ip) = (format!("vethgw{}", self.containers), format!("172.18.0.{}", self.containers + 2));
        interface(node, netns, GATEWAY_BRIDGE, &port, &format!("eth{}", networks.len()), &ip, 16, 1500)?;
        node.run(&format!("bridge link set dev {port} isolated on"))?;
        netns.run("ip route add default via 172.18.0.1")?;
        self.redirect(table, task, netns)?;
        Ok(())
    }

    /// The engine's own way into a container for what an ingress node of its kind sends: from the published port to the
    /// target port.
    fn redirect(&self, table: &Value, task: &Value, netns: &Netns) -> Result<()> {
        let service = array(table, "services").find(|service| service["id"] == task["service_id"]);
        let ingress = array(table, "networks").find(|network| network["ingress"] == true);
        let ip = ingress.and_then(|network| task["addresses"][network["id"].as_str()?].as_str());
        let (Some(service), Some(ip)) = (service, ip) else { return Ok(()) };
        netns.run("nft add table ip nat")?;
        netns.run("nft add chain ip nat pre { type nat hook prerouting priority -100 ; }")?;
        for port in array(service, "ports") {
            let (protocol, published) = (port["protocol"].as_str().unwrap_or("tcp"), &port["published_port"]);
            let target = &port["target_port"];
            netns.run(&format!(
                "nft add rule ip nat pre ip daddr {ip} {protocol} dport {published} redirect to :{target}"
            ))?;
        }
        Ok(())
    }

    /// The namespace of a network on a node.
    fn overlay(&mut self, lab: &Lab, node: &Netns, network: &Value) -> Result<Netns> {
        let id = network["id"].as_str().context("a network without an id")?;
        let label = format!("ov-{}-{id}", node.label());
        if let Some(there) = self.overlays.iter().find(|netns| netns.label() == label) {
            return Ok(there.clone());
        }
        let netns = lab.namespace(&label)?;
        netns.run("ip link add br0 type bridge forward_delay 0 mcast_snooping 0")?;
        netns.run("ip link set br0 mtu 1450 up")?;
        let vni = &network["subnets"][0]["vni"];
        node.run(&format!(
            "ip link add vx-{vni} type vxlan id {vni} dstport 4789 proxy l2miss l3miss udpcsum nolearning"
        ))?;
        node.run(&format!("ip link set vx-{vni} netns {} name vxlan0", netns.name()))?;
        netns.run("ip link set vxlan0 mtu 1450 master br0 up")?;
        self.overlays.push(netns.clone());
        Ok(netns)
    }

    /// Tells every network on every node of all endpoints elsewhere, as the engines tell each other.
    pub fn sync(&self, table: &Value) -> Result<()> {
        let node_address =
            |id: &Value| array(table, "nodes").find(|node| node["id"] == *id).and_then(|node| node["address"].as_str());
        for network in engine_networks(table) {
            let id = network["id"].as_str().context("a network without an id")?;
            let of = |netns: &&Netns| {
                netns.label().strip_prefix("ov-").is_some_and(|rest| rest.ends_with(&format!("-{id}")))
            };
            for overlay in self.overlays.iter().filter(of) {
                for task in array(table, "tasks") {
                    let (Some(ip), Some(vtep)) = (task["addresses"][id].as_str(), node_address(&task["node_id"]))
                    else {
                        continue;
                    };
                    let here = overlay.label() == format!("ov-{}-{id}", task["node_id"].as_str().unwrap_or_default());
                    if !here {
                        remote(overlay, ip, vtep)?;
                    }
                }
                for node in array(table, "nodes") {
                    let (Some(ip), Some(vtep)) = (node["addresses"][id].as_str(), node["address"].as_str()) else {
                        continue;
                    };
                    if overlay.label() != format!("ov-{}-{id}", node["id"].as_str().unwrap_or_default()) {
                        remote(overlay, ip, vtep)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn remote(overlay: &Netns, ip: &str, vtep: &str) -> Result<()> {
    let mac = mac_of(ip);
    overlay.run(&format!("ip neigh replace {ip} lladdr {mac} dev vxlan0 nud permanent"))?;
    overlay.run(&format!("bridge fdb replace {mac} dev vxlan0 dst {vtep} self permanent"))?;
    Ok(())
}

fn engine_networks(table: &Value) -> impl Iterator<Item = &Value> {
    array(table, "networks").filter(|network| network["carrier"] == "engine")
}

fn array<'v>(value: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
    value[key].as_array().into_iter().flatten()
}

/// A pair from a bridge in `here` into a container.
#[expect(clippy::too_many_arguments, reason = "one veth pair has that many properties")]
fn interface(
    here: &Netns,
    container: &Netns,
    bridge: &str,
    port: &str,
    name: &str,
    ip: &str,
    prefix: u8,
    mtu: u32,
) -> Result<()> {
    ensure!(port.len() < 16, "{port} is too long for an interface");
    ensure!(Path::new(&container.path()).exists(), "{} is gone", container.label());
    // The kernel takes a deleted namespace's devices down in the background.
    wait_for("an ended container's interface to go", PATIENCE, || {
        ensure!(here.run(&format!("ip link show dev {port}")).is_err(), "{port} is still there");
        Ok(())
    })?;
    here.run(&format!(
        "ip link add {port} mtu {mtu} type veth peer name {name} mtu {mtu} address {} netns {}",
        mac_of(ip),
        container.name()
    ))?;
    here.run(&format!("ip link set {port} master {bridge} up"))?;
    container.run(&format!("ip addr add {ip}/{prefix} dev {name}"))?;
    container.run(&format!("ip link set {name} up"))?;
    Ok(())
}
