//! Shape: known fields, types, single values. What comes out still has its places, for what `check` finds.
//!
//! Items are read one by one, each forgotten as it was written before the next one comes.

use std::{collections::BTreeSet, net::Ipv4Addr, num::NonZeroU16, path::PathBuf};

use dataplane_common::addr::Mac;
use ipnet::Ipv4Net;
use serde::de::{Deserialize, DeserializeSeed as _, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess};

use super::{
    place::{Element, Place, Top},
    tree::{Keyed, Object, boolean, ipv4, named, number, subnet, text, whole},
    value::{Key, Map, Read, Shape, Value, Whole, describe, enter},
};
use crate::{
    model::{
        Carrier, Dataplane, EndpointMode, Id, Ids, MAX_MTU, MIN_MTU, NodeState, Port, Protocol, PublishMode, TaskState,
        Timestamp, Vni, parse_mac,
    },
    near::closest,
    problem::{Kind, Problem},
};

/// An item with its place. `item` is `None` when something that it can't do without was wrong.
pub(super) struct Placed<T> {
    pub(super) place: Place,
    pub(super) id: Option<Id>,
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
    pub(super) place: Element,
    pub(super) subnet: Ipv4Net,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) vni: Vni,
}

pub(super) struct RawService {
    pub(super) name: String,
    pub(super) endpoint_mode: EndpointMode,
    pub(super) virtual_ips: Vec<Keyed<Ipv4Addr>>,
    pub(super) ports: Vec<(Element, Port)>,
    pub(super) labels: Vec<Keyed<String>>,
}

pub(super) struct RawTask {
    pub(super) service: Option<Id>,
    pub(super) slot: Option<u64>,
    pub(super) node: Option<Id>,
    pub(super) desired_state: TaskState,
    pub(super) state: TaskState,
    pub(super) unhealthy: bool,
    pub(super) addresses: Vec<Keyed<Ipv4Addr>>,
    pub(super) macs: Vec<Keyed<Mac>>,
    pub(super) created: Option<Timestamp>,
    pub(super) netns: Option<PathBuf>,
    pub(super) ports: Option<Vec<(Element, Port)>>,
}

/// What has been read so far.
#[derive(Default)]
pub(super) struct Reading {
    pub(super) table: RawTable,
    /// All problems of shape.
    pub(super) problems: Vec<Problem>,
    ids: Ids,
}

impl<'t> Deserialize<'t> for Reading {
    fn deserialize<D: Deserializer<'t>>(deserializer: D) -> Result<Self, D::Error> {
        let mut reading = Self::default();
        Read(File(&mut reading)).deserialize(deserializer)?;
        Ok(reading)
    }
}

const FILE: &[&str] = &["version", "nodes", "networks", "services", "tasks"];

/// The file as a whole.
struct File<'r>(&'r mut Reading);

impl<'t> Shape<'t> for File<'_> {
    type Out = ();

    fn scalar(self, value: Value<'t>) {
        Object::new(Top, &value, FILE, &mut self.0.problems);
    }

    fn list<A: SeqAccess<'t>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        self.scalar(Value::List(Vec::new()));
        Ok(())
    }

    fn map<A: MapAccess<'t>>(self, mut entries: A) -> Result<(), A::Error> {
        let Reading { table, problems, ids } = self.0;
        let (mut others, mut sections) = (Map::new(), BTreeSet::new());
        while let Some(key) = entries.next_key_seed(Key)? {
            match &*key {
                "nodes" => {
                    let items = &mut table.nodes;
                    entries.next_value_seed(Read(Section {
                        name: "nodes",
                        known: NODE,
                        read: node,
                        items,
                        ids,
                        problems,
                    }))?;
                }
                "networks" => {
                    let (items, read) = (&mut table.networks, network);
                    entries.next_value_seed(Read(Section {
                        name: "networks",
                        known: NETWORK,
                        read,
                        items,
                        ids,
                        problems,
                    }))?;
                }
                "services" => {
                    let (items, read) = (&mut table.services, service);
                    entries.next_value_seed(Read(Section {
                        name: "services",
                        known: SERVICE,
                        read,
                        items,
                        ids,
                        problems,
                    }))?;
                }
                "tasks" => {
                    let items = &mut table.tasks;
                    entries.next_value_seed(Read(Section {
                        name: "tasks",
                        known: TASK,
                        read: task,
                        items,
                        ids,
                        problems,
                    }))?;
                }
                _ => {
                    enter(&mut others, key, entries.next_value_seed(Read(Whole))?)?;
                    continue;
                }
            }
            if !sections.insert(key.clone()) {
                return Err(A::Error::custom(format!("duplicate key {key:?}")));
            }
        }
        let others = Value::Map(others);
        let found = problems.len();
        let top = Object::new(Top, &others, FILE, problems);
        // Fields that there are not: their paths are their names.
        for problem in &mut problems[found..] {
            problem.kind = closest(&problem.path, FILE.iter().copied()).map_or(Kind::Alone, Kind::HidesIds);
        }
        if let Some(top) = top {
            top.required("version", problems, |v| match whole(v) {
                Some(1) => Ok(()),
                _ => Err(format!("this is version 1 of the format, found {}", describe(v))),
            });
        }
        Ok(())
    }
}

