//! What several test files need.
#![allow(dead_code)] // each file uses its own part

pub(crate) mod maps;
pub(crate) mod refused;

use std::{collections::BTreeSet, fs, path::PathBuf};

use hiveway_core::{
    Desired, Facts,
    docker_api::{EngineCapture, Loaded, parse},
};

/// Reads one of the captures in `tests/fixtures/swarm`.
pub(crate) fn capture(name: &str) -> Loaded {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/swarm").join(name);
    let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_else(|e| panic!("{name}/{file}: {e}"));
    let (nodes, services) = (read("nodes.json"), read("services.json"));
    let (tasks, networks) = (read("tasks.json"), read("networks.json"));
    let capture = EngineCapture { nodes: &nodes, services: &services, tasks: &tasks, networks: &networks };
    parse(&capture).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// All captures there are.
pub(crate) fn captures() -> Vec<String> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/swarm");
    let mut names: Vec<_> = fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.expect("directory entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The contract's example table with a second task.
pub(crate) const BASE: &str = include_str!("base.yaml");

/// [`BASE`] with one part replaced.
#[track_caller]
pub(crate) fn base_with(from: &str, to: &str) -> String {
    assert_eq!(BASE.matches(from).count(), 1, "{from:?} must occur exactly once");
    BASE.replace(from, to)
}

/// Facts in which every interface of `desired` exists; indices count up from 100 in the order of names.
pub(crate) fn facts(desired: &Desired) -> Facts {
    let tasks = desired.tasks.iter().flat_map(|t| t.interfaces.iter().map(|i| i.host.clone()));
    let devices = desired
        .networks
        .iter()
        .flat_map(|n| std::iter::once(n.bridge.clone()).chain(n.subnets.iter().map(|s| s.vxlan.clone())));
    let names: BTreeSet<String> = tasks.chain(devices).collect();
    Facts {
        ifindex: names.into_iter().zip(100..).collect(),
        underlay_ifindex: 2,
        underlay_mtu: 1500,
        underlay_mac: [0x52, 0x54, 0, 0, 0, 1],
        underlay_ip: None,
        node_addresses: desired.vtep.map(|ip| (ip, 2)).into_iter().collect(),
        ..Facts::default()
    }
}
