//! Shape: known fields, types, single values. What comes out still has its places, for what `check` finds.

use std::{net::Ipv4Addr, num::NonZeroU16, path::PathBuf};

use dataplane_common::addr::Mac;
use ipnet::Ipv4Net;
use serde_json::Value;

use super::tree::{Keyed, Object, boolean, ipv4, named, number, subnet, text};
use crate::{
    model::{
        Carrier, Dataplane, EndpointMode, MAX_MTU, MIN_MTU, NodeState, Port, TaskState, Timestamp, Vni, parse_mac,
    },
    problem::Problem,
};

/// An item with its place, like `tasks[3]`. `item` is `None` when something that it can't do without was wrong.
pub(super) struct Placed<T> {
    pub(super) path: String,
    pub(super) id: Option<String>,
    pub(super) item: Option<T>,
}

#[derive(Default)]
pub(super) struct RawTable {
    pub(super) nodes: Vec<Placed<RawNode>>,
    pub(super) networks: Vec<Placed<RawNetwork>>,
    pub(super) services: Vec<Placed<RawService>>,
    pub(super) tasks: Vec<Placed<RawTask>>,
}

pub(super) struct RawNode {
    pub(super) hostname: String,
    pub(super) state: NodeState,
    pub(super) address: Ipv4Addr,
    pub(super) vtep: Option<Ipv4Addr>,
    pub(super) dataplane: Dataplane,
    pub(super) addresses: Vec<Keyed<Ipv4Addr>>,
}

pub(super) struct RawNetwork {
    pub(super) name: String,
    pub(super) subnets: Vec<RawSubnet>,
    pub(super) ingress: bool,
    pub(super) internal: bool,
    pub(super) encrypted: bool,
    pub(super) carrier: Carrier,
    pub(super) mtu: Option<u32>,
}

pub(super) struct RawSubnet {
    pub(super) path: String,
    pub(super) subnet: Ipv4Net,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) vni: Vni,
}

pub(super) struct RawService {
    pub(super) name: String,
    pub(super) endpoint_mode: EndpointMode,
    pub(super) virtual_ips: Vec<Keyed<Ipv4Addr>>,
    pub(super) ports: Vec<(String, Port)>,
    pub(super) labels: Vec<Keyed<String>>,
}

pub(super) struct RawTask {
    pub(super) service: Option<String>,
    pub(super) slot: Option<u64>,
    pub(super) node: Option<String>,
    pub(super) desired_state: TaskState,
    pub(super) state: TaskState,
    pub(super) unhealthy: bool,
    pub(super) addresses: Vec<Keyed<Ipv4Addr>>,
    pub(super) macs: Vec<Keyed<Mac>>,
    pub(super) created: Option<Timestamp>,
    pub(super) netns: Option<PathBuf>,
    pub(super) ports: Option<Vec<(String, Port)>>,
}

/// Reads the whole table; all problems of shape.
pub(super) fn read(value: &Value) -> (RawTable, Vec<Problem>) {
    let mut problems = Vec::new();
    let known = ["version", "nodes", "networks", "services", "tasks"];
    let Some(top) = Object::new(String::new(), value, &known, &mut problems) else {
        return (RawTable::default(), problems);
    };
    top.required("version", &mut problems, |v| match v.as_u64() {
        Some(1) => Ok(()),
        _ => Err(format!("this is version 1 of the format, found {}", super::tree::describe(v))),
    });
    let table = RawTable {
        nodes: items(&top, "nodes", NODE, node, &mut problems),
        networks: items(&top, "networks", NETWORK, network, &mut problems),
        services: items(&top, "services", SERVICE, service, &mut problems),
        tasks: items(&top, "tasks", TASK, task, &mut problems),
    };
    (table, problems)
}