/// How an item is made of an object.
type ReadItem<T> = fn(&Object<'_, '_, Place>, &mut Ids, &mut Vec<Problem>) -> Option<T>;

/// A list of items.
struct Section<'r, T> {
    name: &'static str,
    known: &'static [&'static str],
    read: ReadItem<T>,
    items: &'r mut Vec<Placed<T>>,
    ids: &'r mut Ids,
    problems: &'r mut Vec<Problem>,
}

impl<T> Section<'_, T> {
    fn item(&mut self, value: &Value<'_>) {
        let place = Place { section: self.name, index: self.items.len() };
        let mut found = self.problems.len();
        let object = Object::new(place, value, self.known, self.problems);
        let id = object.as_ref().and_then(|object| {
            // Fields that there are not hide no id.
            found = self.problems.len();
            object.required("id", self.problems, text)
        });
        for problem in &mut self.problems[found..] {
            problem.kind = Kind::HidesIds(self.name);
        }
        // Nobody refers to tasks: theirs need not be found again.
        let make = |text: &str| if self.name == "tasks" { Id::from(text) } else { self.ids.get(text) };
        let id = id.map(make);
        let item = object.and_then(|object| (self.read)(&object, self.ids, self.problems));
        self.items.push(Placed { place, id, item });
    }
}

impl<'t, T> Shape<'t> for Section<'_, T> {
    type Out = ();

    fn scalar(self, value: Value<'t>) {
        // `null` counts as absent.
        if !matches!(value, Value::Null) {
            let message = format!("expected a list, found {}", describe(&value));
            self.problems.push(Problem::error(self.name, message).of(Kind::HidesIds(self.name)));
        }
    }

    fn list<A: SeqAccess<'t>>(mut self, mut items: A) -> Result<(), A::Error> {
        while let Some(value) = items.next_element_seed(Read(Whole))? {
            self.item(&value);
        }
        Ok(())
    }

    fn map<A: MapAccess<'t>>(self, entries: A) -> Result<(), A::Error> {
        let map = Whole.map(entries)?;
        self.scalar(map);
        Ok(())
    }
}

const NODE: &[&str] = &["id", "hostname", "address", "state", "vtep", "dataplane", "addresses"];

fn node(o: &Object<'_, '_, Place>, ids: &mut Ids, problems: &mut Vec<Problem>) -> Option<RawNode> {
    let hostname = o.optional("hostname", problems, text).or_else(|| o.get("id").and_then(|v| text(v).ok()));
    let address = o.required("address", problems, ipv4);
    let vtep = o.optional("vtep", problems, ipv4);
    let state = o.optional("state", problems, named).unwrap_or(NodeState::Ready);
    let dataplane = o.optional("dataplane", problems, |v| match text(v)? {
        "hiveway" => Ok(Dataplane::Hiveway),
        "none" => Ok(Dataplane::None),
        other => Err(format!("unknown data plane {other:?}; one of: hiveway, none")),
    });
    let addresses = o.map("addresses", ids, problems, ipv4);
    Some(RawNode {
        hostname: hostname?.to_owned(),
        state,
        address: address?,
        vtep,
        dataplane: dataplane.unwrap_or_default(),
        addresses,
    })
}

const NETWORK: &[&str] = &["id", "name", "subnets", "ingress", "internal", "encrypted", "mtu", "carrier"];

