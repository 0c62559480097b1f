//! The node that golden packets run on: 192.0.2.1, with two tasks of its own on network `app`, two on node 192.0.2.2,
//! a plain Linux node 192.0.2.3, a second network with the same addresses, and a published port.

use std::collections::BTreeMap;

use anyhow::Result;
use dataplane::testing::Harness;
use dataplane_common::{
    addr::VIRTUAL_MAC,
    config::Config,
    endpoint::{
        Endpoint, EndpointKey, Local, SANDBOX_BIT, VniInfo, Vtep, endpoint_flag::VIP_BACKEND, kind, local_flag,
    },
    mesh::{NodeAddress, Target, TargetKey},
    service::Backend,
    state::{MapState, SetKey},
};

use super::{
    mesh::NEAR_MAC,
    packets::{Ip4, Mac},
    sandbox::{run, sandbox, veth},
    xdp::keep_way,
};

/// This node's tunnel address.
pub const VTEP: Ip4 = [192, 0, 2, 1];
/// Another Hiveway node.
pub const PEER: Ip4 = [192, 0, 2, 2];
/// A node without Hiveway.
pub const PLAIN: Ip4 = [192, 0, 2, 3];
/// Nobody's.
pub const STRANGER: Ip4 = [192, 0, 2, 66];
/// A second address of this node, on another interface.
pub const NODE2: Ip4 = [203, 0, 113, 1];
/// A client outside, behind the underlay's router.
pub const CLIENT: Ip4 = [198, 51, 100, 7];
pub const CLIENT_PORT: u16 = 40000;
/// MACs of the underlay.
pub const ROUTER_MAC: Mac = [0x52, 0x54, 0, 0, 0, 0xfe];
pub const NODE_MAC: Mac = [0x52, 0x54, 0, 0, 0, 0x01];
/// Of PEER, which is on the underlay's own subnet.
pub const PEER_MAC: Mac = [0x52, 0x54, 0, 0, 0, 0x02];

/// Network `app`.
pub const APP: u32 = 4097;
/// Second subnet of network `app`.
pub const APP2: u32 = 4098;
/// Another network, with the same addresses and MACs as `app`.
pub const TWIN: u32 = 5000;
/// The ingress network.
pub const INGRESS: u32 = 4096;
/// Own interfaces of LOCAL1 and LOCAL2 on `app`, as if an engine carried that.
pub const SANDBOX1: u32 = SANDBOX_BIT | 1;
pub const SANDBOX2: u32 = SANDBOX_BIT | 2;
/// A VNI of somebody else's.
pub const FOREIGN: u32 = 99;
pub const MESH: u32 = 16_777_214;

pub const fn net(vni: u32) -> [u8; 4] {
    vni.to_be_bytes()
}

pub const fn mac(ip: Ip4) -> Mac {
    [0x02, 0x42, ip[0], ip[1], ip[2], ip[3]]
}

/// MAC that names a node in mesh frames.
pub const fn node_mac(ip: Ip4) -> Mac {
    [0x02, 0x48, ip[0], ip[1], ip[2], ip[3]]
}

/// Tasks: address on `app`, on ingress, and tag.
#[derive(Clone, Copy)]
pub struct Task {
    pub ip: Ip4,
    pub ingress: Ip4,
    pub tag: [u8; 8],
    pub vtep: Ip4,
}

pub const LOCAL1: Task = Task { ip: [10, 0, 1, 3], ingress: [10, 0, 0, 6], tag: [1; 8], vtep: VTEP };
pub const LOCAL2: Task = Task { ip: [10, 0, 1, 4], ingress: [10, 0, 0, 7], tag: [2; 8], vtep: VTEP };
pub const REMOTE1: Task = Task { ip: [10, 0, 1, 13], ingress: [10, 0, 0, 16], tag: [11; 8], vtep: PEER };
pub const REMOTE2: Task = Task { ip: [10, 0, 1, 14], ingress: [10, 0, 0, 17], tag: [12; 8], vtep: PEER };
/// Lives on the plain node.
pub const ON_PLAIN: Task = Task { ip: [10, 0, 1, 23], ingress: [10, 0, 0, 26], tag: [21; 8], vtep: PLAIN };
/// On the second subnet of `app`, on the other node.
pub const OTHER_SUBNET: Ip4 = [10, 0, 2, 5];
pub const GATEWAY: Ip4 = [10, 0, 1, 1];
/// Of the plain node on `app`.
pub const NODE_ON_APP: Ip4 = [10, 0, 1, 250];
/// Three backends: LOCAL2, REMOTE1, REMOTE2.
pub const VIP: Ip4 = [10, 0, 1, 2];
/// No backend.
pub const EMPTY_VIP: Ip4 = [10, 0, 1, 20];
/// Only LOCAL1, its own client in the hairpin tests.
pub const SELF_VIP: Ip4 = [10, 0, 1, 21];
/// LOCAL1 on the gateway bridge.
pub const GW1: Ip4 = [172, 18, 0, 2];
pub const GW2: Ip4 = [172, 18, 0, 3];
/// Published: TCP and UDP to LOCAL1, REMOTE1, REMOTE2 (in this order).
pub const PUBLISHED: u16 = 8080;
/// Published without a backend.
pub const PUBLISHED_EMPTY: u16 = 8081;
pub const TARGET_PORT: u16 = 80;

