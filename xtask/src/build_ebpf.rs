//! Builds the BPF objects with a toolchain of their own and puts them where the `dataplane` crate embeds its own from,
//! and the bench loads its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sh;
use crate::toolchain;

const TARGET: &str = "bpfel-unknown-none";

/// The agent's programs, and the bench's.
const OBJECTS: [&str; 2] = ["dataplane-ebpf", "traffic"];

/// Where an object ends up.
fn place(name: &str) -> PathBuf {
    sh::target_dir().join(TARGET).join("release").join(name)
}

/// `cargo xtask build-ebpf`.
pub(crate) fn run() -> Result<()> {
    if sh::in_path("bpf-linker").is_none() {
        bail!("bpf-linker is not in PATH. Run `cargo xtask setup`, which installs it.");
    }
    let toolchain = toolchain::choose()?;
    eprintln!("build-ebpf: using {toolchain}");
    let mut cargo = toolchain.cargo();
    cargo.arg("build");
    configure(&mut cargo, "");
    sh::run(&mut cargo).with_context(|| {
        format!(
            "if bpf-linker complained about bitcode, its LLVM is older than rustc's ({}): run `cargo xtask setup`",
            toolchain.llvm
        )
    })?;

    OBJECTS.iter().try_for_each(|name| install(name))
}

/// Puts a built object in its place.
fn install(name: &str) -> Result<()> {
    let built = ebpf_target_dir().join(TARGET).join("release").join(name);
    let new = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    let object = place(name);
    // Untouched when nothing changed, so that cargo does not rebuild everything that embeds it.
    if fs::read(&object).ok().as_ref() != Some(&new) {
        let directory = object.parent().context("the object has no directory")?;
        fs::create_dir_all(directory)?;
        let fresh = directory.join(format!(".{name}.new"));
        fs::write(&fresh, &new)?;
        fs::rename(&fresh, &object).with_context(|| format!("writing {}", object.display()))?;
        eprintln!("build-ebpf: wrote {} ({} KiB)", object.display(), new.len() / 1024);
    }
    Ok(())
}

/// Makes `cargo`, of that toolchain, work on the BPF crate.
///
/// In a target directory of its own: two compilers in one would keep rebuilding.
pub(crate) fn configure(cargo: &mut Command, extra_rustflags: &str) {
    cargo
        .args(["--package", "dataplane-ebpf", "--release", "--target", TARGET, "-Z", "build-std=core"])
        .env("CARGO_TARGET_DIR", ebpf_target_dir())
        // BTF needs debug info; fetch-and-add with a used result needs BPF CPU v3.
        .env("RUSTFLAGS", format!("-C debuginfo=2 -C link-arg=--btf -C target-cpu=v3 {extra_rustflags}").trim())
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
}

fn ebpf_target_dir() -> PathBuf {
    sh::target_dir().join("ebpf")
}
