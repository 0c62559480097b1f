//! Which program belongs on which interface.

use std::collections::{BTreeMap, BTreeSet};

use dataplane::{MapFault, Program};
use dataplane_common::headers::ipproto::UDP;
use hiveway_core::{
    Desired,
    desired::Role,
    names,
    observed::{Layer, Link, Sandbox},
    plan::Item,
};

use super::{apply::RoundLog, next_hops, observe::Observation, reconcile::Agent, xdp};

/// Where a program belongs, and what it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attachment {
    pub(super) program: Program,
    pub(super) interface: String,
    pub(super) item: String,
}

/// All attachments on interfaces that exist.
pub(super) fn wanted(
    desired: &Desired,
    links: &BTreeMap<String, Link>,
    uplinks: &BTreeSet<String>,
    mesh_interfaces: &BTreeSet<String>,
    sandboxes: &BTreeMap<String, Sandbox>,
) -> Vec<Attachment> {
    let mut wanted = Vec::new();
    let mut add = |program, interface: &str, item: String| {
        if links.contains_key(interface) {
            wanted.push(Attachment { program, interface: interface.to_owned(), item });
        }
    };
    // Only UDP is noted on its way out, and everything that leaves the node would have to be looked at.
    let watched = desired.published.iter().any(|(proto, _)| *proto == UDP);
    for interface in uplinks.union(mesh_interfaces) {
        let uplink = uplinks.contains(interface);
        let (arrives, leaves) = match (uplink, links.get(interface).map(|link| link.layer)) {
            (true, Some(Layer::Ip)) => (Program::FromUnderlayL3, Program::ToOutsideL3),
            (true, _) => (Program::FromUnderlay, Program::ToOutside),
            (false, Some(Layer::Ip)) => (Program::FromClientL3, Program::ToOutsideL3),
            (false, _) => (Program::FromClient, Program::ToOutside),
        };
        let item = format!("{} {interface}", if uplink { "underlay" } else { "mesh interface" });
        add(arrives, interface, item.clone());
        if watched {
            add(leaves, interface, item);
        }
    }
    if desired.host_link.is_some() {
        add(Program::FromClient, names::HOST_FAR, Item::HostLink.to_string());
    }
    for network in &desired.networks {
        for subnet in &network.subnets {
            add(Program::FromVxlan, &subnet.vxlan, Item::Network(network.id.clone()).to_string());
        }
    }
    for task in &desired.tasks {
        for interface in &task.interfaces {
            let program = match interface.role {
                Role::Overlay { .. } => Program::FromContainer,
                Role::Gateway => Program::FromGateway,
            };
            add(program, &interface.host, Item::Task(task.id.clone()).to_string());
        }
    }
    for task in &desired.attached {
        if let Some(port) = sandboxes.get(&task.id).and_then(|sandbox| sandbox.gateway.as_ref()) {
            add(Program::FromGateway, &port.host, Item::Task(task.id.clone()).to_string());
        }
    }
    wanted
}

impl Agent {
    /// What must be there before ports are: the reverse-path filters, and what notes the node's own use of published
    /// ports.
    pub(super) fn attach_observers(
        &mut self,
        desired: &Desired,
        seen: &Observation,
        clients: &BTreeSet<String>,
        round: &mut RoundLog,
    ) {
        let filters = self.reverse.keep(clients, seen.links());
        let changed = round.note(&mut self.backoff, "reverse-path filters", filters);
        round.changes += usize::from(changed.unwrap_or(false));
        let mut wanted = self.wanted_programs(desired, seen, clients);
        wanted.retain(|attachment| attachment.program == Program::ToOutside);
        self.attach(&wanted, round);
    }

