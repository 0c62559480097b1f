//! rustfmt and clippy, for the host and for the BPF target.

use anyhow::Result;

use crate::{build_ebpf, sh, toolchain};

/// The tools print the places themselves; the list at the end only says which tool was unhappy.
fn verdict(mut command: std::process::Command) -> Result<Vec<String>> {
    let failed = !command.status()?.success();
    Ok(failed.then(|| format!("see above: {}", sh::line(&command))).into_iter().collect())
}

pub(crate) fn formatting() -> Result<Vec<String>> {
    let mut cargo = sh::cargo();
    cargo.args(["fmt", "--all", "--", "--check"]);
    let mut fuzz = sh::cargo();
    fuzz.args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--", "--check"]);
    Ok([verdict(cargo)?, verdict(fuzz)?].concat())
}

pub(crate) fn clippy_host() -> Result<Vec<String>> {
    let mut cargo = sh::cargo();
    cargo.args(["clippy", "--quiet", "--workspace", "--exclude", "dataplane-ebpf", "--all-targets"]);
    cargo.args(["--", "-D", "warnings"]);
    verdict(cargo)
}

/// With clippy where the toolchain has one; the compiler's own warnings otherwise.
pub(crate) fn clippy_ebpf() -> Result<Vec<String>> {
    let toolchain = toolchain::choose()?;
    if !toolchain.has_clippy() {
        eprintln!("check: {toolchain} has no clippy: only the compiler's warnings are checked for the BPF target");
        let mut cargo = toolchain.cargo();
        cargo.args(["check", "--quiet"]);
        build_ebpf::configure(&mut cargo, "-D warnings");
        return verdict(cargo);
    }
    let mut clippy = toolchain.clippy();
    clippy.arg("--quiet");
    build_ebpf::configure(&mut clippy, "");
    clippy.args(["--", "-D", "warnings"]);
    verdict(clippy)
}
