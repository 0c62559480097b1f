//! Looking things up in a model.

use super::{Carrier, Model, Network, Node, NodeState};

/// Why a node could not be found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeLookup {
    /// No such id or host name.
    #[error("the table has no node {wanted:?} (neither id nor host name); it has: {known}")]
    Unknown {
        /// What was looked for.
        wanted: String,
        /// What there is.
        known: String,
    },
    /// The host name is not enough.
    #[error("host name {wanted:?} belongs to several nodes; use one of the ids {ids}")]
    Ambiguous {
        /// What was looked for.
        wanted: String,
        /// The nodes that have it.
        ids: String,
    },
}

impl Model {
    /// The node with this id or, failing that, this host name. A machine that has joined a swarm anew is listed twice
    /// under one name, its former self as down: that one is passed over.
    pub fn find_node(&self, wanted: &str) -> Result<&Node, NodeLookup> {
        if let Some(node) = self.nodes.get(wanted) {
            return Ok(node);
        }
        let named: Vec<_> = self.nodes.values().filter(|n| n.hostname == wanted).collect();
        let up: Vec<_> = named.iter().filter(|n| n.state != NodeState::Down).copied().collect();
        match (&named[..], &up[..]) {
            ([], _) => {
                let known: Vec<_> = self.nodes.values().map(|n| format!("{} ({})", n.id, n.hostname)).collect();
                Err(NodeLookup::Unknown { wanted: wanted.into(), known: known.join(", ") })
            }
            ([one], _) | (_, [one]) => Ok(one),
            _ => {
                let ids: Vec<_> = named.iter().map(|n| n.id.as_str()).collect();
                Err(NodeLookup::Ambiguous { wanted: wanted.into(), ids: ids.join(", ") })
            }
        }
    }

    /// The ingress network.
    pub fn ingress(&self) -> Option<&Network> {
        self.networks.values().find(|n| n.ingress)
    }

    /// Whether an engine carries the ingress network: it answers published ports, too.
    pub fn engine_has_ingress(&self) -> bool {
        self.ingress().is_some_and(|network| network.carrier == Carrier::Engine)
    }
}
