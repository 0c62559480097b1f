//! Which crate may depend on which: the compiler enforces the layering only as far as Cargo.toml files say it.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::sh;

/// Crates of the workspace, and those of the workspace that each may use. The tests stand above all and are not listed.
const MAY_USE: &[(&str, &[&str])] = &[
    ("dataplane-common", &[]),
    ("dataplane-core", &["dataplane-common"]),
    ("dataplane-ebpf", &["dataplane-common", "dataplane-core"]),
    ("dataplane", &["dataplane-common", "dataplane-core"]),
    ("hiveway-core", &["dataplane-common"]),
    ("hiveway-proto", &[]),
    ("control", &["dataplane", "dataplane-common", "hiveway-core", "hiveway-proto"]),
    // It builds the object that others embed.
    ("xtask", &[]),
];

/// External crates that only these members may name.
const ONLY_IN: &[(&str, &[&str])] =
    // The bench loads traffic programs of its own, a test of the lab looks into maps.
    &[
        ("aya", &["dataplane", "hiveway-tests", "hiveway-bench"]),
        ("aya-obj", &["dataplane"]),
        ("aya-ebpf", &["dataplane-ebpf"]),
    ];

/// What the pure heart must not contain, however deep: it does no I/O.
const IMPURE: &[&str] = &["tokio", "aya", "rtnetlink", "nix", "notify", "mio", "socket2"];

pub(crate) fn check() -> Result<Vec<String>> {
    let metadata = sh::output(sh::cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let tree =
        sh::output(sh::cargo().args(["tree", "--package", "hiveway-core", "--edges", "normal", "--prefix", "none"]))?;
    let mut problems = members(&metadata);
    problems.extend(impure(&tree));
    Ok(problems)
}

/// Judges the direct dependencies of every member.
fn members(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut problems = Vec::new();
    for package in packages {
        let user = package["name"].as_str().unwrap_or_default();
        for dependency in package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let used = dependency["name"].as_str().unwrap_or_default();
            // Tests may look at more than the code they test.
            let for_tests = dependency["kind"] == "dev";
            let allowed = MAY_USE.iter().find(|(name, _)| *name == user).map(|(_, allowed)| *allowed);
            if names.contains(used) && !for_tests && allowed.is_some_and(|allowed| !allowed.contains(&used)) {
                problems.push(format!("{user} must not depend on {used}"));
            }
            let owners = ONLY_IN.iter().find(|(name, _)| *name == used).map(|(_, owners)| *owners);
            if owners.is_some_and(|owners| !owners.contains(&user)) {
                problems
                    .push(format!("{user} must not depend on {used}: only {} may", owners.unwrap_or(&[]).join(", ")));
            }
        }
    }
    problems
}

/// Judges everything that ends up in hiveway-core.
fn impure(tree: &str) -> Vec<String> {
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    let bad = names.into_iter().filter(|name| IMPURE.contains(name) || name.starts_with("netlink-"));
    bad.map(|name| format!("hiveway-core is pure and must not depend on {name}, not even indirectly")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_wrong_directions() {
        let package = |name: &str, dependencies: Value| serde_json::json!({"name": name, "dependencies": dependencies});
        let metadata = serde_json::json!({"packages": [
            package("dataplane-common", serde_json::json!([])),
            package("control", serde_json::json!([{"name": "dataplane", "kind": null}, {"name": "aya", "kind": null}])),
            package("dataplane", serde_json::json!([{"name": "control", "kind": null}, {"name": "aya", "kind": null}])),
            package("hiveway-core", serde_json::json!([{"name": "control", "kind": "dev"}])),
        ]});
        assert_eq!(
            members(&metadata),
            [
                "control must not depend on aya: only dataplane, hiveway-tests, hiveway-bench may",
                "dataplane must not depend on control"
            ]
        );
    }

    #[test]
    fn names_impure_crates() {
        let found = impure("hiveway-core v0.1.0 (path)\nserde v1.0.0\nnetlink-sys v0.8.0\ntokio v1.0.0 (*)\n");
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
