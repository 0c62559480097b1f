//! What a Docker engine has made for a task, found by looking into its sandbox: overlay interfaces by their address,
//! the one on the gateway bridge by the bridge's subnet and its other end.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;

use crate::{
    desired::{AttachedTask, Desired, IfName},
    observed::{GatewayPort, Inside, Kind, Link, Namespace, OverlayLink, Sandbox},
    plan::{Blocked, Item},
    settings::Settings,
};

/// What was found, and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandboxes {
    /// By task id, of those with a namespace: as they were before where a look has failed.
    pub found: BTreeMap<String, Sandbox>,
    /// Tasks that are not served completely yet, and why.
    pub waiting: Vec<Blocked>,
    /// A namespace is there but not finished: it says nothing when it is.
    pub incomplete: bool,
    /// Ids of running tasks whose namespace is finished but for an interface on the gateway bridge. Where that stays
    /// so, another network of theirs is the way out (macvlan, a bridge network of the swarm), and the engine makes
    /// none.
    pub without_gateway: BTreeSet<String>,
}

/// Looks for the interfaces of all attached tasks. `before`: what the last look has found.
pub fn sandboxes(
    desired: &Desired,
    settings: &Settings,
    links: &BTreeMap<IfName, Link>,
    namespaces: &BTreeMap<String, Namespace>,
    before: &BTreeMap<String, Sandbox>,
) -> Sandboxes {
    let mut all = Sandboxes::default();
    for task in &desired.attached {
        let inside = match namespaces.get(&task.id) {
            Some(Namespace::Present(inside)) => inside,
            // An engine makes the file before the namespace, and keeps it for a while after it.
            Some(Namespace::Unusable { why }) => {
                all.waits(task, format!("{why}; waiting for the engine"));
                all.incomplete = true;
                continue;
            }
            // A look that fails says nothing of the container, which works as before.
            Some(Namespace::Unread { .. }) => {
                let same = |kept: &&Sandbox| kept.netns.is_none() || kept.netns == task.netns;
                if let Some(kept) = before.get(&task.id).filter(same) {
                    all.found.insert(task.id.clone(), still_there(kept, settings, links));
                }
                continue;
            }
            Some(Namespace::Missing { path }) => {
                all.waits(task, format!("network namespace {path} is not there; waiting for it"));
                // Nobody says where it will be.
                all.incomplete |= task.netns.is_none();
                continue;
            }
            None => {
                all.waits(task, "network namespace was not looked at yet".to_owned());
                continue;
            }
        };
        let sandbox = look(task, settings, links, inside);
        let missing: Vec<String> = task
            .overlay_ports
            .iter()
            .filter(|port| !sandbox.overlay_ports.contains_key(&port.id))
            .map(|port| format!("no interface has its address {}", port.ip))
            .chain(
                (task.gateway && sandbox.gateway.is_none())
                    .then(|| format!("no interface of it is on the gateway bridge {}", settings.gwbridge)),
            )
            .collect();
        let only_gateway = missing.len() == 1 && task.gateway && sandbox.gateway.is_none();
        if only_gateway && task.running {
            all.without_gateway.insert(task.id.clone());
        }
        // Other nodes leave such a task out already: nothing is waited for.
        let reported = only_gateway && task.unreachable;
        if !missing.is_empty() && !reported {
            all.waits(task, format!("in its namespace {}; waiting for the engine", missing.join(", ")));
            all.incomplete = true;
        }
        all.found.insert(task.id.clone(), sandbox);
    }
    all
}

/// What was found before, without an interface on the gateway bridge whose other end is gone.
fn still_there(found: &Sandbox, settings: &Settings, links: &BTreeMap<IfName, Link>) -> Sandbox {
    let plugged = |port: &GatewayPort| {
        let end = links.get(&port.host);
        end.is_some_and(|end| end.index == port.ifindex && end.master.as_ref() == Some(&settings.gwbridge))
    };
    Sandbox { gateway: found.gateway.clone().filter(plugged), ..found.clone() }
}

impl Sandboxes {
    fn waits(&mut self, task: &AttachedTask, why: String) {
        self.waiting.push(Blocked { item: Item::Task(task.id.clone()), why, waiting: true });
    }
}

fn look(task: &AttachedTask, settings: &Settings, links: &BTreeMap<IfName, Link>, inside: &Inside) -> Sandbox {
    let port = |ip| {
        let mut with = inside.links.iter().filter(|(_, link)| link.addresses.iter().any(|a| a.addr() == ip));
        with.next().map(|(name, link)| OverlayLink { name: name.clone(), mac: link.mac })
    };
    let overlay_ports = task.overlay_ports.iter().filter_map(|wanted| Some((wanted.id, port(wanted.ip)?))).collect();
    let gateway = gateway(settings, links, inside).filter(|_| task.gateway);
    Sandbox { netns: task.netns.clone(), overlay_ports, gateway }
}

/// The interface whose address lies in the bridge's subnet and whose other end is a port of the bridge.
fn gateway(settings: &Settings, links: &BTreeMap<IfName, Link>, inside: &Inside) -> Option<GatewayPort> {
    let subnet = settings.gwbridge_subnet.trunc();
    inside.links.iter().find_map(|(name, inner)| {
        let address = *inner.addresses.iter().find(|address| subnet.contains(&address.addr()))?;
        let (host, far) = links.iter().find(|(_, link)| {
            Some(link.index) == inner.peer
                && link.kind == Kind::Veth { peer: inner.index }
                && link.master.as_ref() == Some(&settings.gwbridge)
        })?;
        let address = Ipv4Net::new(address.addr(), subnet.prefix_len()).ok()?;
        Some(GatewayPort { name: name.clone(), host: host.clone(), ifindex: far.index, address, mac: inner.mac })
    })
}
