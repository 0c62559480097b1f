//! Reports as messages, and back.

use std::{collections::BTreeSet, net::Ipv4Addr, num::NonZeroU16};

use hiveway_core::merge::Report;
use hiveway_proto::relay as wire;

/// Tasks in one report. No node runs more.
const MAX_TASKS: usize = 10_000;
/// Bytes of an id or a version, which swarm's and ours never reach.
const MAX_TEXT: usize = 64;

/// `report` as a message; the version travels beside it, and what is known of paths is put in later.
pub fn encode_report(report: &Report) -> wire::Report {
    wire::Report {
        vtep: report.vtep.map_or(0, Ipv4Addr::to_bits),
        unhealthy: report.unhealthy.iter().cloned().collect(),
        dead: report.dead.iter().cloned().collect(),
        vxlan_port: port_number(report.vxlan_port),
        unreachable: report.unreachable.iter().cloned().collect(),
        paths: None,
    }
}

/// The report that a message stands for.
///
/// # Errors
/// When no agent of ours could have sent it.
pub fn decode_report(report: wire::Report, version: &str) -> Result<Report, String> {
    let vtep = Ipv4Addr::from_bits(report.vtep);
    if vtep.is_multicast() || vtep.is_broadcast() || vtep.is_loopback() {
        return Err(format!("{vtep} is no tunnel address"));
    }
    Ok(Report {
        vtep: Some(vtep).filter(|ip| !ip.is_unspecified()),
        since: 0,
        version: text(version).to_owned(),
        unhealthy: tasks(report.unhealthy)?,
        dead: tasks(report.dead)?,
        vxlan_port: port_of("VXLAN port", report.vxlan_port)?,
        unreachable: tasks(report.unreachable)?,
        preparing: false,
    })
}

/// A port as a message has it: 0 for none.
pub fn port_number(port: Option<NonZeroU16>) -> u32 {
    port.map_or(0, |port| port.get().into())
}

/// What [`port_number`] has made; `what` names it in the error.
///
/// # Errors
/// When the number is no port's.
pub fn port_of(what: &str, number: u32) -> Result<Option<NonZeroU16>, String> {
    u16::try_from(number).map(NonZeroU16::new).map_err(|_| format!("{what} {number} is none"))
}

fn tasks(ids: Vec<String>) -> Result<BTreeSet<String>, String> {
    if ids.len() > MAX_TASKS {
        return Err(format!("{} tasks are more than a node can have", ids.len()));
    }
    match ids.iter().find(|id| text(id) != id.as_str() || id.is_empty()) {
        Some(_) => Err("a task's id in it is none".into()),
        None => Ok(ids.into_iter().collect()),
    }
}

/// What another agent calls itself, fit to be shown: short, printable ASCII; else empty.
pub fn text(text: &str) -> &str {
    let fit = text.len() <= MAX_TEXT && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fit { text } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_round_trip() {
        let report = Report {
            vxlan_port: NonZeroU16::new(7789),
            preparing: false,
            vtep: Some([192, 0, 2, 1].into()),
            since: 0,
            version: "0.1.0".into(),
            unhealthy: ["a".into()].into(),
            dead: ["b".into(), "c".into()].into(),
            unreachable: ["d".into()].into(),
        };
        assert_eq!(decode_report(encode_report(&report), "0.1.0"), Ok(report));
        let unknown = Report { version: "0.1.0".into(), ..Report::default() };
        assert_eq!(decode_report(encode_report(&unknown), "0.1.0"), Ok(unknown));
    }

    #[test]
    fn what_no_agent_sends_is_refused() {
        for report in [
            wire::Report { vtep: 0x7f00_0001, ..Default::default() },
            wire::Report { vtep: u32::MAX, ..Default::default() },
            wire::Report { vxlan_port: 65_536, ..Default::default() },
            wire::Report { dead: vec!["x\ny".into()], ..Default::default() },
            wire::Report { dead: vec!["x".repeat(65)], ..Default::default() },
            wire::Report { unhealthy: vec![String::new()], ..Default::default() },
            wire::Report { unhealthy: vec!["x".into(); 10_001], ..Default::default() },
        ] {
            assert!(decode_report(report.clone(), "1").is_err(), "{:?}", report.vtep);
        }
        assert_eq!(decode_report(wire::Report::default(), "\x1b[31m").map(|r| r.version), Ok(String::new()));
    }
}
