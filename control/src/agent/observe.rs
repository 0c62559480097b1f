//! What a round works on: the node as it is. First its own links and what follows from them for the settings, then,
//! once it is known which tasks are here, the inside of their namespaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use hiveway_core::{
    Desired, Settings, names,
    observed::{HostEnd, Link, Observed},
    plan::Tunnel,
};

use super::{
    apply::RoundLog,
    facts::{Answering, Gateway, gateway, gateway_subnet, settings, underlay},
    reconcile::{Agent, Cause},
};
use crate::{
    mesh,
    netlink::{Looked, Spaces, observe_entries, observe_host, observe_links, observe_node},
};

/// The node as a round has found it.
pub(super) struct Observation {
    /// Links; tasks' namespaces, the host link's end and links' entries once [`Agent::observe_tasks`] has looked at
    /// them.
    pub(super) observed: Observed,
    /// The gateway bridge to use.
    pub(super) gateway: Gateway,
    /// What the desired state depends on besides the table.
    pub(super) settings: Settings,
    /// Tasks' namespaces that can be worked in.
    pub(super) spaces: Spaces,
}

impl Observation {
    pub(super) fn links(&self) -> &BTreeMap<String, Link> {
        &self.observed.links
    }
}

impl Agent {
    /// Looks at the node's links, and at what decides the settings. `None`: the round gives way to another table.
    pub(super) async fn observe(&mut self, cause: Cause, round: &mut RoundLog) -> anyhow::Result<Option<Observation>> {
        self.renew_socket(round);
        let links = observe_links(&self.socket).await?;
        if round.gives_way() && cause != Cause::Table {
            return Ok(None);
        }
        let found = self.find_own_address(&links);
        self.find_uplinks(&links, round).await;
        let carried = underlay(&self.args, self.local_address(), &links, &self.uplinks);
        round.note(&mut self.backoff, "underlay", found.and(carried));
        let gateway = gateway(&self.args, &links);
        let answering = Answering::new(self.args.mesh_addresses().as_ref(), &links, &gateway.name);
        round.note(&mut self.backoff, "addresses", answering.fits());
        let vxlan_port = self.vxlan_port();
        let agreed = self.ports_agree(vxlan_port);
        round.note(&mut self.backoff, "VXLAN port", agreed);
        if !round.only_looks {
            self.hold_port(vxlan_port, round).await;
        }
        let mut settings =
            settings(&self.args, vxlan_port, &gateway, &links, &self.uplinks).map_err(anyhow::Error::msg)?;
        let host = self.mesh_refused(&links, &gateway);
        round.note(&mut self.backoff, "host firewall", host.problem.map_or(Ok(()), Err));
        settings.mesh_refused =
            host.refused.or_else(|| self.join_grace.waits(&self.table.model, &self.args.node, Instant::now()));
        let observed = Observed { links, ..Observed::default() };
        Ok(Some(Observation { observed, gateway, settings, spaces: Spaces::default() }))
    }

    /// Whether nobody else has the subnet of a gateway bridge that is the agent's.
    pub(super) fn check_gateway(&mut self, desired: &Desired, seen: &Observation, round: &mut RoundLog) {
        let subnet = self.args.gwbridge_subnet;
        let free = desired.gateway.as_ref().map_or(Ok(()), |_| gateway_subnet(subnet, &seen.gateway, seen.links()));
        round.note(&mut self.backoff, "gateway subnet", free);
    }

    /// Looks at the entries of the node's devices and into its tasks' namespaces. Whether it came to its end; if not,
    /// the round gives way to another table.
    pub(super) async fn observe_tasks(
        &mut self,
        desired: &Desired,
        seen: &mut Observation,
        round: &mut RoundLog,
    ) -> anyhow::Result<bool> {
        observe_entries(&self.socket, &mut seen.observed.links).await?;
        round.goes_on();
        // A container's namespace may answer late.
        let Some(looked) = self.look_into_namespaces(desired, &seen.settings, round).await else { return Ok(false) };
        let Looked { spaces, namespaces, .. } = looked;
        (seen.spaces, seen.observed.namespaces) = (spaces, namespaces);
        self.note_replies(&seen.observed.namespaces, round);
        seen.observed.host = match seen.links().get(names::HOST) {
            Some(link) => observe_host(&self.socket, link.index).await?,
            None => HostEnd::default(),
        };
        self.look_into_sandboxes(desired, seen, round);
        Ok(!round.gives_way())
    }

    /// Looks at the node's devices and their entries again, which a stage of the plan has changed.
    pub(super) async fn observe_again(&self, seen: &mut Observation) -> anyhow::Result<()> {
        seen.observed.links = observe_node(&self.socket).await?;
        Ok(())
    }

    /// What the node's vxlan devices are to be like.
    pub(super) fn tunnel(&self, seen: &Observation) -> Tunnel {
        Tunnel { local: self.local_address(), port: seen.settings.vxlan_port, underlay_mtu: self.uplinks.mtu }
    }

    /// Interfaces where clients arrive.
    pub(super) fn clients(&self, seen: &Observation) -> BTreeSet<String> {
        mesh::interfaces(seen.links(), &self.args.mesh_interfaces, &self.uplinks.names, &seen.gateway.name)
    }
}
