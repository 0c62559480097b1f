//! All maps as typed handles.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, MapError, PerCpuArray},
};
use dataplane_common::{
    addr::{Ip4, VniBytes},
    config::Config,
    counter::Stat,
    endpoint::{Endpoint, EndpointKey, Local, VniInfo, Vtep, kind},
    line::{Clients, Translated},
    mesh::{ClientPrefix, ClientRule, NodeAddress, Target, TargetKey},
    probe::Probed,
    service::{AllowPrefix, LeftPrefix, PortKey, PublishedPort},
    state::SetKey,
    xdp::XdpDevice,
};

use crate::{
    MapName, Sizes,
    connections::{ConnectionTable, Connections, Earlier, Shares},
    gate::Gate,
    hops::Hops,
    line_table::{Contents, LineTable},
    paths::Paths,
    pod::Raw,
    reverse::ReversePaths,
    sets::Sets,
    stats::Counts,
    table::{MapFault, Table, descriptor},
    trie::Trie,
    xdp_state::State,
};

/// Contents of map `LEFT`.
pub(crate) type LeftClients = Arc<BTreeSet<(u32, LeftPrefix)>>;

/// One handle per map.
pub(crate) struct Tables {
    pub(crate) config: Array<MapData, Raw<Config>>,
    pub(crate) locals: Table<u32, Local>,
    pub(crate) endpoints: Table<EndpointKey, Endpoint>,
    pub(crate) vnis: Table<VniBytes, VniInfo>,
    pub(crate) vteps: Table<Ip4, Vtep>,
    pub(crate) node_addresses: Table<Ip4, NodeAddress>,
    pub(crate) ports: Table<PortKey, PublishedPort>,
    pub(crate) targets: Table<TargetKey, Target>,
    pub(crate) allow: Trie<AllowPrefix, u32>,
    pub(crate) left: Trie<LeftPrefix, u32>,
    /// What `left` was last seen to hold, and when.
    pub(crate) left_seen: Option<(LeftClients, Instant)>,
    pub(crate) clients: Trie<ClientPrefix, ClientRule>,
    pub(crate) xdp_devices: Table<u32, XdpDevice>,
    pub(crate) xdp_state: State,
    pub(crate) hops: Option<Hops>,
    pub(crate) paths: Option<Paths>,
    pub(crate) probes: Option<Table<Ip4, Probed>>,
    pub(crate) reverse: Option<ReversePaths>,
    pub(crate) sets: Sets,
    pub(crate) connections: Connections,
    pub(crate) counts: Counts,
}

impl Tables {
    /// Takes the maps out of a loaded object. The programs hold them on their own from here on.
    pub(crate) fn take(ebpf: &mut Ebpf, sizes: Sizes) -> Result<Self, MapFault> {
        let take = |map: MapName| {
            let missing = || MapError::InvalidName { name: map.name().to_owned() };
            ebpf.take_map(map.name()).ok_or_else(|| MapFault { map, source: missing() })
        };
        Self::of(take, sizes)
    }

