//! The metrics themselves.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use hiveway_core::probe::State;

use crate::{
    agent::{MAX_ANSWERING, host_rules::FirewallStatus, shared::Shared, takeover::Takeover},
    status::report::{Health, drops},
};

/// Reads the agent's state and the maps at each scrape.
#[derive(Debug)]
pub(super) struct Agent(pub(super) Arc<Shared>);

impl Collector for Agent {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = self.0.snapshot();
        let out = &mut encoder;
        labelled(out, "build_info", "Version of the agent", MetricType::Gauge, |family| {
            family(&[("version", env!("CARGO_PKG_VERSION"))], &ConstGauge::new(1i64))
        })?;
        health(out, &Health::new(&self.0, &snapshot), snapshot.takeover.as_ref())?;
        gauge(out, "ready", "1 once the first table has been programmed", i64::from(snapshot.ready))?;
        if let Some(at) = snapshot.read_at {
            let age = at.elapsed().as_secs() as i64;
            gauge(out, "table_age_seconds", "Seconds since the table was last read successfully", age)?;
        }
        if let Some(live) = &snapshot.live {
            let reached = i64::from(live.lost.is_none());
            gauge(out, "table_source_reachable", "1 while the live source of the table can be reached", reached)?;
        }
        let refused = i64::from(snapshot.refused.is_some());
        gauge(out, "table_refused", "1 while a newer table is refused as invalid", refused)?;
        counter(out, "reconciles", "Reconciliations", snapshot.runs)?;
        counter(out, "reconcile_errors", "Errors of single items in reconciliations", snapshot.errors)?;
        gauge(out, "failing_items", "Items that could not be served", self.0.failing(&snapshot).len() as i64)?;
        gauge(out, "waiting_items", "Items that wait, for a namespace say", snapshot.waiting.len() as i64)?;
        left_to_host(out, &snapshot.firewall)?;
        gauge(out, "local_tasks", "Tasks with networking on this node", snapshot.local_tasks as i64)?;
        let addresses = snapshot.wanted_addresses as i64;
        gauge(out, "node_addresses", "Addresses of this node, where published ports should answer", addresses)?;
        let room = MAX_ANSWERING as i64;
        gauge(out, "node_addresses_max", "At how many of them published ports can answer", room)?;
        self.paths(out)?;
        self.connections(out)?;
        self.dataplane(out)
    }
}

impl Agent {
    /// One series per path: a large swarm has as many as nodes.
    fn paths(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (views, mtus) = (self.0.about.paths.views(), self.0.about.paths.mtus());
        let name = |vtep: &[u8; 4]| std::net::Ipv4Addr::from(*vtep).to_string();
        labelled(out, "path_up", "1 while probes of the path to a node are answered", MetricType::Gauge, |family| {
            let known = views.iter().filter(|(_, view)| view.state != State::Waiting);
            known.into_iter().try_for_each(|(vtep, view)| {
                family(&[("peer", &name(vtep))], &ConstGauge::new(i64::from(view.state == State::Passing)))
            })
        })?;
        let help = "Seconds that the last small probe took there and back";
        labelled(out, "path_round_trip_seconds", help, MetricType::Gauge, |family| {
            views
                .iter()
                .filter_map(|(vtep, view)| Some((vtep, view.rtt?)))
                .try_for_each(|(vtep, rtt)| family(&[("peer", &name(vtep))], &ConstGauge::new(rtt.as_secs_f64())))
        })?;
        let help = "Share of the last small probes that were lost, from 0 to 1";
        labelled(out, "path_loss_ratio", help, MetricType::Gauge, |family| {
            views.iter().try_for_each(|(vtep, view)| family(&[("peer", &name(vtep))], &ConstGauge::new(view.loss)))
        })?;
        let help = "The longest outer packet that is sent to a node";
        labelled(out, "path_mtu_bytes", help, MetricType::Gauge, |family| {
            mtus.iter().try_for_each(|(vtep, mtu)| family(&[("peer", &name(vtep))], &ConstGauge::new(i64::from(*mtu))))
        })
    }

    /// As the last sweep has counted: reading large tables at each scrape would cost more than the figures are worth.
    fn connections(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let sweeps = self.0.sweeps();
        let capacity = self.0.connections().capacity();
        if let Some((at, report)) = sweeps.last {
            let left = report.left;
            labelled(out, "flow_entries", "Entries in the connection tables", MetricType::Gauge, |family| {
                let mut tables = left.named().into_iter();
                tables.try_for_each(|(map, n)| family(&[("map", map)], &ConstGauge::new(n as i64)))
            })?;
            let help = "Fill of the connection tables, from 0 to 1";
            labelled(out, "flow_table_pressure", help, MetricType::Gauge, |family| {
                let mut tables = left.named().into_iter().zip(capacity.named());
                tables.try_for_each(|((map, n), (_, room))| {
                    family(&[("map", map)], &ConstGauge::new(n as f64 / f64::from(room)))
                })
            })?;
            let age = at.elapsed().as_secs() as i64;
            gauge(out, "flow_count_age_seconds", "Seconds since entries were counted", age)?;
        }
        let room = i64::from(capacity.flows);
        gauge(out, "flow_entries_max", "Room in the tables of established connections", room)?;
        labelled(out, "flow_table_capacity", "Room in the connection tables", MetricType::Gauge, |family| {
            let mut tables = capacity.named().into_iter();
            tables.try_for_each(|(map, room)| family(&[("map", map)], &ConstGauge::new(i64::from(room))))
        })?;
        let help = "Entries that sweeps have removed, by reason";
        labelled(out, "flow_entries_removed", help, MetricType::Counter, |family| {
            let mut reasons = sweeps.removed.named().into_iter();
            reasons.try_for_each(|(reason, n)| family(&[("reason", reason)], &ConstCounter::new(n as u64)))
        })
    }

