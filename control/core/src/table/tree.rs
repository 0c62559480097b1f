//! Walking the parsed text: typed access to fields, with the path of everything that is wrong.

use std::{fmt::Display, net::Ipv4Addr, str::FromStr};

use ipnet::Ipv4Net;

use super::{
    place::{Element, Entry, Place},
    value::{Map, Value, describe},
};
use crate::{model::Ids, near::closest, problem::Problem};

/// An object of the file with its place.
pub(super) struct Object<'v, 't, P> {
    place: P,
    map: &'v Map<'t>,
}

impl<'v, 't, P: Copy + Display> Object<'v, 't, P> {
    /// `value` as an object with no fields but `known`.
    pub(super) fn new(place: P, value: &'v Value<'t>, known: &[&str], problems: &mut Vec<Problem>) -> Option<Self> {
        let Value::Map(map) = value else {
            problems.push(Problem::error(place.to_string(), format!("expected an object, found {}", describe(value))));
            return None;
        };
        let object = Self { place, map };
        for key in map.keys().filter(|k| !known.contains(&k.as_ref())) {
            let hint = match closest(key, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            problems.push(Problem::error(object.path(key), format!("unknown field; {hint}")));
        }
        Some(object)
    }

    /// The path of one of its fields.
    pub(super) fn path(&self, key: &str) -> String {
        match self.place.to_string() {
            top if top.is_empty() => key.to_owned(),
            place => format!("{place}.{key}"),
        }
    }

    /// A field; `null` counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&'v Value<'t>> {
        self.map.get(key).filter(|v| !matches!(v, Value::Null))
    }

    /// A field that may be missing; `None` also when it is wrong, which is reported.
    pub(super) fn optional<T>(
        &self,
        key: &str,
        problems: &mut Vec<Problem>,
        parse: impl FnOnce(&'v Value<'t>) -> Result<T, String>,
    ) -> Option<T> {
        match parse(self.get(key)?) {
            Ok(value) => Some(value),
            Err(message) => {
                problems.push(Problem::error(self.path(key), message));
                None
            }
        }
    }

    /// A field that must be there.
    pub(super) fn required<T>(
        &self,
        key: &str,
        problems: &mut Vec<Problem>,
        parse: impl FnOnce(&'v Value<'t>) -> Result<T, String>,
    ) -> Option<T> {
        if self.get(key).is_none() {
            problems.push(Problem::error(self.path(key), "missing"));
        }
        self.optional(key, problems, parse)
    }
}

impl<'v, 't> Object<'v, 't, Place> {
    /// The elements of a list that may be missing, with their places.
    pub(super) fn list(&self, key: &'static str, problems: &mut Vec<Problem>) -> Vec<(Element, &'v Value<'t>)> {
        match self.get(key) {
            None => Vec::new(),
            Some(Value::List(items)) => {
                let place = |index| Element { item: self.place, field: key, index };
                items.iter().enumerate().map(|(index, item)| (place(index), item)).collect()
            }
            Some(other) => {
                problems.push(Problem::error(self.path(key), format!("expected a list, found {}", describe(other))));
                Vec::new()
            }
        }
    }

    /// A map that may be missing, its values parsed; each with its place.
    pub(super) fn map<T>(
        &self,
        field: &'static str,
        ids: &mut Ids,
        problems: &mut Vec<Problem>,
        parse: impl Fn(&'v Value<'t>) -> Result<T, String>,
    ) -> Vec<Keyed<T>> {
        let map = match self.get(field) {
            None => return Vec::new(),
            Some(Value::Map(map)) => map,
            Some(other) => {
                problems.push(Problem::error(self.path(field), format!("expected a map, found {}", describe(other))));
                return Vec::new();
            }
        };
        let mut items = Vec::with_capacity(map.len());
        for (key, value) in map {
            let entry = Entry { item: self.place, field, key: ids.get(key) };
            match parse(value) {
                Ok(value) => items.push(Keyed { entry, value }),
                Err(message) => problems.push(Problem::error(entry.to_string(), message)),
            }
        }
        items
    }
}

/// An entry of a map in the file.
pub(super) struct Keyed<T> {
    pub(super) entry: Entry,
    pub(super) value: T,
}

/// Text that is not empty.
pub(super) fn text<'v>(value: &'v Value<'_>) -> Result<&'v str, String> {
    match value {
        Value::Text(s) if !s.is_empty() => Ok(s),
        Value::Text(_) => Err("must not be empty".into()),
        Value::Number(_) | Value::Bool(_) => Err(format!("expected text, found {}; put it in quotes", describe(value))),
        other => Err(format!("expected text, found {}", describe(other))),
    }
}

/// `true` or `false`.
pub(super) fn boolean(value: &Value<'_>) -> Result<bool, String> {
    match value {
        Value::Bool(b) => Ok(*b),
        other => Err(format!("expected true or false, found {}", describe(other))),
    }
}

/// A whole number between two bounds.
pub(super) fn number(min: u64, max: u64) -> impl Fn(&Value<'_>) -> Result<u64, String> {
    move |value| match whole(value) {
        Some(n) if (min..=max).contains(&n) => Ok(n),
        _ => Err(format!("expected a whole number from {min} to {max}, found {}", describe(value))),
    }
}

/// The value, if it is a whole number.
pub(super) fn whole(value: &Value<'_>) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        _ => None,
    }
}

/// Text that parses as `T`, whose error says what is wrong.
pub(super) fn named<T: FromStr<Err = String>>(value: &Value<'_>) -> Result<T, String> {
    text(value)?.parse()
}

/// An IPv4 address that a host may have.
pub(super) fn ipv4(value: &Value<'_>) -> Result<Ipv4Addr, String> {
    let text = text(value)?;
    let ip: Ipv4Addr = text.parse().map_err(|_| not_ipv4(text, "address like 10.0.1.3"))?;
    if ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast() || ip.is_loopback() {
        return Err(format!("{ip} can't be a host's address on a network"));
    }
    Ok(ip)
}

/// An IPv4 subnet without host bits.
pub(super) fn subnet(value: &Value<'_>) -> Result<Ipv4Net, String> {
    let text = text(value)?;
    let net: Ipv4Net = text.parse().map_err(|_| not_ipv4(text, "subnet like 10.0.1.0/24"))?;
    if net.addr() != net.network() {
        return Err(format!("{net} has host bits set; did you mean {}?", net.trunc()));
    }
    if net.prefix_len() == 0 || net.network().is_multicast() || net.network().is_loopback() {
        return Err(format!("{net} can't be a network's subnet"));
    }
    if net.prefix_len() > 30 {
        return Err(format!("{net} has no room for a gateway and a container; use /30 at least"));
    }
    Ok(net)
}

fn not_ipv4(text: &str, what: &str) -> String {
    if text.split('/').next().is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()) {
        format!("{text} is IPv6, which is not supported yet; leave it out")
    } else {
        format!("{text:?} is no IPv4 {what}")
    }
}

/// Sorts problems as their places come in the file: sections in the contract's order, then by index.
pub(super) fn in_file_order(problems: &mut [Problem]) {
    problems.sort_by_cached_key(|p| {
        let section = p.path.split(['[', '.']).next().unwrap_or_default();
        let sections = ["version", "nodes", "networks", "services", "tasks"];
        let rank = sections.iter().position(|s| *s == section).unwrap_or(sections.len());
        let index = p.path.split(['[', ']']).nth(1).and_then(|i| i.parse::<usize>().ok());
        (rank, index, p.path.clone(), p.message.clone())
    });
    debug_assert!(problems.iter().all(|p| !p.message.is_empty()));
}
