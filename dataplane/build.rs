//! Finds the compiled eBPF programs and hands them to the crate, which embeds them.

use std::{env, fs, path::PathBuf, process::exit};

/// Overrides where the object is looked for.
const OBJECT_ENV: &str = "HIVEWAY_EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={OBJECT_ENV}");
    let object = match env::var_os(OBJECT_ENV) {
        Some(path) => PathBuf::from(path),
        None => target_directory().join("bpfel-unknown-none/release/dataplane-ebpf"),
    };
    // Cargo looks for the file at the next build too when it is missing now.
    println!("cargo::rerun-if-changed={}", object.display());

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("programs.o");
    if let Err(error) = fs::copy(&object, &out) {
        println!(
            "cargo::error=the compiled eBPF programs are not at {}: {error}. Build them with `cargo xtask build-ebpf` \
             (or point {OBJECT_ENV} at an object).",
            object.display()
        );
        exit(1);
    }
}

/// The workspace's target directory.
fn target_directory() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR")).join("../target")
        }
    }
}
