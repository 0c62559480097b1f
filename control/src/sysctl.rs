//! The two sysctls we need, set in this network namespace and given back at teardown: `net.ipv4.ip_forward` and the
//! published ports in `net.ipv4.ip_local_reserved_ports`. And those that keep our own interfaces quiet, which go with
//! them.

mod ports;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use dataplane::Belief;
use hiveway_core::observed::Link;

pub use ports::{PortList, parse_ports};

use crate::state_dir::{StateDir, StateError, SysctlState};

const FORWARD: &str = "net.ipv4.ip_forward";
const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";

const NO_PMTU_DISC: &str = "net.ipv4.ip_no_pmtu_disc";
const MIN_PMTU: &str = "net.ipv4.route.min_pmtu";
const MTU_EXPIRES: &str = "net.ipv4.route.mtu_expires";

/// What this network namespace believes of ICMP "fragmentation needed". Where the kernel has a sysctl for all
/// namespaces together (before 5.18), its default counts.
pub fn path_mtu() -> Belief {
    let number = |name, default| read(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    // 3 believes what is about a socket's own packets, which the programs check in any case.
    let believes = matches!(number(NO_PMTU_DISC, 0), 0 | 3);
    Belief {
        min: u16::try_from(number(MIN_PMTU, 552)).unwrap_or(u16::MAX),
        expires: Duration::from_secs(if believes { number(MTU_EXPIRES, 600) } else { 0 }),
    }
}

/// A sysctl could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The kernel refused.
    #[error("sysctl {name}: {source}")]
    Kernel {
        /// Its name.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What was there before could not be remembered, so nothing was changed.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Sets what is not yet as it should be; remembers first what was there. Returns whether anything was changed.
///
/// # Errors
/// The first thing that went wrong.
pub fn ensure(state: &StateDir, published: &BTreeSet<u16>) -> Result<bool, SysctlError> {
    let before = state.sysctls()?;
    let forward = read(FORWARD)?;
    let reserved = parse_ports(&read(RESERVED)?);

    let mut after = before.clone();
    if forward != "1" {
        after.originals.entry(FORWARD.to_owned()).or_insert_with(|| forward.clone());
    }
    let wanted = reserve(&reserved, &before.reserved_ports, published);
    after.reserved_ports = wanted.ours;
    if after != before {
        // Ports that we are about to give up are still ours if we die in between.
        let union = &after.reserved_ports | &before.reserved_ports;
        state.set_sysctls(&SysctlState { reserved_ports: union, ..after.clone() })?;
    }
    let mut changed = false;
    if forward != "1" {
        write(FORWARD, "1")?;
        changed = true;
    }
    if wanted.all != reserved {
        write(RESERVED, &PortList(&wanted.all).to_string())?;
        changed = true;
    }
    if after != before && after.reserved_ports != (&after.reserved_ports | &before.reserved_ports) {
        state.set_sysctls(&after)?;
    }
    Ok(changed)
}

/// What [`ensure`] would set, and to what.
///
/// # Errors
/// The first thing that could not be read.
pub fn differing(state: &StateDir, published: &BTreeSet<u16>) -> Result<Vec<(&'static str, String)>, SysctlError> {
    let reserved = parse_ports(&read(RESERVED)?);
    let wanted = reserve(&reserved, &state.sysctls()?.reserved_ports, published).all;
    let forward = (read(FORWARD)? != "1").then(|| (FORWARD, "1".to_owned()));
    let ports = (wanted != reserved).then(|| (RESERVED, PortList(&wanted).to_string()));
    Ok(forward.into_iter().chain(ports).collect())
}

/// Gives back what [`ensure`] changed; carries on after errors and returns all of them.
pub fn restore(state: &StateDir) -> Vec<SysctlError> {
    let mut failures = Vec::new();
    let before = match state.sysctls() {
        Ok(before) => before,
        Err(error) => return vec![error.into()],
    };
    if let Some(original) = before.originals.get(FORWARD) {
        // Somebody else may have changed it since; then it is theirs.
        let restored = read(FORWARD).and_then(|now| if now == "1" { write(FORWARD, original) } else { Ok(()) });
        failures.extend(restored.err());
    }
    if !before.reserved_ports.is_empty() {
        let restored = read(RESERVED).and_then(|now| {
            let kept = reserve(&parse_ports(&now), &before.reserved_ports, &BTreeSet::new()).all;
            write(RESERVED, &PortList(&kept).to_string())
        });
        failures.extend(restored.err());
    }
    failures
}

/// Keeps interfaces of ours in this namespace quiet. Returns whether any was not.
///
/// # Errors
/// As [`ipv6_off`].
pub fn quiet(links: &BTreeMap<String, Link>) -> Result<bool, SysctlError> {
    let of = |wanted: fn(&Link, &str) -> bool| {
        links.iter().filter(move |(name, link)| wanted(link, name)).map(|(name, _)| name.as_str())
    };
    let changed = ipv6_off(of(Link::is_ours))?;
    Ok(arp_off(of(Link::is_overlay_bridge))? || changed)
}

/// Switches IPv6 off on interfaces of ours in this namespace: a container's router advertisement would otherwise give
/// the node an address and a default route through the container (as in CVE-2020-13401). Returns whether it was on
/// anywhere.
///
/// # Errors
/// The kernel's. A kernel without IPv6, and an interface that has gone, are none.
pub fn ipv6_off<'a>(interfaces: impl Iterator<Item = &'a str>) -> Result<bool, SysctlError> {
    each("net.ipv6.conf.<interface>.disable_ipv6", "net/ipv6/conf", "disable_ipv6", "1", interfaces)
}

/// Has the node answer no ARP request over overlay bridges: they have no address, so Linux would answer for all others
/// of the node's. Returns whether it would have anywhere.
///
/// # Errors
/// As [`ipv6_off`].
pub fn arp_off<'a>(bridges: impl Iterator<Item = &'a str>) -> Result<bool, SysctlError> {
    each("net.ipv4.conf.<bridge>.arp_ignore", "net/ipv4/conf", "arp_ignore", "8", bridges)
}

