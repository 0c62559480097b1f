//! Our nftables table `inet hiveway`: masquerade for our own gateway bridge, the guard against forged tunnels and
//! against what overlay bridges would let into the node, and the translations of the host link.

mod host;
mod json;
mod lists;
mod ruleset;

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use dataplane_common::counter::Stat;
use serde_json::{Value, json};

use crate::child::{self, ChildError, Limits};

pub use host::{Bound, HostRules};
pub use lists::Listed;
pub use ruleset::{Firewall, Foreign, Masquerade, port_range};

/// The program.
const NFT: &str = "nft";
/// Family and name of our table.
const TABLE: (&str, &str) = ("inet", "hiveway");
/// The counter of what the guard has dropped. It outlives changes of the rules, not the table's removal.
const GUARD: &str = "forged";
/// Counts new connections to bound ports at other addresses than theirs, and of clients to ports that they may not use.
const CLOSED: &str = "closed";
/// Counts what came from an overlay bridge for the node itself, or to be forwarded.
const STRAY: &str = "stray";
/// Our table is small: an `nft` that takes longer hangs.
const OWN: Limits = Limits { time: Duration::from_secs(5), bytes: 16 << 20 };
/// For a question that somebody waits for.
const COUNTER: Limits = Limits { time: Duration::from_secs(1), ..OWN };

/// The firewall could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no `nft`.
    #[error("cannot run nft: {0}; install the package nftables")]
    NoProgram(ChildError),
    /// It has not run to its end.
    #[error("{0}")]
    NotRun(ChildError),
    /// It refused.
    #[error("nft refused while {doing}: {stderr}")]
    Refused {
        /// What was tried.
        doing: &'static str,
        /// What it said.
        stderr: String,
    },
    /// It answered nonsense.
    #[error("nft: {0}")]
    Answer(String),
}

impl From<ChildError> for NftError {
    fn from(error: ChildError) -> Self {
        if error.is_missing() { Self::NoProgram(error) } else { Self::NotRun(error) }
    }
}

/// What `nft` says, with its quotation of our rules, for a line of `status`.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// What `nft` printed of our table right after it was written, and what for. How a rule is printed depends on the
/// version of `nft`; that what is printed later is the same does not.
#[derive(Clone, Debug)]
struct Written {
    want: Vec<Value>,
    printed: Vec<Value>,
}

static WRITTEN: Mutex<Option<Written>> = Mutex::new(None);

/// Replaces our table in one transaction if it is not what it should be. Returns whether it was replaced.
///
/// # Errors
/// When `nft` is missing, refuses or hangs.
pub fn ensure(firewall: &Firewall) -> Result<bool, NftError> {
    let want = firewall.objects();
    let mut written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    let current = current(OWN)?;
    if is_as_written(current.as_ref(), &want, written.as_ref()) {
        return Ok(false);
    }
    let dropped = current.map_or_else(Dropped::default, |current| current.dropped);
    let (family, name) = TABLE;
    let table = json!({"table": {"family": family, "name": name}});
    // Adding first makes the deletion succeed whether or not the table is there.
    let counters =
        [(GUARD, dropped.forged), (CLOSED, dropped.closed), (STRAY, dropped.stray)].map(|(counter, before)| {
            json!({"add": {"counter": {"family": family, "table": name, "name": counter, "packets": before.packets,
                                   "bytes": before.bytes}}})
        });
    let head = [json!({"add": table}), json!({"delete": table}), json!({"add": table})].into_iter().chain(counters);
    let commands: Vec<Value> = head.chain(want.iter().map(|object| json!({"add": object}))).collect();
    *written = None;
    apply(&json!({"nftables": commands}))?;
    // What is not even made of the same parts was changed meanwhile: the next look replaces it.
    *written = self::current(OWN)?
        .filter(|current| outline(&current.objects) == outline(&want))
        .map(|current| Written { want, printed: current.objects });
    Ok(true)
}

/// Whether [`ensure`] would replace the table.
///
/// # Errors
/// When `nft` is missing, refuses or hangs.
pub fn differs(firewall: &Firewall) -> Result<bool, NftError> {
    let written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(!is_as_written(current(OWN)?.as_ref(), &firewall.objects(), written.as_ref()))
}

/// Family and name of the table, as `nft list table` takes them.
pub fn name() -> String {
    let (family, name) = TABLE;
    format!("{family} {name}")
}

/// Whether the table is what these objects make, as far as `nft` prints them alike.
fn is_as_written(current: Option<&Current>, want: &Vec<Value>, written: Option<&Written>) -> bool {
    let printed = written.filter(|written| written.want == *want).map_or(want, |written| &written.printed);
    current.is_some_and(|current| current.objects == *printed)
}

/// How many rules each chain has, and the elements of each set: what every version of `nft` prints alike.
fn outline(objects: &[Value]) -> BTreeMap<String, (usize, Value)> {
    let mut all = BTreeMap::<String, (usize, Value)>::new();
    for object in objects {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if let Some(chain) = object.get("chain") {
            all.entry(format!("chain {}", text(&chain["name"]))).or_default();
        } else if let Some(set) = object.get("set") {
            all.insert(format!("set {}", text(&set["name"])), (0, set["elem"].clone()));
        } else if let Some(rule) = object.get("rule") {
            all.entry(format!("chain {}", text(&rule["chain"]))).or_default().0 += 1;
        }
    }
    all
}

