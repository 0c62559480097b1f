//! Brings the maps to a desired state, in an order in which packets are right all the time: what is pointed to is
//! written before what points to it, and removed after it. Ports are closed before anything is opened: whoever may use
//! a restricted port is known before it is restricted, and it is restricted before its backends are published.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use dataplane_common::{
    addr::Ip4,
    config::Config,
    endpoint::{Endpoint, EndpointKey, kind},
    mesh::{ClientPrefix, ClientRule, NodeAddress},
    service::{AllowPrefix, LeftPrefix, PortKey, PublishedPort, access, port_flag},
    state::{MapChange, MapState, SetKey},
};

use crate::{
    MapName,
    changes::{Changes, Delta},
    clock::monotonic_now,
    diff::{Part, Sorted, to_put, to_remove},
    hops::numbered,
    pod::{Plain, Raw},
    table::{Entries, MapFault},
    tables::Tables,
};

/// The maps could not be compared with what they should hold. Nothing was written.
#[derive(Debug, thiserror::Error)]
#[error("cannot read what the maps hold: {0}")]
pub struct ApplyError(#[from] MapFault);

impl Tables {
    /// Applies `want`. Failures of single entries are reported in the result, and the rest is done.
    pub(crate) fn apply(&mut self, want: &MapState) -> Result<Changes, ApplyError> {
        // Everything is read first: if that fails, nothing has been half-applied.
        let have = self.read_state()?;
        let mut changes = Changes::default();
        let now = monotonic_now();
        let vteps = numbered(&have.vteps, &want.vteps);
        // XDP remembers for each connection that it was told yes. Before any of that is taken back it is told to ask
        // again, and after it that it may remember again. What is new it asks about in any case.
        let have_left = self.left_now(want)?;
        let left: BTreeMap<_, _> = match have_left {
            Some(_) => want.left.iter().map(|prefix| (*prefix, LISTED)).collect(),
            None => BTreeMap::new(),
        };
        let have_left = have_left.unwrap_or_default();
        let closed = closed_ports(&have.ports, want);
        if have.config != with_abi(&want.config)
            || lost(&have.vteps, |key, vtep| vteps.get(key) == Some(vtep))
            || lost(&left, |key, _| have_left.contains_key(key))
            || !closed.is_empty()
        {
            self.xdp_state.begin();
        }

        self.put_config(&want.config, have.config, &mut changes);
        let of = |prefixes: &BTreeSet<_>, access| -> BTreeMap<_, _> {
            prefixes.iter().map(|prefix| (*prefix, access)).collect()
        };
        let deny = of(&want.deny, access::DENIED);
        put(&mut self.allow, &have.allow, &deny, &mut changes);
        let allow = overlaid(&of(&want.allow, access::ALLOWED), &deny);
        put(&mut self.allow, &overlaid(&have.allow, &deny), &allow, &mut changes);
        put(&mut self.left, &have_left, &left, &mut changes);
        put(&mut self.ports, &have.ports, &closed, &mut changes);
        // What an entry allows in a port that is not to be restricted any more, it allows until the port is open.
        let (still, no_longer): (BTreeMap<_, _>, BTreeMap<_, _>) =
            have.allow.iter().partition(|((_, prefix), _)| want.restricted.contains(&prefix.port));
        remove(&mut self.allow, &owned(&still), &allow, &mut changes);
        let of_tasks = Part(&want.endpoints, |endpoint: &Endpoint| endpoint.kind != kind::VIP);

        put(&mut self.vteps, &have.vteps, &vteps, &mut changes);
        put(&mut self.vnis, &have.vnis, &want.vnis, &mut changes);
        put(&mut self.endpoints, &have.endpoints, &of_tasks, &mut changes);
        put(&mut self.locals, &have.locals, &want.locals, &mut changes);
        put(&mut self.clients, &have.clients, &want.clients, &mut changes);
        put(&mut self.targets, &have.targets, &want.targets, &mut changes);
        // Which ports an address answers at is narrowed before the ports' classes change, and widened after it.
        let narrowed = narrowed(&have.node_addresses, &want.node_addresses);
        put(&mut self.node_addresses, &have.node_addresses, &narrowed, &mut changes);
        self.sets.put(&want.sets, now, &mut changes);
        let vips = self.with_sets(&want.endpoints, &mut changes);
        let ports = self.published_ports(want);
        put(&mut self.endpoints, &have.endpoints, &vips, &mut changes);
        put(&mut self.ports, &overlaid(&have.ports, &closed), &ports, &mut changes);
        let addresses = overlaid(&have.node_addresses, &narrowed);
        put(&mut self.node_addresses, &addresses, &want.node_addresses, &mut changes);

        if lost(&have.ports, |key, _| ports.contains_key(key))
            || lost(&have.node_addresses, |key, _| want.node_addresses.contains_key(key))
        {
            self.xdp_state.begin();
        }
        // A VIP that has no set yet stays as it is rather than being removed.
        remove(&mut self.ports, &have.ports, &ports, &mut changes);
        remove(&mut self.allow, &owned(&no_longer), &allow, &mut changes);
        remove(&mut self.left, &have_left, &left, &mut changes);
        if !changes.failures.iter().any(|failure| failure.map == MapName::Left) {
            self.left_seen.get_or_insert_with(|| (want.left.clone(), Instant::now()));
        }
        remove(&mut self.node_addresses, &have.node_addresses, &want.node_addresses, &mut changes);
        remove(&mut self.targets, &have.targets, &want.targets, &mut changes);
        remove(&mut self.clients, &have.clients, &want.clients, &mut changes);
        remove(&mut self.locals, &have.locals, &want.locals, &mut changes);
        remove(&mut self.endpoints, &have.endpoints, &want.endpoints, &mut changes);
        remove(&mut self.vnis, &have.vnis, &want.vnis, &mut changes);
        remove(&mut self.vteps, &have.vteps, &want.vteps, &mut changes);

        self.xdp_state.end();

        // If a pointer to a set could not be removed, its set stays too.
        let pointers_gone = !changes.failures.iter().any(|f| matches!(f.map, MapName::Ports | MapName::Endpoints));
        if pointers_gone {
            self.sets.release_except(|key| want.sets.contains_key(key), now, &mut changes);
        }
        Ok(changes)
    }

    /// Applies a part: reads only what it writes.
    pub(crate) fn change(&mut self, change: &MapChange) -> Changes {
        let mut changes = Changes::default();
        let (mut have, mut want) = (BTreeMap::new(), BTreeMap::new());
        for (key, endpoint) in &change.endpoints {
            match self.endpoints.get(key) {
                Ok(found) => drop(found.map(|found| have.insert(*key, found))),
                Err(fault) => changes.fail(MapName::Endpoints, key, fault),
            }
            endpoint.map(|endpoint| want.insert(*key, endpoint));
        }
        put(&mut self.endpoints, &have, &want, &mut changes);
        // A set that nothing points to yet is not for here.
        let sets = change.sets.iter().filter(|(key, _)| self.sets.id(key).is_some());
        let sets: BTreeMap<_, _> = sets.map(|(key, set)| (*key, set.clone())).collect();
        self.sets.put(&sets, monotonic_now(), &mut changes);
        remove(&mut self.endpoints, &have, &want, &mut changes);
        changes
    }

    pub(crate) fn read_state(&self) -> Result<Held, MapFault> {
        let Raw(config) = self.config.get(&0, 0).map_err(|source| MapFault { map: MapName::Config, source })?;
        Ok(Held {
            config,
            locals: self.locals.read()?,
            endpoints: self.endpoints.read_sorted()?,
            vnis: self.vnis.read()?,
            vteps: self.vteps.read()?,
            node_addresses: self.node_addresses.read()?,
            ports: self.ports.read()?,
            targets: self.targets.read()?,
            allow: self.allow.read()?,
            clients: self.clients.read()?,
        })
    }

    /// What map `LEFT` holds; `None`: just what is wanted. It may be large, so what was seen there a moment ago is
    /// believed.
    fn left_now(&mut self, want: &MapState) -> Result<Option<LeftEntries>, MapFault> {
        let believed = |(seen, at): &(_, Instant)| Arc::ptr_eq(seen, &want.left) && at.elapsed() < BELIEVED;
        let large = want.left.len() > LARGE;
        if large && self.left_seen.as_ref().is_some_and(believed) {
            return Ok(None);
        }
        self.left_seen = None;
        self.left.read().map(Some)
    }

    fn put_config(&mut self, want: &Config, have: Config, changes: &mut Changes) {
        let want = with_abi(want);
        if want == have {
            return;
        }
        match self.config.set(0, Raw(want), 0) {
            Ok(()) => changes.count(MapName::Config, Delta { updated: 1, ..Delta::default() }),
            Err(error) => changes.fail(MapName::Config, 0, error),
        }
    }

    /// The VIPs with the ids of their sets; those without a set are reported and left out.
    fn with_sets(
        &self,
        endpoints: &BTreeMap<EndpointKey, Endpoint>,
        changes: &mut Changes,
    ) -> BTreeMap<EndpointKey, Endpoint> {
        let mut with_sets = BTreeMap::new();
        for (key, vip) in endpoints.iter().filter(|(_, endpoint)| endpoint.kind == kind::VIP) {
            match self.sets.id(&SetKey::Vip { net: key.net, ip: key.ip }) {
                Some(set) => {
                    with_sets.insert(*key, Endpoint { set, ..*vip });
                }
                None => changes.fail(MapName::Endpoints, key, "the VIP has no backend set (yet)"),
            }
        }
        with_sets
    }

    /// Map `PORTS`, which follows from the sets.
    fn published_ports(&self, want: &MapState) -> BTreeMap<PortKey, PublishedPort> {
        let published = |key| Self::published_port(want, key, self.sets.id(key)?);
        want.sets.keys().filter_map(published).collect()
    }

    /// The entry of the port that this set serves; `None` if it serves a VIP.
    pub(crate) fn published_port(want: &MapState, key: &SetKey, set: u32) -> Option<(PortKey, PublishedPort)> {
        let SetKey::Port { proto, port } = key else { return None };
        let key = PortKey { proto: *proto, _pad: 0, port: *port };
        let closing = closing_flags(want, &key);
        let (bound, class) = want.bound.get(&key).map_or((0, 0), |class| (port_flag::BOUND, *class));
        Some((key, PublishedPort { set, flags: closing | bound, class, ..PublishedPort::default() }))
    }
}

pub(crate) fn with_abi(config: &Config) -> Config {
    Config { abi: dataplane_common::ABI_VERSION, ..*config }
}

/// Whether anything in the table is not kept as it is.
fn lost<K, V>(have: &BTreeMap<K, V>, kept: impl Fn(&K, &V) -> bool) -> bool {
    have.iter().any(|(key, value)| !kept(key, value))
}

/// What the maps hold.
pub(crate) struct Held {
    pub(crate) config: Config,
    pub(crate) locals: BTreeMap<u32, dataplane_common::endpoint::Local>,
    /// Sorted: there may be many.
    pub(crate) endpoints: Vec<(EndpointKey, Endpoint)>,
    pub(crate) vnis: BTreeMap<[u8; 4], dataplane_common::endpoint::VniInfo>,
    pub(crate) vteps: BTreeMap<[u8; 4], dataplane_common::endpoint::Vtep>,
    pub(crate) node_addresses: BTreeMap<Ip4, NodeAddress>,
    pub(crate) ports: BTreeMap<PortKey, PublishedPort>,
    pub(crate) targets: BTreeMap<dataplane_common::mesh::TargetKey, dataplane_common::mesh::Target>,
    pub(crate) allow: BTreeMap<(u32, AllowPrefix), u32>,
    pub(crate) clients: BTreeMap<(u32, ClientPrefix), ClientRule>,
}

/// Entries written with one system call.
const AT_ONCE: usize = 1024;
/// Value of entries in map `LEFT`.
pub(crate) const LISTED: u32 = 1;
/// Content of map `LEFT`: prefix length and prefix, and the value.
type LeftEntries = BTreeMap<(u32, LeftPrefix), u32>;

/// From so many entries on map `LEFT` is not read whenever it is compared.
const LARGE: usize = 4_096;
/// But as often as this.
const BELIEVED: Duration = Duration::from_secs(60);

/// Flags that keep clients from a port.
fn closing_flags(want: &MapState, key: &PortKey) -> u8 {
    let restricted = if want.restricted.contains(key) { port_flag::RESTRICTED } else { 0 };
    restricted | want.left_flags.get(key).copied().unwrap_or(0)
}

/// Ports that are open to clients that they are to be closed to, with the flags that they lack.
fn closed_ports(have: &BTreeMap<PortKey, PublishedPort>, want: &MapState) -> BTreeMap<PortKey, PublishedPort> {
    let closing = |(key, port): (&PortKey, &PublishedPort)| {
        let flags = port.flags | closing_flags(want, key);
        (flags != port.flags).then_some((*key, PublishedPort { flags, ..*port }))
    };
    have.iter().filter_map(closing).collect()
}

/// Addresses that stay, each with the classes that it had and will have.
fn narrowed(have: &BTreeMap<Ip4, NodeAddress>, want: &BTreeMap<Ip4, NodeAddress>) -> BTreeMap<Ip4, NodeAddress> {
    let stays = |(ip, had): (&Ip4, &NodeAddress)| {
        let wanted = want.get(ip)?;
        Some((*ip, NodeAddress { classes: had.classes & wanted.classes, ..*wanted }))
    };
    have.iter().filter_map(stays).collect()
}

/// `over` where it says something, `under` otherwise.
pub(crate) fn overlaid<K: Copy + Ord, V: Copy>(under: &BTreeMap<K, V>, over: &BTreeMap<K, V>) -> BTreeMap<K, V> {
    under.iter().chain(over).map(|(key, value)| (*key, *value)).collect()
}

fn owned<K: Copy + Ord, V: Copy>(borrowed: &BTreeMap<&K, &V>) -> BTreeMap<K, V> {
    borrowed.iter().map(|(key, value)| (**key, **value)).collect()
}

/// Writes new and changed entries.
fn put<K, V>(table: &mut impl Entries<K, V>, have: &impl Sorted<K, V>, want: &impl Sorted<K, V>, changes: &mut Changes)
where
    K: Copy + Ord + Debug,
    V: Plain + PartialEq,
{
    for entries in to_put(have.sorted(), want.sorted()).chunks(AT_ONCE) {
        let all: Vec<(K, V)> = entries.iter().map(|(key, value, _)| (*key, *value)).collect();
        // Whatever stops the one call for all is found out, and passed by, entry by entry.
        let written = if all.len() > 1 { table.put_first(&all) } else { 0 };
        for (index, (key, value, new)) in entries.iter().enumerate() {
            let done = if index < written { Ok(()) } else { table.put(*key, *value) };
            let new = usize::from(*new);
            match done {
                Ok(()) => changes.count(table.name(), Delta { inserted: new, updated: 1 - new, removed: 0 }),
                Err(fault) => changes.fail(table.name(), key, explain(&fault)),
            }
        }
    }
}

/// Removes entries that are not wanted.
fn remove<K, V, W>(
    table: &mut impl Entries<K, V>,
    have: &impl Sorted<K, V>,
    want: &BTreeMap<K, W>,
    changes: &mut Changes,
) where
    K: Copy + Ord + Debug,
    V: Plain,
{
    for key in to_remove(have.sorted(), want.keys().copied()) {
        match table.remove(&key) {
            Ok(()) => changes.count(table.name(), Delta { removed: 1, ..Delta::default() }),
            Err(fault) => changes.fail(table.name(), key, explain(&fault)),
        }
    }
}

/// The fault, with the remedy for the one that a user can do something about.
fn explain(fault: &MapFault) -> String {
    let full =
        matches!(&fault.source, aya::maps::MapError::SyscallError(e) if e.io_error.raw_os_error() == Some(libc::E2BIG));
    if full {
        format!("{fault}: the map is full; this node is in more networks and tasks than it has room for")
    } else {
        fault.to_string()
    }
}
