//! `hiveway plan`: what a round would change now. The node is looked at and compared as in a round; nothing is changed.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Instant};

use dataplane::{Delta, MapName, Program};
use hiveway_core::{Desired, derive, plan::plan};
use serde::Serialize;
use tokio::{
    sync::{oneshot, watch},
    task::block_in_place,
};

use super::{
    apply::RoundLog,
    backoff::Backoff,
    firewall::{OWN_TABLE, ports},
    host_rules::HostRules,
    join_grace::JoinGrace,
    local_tasks::LocalTasks,
    memory,
    observe::Observation,
    reconcile::{Agent, Cause},
};
use crate::{lost_uplinks::LostUplinks, nft, sysctl, uplinks::Uplinks};

/// Where the answer goes.
pub(super) type Answer = oneshot::Sender<Result<Vec<Change>, String>>;

/// Something that a round would change, or cannot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What is changed.
    pub kind: Kind,
    /// What it serves, or which map, interface or sysctl it is.
    pub item: String,
    /// The change; what is missing for it where it is blocked.
    pub change: String,
}

/// What is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Interfaces, addresses, routes and static entries.
    Link,
    /// Entries of maps.
    Map,
    /// Programs of interfaces in the node's namespace.
    Program,
    /// The agent's nftables table.
    Firewall,
    /// Sysctls of the node's namespace.
    Sysctl,
    /// Nothing, as long as something is missing.
    Blocked,
    /// Nothing yet: it has failed, and is tried again in its turn.
    PutOff,
}

/// What the rounds go on with: a preview finds it out as well, and leaves it to them.
struct Before {
    backoff: Backoff,
    local: LocalTasks,
    host_rules: HostRules,
    uplinks: Uplinks,
    lost_uplinks: LostUplinks,
    carried: Option<Ipv4Addr>,
    join_grace: JoinGrace,
}

impl Agent {
    /// What a round would change now. `news`: of another table, for which it ends early.
    ///
    /// # Errors
    /// What keeps a round from being made.
    pub(super) async fn preview(&mut self, news: watch::Receiver<()>) -> Result<Vec<Change>, String> {
        let before = Before {
            backoff: self.backoff.clone(),
            local: self.local.clone(),
            host_rules: self.host_rules.clone(),
            uplinks: self.uplinks.clone(),
            lost_uplinks: self.lost_uplinks.clone(),
            carried: self.carried,
            join_grace: self.join_grace,
        };
        let mut round = RoundLog::of_preview(self.pulse.clone(), news);
        let found = self.changes(&mut round).await;
        let Before { backoff, local, host_rules, uplinks, lost_uplinks, carried, join_grace } = before;
        (self.backoff, self.local, self.host_rules) = (backoff, local, host_rules);
        (self.uplinks, self.lost_uplinks, self.carried, self.join_grace) = (uplinks, lost_uplinks, carried, join_grace);
        memory::give_back();
        found.map_err(|error| format!("{error:#}"))
    }

    async fn changes(&mut self, round: &mut RoundLog) -> anyhow::Result<Vec<Change>> {
        let another = || anyhow::anyhow!("another table has come meanwhile: ask again");
        let mut seen = self.observe(Cause::Preview, round).await?.ok_or_else(another)?;
        let desired = derive(&self.table.model, &seen.settings, &mut self.addresses.clone())?;
        self.check_gateway(&desired, &seen, round);
        if !self.observe_tasks(&desired, &mut seen, round).await? {
            return Err(another());
        }
        let plan = plan(&seen.observed, &desired, self.tunnel(&seen));
        let mut changes = Vec::new();
        for step in &plan.steps {
            let item = step.item.to_string();
            changes.push(Change { kind: self.turn(&item, Kind::Link), item, change: step.action.to_string() });
        }
        block_in_place(|| self.compared(&desired, &seen, round, &mut changes));
        let blocked = |item: String, change: String| Change { kind: Kind::Blocked, item, change };
        changes.extend(plan.blocked.iter().map(|item| blocked(item.item.to_string(), item.why.clone())));
        changes.extend(round.waiting.drain(..).map(|open| blocked(open.item, open.why)));
        let all = self.backoff.all();
        let failed = round.failed.iter().filter_map(|item| Some(blocked(item.clone(), all.get(item)?.error.clone())));
        changes.extend(failed);
        Ok(changes)
    }

