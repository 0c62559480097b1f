//! `hiveway preflight --xdp`: a program that passes every frame is attached for a moment, and what that has cost the
//! interface is its verdict, which `--xdp auto` goes by.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use dataplane::XdpTrial;
use hiveway_core::observed::Link;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::verdict::{Attempt, Cost, Snapshot, Trial, cost, differences};
use crate::{
    agent::xdp::{hidden_tags, never},
    cli::exit,
    measured::{self, Measured, Verdict},
    netlink::{Socket, observe_links},
    say::outln,
};

/// How long the program stays: some drivers reset the link only after the call that attaches has returned.
const WATCHED: Duration = Duration::from_secs(1);
/// How long the interface may take to be as it was.
const SETTLED: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(100);

/// What was found out about one interface.
struct Found {
    measured: Measured,
    cost: Cost,
    /// Why XDP is off there in spite of the verdict.
    vlan_tags: Option<String>,
    /// What is not as it was before.
    left: Vec<String>,
}

/// Measures the interfaces one after the other, prints what was found, and keeps it for the agent. The exit code says
/// whether all could be measured and are as they were, whatever the verdicts.
pub(super) fn run(interfaces: &[String], state_dir: &Path, as_json: bool) -> u8 {
    let (mut ok, mut rows) = (true, Vec::new());
    for name in interfaces {
        let found = measure(name);
        let kept = found.as_ref().ok().map(|found| measured::keep(state_dir, found.measured.clone()));
        ok &= found.as_ref().is_ok_and(|found| found.left.is_empty()) && matches!(kept, Some(Ok(_)));
        if as_json {
            rows.push(row(name, &found, kept.as_ref()));
        } else {
            tell(name, &found, kept.as_ref());
        }
    }
    if as_json {
        outln!("{:#}", json!({"ok": ok, "record": measured::path(state_dir), "interfaces": rows}));
    } else {
        outln!("`--xdp auto` goes by what {} says.", measured::path(state_dir).display());
    }
    if ok { exit::OK } else { exit::FAILED }
}

/// What [`measured::keep`] returned.
type Kept = Result<Option<String>, String>;

fn tell(name: &str, found: &Result<Found, String>, kept: Option<&Kept>) {
    match found {
        Err(why) => outln!("NOT MEASURED  {name}: {why}"),
        Ok(Found { measured, vlan_tags, left, .. }) => {
            let verdict = match measured.verdict {
                Verdict::Pays => "pays",
                Verdict::DoesNotPay => "does not pay",
            };
            outln!("{verdict:14}{name} (driver {}): {}", measured.driver, measured.why);
            if let Some(why) = vlan_tags {
                outln!("{:14}XDP is off all the same: {why}", "");
            }
            if !left.is_empty() {
                outln!("{:14}NOT AS BEFORE: {}", "", left.join(", "));
            }
        }
    }
    match kept {
        Some(Err(why)) => outln!("{:14}not kept: {why}", ""),
        Some(Ok(Some(replaced))) => outln!("{:14}written anew: {replaced}", ""),
        _ => {}
    }
}

fn row(name: &str, found: &Result<Found, String>, kept: Option<&Kept>) -> Value {
    let not_kept = kept.and_then(|kept| kept.as_ref().err());
    match found {
        Err(why) => json!({"interface": name, "verdict": null, "error": why}),
        Ok(Found { measured, cost, vlan_tags, left }) => json!({
            "interface": name, "driver": measured.driver, "kernel": measured.kernel, "mac": measured.mac,
            "verdict": measured.verdict, "why": measured.why, "attached": cost.attached, "refused": cost.refused,
            "offloads_off": cost.offloads, "link_interrupted": cost.interrupted, "vlan_tags": vlan_tags,
            "not_as_before": left, "error": not_kept,
        }),
    }
}

fn measure(name: &str) -> Result<Found, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(async {
        let socket = Socket::open().map_err(|error| format!("no netlink socket: {error}"))?;
        on(&socket, name).await
    })
}

async fn on(socket: &Socket, name: &str) -> Result<Found, String> {
    let links = observe_links(socket).await.map_err(said)?;
    let link = links.get(name).ok_or_else(|| format!("there is no interface {name}"))?;
    let state = socket.link_state(name).await.map_err(said)?;
    if state.xdp {
        return Err(taken());
    }
    let (attempt, left) = match never(link) {
        Some(why) => (Attempt::Never(why.to_owned()), Vec::new()),
        // Of a link that is down cannot be seen whether it goes down.
        None if !state.running => {
            return Err(
                "it is down or has no carrier, so what attaching does to its link cannot be seen; bring it up \
                        first"
                    .to_owned(),
            );
        }
        None => attempt(socket, name, link).await?,
    };
    let driver = measured::driver(socket, name, link)?;
    let (verdict, why, cost) = cost(&attempt);
    Ok(Found {
        measured: Measured {
            name: name.to_owned(),
            driver,
            kernel: dataplane::release(),
            mac: measured::shown(link.mac),
            verdict,
            why,
            when: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        },
        cost,
        vlan_tags: hidden_tags(name, link, &links, |feature| socket.has_offload(name, feature)),
        left,
    })
}

/// Attaches, looks, detaches, and waits until the interface is as it was. Returns what is not.
async fn attempt(socket: &Socket, name: &str, link: &Link) -> Result<(Attempt, Vec<String>), String> {
    let before = snapshot(socket, name).await?;
    let trial = match XdpTrial::start(link.index) {
        Ok(trial) => trial,
        // Attached since the look above, or on a device above.
        Err(error) if dataplane::is_taken(&error) => return Err(taken()),
        Err(error) => {
            let why = match error.raw_os_error() {
                Some(libc::EOPNOTSUPP) => format!("it has no XDP ({error})"),
                _ => format!("{error}; the kernel's log may say more"),
            };
            let after = settle(socket, name, &before).await?;
            return Ok((Attempt::Refused(why), differences(&before, &after)));
        }
    };
    // Whatever the look says, the program is detached and the interface put right first.
    let during = watch(socket, name).await;
    let stopped = trial.stop();
    let after = settle(socket, name, &before).await;
    stopped.map_err(|error| format!("the program could not be detached at once: {error}"))?;
    let (during, after) = (during?, after?);
    let left = differences(&before, &after);
    Ok((Attempt::Attached(Box::new(Trial { before, during, after })), left))
}

async fn snapshot(socket: &Socket, name: &str) -> Result<Snapshot, String> {
    let features = socket.features(name).map_err(said)?;
    Ok(Snapshot { features, state: socket.link_state(name).await.map_err(said)? })
}

/// What is there at the end of the time in which the program is attached; the carrier's changes are counted by the
/// kernel.
async fn watch(socket: &Socket, name: &str) -> Result<Snapshot, String> {
    sleep(WATCHED).await;
    snapshot(socket, name).await
}

/// Waits until the interface is as it was, and turns offloads back that the driver has left changed.
async fn settle(socket: &Socket, name: &str, before: &Snapshot) -> Result<Snapshot, String> {
    let until = Instant::now() + SETTLED;
    loop {
        let after = snapshot(socket, name).await?;
        if differences(before, &after).is_empty() || Instant::now() >= until {
            return Ok(after);
        }
        for feature in before.changed(&after) {
            // What cannot be put right is named at the end.
            let _ = socket.set_offload(name, feature, before.features[feature]);
        }
        sleep(LOOK).await;
    }
}

fn taken() -> String {
    "an XDP program is attached there already, or on a bridge or bond above, which is not replaced: nothing was \
     changed. If it is the agent's, start the agent with --xdp off first, which detaches it"
        .to_owned()
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}
