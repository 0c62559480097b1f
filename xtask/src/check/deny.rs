//! cargo-deny, by deny.toml.

use anyhow::Result;

use crate::sh;

pub(crate) fn check() -> Result<Vec<String>> {
    let mut what = vec!["licenses", "bans", "sources"];
    // Known vulnerabilities come from a git repository that may be out of reach: that says nothing about our sources.
    match sh::output(sh::cargo().args(["deny", "fetch", "db"])) {
        Ok(_) => what.push("advisories"),
        Err(_) => eprintln!("check: NOTE: advisories skipped, their database cannot be fetched from here"),
    }
    let mut cargo = sh::cargo();
    cargo.args(["deny", "--workspace", "check", "--hide-inclusion-graph"]).args(&what);
    let failed = !cargo.status()?.success();
    Ok(failed.then(|| format!("see above: {}", sh::line(&cargo))).into_iter().collect())
}
