//! What nodes say of their paths as messages, and back. It is for operators' eyes only: what makes no sense is named,
//! and neither ends the call nor touches the rest of the report.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use hiveway_core::{
    path_report::{Counts, FAULT, PathReport, Row},
    probe::State,
};
use hiveway_proto::relay::{self as wire, PathState};

/// Rows that are taken. Agents send fewer ([`hiveway_core::path_report::ROWS`]); later ones may send more.
const MAX_ROWS: usize = 256;
/// Paths that a node can have.
const MAX_PATHS: u32 = 1 << 20;

/// `report`, which is of so long ago, as a message.
pub fn encode_paths(report: &PathReport, age: Duration) -> wire::PathReport {
    let row = |row: &Row| wire::Path {
        to: row.to.to_bits(),
        state: match row.state {
            State::Waiting => PathState::Waiting,
            State::Passing => PathState::Passing,
            State::Failing => PathState::Failing,
        }
        .into(),
        since_seconds: row.since,
        rtt_microseconds: row.rtt.unwrap_or(0),
        lost_per_10000: row.lost.into(),
        probes: row.counted,
        mtu: row.mtu.into(),
        passed: row.passed.unwrap_or(0).into(),
        limit: row.limit.unwrap_or(0).into(),
        heard: row.heard,
        vxlan_port: row.port.unwrap_or(0).into(),
    };
    wire::PathReport {
        age_ms: u32::try_from(age.as_millis()).unwrap_or(u32::MAX),
        passing: report.counts.passing,
        failing: report.counts.failing,
        waiting: report.counts.waiting,
        paths: report.rows.iter().map(row).collect(),
        fault: report.fault.clone().unwrap_or_default(),
    }
}

/// What a message says of a node's paths, and how old it is.
///
/// # Errors
/// What makes no sense: fit to be shown, since nothing of the message's own text is in it.
pub fn decode_paths(report: wire::PathReport) -> Result<(PathReport, Duration), String> {
    let mut counts = Counts { passing: report.passing, failing: report.failing, waiting: report.waiting };
    if counts.all() > MAX_PATHS {
        return Err(format!("{} paths are more than a swarm has", counts.all()));
    }
    if report.paths.len() > MAX_ROWS {
        return Err(format!("{} rows are more than {MAX_ROWS}", report.paths.len()));
    }
    let mut rows = report.paths.iter().map(row).collect::<Result<Vec<_>, _>>()?;
    rows.sort_by_key(|row| row.to);
    let distinct: BTreeSet<_> = rows.iter().map(|row| row.to).collect();
    if distinct.len() != rows.len() {
        return Err("a path is in it twice".to_owned());
    }
    let mut listed = Counts::default();
    rows.iter().for_each(|row| *listed.of(row.state) += 1);
    for state in [State::Waiting, State::Passing, State::Failing] {
        if *listed.of(state) > *counts.of(state) {
            return Err("it has more rows than paths".to_owned());
        }
    }
    let fault = fault(&report.fault)?;
    Ok((PathReport { counts, rows, fault }, Duration::from_millis(report.age_ms.into())))
}

fn row(path: &wire::Path) -> Result<Row, String> {
    let to = Ipv4Addr::from_bits(path.to);
    if to.is_unspecified() || to.is_multicast() || to.is_broadcast() || to.is_loopback() {
        return Err(format!("{to} is no tunnel address"));
    }
    let short = |what: &str, value: u32| u16::try_from(value).map_err(|_| format!("{value} is no {what}"));
    let some = |value: u16| (value != 0).then_some(value);
    Ok(Row {
        to,
        state: match PathState::try_from(path.state) {
            Ok(PathState::Waiting) => State::Waiting,
            Ok(PathState::Passing) => State::Passing,
            Ok(PathState::Failing) => State::Failing,
            _ => return Err(format!("{} is no state of a path", path.state)),
        },
        since: path.since_seconds,
        rtt: Some(path.rtt_microseconds).filter(|rtt| *rtt != 0),
        lost: short("loss", path.lost_per_10000).ok().filter(|lost| *lost <= 10_000).ok_or("more is lost than sent")?,
        counted: path.probes,
        mtu: short("size", path.mtu)?,
        passed: some(short("size", path.passed)?),
        limit: some(short("size", path.limit)?),
        heard: path.heard,
        port: some(short("port", path.vxlan_port)?),
    })
}

