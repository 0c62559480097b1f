//! Settings of the node that stand in the way of what we forward: nothing that the agent may change, so it says so.

use std::fs;

use hiveway_core::names;
use serde_json::Value;

/// What is in the way, and what to do about it. `ruleset`: as `nft -j` lists it; `bridge`: the gateway bridge, if it is
/// ours.
pub fn warnings(ruleset: &Value, bridge: Option<&str>, published: bool) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(bridge.and_then(|bridge| {
        let chain = dropping(ruleset, "forward", bridge)?;
        Some(format!(
            "{chain} drops what it does not accept, and names no {bridge}: containers reach nothing outside; accept \
             {bridge} there"
        ))
    }));
    found.extend(published.then(|| dropping(ruleset, "output", names::HOST)).flatten().map(|chain| {
        let host = names::HOST;
        format!(
            "{chain} drops what it does not accept, and names no {host}: this node's own connections to published \
             ports fail; accept {host} there"
        )
    }));
    const FILTERED: &str = "net/bridge/bridge-nf-call-iptables";
    if bridge.is_some() && fs::read_to_string(format!("/proc/sys/{FILTERED}")).is_ok_and(|text| text.trim() == "1") {
        found.push(format!(
            "{FILTERED} is on: frames between containers of a network pass the node's firewall on the slow path; set it \
             to 0 unless somebody needs it"
        ));
    }
    found
}

/// A base chain at that hook for IPv4 whose policy is to drop, in a table without any rule that names `interface`.
fn dropping(ruleset: &Value, hook: &str, interface: &str) -> Option<String> {
    let objects = || ruleset["nftables"].as_array().into_iter().flatten();
    let quoted = Value::from(interface).to_string();
    let named = |chain: &Value| {
        objects().map(|object| &object["rule"]).any(|rule| {
            rule["family"] == chain["family"] && rule["table"] == chain["table"] && rule.to_string().contains(&quoted)
        })
    };
    let chain = objects().map(|object| &object["chain"]).find(|chain| {
        chain["hook"] == hook
            && chain["policy"] == "drop"
            && (chain["family"] == "ip" || chain["family"] == "inet")
            && !named(chain)
    })?;
    let word = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
    Some(format!("firewall chain {} {} {}", word("family"), word("table"), word("name")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_chain_that_drops_our_bridge_is_named() {
        let ruleset = |family: &str, policy: &str, interface: &str| {
            json!({"nftables": [
                {"chain": {"family": family, "table": "filter", "name": "FORWARD", "hook": "forward", "policy": policy}},
                {"chain": {"family": family, "table": "filter", "name": "OTHER"}},
                {"rule": {"family": family, "table": "filter", "chain": "OTHER", "expr": [{"match": {"right": interface}}]}},
            ]})
        };
        let said = dropping(&ruleset("ip", "drop", "docker0"), "forward", "hw-gwbridge");
        assert_eq!(said.as_deref(), Some("firewall chain ip filter FORWARD"));
        for fine in [ruleset("ip", "drop", "hw-gwbridge"), ruleset("ip", "accept", "x"), ruleset("ip6", "drop", "x")] {
            assert_eq!(dropping(&fine, "forward", "hw-gwbridge"), None, "{fine}");
        }
        assert_eq!(dropping(&ruleset("ip", "drop", "docker0"), "output", "hw-host"), None);
    }
}
