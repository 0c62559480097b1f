//! What attaching an XDP program has cost an interface: two looks at it, compared.

use std::collections::BTreeMap;

use crate::{measured::Verdict, netlink::LinkState};

/// An interface at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// Whether each offload is on.
    pub(super) features: BTreeMap<String, bool>,
    pub(super) state: LinkState,
}

impl Snapshot {
    /// Offloads that are not as they are here.
    pub(super) fn changed<'a>(&'a self, later: &'a Self) -> impl Iterator<Item = &'a str> {
        let same = |feature: &str, on: bool| later.features.get(feature).is_none_or(|now| *now == on);
        self.features.iter().filter(move |(feature, on)| !same(feature, **on)).map(|(feature, _)| feature.as_str())
    }
}

/// An interface before the program was attached, with it, and after it was detached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trial {
    pub(super) before: Snapshot,
    pub(super) during: Snapshot,
    pub(super) after: Snapshot,
}

/// What came of the attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// Nothing was attached, because the verdict does not depend on it; the reason.
    Never(String),
    /// The kernel or the driver has refused the program; the reason.
    Refused(String),
    /// The program was attached.
    Attached(Box<Trial>),
}

/// What attaching costs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// The program was attached.
    pub(super) attached: bool,
    /// Why it was not, if the kernel or the driver has refused it.
    pub(super) refused: Option<String>,
    /// Offloads that it switches off.
    pub(super) offloads: Vec<String>,
    /// The link went down, on attaching or on detaching.
    pub(super) interrupted: bool,
}

/// The verdict, its reason, and what it is made of.
pub(super) fn cost(attempt: &Attempt) -> (Verdict, String, Cost) {
    let trial = match attempt {
        Attempt::Never(why) => return (Verdict::DoesNotPay, why.clone(), Cost::default()),
        Attempt::Refused(why) => {
            let cost = Cost { refused: Some(why.clone()), ..Cost::default() };
            return (Verdict::DoesNotPay, format!("the driver refuses an XDP program: {why}"), cost);
        }
        Attempt::Attached(trial) => trial,
    };
    let Trial { before, during, after } = &**trial;
    let lost = before.changed(during).filter(|feature| before.features[*feature]);
    let cost = Cost {
        attached: true,
        refused: None,
        offloads: lost.map(str::to_owned).collect(),
        interrupted: interrupted(&before.state, &during.state) || interrupted(&during.state, &after.state),
    };
    let mut reasons = Vec::new();
    if !cost.offloads.is_empty() {
        reasons.push(format!("an XDP program switches off {}", cost.offloads.join(", ")));
    }
    if cost.interrupted {
        reasons.push("attaching or detaching an XDP program interrupts the link".to_owned());
    }
    let left = differences(before, after);
    if !left.is_empty() {
        reasons.push(format!("after an XDP program the interface is not as before: {}", left.join(", ")));
    }
    if reasons.is_empty() {
        let why = "the driver takes an XDP program, which switches off no offload and does not interrupt the link";
        return (Verdict::Pays, why.to_owned(), cost);
    }
    (Verdict::DoesNotPay, reasons.join("; "), cost)
}

/// The carrier went away in between, even if it is back.
fn interrupted(earlier: &LinkState, later: &LinkState) -> bool {
    later.carrier_changes != earlier.carrier_changes || (earlier.running && !later.running)
}

/// What is not as it was, for people.
pub(super) fn differences(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let on_off = |on: bool| if on { "on" } else { "off" };
    let offload = |feature: &str| format!("{feature} was {}", on_off(before.features[feature]));
    let mut found: Vec<_> = before.changed(after).map(offload).collect();
    if before.state.operstate != after.state.operstate {
        found.push(format!("the link was {} and is {}", before.state.operstate, after.state.operstate));
    }
    if after.state.xdp {
        found.push("an XDP program is attached".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(on: &[&str]) -> Snapshot {
        let features = ["rx-lro", "rx-gro-hw", "tx-checksum-ipv4"];
        Snapshot {
            features: features.into_iter().map(|feature| (feature.to_owned(), on.contains(&feature))).collect(),
            state: LinkState { running: true, operstate: "up".to_owned(), carrier_changes: 2, xdp: false },
        }
    }

    fn with(mut snapshot: Snapshot, change: impl FnOnce(&mut LinkState)) -> Snapshot {
        change(&mut snapshot.state);
        snapshot
    }

    /// Of an interface where LRO is on.
    fn tried(during: Snapshot, after: Snapshot) -> (Verdict, String, Cost) {
        let during = with(during, |state| state.xdp = true);
        cost(&Attempt::Attached(Box::new(Trial { before: interface(&["rx-lro"]), during, after })))
    }

    #[test]
    fn where_attaching_costs_nothing_it_pays() {
        let (verdict, why, cost) = tried(interface(&["rx-lro"]), interface(&["rx-lro"]));
        assert_eq!((verdict, cost), (Verdict::Pays, Cost { attached: true, ..Cost::default() }));
        assert!(why.contains("switches off no offload"), "{why}");
        // What it turns on is no cost.
        let (verdict, _, cost) = tried(interface(&["rx-lro", "tx-checksum-ipv4"]), interface(&["rx-lro"]));
        assert_eq!((verdict, cost.offloads), (Verdict::Pays, vec![]));
    }

    #[test]
    fn offloads_that_it_switches_off_are_named() {
        let (verdict, why, cost) = tried(interface(&[]), interface(&["rx-lro"]));
        assert_eq!((verdict, cost.offloads), (Verdict::DoesNotPay, vec!["rx-lro".to_owned()]));
        assert_eq!(why, "an XDP program switches off rx-lro");
    }

    #[test]
    fn a_link_that_goes_down_is_a_cost_even_if_it_is_back_at_once() {
        let lro = || interface(&["rx-lro"]);
        let flapped = |changes| with(lro(), |state| state.carrier_changes = changes);
        let down = with(lro(), |state| (state.running, state.operstate) = (false, "down".to_owned()));
        for (during, after) in [(flapped(4), flapped(4)), (flapped(2), flapped(4)), (down, lro())] {
            let (verdict, why, cost) = tried(during, after);
            assert_eq!((verdict, cost.interrupted), (Verdict::DoesNotPay, true), "{why}");
            assert!(why.contains("interrupts the link"), "{why}");
        }
    }

    #[test]
    fn what_stays_changed_is_a_cost_and_named() {
        let (verdict, why, cost) = tried(interface(&["rx-lro"]), interface(&[]));
        assert_eq!((verdict, cost.offloads.len()), (Verdict::DoesNotPay, 0));
        assert!(why.contains("not as before: rx-lro was on"), "{why}");
        let after = with(interface(&[]), |state| (state.operstate, state.xdp) = ("down".to_owned(), true));
        let left = differences(&interface(&["rx-lro"]), &after);
        assert_eq!(left, ["rx-lro was on", "the link was up and is down", "an XDP program is attached"]);
    }

    #[test]
    fn a_refusal_says_why_and_so_does_what_is_not_tried() {
        let (verdict, why, cost) = super::cost(&Attempt::Refused("not supported".to_owned()));
        assert_eq!((verdict, cost.attached), (Verdict::DoesNotPay, false));
        assert_eq!(cost.refused.as_deref(), Some("not supported"));
        assert_eq!(why, "the driver refuses an XDP program: not supported");
        let (verdict, why, cost) = super::cost(&Attempt::Never("a veth".to_owned()));
        assert_eq!((verdict, why.as_str(), cost), (Verdict::DoesNotPay, "a veth", Cost::default()));
    }
}