/// The one text in a report: short, and nothing in it that a terminal would obey.
fn fault(text: &str) -> Result<Option<String>, String> {
    if text.chars().nth(FAULT).is_some() {
        return Err(format!("its fault is longer than {FAULT} characters"));
    }
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' || c == '…' { c } else { '?' };
    Ok(Some(text.chars().map(plain).collect::<String>()).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn path(to: u32) -> wire::Path {
        wire::Path {
            to,
            state: PathState::Failing.into(),
            since_seconds: 86_400,
            rtt_microseconds: 40_000,
            lost_per_10000: 10_000,
            probes: 60,
            mtu: 9000,
            passed: 8950,
            limit: 8950,
            heard: true,
            vxlan_port: 7789,
        }
    }

    fn report(paths: Vec<wire::Path>) -> wire::PathReport {
        wire::PathReport { failing: paths.len() as u32, paths, age_ms: 1500, ..Default::default() }
    }

    #[test]
    fn paths_round_trip() {
        let sent = report((0..64).map(|n| path(0xc000_0201 + n)).collect());
        let (read, age) = decode_paths(sent.clone()).unwrap();
        assert_eq!(encode_paths(&read, age), sent);
        assert_eq!((read.rows[0].to, read.rows[0].port), ([192, 0, 2, 1].into(), Some(7789)));
        let none = wire::PathReport { fault: "no link".into(), ..Default::default() };
        let (read, age) = decode_paths(none.clone()).unwrap();
        assert_eq!((read.fault.as_deref(), encode_paths(&read, age)), (Some("no link"), none));
    }

    #[test]
    fn a_report_of_a_thousand_broken_paths_is_small() {
        use hiveway_core::probe::PathView;
        let view = PathView {
            state: State::Failing,
            since: Duration::from_secs(1 << 20),
            rtt: Some(Duration::from_secs(1)),
            loss: 1.0,
            counted: 60,
            passed: Some(9000),
            limit: Some(8999),
            their_mtu: None,
            heard: None,
            port: Some(65_535),
            ..PathView::unknown(false)
        };
        let views = (0..1000u32).map(|n| ((0x0a00_0000 + n).to_be_bytes(), view.clone())).collect();
        let whole = PathReport::whole(&views, &Default::default(), 9000, Some(&"x".repeat(10_000)));
        let message = encode_paths(&whole.shortened(), Duration::from_secs(60));
        let size = message.encoded_len();
        assert!(size < 3500, "{size} bytes");
        assert_eq!(decode_paths(message).unwrap().0.counts.failing, 1000);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        let with = |change: fn(&mut wire::Path)| {
            let mut path = path(0xc000_0201);
            change(&mut path);
            report(vec![path])
        };
        for (sent, why) in [
            (with(|path| path.to = 0), "0.0.0.0 is no tunnel address"),
            (with(|path| path.to = u32::MAX), "255.255.255.255 is no tunnel address"),
            (with(|path| path.state = 0), "0 is no state"),
            (with(|path| path.state = -9), "-9 is no state"),
            (with(|path| path.lost_per_10000 = 10_001), "more is lost than sent"),
            (with(|path| path.mtu = 65_536), "65536 is no size"),
            (with(|path| path.limit = u32::MAX), "is no size"),
            (with(|path| path.vxlan_port = 70_000), "70000 is no port"),
            (report(vec![path(0xc000_0201); 2]), "twice"),
            (report((0..257).map(|n| path(0xc000_0201 + n)).collect()), "257 rows"),
            (wire::PathReport { failing: 0, ..report(vec![path(0xc000_0201)]) }, "more rows than paths"),
            (wire::PathReport { passing: u32::MAX, failing: u32::MAX, ..Default::default() }, "more than a swarm has"),
            (wire::PathReport { fault: "x".repeat(201), ..Default::default() }, "longer than 200"),
        ] {
            let refused = decode_paths(sent).unwrap_err();
            assert!(refused.contains(why), "{why}: {refused}");
        }
        let escape = wire::PathReport { fault: "a\x1b[31m\nb\u{202e}".into(), ..Default::default() };
        assert_eq!(decode_paths(escape).unwrap().0.fault.as_deref(), Some("a?[31m?b?"));
    }
}
