//! Which program belongs on which interface.

use std::collections::{BTreeMap, BTreeSet};

use dataplane::Program;
use hiveway_core::{Desired, desired::Role, names, observed::Link, plan::Item};

/// Where a program belongs, and what it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attachment {
    pub(super) program: Program,
    pub(super) interface: String,
    pub(super) item: String,
}

/// All attachments on interfaces that exist.
pub(super) fn wanted(
    desired: &Desired,
    links: &BTreeMap<String, Link>,
    underlay: &str,
    mesh_interfaces: &BTreeSet<String>,
) -> Vec<Attachment> {
    let mut wanted = Vec::new();
    let mut add = |program, interface: &str, item: String| {
        if links.contains_key(interface) {
            wanted.push(Attachment { program, interface: interface.to_owned(), item });
        }
    };
    add(Program::FromUnderlay, underlay, format!("underlay {underlay}"));
    add(Program::ToOutside, underlay, format!("underlay {underlay}"));
    for interface in mesh_interfaces.iter().filter(|name| *name != underlay) {
        add(Program::FromClient, interface, format!("mesh interface {interface}"));
        add(Program::ToOutside, interface, format!("mesh interface {interface}"));
    }
    if desired.host_link.is_some() {
        add(Program::FromClient, names::HOST_FAR, Item::HostLink.to_string());
    }
    for network in &desired.networks {
        for subnet in &network.subnets {
            add(Program::FromVxlan, &subnet.vxlan, Item::Network(network.id.clone()).to_string());
        }
    }
    for task in &desired.tasks {
        for interface in &task.interfaces {
            let program = match interface.role {
                Role::Overlay { .. } => Program::FromContainer,
                Role::Gateway => Program::FromGateway,
            };
            add(program, &interface.host, Item::Task(task.id.clone()).to_string());
        }
    }
    wanted
}
