//! `hiveway teardown`: everything of ours on this node goes, nothing else does.
use std::{path::Path, time::Duration};

use dataplane::{Left, TeardownError};
use hiveway_core::{
    DEFAULT_HOST_IP,
    observed::{Kind, Link},
};

use crate::{
    cli::exit,
    engine_mesh, host_firewall,
    instance::Instance,
    netlink::{Socket, Spaces, Stale, apply, forget_connections, observe_node},
    nft, offloads, relay,
    say::{errln, outln},
    state_dir::{StateDir, StateError},
    sysctl,
};

/// What was done and what was not.
#[derive(Debug, Default)]
struct Report {
    removed: usize,
    failures: Vec<String>,
}

impl Report {
    fn removed(&mut self, what: impl std::fmt::Display) {
        outln!("removed {what}");
        self.removed += 1;
    }

    fn failed(&mut self, why: impl std::fmt::Display) {
        errln!("error: {why}");
        self.failures.push(why.to_string());
    }
}

/// Takes everything down; carries on after errors. Returns the exit code.
pub fn run(bpffs: &Path, state_dir: &Path) -> u8 {
    if !nix::unistd::geteuid().is_root() {
        errln!("error: teardown needs privileges: run it as root, in the node's network namespace");
        return exit::FAILED;
    }
    // Held to the end: no agent may start in between.
    let _instance = match Instance::take() {
        Ok(instance) => instance,
        Err(error) => {
            errln!("error: {error}; nothing was removed");
            return exit::FAILED;
        }
    };
    let held = match StateDir::existing(state_dir).map(StateDir::locked).transpose() {
        Ok(held) => held,
        Err(busy @ StateError::InUse { .. }) => {
            errln!("error: {busy}: stop that agent first; nothing was removed");
            return exit::FAILED;
        }
        Err(error) => {
            errln!("error: {error}; nothing was removed");
            return exit::FAILED;
        }
    };
    let mut report = Report::default();
    let missing = missing(bpffs, held.is_some(), state_dir);
    hand_over(bpffs, &mut report);
    deregister(state_dir);
    match programs(bpffs, &mut report) {
        Err(busy @ TeardownError::Lock(_)) => {
            errln!("error: {busy}; nothing was removed");
            return exit::FAILED;
        }
        Err(error) => report.failed(error),
        Ok(()) => {}
    }
    links(&mut report);
    firewall(&mut report);
    if let Err(error) = forget_connections(&Stale::unpublished(DEFAULT_HOST_IP)) {
        report.failed(format_args!("connections of the host link are still tracked: {error}"));
    }
    if let Some(held) = held {
        state(&held, &mut report);
    }
    missing.iter().for_each(|what| errln!("warning: {what}"));
    match (report.failures.len(), report.removed) {
        (0, 0) => outln!("nothing of ours is here"),
        (0, _) => outln!("done"),
        (failures, _) => errln!("{failures} things could not be removed; run it again once the cause is gone"),
    }
    if report.failures.is_empty() { exit::OK } else { exit::FAILED }
}

/// Directories of an agent's that are not there, and what is left where it had others.
fn missing(bpffs: &Path, has_state: bool, state_dir: &Path) -> Vec<String> {
    let no_pins = (!bpffs.exists()).then(|| {
        format!(
            "there is no {}: if the agent had another --bpffs, its maps and programs are still there; name it",
            bpffs.display()
        )
    });
    let no_state = (!has_state).then(|| {
        format!(
            "there is no {}: if the agent had another --state-dir, its changes of sysctls and offloads are still in force; \
             name it",
            state_dir.display()
        )
    });
    no_pins.into_iter().chain(no_state).collect()
}

/// How long connections get to end that the engine's own balancer does not know: most are over in less.
const DRAIN: Duration = Duration::from_secs(2);

