//! The firewall and the sysctls that a desired state asks for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use dataplane_common::headers::{ENCAP_LEN, IPV4_LEN, TCP_LEN, ipproto};
use hiveway_core::{
    Desired, Model, Settings,
    desired::Binding,
    firewall::Ranges,
    names,
    observed::{Kind, Link},
};
use ipnet::Ipv4Net;
use tokio::task::block_in_place;

use super::{
    apply::RoundLog,
    facts::Gateway,
    observe::Observation,
    reconcile::{Agent, Cause},
};
use crate::{
    engine_mesh::has_ipvs,
    mesh,
    netlink::{Stale, forget_connections},
    nft::{self, Bound, Firewall, Foreign, HostRules, Listed, Masquerade},
    sysctl,
    uplinks::Uplinks,
};

/// The failing item of the agent's own nftables table.
pub(super) const OWN_TABLE: &str = "firewall";
/// Every address in it is the node's.
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

/// When processes of the node that had a port before it was published are expected to have answered the last time: from
/// each time to the next.
const LATE_ANSWERS: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(400), Duration::from_secs(3)];

/// Published TCP and UDP ports, whichever protocol.
pub(super) fn ports(desired: &Desired) -> BTreeSet<u16> {
    desired.published.iter().map(|(_, port)| *port).collect()
}

/// The table that belongs to `desired`.
pub(super) fn firewall(
    model: &Model,
    desired: &Desired,
    settings: &Settings,
    gateway: &Gateway,
    links: &BTreeMap<String, Link>,
    uplinks: &Uplinks,
    sandbox: BTreeSet<Ipv4Addr>,
) -> Firewall {
    let masquerade = desired
        .gateway
        .as_ref()
        .filter(|_| gateway.ours)
        .map(|bridge| Masquerade { bridge: bridge.bridge.clone(), subnet: bridge.address });
    let networks = model.networks.values().flat_map(|network| &network.subnets);
    let vnis: BTreeSet<u32> = networks.map(|subnet| subnet.vni.get()).chain([settings.mesh_vni]).collect();
    Firewall {
        vxlan_port: settings.vxlan_port,
        vteps: desired.vteps.clone(),
        vtep: desired.vtep,
        bridges: bridges(links, gateway),
        overlays: overlays(desired, links),
        foreign: foreign(links, settings.vxlan_port, &vnis),
        vnis,
        masquerade,
        published: ports(desired),
        published_udp: desired
            .published
            .iter()
            .filter(|(proto, _)| *proto == ipproto::UDP)
            .map(|(_, port)| *port)
            .collect(),
        listed: if model.engine_has_ingress() { listed(desired) } else { Vec::new() },
        engine_bridge: Some(gateway.name.clone()).filter(|_| model.engine_has_ingress() && !gateway.ours),
        sandbox,
        host: host(model, desired, gateway, links, uplinks),
    }
}

