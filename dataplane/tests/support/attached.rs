//! What is attached to a device, as the kernel says.

use std::path::Path;

use anyhow::Result;
use aya::programs::{SchedClassifier, TcAttachType};
use dataplane::Options;

use super::sandbox::run;

/// The directory that tests open the data plane under.
pub fn options(bpffs: &Path) -> Options {
    Options::new(bpffs.join("hiveway"))
}

/// Names of the programs attached by TCX links.
pub fn attached(ifname: &str) -> Result<Vec<String>> {
    let (_, programs) = SchedClassifier::query_tcx(ifname, TcAttachType::Ingress)?;
    Ok(programs.iter().filter_map(|program| program.name_as_str().map(str::to_owned)).collect())
}

/// How many filters of the clsact qdisc run programs.
pub fn filters(ifname: &str) -> Result<usize> {
    Ok(run(&format!("tc filter show dev {ifname} ingress"))?.matches("direct-action").count())
}