    /// Handles of the maps that `take` gives. `sizes`: of tables that are made now.
    pub(crate) fn of(mut take: impl FnMut(MapName) -> Result<Map, MapFault>, sizes: Sizes) -> Result<Self, MapFault> {
        let endpoints: Table<EndpointKey, Endpoint> = Table::new(MapName::Endpoints, take(MapName::Endpoints)?)?;
        let ports: Table<PortKey, PublishedPort> = Table::new(MapName::Ports, take(MapName::Ports)?)?;
        let found = set_ids(&endpoints, &ports)?;
        let xdp_state = State::new(&take(MapName::XdpState)?)?;
        let translated: ConnectionTable<Translated> = connections(&mut take, sizes)?;
        let clients: ConnectionTable<Clients> = connections(&mut take, sizes)?;
        Ok(Self {
            config: array(MapName::Config, take(MapName::Config)?)?,
            locals: Table::new(MapName::Locals, take(MapName::Locals)?)?,
            endpoints,
            vnis: Table::new(MapName::Vnis, take(MapName::Vnis)?)?,
            vteps: Table::new(MapName::Vteps, take(MapName::Vteps)?)?,
            node_addresses: Table::new(MapName::NodeAddresses, take(MapName::NodeAddresses)?)?,
            ports,
            targets: Table::new(MapName::MeshTargets, take(MapName::MeshTargets)?)?,
            allow: Trie::new(MapName::Allow, take(MapName::Allow)?)?,
            left: Trie::new(MapName::Left, take(MapName::Left)?)?,
            left_seen: None,
            clients: Trie::new(MapName::Clients, take(MapName::Clients)?)?,
            xdp_devices: Table::new(MapName::XdpDevices, take(MapName::XdpDevices)?)?,
            hops: Some(Hops::new(&take(MapName::Hops)?, xdp_state.clone())?),
            xdp_state,
            paths: Some(Paths::new(take(MapName::Paths)?, &take(MapName::PathState)?)?),
            probes: Some(Table::new(MapName::Probes, take(MapName::Probes)?)?),
            reverse: Some(ReversePaths::new(Table::new(MapName::Reverse, take(MapName::Reverse)?)?)),
            sets: Sets::recover(&take(MapName::Sets)?, take(MapName::Backends)?, found)?,
            connections: Connections {
                translated,
                clients,
                shares: Shares::new(descriptor(MapName::Shares, &take(MapName::Shares)?)?, [sizes.max_flows; 2])?,
                gate: Gate::new(&take(MapName::DirectGate)?)?,
            },
            counts: Counts {
                drops: per_cpu(MapName::Drops, take(MapName::Drops)?)?.into(),
                counters: per_cpu(MapName::Counters, take(MapName::Counters)?)?.into(),
            },
        })
    }
}

/// A connection table, from where no earlier version has left anything.
fn connections<T: Contents>(
    take: &mut impl FnMut(MapName) -> Result<Map, MapFault>,
    sizes: Sizes,
) -> Result<ConnectionTable<T>, MapFault> {
    let spilled: Table<T::Key, T::Entry> = Table::new(T::SPILLED, take(T::SPILLED)?)?;
    if spilled.capacity()? < sizes.spilled() {
        tracing::warn!(
            "map {} has {} places for connections that find no line: an earlier agent made it for a smaller --max-flows. \
             {} are wanted for {}; `hiveway teardown` and a new start make it anew (connections end)",
            T::SPILLED,
            spilled.capacity()?,
            sizes.spilled(),
            sizes.max_flows
        );
    }
    Ok(ConnectionTable {
        lines: LineTable::new(take(T::SEGMENTS)?, &take(T::HEAD)?, sizes)?,
        spilled,
        earlier: Earlier::none(),
    })
}

fn array<V: crate::pod::Plain>(map: MapName, handle: Map) -> Result<Array<MapData, Raw<V>>, MapFault> {
    Array::try_from(handle).map_err(|source| MapFault { map, source })
}

fn per_cpu(map: MapName, handle: Map) -> Result<PerCpuArray<MapData, Raw<Stat>>, MapFault> {
    PerCpuArray::try_from(handle).map_err(|source| MapFault { map, source })
}

/// The sets that the maps point to.
fn set_ids(
    endpoints: &Table<EndpointKey, Endpoint>,
    ports: &Table<PortKey, PublishedPort>,
) -> Result<Vec<(SetKey, u32)>, MapFault> {
    let ports =
        ports.read()?.into_iter().map(|(key, port)| (SetKey::Port { proto: key.proto, port: key.port }, port.set));
    let vips = endpoints
        .read()?
        .into_iter()
        .filter(|(_, endpoint)| endpoint.kind == kind::VIP)
        .map(|(key, vip)| (SetKey::Vip { net: key.net, ip: key.ip }, vip.set));
    Ok(ports.chain(vips).collect())
}
