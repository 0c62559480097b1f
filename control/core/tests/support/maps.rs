//! Contents of maps, and short ways to say what is expected of them.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path};

use dataplane_common::state::{MapState, SetKey};
use hiveway_core::{Desired, Facts, GatewayAddresses, Model, Settings, derive, map_state, table::parse_file};

use super::facts;

pub(crate) const APP1: [u8; 4] = 4097u32.to_be_bytes();
pub(crate) const INGRESS: [u8; 4] = 4096u32.to_be_bytes();

#[track_caller]
pub(crate) fn table(text: &str) -> Model {
    parse_file(text, Path::new("t.yaml")).unwrap_or_else(|p| panic!("{p:#?}")).model
}

#[track_caller]
pub(crate) fn maps_with(model: &Model, node: &str, change: impl FnOnce(&Desired, &mut Facts)) -> MapState {
    let settings = Settings::new(node);
    let desired = derive(model, &settings, &mut GatewayAddresses::new()).expect("derivable");
    let mut facts = facts(&desired);
    change(&desired, &mut facts);
    map_state(model, &desired, &settings, &facts)
}

#[track_caller]
pub(crate) fn maps(model: &Model, node: &str) -> MapState {
    maps_with(model, node, |_, _| {})
}

/// `10.0.1.3@13` for each backend, as stored.
#[track_caller]
pub(crate) fn set(state: &MapState, key: SetKey) -> Vec<String> {
    let set = state.sets.get(&key).unwrap_or_else(|| panic!("no {key:?} in {:?}", state.sets.keys()));
    set.iter().map(|b| format!("{}@{}", Ipv4Addr::from(b.ip), b.vtep[3])).collect()
}

#[track_caller]
pub(crate) fn vip(net: [u8; 4], ip: [u8; 4]) -> SetKey {
    SetKey::Vip { net, ip }
}

#[track_caller]
pub(crate) fn port(proto: u8, port: u16) -> SetKey {
    SetKey::Port { proto, port: port.to_be_bytes() }
}

/// Kinds of endpoints on a network: address → kind.
#[track_caller]
pub(crate) fn kinds(state: &MapState, net: [u8; 4]) -> BTreeMap<String, u8> {
    let on = state.endpoints.iter().filter(|(k, _)| k.net == net);
    on.map(|(k, e)| (Ipv4Addr::from(k.ip).to_string(), e.kind)).collect()
}

#[track_caller]
pub(crate) fn kinds_of<const N: usize>(expected: [(&str, u8); N]) -> BTreeMap<String, u8> {
    expected.into_iter().map(|(ip, kind)| (ip.to_owned(), kind)).collect()
}
