//! A swarm as its manager describes it: Docker Engine API captures (the answers of `/nodes`, `/services`, `/tasks` and
//! `/networks` as they are), or the same objects from the manager's push stream.
//!
//! A live swarm is routinely inconsistent for a moment, so nothing here is refused whole: what is not supported or
//! makes no sense is left out and named.

pub mod api;
mod items;
mod load;
mod networks;
mod nodes;
mod remember;
mod services;
mod tasks;

pub(crate) use services::closing;
pub(crate) use tasks::one_per_address;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
};

use crate::{
    clashes::settle,
    desired::LeftOut,
    model::{Carrier, Id, Model},
    problem::Problem,
};

/// The texts of a capture's four files.
#[derive(Clone, Copy, Debug)]
pub struct EngineCapture<'t> {
    /// `nodes.json`.
    pub nodes: &'t str,
    /// `services.json`.
    pub services: &'t str,
    /// `tasks.json`.
    pub tasks: &'t str,
    /// `networks.json`.
    pub networks: &'t str,
}

/// A model and what is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// What can be programmed.
    pub model: Model,
    /// What can't, and why; sorted.
    pub left_out: Vec<LeftOut>,
    /// Ids of nodes that are in the swarm but not in the model.
    pub unplaced: BTreeSet<String>,
    /// When nodes have joined, as RFC 3339, where the source says so.
    pub joined: BTreeMap<Id, String>,
    /// UDP port of the swarm's VXLAN, where the source says so.
    pub data_path_port: Option<NonZeroU16>,
}

impl Loaded {
    /// Why a node of the swarm is not in the model, by its id.
    pub fn why_unplaced(&self, node: &str) -> Option<&str> {
        let id = format!(" ({node})");
        let said = self.left_out.iter().find(|item| item.what.starts_with("node ") && item.what.ends_with(&id));
        said.map(|item| item.why.as_str())
    }

    /// Makes the nodes' tunnel addresses unique. `since`: whether a node has said itself where its tunnels end, and
    /// in which order. Nodes without a place are taken out and named.
    pub fn settle(&mut self, since: impl Fn(&str) -> Option<u64>) {
        let joined = &self.joined;
        let gone = settle(&mut self.model, |id| since(id.as_str()), |id| joined.get(id), &mut self.left_out);
        self.unplaced.extend(gone);
        self.left_out.sort();
        self.left_out.dedup();
    }
}

/// A live swarm's objects. Nodes of one address are all in it until reports have been heard and [`Loaded::settle`] has
/// decided. `carrier`: who carries its overlay networks; encrypted ones are kept only if that is the engine,
/// which encrypts them.
pub fn assemble(objects: api::Objects, carrier: Carrier) -> Loaded {
    load::assemble(objects, carrier, Vec::new())
}

/// Reads a capture: of a swarm whose networks Hiveway is to carry. Fails only if a file is not a JSON list, with the
/// file's name as the path.
pub fn parse(capture: &EngineCapture<'_>) -> Result<Loaded, Problem> {
    load::load(capture)
}
