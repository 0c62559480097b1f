//! Our nftables table `inet hiveway`: masquerade for our own gateway bridge, the guard against forged tunnels, and the
//! translations of the host link.

mod host;
mod ruleset;

use dataplane_common::counter::Stat;
use nftables::helper::{DEFAULT_ARGS, DEFAULT_NFT, NftablesError, apply_ruleset_raw, get_current_ruleset_raw};
use serde_json::{Value, json};

pub use host::HostRules;
pub use ruleset::{Firewall, Masquerade, port_range};

/// Family and name of our table.
const TABLE: (&str, &str) = ("inet", "hiveway");

/// The counter of what the guard has dropped. It outlives changes of the rules, not the table's removal.
const GUARD: &str = "forged";

/// The firewall could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no `nft`.
    #[error("cannot run nft: {0}; install the package nftables")]
    NoProgram(std::io::Error),
    /// It refused.
    #[error("nft refused while {doing}: {stderr}")]
    Refused {
        /// What was tried.
        doing: String,
        /// What it said.
        stderr: String,
    },
    /// It answered nonsense.
    #[error("nft: {0}")]
    Answer(String),
}

impl From<NftablesError> for NftError {
    fn from(error: NftablesError) -> Self {
        match error {
            NftablesError::NftExecution { inner, .. } => Self::NoProgram(inner),
            NftablesError::NftFailed { hint, stdout, stderr, .. } => {
                Self::Refused { doing: hint, stderr: one_line(&format!("{stderr}\n{stdout}")) }
            }
            other => Self::Answer(other.to_string()),
        }
    }
}

/// What `nft` says, with its quotation of our rules, for a line of `status`.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// Replaces our table in one transaction if it is not what it should be. Returns whether it was replaced.
///
/// # Errors
/// When `nft` is missing or refuses.
pub fn ensure(firewall: &Firewall) -> Result<bool, NftError> {
    let want = firewall.objects();
    let current = current()?;
    if current.as_ref().is_some_and(|current| current.objects == want) {
        return Ok(false);
    }
    let dropped = current.map_or_else(Stat::default, |current| current.dropped);
    let (family, name) = TABLE;
    let table = json!({"table": {"family": family, "name": name}});
    // Adding first makes the deletion succeed whether or not the table is there.
    let counter = json!({"counter": {"family": family, "table": name, "name": GUARD, "packets": dropped.packets,
                                     "bytes": dropped.bytes}});
    let head = [json!({"add": table}), json!({"delete": table}), json!({"add": table}), json!({"add": counter})];
    let commands: Vec<Value> = head.into_iter().chain(want.iter().map(|object| json!({"add": object}))).collect();
    apply_ruleset_raw(&json!({"nftables": commands}).to_string(), DEFAULT_NFT, DEFAULT_ARGS)?;
    Ok(true)
}

/// Removes our table. Returns whether it was there.
///
/// # Errors
/// When `nft` is missing or refuses.
pub fn remove() -> Result<bool, NftError> {
    if current()?.is_none() {
        return Ok(false);
    }
    let (family, name) = TABLE;
    let command = json!({"nftables": [{"delete": {"table": {"family": family, "name": name}}}]});
    apply_ruleset_raw(&command.to_string(), DEFAULT_NFT, DEFAULT_ARGS)?;
    Ok(true)
}

/// Everybody's rules, as `nft -j` lists them.
///
/// # Errors
/// When `nft` is missing or refuses.
pub fn ruleset() -> Result<Value, NftError> {
    let listing = get_current_ruleset_raw(DEFAULT_NFT, ["list", "ruleset"].as_slice())?;
    serde_json::from_str(&listing).map_err(|error| NftError::Answer(error.to_string()))
}

/// What the guard against forged tunnels has dropped since the table was made; nothing if there is no table.
///
/// # Errors
/// When `nft` is missing or refuses.
pub fn guard_drops() -> Result<Stat, NftError> {
    Ok(current()?.map_or_else(Stat::default, |current| current.dropped))
}

/// Our table as it is.
struct Current {
    /// Sets, chains and rules in the form of [`Firewall::objects`].
    objects: Vec<Value>,
    dropped: Stat,
}

/// `None` if there is no table.
fn current() -> Result<Option<Current>, NftError> {
    let (family, name) = TABLE;
    let listing = match get_current_ruleset_raw(DEFAULT_NFT, ["list", "table", family, name].as_slice()) {
        Err(NftablesError::NftFailed { stderr, .. }) if stderr.contains("No such file or directory") => {
            return Ok(None);
        }
        other => other?,
    };
    let listing: Value = serde_json::from_str(&listing).map_err(|error| NftError::Answer(error.to_string()))?;
    Ok(Some(Current { objects: normalise(&listing), dropped: dropped(&listing) }))
}

/// What the guard's counter says.
fn dropped(listing: &Value) -> Stat {
    let mut counters = listing["nftables"].as_array().into_iter().flatten().map(|object| &object["counter"]);
    let Some(guard) = counters.find(|counter| counter["name"] == GUARD) else { return Stat::default() };
    let number = |field: &str| guard[field].as_u64().unwrap_or(0);
    Stat { packets: number("packets"), bytes: number("bytes") }
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
        let said = NftablesError::NftFailed {
            program: "nft".into(),
            hint: "applying ruleset".into(),
            stdout: String::new(),
            stderr: "\ninternal:0:0-0: Error: Could not open file\n\n\n".into(),
        };
        let said = NftError::from(said).to_string();
        assert_eq!(said, "nft refused while applying ruleset: internal:0:0-0: Error: Could not open file");
    }
}
