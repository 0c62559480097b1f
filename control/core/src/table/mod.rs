//! The task table as a file: YAML or JSON, field names as in the Engine API, in snake_case.
//!
//! Syntax ([`parse_file`]) and shape (`read`: known fields, types, single values) are looked at item by item, sense
//! (`check`: references, duplicates, overlaps) when all of them are there. Each reports all that it finds, but nothing
//! is said of a file with wrong syntax beyond that. A table with any error is refused whole.

mod addresses;
mod check;
mod place;
mod read;
mod services;
mod tree;
mod value;

use std::path::Path;

use self::read::Reading;
use crate::{
    model::Model,
    problem::{Kind, Problem, Severity},
    settings::{DEFAULT_MESH_VNI, DEFAULT_VXLAN_PORT},
};

/// A table without errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The validated table.
    pub model: Model,
    /// What is probably a mistake.
    pub warnings: Vec<Problem>,
}

/// Numbers that the agent uses itself and a table must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// `--mesh-vni`.
    pub mesh_vni: u32,
    /// `--vxlan-port`.
    pub vxlan_port: u16,
}

impl Default for Reserved {
    fn default() -> Self {
        Self { mesh_vni: DEFAULT_MESH_VNI, vxlan_port: DEFAULT_VXLAN_PORT }
    }
}

/// Parses and validates a table, for an agent with the default mesh VNI and VXLAN port. `path` only tells the format:
/// `.json`, `.yaml`, `.yml`, anything else is guessed from the first character.
///
/// On failure, all problems in the order of the file, warnings included.
pub fn parse_file(text: &str, path: &Path) -> Result<Table, Vec<Problem>> {
    parse_file_with(text, path, Reserved::default())
}

/// [`parse_file`] for an agent with other settings.
pub fn parse_file_with(text: &str, path: &Path, reserved: Reserved) -> Result<Table, Vec<Problem>> {
    let reading = parse_text(text, path).map_err(|message| vec![Problem::error("", message)])?;
    let Reading { table, mut problems, .. } = reading;
    let model = check::check(table, reserved, &mut problems);
    without_follow_ups(&mut problems);
    tree::in_file_order(&mut problems);
    if problems.iter().any(|p| p.severity == Severity::Error) {
        return Err(problems);
    }
    Ok(Table { model, warnings: problems })
}

fn parse_text(text: &str, path: &Path) -> Result<Reading, String> {
    let json = match path.extension().and_then(|e| e.to_str()) {
        Some(e) if e.eq_ignore_ascii_case("json") => true,
        Some(e) if e.eq_ignore_ascii_case("yaml") || e.eq_ignore_ascii_case("yml") => false,
        _ => text.trim_start().starts_with('{'),
    };
    if text.trim().is_empty() {
        return Err("the file is empty; the smallest table is `version: 1`".into());
    }
    if json {
        serde_json::from_str(text).map_err(|e| format!("not valid JSON: {e}"))
    } else {
        // Tables of large swarms have millions of nodes; aliases stay bounded by the other limits.
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_events: 50_000_000,
                max_nodes: 50_000_000,
                max_total_scalar_bytes: 1 << 30,
            },
            strict_booleans: true,
            with_snippet: false,
        };
        // Its hints are for programmers.
        let plain = |error: String| error.replace(", set DuplicateKeyPolicy in Options if acceptable", "");
        serde_saphyr::from_str_with_options(text, options)
            .map_err(|e| format!("not valid YAML: {}", plain(e.to_string())))
    }
}

/// Where ids of a section could not be read, what is unknown because of that is not told as well, nor are warnings.
fn without_follow_ups(problems: &mut Vec<Problem>) {
    for section in ["nodes", "networks", "services"] {
        if problems.iter().any(|problem| problem.kind == Kind::HidesIds(section)) {
            let unknown = Kind::UnknownId(section);
            problems.retain(|problem| problem.severity == Severity::Error && problem.kind != unknown);
        }
    }
}
