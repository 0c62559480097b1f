//! Reports as a file in the state directory.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::Ipv4Addr,
    num::NonZeroU16,
    path::Path,
};

use hiveway_core::merge::{Report, Reports};
use serde::{Deserialize, Serialize};

use crate::bounded;

#[derive(Serialize, Deserialize)]
struct Saved {
    vtep: Option<Ipv4Addr>,
    #[serde(default)]
    since: u64,
    version: String,
    #[serde(default)]
    vxlan_port: Option<NonZeroU16>,
    #[serde(default)]
    unhealthy: BTreeSet<String>,
    #[serde(default)]
    dead: BTreeSet<String>,
    #[serde(default)]
    unreachable: BTreeSet<String>,
}

/// What was saved. What can't be read is as good as nothing: agents report again when they connect.
pub(super) fn read(path: &Path) -> Reports {
    let read = || -> io::Result<BTreeMap<String, Saved>> {
        Ok(serde_json::from_slice(&bounded::read(path, bounded::STATE)?)?)
    };
    let report = |(node, saved): (String, Saved)| {
        let Saved { vtep, since, version, vxlan_port, unhealthy, dead, unreachable } = saved;
        (node, Report { vtep, since, version, vxlan_port, unhealthy, dead, unreachable, preparing: false })
    };
    match read() {
        Ok(saved) => saved.into_iter().map(report).collect(),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!("relay: saved reports are not used: {}: {error}", path.display());
            }
            Reports::new()
        }
    }
}

/// Nodes whose reports were saved at `path`.
pub fn reported(path: &Path) -> BTreeSet<String> {
    read(path).into_keys().collect()
}

/// What is saved of them. Not synced: after a crash of the machine its agents report anew.
pub(super) fn encode(reports: &Reports) -> io::Result<Vec<u8>> {
    let ready = reports.iter().filter(|(_, report)| !report.preparing);
    let saved: BTreeMap<&String, Saved> = ready
        .map(|(node, report)| {
            let Report { vtep, since, version, vxlan_port, unhealthy, dead, unreachable, preparing: _ } =
                report.clone();
            (node, Saved { vtep, since, version, vxlan_port, unhealthy, dead, unreachable })
        })
        .collect();
    Ok(serde_json::to_vec_pretty(&saved)?)
}
