//! bpf-linker: built against the LLVM of the toolchain whose bitcode it links.

use anyhow::{Context, Result};

use crate::setup::apt;
use crate::sh;
use crate::toolchain::Toolchain;

/// The version this project is tried with.
const VERSION: &str = "0.13.0";

/// LLVM versions that this version of bpf-linker has a feature for.
const LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// Whether this machine can build a linker for that LLVM.
pub(crate) fn can_build(llvm: u32) -> bool {
    LLVMS.contains(&llvm) && (prefix(llvm).join("include/llvm-c").exists() || apt::exists(&format!("llvm-{llvm}-dev")))
}

/// Installs the LLVM that is missing and builds bpf-linker with it.
pub(crate) fn install(toolchain: &Toolchain) -> Result<()> {
    let llvm = toolchain.llvm;
    let packages = [
        format!("llvm-{llvm}-dev"),
        format!("libpolly-{llvm}-dev"),
        "libzstd-dev".to_owned(),
        "zlib1g-dev".to_owned(),
        "g++".to_owned(),
    ];
    apt::install(&packages.each_ref().map(String::as_str))?;
    eprintln!("setup: cargo install bpf-linker {VERSION} with LLVM {llvm}, for {} (about a minute)", toolchain.name);
    let mut cargo = sh::command("cargo");
    cargo.args(["install", "bpf-linker", "--locked", "--force", "--version", VERSION, "--no-default-features"]);
    cargo.arg("--features").arg(format!("llvm-{llvm}"));
    // Its build script reads the first, llvm-sys the second.
    cargo.env("LLVM_PREFIX", prefix(llvm)).env(format!("LLVM_SYS_{llvm}1_PREFIX"), prefix(llvm));
    sh::run(&mut cargo).context("building bpf-linker")
}

fn prefix(llvm: u32) -> std::path::PathBuf {
    format!("/usr/lib/llvm-{llvm}").into()
}
