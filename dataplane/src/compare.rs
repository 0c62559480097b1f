//! What the maps lack of a desired state, without writing anything: what [`Tables::apply`] would do now.

use std::collections::{BTreeMap, BTreeSet};

use dataplane_common::{
    endpoint::{Endpoint, EndpointKey, kind},
    service::access,
    state::{MapState, SetKey},
};

use crate::{
    MapName,
    apply::{ApplyError, LISTED, overlaid, with_abi},
    changes::{Changes, Delta},
    diff::{Sorted, to_put, to_remove},
    hops::numbered,
    tables::Tables,
};

/// The id of a set that does not exist yet: no set has it, see [`crate::sets::Sets`].
const NEW: u32 = 0;

impl Tables {
    /// What applying `want` would change.
    pub(crate) fn compare(&self, want: &MapState) -> Result<BTreeMap<MapName, Delta>, ApplyError> {
        let have = self.read_state()?;
        let mut changes = Changes::default();
        if have.config != with_abi(&want.config) {
            changes.count(MapName::Config, Delta { updated: 1, ..Delta::default() });
        }
        let of = |prefixes: &BTreeSet<_>, access| -> BTreeMap<_, u32> {
            prefixes.iter().map(|prefix| (*prefix, access)).collect()
        };
        let allow = overlaid(&of(&want.allow, access::ALLOWED), &of(&want.deny, access::DENIED));
        let left: BTreeMap<_, _> = want.left.iter().map(|prefix| (*prefix, LISTED)).collect();
        let set = |key: &SetKey| self.sets.id(key).unwrap_or(NEW);
        let with_set = |(key, endpoint): (EndpointKey, &Endpoint)| match endpoint.kind {
            kind::VIP => (key, Endpoint { set: set(&SetKey::Vip { net: key.net, ip: key.ip }), ..*endpoint }),
            _ => (key, *endpoint),
        };
        let endpoints: BTreeMap<_, _> = want.endpoints.iter().map(|(key, value)| with_set((*key, value))).collect();
        let ports = want.sets.keys().filter_map(|key| Self::published_port(want, key, set(key))).collect();

        differ(MapName::Vteps, &have.vteps, &numbered(&have.vteps, &want.vteps), &mut changes);
        differ(MapName::Vnis, &have.vnis, &want.vnis, &mut changes);
        differ(MapName::Endpoints, &have.endpoints, &endpoints, &mut changes);
        differ(MapName::Locals, &have.locals, &want.locals, &mut changes);
        differ(MapName::Clients, &have.clients, &want.clients, &mut changes);
        differ(MapName::MeshTargets, &have.targets, &want.targets, &mut changes);
        differ(MapName::NodeAddresses, &have.node_addresses, &want.node_addresses, &mut changes);
        differ(MapName::Ports, &have.ports, &ports, &mut changes);
        differ(MapName::Allow, &have.allow, &allow, &mut changes);
        differ(MapName::Left, &self.left.read()?, &left, &mut changes);
        self.sets.compare(&want.sets, &mut changes);
        Ok(changes.maps)
    }
}

fn differ<K: Ord + Copy, V: PartialEq + Copy>(
    map: MapName,
    have: &impl Sorted<K, V>,
    want: &BTreeMap<K, V>,
    changes: &mut Changes,
) {
    let put = to_put(have.sorted(), want.sorted());
    let inserted = put.iter().filter(|(.., new)| *new).count();
    let removed = to_remove(have.sorted(), want.keys().copied()).len();
    changes.count(map, Delta { inserted, updated: put.len() - inserted, removed });
}
