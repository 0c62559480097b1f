//! Uplinks that were in use and are gone. Traffic goes on over the others, so nothing fails: what is lost is the
//! redundancy, and nobody notices until the last one goes as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use hiveway_core::observed::Link;

use crate::uplinks::{Underlay, Uplinks};

/// What is remembered of uplinks.
///
/// An uplink that was removed, was taken down or has lost its carrier is named until a route leads over it again, or
/// the agent is restarted. Not for a bounded time: a warning that ends by itself says after a night that all is well.
/// And also when it works again, as long as no route leads over it: taking an interface down removes its static routes,
/// and bringing it up does not bring them back. An interface that works when the last route leaves it is forgotten:
/// that is what routing daemons and operators do on purpose.
#[derive(Clone, Debug, Default)]
pub(crate) struct LostUplinks {
    /// Those in use, with their indices.
    used: BTreeMap<String, u32>,
    /// Those that were in use at the last look and worked then. Interfaces are listed before routes are asked for, so
    /// what goes down in between still seems to work: the next look decides.
    left: BTreeMap<String, u32>,
    /// Those that were in use until they failed.
    lost: BTreeMap<String, u32>,
}

/// How an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Works,
    NoCarrier,
    Down,
    Gone,
}

impl Condition {
    fn of(link: Option<&Link>) -> Self {
        match link {
            None => Self::Gone,
            Some(link) if !link.up => Self::Down,
            Some(link) if !link.carrier => Self::NoCarrier,
            Some(_) => Self::Works,
        }
    }
}

impl LostUplinks {
    /// Takes note of what `--underlay` means now, on a node with these links.
    pub(crate) fn note(&mut self, uplinks: &Uplinks, links: &BTreeMap<String, Link>) {
        let used: BTreeMap<_, _> =
            (uplinks.names.iter()).filter_map(|name| Some((name.clone(), links.get(name)?.index))).collect();
        let is_used = |name: &String, index: &u32| used.contains_key(name) || used.values().any(|other| other == index);
        // An interface that is renamed keeps its index.
        let works = |index: &u32| {
            let link = links.values().find(|link| link.index == *index);
            Condition::of(link) == Condition::Works
        };
        let before = mem::take(&mut self.left);
        self.lost.extend(before.into_iter().filter(|(_, index)| !works(index)));
        let gone = mem::take(&mut self.used).into_iter().filter(|(name, index)| !is_used(name, index));
        let (left, lost): (BTreeMap<_, _>, BTreeMap<_, _>) = gone.partition(|(_, index)| works(index));
        self.left = left;
        self.lost.extend(lost);
        self.lost.retain(|name, index| !is_used(name, index));
        self.used = used;
    }

