//! `hiveway plan`: what a round would change now. The node is looked at and compared as in a round; nothing is changed.

use std::{collections::BTreeSet, time::Instant};

use dataplane::{Delta, Program};
use hiveway_core::{derive, plan::plan};
use serde::Serialize;
use tokio::{sync::oneshot, task::block_in_place};

use super::{
    apply::RoundLog,
    firewall::ports,
    reconcile::{Agent, Cause},
};
use crate::{nft, sysctl};

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

impl Agent {
    /// What a round would change now.
    ///
    /// # Errors
    /// What keeps a round from being made.
    pub(super) async fn preview(&mut self) -> Result<Vec<Change>, String> {
        // What is found is for this once: attempts and waiting times are the rounds'.
        let before = (self.backoff.clone(), self.local.clone());
        let mut round = RoundLog::new(self.pulse.clone(), None);
        let found = self.changes(&mut round).await;
        (self.backoff, self.local) = before;
        found.map_err(|error| format!("{error:#}"))
    }

    async fn changes(&mut self, round: &mut RoundLog) -> anyhow::Result<Vec<Change>> {
        let Some(mut seen) = self.observe(Cause::Preview, round).await? else { return Ok(Vec::new()) };
        let desired = derive(&self.table.model, &seen.settings, &mut self.addresses.clone())?;
        self.observe_tasks(&desired, &mut seen, round).await?;
        let plan = plan(&seen.observed, &desired, self.tunnel(&seen));
        let mut changes = Vec::new();
        for step in &plan.steps {
            let item = step.item.to_string();
            let kind = if self.backoff.ready(&item, Instant::now()) { Kind::Link } else { Kind::PutOff };
            changes.push(Change { kind, item, change: step.action.to_string() });
        }
        changes.extend(plan.blocked.iter().map(|blocked| Change {
            kind: Kind::Blocked,
            item: blocked.item.to_string(),
            change: blocked.why.clone(),
        }));
        let clients = self.clients(&seen);
        block_in_place(|| {
            let facts = self.facts(&seen).map_err(anyhow::Error::msg)?;
            let (_, want) = self.wanted_maps(&desired, &seen, facts);
            let maps = self.shared.dataplane().compare(&want)?;
            changes.extend(maps.iter().map(|(map, delta)| Change {
                kind: Kind::Map,
                item: map.name().to_owned(),
                change: entries(*delta),
            }));
            let wanted = self.wanted_programs(&desired, &seen, &clients);
            let wanted = wanted.into_iter().map(|attachment| (attachment.program, attachment.interface)).collect();
            changes.extend(programs(&self.shared.dataplane().attachments()?, &wanted));
            if nft::differs(&self.wanted_firewall(&desired, &seen))? {
                let change = "write the table anew".to_owned();
                changes.push(Change { kind: Kind::Firewall, item: nft::name(), change });
            }
            let sysctls = sysctl::differing(&self.state, &ports(&desired))?.into_iter();
            changes.extend(sysctls.map(|(name, value)| Change {
                kind: Kind::Sysctl,
                item: name.to_owned(),
                change: format!("set to {value}"),
            }));
            Ok(changes)
        })
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
