//! The push stream's objects as the Engine API would show them, which is what the core reads.

use std::time::{Duration, SystemTime};

use hiveway_core::docker_api::api;
use hiveway_proto::swarm as proto;

/// On networks that every engine has of itself, like `host` and `bridge`.
const PREDEFINED: &str = "com.docker.swarm.predefined";

/// States by number. Later versions may add some in between.
const TASK_STATES: [(u32, &str); 14] = [
    (0, "new"),
    (64, "pending"),
    (192, "assigned"),
    (256, "accepted"),
    (320, "preparing"),
    (384, "ready"),
    (448, "starting"),
    (RUNNING, "running"),
    (576, "complete"),
    (640, "shutdown"),
    (704, "failed"),
    (768, "rejected"),
    (800, "remove"),
    (832, "orphaned"),
];
const RUNNING: u32 = 512;

/// A state that we do not know counts as the one before it, but never as running: then as the one after.
fn task_state(number: u32) -> String {
    let after = TASK_STATES.partition_point(|(known, _)| *known <= number);
    let before = TASK_STATES[after.saturating_sub(1)];
    let skip = before.0 == RUNNING && number != RUNNING;
    let state = if skip { TASK_STATES.get(after).copied().unwrap_or(before) } else { before };
    state.1.to_owned()
}

pub(super) fn node(raw: proto::Node) -> api::Node {
    let status = raw.status.unwrap_or_default();
    let state = match status.state {
        1 => "down",
        2 => "ready",
        3 => "disconnected",
        _ => "unknown",
    };
    api::Node {
        id: raw.id,
        created_at: created(raw.meta.as_ref()),
        description: api::Description { hostname: raw.description.unwrap_or_default().hostname },
        status: api::NodeStatus { state: state.into(), addr: status.addr },
        manager_status: api::ManagerStatus { addr: raw.manager_status.unwrap_or_default().addr },
        attachments: raw.attachments.into_iter().map(attachment).collect(),
        data_path_port: raw.vxlan_udp_port,
    }
}

pub(super) fn network(raw: proto::Network) -> api::Network {
    let spec = raw.spec.unwrap_or_default();
    let annotations = spec.annotations.unwrap_or_default();
    let (asked, state) = (spec.driver_config.unwrap_or_default(), raw.driver_state.unwrap_or_default());
    let driver = [state.name, asked.name].into_iter().find(|name| !name.is_empty());
    let mut options: std::collections::BTreeMap<_, _> = asked.options.into_iter().collect();
    options.extend(state.options);
    let configs = raw.ipam.unwrap_or_default().configs;
    api::Network {
        id: raw.id,
        name: annotations.name,
        scope: if annotations.labels.contains_key(PREDEFINED) { "local" } else { "swarm" }.into(),
        driver: driver.unwrap_or_else(|| "overlay".into()),
        ingress: spec.ingress,
        internal: spec.internal,
        ipam: api::Ipam {
            config: configs.into_iter().map(|c| api::IpamConfig { subnet: c.subnet, gateway: c.gateway }).collect(),
        },
        options,
    }
}

pub(super) fn service(raw: proto::Service) -> api::Service {
    let spec = raw.spec.unwrap_or_default();
    let annotations = spec.annotations.unwrap_or_default();
    let mode = match spec.endpoint.unwrap_or_default().mode {
        0 => "vip".to_owned(),
        1 => "dnsrr".to_owned(),
        other => format!("number {other}"),
    };
    api::Service {
        id: raw.id,
        spec: api::ServiceSpec {
            name: annotations.name,
            labels: annotations.labels.into_iter().collect(),
            endpoint_spec: api::EndpointSpec { mode },
        },
        endpoint: endpoint(raw.endpoint.unwrap_or_default()),
    }
}

pub(super) fn task(raw: proto::Task) -> api::Task {
    api::Task {
        id: raw.id,
        service: raw.service_id,
        slot: raw.slot,
        created_at: created(raw.meta.as_ref()),
        node: raw.node_id,
        status: api::TaskStatus { state: task_state(raw.status.unwrap_or_default().state) },
        desired_state: task_state(raw.desired_state),
        attachments: raw.networks.into_iter().map(attachment).collect(),
        endpoint: raw.endpoint.map(endpoint),
    }
}

fn endpoint(raw: proto::Endpoint) -> api::Endpoint {
    let vip = |vip: proto::VirtualIp| api::VirtualIp { network: vip.network_id, addr: vip.addr };
    api::Endpoint {
        ports: raw.ports.iter().map(port).collect(),
        virtual_ips: raw.virtual_ips.into_iter().map(vip).collect(),
    }
}

fn port(raw: &proto::PortConfig) -> api::Port {
    let name = |names: &[&str], number: u32| {
        let known = usize::try_from(number).ok().and_then(|i| names.get(i));
        known.map_or_else(|| format!("number {number}"), ToString::to_string)
    };
    api::Port {
        protocol: name(&["tcp", "udp", "sctp"], raw.protocol),
        target_port: raw.target_port,
        published_port: raw.published_port,
        publish_mode: name(&["ingress", "host"], raw.publish_mode),
    }
}

fn attachment(raw: proto::NetworkAttachment) -> api::Attachment {
    api::Attachment {
        network: api::AttachedNetwork { id: raw.network.unwrap_or_default().id },
        addresses: raw.addresses,
    }
}

/// RFC 3339; empty if there is none.
fn created(meta: Option<&proto::Meta>) -> String {
    const YEAR_10000: u64 = 253_402_300_800;
    let Some(time) = meta.and_then(|meta| meta.created_at.as_ref()) else { return String::new() };
    match (u64::try_from(time.seconds), u32::try_from(time.nanos)) {
        (Ok(seconds), Ok(nanos)) if seconds < YEAR_10000 && nanos < 1_000_000_000 => {
            humantime::format_rfc3339_nanos(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)).to_string()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_later_versions_are_not_running() {
        for (number, state) in [
            (0, "new"),
            (511, "starting"),
            (512, "running"),
            (513, "complete"),
            (575, "complete"),
            (800, "remove"),
            (831, "remove"),
            (9999, "orphaned"),
        ] {
            assert_eq!(task_state(number), state, "{number}");
        }
    }

    #[test]
    fn times() {
        let at = |seconds, nanos| {
            let created_at = Some(proto::Timestamp { seconds, nanos });
            created(Some(&proto::Meta { created_at, version: None }))
        };
        assert_eq!(at(1_795_221_455, 5), "2026-11-21T00:37:35.000000005Z");
        assert_eq!((at(-1, 0), at(i64::MAX, 0), at(0, -1)), (String::new(), String::new(), String::new()));
    }
}