fn network(o: &Object<'_, '_, Place>, _: &mut Ids, problems: &mut Vec<Problem>) -> Option<RawNetwork> {
    let name = o.optional("name", problems, text).or_else(|| o.get("id").and_then(|v| text(v).ok()));
    let ingress = o.optional("ingress", problems, boolean).unwrap_or(false);
    let internal = o.optional("internal", problems, boolean).unwrap_or(false);
    let encrypted = o.optional("encrypted", problems, boolean).unwrap_or(false);
    let mtu = o.optional("mtu", problems, number(MIN_MTU.into(), MAX_MTU.into()));
    let list = o.list("subnets", problems);
    if list.is_empty() && matches!(o.get("subnets"), None | Some(Value::List(_))) {
        problems.push(Problem::error(o.path("subnets"), "a network needs at least one subnet"));
    }
    let wanted = list.len();
    let subnets: Vec<_> = list.into_iter().filter_map(|(place, v)| read_subnet(place, v, problems)).collect();
    (subnets.len() == wanted && wanted > 0).then_some(())?;
    let mtu = mtu.and_then(|m| u32::try_from(m).ok());
    let carrier = o.optional("carrier", problems, |v| match text(v)? {
        "hiveway" => Ok(Carrier::Hiveway),
        "engine" => Ok(Carrier::Engine),
        other => Err(format!("unknown carrier {other:?}; one of: hiveway, engine")),
    });
    let carrier = carrier.unwrap_or_default();
    Some(RawNetwork { name: name?.to_owned(), subnets, ingress, internal, encrypted, mtu, carrier })
}

fn read_subnet(place: Element, value: &Value<'_>, problems: &mut Vec<Problem>) -> Option<RawSubnet> {
    let o = Object::new(place, value, &["subnet", "gateway", "vni"], problems)?;
    let net = o.required("subnet", problems, subnet);
    let gateway = o.optional("gateway", problems, ipv4);
    let vni = o.required("vni", problems, number(1, 0xff_ffff));
    let vni = vni.and_then(|v| Vni::new(u32::try_from(v).ok()?));
    Some(RawSubnet { place, subnet: net?, gateway, vni: vni? })
}

const SERVICE: &[&str] = &["id", "name", "endpoint_mode", "virtual_ips", "ports", "labels"];

fn service(o: &Object<'_, '_, Place>, ids: &mut Ids, problems: &mut Vec<Problem>) -> Option<RawService> {
    let name = o.optional("name", problems, text).or_else(|| o.get("id").and_then(|v| text(v).ok()));
    let endpoint_mode = o.optional("endpoint_mode", problems, |v| match text(v)? {
        "vip" => Ok(EndpointMode::Vip),
        "dnsrr" => Ok(EndpointMode::Dnsrr),
        other => Err(format!("unknown endpoint mode {other:?}; one of: vip, dnsrr")),
    });
    let virtual_ips = o.map("virtual_ips", ids, problems, ipv4);
    let ports = ports(o, problems);
    let labels = o.map("labels", ids, problems, |v| match v {
        Value::Text(s) => Ok(s.to_string()),
        other => text(other).map(str::to_owned),
    });
    Some(RawService {
        name: name?.to_owned(),
        endpoint_mode: endpoint_mode.unwrap_or_default(),
        virtual_ips,
        ports,
        labels,
    })
}

fn ports(o: &Object<'_, '_, Place>, problems: &mut Vec<Problem>) -> Vec<(Element, Port)> {
    let list = o.list("ports", problems);
    list.into_iter().filter_map(|(place, v)| Some((place, port(place, v, problems)?))).collect()
}

fn port(place: Element, value: &Value<'_>, problems: &mut Vec<Problem>) -> Option<Port> {
    let known = ["protocol", "target_port", "published_port", "publish_mode", "name"];
    let o = Object::new(place, value, &known, problems)?;
    let narrow = |n: u64| u16::try_from(n).ok().and_then(NonZeroU16::new);
    let protocol = o.optional("protocol", problems, named).unwrap_or(Protocol::Tcp);
    let target_port = o.required("target_port", problems, number(1, 65_535)).and_then(narrow);
    let published_port = o.optional("published_port", problems, number(0, 65_535)).and_then(narrow);
    let publish_mode = o.optional("publish_mode", problems, named).unwrap_or(PublishMode::Ingress);
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

fn task(o: &Object<'_, '_, Place>, ids: &mut Ids, problems: &mut Vec<Problem>) -> Option<RawTask> {
    let service = o.optional("service_id", problems, |v| Ok(ids.get(text(v)?)));
    let slot = o.optional("slot", problems, number(0, u64::MAX));
    let node = o.optional("node_id", problems, |v| Ok(ids.get(text(v)?)));
    let desired_state = o.required("desired_state", problems, named);
    let state = o.required("state", problems, named);
    let unhealthy = o.optional("unhealthy", problems, boolean).unwrap_or(false);
    let addresses = o.map("addresses", ids, problems, ipv4);
    let mac = |v: &Value<'_>| parse_mac(text(v)?);
    let mut macs = o.map("mac", ids, problems, mac);
    macs.extend(o.map("macs", ids, problems, mac));
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
