//! Reads a source once.

use std::{
    io,
    num::NonZeroU16,
    path::{Path, PathBuf},
    sync::Arc,
};

use hiveway_core::{
    LeftOut, Model, Problem,
    docker_api::{self, EngineCapture},
    table::{self, Reserved},
};

use super::Source;
use crate::bounded;

/// A table that can be put in force.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The table.
    pub model: Arc<Model>,
    /// What a live source had to leave out.
    pub left_out: Vec<LeftOut>,
    /// What is odd but not wrong.
    pub warnings: Vec<Problem>,
    /// UDP port of the swarm's VXLAN, where a live source says so.
    pub data_path_port: Option<NonZeroU16>,
}

impl From<docker_api::Loaded> for Loaded {
    fn from(live: docker_api::Loaded) -> Self {
        Self {
            model: Arc::new(live.model),
            left_out: live.left_out,
            warnings: Vec::new(),
            data_path_port: live.data_path_port,
        }
    }
}

/// A table that cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The table is invalid.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
    /// Live sources are followed, not read.
    #[error("table source {0} is live: it is followed, not read")]
    Live(Source),
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(Problem::to_string).collect();
    format!("the table is invalid: {}", lines.join("; "))
}

/// Reads and checks a source. `previous` is the table in force: a live source may have forgotten what running tasks
/// still need.
///
/// # Errors
/// Every problem of an invalid `file:` table; the first of an `engine:` capture that makes no sense at all.
pub fn load(source: &Source, reserved: Reserved, previous: Option<&Model>) -> Result<Loaded, LoadError> {
    match source {
        Source::File(path) => {
            let table =
                table::parse_file_with(&read(path, bounded::TABLE)?, path, reserved).map_err(LoadError::Invalid)?;
            let model = Arc::new(table.model);
            Ok(Loaded { model, left_out: Vec::new(), warnings: table.warnings, data_path_port: None })
        }
        Source::Engine(directory) => {
            let file = |name: &str| read(&directory.join(name), bounded::CAPTURE);
            let (nodes, services) = (file("nodes.json")?, file("services.json")?);
            let (tasks, networks) = (file("tasks.json")?, file("networks.json")?);
            let capture = EngineCapture { nodes: &nodes, services: &services, tasks: &tasks, networks: &networks };
            let mut loaded = docker_api::parse(&capture).map_err(|problem| LoadError::Invalid(vec![problem]))?;
            if let Some(previous) = previous {
                loaded.remember(previous);
            }
            Ok(loaded.into())
        }
        Source::Swarm | Source::Relay(_) => Err(LoadError::Live(source.clone())),
    }
}

fn read(path: &Path, limit: u64) -> Result<String, LoadError> {
    bounded::read_text(path, limit).map_err(|source| LoadError::Read { path: path.to_owned(), source })
}
