use super::*;
use crate::path_report::Counts;

fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, n)
}

fn row(to: u8, change: impl FnOnce(&mut Row)) -> Row {
    let mut row = Row {
        to: address(to),
        state: State::Passing,
        since: 12,
        rtt: Some(120),
        lost: 0,
        counted: 60,
        mtu: 1500,
        passed: Some(1500),
        limit: None,
        heard: true,
        port: None,
    };
    change(&mut row);
    row
}

fn fails(to: u8, heard: bool) -> Row {
    row(to, |row| (row.state, row.heard) = (State::Failing, heard))
}

fn said(rows: Vec<Row>) -> Said {
    let mut counts = Counts::default();
    rows.iter().for_each(|row| *counts.of(row.state) += 1);
    Said::Rows { age: Duration::from_secs(3), report: Arc::new(PathReport { counts, rows, fault: None }) }
}

/// n1 is the one that asks.
fn node(n: u8, said: Said) -> NodeRow {
    NodeRow { id: format!("id{n}"), hostname: format!("n{n}"), address: address(n), port: 4789, own: n == 1, said }
}

fn three(rows: [Vec<Row>; 3]) -> Vec<Finding> {
    let nodes: Vec<_> = (1..).zip(rows).map(|(n, rows)| node(n, said(rows))).collect();
    findings(&nodes)
}

fn fine(to: u8) -> Row {
    row(to, |_| {})
}

fn one(found: Vec<Finding>) -> Finding {
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

#[test]
fn a_swarm_in_order_is_not_worth_a_word() {
    assert_eq!(three([vec![fine(2), fine(3)], vec![fine(1), fine(3)], vec![fine(1), fine(2)]]), []);
}

#[test]
fn the_direction_between_two_other_nodes_is_named() {
    let pair = |two: Row, three_: Row| one(three([vec![fine(2), fine(3)], vec![fine(1), two], vec![fine(1), three_]]));
    let there = pair(fails(3, true), fails(2, false));
    assert_eq!((there.from.as_deref(), there.node.as_str(), there.severity), (Some("n2"), "n3", Gravity::Error));
    assert!(there.problem.starts_with("packets from n2 (192.0.2.2) to n3 (192.0.2.3), UDP port 4789, are lost"));
    assert!(there.remedy.contains("let UDP from 192.0.2.2 to 192.0.2.3, port 4789, pass"), "{there:?}");
    let back = pair(fails(3, false), fails(2, true));
    assert!(back.problem.starts_with("packets from n3 (192.0.2.3) to n2 (192.0.2.2), UDP port 4789, are lost"));
    let both = pair(fails(3, false), fails(2, false));
    assert!(both.problem.contains("in either direction: neither has answered"), "{both:?}");
    let unknown = pair(fails(3, true), fails(2, true));
    assert!(unknown.problem.contains("though probes of both arrive"), "{unknown:?}");
    // Only one of them sees it.
    assert!(pair(fails(3, true), fine(2)).problem.starts_with("packets from n2 (192.0.2.2) to n3"));
    assert!(pair(fine(3), fails(2, true)).problem.starts_with("packets from n3 (192.0.2.3) to n2"));
    let unsure = pair(fails(3, false), fine(2)).problem;
    assert!(unsure.contains("lost in both directions or from n3 to n2, or no agent runs on n3"), "{unsure}");
}

#[test]
fn what_the_own_row_says_is_not_said_twice() {
    let own = |own: Row, other: Row| three([vec![own, fine(3)], vec![other, fine(3)], vec![fine(1), fine(2)]]);
    assert_eq!(own(fails(2, true), fails(1, false)), []);
    assert_eq!(own(fails(2, false), fails(1, false)), []);
    assert_eq!(own(row(2, |row| row.port = Some(7789)), row(1, |row| row.port = Some(4789))), []);
    // The other node knows the direction, and this one does not.
    let known = one(own(fails(2, false), fails(1, true)));
    assert!(known.problem.starts_with("packets from n2 (192.0.2.2) to n1 (192.0.2.1)"), "{known:?}");
    assert_eq!(known.from, None);
    // Only the other node sees it.
    let theirs = one(own(fine(2), fails(1, true)));
    assert_eq!((theirs.from.as_deref(), theirs.node.as_str()), (Some("n2"), "n1"));
}

#[test]
fn ports_sizes_losses_and_faults_of_other_nodes_are_named() {
    let of_n2 = |change: fn(&mut Row)| {
        one(three([vec![fine(2), fine(3)], vec![fine(1), row(3, change)], vec![fine(1), fine(2)]]))
    };
    let port = of_n2(|row| row.port = Some(7789));
    assert!(port.problem.contains("n3 (192.0.2.3) sends its tunnels to UDP port 7789, n2 (192.0.2.2) uses port 4789"));
    let astray = of_n2(|row| row.port = Some(4789));
    assert!(
        astray.problem.contains("tunnels of n3 (192.0.2.3) arrive at n2 (192.0.2.2) on an interface that is no uplink")
    );
    let lossy = of_n2(|row| row.lost = 1234);
    assert!(lossy.problem.contains("12 % of n2's last 60 probes of n3") && lossy.severity == Gravity::Warning);
    let narrow = of_n2(|row| row.limit = Some(1400));
    assert!(narrow.problem.contains("from n2 (192.0.2.2) to n3 (192.0.2.3) of more than 1400 bytes vanish"));
    let fault = Said::Rows {
        age: Duration::ZERO,
        report: Arc::new(PathReport { fault: Some("no link".into()), ..PathReport::default() }),
    };
    let fault = one(findings(&[node(1, said(vec![])), node(2, fault)]));
    assert_eq!((fault.problem.as_str(), fault.severity), ("n2 sends no probes: no link", Gravity::Error));
}

#[test]
fn rows_that_are_missing_are_named() {
    let missing = |said_: Said| one(findings(&[node(1, said(vec![fine(2)])), node(2, said_)]));
    let old = missing(Said::Nothing { version: "0.1.0".into() });
    assert_eq!(old.problem, "node n2 runs an agent that sends no rows (version 0.1.0)");
    assert_eq!((old.severity, old.node.as_str()), (Gravity::Warning, "n2"));
    let silent = missing(Said::Silence { lasts: Duration::from_secs(77) });
    assert_eq!(silent.problem, "no report from n2 for 77 s");
    let started = Said::Silence { lasts: Duration::from_secs(3) };
    assert_eq!(findings(&[node(1, said(vec![fine(2)])), node(2, started)]), [], "this agent has just started");
    let garbage = missing(Said::Nonsense { why: "9 is no state".into() });
    assert!(garbage.problem.contains("make no sense: 9 is no state"), "{garbage:?}");
}

#[test]
fn what_a_node_says_of_itself_or_of_strangers_is_ignored() {
    let lies = vec![fails(2, true), fails(77, true), row(77, |row| row.limit = Some(600)), fine(1)];
    assert_eq!(findings(&[node(1, said(vec![fine(2)])), node(2, said(lies))]), []);
}

#[test]
fn a_long_list_is_cut_and_says_where_to_look() {
    let nodes = (1..=200).map(|n| {
        let rows = (1..=200).filter(|to| *to != n && (n == 9 || *to == 9)).map(|to| fails(to, false));
        node(n, said(rows.collect()))
    });
    let found = findings(&nodes.collect::<Vec<_>>());
    assert_eq!(found.len(), MOST + 1);
    let last = found.last().unwrap();
    assert!(last.problem.contains("148 more problems") && last.problem.contains("n9 (192.0.2.9)"), "{last:?}");
}
