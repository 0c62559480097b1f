//! `cargo xtask setup`: installs what is missing, says what it does, and does nothing when nothing is missing.

mod apt;
pub(crate) mod engine;
mod linker;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, bail};

use crate::sh;
use crate::toolchain;

/// Programs that the agent, the lab and the bench start, and the Debian package of each.
const TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("iptables-nft", "iptables"),
    ("ipset", "ipset"),
    // Switched off as it comes. firewalld would be switched on: scenarios have its rules as a fixture.
    ("ufw", "ufw"),
    ("nsenter", "util-linux"),
    ("sysctl", "procps"),
    ("cc", "gcc"),
    ("ldd", "libc-bin"),
    ("git", "git"),
    ("ping", "iputils-ping"),
    ("traceroute", "traceroute"),
    ("tracepath", "iputils-tracepath"),
    ("curl", "curl"),
    ("ethtool", "ethtool"),
    ("iperf3", "iperf3"),
    ("tcpdump", "tcpdump"),
    ("tshark", "tshark"),
    ("bpftool", "bpftool"),
];

/// What the swarm lab needs besides, looked for where packages put it: another `docker` may come first in PATH.
const ENGINE: &[(&str, &str)] = &[
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("docker-init", "tini"),
    ("iptables", "iptables"),
    ("busybox", "busybox-static"),
    ("unshare", "util-linux"),
    ("tar", "tar"),
];

/// What a VM needs besides.
const VM: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("depmod", "kmod"),
    ("modprobe", "kmod"),
    ("busybox", "busybox-static"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("setpriv", "util-linux"),
    ("wg", "wireguard-tools"),
];

/// Debian's compiler, cargo and library sources: a matching set, for machines where rustup has no library sources.
const DEBIAN_TOOLCHAIN: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

const BPFFS: &str = "/sys/fs/bpf";

/// Installs everything that building, testing and the demo need.
pub(crate) fn run() -> Result<()> {
    let mut packages: Vec<&str> =
        TOOLS.iter().filter(|(program, _)| sh::in_path(program).is_none()).map(|(_, package)| *package).collect();
    packages.dedup();
    if !packages.is_empty() {
        apt::install(&packages)?;
    }
    for_build()?;
    bpffs()?;
    eprintln!("setup: everything needed is there");
    Ok(())
}

/// A Docker Engine and what its images are made of.
pub(crate) fn for_swarm() -> Result<()> {
    install_missing(ENGINE)
}

/// An emulator, and what unpacks kernels. Kernels themselves are fetched when they are needed.
pub(crate) fn for_vm() -> Result<()> {
    install_missing(VM)
}

/// Installs the packages whose programs are not where packages put them.
fn install_missing(programs: &[(&str, &'static str)]) -> Result<()> {
    let installed = |program: &str| {
        ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|place| Path::new(place).join(program).is_file())
    };
    let mut packages: Vec<&str> =
        programs.iter().filter(|(program, _)| !installed(program)).map(|(_, package)| *package).collect();
    packages.dedup();
    if !packages.is_empty() {
        apt::install(&packages)?;
    }
    Ok(())
}

/// Only what building needs: a toolchain with library sources, and a bpf-linker that understands its bitcode.
pub(crate) fn for_build() -> Result<()> {
    if sh::in_path("bpf-linker").is_some() && toolchain::choose().is_ok() {
        return Ok(());
    }
    let usable = || toolchain::candidates().into_iter().filter(|t| t.minor >= toolchain::OLDEST_RUSTC);
    // One whose LLVM bpf-linker can be built with; rustup's nightly may be ahead of every packaged LLVM.
    let mut chosen = usable().find(|t| linker::can_build(t.llvm));
    if chosen.is_none() {
        eprintln!("setup: no rustup toolchain with library sources that bpf-linker can be built for; using Debian's");
        apt::install(DEBIAN_TOOLCHAIN)?;
        chosen = usable().find(|t| linker::can_build(t.llvm));
    }
    let Some(toolchain) = chosen else {
        let found: Vec<String> = toolchain::candidates().iter().map(|t| format!("\n  {t}")).collect();
        bail!(
            "no toolchain with library sources, rustc >= 1.{} and an LLVM that this system has as llvm-N-dev. Found:{}\n\
             Install LLVM's packages from apt.llvm.org, or a newer rustc-web.",
            toolchain::OLDEST_RUSTC,
            if found.is_empty() { " none".to_owned() } else { found.concat() }
        );
    };
    if toolchain::linker_llvm().is_none_or(|llvm| llvm < toolchain.llvm) || sh::in_path("bpf-linker").is_none() {
        linker::install(&toolchain)?;
    }
    Ok(())
}

/// Lints for the host, for the BPF target, and cargo-deny: only `check` needs them.
pub(crate) fn for_check() -> Result<()> {
    for component in ["clippy", "rustfmt"] {
        if sh::output(sh::command("cargo").args([component.trim_start_matches("rust"), "--version"])).is_err() {
            eprintln!("setup: rustup component add {component}");
            sh::run(sh::command("rustup").args(["component", "add", component]))?;
        }
    }
    let ebpf = toolchain::choose()?;
    if ebpf.name == "debian" && !ebpf.has_clippy() {
        // Without it check still builds with warnings denied, so a failure here is no reason to stop.
        if let Err(error) = apt::install(&["rust-web-clippy"]) {
            eprintln!("setup: no clippy for the BPF target: {error:#}");
        }
    }
    if sh::in_path("cargo-deny").is_none() {
        eprintln!("setup: cargo install cargo-deny (a few minutes)");
        // It runs for seconds: to optimise it takes longer than that saves.
        let mut install = sh::command("cargo");
        install.args(["install", "--locked", "cargo-deny"]);
        install.envs(
            [("OPT_LEVEL", "0"), ("LTO", "off"), ("DEBUG", "0")]
                .map(|(name, value)| (format!("CARGO_PROFILE_RELEASE_{name}"), value)),
        );
        sh::run(&mut install)?;
    }
    Ok(())
}

/// What `fuzz` needs besides what building needs.
pub(crate) fn for_fuzz() -> Result<()> {
    const VERSION: &str = "0.13.2";
    // libFuzzer is C++.
    install_missing(&[("g++", "g++")])?;
    if sh::in_path("cargo-fuzz").is_none() {
        eprintln!("setup: cargo install cargo-fuzz {VERSION} (about a minute)");
        sh::run(sh::command("cargo").args(["install", "--locked", "--version", VERSION, "cargo-fuzz"]))?;
    }
    Ok(())
}

/// Pins need a BPF file system.
fn bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        (fields.next(), fields.next()) == (Some(BPFFS), Some("bpf"))
    });
    if mounted {
        return Ok(());
    }
    need_root(&format!("mounting {BPFFS}"))?;
    eprintln!("setup: mount -t bpf bpf {BPFFS}");
    sh::run(sh::command("mount").args(["-t", "bpf", "bpf", BPFFS]))
}

/// Fails unless we are root, with what for and the remedy.
pub(crate) fn need_root(what: &str) -> Result<()> {
    // /proc/self belongs to the effective user.
    if fs::metadata("/proc/self")?.uid() != 0 {
        bail!("{what} needs root: run the same command as root, or with `sudo -E`");
    }
    Ok(())
}
