//! Keeps map `REVERSE`: the reverse-path filter of each interface where clients arrive, as the kernel computes it from
//! `net.ipv4.conf.*.rp_filter`. Each round says which interfaces these are; changes of the sysctl are followed between
//! rounds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dataplane::{MapFault, ReversePaths};
use dataplane_common::reverse::{EVERY_INTERFACE, LOOPBACK, ReversePath, reverse_mode};
use hiveway_core::observed::{Kind, Link};
use tokio::{task::JoinHandle, time::sleep};

use crate::netlink::netconf::{self, Netconf};

/// How long to wait for more changes before acting on them together, and how long after a socket's failure.
const SETTLE: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(1);
/// How many masters an interface's packets may pass on their way into the stack.
const MASTERS: usize = 4;

/// An interface where clients arrive, as the kernel's input routing sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Arrival {
    /// The interface whose sysctls count, by name and index.
    conf: (String, u32),
    /// [`ReversePath::at`].
    at: u32,
    /// Index of the VRF that it belongs to.
    vrf: Option<u32>,
    /// It has no IPv4 address.
    bare: bool,
}

/// What `net.ipv4.conf.*` asks of an interface.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    /// `rp_filter`.
    filter: i64,
    /// `src_valid_mark`: the packet's mark selects among routing rules.
    marked: bool,
}

impl Asked {
    /// What `all` and `own` ask together.
    fn with(self, own: Self) -> Self {
        Self { filter: self.filter.max(own.filter), marked: self.marked || own.marked }
    }

    fn mode(self) -> u32 {
        match self.filter {
            0 => reverse_mode::NONE,
            // The mark that the kernel would ask with is set behind the programs: only it knows the best route.
            1 if !self.marked => reverse_mode::STRICT,
            _ => reverse_mode::LOOSE,
        }
    }
}

impl Arrival {
    fn of(name: &str, links: &BTreeMap<String, Link>) -> Option<Self> {
        let (mut name, mut link) = (name, links.get(name)?);
        let mut vrf = None;
        for _ in 0..MASTERS {
            let Some((master, over)) = link.master.as_ref().and_then(|name| links.get_key_value(name)) else { break };
            match &over.kind {
                Kind::Bridge => (name, link) = (master, over),
                Kind::Other(kind) if kind == "bond" || kind == "team" => (name, link) = (master, over),
                // The stack takes the packet for the VRF's, so its filter counts.
                Kind::Other(kind) if kind == "vrf" => {
                    vrf = Some(over.index);
                    name = master;
                    break;
                }
                _ => break,
            }
        }
        let conf = (name.to_owned(), vrf.unwrap_or(link.index));
        Some(Self { conf, at: link.index, vrf, bare: link.addresses.is_empty() })
    }

    /// Its filter, if its sysctls are these.
    fn filter(&self, asked: Asked) -> ReversePath {
        let mode = match asked.mode() {
            // Every interface of a VRF counts as the way back; that a route of its table leads elsewhere is not found
            // out.
            reverse_mode::STRICT if self.vrf.is_some() => reverse_mode::LOOSE,
            // The kernel makes no difference on an interface without an address.
            reverse_mode::LOOSE if self.bare && asked.filter > 1 && self.vrf.is_none() => reverse_mode::STRICT,
            mode => mode,
        };
        ReversePath { mode, at: self.at, from: self.vrf.unwrap_or(LOOPBACK) }
    }
}

