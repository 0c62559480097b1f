//! How long a sweep of so many connections takes, on maps as an agent has them: clients' connections first, then
//! translated ones with two entries each. Needs root and the built programs.
//!
//! `cargo run --release -p dataplane --features testing --example sweep -- 1000000`
#![allow(clippy::print_stdout, reason = "the figures are its result")]

use std::{collections::HashSet, time::Instant};

use anyhow::{Context as _, Result, ensure};
use dataplane::{MapName, Sizes, Timeouts, monotonic_now, testing::Harness};
use dataplane_common::{
    addr::Tag,
    flow::{Affinity, AffinityKey, Flow, FlowKey, MESH_ZONE, flag},
};

/// Endpoints in the table.
const ENDPOINTS: u32 = 10_000;
/// Sweeps of each table.
const SWEEPS: usize = 9;
const TCP: u8 = 6;

fn main() -> Result<()> {
    let connections: u32 = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    for translated in [false, true] {
        let (entries, times) = sweeps(connections, translated)?;
        let what = if translated { "translated connections" } else { "clients' connections" };
        let [least, median] = [times[0], times[times.len() / 2]];
        println!("{connections} {what} ({entries} entries): {median:.1} ms, at least {least:.1} ms");
    }
    Ok(())
}

/// Entries that are there, and milliseconds of each sweep, in ascending order.
fn sweeps(connections: u32, translated: bool) -> Result<(usize, Vec<f64>)> {
    let sizes = Sizes { max_flows: 2 * connections, ..Sizes::default() };
    let spilled = [(MapName::Flows, sizes.spilled()), (MapName::Affinity, sizes.spilled())];
    let mut harness = Harness::with_lines(&spilled, sizes)?;
    harness.forget_connections()?;
    let used = u64::from(connections) * if translated { 2 } else { 1 };
    harness.grow_lines([used, 0])?;
    for number in 0..connections {
        enter(&mut harness, number, translated)?;
    }
    let live: HashSet<Tag> = (0..ENDPOINTS).map(tag).collect();
    let mut found = 0;
    let mut sweep = || -> Result<f64> {
        let started = Instant::now();
        let report = harness.sweep(&live, &Timeouts::default())?;
        let took = started.elapsed();
        found = report.left.flows + report.left.affinity;
        ensure!(found as u64 == used, "{found} entries are left, of {used}: {report:?}");
        Ok(took.as_secs_f64() * 1e3)
    };
    let mut times = (0..SWEEPS).map(|_| sweep()).collect::<Result<Vec<_>>>().context("a sweep")?;
    times.sort_by(f64::total_cmp);
    harness.forget_connections()?;
    Ok((found, times))
}

/// As a hash gives them: no two alike, and evenly spread.
fn tag(number: u32) -> Tag {
    (u64::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()
}

fn enter(harness: &mut Harness, number: u32, translated: bool) -> Result<()> {
    let (now, tag) = (monotonic_now(), tag(number % ENDPOINTS));
    let ([_, a, b, c], port) = (number.to_be_bytes(), [number as u8 | 1, 7]);
    let (client, backend) = (([100, a, b, c], port), ([10, 0, 1, c], [0, 80]));
    let service = ([192, 0, 2, 1], [31, 144]);
    if !translated {
        let key = AffinityKey::new(client, service, TCP);
        let entry = Affinity { last_seen: now, created: now, tag, ip: backend.0, ..Affinity::default() };
        return Ok(harness.put_affinity(key, entry)?);
    }
    let flow = |(src, sport), (dst, dport), flags| Flow {
        last_seen: now,
        created: now,
        tag,
        src,
        dst,
        sport,
        dport,
        flags,
        ..Flow::default()
    };
    harness.put_flow(FlowKey::new(MESH_ZONE, client, service, TCP), flow(client, backend, 0))?;
    Ok(harness.put_flow(FlowKey::new(MESH_ZONE, backend, client, TCP), flow(service, client, flag::REPLY))?)
}