    /// The kind, or [`Kind::PutOff`] while it is not the item's turn.
    fn turn(&self, item: &str, kind: Kind) -> Kind {
        if self.backoff.ready(item, Instant::now()) { kind } else { Kind::PutOff }
    }

    /// Maps, programs, firewall and sysctls. What cannot be compared has failed in this round.
    fn compared(&mut self, desired: &Desired, seen: &Observation, round: &mut RoundLog, changes: &mut Vec<Change>) {
        let maps = self.facts(seen).and_then(|facts| {
            let (_, want) = self.wanted_maps(desired, seen, facts);
            self.shared.dataplane().compare(&want).map_err(|error| error.to_string())
        });
        let kind = self.turn("maps", Kind::Map);
        let maps = round.note(&mut self.backoff, "maps", maps).unwrap_or_default();
        let map = |(map, delta): (MapName, Delta)| Change { kind, item: map.name().to_owned(), change: entries(delta) };
        changes.extend(maps.into_iter().map(map));

        let wanted = self.wanted_programs(desired, seen, &self.clients(seen));
        let wanted = wanted.into_iter().map(|attachment| (attachment.program, attachment.interface)).collect();
        let have = self.shared.dataplane().attachments();
        if let Some(have) = round.note(&mut self.backoff, "programs", have) {
            changes.extend(programs(&have, &wanted));
        }

        let differs = nft::differs(&self.wanted_firewall(desired, seen));
        let kind = self.turn(OWN_TABLE, Kind::Firewall);
        if round.note(&mut self.backoff, OWN_TABLE, differs) == Some(true) {
            changes.push(Change { kind, item: nft::name(), change: "write the table anew".to_owned() });
        }

        let kind = self.turn("sysctls", Kind::Sysctl);
        let differing = sysctl::differing(&self.state, &ports(desired));
        let differing = round.note(&mut self.backoff, "sysctls", differing).unwrap_or_default();
        let set =
            |(name, value): (&str, String)| Change { kind, item: name.to_owned(), change: format!("set to {value}") };
        changes.extend(differing.into_iter().map(set));
    }
}

fn entries(delta: Delta) -> String {
    let parts = [(delta.inserted, "add"), (delta.updated, "update"), (delta.removed, "remove")];
    let parts = parts.into_iter().filter(|(count, _)| *count > 0);
    parts.map(|(count, what)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
}

/// XDP is not among them: whether a driver takes it only shows when it is attached.
fn programs(have: &BTreeSet<(Program, String)>, want: &BTreeSet<(Program, String)>) -> Vec<Change> {
    let change = |(program, interface): &(Program, String), what: &str| Change {
        kind: Kind::Program,
        item: interface.clone(),
        change: format!("{what} {program}"),
    };
    let attach = want.difference(have).map(|attachment| change(attachment, "attach"));
    let detach = have.difference(want).filter(|(program, _)| !program.is_xdp());
    attach.chain(detach.map(|attachment| change(attachment, "detach"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_of_a_map_is_named() {
        assert_eq!(entries(Delta { inserted: 2, updated: 0, removed: 1 }), "add 2, remove 1");
        assert_eq!(entries(Delta { inserted: 0, updated: 3, removed: 0 }), "update 3");
    }

    #[test]
    fn programs_are_attached_and_detached_and_xdp_is_left_alone() {
        let on = |program, interface: &str| (program, interface.to_owned());
        let have = [on(Program::FromVxlan, "a"), on(Program::FromClient, "b"), on(Program::XdpMesh, "b")].into();
        let want = [on(Program::FromVxlan, "a"), on(Program::FromClient, "c")].into();
        let found: Vec<_> = programs(&have, &want).into_iter().map(|change| (change.item, change.change)).collect();
        let text = |item: &str, change: &str| (item.to_owned(), change.to_owned());
        assert_eq!(found, [text("c", "attach from_client"), text("b", "detach from_client")]);
    }
}