    /// What an operator should know: which uplink is gone, where tunnels still arrive, and what to do. An interface
    /// that has to be there and is not, or is down, is a failing item: the one with the tunnel address, and those that
    /// `--underlay` names.
    pub(crate) fn warnings(
        &self,
        underlay: &Underlay,
        uplinks: &Uplinks,
        links: &BTreeMap<String, Link>,
    ) -> Vec<String> {
        let condition = |name: &String| Condition::of(links.get(name));
        let works = |name: &&String| condition(name) == Condition::Works;
        let working: Vec<_> = uplinks.names.iter().filter(works).map(String::as_str).collect();
        let left = match working[..] {
            [] => "VXLAN is accepted nowhere".to_owned(),
            _ => format!("VXLAN is accepted on {} only", working.join(",")),
        };
        let stays_away = "or restart the agent if it is to stay away";
        let unplugged = uplinks.names.iter().filter(|name| condition(name) == Condition::NoCarrier);
        let names: BTreeSet<_> = self.lost.keys().filter(|_| *underlay == Underlay::Auto).chain(unplugged).collect();
        let warning = |name: &String| match condition(name) {
            Condition::Gone => {
                format!("uplink {name} is gone: {left}; bring it and its routes back, {stays_away}")
            }
            Condition::Down => {
                format!("uplink {name} is down: {left}; `ip link set {name} up` and add its routes, {stays_away}")
            }
            Condition::NoCarrier => {
                format!("uplink {name} has no carrier: {left}; look at its cable and at the other end")
            }
            Condition::Works => format!(
                "uplink {name} works again, but no route to another node leads over it: {left}; add the routes that it had, \
                 {stays_away}"
            ),
        };
        names.into_iter().map(warning).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hiveway_core::observed::Kind;

    use super::*;
    use crate::uplinks::{Routes, choose};

    const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    /// A node with the tunnel address on lo, and these interfaces: name, index, up.
    fn node(interfaces: &[(&str, u32, bool)]) -> BTreeMap<String, Link> {
        let link = |(name, index, up): &(&str, u32, bool)| {
            ((*name).to_owned(), Link { up: *up, ..Link::new(*index, Kind::Other(String::new())) })
        };
        interfaces.iter().map(link).collect()
    }

    fn known(routes: &[u32]) -> Routes {
        Routes { known: routes.iter().copied().collect(), ..Routes::default() }
    }

    #[derive(Default)]
    struct World {
        underlay: Underlay,
        lost: LostUplinks,
    }

    impl World {
        /// What is said when routes lead through these indices.
        fn look(&mut self, interfaces: &[(&str, u32, bool)], routes: &[u32]) -> Vec<String> {
            let links = node(interfaces);
            let uplinks = choose(&self.underlay, &links, VTEP, &known(routes), "hw-gwbridge");
            self.lost.note(&uplinks, &links);
            self.lost.warnings(&self.underlay, &uplinks, &links)
        }
    }

    const BOTH: [(&str, u32, bool); 2] = [("eth0", 2, true), ("eth1", 3, true)];

    #[test]
    fn an_uplink_that_is_down_is_named_until_routes_lead_over_it_again() {
        let mut world = World::default();
        assert_eq!(world.look(&BOTH, &[2, 3]), Vec::<String>::new());
        for _ in 0..3 {
            let said = world.look(&[BOTH[0], ("eth1", 3, false)], &[2]);
            assert!(said[0].contains("uplink eth1 is down: VXLAN is accepted on eth0 only; `ip link set eth1 up`"));
        }
        let said = world.look(&BOTH, &[2]);
        assert!(said[0].contains("eth1 works again, but no route to another node leads over it"), "{said:?}");
        assert_eq!(world.look(&BOTH, &[2, 3]), Vec::<String>::new());
    }

    #[test]
    fn one_that_is_removed_is_gone_until_it_is_back_under_whatever_index() {
        let mut world = World::default();
        world.look(&BOTH, &[2, 3]);
        let said = world.look(&BOTH[..1], &[2]);
        assert!(said[0].contains("uplink eth1 is gone: VXLAN is accepted on eth0 only; bring it"), "{said:?}");
        assert_eq!(world.look(&[BOTH[0], ("eth1", 9, true)], &[2, 9]), Vec::<String>::new());
        let said = world.look(&[], &[]);
        assert_eq!(said.len(), 2);
        assert!(said[0].contains("VXLAN is accepted nowhere"), "{said:?}");
    }

    #[test]
    fn a_renamed_uplink_and_one_that_routes_have_left_are_no_loss() {
        let mut world = World::default();
        world.look(&BOTH, &[2, 3]);
        assert_eq!(world.look(&[BOTH[0], ("fabric1", 3, true)], &[2, 3]), Vec::<String>::new());
        assert_eq!(world.look(&[BOTH[0], ("fabric1", 3, true)], &[2]), Vec::<String>::new());
        // Renamed while it was down: it comes back under another name.
        world.look(&[BOTH[0], ("fabric1", 3, true)], &[2, 3]);
        assert_eq!(world.look(&[BOTH[0], ("fabric1", 3, false)], &[2]).len(), 1);
        assert_eq!(world.look(&[BOTH[0], ("eth1", 3, true)], &[2, 3]), Vec::<String>::new());
    }

    #[test]
    fn what_goes_down_between_two_questions_is_lost() {
        let mut world = World::default();
        world.look(&BOTH, &[2, 3]);
        // The list of interfaces was older than the routes.
        assert_eq!(world.look(&BOTH, &[2]), Vec::<String>::new());
        assert_eq!(world.look(&[BOTH[0], ("eth1", 3, false)], &[2]).len(), 1);
        // What goes down long after routes have left it is none of our business.
        let mut world = World::default();
        world.look(&BOTH, &[2, 3]);
        world.look(&BOTH, &[2]);
        world.look(&BOTH, &[2]);
        assert_eq!(world.look(&[BOTH[0], ("eth1", 3, false)], &[2]), Vec::<String>::new());
    }

    #[test]
    fn an_uplink_without_a_carrier_is_named_whether_routes_lead_over_it_or_not() {
        let mut links = node(&BOTH);
        let mut lost = LostUplinks::default();
        let mut look = |carrier: bool, routes: &[u32]| {
            links.get_mut("eth1").unwrap().carrier = carrier;
            let uplinks = choose(&Underlay::Auto, &links, VTEP, &known(routes), "hw-gwbridge");
            lost.note(&uplinks, &links);
            lost.warnings(&Underlay::Auto, &uplinks, &links)
        };
        assert!(look(true, &[2, 3]).is_empty());
        for routes in [&[2, 3][..], &[2]] {
            let said = look(false, routes);
            assert!(said[0].contains("eth1 has no carrier: VXLAN is accepted on eth0 only"), "{said:?}");
        }
        assert!(look(true, &[2])[0].contains("works again"));
        assert!(look(true, &[2, 3]).is_empty());
    }

    #[test]
    fn what_is_a_failing_item_already_is_no_warning() {
        let mut world = World { underlay: "eth0,eth1".parse().unwrap(), ..World::default() };
        world.look(&BOTH, &[]);
        assert_eq!(world.look(&[BOTH[0], ("eth1", 3, false)], &[]), Vec::<String>::new());
        assert_eq!(world.look(&BOTH[..1], &[]), Vec::<String>::new());
        let mut links = node(&BOTH);
        links.get_mut("eth1").unwrap().carrier = false;
        let uplinks = choose(&world.underlay, &links, VTEP, &known(&[]), "hw-gwbridge");
        world.lost.note(&uplinks, &links);
        let said = world.lost.warnings(&world.underlay, &uplinks, &links);
        assert!(said.len() == 1 && said[0].contains("eth1 has no carrier"), "{said:?}");
    }
}