    fn dataplane(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if let Ok(drops) = drops(&self.0) {
            for (unit, name) in [("packets", "dropped_packets"), ("bytes", "dropped_bytes")] {
                labelled(out, name, &format!("Dropped {unit} by reason"), MetricType::Counter, |family| {
                    drops.iter().try_for_each(|row| {
                        let value = if unit == "packets" { row.packets } else { row.bytes };
                        family(&[("reason", row.reason)], &ConstCounter::new(value))
                    })
                })?;
            }
        }
        if let Ok(counters) = self.0.counts().counters() {
            for (unit, name) in [("packets", "handled_packets"), ("bytes", "handled_bytes")] {
                labelled(out, name, &format!("Handled {unit} by what was done"), MetricType::Counter, |family| {
                    counters.iter().try_for_each(|(counter, stat)| {
                        let value = if unit == "packets" { stat.packets } else { stat.bytes };
                        family(&[("action", counter.name())], &ConstCounter::new(value))
                    })
                })?;
            }
        }
        Ok(())
    }
}

/// What makes a node unhealthy, as far as no other metric says it.
fn health(out: &mut DescriptorEncoder<'_>, health: &Health, takeover: Option<&Takeover>) -> fmt::Result {
    gauge(out, "healthy", "1 while `status` says healthy", i64::from(health.healthy))?;
    if let Some(reachable) = health.engine_reachable {
        let help = "1 while this node's engine answers in a version of its API that the agent speaks";
        gauge(out, "engine_reachable", help, i64::from(reachable))?;
    }
    let dead = health.dead_ports.as_ref().map_or(0, |dead| dead.ports.len()) as i64;
    gauge(out, "dead_ports", "Published ports that neither Hiveway nor the engine serves on this node", dead)?;
    if let Some(mesh) = takeover.and_then(|takeover| takeover.mesh) {
        let help = "1 while the engine's routing mesh is not taken over, for the reason in `status`";
        gauge(out, "takeover_refused", help, i64::from(!mesh))?;
    }
    Ok(())
}

/// What is left to the host's packet filters, and why.
fn left_to_host(out: &mut DescriptorEncoder<'_>, firewall: &FirewallStatus) -> fmt::Result {
    let (rules, prefixes) = (firewall.rules as i64, firewall.prefixes as i64);
    gauge(out, "left_to_host_rules", "Rules of the host's packet filters that may close published ports", rules)?;
    gauge(out, "left_to_host_prefixes", "Prefixes of clients that are left to the host", prefixes)?;
    labelled(out, "left_to_host_chain_rules", "These rules by chain", MetricType::Gauge, |family| {
        let mut chains = firewall.chains.iter();
        chains.try_for_each(|left| family(&[("chain", &left.chain)], &ConstGauge::new(left.rules as i64)))
    })?;
    let help = "CIDRs of clients in these rules by chain";
    labelled(out, "left_to_host_chain_prefixes", help, MetricType::Gauge, |family| {
        let mut chains = firewall.chains.iter();
        chains.try_for_each(|left| family(&[("chain", &left.chain)], &ConstGauge::new(left.prefixes as i64)))
    })?;
    labelled(out, "left_to_host", "1 while clients are left to the host for this reason", MetricType::Gauge, |family| {
        let mut reasons = firewall.why_left().into_iter();
        reasons.try_for_each(|(reason, so)| family(&[("reason", reason)], &ConstGauge::new(i64::from(so))))
    })
}

fn gauge(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> fmt::Result {
    ConstGauge::new(value).encode(out.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn counter(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(out.encode_descriptor(name, help, None, MetricType::Counter)?)
}

type Family<'a> = dyn FnMut(&[(&str, &str)], &dyn Sample) -> fmt::Result + 'a;

/// A metric with labels: `fill` is handed a function that takes one set of labels and its value at a time.
fn labelled(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    fill: impl FnOnce(&mut Family<'_>) -> fmt::Result,
) -> fmt::Result {
    let mut metric = out.encode_descriptor(name, help, None, kind)?;
    fill(&mut |labels, value| value.sample(metric.encode_family(&labels)?))
}

/// What [`EncodeMetric`] does, in a form that a list of different metrics can be used through.
trait Sample {
    /// Writes the value.
    fn sample(&self, encoder: MetricEncoder<'_>) -> fmt::Result;
}

impl<T: EncodeMetric> Sample for T {
    fn sample(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.encode(encoder)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[derive(Debug)]
    struct Only(Health);

    impl Collector for Only {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            health(&mut encoder, &self.0, None)
        }
    }

    fn text(engine_reachable: Option<bool>) -> String {
        let mut registry = Registry::with_prefix("hiveway");
        let healthy = engine_reachable != Some(false);
        registry.register_collector(Box::new(Only(Health { healthy, dead_ports: None, engine_reachable })));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn an_engine_that_does_not_answer_is_0_and_none_is_no_series() {
        for (reachable, value) in [(true, 1), (false, 0)] {
            let text = text(Some(reachable));
            let lines = [format!("hiveway_engine_reachable {value}"), format!("hiveway_healthy {value}")];
            assert!(lines.iter().all(|line| text.lines().any(|found| found == line)), "{text}");
        }
        let text = text(None);
        assert!(!text.contains("engine_reachable") && !text.contains("takeover_refused"), "{text}");
    }
}
