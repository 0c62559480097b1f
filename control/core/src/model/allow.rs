//! Who may use published ports.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{Ipv4Net, Ipv6Net};

/// The service label that names clients who may not use the service's published ports.
pub const DENY_LABEL: &str = "hiveway.deny";

/// The service label that restricts who may use the service's published ports.
pub const ALLOW_LABEL: &str = "hiveway.allow";

/// Clients that may use published ports, or may not, as CIDRs none of which lies in another; an empty list names
/// nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct AllowList(Vec<Ipv4Net>);

/// One entry of an allow list as somebody wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowEntry {
    /// IPv4 clients.
    V4(Ipv4Net),
    /// IPv6 clients; published ports have none yet.
    V6(Ipv6Net),
}

impl FromStr for AllowEntry {
    type Err = String;

    /// A CIDR without host bits, or a bare address.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let ipv4 = text.parse().or_else(|_| text.parse::<Ipv4Addr>().map(Ipv4Net::from));
        let ipv6 = || text.parse().or_else(|_| text.parse::<Ipv6Addr>().map(Ipv6Net::from));
        match ipv4 {
            Ok(net) if net.trunc() != net => {
                Err(format!("{net} has host bits set; did you mean {} or {}?", net.trunc(), net.addr()))
            }
            Ok(net) => Ok(Self::V4(net)),
            Err(_) => ipv6().map(Self::V6).map_err(|_| match text {
                "" => "an entry is empty; expected CIDRs like 203.0.113.0/24, separated by commas".into(),
                _ => format!("{text:?} is no CIDR like 203.0.113.0/24 and no address"),
            }),
        }
    }
}

impl fmt::Display for AllowEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(net) => net.fmt(f),
            Self::V6(net) => net.fmt(f),
        }
    }
}

/// The entries of a comma-separated list.
pub fn parse_allow(text: &str) -> Result<Vec<AllowEntry>, String> {
    text.split(',').map(str::parse).collect()
}

impl AllowList {
    /// The IPv4 entries among these.
    pub fn new<'e>(entries: impl IntoIterator<Item = &'e AllowEntry>) -> Self {
        let ipv4 = entries.into_iter().filter_map(|entry| match entry {
            AllowEntry::V4(net) => Some(*net),
            AllowEntry::V6(_) => None,
        });
        Self::of(ipv4.collect())
    }

    pub(super) fn of(mut nets: Vec<Ipv4Net>) -> Self {
        // In this order a net comes right before all that lie inside it.
        nets.sort();
        nets.dedup_by(|inner, outer| outer.contains(&*inner));
        Self(nets)
    }

    /// Clients that both allow.
    pub fn and(&self, other: &Self) -> Self {
        let of = |one: &Self, other: &Self| -> Vec<Ipv4Net> {
            one.0.iter().copied().filter(|net| other.0.iter().any(|outer| outer.contains(net))).collect()
        };
        Self::of([of(self, other), of(other, self)].concat())
    }

    /// Clients that one of both names.
    pub fn or(&self, other: &Self) -> Self {
        Self::of([self.0.as_slice(), &other.0].concat())
    }

    /// Whether the list names `ip`.
    pub fn contains(&self, ip: Ipv4Addr) -> bool {
        // Of nets none of which lies in another only the last one that begins at or before it can hold it.
        let after = self.0.partition_point(|net| net.network() <= ip);
        after.checked_sub(1).is_some_and(|last| self.0[last].contains(&ip))
    }

    /// The CIDRs, sorted.
    pub fn nets(&self) -> &[Ipv4Net] {
        &self.0
    }
}

/// Who may use a published port, as a look-up for the longest CIDR that holds a client tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Clients that may.
    pub allow: Vec<Ipv4Net>,
    /// Clients that may not, each inside one that may: other clients may not in any case.
    pub deny: Vec<Ipv4Net>,
}

