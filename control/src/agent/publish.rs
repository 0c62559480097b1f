//! What a round leaves for whoever asks: the status socket, the metrics, the sweep and the probes.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use hiveway_core::{Desired, names, observed::Link, peers};

use super::{
    apply::RoundLog, facts::Answering, observe::Observation, probes, reconcile::Agent, shared::OpenItem, table::Table,
    tags::Tags, takeover,
};
use crate::mesh;

impl Agent {
    /// Keeps what the round has found and what follows from the table, for whoever asks.
    pub(super) fn remember(&mut self, desired: &Desired, seen: &Observation) {
        let Observation { settings, gateway, .. } = seen;
        let (links, clients) = (seen.links(), self.clients(seen));
        self.note_foreign(links, gateway, &clients);
        let model = &self.table.model;
        let mut left_out = self.table.loaded.left_out.clone();
        left_out.extend(desired.left_out.iter().cloned());
        left_out.sort();
        left_out.dedup();
        self.last.node = model.find_node(&self.args.node).map(|node| node.id.to_string()).unwrap_or_default();
        self.last.vtep = Some(self.vtep());
        self.last.underlay_address = self.uplinks.own_address;
        self.last.vxlan_port = Some(settings.vxlan_port);
        self.last.uplinks = self.uplinks.clone();
        let lost = self.lost_uplinks.warnings(&self.args.underlay(), &self.uplinks, links);
        self.last.uplink_warnings = lost.into_iter().chain(self.uplinks.warnings()).collect();
        self.last.underlay_mtu = self.underlay_mtu();
        self.probing.follow(self.probes(links));
        self.last.gateway = desired.gateway.as_ref().map(|_| (gateway.name.clone(), gateway.ours));
        self.last.gateway_subnet = Some(settings.gwbridge_subnet.trunc());
        let answering = Answering::new(settings.mesh_addresses.as_ref(), links, &gateway.name);
        (self.last.addresses, self.last.wanted_addresses) = (answering.at, answering.wanted);
        let mut unserved = mesh::left_out(links, &self.args.mesh_interfaces, &gateway.name);
        if let Some(bound) = &settings.mesh_addresses {
            let own = mesh::addresses(links, &gateway.name);
            unserved.extend(mesh::idle_places(bound, links, &own));
        }
        unserved.extend(mesh::idle_labels(model.services.values().map(|s| &**s), &desired.bound, links));
        unserved.iter().filter(|why| !self.last.unserved.contains(why)).for_each(|why| tracing::warn!("{why}"));
        self.last.unserved = unserved;
        self.last.mesh_interfaces = clients.into_iter().collect();
        self.last.published = desired.published.clone();
        self.last.local_tasks = desired.tasks.len() + desired.attached.len();
        let takeover = takeover::account(model, settings, desired, &self.local.sandboxes);
        takeover::tell_of_mesh(self.last.takeover.as_ref(), takeover.as_ref());
        self.last.takeover = takeover;
        self.last.firewall = self.host_rules.status(&self.args.ignored());
        self.last.left_out = left_out;
        self.find_tags();
        self.last.ready = true;
    }

    pub(super) fn find_tags(&mut self) {
        let Table { model, departing, .. } = &self.table;
        if !self.last.tags.is_of(model) {
            self.last.tags = Arc::new(Tags::new(model.clone(), departing.clone()));
        }
    }

    /// Makes the result visible.
    pub(super) fn publish(&mut self, round: RoundLog, started: Instant) {
        let failing = self.backoff.all().iter().map(|(item, failing)| OpenItem {
            item: item.clone(),
            why: failing.error.clone(),
            attempts: failing.attempts,
            retry: Some(failing.next),
        });
        self.last.failing = failing.collect();
        self.last.errors += round.failures() as u64;
        self.last.waiting = round.waiting;
        self.last.model = self.table.model.clone();
        self.last.read_at = Some(self.table.read_at);
        self.last.changed_at = Some(self.table.changed_at);
        self.last.refused = self.table.refused.clone();
        self.last.live = self.table.live.clone();
        self.last.warnings = self.table.loaded.warnings.clone();
        self.last.runs += 1;
        self.last.last_run = Some(Instant::now());
        self.last.last_duration = started.elapsed();
        if round.changes > 0 {
            tracing::info!("reconciled: {} changes in {} ms", round.changes, started.elapsed().as_millis());
        }
        self.shared.publish(self.last.clone());
    }

    /// The paths that are to be tried.
    fn probes(&self, links: &BTreeMap<String, Link>) -> probes::Wanted {
        let own = self.vtep();
        let up = |name: &str| links.get(name).filter(|link| link.up && link.is_ours(name));
        probes::Wanted {
            vtep: own.octets(),
            nodes: peers(&self.table.model, &self.last.node, own)
                .map(|node| (node.vtep.octets(), node.hostname.clone()))
                .collect(),
            link: up(names::HOST).filter(|_| up(names::HOST_FAR).is_some()).map(|link| link.index),
            interface: self.underlay_mtu(),
        }
    }

    fn underlay_mtu(&self) -> u16 {
        u16::try_from(self.uplinks.mtu).unwrap_or(u16::MAX)
    }
}