fn items<T>(
    top: &Object<'_>,
    section: &str,
    known: &[&str],
    read: fn(&Object<'_>, &mut Vec<Problem>) -> Option<T>,
    problems: &mut Vec<Problem>,
) -> Vec<Placed<T>> {
    let list = top.list(section, problems);
    list.into_iter()
        .map(|(path, value)| match Object::new(path.clone(), value, known, problems) {
            Some(object) => {
                let id = object.required("id", problems, text);
                Placed { path, id, item: read(&object, problems) }
            }
            None => Placed { path, id: None, item: None },
        })
        .collect()
}

const NODE: &[&str] = &["id", "hostname", "address", "state", "vtep", "dataplane", "addresses"];

fn node(o: &Object<'_>, problems: &mut Vec<Problem>) -> Option<RawNode> {
    let hostname = o.optional("hostname", problems, text).or_else(|| o.get("id").and_then(|v| text(v).ok()));
    let address = o.required("address", problems, ipv4);
    let vtep = o.optional("vtep", problems, ipv4);
    let state = o.optional("state", problems, named).unwrap_or(NodeState::Ready);
    let dataplane = o.optional("dataplane", problems, |v| match text(v)?.as_str() {
        "hiveway" => Ok(Dataplane::Hiveway),
        "none" => Ok(Dataplane::None),
        other => Err(format!("unknown data plane {other:?}; one of: hiveway, none")),
    });
    let addresses = o.map("addresses", problems, ipv4);
    Some(RawNode {
        hostname: hostname?,
        state,
        address: address?,
        vtep,
        dataplane: dataplane.unwrap_or_default(),
        addresses,
    })
}

const NETWORK: &[&str] = &["id", "name", "subnets", "ingress", "internal", "encrypted", "mtu", "carrier"];

fn network(o: &Object<'_>, problems: &mut Vec<Problem>) -> Option<RawNetwork> {
    let name = o.optional("name", problems, text).or_else(|| o.get("id").and_then(|v| text(v).ok()));
    let ingress = o.optional("ingress", problems, boolean).unwrap_or(false);
    let internal = o.optional("internal", problems, boolean).unwrap_or(false);
    let encrypted = o.optional("encrypted", problems, boolean).unwrap_or(false);
    let mtu = o.optional("mtu", problems, number(MIN_MTU.into(), MAX_MTU.into()));
    let list = o.list("subnets", problems);
    if list.is_empty() && matches!(o.get("subnets"), None | Some(Value::Array(_))) {
        problems.push(Problem::error(o.path("subnets"), "a network needs at least one subnet"));
    }
    let wanted = list.len();
    let subnets: Vec<_> = list.into_iter().filter_map(|(path, v)| read_subnet(path, v, problems)).collect();
    (subnets.len() == wanted && wanted > 0).then_some(())?;
    let mtu = mtu.and_then(|m| u32::try_from(m).ok());
    let carrier = o.optional("carrier", problems, |v| match text(v)?.as_str() {
        "hiveway" => Ok(Carrier::Hiveway),
        "engine" => Ok(Carrier::Engine),
        other => Err(format!("unknown carrier {other:?}; one of: hiveway, engine")),
    });
    let carrier = carrier.unwrap_or_default();
    Some(RawNetwork { name: name?, subnets, ingress, internal, encrypted, mtu, carrier })
}

fn read_subnet(path: String, value: &Value, problems: &mut Vec<Problem>) -> Option<RawSubnet> {
    let o = Object::new(path, value, &["subnet", "gateway", "vni"], problems)?;
    let net = o.required("subnet", problems, subnet);
    let gateway = o.optional("gateway", problems, ipv4);
    let vni = o.required("vni", problems, number(1, 0xff_ffff));
    let vni = vni.and_then(|v| Vni::new(u32::try_from(v).ok()?));
    Some(RawSubnet { path: o.own_path().to_owned(), subnet: net?, gateway, vni: vni? })
}

const SERVICE: &[&str] = &["id", "name", "endpoint_mode", "virtual_ips", "ports", "labels"];

fn service(o: &Object<'_>, problems: &mut Vec<Problem>) -> Option<RawService> {
    let name = o.optional("name", problems, text).or_else(|| o.get("id").and_then(|v| text(v).ok()));
    let endpoint_mode = o.optional("endpoint_mode", problems, |v| match text(v)?.as_str() {
        "vip" => Ok(EndpointMode::Vip),
        "dnsrr" => Ok(EndpointMode::Dnsrr),
        other => Err(format!("unknown endpoint mode {other:?}; one of: vip, dnsrr")),
    });
    let virtual_ips = o.map("virtual_ips", problems, ipv4);
    let ports = ports(o, problems);
    let labels = o.map("labels", problems, |v| match v {
        Value::String(s) => Ok(s.clone()),
        other => text(other),
    });
    Some(RawService { name: name?, endpoint_mode: endpoint_mode.unwrap_or_default(), virtual_ips, ports, labels })
}

fn ports(o: &Object<'_>, problems: &mut Vec<Problem>) -> Vec<(String, Port)> {
    let list = o.list("ports", problems);
    list.into_iter().filter_map(|(path, v)| Some((path.clone(), port(path, v, problems)?))).collect()
}

fn port(path: String, value: &Value, problems: &mut Vec<Problem>) -> Option<Port> {
    let known = ["protocol", "target_port", "published_port", "publish_mode", "name"];
    let o = Object::new(path, value, &known, problems)?;
    let narrow = |n: u64| u16::try_from(n).ok().and_then(NonZeroU16::new);
    let protocol = o.optional("protocol", problems, named).unwrap_or(crate::model::Protocol::Tcp);
    let target_port = o.required("target_port", problems, number(1, 65_535)).and_then(narrow);
    let published_port = o.optional("published_port", problems, number(0, 65_535)).and_then(narrow);
    let publish_mode = o.optional("publish_mode", problems, named).unwrap_or(crate::model::PublishMode::Ingress);
    o.optional("name", problems, text);
    Some(Port { protocol, published_port, target_port: target_port?, publish_mode })
}

const TASK: &[&str] = &[
    "id",
    "service_id",
    "slot",
    "node_id",
    "desired_state",
    "state",
    "unhealthy",
    "created_at",
    "addresses",
    "mac",
    "macs",
    "netns",
    "ports",
];

fn task(o: &Object<'_>, problems: &mut Vec<Problem>) -> Option<RawTask> {
    let service = o.optional("service_id", problems, text);
    let slot = o.optional("slot", problems, number(0, u64::MAX));
    let node = o.optional("node_id", problems, text);
    let desired_state = o.required("desired_state", problems, named);
    let state = o.required("state", problems, named);
    let unhealthy = o.optional("unhealthy", problems, boolean).unwrap_or(false);
    let addresses = o.map("addresses", problems, ipv4);
    let mac = |v: &Value| parse_mac(&text(v)?);
    let mut macs = o.map("mac", problems, mac);
    macs.extend(o.map("macs", problems, mac));
    let created = o.optional("created_at", problems, named);
    let netns = o.optional("netns", problems, |v| {
        let path = PathBuf::from(text(v)?);
        if path.is_absolute() { Ok(path) } else { Err(format!("{} is not an absolute path", path.display())) }
    });
    let own_ports = o.get("ports").is_some().then(|| ports(o, problems));
    Some(RawTask {
        service,
        slot,
        node,
        desired_state: desired_state?,
        state: state?,
        unhealthy,
        addresses,
        macs,
        created,
        netns,
        ports: own_ports,
    })
}