/// The filters of these interfaces. One whose sysctls are not there has gone.
fn filters(
    arrivals: &BTreeMap<u32, Arrival>,
    asked: impl Fn(&str) -> io::Result<Asked>,
) -> io::Result<BTreeMap<u32, ReversePath>> {
    let all = asked("all")?;
    // An interface's own 2 makes a strict `all` loose: only that much is sure of an interface that nothing is known of.
    let mode = if all.filter == 0 { reverse_mode::NONE } else { reverse_mode::LOOSE };
    let every = ReversePath { mode, at: 0, from: LOOPBACK };
    let mut filters = BTreeMap::from([(EVERY_INTERFACE, every)]);
    for (index, arrival) in arrivals {
        match asked(&arrival.conf.0) {
            Ok(own) => drop(filters.insert(*index, arrival.filter(all.with(own)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filters)
}

/// The sysctls of an interface in this network namespace.
fn read(interface: &str) -> io::Result<Asked> {
    let number = |name: &str| -> io::Result<i64> {
        let text = fs::read_to_string(Path::new("/proc/sys/net/ipv4/conf").join(interface).join(name))?;
        text.trim().parse().map_err(io::Error::other)
    };
    Ok(Asked { filter: number("rp_filter")?, marked: number("src_valid_mark")? != 0 })
}

/// The filters could not be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("sysctl net.ipv4.conf: {0}")]
    Sysctl(#[from] io::Error),
    #[error(transparent)]
    Map(#[from] MapFault),
}

struct Keeper {
    map: ReversePaths,
    arrivals: BTreeMap<u32, Arrival>,
}

impl Keeper {
    fn look(&mut self) -> Result<bool, Trouble> {
        Ok(self.map.keep(&filters(&self.arrivals, read)?)?)
    }

    fn concerns(&self, index: i32) -> bool {
        index == netconf::EVERY_INTERFACE
            || self.arrivals.values().any(|arrival| i32::try_from(arrival.conf.1) == Ok(index))
    }
}

/// The agent's end.
pub(super) struct Reverse {
    keeper: Arc<Mutex<Keeper>>,
    follower: JoinHandle<()>,
}

impl Reverse {
    /// Starts following the sysctls, of no interface yet. It ends with what this returns.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub(super) fn start(map: ReversePaths) -> io::Result<Self> {
        let keeper = Arc::new(Mutex::new(Keeper { map, arrivals: BTreeMap::new() }));
        let follower = tokio::spawn(follow(Netconf::open()?, keeper.clone()));
        Ok(Self { keeper, follower })
    }

    /// Keeps the filters of these interfaces from now on. Returns whether anything was changed.
    ///
    /// # Errors
    /// When a sysctl cannot be read or the map not written; what was there stays.
    pub(super) fn keep(&self, clients: &BTreeSet<String>, links: &BTreeMap<String, Link>) -> Result<bool, Trouble> {
        let arrivals = clients.iter().filter_map(|name| Some((links.get(name)?.index, Arrival::of(name, links)?)));
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        keeper.arrivals = arrivals.collect();
        keeper.look()
    }
}

impl Drop for Reverse {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

async fn follow(heard: Netconf, keeper: Arc<Mutex<Keeper>>) {
    let keeper = || keeper.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Err(error) = heard.filter_set(|index| keeper().concerns(index)).await {
            tracing::warn!("cannot hear of changes of rp_filter, which the next round sees: {error}");
            sleep(RETRY).await;
            continue;
        }
        let done = keeper().look();
        match done {
            Ok(true) => tracing::info!("reverse-path filters of interfaces where clients arrive have changed"),
            Ok(false) => {}
            // The next round tries again, and tells.
            Err(error) => tracing::warn!("reverse-path filters: {error}"),
        }
        sleep(SETTLE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, kind: &str, master: Option<&str>, address: bool) -> Link {
        let kind = if kind == "bridge" { Kind::Bridge } else { Kind::Other(kind.to_owned()) };
        let addresses = address.then(|| "192.0.2.1/24".parse().unwrap()).into_iter().collect();
        Link { master: master.map(str::to_owned), addresses, ..Link::new(index, kind) }
    }

    fn node() -> BTreeMap<String, Link> {
        let links = [
            ("eth0", link(2, "", None, true)),
            ("bare", link(3, "", None, false)),
            ("slave", link(4, "", Some("bond0"), false)),
            ("bond0", link(5, "bond", Some("br0"), false)),
            ("br0", link(6, "bridge", None, true)),
            ("red", link(7, "", Some("vrf1"), true)),
            ("vrf1", link(8, "vrf", None, false)),
        ];
        links.into_iter().map(|(name, link)| (name.to_owned(), link)).collect()
    }

    /// The filter of an interface where `all` and `own` are the sysctls, and whose `own` was asked.
    fn of(name: &str, all: i64, own: i64) -> ((u32, u32, u32), String) {
        let links = node();
        let arrivals = BTreeMap::from([(links[name].index, Arrival::of(name, &links).unwrap())]);
        let conf = arrivals[&links[name].index].conf.0.clone();
        let asked = |of: &str| Ok(Asked { filter: if of == "all" { all } else { own }, marked: false });
        let filter = filters(&arrivals, asked).unwrap()[&links[name].index];
        ((filter.mode, filter.at, filter.from), conf)
    }

    #[test]
    fn the_stricter_looking_number_of_both_counts_as_in_the_kernel() {
        use reverse_mode::{LOOSE, NONE, STRICT};
        for (all, own, mode) in
            [(0, 0, NONE), (0, 1, STRICT), (1, 0, STRICT), (1, 2, LOOSE), (2, 1, LOOSE), (2, 0, LOOSE), (0, 7, LOOSE)]
        {
            assert_eq!(of("eth0", all, own), ((mode, 2, LOOPBACK), "eth0".to_owned()), "all {all}, own {own}");
        }
    }

    #[test]
    fn the_interface_that_the_stack_sees_is_asked() {
        let strict = reverse_mode::STRICT;
        for port in ["slave", "bond0", "br0"] {
            assert_eq!(of(port, 0, 1), ((strict, 6, LOOPBACK), "br0".to_owned()), "{port}");
        }
        assert_eq!(of("red", 0, 1), ((reverse_mode::LOOSE, 7, 8), "vrf1".to_owned()));
        assert_eq!(of("red", 0, 0).0.0, reverse_mode::NONE);
    }

    #[test]
    fn without_an_address_loose_is_strict() {
        assert_eq!(of("bare", 2, 0).0.0, reverse_mode::STRICT);
        assert_eq!(of("bare", 0, 0).0.0, reverse_mode::NONE);
    }

    #[test]
    fn marks_that_come_later_leave_strict_to_the_kernel() {
        let marked = |filter| Asked { filter, marked: true }.with(Asked::default()).mode();
        assert_eq!(marked(1), reverse_mode::LOOSE);
        assert_eq!((marked(0), marked(2)), (reverse_mode::NONE, reverse_mode::LOOSE));
        let arrival = Arrival::of("bare", &node()).unwrap();
        assert_eq!(arrival.filter(Asked { filter: 1, marked: true }).mode, reverse_mode::LOOSE);
    }

    #[test]
    fn what_has_gone_has_no_filter_and_everything_else_what_all_asks() {
        let links = node();
        let arrivals = BTreeMap::from([(2, Arrival::of("eth0", &links).unwrap())]);
        let asked = |of: &str| match of {
            "all" => Ok(Asked { filter: 1, marked: false }),
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        let found = filters(&arrivals, asked).unwrap();
        let every = ReversePath { mode: reverse_mode::LOOSE, at: 0, from: LOOPBACK };
        assert_eq!(found, BTreeMap::from([(EVERY_INTERFACE, every)]));
    }
}
