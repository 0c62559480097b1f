//! What is aimed at, of a packet at its ingress node.

use super::{
    contestants::{Case, Contestant, Direction, Site},
    report::Report,
};
use crate::figures::Aim;

/// Most nanoseconds of native XDP over its floor, by flows; 0: of a SYN flood.
const REQUESTS: [(u32, f64); 4] = [(1, 45.0), (10_000, 90.0), (1_000_000, 220.0), (0, 300.0)];
/// Of the replies: so many more.
const MORE_FOR_REPLIES: f64 = 20.0;
/// Least ratio to nftables' rate.
const OF_NFTABLES: [(u32, f64); 5] = [(1, 4.0), (100, 3.0), (10_000, 3.0), (1_000_000, 3.0), (0, 3.0)];
/// Flows for which TC is set beside plain routing.
const TC: [u32; 3] = [1, 10_000, 1_000_000];
/// Most that 10,000 published ports may cost over one.
const MANY_PORTS: f64 = 1.05;
/// Most bytes of map memory for each flow.
const BYTES_PER_FLOW: f64 = 128.0;

/// Of what was measured.
pub(super) fn of(report: &Report) -> Vec<Aim> {
    let (mut aims, xdp) = (Vec::new(), Contestant::HivewayXdp);
    let mut over_floor = |case: Case, aim| {
        if let Some(medians) = report.medians(xdp, case) {
            let what = format!("{}, {}: ns over the floor", xdp.title(), short(case));
            aims.push(Aim::at_most(what, medians.over_floor_ns, aim).with_low(medians.over_floor_low_ns));
        }
    };
    for (flows, aim) in REQUESTS {
        over_floor(requests(flows), aim);
    }
    for (flows, aim) in REQUESTS.into_iter().filter(|(flows, _)| *flows > 0) {
        over_floor(replies(flows), aim + MORE_FOR_REPLIES);
    }
    for case in TC.into_iter().flat_map(|flows| [requests(flows), replies(flows)]) {
        let tc = Contestant::HivewayTc;
        if let Some(medians) = report.medians(tc, case).filter(|medians| medians.of_routing > 0.0) {
            let what = format!("{}, {}: times plain routing's rate", tc.title(), short(case));
            aims.push(Aim::none(what, medians.of_routing));
        }
    }
    for (flows, aim) in OF_NFTABLES {
        let case = requests(flows);
        if let Some(medians) = report.medians(xdp, case).filter(|medians| medians.of_nftables > 0.0) {
            let what = format!("{}, {}: times nftables' rate", xdp.title(), short(case));
            aims.push(Aim::at_least(what, medians.of_nftables, aim));
        }
    }
    if let Some(is) = report.medians(xdp, requests(1_000_000)).and_then(|medians| medians.bytes_per_flow) {
        aims.push(Aim::at_most(format!("{}: bytes of maps per flow", xdp.title()), is, BYTES_PER_FLOW));
    }
    let many = Case { site: Site::ManyPorts, ..requests(10_000) };
    let is = report.within_rounds((xdp, many), (xdp, requests(10_000)), |many, one| many.ns / one.ns);
    if is > 0.0 {
        aims.push(Aim::at_most(format!("{}, 10,000 ports / one", xdp.title()), is, MANY_PORTS));
    }
    aims
}

/// Of the backend elsewhere; 0 flows: the flood.
fn requests(flows: u32) -> Case {
    Case { site: if flows == 0 { Site::Flooded } else { Site::Remote }, flows, direction: Direction::Requests }
}

fn replies(flows: u32) -> Case {
    Case { direction: Direction::Replies, ..requests(flows) }
}

fn short(case: Case) -> String {
    let replies = if case.direction == Direction::Replies { ", replies" } else { "" };
    if case.flows == 0 { "SYN flood".to_owned() } else { format!("{} flows{replies}", case.flows) }
}
