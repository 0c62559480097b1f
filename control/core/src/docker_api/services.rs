//! Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
};

use super::{api, items::insert, networks::Networks};
use crate::{
    desired::LeftOut,
    model::{ByNetwork, EndpointMode, Id, Network, Oddity, Port, Protocol, PublishMode, Service, oddities},
};

pub(super) fn load(raw: Vec<api::Service>, networks: &Networks, left_out: &mut Vec<LeftOut>) -> BTreeMap<Id, Service> {
    let mut services = BTreeMap::new();
    let mut taken: BTreeSet<(Id, Ipv4Addr)> = BTreeSet::new();
    for raw in raw {
        let what = format!("service {} ({})", raw.spec.name, raw.id);
        let endpoint_mode = match raw.spec.endpoint_spec.mode.as_str() {
            "" | "vip" => EndpointMode::Vip,
            "dnsrr" => EndpointMode::Dnsrr,
            other => {
                left_out.push(LeftOut { what, why: format!("unknown endpoint mode {other:?}") });
                continue;
            }
        };
        let mut virtual_ips = ByNetwork::default();
        for vip in raw.endpoint.virtual_ips.iter().filter(|_| endpoint_mode == EndpointMode::Vip) {
            match address(&vip.network, &vip.addr, networks) {
                Ok(None) => {}
                Ok(Some((network, ip))) if taken.insert((network.clone(), ip)) => {
                    virtual_ips.insert(network, ip);
                }
                Ok(Some(_)) => left_out.push(LeftOut {
                    what: format!("virtual address {} of {what}", vip.addr),
                    why: "another service has it too".into(),
                }),
                Err(why) => left_out.push(LeftOut { what: format!("virtual address {} of {what}", vip.addr), why }),
            }
        }
        let mut ports = Vec::new();
        for raw in &raw.endpoint.ports {
            match port(raw) {
                Ok(port) => ports.push(port),
                Err(why) => left_out
                    .push(LeftOut { what: format!("port {}/{} of {what}", raw.published_port, raw.protocol), why }),
            }
        }
        if !ports.is_empty() {
            name_oddities(&raw.spec.labels, &what, left_out);
        }
        let service = Service {
            id: Id::from(raw.id),
            name: raw.spec.name,
            endpoint_mode,
            virtual_ips,
            ports: ports.into_iter().collect(),
            labels: raw.spec.labels,
            vanished: false,
        };
        insert(&mut services, service.id.clone(), service, || what, left_out);
    }
    services
}

/// Names what of our labels is not programmed. One that there is not, or that can't be read, closes the ports to all.
fn name_oddities(labels: &BTreeMap<String, String>, what: &str, left_out: &mut Vec<LeftOut>) {
    for (key, text) in labels {
        left_out.extend(oddities(key, text).into_iter().map(|oddity| match oddity {
            Oddity::Ignored(entry) => {
                LeftOut { what: format!("{entry} in label {key} of {what}"), why: "IPv6 is not supported yet".into() }
            }
            Oddity::Unreadable(why) => closing(key, what, &why),
        }));
    }
}

/// What is said of a label that closes the published ports of `what`.
pub(crate) fn closing(key: &str, what: &str, why: &str) -> LeftOut {
    LeftOut {
        what: format!("label {key} of {what}"),
        why: format!("{why}; until it is right its published ports are closed to all"),
    }
}

pub(super) fn port(raw: &api::Port) -> Result<Port, String> {
    let protocol: Protocol = if raw.protocol.is_empty() { Protocol::Tcp } else { raw.protocol.parse()? };
    let publish_mode = if raw.publish_mode.is_empty() { PublishMode::Ingress } else { raw.publish_mode.parse()? };
    let narrow = |n: u32| u16::try_from(n).map_err(|_| format!("{n} is no port"));
    let target_port = NonZeroU16::new(narrow(raw.target_port)?).ok_or("it has no target port")?;
    // 0: not published yet.
    let published_port = NonZeroU16::new(narrow(raw.published_port)?);
    Ok(Port { protocol, published_port, target_port, publish_mode })
}

/// An address like `10.0.1.2/24` on a network; `None` when the network itself was left out.
fn address(network: &str, text: &str, networks: &Networks) -> Result<Option<(Id, Ipv4Addr)>, String> {
    match networks.usable.get(network) {
        Some(network) => on_network(network, text).map(|ip| Some((network.id.clone(), ip))),
        None if networks.unusable.contains(network) => Ok(None),
        None => Err(format!("network {network} is unknown")),
    }
}

/// An address like `10.0.1.2/24` that a host may have on this network.
pub(super) fn on_network(network: &Network, text: &str) -> Result<Ipv4Addr, String> {
    let ip = match text.split('/').next().unwrap_or_default().parse() {
        Ok(IpAddr::V4(ip)) => ip,
        Ok(IpAddr::V6(_)) => return Err("IPv6 is not supported yet".into()),
        Err(_) => return Err("it is no address".into()),
    };
    match network.subnet_of(ip) {
        Some(subnet) if ip == subnet.gateway => Err(format!("it is the gateway of {}", subnet.subnet)),
        Some(subnet) if subnet.usable(ip) => Ok(ip),
        Some(subnet) => Err(format!("no host can have it in {}", subnet.subnet)),
        None => Err(format!("it is outside network {}", network.name)),
    }
}