/// Devices of the test's network namespace, by index.
#[derive(Clone, Copy)]
pub struct Devices {
    pub underlay: u32,
    pub client: u32,
    pub veth1: u32,
    pub veth2: u32,
    pub gw1: u32,
    pub gw2: u32,
    pub vxlan: u32,
    /// On `TWIN`.
    pub twin: u32,
    /// Nobody's.
    pub stray: u32,
}

pub struct World {
    pub harness: Harness,
    pub dev: Devices,
    pub state: MapState,
}

/// Runs `test` on such a node.
pub fn world(test: impl FnOnce(&mut World) -> Result<()> + Send + 'static) -> Result<()> {
    sandbox(|_| {
        let dev = devices()?;
        let state = state(&dev);
        let mut harness = Harness::new()?;
        let changes = harness.apply(&state)?;
        assert_eq!(changes.failures, []);
        let mut world = World { harness, dev, state };
        // XDP opens connections only where somebody keeps the way.
        keep_way(&mut world, Some(PEER_MAC))?;
        test(&mut world)
    })
}

/// Runs `test` on such a node when no VIP has ever led to any task: nothing is noted about direct connections.
pub fn world_without_backends(test: impl FnOnce(&mut World) -> Result<()> + Send + 'static) -> Result<()> {
    world(|world| {
        world.state.endpoints.values_mut().for_each(|endpoint| endpoint.flags = 0);
        world.state.locals.values_mut().for_each(|local| local.flags = 0);
        world.harness.apply(&world.state)?;
        test(world)
    })
}

impl World {
    /// Joins the ingress network, with a kernel vxlan device (its index) that is the mesh's slow path.
    pub fn join_ingress(&mut self) -> Result<u32> {
        let vxlan = veth("hwx4096", "x4096")?;
        let state = &mut self.state;
        state.config.ingress_net = net(INGRESS);
        state.config.ingress_vxlan_ifindex = vxlan;
        state.vnis.insert(net(INGRESS), VniInfo { net: net(INGRESS), vxlan_ifindex: vxlan });
        state.locals.insert(vxlan, Local { net: net(INGRESS), vni: net(INGRESS), ..Local::default() });
        for task in [REMOTE1, REMOTE2, ON_PLAIN] {
            let endpoint = Endpoint {
                tag: task.tag,
                kind: kind::REMOTE,
                mac: mac(task.ingress),
                vtep: task.vtep,
                vni: net(INGRESS),
                ..Endpoint::default()
            };
            state.endpoints.insert(EndpointKey { net: net(INGRESS), ip: task.ingress }, endpoint);
        }
        let changes = self.harness.apply(&self.state)?;
        assert_eq!(changes.failures, []);
        Ok(vxlan)
    }
}