impl Access {
    /// `deny` wins. `allow` is `None` where everybody else may.
    pub fn new(allow: Option<AllowList>, deny: &AllowList) -> Self {
        let inside = |net: &Ipv4Net, list: &AllowList| list.0.iter().any(|outer| outer.contains(net));
        let allow = allow.unwrap_or_else(|| AllowList(vec![Ipv4Net::default()]));
        let left = AllowList(allow.0.into_iter().filter(|net| !inside(net, deny)).collect());
        let deny = deny.0.iter().copied().filter(|net| inside(net, &left)).collect();
        Self { allow: left.0, deny }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(text: &str) -> AllowList {
        AllowList::new(&parse_allow(text).unwrap_or_else(|why| panic!("{text}: {why}")))
    }

    fn shown(list: &AllowList) -> String {
        list.nets().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn bare_addresses_and_covered_entries() {
        assert_eq!(shown(&list("10.1.0.0/16, 203.0.113.7,10.0.0.0/8,10.1.2.0/24")), "10.0.0.0/8 203.0.113.7/32");
        assert_eq!(shown(&list("0.0.0.0/0,10.0.0.0/8")), "0.0.0.0/0");
    }

    #[test]
    fn ipv6_entries_allow_no_ipv4_client() {
        assert_eq!(parse_allow("2001:db8::1, fd00::/8").map(|e| e.len()), Ok(2));
        assert_eq!(list("fd00::/8"), AllowList::default());
        assert_eq!(shown(&list("fd00::/8,10.0.0.0/8")), "10.0.0.0/8");
    }

    #[test]
    fn nonsense_is_refused_with_a_hint() {
        for (text, hint) in [
            ("", "is empty"),
            ("10.0.0.0/8,", "is empty"),
            ("10.0.0.5/24", "did you mean 10.0.0.0/24 or 10.0.0.5?"),
            ("10.0.0.0/33", "no CIDR"),
            ("all", "\"all\" is no CIDR"),
            ("10.0.0.0/8 192.0.2.0/24", "no CIDR"),
        ] {
            let why = parse_allow(text).expect_err(text);
            assert!(why.contains(hint), "{text:?}: {why}");
        }
    }

    /// Lists around 10.0.0.0 whose entries often lie inside each other.
    fn lists() -> impl Strategy<Value = AllowList> {
        let net = (any::<u8>(), any::<u8>(), 0u8..=32)
            .prop_map(|(b, d, length)| Ipv4Net::new_assert(Ipv4Addr::new(10, b & 3, 0, d), length).trunc());
        prop::collection::vec(net, 0..5).prop_map(AllowList::of)
    }

    fn allows(list: &AllowList, ip: Ipv4Addr) -> bool {
        list.nets().iter().any(|net| net.contains(&ip))
    }

    #[test]
    fn denied_clients_are_none_of_the_allowed() {
        let access = |allow: Option<&str>, deny: &str| {
            let Access { allow, deny } = Access::new(allow.map(list), &list(deny));
            (shown(&AllowList(allow)), shown(&AllowList(deny)))
        };
        let of = |allow: &str, deny: &str| (allow.to_owned(), deny.to_owned());
        assert_eq!(access(None, "192.0.2.0/24"), of("0.0.0.0/0", "192.0.2.0/24"));
        assert_eq!(access(Some("10.0.0.0/8"), "192.0.2.0/24,10.1.0.0/16"), of("10.0.0.0/8", "10.1.0.0/16"));
        assert_eq!(access(Some("10.1.2.0/24,10.9.0.0/16"), "10.1.0.0/16"), of("10.9.0.0/16", ""));
        assert_eq!(access(Some("10.0.0.0/8"), "10.0.0.0/8"), of("", ""));
        assert_eq!(access(None, "0.0.0.0/0"), of("", ""));
    }

    proptest! {
        /// What a longest-prefix look-up finds is what the two lists say.
        #[test]
        fn the_longest_prefix_decides_as_both_lists_do(
            allow in prop::option::of(prop::collection::vec((any::<u32>(), 0u8..=32), 0..6)),
            deny in prop::collection::vec((any::<u32>(), 0u8..=32), 0..6),
            client in any::<u32>(),
        ) {
            let of = |nets: Vec<(u32, u8)>| {
                // Close together, so that they overlap.
                let net = |(bits, length)| Ipv4Net::new_assert(Ipv4Addr::from_bits(bits & 0x0303), length).trunc();
                AllowList::of(nets.into_iter().map(net).collect())
            };
            let (allow, deny, client) = (allow.map(of), of(deny), Ipv4Addr::from_bits(client & 0x0303));
            let may = allow.as_ref().is_none_or(|list| list.contains(client)) && !deny.contains(client);
            let access = Access::new(allow, &deny);
            let all = access.allow.iter().map(|net| (net, true)).chain(access.deny.iter().map(|net| (net, false)));
            let longest = all.filter(|(net, _)| net.contains(&client)).max_by_key(|(net, _)| net.prefix_len());
            prop_assert_eq!(longest.is_some_and(|(_, allowed)| allowed), may);
        }

        /// Who is allowed by both lists is allowed by their intersection, and nobody else.
        #[test]
        fn intersection_is_that_of_sets(a in lists(), b in lists(), far in any::<u32>(), near in any::<(u8, u8)>()) {
            let both = a.and(&b);
            let near = Ipv4Addr::new(10, near.0 & 3, 0, near.1);
            let edges = a.nets().iter().chain(b.nets()).flat_map(|net| {
                let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                [first.wrapping_sub(1), first, last, last.wrapping_add(1)].map(Ipv4Addr::from_bits)
            });
            for ip in edges.chain([near, Ipv4Addr::from_bits(far)]) {
                prop_assert_eq!(allows(&both, ip), allows(&a, ip) && allows(&b, ip), "{} in {:?} and {:?}", ip, a, b);
            }
            prop_assert_eq!(&both, &b.and(&a));
            prop_assert_eq!(&a.and(&a), &a);
            let nested = both.nets().iter().any(|n| both.nets().iter().any(|o| o != n && o.contains(n)));
            prop_assert!(!nested, "{:?}", both);
        }
    }
}
