//! A node without Hiveway: bridge, kernel vxlan device, static FDB and neighbour entries, as an overlay of the Docker
//! Engine looks. What our frames have to be compatible with.

use anyhow::Result;

use crate::lab::Netns;

/// A container's place in a network of a plain node.
#[derive(Clone, Debug)]
pub struct PlainEndpoint {
    /// Its address, in a /24.
    pub ip: &'static str,
    /// Address of its node.
    pub vtep: String,
}

/// `02:42:` and the address.
pub fn mac_of(ip: &str) -> String {
    let bytes: Vec<String> =
        ip.split('.').map(|byte| format!("{:02x}", byte.parse::<u8>().unwrap_or_default())).collect();
    format!("02:42:{}", bytes.join(":"))
}

/// Creates a network on a plain node: bridge `br<vni>`, vxlan device `vx<vni>` on port 4789.
pub fn network(node: &Netns, vni: u32, vtep: &str) -> Result<()> {
    node.run(&format!("ip link add br{vni} type bridge forward_delay 0 mcast_snooping 0"))?;
    node.run(&format!("ip link add vx{vni} type vxlan id {vni} dstport 4789 local {vtep} nolearning"))?;
    node.run(&format!("ip link set vx{vni} mtu 1450 master br{vni} up"))?;
    node.run(&format!("ip link set br{vni} mtu 1450 up"))?;
    Ok(())
}

/// Attaches a container's namespace: `eth0` with the address, MTU 1450.
pub fn attach(node: &Netns, vni: u32, task: &Netns, ip: &str) -> Result<()> {
    let (port, mac) = (format!("p{}", ip.replace('.', "")), mac_of(ip));
    node.run(&format!(
        "ip link add {port} mtu 1450 type veth peer name eth0 mtu 1450 address {mac} netns {}",
        task.name()
    ))?;
    node.run(&format!("ip link set {port} master br{vni} up"))?;
    task.run(&format!("ip addr add {ip}/24 dev eth0"))?;
    task.run("ip link set eth0 up")?;
    Ok(())
}

/// Tells a plain node about an endpoint elsewhere: FDB entry, and flooding towards its node for ARP.
pub fn remote(node: &Netns, vni: u32, endpoint: &PlainEndpoint) -> Result<()> {
    let (mac, vtep) = (mac_of(endpoint.ip), &endpoint.vtep);
    node.run(&format!("bridge fdb replace {mac} dev vx{vni} dst {vtep} self permanent"))?;
    node.run(&format!("bridge fdb append 00:00:00:00:00:00 dev vx{vni} dst {vtep} self permanent"))?;
    Ok(())
}
