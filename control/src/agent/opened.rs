//! Interfaces of tasks that have been up.
//!
//! A container hears before it can speak: what the programs send into it needs its own end to be up, what it answers
//! the node's end, too. That is set up last, behind maps and programs. What it sends before is lost: ARP, say, which it
//! sends again after a second only. Until the node's end has been up, this node leads nobody there. (The kernel opens
//! the container's end to packets in a work item of its own just after, which needs the lock for links as well.) Nobody
//! is led away from one that goes down later, which it does not for long.

use std::collections::{BTreeMap, BTreeSet};

use hiveway_core::{Desired, desired::IfName, observed::Link};

/// Indices of tasks' interfaces (their ends on this node) that have been seen up.
#[derive(Clone, Debug, Default)]
pub(super) struct Opened {
    indices: BTreeSet<u32>,
    /// The others, when last looked at.
    others: BTreeSet<IfName>,
}

impl Opened {
    /// Whether there were no others, when last looked at.
    pub(super) fn is_all(&self) -> bool {
        self.others.is_empty()
    }

    /// Whether others are there now than when last looked at.
    pub(super) fn has_news(&mut self, desired: &Desired, links: &BTreeMap<String, Link>) -> bool {
        let before = self.others.clone();
        *self.others(desired, links) != before
    }

    /// The others.
    pub(super) fn others(&mut self, desired: &Desired, links: &BTreeMap<String, Link>) -> &BTreeSet<IfName> {
        let names = desired.tasks.iter().flat_map(|task| &task.interfaces).map(|interface| &interface.host);
        let found = names.filter_map(|name| links.get_key_value(name));
        let (opened, others): (Vec<_>, Vec<_>) =
            found.partition(|(_, link)| link.up || self.indices.contains(&link.index));
        self.indices = opened.into_iter().map(|(_, link)| link.index).collect();
        self.others = others.into_iter().map(|(name, _)| name.clone()).collect();
        &self.others
    }
}

#[cfg(test)]
mod tests {
    use hiveway_core::{
        desired::{Interface, LocalTask, Role},
        observed::Kind,
    };

    use super::*;

    fn desired(names: &[&str]) -> Desired {
        let interface = |name: &&str| Interface {
            host: (*name).to_owned(),
            container: "eth0".to_owned(),
            bridge: "b".to_owned(),
            role: Role::Gateway,
            address: "172.18.0.3/16".parse().unwrap(),
            mac: [2; 6],
            mtu: 1500,
            routes: Vec::new(),
        };
        let interfaces = names.iter().map(interface).collect();
        let task = LocalTask { id: "a".to_owned(), tag: Default::default(), netns: None, interfaces };
        Desired { tasks: vec![task], ..Desired::default() }
    }

    #[test]
    fn who_has_been_up_stays_opened_for_as_long_as_it_exists() {
        let (mut opened, desired) = (Opened::default(), desired(&["a", "b"]));
        let link = |index, up| Link { up, ..Link::new(index, Kind::Veth { peer: 1 }) };
        let links = |a, b| BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b), ("c".to_owned(), link(9, false))]);
        let mut others = |a, b| opened.others(&desired, &links(a, b)).iter().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(others(link(3, false), link(4, false)), "a b");
        assert_eq!(others(link(3, true), link(4, false)), "b");
        assert_eq!(others(link(3, false), link(4, true)), "");
        assert_eq!(others(link(5, false), link(4, false)), "a", "made anew");
        assert!(!opened.has_news(&desired, &links(link(5, false), link(4, true))) && !opened.is_all());
        assert!(opened.has_news(&desired, &links(link(5, true), link(4, true))) && opened.is_all());
    }
}
