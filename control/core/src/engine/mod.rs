//! A swarm as its manager describes it: Docker Engine API captures (the answers of `/nodes`, `/services`, `/tasks` and
//! `/networks` as they are), or the same objects from the manager's push stream.
//!
//! A live swarm is routinely inconsistent for a moment, so nothing here is refused whole: what is not supported or
//! makes no sense is left out and named.

pub mod api;
mod load;
mod networks;
mod nodes;
mod remember;
mod services;
mod tasks;

pub(crate) use tasks::one_per_address;

use std::{collections::BTreeSet, num::NonZeroU16};

use crate::{
    desired::LeftOut,
    model::{Carrier, Model},
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
    /// UDP port of the swarm's VXLAN, where the source says so.
    pub data_path_port: Option<NonZeroU16>,
}

/// A live swarm's objects. `carrier`: who carries its overlay networks; encrypted ones are kept only if that is the engine,
/// which encrypts them.
pub fn assemble(objects: api::Objects, carrier: Carrier) -> Loaded {
    load::assemble(objects, carrier, Vec::new())
}

/// Reads a capture: of a swarm whose networks Hiveway is to carry. Fails only if a file is not a JSON list, with the file's name as the path.
pub fn parse(capture: &EngineCapture<'_>) -> Result<Loaded, Problem> {
    load::load(capture)
}
