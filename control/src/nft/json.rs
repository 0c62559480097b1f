//! Chains, rules and statements in the form in which `nft -j list` shows them.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Value, json};

use super::{CLOSED, TABLE};

pub(super) fn set(name: &str, kind: &str, all: &BTreeSet<impl Serialize>) -> Value {
    let (family, table) = TABLE;
    let mut set = json!({"family": family, "name": name, "table": table, "type": kind});
    if !all.is_empty() {
        set["elem"] = elements(all).into();
    }
    json!({"set": set})
}

/// Of a set, in the order in which sets are compared.
pub(super) fn elements(all: impl IntoIterator<Item = impl Serialize>) -> Vec<Value> {
    let mut elements: Vec<Value> = all.into_iter().map(|element| json!(element)).collect();
    elements.sort_by_key(Value::to_string);
    elements
}

pub(super) fn chain(name: &str, kind: &str, hook: &str, priority: i32) -> Value {
    let (family, table) = TABLE;
    json!({"chain": {"family": family, "table": table, "name": name, "type": kind, "hook": hook, "prio": priority,
                     "policy": "accept"}})
}

/// A chain that only other chains ask.
pub(super) fn regular_chain(name: &str) -> Value {
    let (family, table) = TABLE;
    json!({"chain": {"family": family, "table": table, "name": name}})
}

pub(super) fn rule(chain: &str, statements: Vec<Value>) -> Value {
    let (family, table) = TABLE;
    json!({"rule": {"family": family, "table": table, "chain": chain, "expr": statements}})
}

pub(super) fn payload(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

pub(super) fn named(op: &str, key: &str, name: &str) -> Value {
    json!({"match": {"op": op, "left": {"meta": {"key": key}}, "right": name}})
}

/// Whether connection tracking has given the connection another source (`snat`) or destination (`dnat`).
pub(super) fn is_translated(what: &str) -> Value {
    json!({"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": what}})
}

/// To a port of a set.
pub(super) fn to_ports(protocol: &str, set: &str) -> Value {
    json!({"match": {"op": "==", "left": payload(protocol, "dport"), "right": format!("@{set}")}})
}

/// Counts and drops what may not have that port.
pub(super) fn drop_closed() -> [Value; 2] {
    [json!({"counter": CLOSED}), drop_it()]
}

/// To an address of this node.
pub(super) fn is_local() -> Value {
    json!({"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}})
}

pub(super) fn drop_it() -> Value {
    json!({"drop": null})
}