/// Sets a sysctl of each interface.
fn each<'a>(
    name: &'static str,
    directory: &str,
    file: &str,
    value: &str,
    interfaces: impl Iterator<Item = &'a str>,
) -> Result<bool, SysctlError> {
    let refused = |source| SysctlError::Kernel { name, source };
    let mut changed = false;
    for interface in interfaces {
        let path = Path::new("/proc/sys").join(directory).join(interface).join(file);
        match fs::read_to_string(&path) {
            Ok(now) if now.trim() == value => {}
            Ok(_) => {
                fs::write(&path, format!("{value}\n")).map_err(refused)?;
                changed = true;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refused(error)),
        }
    }
    Ok(changed)
}

struct Reserve {
    /// New contents of the sysctl.
    all: BTreeSet<u16>,
    /// Those of them that we added.
    ours: BTreeSet<u16>,
}

/// Published ports are added, ours that are no longer published go, foreign ones stay.
fn reserve(now: &BTreeSet<u16>, ours: &BTreeSet<u16>, published: &BTreeSet<u16>) -> Reserve {
    let foreign: BTreeSet<u16> = now - ours;
    Reserve { all: &foreign | published, ours: published - &foreign }
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name.replace('.', "/"))
}

fn read(name: &'static str) -> Result<String, SysctlError> {
    let text = fs::read_to_string(path(name)).map_err(|source| SysctlError::Kernel { name, source })?;
    Ok(text.trim().to_owned())
}

fn write(name: &'static str, value: &str) -> Result<(), SysctlError> {
    // An empty write is not a write at all.
    fs::write(path(name), format!("{value}\n")).map_err(|source| SysctlError::Kernel { name, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ports: &[u16]) -> BTreeSet<u16> {
        ports.iter().copied().collect()
    }

    #[test]
    fn foreign_ports_stay_and_are_never_ours() {
        let first = reserve(&set(&[8080, 9000]), &set(&[]), &set(&[80, 8080]));
        assert_eq!((first.all, first.ours), (set(&[80, 8080, 9000]), set(&[80])));
        let later = reserve(&set(&[80, 8080, 9000]), &set(&[80]), &set(&[443]));
        assert_eq!((later.all, later.ours), (set(&[443, 8080, 9000]), set(&[443])));
        let end = reserve(&set(&[443, 8080, 9000]), &set(&[443]), &set(&[]));
        assert_eq!((end.all, end.ours), (set(&[8080, 9000]), set(&[])));
    }
}
