//! A real Docker Swarm on one machine: an engine per node, each in network, mount, PID and UTS namespaces of its own.
//!
//! ```text
//!   n1 eth0 192.168.77.11 ─┐
//!   n2 eth0 192.168.77.12 ─┤ br0 192.168.77.1/24  switch: the client outside
//!   n3 eth0 192.168.77.13 ─┘
//! ```
//!
//! A lab outlives the process that made it (`cargo xtask swarm up`, then `exec`, then `down`), so nothing about it is
//! kept in memory: everything follows from its name and from the files in its directory.

mod cgroups;
mod daemon;
mod engine;
mod hiveway;
mod image;
mod lab;
mod node;
mod place;

pub use daemon::Daemon;
pub use engine::{Engine, Version};
pub use hiveway::Hiveway;
pub use lab::{Shape, Swarm, sweep_dead};
pub use node::Node;
pub use place::Place;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// Where an engine and its programs are; another `docker` may come first in PATH.
pub(crate) const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A program where packages put it.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let found = PATH.split(':').map(|directory| Path::new(directory).join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is missing: run `cargo xtask setup`"))
}

/// Fails with the remedy if the machine lacks what a swarm needs.
pub fn need_engine() -> Result<()> {
    for name in ["docker-init", "runc", "iptables", "busybox", "curl", "unshare", "nsenter", "ip"] {
        program(name)?;
    }
    ensure!(nix::unistd::geteuid().is_root(), "a swarm of engines needs root");
    Ok(())
}

/// Runs a command: its stdout, or an error with what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {line}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{line} ended with {}: {}{}", output.status, out.trim(), err.trim());
    Ok(out.into_owned())
}
