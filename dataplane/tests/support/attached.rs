//! What is attached to a device, as the kernel says.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use dataplane::{Dataplane, Options, TcHook};

use super::sandbox::run;

/// The directory that tests open the data plane under.
pub fn options(bpffs: &Path) -> Options {
    Options::new(bpffs.join("hiveway"))
}

/// Whether the kernel is too old for TCX links; then asking for them has been seen to be refused, with the reason.
pub fn refuses_links(options: &Options) -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) >= (Some(6), Some(6)) {
        return Ok(false);
    }
    let opened = Dataplane::open(&Options { tc_hook: TcHook::Tcx, ..options.clone() });
    let error = opened.err().with_context(|| format!("{release} has no TCX, and nobody minds"))?;
    ensure!(error.to_string().contains("has no TCX"), "{error}");
    Ok(true)
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
