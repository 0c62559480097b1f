//! Debian packages.

use std::process::Stdio;
use std::sync::Once;

use anyhow::{Context, Result, bail};

use crate::setup::need_root;
use crate::sh;

/// Installs packages without asking anything.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if sh::in_path("apt-get").is_none() {
        bail!("missing, and this is no Debian where setup could install it: {list}");
    }
    need_root(&format!("installing {list}"))?;
    update()?;
    eprintln!("setup: apt-get install {list}");
    // tshark asks who may capture; nobody is there to answer.
    let mut apt = sh::command("apt-get");
    apt.args(["install", "--yes", "--quiet", "--quiet", "--no-install-recommends"]).args(packages);
    // Its stdout tells of every file it unpacks; what goes wrong is on stderr.
    sh::run(apt.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()))
        .with_context(|| format!("installing {list}"))
}

/// Whether the package exists here, in any version.
pub(crate) fn exists(package: &str) -> bool {
    if sh::in_path("apt-cache").is_none() || update().is_err() {
        return false;
    }
    let known = sh::output(sh::command("apt-cache").args(["policy", package])).unwrap_or_default();
    known.lines().any(|line| line.trim().strip_prefix("Candidate:").is_some_and(|version| version.trim() != "(none)"))
}

/// A fresh machine's package lists are empty or old. Once per run is enough.
pub(crate) fn update() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = need_root("apt-get update").and_then(|()| {
            eprintln!("setup: apt-get update");
            sh::run(sh::command("apt-get").args(["update", "--quiet", "--quiet"]))
        });
    });
    result
}