/// Beside a Docker engine new connections to published ports are the engine's before anything is taken away, so that
/// none is begun that would end with us.
fn hand_over(bpffs: &Path, report: &mut Report) {
    let ports = match dataplane::leave(bpffs) {
        Ok(Left { ports: 0, interfaces: 0 }) => return,
        Ok(Left { ports, interfaces }) => {
            outln!("left {} published ports and containers' interfaces to the engine", ports + interfaces);
            ports
        }
        // They end all the same, only later.
        Err(error) => return errln!("warning: published ports cannot be left to the engine beforehand: {error}"),
    };
    // The node's own new connections would still be led to us.
    firewall(report);
    // Reading the host's rules may take a while, which connections may use.
    if ports > 0 {
        warn_of_dead_ports();
    }
    std::thread::sleep(DRAIN);
}

/// An engine whose own routing mesh does not work serves nothing that is left to it.
fn warn_of_dead_ports() {
    // The agent that could say what the engine calls its backend is gone; its rules tell as well.
    if let Some(why) = engine_mesh::broken(engine_mesh::has_ipvs(), None, host_firewall::read().ok().as_ref()) {
        errln!("warning: published ports are dead from now on: {why}");
    }
}

fn firewall(report: &mut Report) {
    match nft::remove() {
        Ok(true) => report.removed("nftables table inet hiveway"),
        Ok(false) => {}
        Err(error) => report.failed(error),
    }
}

/// Tells other nodes' agents before anything is taken away. What they do not hear now they see when the node goes on
/// without us: not a failure of ours.
fn deregister(state_dir: &Path) {
    let Some(told) = relay::deregister(state_dir) else { return };
    for node in told {
        match node {
            Ok(node) => outln!("deregistered at {node}"),
            Err(why) => {
                errln!("warning: {why}; until this node has been down once, it is taken for one with Hiveway")
            }
        }
    }
}

/// Programs first: nothing is translated on half-gone maps.
fn programs(bpffs: &Path, report: &mut Report) -> Result<(), TeardownError> {
    let done = dataplane::teardown(bpffs)?;
    for (program, interface) in &done.detached {
        report.removed(format_args!("program {program} from {interface}"));
    }
    if !done.maps.is_empty() {
        report.removed(format_args!("{} pinned maps from {}", done.maps.len(), bpffs.display()));
    }
    for path in &done.foreign {
        outln!("left alone: {} is not ours", path.display());
    }
    for failure in done.failures {
        report.failed(failure);
    }
    Ok(())
}

/// What waits for answers on netlink sockets.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn links(report: &mut Report) {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return report.failed(format_args!("cannot remove interfaces: {error}")),
    };
    runtime.block_on(async {
        let socket = match Socket::open() {
            Ok(socket) => socket,
            Err(error) => return report.failed(format_args!("cannot open a netlink socket: {error}")),
        };
        let links = match observe_node(&socket).await {
            Ok(links) => links,
            Err(error) => return report.failed(error),
        };
        let mut ours: Vec<(&String, &Link)> = links.iter().filter(|(name, link)| link.is_ours(name)).collect();
        // Ports before their bridges.
        ours.sort_by_key(|(_, link)| link.kind == Kind::Bridge);
        for (name, _) in ours {
            let delete = hiveway_core::plan::Action::DeleteLink { name: name.clone() };
            match apply(&socket, &Spaces::default(), &delete).await {
                Ok(()) => report.removed(format_args!("interface {name}")),
                Err(error) => report.failed(error),
            }
        }
    });
}

fn state(state: &StateDir, report: &mut Report) {
    let (given_back, kept) = offloads::give_back(state, |_| false);
    if given_back > 0 {
        report.removed(format_args!("our settings of {given_back} offloads (they are on again)"));
    }
    let before = state.sysctls().unwrap_or_default();
    let failures = sysctl::restore(state);
    let complete = kept.is_empty();
    kept.into_iter().for_each(|failure| report.failed(failure));
    if failures.is_empty() && complete {
        if before != Default::default() {
            report.removed("our sysctls (the originals are back)");
        }
        for failure in state.remove() {
            report.failed(failure);
        }
    } else {
        // The state files are kept: they know the originals.
        failures.into_iter().for_each(|failure| report.failed(failure));
    }
}