fn devices() -> Result<Devices> {
    let dev = Devices {
        underlay: veth("eth0", "eth0p")?,
        client: veth("eth1", "eth1p")?,
        veth1: veth("hwv1", "c1")?,
        veth2: veth("hwv2", "c2")?,
        gw1: veth("hwg1", "g1")?,
        gw2: veth("hwg2", "g2")?,
        vxlan: veth("hwx4097", "x4097")?,
        twin: veth("hwv9", "c9")?,
        stray: veth("stray", "strayp")?,
    };
    // Frames for another MAC are the stack's.
    for name in ["eth0", "eth1"] {
        run(&format!("ip link set {name} address {}", text(NODE_MAC)))?;
    }
    run("sysctl -qw net.ipv4.ip_forward=1")?;
    run("ip addr add 192.0.2.1/24 dev eth0")?;
    run("ip addr add 203.0.113.1/24 dev eth1")?;
    run("ip route add default via 192.0.2.254")?;
    // XDP carries only towards neighbours that are known.
    for (address, mac, dev) in [
        ("192.0.2.2", PEER_MAC, "eth0"),
        ("192.0.2.3", [0x52, 0x54, 0, 0, 0, 0x03], "eth0"),
        ("192.0.2.254", ROUTER_MAC, "eth0"),
        ("203.0.113.50", NEAR_MAC, "eth1"),
    ] {
        run(&format!("ip neigh add {address} lladdr {} dev {dev} nud permanent", text(mac)))?;
    }
    Ok(dev)
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn state(dev: &Devices) -> MapState {
    let mut state = MapState {
        config: Config {
            underlay_ifindex: dev.underlay,
            vtep: VTEP,
            underlay_ip: VTEP,
            mesh_vni: MESH.to_be_bytes(),
            vxlan_port: 4789u16.to_be_bytes(),
            underlay_mtu: 1500,
            underlay_mac: NODE_MAC,
            ..Config::default()
        },
        node_addresses: BTreeMap::from([
            (VTEP, NodeAddress { ifindex: dev.underlay, ..NodeAddress::default() }),
            (NODE2, NodeAddress { ifindex: dev.client, ..NodeAddress::default() }),
        ]),
        vteps: BTreeMap::from([(PEER, Vtep { hiveway: 1, ..Vtep::default() }), (PLAIN, Vtep::default())]),
        vnis: BTreeMap::from([
            (net(APP), VniInfo { net: net(APP), vxlan_ifindex: dev.vxlan }),
            (net(APP2), VniInfo { net: net(APP), vxlan_ifindex: dev.vxlan }),
            (net(TWIN), VniInfo { net: net(TWIN), vxlan_ifindex: dev.vxlan }),
        ]),
        ..MapState::default()
    };
    for (network, task, ifindex) in [(APP, LOCAL1, dev.veth1), (APP, LOCAL2, dev.veth2), (TWIN, LOCAL1, dev.twin)] {
        let local = Local {
            tag: task.tag,
            net: net(network),
            vni: net(network),
            ip: task.ip,
            mac: mac(task.ip),
            flags: if network == APP { local_flag::VIP_BACKEND } else { 0 },
            ..Local::default()
        };
        state.locals.insert(ifindex, local);
        if network == APP {
            state.locals.insert(if task.ip == LOCAL1.ip { SANDBOX1 } else { SANDBOX2 }, local);
        }
        let endpoint = Endpoint {
            tag: task.tag,
            kind: kind::LOCAL,
            mac: mac(task.ip),
            vtep: VTEP,
            vni: net(network),
            ifindex,
            flags: if network == APP { VIP_BACKEND } else { 0 },
            ..Endpoint::default()
        };
        state.endpoints.insert(EndpointKey { net: net(network), ip: task.ip }, endpoint);
    }
    for task in [REMOTE1, REMOTE2, ON_PLAIN] {
        let endpoint = Endpoint {
            tag: task.tag,
            kind: kind::REMOTE,
            mac: mac(task.ip),
            vtep: task.vtep,
            vni: net(APP),
            flags: if task.vtep == PEER { VIP_BACKEND } else { 0 },
            ..Endpoint::default()
        };
        state.endpoints.insert(EndpointKey { net: net(APP), ip: task.ip }, endpoint);
    }
    let mut special = |ip: Ip4, endpoint: Endpoint| {
        state.endpoints.insert(EndpointKey { net: net(APP), ip }, endpoint);
    };
    let vip = Endpoint { kind: kind::VIP, mac: VIRTUAL_MAC, vni: net(APP), ..Endpoint::default() };
    for ip in [VIP, EMPTY_VIP, SELF_VIP] {
        special(ip, vip);
    }
    special(GATEWAY, Endpoint { kind: kind::GATEWAY, ..vip });
    let elsewhere = Endpoint { kind: kind::REMOTE, mac: mac(OTHER_SUBNET), vtep: PEER, vni: net(APP2), ..vip };
    special(OTHER_SUBNET, Endpoint { tag: [13; 8], ..elsewhere });
    special(NODE_ON_APP, Endpoint { kind: kind::NODE, mac: mac(NODE_ON_APP), vtep: PLAIN, ..vip });
    for (ifindex, ip, task) in [(dev.gw1, GW1, LOCAL1), (dev.gw2, GW2, LOCAL2)] {
        state.locals.insert(ifindex, Local { tag: task.tag, ip, mac: mac(ip), ..Local::default() });
        for proto in [6, 17] {
            let target = Target {
                tag: task.tag,
                ifindex,
                ip,
                port: TARGET_PORT.to_be_bytes(),
                mac: mac(ip),
                ..Target::default()
            };
            let key = TargetKey { ip: task.ingress, port: PUBLISHED.to_be_bytes(), proto, _pad: 0 };
            state.targets.insert(key, target);
        }
    }
    state.locals.insert(dev.vxlan, Local { net: net(APP), vni: net(APP), ..Local::default() });

    let on_app = |task: &Task| Backend { tag: task.tag, ip: task.ip, vtep: task.vtep };
    let on_ingress = |task: &Task| Backend { tag: task.tag, ip: task.ingress, vtep: task.vtep };
    state.sets.insert(vip_set(VIP), [LOCAL2, REMOTE1, REMOTE2].iter().map(on_app).collect());
    state.sets.insert(vip_set(EMPTY_VIP), vec![]);
    state.sets.insert(vip_set(SELF_VIP), vec![on_app(&LOCAL1)]);
    for proto in [6, 17] {
        let backends = [LOCAL1, REMOTE1, REMOTE2].iter().map(on_ingress).collect();
        state.sets.insert(port_set(proto, PUBLISHED), backends);
        state.sets.insert(port_set(proto, PUBLISHED_EMPTY), vec![]);
    }
    state
}

pub fn vip_set(ip: Ip4) -> SetKey {
    SetKey::Vip { net: net(APP), ip }
}

pub fn port_set(proto: u8, port: u16) -> SetKey {
    SetKey::Port { proto, port: port.to_be_bytes() }
}