/// VNIs of vxlan devices on this node that are neither ours nor an engine's, which makes its devices here and moves
/// them into namespaces of their own.
fn foreign(links: &BTreeMap<String, Link>, port: u16, ours: &BTreeSet<u32>) -> Foreign {
    let is_engines = |name: &str| {
        let vni = name.strip_prefix("vx-").and_then(|rest| rest.split_once('-')).map(|(vni, _)| vni);
        vni.is_some_and(|vni| vni.len() == 6 && vni.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let mut vnis = BTreeSet::new();
    for (name, link) in links {
        match link.kind {
            Kind::Vxlan(vxlan) if vxlan.port == port && !link.is_ours(name) && !is_engines(name) => {
                vnis.insert(vxlan.vni);
            }
            _ => {}
        }
    }
    // What the kernel says of a device whose VNI is chosen with each packet.
    if vnis.contains(&0) { Foreign::Any } else { Foreign::Vnis(&vnis - ours) }
}

/// Translations into the host link, once both of its ends are up: before, they would lead nowhere.
fn host(
    model: &Model,
    desired: &Desired,
    gateway: &Gateway,
    links: &BTreeMap<String, Link>,
    uplinks: &Uplinks,
) -> Option<HostRules> {
    let (link, vtep) = (desired.host_link.filter(|_| !desired.published.is_empty())?, desired.vtep?);
    let up = |name: &str| links.get(name).is_some_and(|link| link.up && link.is_ours(name));
    if !up(names::HOST) || !up(names::HOST_FAR) {
        return None;
    }
    let room = uplinks.mtu.saturating_sub((ENCAP_LEN + IPV4_LEN + TCP_LEN) as u32);
    Some(HostRules {
        ip: link.ip,
        vtep,
        bridges: bridges(links, gateway),
        ports: desired.published.iter().filter(|key| !desired.bound.contains_key(key)).copied().collect(),
        bound: bound(desired, links),
        engine: model.engine_has_ingress(),
        mss: u16::try_from(room).unwrap_or(u16::MAX),
    })
}

/// Bridges of containers, which a stock engine may have made before a task of ours is there; the gateway bridge also
/// before it is there itself.
fn bridges(links: &BTreeMap<String, Link>, gateway: &Gateway) -> BTreeSet<String> {
    let there = mesh::container_bridges(links, &gateway.name).map(|(name, _)| name.clone());
    there.chain([gateway.name.clone()]).collect()
}

/// Bridges of overlay networks: those that are to be there, and those that still are.
fn overlays(desired: &Desired, links: &BTreeMap<String, Link>) -> BTreeSet<String> {
    let there = links.iter().filter(|(name, link)| link.is_overlay_bridge(name)).map(|(name, _)| name);
    // Somebody else may have one of that name.
    let to_be = desired.networks.iter().map(|network| &network.bridge).filter(|name| !links.contains_key(*name));
    there.chain(to_be).cloned().collect()
}

/// Bound ports, by where they answer. The whole of a loopback device's subnets is the node's.
fn bound(desired: &Desired, links: &BTreeMap<String, Link>) -> Vec<Bound> {
    let addresses = |name: &str| -> Vec<Ipv4Net> {
        let own = links.get(name).into_iter().flat_map(|link| &link.addresses);
        own.map(|net| if net.addr().is_loopback() { net.trunc() } else { net.addr().into() }).collect()
    };
    let mut groups = BTreeMap::<_, BTreeSet<_>>::new();
    for (key, binding) in &desired.bound {
        groups.entry(binding).or_default().insert(*key);
    }
    let nets = |binding: &Binding| binding.nets(&addresses).nets().to_vec();
    groups.into_iter().map(|(binding, ports)| Bound { ports, nets: nets(binding) }).collect()
}

/// Published ports that not every client may use, by who may.
fn listed(desired: &Desired) -> Vec<Listed> {
    let mut groups = BTreeMap::<Ranges, BTreeSet<_>>::new();
    for (key, access) in &desired.restricted {
        let of = |nets: &[Ipv4Net]| nets.iter().copied().collect::<Ranges>();
        groups.entry(of(&access.allow).minus(&of(&access.deny))).or_default().insert(*key);
    }
    groups.into_iter().map(|(allowed, ports)| Listed { ports, allowed }).collect()
}

/// Connections that are not as `firewall` leads them, because they are older.
pub(super) fn stale(
    firewall: &Firewall,
    settings: &Settings,
    gateway: &Gateway,
    links: &BTreeMap<String, Link>,
) -> Stale {
    let Some(host) = &firewall.host else {
        return Stale::unpublished(settings.host_ip);
    };
    let own = links.values().flat_map(|link| &link.addresses).map(|address| Ipv4Net::from(address.addr()));
    let bridges = mesh::container_bridges(links, &gateway.name);
    Stale {
        host: host.ip,
        published: host.published(),
        local: own.chain([LOOPBACK]).collect(),
        containers: bridges.flat_map(|(_, bridge)| bridge.addresses.iter().map(Ipv4Net::trunc)).collect(),
        unanswered: host.engine && !has_ipvs(),
        forgotten: Vec::new(),
    }
}

/// Has connection tracking forget what is not as the firewall leads it. Blocks.
pub(super) fn forget(mut stale: Stale) {
    let failed = |error| tracing::warn!("the node's own older connections keep their ways: {error}");
    match forget_connections(&stale) {
        Ok(forgotten) if forgotten.is_empty() => {}
        Ok(forgotten) => {
            stale.forgotten = forgotten;
            tokio::spawn(async move {
                for pause in LATE_ANSWERS {
                    tokio::time::sleep(pause).await;
                    if let Err(error) = tokio::task::block_in_place(|| forget_connections(&stale)) {
                        failed(error);
                    }
                }
            });
        }
        Err(error) => failed(error),
    }
}

impl Agent {
    /// Firewall and sysctls. They are read by running programs and files, so changes of links alone don't count.
    pub(super) fn guard(&mut self, desired: &Desired, seen: &Observation, cause: Cause, round: &mut RoundLog) {
        let links = seen.links();
        let Observation { settings, gateway, .. } = seen;
        let wanted = (self.wanted_firewall(desired, seen), ports(desired));
        if cause == Cause::Kernel && self.guarded.as_ref() == Some(&wanted) {
            return;
        }
        let mut guarded = true;
        if round.may(&self.backoff, OWN_TABLE) {
            let done = block_in_place(|| nft::ensure(&wanted.0));
            match round.note(&mut self.backoff, OWN_TABLE, done) {
                Some(changed) => {
                    round.changes += usize::from(changed);
                    if changed {
                        let stale = stale(&wanted.0, settings, gateway, links);
                        block_in_place(|| forget(stale));
                    }
                }
                None => guarded = false,
            }
        } else {
            guarded = false;
        }
        if round.may(&self.backoff, "sysctls") {
            let done = sysctl::quiet(links).and_then(|quiet| Ok(sysctl::ensure(&self.state, &wanted.1)? || quiet));
            match round.note(&mut self.backoff, "sysctls", done) {
                Some(changed) => round.changes += usize::from(changed),
                None => guarded = false,
            }
        } else {
            guarded = false;
        }
        self.guarded = guarded.then_some(wanted);
    }

    /// The table that belongs to `desired` on this node.
    pub(super) fn wanted_firewall(&self, desired: &Desired, seen: &Observation) -> Firewall {
        let Observation { settings, gateway, .. } = seen;
        let (model, sandbox) = (&self.table.model, self.host_rules.sandbox());
        firewall(model, desired, settings, gateway, seen.links(), &self.uplinks, sandbox)
    }

    /// Makes sure of our own table alone. Returns whether everything is to be looked at: it had to be replaced, or
    /// could not be looked at, which the next round tells and tries again in its turn.
    pub(super) fn guard_table(&mut self) -> bool {
        let Some((firewall, _)) = &self.guarded else { return false };
        if !self.backoff.ready(OWN_TABLE, Instant::now()) {
            return false;
        }
        match block_in_place(|| nft::ensure(firewall)) {
            Ok(replaced) => replaced,
            Err(error) => {
                tracing::error!("{OWN_TABLE}: {error}");
                self.backoff.failed(OWN_TABLE, error.to_string(), Instant::now());
                self.guarded = None;
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hiveway_core::observed::Vxlan;

    use super::*;

    #[test]
    fn processes_may_use_other_peoples_devices_and_nothing_else() {
        let device =
            |vni, port| Link::new(1, Kind::Vxlan(Vxlan { vni, local: Ipv4Addr::UNSPECIFIED, port, learning: true }));
        let ours = Link { alias: Some("hiveway net=4098".into()), ..device(4098, 4789) };
        let mut links = BTreeMap::from([
            ("hwx4098".to_owned(), ours),
            ("vx-001001-abcde".to_owned(), device(4099, 4789)),
            ("flannel.1".to_owned(), device(1, 4789)),
            ("flannel.2".to_owned(), device(2, 8472)),
            ("odd".to_owned(), device(4097, 4789)),
        ]);
        let foreign = |links: &BTreeMap<_, _>| foreign(links, 4789, &[4097].into());
        assert_eq!(foreign(&links), Foreign::Vnis([1].into()));
        links.insert("vxlan_sys_4789".to_owned(), device(0, 4789));
        assert_eq!(foreign(&links), Foreign::Any);
    }
}
