//! Which Rust toolchain builds the BPF object: no prebuilt `core` exists for BPF targets, so it must have the library
//! sources, and its LLVM must not be newer than bpf-linker's, which reads its bitcode.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::sh;

/// The oldest compiler that builds our dependencies, `rust-version` in Cargo.toml.
pub(crate) const OLDEST_RUSTC: u32 = 95;

/// Forces a choice: a rustup toolchain's name, or `debian`.
pub(crate) const OVERRIDE: &str = "HIVEWAY_EBPF_TOOLCHAIN";

/// A toolchain with library sources.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    /// `nightly-x86_64-unknown-linux-gnu` or `debian`.
    pub(crate) name: String,
    /// The directory of its `rustc` and `cargo`.
    pub(crate) bin: PathBuf,
    /// 1.x.
    pub(crate) minor: u32,
    /// Major version of the LLVM it was built with.
    pub(crate) llvm: u32,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (rustc 1.{}, LLVM {}, {})", self.name, self.minor, self.llvm, self.bin.display())
    }
}

impl Toolchain {
    /// The toolchain's cargo, told to use the toolchain's rustc.
    pub(crate) fn cargo(&self) -> Command {
        self.command("cargo")
    }

    /// The toolchain's clippy, to be given cargo's arguments. Not `cargo clippy`: that finds rustup's, whichever cargo
    /// asks.
    pub(crate) fn clippy(&self) -> Command {
        let mut clippy = self.command("cargo-clippy");
        clippy.env("CARGO", self.bin.join("cargo")).arg("clippy");
        clippy
    }

    fn command(&self, program: &str) -> Command {
        let mut command = sh::command(self.bin.join(program));
        command.env("RUSTC", self.bin.join("rustc")).env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTUP_TOOLCHAIN");
        command
    }

    /// Whether it can lint, too.
    pub(crate) fn has_clippy(&self) -> bool {
        self.bin.join("cargo-clippy").is_file() && self.bin.join("clippy-driver").is_file()
    }

    /// Reads what `rustc` in that directory says about itself; `None` if it has no library sources or does not run.
    fn probe(name: &str, bin: &Path) -> Option<Self> {
        let rustc = bin.join("rustc");
        let sysroot = sh::output(sh::command(&rustc).args(["--print", "sysroot"])).ok()?;
        let sources = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
        if !sources.is_dir() || !bin.join("cargo").is_file() {
            return None;
        }
        let version = sh::output(sh::command(&rustc).arg("-vV")).ok()?;
        let field = |key: &str| version.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        Some(Self {
            name: name.to_owned(),
            bin: bin.to_owned(),
            minor: field("release:")?.split('.').nth(1)?.parse().ok()?,
            llvm: field("LLVM version:")?.split('.').next()?.parse().ok()?,
        })
    }
}

/// Every toolchain with library sources, best first: rustup's nightlies, rustup's others, Debian's.
pub(crate) fn candidates() -> Vec<Toolchain> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".rustup")));
    let mut names: Vec<(String, PathBuf)> = home
        .and_then(|home| home.join("toolchains").read_dir().ok())
        .map(|entries| {
            entries.flatten().map(|e| (e.file_name().to_string_lossy().into_owned(), e.path().join("bin"))).collect()
        })
        .unwrap_or_default();
    // Without a date in its name a nightly is the newest there is.
    names.sort_by_key(|(name, _)| (!name.starts_with("nightly-"), name.starts_with("nightly-2"), name.clone()));
    names.push(("debian".to_owned(), PathBuf::from("/usr/bin")));
    names.iter().filter_map(|(name, bin)| Toolchain::probe(name, bin)).collect()
}

/// The LLVM major version that the installed bpf-linker is linked with, if that shows.
pub(crate) fn linker_llvm() -> Option<u32> {
    let libraries = sh::output(sh::command("ldd").arg(sh::in_path("bpf-linker")?)).ok()?;
    // libLLVM.so.22.1, libLLVM-22.so.1
    let (_, rest) = libraries.split_once("libLLVM")?;
    let digits: String =
        rest.trim_start_matches(|c: char| !c.is_ascii_digit()).chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The toolchain to build the object with.
pub(crate) fn choose() -> Result<Toolchain> {
    let linker = linker_llvm();
    let all = candidates();
    if let Some(wanted) = env::var(OVERRIDE).ok().filter(|wanted| !wanted.is_empty()) {
        let found = all.iter().find(|t| t.name == wanted || t.name.starts_with(&format!("{wanted}-")));
        return found.cloned().ok_or_else(|| {
            anyhow::anyhow!(
                "{OVERRIDE}={wanted}: no such toolchain with library sources (rustup component add rust-src)"
            )
        });
    }
    let fits = |t: &&Toolchain| t.minor >= OLDEST_RUSTC && linker.is_none_or(|linker| t.llvm <= linker);
    if let Some(toolchain) = all.iter().find(fits) {
        return Ok(toolchain.clone());
    }
    let mut reasons: Vec<String> = all.iter().map(|t| format!("\n  {t}")).collect();
    if reasons.is_empty() {
        reasons.push(" none has library sources".to_owned());
    }
    bail!(
        "no Rust toolchain can build the BPF object: needs rustc >= 1.{OLDEST_RUSTC}, its library sources, and an LLVM not newer than \
         bpf-linker's ({}). Found:{}\nRun `cargo xtask setup`, or `rustup toolchain install nightly --component rust-src`.",
        linker.map_or("unknown".to_owned(), |v| v.to_string()),
        reasons.concat()
    )
}