/// Removes our table. Returns whether it was there.
///
/// # Errors
/// When `nft` is missing, refuses or hangs.
pub fn remove() -> Result<bool, NftError> {
    if current(OWN)?.is_none() {
        return Ok(false);
    }
    let (family, name) = TABLE;
    apply(&json!({"nftables": [{"delete": {"table": {"family": family, "name": name}}}]}))?;
    Ok(true)
}

fn apply(commands: &Value) -> Result<(), NftError> {
    let output = child::run(NFT, &["-j", "-f", "-"], commands.to_string().as_bytes(), OWN)?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = one_line(&format!("{}\n{}", output.stderr, String::from_utf8_lossy(&output.stdout)));
    Err(NftError::Refused { doing: "applying ruleset", stderr })
}

/// What `nft` lists, as it prints it. `None`: it says that there is no such thing.
///
/// # Errors
/// When `nft` is missing, refuses, hangs or says more than it may.
pub fn list(args: &[&str], limits: Limits) -> Result<Option<Vec<u8>>, NftError> {
    let output = child::run(NFT, args, b"", limits)?;
    match output.status.success() {
        true => Ok(Some(output.stdout)),
        false if output.stderr.contains("No such file or directory") => Ok(None),
        false => Err(NftError::Refused { doing: "listing", stderr: one_line(&output.stderr) }),
    }
}

/// The same, where it prints JSON.
///
/// # Errors
/// As [`list`].
pub fn list_json(args: &[&str], limits: Limits) -> Result<Option<Value>, NftError> {
    let Some(listing) = list(args, limits)? else { return Ok(None) };
    serde_json::from_slice(&listing).map(Some).map_err(|error| NftError::Answer(error.to_string()))
}

/// What our rules have dropped since the table was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// By the guard against forged tunnels.
    pub forged: Stat,
    /// New connections to bound ports at other addresses than theirs, and of clients to ports that they may not use.
    pub closed: Stat,
    /// What containers sent over an overlay bridge to the node itself, or through it.
    pub stray: Stat,
}

/// What our rules have dropped; nothing if there is no table.
///
/// # Errors
/// When `nft` is missing, refuses or hangs.
pub fn drops() -> Result<Dropped, NftError> {
    Ok(current(COUNTER)?.map_or_else(Dropped::default, |current| current.dropped))
}

/// Our table as it is.
struct Current {
    /// Sets, chains and rules in the form of [`Firewall::objects`], as far as this version of `nft` has that form.
    objects: Vec<Value>,
    dropped: Dropped,
}

/// `None` if there is no table.
fn current(limits: Limits) -> Result<Option<Current>, NftError> {
    let (family, name) = TABLE;
    let listing = list_json(&["-j", "list", "table", family, name], limits)?;
    Ok(listing.map(|listing| Current { objects: normalise(&listing), dropped: dropped(&listing) }))
}

/// What our counters say.
fn dropped(listing: &Value) -> Dropped {
    let counter = |name: &str| {
        let mut counters = listing["nftables"].as_array().into_iter().flatten().map(|object| &object["counter"]);
        let counter = counters.find(|counter| counter["name"] == name);
        let number = |field: &str| counter.and_then(|counter| counter[field].as_u64()).unwrap_or(0);
        Stat { packets: number("packets"), bytes: number("bytes") }
    };
    Dropped { forged: counter(GUARD), closed: counter(CLOSED), stray: counter(STRAY) }
}

/// Takes out of a listing what the kernel added: handles, counter values, the order of set elements.
fn normalise(listing: &Value) -> Vec<Value> {
    let objects = listing["nftables"].as_array().into_iter().flatten();
    let ours = objects.filter(|object| ["set", "chain", "rule"].iter().any(|kind| object.get(kind).is_some()));
    let mut objects: Vec<Value> = ours.cloned().collect();
    for object in &mut objects {
        for body in object.as_object_mut().into_iter().flat_map(|object| object.values_mut()) {
            if let Some(body) = body.as_object_mut() {
                body.remove("handle");
            }
            if let Some(elements) = body.get_mut("elem").and_then(Value::as_array_mut) {
                elements.sort_by_key(Value::to_string);
            }
            for statement in body.get_mut("expr").and_then(Value::as_array_mut).into_iter().flatten() {
                // Somebody else's; ours have names.
                if let Some(counter) = statement.get_mut("counter").filter(|counter| counter.is_object()) {
                    *counter = Value::Null;
                }
            }
        }
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_line() {
        assert_eq!(
            one_line("\ninternal:0:0-0: Error: Could not open file\n\n\n"),
            "internal:0:0-0: Error: Could not open file"
        );
    }

    #[test]
    fn an_outline_is_what_versions_agree_on() {
        let table = |flags: Value, port: u16| {
            vec![
                json!({"set": {"name": "s", "elem": [port]}}),
                json!({"chain": {"name": "c"}}),
                json!({"rule": {"chain": "c", "expr": [{"fib": {"flags": flags}}]}}),
            ]
        };
        let one = outline(&table(json!(["daddr"]), 80));
        assert_eq!(one, outline(&table(json!("daddr"), 80)));
        assert_ne!(one, outline(&table(json!("daddr"), 81)));
        assert_ne!(one, outline(&table(json!("daddr"), 80)[..2]));
    }
}
