//! The file of the last table: a line `ORIGIN NODE`, then the message that relays send.

use std::sync::Arc;

use hiveway_core::docker_api::Loaded;
use hiveway_proto::relay::Table;
use prost::Message;

use crate::{
    relay::convert,
    source::{Base, Origin},
};

const SWARM: &str = "swarm";
const RELAY: &str = "relay";

pub(super) fn encode(base: &Base) -> Vec<u8> {
    let origin = match base.origin {
        Origin::Swarm => SWARM,
        Origin::Relay => RELAY,
    };
    let mut bytes = format!("{origin} {}\n", base.node.as_deref().unwrap_or_default()).into_bytes();
    let Loaded { model, left_out, data_path_port, .. } = &*base.table;
    let data_path_port = convert::port_number(*data_path_port);
    bytes.extend(Table { data_path_port, ..convert::encode(model, left_out) }.encode_to_vec());
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Option<Base> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = bytes.split_at(end);
    let (origin, node) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let origin = match origin {
        SWARM => Origin::Swarm,
        RELAY => Origin::Relay,
        _ => return None,
    };
    let table = Table::decode(rest.get(1..)?).ok()?;
    let data_path_port = convert::port_of("data path port", table.data_path_port).ok().flatten();
    let (model, left_out) = convert::decode(table);
    let node = Some(node.to_owned()).filter(|node| !node.is_empty());
    Some(Base { table: Arc::new(Loaded { model, left_out, data_path_port, ..Loaded::default() }), origin, node })
}