    /// Has every interface run the program that belongs there, and no other one of the agent's.
    pub(super) fn programs(
        &mut self,
        desired: &Desired,
        seen: &Observation,
        clients: &BTreeSet<String>,
        round: &mut RoundLog,
    ) {
        let wanted = self.wanted_programs(desired, seen, clients);
        self.attach(&wanted, round);
        let (xdp, changes) = self.xdp.attach(
            (self.args.xdp, &self.args.state_dir),
            &mut self.shared.dataplane(),
            (clients, &self.uplinks.names),
            seen.links(),
            &self.socket,
        );
        round.changes += changes;
        let followed = self.followed_routes();
        if let Some(followed) = round.note(&mut self.backoff, "next hops", followed) {
            self.next_hops.follow(followed);
        }
        let keep = wanted.into_iter().map(|attachment| (attachment.program, attachment.interface));
        let keep = keep.chain(xdp::kept(&xdp)).collect();
        self.last.xdp = xdp;
        let detached = self.shared.dataplane().detach_all_except(&keep);
        if !detached.failures.is_empty() {
            round.note::<(), _>(&mut self.backoff, "detaching programs", Err(detached.failures.join("; ")));
        }
    }

    /// All attachments on interfaces that are there.
    pub(super) fn wanted_programs(
        &self,
        desired: &Desired,
        seen: &Observation,
        clients: &BTreeSet<String>,
    ) -> Vec<Attachment> {
        wanted(desired, seen.links(), &self.uplinks.names, clients, &self.local.sandboxes)
    }

    /// The routes that are to be followed.
    fn followed_routes(&self) -> Result<next_hops::Wanted, MapFault> {
        Ok(next_hops::Wanted {
            underlay: self.uplinks.only,
            from: self.local_address().octets(),
            mtu: self.uplinks.mtu,
            nodes: self.shared.dataplane().hop_numbers()?,
            // With several uplinks the kernel spreads connections over them, and is asked for each packet.
            hops: self.uplinks.only != 0,
        })
    }

    fn attach(&mut self, wanted: &[Attachment], round: &mut RoundLog) {
        let mut dataplane = self.shared.dataplane();
        for attachment in wanted {
            if round.may(&self.backoff, &attachment.item) {
                let attached = dataplane.attach(attachment.program, &attachment.interface);
                round.note(&mut self.backoff, &attachment.item, attached);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hiveway_core::observed::Kind;

    use super::*;

    fn link(index: u32) -> Link {
        Link::new(index, Kind::Other("device".into()))
    }

    #[test]
    fn what_leaves_is_looked_at_while_a_udp_port_is_published() {
        let links = BTreeMap::from([("eth0".to_owned(), link(2)), ("eth1".to_owned(), link(3))]);
        let clients = BTreeSet::from(["eth0".to_owned(), "eth1".to_owned(), "eth9".to_owned()]);
        let programs = |published: &[(u8, u16)]| {
            let desired = Desired { published: published.iter().copied().collect(), ..Desired::default() };
            let uplinks = BTreeSet::from(["eth0".to_owned()]);
            let wanted = wanted(&desired, &links, &uplinks, &clients, &BTreeMap::new());
            wanted.into_iter().map(|a| (a.program, a.interface)).collect::<BTreeSet<_>>()
        };
        let [eth0, eth1] = ["eth0", "eth1"].map(str::to_owned);
        let arriving = BTreeSet::from([(Program::FromUnderlay, eth0.clone()), (Program::FromClient, eth1.clone())]);
        assert_eq!(programs(&[]), arriving);
        assert_eq!(programs(&[(6, 80)]), arriving);
        let leaving = BTreeSet::from([(Program::ToOutside, eth0), (Program::ToOutside, eth1)]);
        assert_eq!(programs(&[(6, 80), (17, 53)]), &arriving | &leaving);
    }

    #[test]
    fn links_without_ethernet_header_have_programs_of_their_own() {
        let tunnel = |index| Link { layer: Layer::Ip, ..link(index) };
        let links = BTreeMap::from([("wg0".to_owned(), tunnel(2)), ("tun1".to_owned(), tunnel(3))]);
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        let desired = Desired { published: BTreeSet::from([(17, 53)]), ..Desired::default() };
        let wanted = wanted(&desired, &links, &names(&["wg0"]), &names(&["wg0", "tun1"]), &BTreeMap::new());
        let found: Vec<_> = wanted.iter().map(|a| (a.program, a.interface.as_str())).collect();
        use Program::{FromClientL3, FromUnderlayL3, ToOutsideL3};
        let want = [(FromClientL3, "tun1"), (ToOutsideL3, "tun1"), (FromUnderlayL3, "wg0"), (ToOutsideL3, "wg0")];
        assert_eq!(found, want);
    }
}
