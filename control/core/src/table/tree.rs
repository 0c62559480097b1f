//! Walking the parsed text: typed access to fields, with the path of everything that is wrong.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, str::FromStr};

use ipnet::Ipv4Net;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::problem::Problem;

/// An object of the file with its place.
pub(super) struct Object<'v> {
    path: String,
    map: &'v Map<String, Value>,
}

impl<'v> Object<'v> {
    /// `value` as an object with no fields but `known`.
    pub(super) fn new(path: String, value: &'v Value, known: &[&str], problems: &mut Vec<Problem>) -> Option<Self> {
        let Value::Object(map) = value else {
            problems.push(Problem::error(path, format!("expected an object, found {}", describe(value))));
            return None;
        };
        let object = Self { path, map };
        for key in map.keys().filter(|k| !known.contains(&k.as_str())) {
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
        field_path(&self.path, key)
    }

    /// Its own path.
    pub(super) fn own_path(&self) -> &str {
        &self.path
    }

    /// A field; `null` counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&'v Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// A field that may be missing; `None` also when it is wrong, which is reported.
    pub(super) fn optional<T>(
        &self,
        key: &str,
        problems: &mut Vec<Problem>,
        parse: impl FnOnce(&Value) -> Result<T, String>,
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
        parse: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        if self.get(key).is_none() {
            problems.push(Problem::error(self.path(key), "missing"));
        }
        self.optional(key, problems, parse)
    }

    /// The elements of a list that may be missing, with their paths.
    pub(super) fn list(&self, key: &str, problems: &mut Vec<Problem>) -> Vec<(String, &'v Value)> {
        match self.get(key) {
            None => Vec::new(),
            Some(Value::Array(items)) => {
                items.iter().enumerate().map(|(i, v)| (format!("{}[{i}]", self.path(key)), v)).collect()
            }
            Some(other) => {
                problems.push(Problem::error(self.path(key), format!("expected a list, found {}", describe(other))));
                Vec::new()
            }
        }
    }

    /// A map that may be missing, its values parsed; each with its path and key.
    pub(super) fn map<T>(
        &self,
        key: &str,
        problems: &mut Vec<Problem>,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> Vec<Keyed<T>> {
        let map = match self.get(key) {
            None => return Vec::new(),
            Some(Value::Object(map)) => map,
            Some(other) => {
                problems.push(Problem::error(self.path(key), format!("expected a map, found {}", describe(other))));
                return Vec::new();
            }
        };
        let base = self.path(key);
        let mut items = Vec::new();
        for (key, value) in map {
            let path = field_path(&base, key);
            match parse(value) {
                Ok(value) => items.push(Keyed { path, key: key.clone(), value }),
                Err(message) => problems.push(Problem::error(path, message)),
            }
        }
        items
    }
}

/// An entry of a map in the file.
pub(super) struct Keyed<T> {
    pub(super) path: String,
    pub(super) key: String,
    pub(super) value: T,
}

fn field_path(base: &str, key: &str) -> String {
    if base.is_empty() { key.to_owned() } else { format!("{base}.{key}") }
}

/// What a value is, for messages.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the text {s:?}"),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

/// Text that is not empty.
pub(super) fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(s) if !s.is_empty() => Ok(s.clone()),
        Value::String(_) => Err("must not be empty".into()),
        Value::Number(_) | Value::Bool(_) => Err(format!("expected text, found {}; put it in quotes", describe(value))),
        other => Err(format!("expected text, found {}", describe(other))),
    }
}

/// `true` or `false`.
pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("expected true or false, found {}", describe(value)))
}

/// A whole number between two bounds.
pub(super) fn number(min: u64, max: u64) -> impl Fn(&Value) -> Result<u64, String> {
    move |value| match value.as_u64() {
        Some(n) if (min..=max).contains(&n) => Ok(n),
        _ => Err(format!("expected a whole number from {min} to {max}, found {}", describe(value))),
    }
}

/// Text that parses as `T`, whose error says what is wrong.
pub(super) fn named<T: FromStr<Err = String>>(value: &Value) -> Result<T, String> {
    text(value)?.parse()
}

/// An IPv4 address that a host may have.
pub(super) fn ipv4(value: &Value) -> Result<Ipv4Addr, String> {
    let text = text(value)?;
    let ip: Ipv4Addr = text.parse().map_err(|_| not_ipv4(&text, "address like 10.0.1.3"))?;
    if ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast() || ip.is_loopback() {
        return Err(format!("{ip} can't be a host's address on a network"));
    }
    Ok(ip)
}

/// An IPv4 subnet without host bits.
pub(super) fn subnet(value: &Value) -> Result<Ipv4Net, String> {
    let text = text(value)?;
    let net: Ipv4Net = text.parse().map_err(|_| not_ipv4(&text, "subnet like 10.0.1.0/24"))?;
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

/// The candidate that was probably meant: at most two typing errors away.
pub(super) fn closest<'c>(wanted: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let limit = (wanted.chars().count() / 3).clamp(1, 2);
    // A hint is not worth walking ten thousand ids for each of ten thousand errors.
    candidates.take(2000).map(|c| (distance(wanted, c), c)).filter(|(d, _)| *d <= limit).min().map(|(_, c)| c)
}

/// How many characters to insert, delete, replace or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let substituted = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substituted.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
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

/// A [`Value`] read from JSON in which no object has a key twice (serde_json would silently keep the last one).
pub(super) struct UniqueKeys(pub(super) Value);

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;
        impl<'de> Visitor<'de> for AnyValue {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON value")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
                Ok(v.into())
            }
            fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
                Ok(v.into())
            }
            fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
                Ok(v.into())
            }
            fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
                Ok(v.into())
            }
            fn visit_str<E>(self, v: &str) -> Result<Value, E> {
                Ok(v.into())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut items = Vec::new();
                while let Some(UniqueKeys(item)) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Value::Array(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, UniqueKeys(value))) = access.next_entry::<String, UniqueKeys>()? {
                    if map.insert(key.clone(), value).is_some() {
                        return Err(serde::de::Error::custom(format!("duplicate key {key:?}")));
                    }
                }
                Ok(Value::Object(map.into_iter().collect()))
            }
        }
        deserializer.deserialize_any(AnyValue).map(Self)
    }
}
