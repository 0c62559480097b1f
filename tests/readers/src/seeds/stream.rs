//! Captures as a manager's push stream says them: the first as lists, the next as events.

use anyhow::Result;
use hiveway_proto::swarm::{
    Annotations, Driver, Endpoint, EndpointSpec, IpamConfig, IpamOptions, ManagerStatus, Meta, Network,
    NetworkAttachment, NetworkId, NetworkSpec, Node, NodeDescription, NodeStatus, Object, PortConfig, Service,
    ServiceSpec, Task, TaskStatus, Timestamp, Version, VirtualIp, WatchMessage, object::Kind, watch_message::Event,
};
use prost::Message as _;
use serde_json::Value;

use super::Capture;

/// Actions of events.
const UPDATE: u32 = 2;
const REMOVE: u32 = 4;

/// A stream per pair of captures that follow each other.
pub(super) fn seeds(captures: &[Capture]) -> Result<Vec<Vec<u8>>> {
    let streams = captures.iter().zip(captures.iter().skip(1)).map(|(before, after)| {
        let gone = kinds(before, 2).last().map(|kind| event(REMOVE, kind)).into_iter().collect();
        let lists = kinds(before, 0).map(|kind| event(0, kind)).collect();
        let events = kinds(after, 1).map(|kind| event(UPDATE, kind)).collect();
        let messages = [lists, events, gone].map(|events| WatchMessage { events });
        messages.iter().flat_map(WatchMessage::encode_length_delimited_to_vec).collect()
    });
    Ok(streams.collect())
}

fn event(action: u32, kind: Kind) -> Event {
    Event { action, object: Some(Object { kind: Some(kind) }) }
}

/// A capture's objects. `later` is added to their versions.
fn kinds(capture: &Capture, later: u64) -> impl Iterator<Item = Kind> {
    let Capture { nodes, services, tasks, networks } = capture;
    let nodes = list(nodes).map(move |raw| Kind::Node(node(raw, later)));
    let networks = list(networks).map(move |raw| Kind::Network(network(raw, later)));
    let services = list(services).map(move |raw| Kind::Service(service(raw, later)));
    let tasks = list(tasks).map(move |raw| Kind::Task(task(raw, later)));
    nodes.chain(networks).chain(services).chain(tasks)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|number| u32::try_from(number).ok()).unwrap_or_default()
}

/// The place of a name among those that have a number.
fn numbered(names: &[(&str, u32)], value: &Value) -> u32 {
    names.iter().find(|(name, _)| value == name).map_or(0, |(_, number)| *number)
}

fn meta(raw: &Value, later: u64) -> Option<Meta> {
    let index = raw["Version"]["Index"].as_u64().unwrap_or(1) + later;
    let created_at = Some(Timestamp { seconds: 1_795_221_455 + i64::from(number(&raw["Slot"])), nanos: 5 });
    Some(Meta { version: Some(Version { index }), created_at })
}

fn map<C: FromIterator<(String, String)>>(value: &Value) -> C {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
}

fn state(value: &Value) -> u32 {
    numbered(&[("running", 512), ("shutdown", 640), ("failed", 704), ("preparing", 320), ("assigned", 192)], value)
}

fn attachments(raw: &Value) -> Vec<NetworkAttachment> {
    let one = |raw: &Value| NetworkAttachment {
        network: Some(NetworkId { id: text(&raw["Network"]["ID"]) }),
        addresses: list(&raw["Addresses"]).map(text).collect(),
    };
    list(&raw["NetworksAttachments"]).map(one).collect()
}

fn endpoint(raw: &Value) -> Endpoint {
    let port = |raw: &Value| PortConfig {
        protocol: numbered(&[("udp", 1), ("sctp", 2)], &raw["Protocol"]),
        target_port: number(&raw["TargetPort"]),
        published_port: number(&raw["PublishedPort"]),
        publish_mode: numbered(&[("host", 1)], &raw["PublishMode"]),
    };
    let vip = |raw: &Value| VirtualIp { network_id: text(&raw["NetworkID"]), addr: text(&raw["Addr"]) };
    Endpoint {
        ports: list(&raw["Ports"]).map(port).collect(),
        virtual_ips: list(&raw["VirtualIPs"]).map(vip).collect(),
    }
}

