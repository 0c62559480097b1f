//! Segmentation offloads of containers' interfaces on an engine's gateway bridge. Replies of the routing mesh leave
//! there, and what is not cut yet when it enters a tunnel cannot be taken out of it again. So the containers' stacks
//! cut it, as on the interfaces that the agent makes. What was on is remembered first, and given back with the network
//! or at teardown.

use std::{collections::BTreeSet, io, os::unix::fs::MetadataExt};

use crate::{
    netlink::{self, LATE_SEGMENTATION, Socket, Space},
    state_dir::{Offload, StateDir, StateError},
};

/// An offload could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum OffloadError {
    /// A namespace could not be opened.
    #[error("network namespace {path}: {source}")]
    Namespace {
        /// Where it is.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] netlink::Error),
    /// What was there before could not be remembered, so nothing was changed.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Those that are on at one of a task's interfaces.
///
/// # Errors
/// The kernel's.
pub fn still_on(task: &str, space: &Space, interface: &str) -> Result<BTreeSet<Offload>, OffloadError> {
    let mut on = BTreeSet::new();
    let socket = socket(space)?;
    for feature in LATE_SEGMENTATION {
        if socket.has_offload(interface, feature)? {
            on.insert(Offload {
                task: task.to_owned(),
                netns: space.path.clone(),
                inode: inode(space)?,
                interface: interface.to_owned(),
                feature: feature.to_owned(),
            });
        }
    }
    Ok(on)
}

/// Remembers what is about to be turned off: of all interfaces at once.
///
/// # Errors
/// The state file's; then nothing may be turned off.
pub fn remember(state: &StateDir, on: &BTreeSet<Offload>) -> Result<(), OffloadError> {
    let known = state.offloads()?;
    if !on.is_subset(&known) {
        state.set_offloads(&(&known | on))?;
    }
    Ok(())
}

/// Turns them off in their namespace.
///
/// # Errors
/// The kernel's, at the first that it refuses.
pub fn turn_off(space: &Space, on: &BTreeSet<Offload>) -> Result<(), OffloadError> {
    let socket = socket(space)?;
    for offload in on {
        socket.set_offload(&offload.interface, &offload.feature, false)?;
    }
    Ok(())
}

/// Gives back all but what `keep` keeps; carries on after errors and returns all of them. Returns how many were given
/// back.
pub fn give_back(state: &StateDir, keep: impl Fn(&Offload) -> bool) -> (usize, Vec<OffloadError>) {
    let known = match state.offloads() {
        Ok(known) => known,
        Err(error) => return (0, vec![error.into()]),
    };
    let (mut left, mut given_back, mut failures) = (BTreeSet::new(), 0, Vec::new());
    for offload in &known {
        if keep(offload) {
            left.insert(offload.clone());
            continue;
        }
        match turn_on(offload) {
            Ok(true) => given_back += 1,
            Ok(false) => {}
            Err(error) => {
                left.insert(offload.clone());
                failures.push(error);
            }
        }
    }
    if left != known {
        failures.extend(state.set_offloads(&left).err().map(OffloadError::State));
    }
    (given_back, failures)
}

/// `false`: the interface is gone.
fn turn_on(offload: &Offload) -> Result<bool, OffloadError> {
    let fault = |source| OffloadError::Namespace { path: offload.netns.display().to_string(), source };
    match std::fs::metadata(&offload.netns) {
        Ok(there) if there.ino() == offload.inode => {}
        // Gone, or another one's.
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(fault(error)),
    }
    let (_, socket) = netlink::open_space(&offload.netns).map_err(fault)?;
    match socket.set_offload(&offload.interface, &offload.feature, true) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn socket(space: &Space) -> Result<Socket, OffloadError> {
    space.socket().map_err(|source| OffloadError::Namespace { path: space.path.display().to_string(), source })
}

fn inode(space: &Space) -> Result<u64, OffloadError> {
    let fault = |source| OffloadError::Namespace { path: space.path.display().to_string(), source };
    Ok(space.file.metadata().map_err(fault)?.ino())
}
