//! Model → desired state of one node.

mod attached;
mod gateway;
mod maps;
mod networks;
mod tasks;

use std::{collections::BTreeSet, net::Ipv4Addr};

pub use maps::map_state;

use crate::{
    binding::bindings,
    desired::{Desired, GatewayAddresses, GatewayBridge, HostLink, LeftOut},
    model::{Carrier, Dataplane, Model, Node, NodeLookup, NodeState},
    roles::TaskRole,
    settings::Settings,
    topology::Topology,
};

/// Why there is no desired state at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeriveError {
    /// `--node` names nobody in the table, or several.
    #[error("--node: {0}")]
    Node(#[from] NodeLookup),
    /// The gateway bridge's subnet has no room for a container.
    #[error("--gwbridge-subnet {0} is too small; it needs room for the bridge and its containers, /30 at least")]
    GatewaySubnet(ipnet::Ipv4Net),
}

/// What the node `settings.node` should look like.
///
/// `addresses` are the gateway-bridge addresses in use: tasks keep theirs, new tasks get the lowest free one, and an
/// address is free again only when its task is gone from the model. Nothing else is remembered between calls.
pub fn derive(model: &Model, settings: &Settings, addresses: &mut GatewayAddresses) -> Result<Desired, DeriveError> {
    let me = model.find_node(&settings.node)?;
    if settings.gwbridge_subnet.prefix_len() > 30 {
        return Err(DeriveError::GatewaySubnet(settings.gwbridge_subnet));
    }
    let vtep = settings.vtep.unwrap_or(me.vtep);
    let topology = Topology::new(model, settings, &me.id, vtep);
    let mut left_out = topology.left_out.clone();

    gateway::allocate(&topology, settings.gwbridge_address(), settings.adopts_gwbridge(), addresses, &mut left_out);
    let tasks = tasks::local(&topology, settings, addresses);
    let gateway = tasks
        .iter()
        .any(|t| t.interfaces.iter().any(|i| i.role == crate::desired::Role::Gateway))
        .then(|| GatewayBridge { bridge: settings.gwbridge.clone(), address: settings.gwbridge_address() });
    if me.dataplane == Dataplane::None {
        left_out.push(LeftOut {
            what: format!("node {} ({})", me.hostname, me.id),
            why: "the table says `dataplane: none` but an agent runs here; other nodes send it no mesh traffic".into(),
        });
    }
    outside_the_mesh(&topology, &mut left_out);
    let (restricted, closed) = maps::restricted(&topology, settings);
    left_out.extend(closed);
    let bound = bindings(&topology, settings);
    left_out.extend(maps::without_class(&topology, &bound));
    left_out.sort();
    left_out.dedup();
    let published: BTreeSet<_> =
        topology.answered().map(|(key, _)| key).chain(topology.host_ports.keys()).copied().collect();
    Ok(Desired {
        node: me.id.to_string(),
        vtep: Some(vtep),
        networks: networks::carried(&topology, &me.id),
        tasks,
        attached: attached::local(&topology),
        gateway,
        // Probes leave through it, too.
        host_link: (!published.is_empty() || has_peers(model, &me.id, vtep))
            .then_some(HostLink { ip: settings.host_ip }),
        published,
        bound,
        restricted,
        vteps: other_vteps(model, &me.id, vtep).collect(),
        left_out,
    })
}

/// Tunnel addresses of all other nodes, down ones too: what they still send is theirs.
fn other_vteps<'a>(model: &'a Model, me: &'a str, own: Ipv4Addr) -> impl Iterator<Item = Ipv4Addr> + 'a {
    model.nodes.values().filter(move |n| n.id != me && n.vtep != own).map(|n| n.vtep)
}

/// Whether any other node runs Hiveway.
fn has_peers(model: &Model, me: &str, own: Ipv4Addr) -> bool {
    peers(model, me, own).next().is_some()
}

/// Other nodes that should answer probes: they run Hiveway and are not down. Where agents report, one that does not say
/// its VXLAN port is of a version before probes were answered; tables from files say it of no node.
pub fn peers<'a>(model: &'a Model, me: &'a str, own: Ipv4Addr) -> impl Iterator<Item = &'a Node> {
    let reported = model.nodes.values().any(|node| node.id == me && node.vxlan_port.is_some());
    model.nodes.values().filter(move |node| {
        let answers = !reported || node.vxlan_port.is_some();
        let other = node.id != me && node.vtep != own;
        other && answers && node.dataplane == Dataplane::Hiveway && node.state != NodeState::Down
    })
}

/// Names the tasks that would serve a published port but whose nodes take no mesh frames.
fn outside_the_mesh(topology: &Topology<'_>, left_out: &mut Vec<LeftOut>) {
    // To a stock node clients would be led as the engine does it, under this node's own address.
    let instead = match topology.ingress() {
        Some(ingress) if ingress.carrier == Carrier::Engine => {
            ", and the table has no address of this node on the ingress network to speak with"
        }
        _ => "",
    };
    for ((_, port), published) in &topology.published {
        if topology.only_engine_reaches(published.service) {
            let name = topology.model.services.get(published.service).map_or(published.service, |s| s.name.as_str());
            left_out.push(LeftOut {
                what: format!("published port {port} of service {name}"),
                why: "none of its tasks has an interface on its node's gateway bridge; it is left to the engine's own mesh"
                    .into(),
            });
        }
    }
    for placed in topology.endpoints.values().filter(|p| p.role == TaskRole::Backend && !p.in_mesh) {
        for (proto, port) in placed.task.ports.iter().filter_map(|p| p.ingress()) {
            let owned = topology.published.get(&(proto, port));
            if owned.is_some_and(|p| placed.task.service.as_deref() == Some(p.service)) {
                let why = if placed.task.unreachable {
                    format!(
                        "it has no interface on the gateway bridge of its node {}: its way out is another network",
                        placed.node
                    )
                } else {
                    format!("its node {} does not run Hiveway and takes no mesh frames{}", placed.node, instead)
                };
                left_out.push(LeftOut {
                    what: format!("task {} as backend of published port {port}", placed.task.id),
                    why,
                });
            }
        }
    }
}