fn node(raw: &Value, later: u64) -> Node {
    let state = numbered(&[("down", 1), ("ready", 2), ("disconnected", 3)], &raw["Status"]["State"]);
    let manager = raw.get("ManagerStatus").map(|status| ManagerStatus { addr: text(&status["Addr"]) });
    Node {
        id: text(&raw["ID"]),
        meta: meta(raw, later),
        description: Some(NodeDescription { hostname: text(&raw["Description"]["Hostname"]) }),
        status: Some(NodeStatus { state, addr: text(&raw["Status"]["Addr"]) }),
        manager_status: manager.filter(|_| later == 0),
        attachments: attachments(raw),
        vxlan_udp_port: 4789,
    }
}

fn network(raw: &Value, later: u64) -> Network {
    let config = |raw: &Value| IpamConfig { subnet: text(&raw["Subnet"]), gateway: text(&raw["Gateway"]) };
    Network {
        id: text(&raw["Id"]),
        meta: meta(raw, later),
        spec: Some(NetworkSpec {
            annotations: Some(Annotations { name: text(&raw["Name"]), labels: map(&raw["Labels"]) }),
            driver_config: None,
            internal: raw["Internal"] == true,
            ingress: raw["Ingress"] == true,
        }),
        driver_state: Some(Driver { name: text(&raw["Driver"]), options: map(&raw["Options"]) }),
        ipam: Some(IpamOptions { configs: list(&raw["IPAM"]["Config"]).map(config).collect() }),
    }
}

fn service(raw: &Value, later: u64) -> Service {
    let spec = &raw["Spec"];
    Service {
        id: text(&raw["ID"]),
        meta: meta(raw, later),
        spec: Some(ServiceSpec {
            annotations: Some(Annotations { name: text(&spec["Name"]), labels: map(&spec["Labels"]) }),
            endpoint: Some(EndpointSpec { mode: numbered(&[("dnsrr", 1)], &spec["EndpointSpec"]["Mode"]) }),
        }),
        endpoint: Some(endpoint(&raw["Endpoint"])),
    }
}

fn task(raw: &Value, later: u64) -> Task {
    Task {
        id: text(&raw["ID"]),
        meta: meta(raw, later),
        service_id: text(&raw["ServiceID"]),
        slot: raw["Slot"].as_u64().unwrap_or_default(),
        node_id: text(&raw["NodeID"]),
        status: Some(TaskStatus { state: state(&raw["Status"]["State"]) }),
        desired_state: state(&raw["DesiredState"]),
        networks: attachments(raw),
        endpoint: None,
    }
}

#[cfg(test)]
mod tests {
    use control::swarm;
    use hiveway_core::{
        docker_api::{EngineCapture, assemble, parse},
        model::Carrier,
    };

    use super::{super::captures, *};

    /// What the stream's seeds say is what the captures say.
    #[test]
    fn a_capture_as_a_stream_has_the_same_networks_and_services() {
        let captures = captures().unwrap();
        for (capture, seed) in captures.iter().zip(seeds(&captures).unwrap()) {
            let lists = WatchMessage::decode_length_delimited(&seed[..]).unwrap();
            let said = assemble(swarm::replay([lists]).next().unwrap(), Carrier::Hiveway).model;
            let [nodes, services, tasks, networks] =
                [&capture.nodes, &capture.services, &capture.tasks, &capture.networks].map(Value::to_string);
            let capture = EngineCapture { nodes: &nodes, services: &services, tasks: &tasks, networks: &networks };
            let answered = parse(&capture).unwrap().model;
            assert_eq!((said.networks, said.services), (answered.networks, answered.services));
            assert_eq!(said.tasks.len(), answered.tasks.len());
        }
    }
}
