//! Sets of IPv4 addresses as ranges.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Of two sets the smaller one's ranges are searched for in the other, if that has more than so many times as many.
const SEARCHED: usize = 16;

/// A set of IPv4 addresses: inclusive ranges in order, none of which touches the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ranges(Vec<(u32, u32)>);

impl Ranges {
    /// No address.
    pub const NONE: Self = Self(Vec::new());

    /// Every address.
    pub fn all() -> Self {
        Self(vec![(0, u32::MAX)])
    }

    /// The addresses in any of these inclusive ranges, which may come in any order and overlap. One that ends before it
    /// begins holds none.
    pub fn of(ranges: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut all: Vec<_> = ranges.into_iter().filter(|(first, last)| first <= last).collect();
        work::add(all.len());
        all.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::with_capacity(all.len().min(1024));
        for (first, last) in all {
            match joined.last_mut() {
                Some(before) if before.1 == u32::MAX || first <= before.1 + 1 => before.1 = before.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }

    /// Addresses that are in any of these.
    pub fn any_of<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        Self::of(all.into_iter().flat_map(|one| one.0.iter().copied()))
    }

    /// The addresses of a CIDR; host bits do not count.
    pub fn net(net: Ipv4Net) -> Self {
        Self(vec![(net.network().to_bits(), net.broadcast().to_bits())])
    }

    /// Whether no address is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every address is in it.
    pub fn is_all(&self) -> bool {
        self.0 == [(0, u32::MAX)]
    }

    /// How many addresses are in it.
    pub fn addresses(&self) -> u64 {
        self.0.iter().map(|(first, last)| u64::from(last - first) + 1).sum()
    }

    /// Whether this address is in it.
    pub fn contains(&self, ip: Ipv4Addr) -> bool {
        let ip = ip.to_bits();
        let at = self.0.partition_point(|(first, _)| *first <= ip);
        at > 0 && ip <= self.0[at - 1].1
    }

    /// Addresses that are in either.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        match (self.is_empty() || other.is_all(), other.is_empty() || self.is_all()) {
            (_, true) => self.clone(),
            (true, _) => other.clone(),
            _ => Self::of(self.0.iter().chain(&other.0).copied()),
        }
    }

    /// Addresses that are in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        if self.is_all() {
            return other.clone();
        }
        if other.is_all() {
            return self.clone();
        }
        let (few, many) = if self.0.len() < other.0.len() { (self, other) } else { (other, self) };
        if few.0.len() * SEARCHED < many.0.len() {
            return Self(few.0.iter().flat_map(|range| many.overlapping(*range)).collect());
        }
        work::add(self.0.len() + other.0.len());
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut found = Vec::new();
        while let (Some(one), Some(two)) = (a.peek(), b.peek()) {
            let (first, last) = (one.0.max(two.0), one.1.min(two.1));
            if first <= last {
                found.push((first, last));
            }
            if one.1 < two.1 {
                a.next()
            } else {
                b.next()
            };
        }
        Self(found)
    }

    /// The parts of a range that are in it. They are searched for.
    fn overlapping(&self, (first, last): (u32, u32)) -> impl Iterator<Item = (u32, u32)> + '_ {
        let from = self.0.partition_point(|range| range.1 < first);
        let found = self.0[from..].iter().take_while(move |range| range.0 <= last);
        found.map(move |range| {
            work::add(1);
            (range.0.max(first), range.1.min(last))
        })
    }

    /// All other addresses.
    #[must_use]
    pub fn complement(&self) -> Self {
        work::add(self.0.len());
        let (mut rest, mut next) = (Vec::with_capacity(self.0.len() + 1), Some(0));
        for (first, last) in &self.0 {
            if let Some(next) = next.filter(|next| next < first) {
                rest.push((next, first - 1));
            }
            next = last.checked_add(1);
        }
        rest.extend(next.map(|next| (next, u32::MAX)));
        Self(rest)
    }

    /// Addresses that are in this one and not in the other.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        if self.is_empty() || other.is_empty() { self.clone() } else { self.and(&other.complement()) }
    }

    /// Takes out the addresses that are in the other. A few are taken out where they are.
    pub fn remove(&mut self, other: &Self) {
        if other.0.len() * SEARCHED >= self.0.len() {
            *self = self.minus(other);
            return;
        }
        for (first, last) in &other.0 {
            let from = self.0.partition_point(|range| range.1 < *first);
            let to = self.0.partition_point(|range| range.0 <= *last);
            let (Some(begin), Some(end)) = (self.0.get(from), self.0.get(..to).and_then(<[_]>::last)) else { continue };
            if from >= to {
                continue;
            }
            work::add(1 + to - from);
            let before = first.checked_sub(1).map(|before| (begin.0, before)).filter(|(a, b)| a <= b);
            let after = last.checked_add(1).map(|after| (after, end.1)).filter(|(a, b)| a <= b);
            self.0.splice(from..to, before.into_iter().chain(after));
        }
    }

    /// Whether every address of this one is in the other.
    pub fn is_within(&self, other: &Self) -> bool {
        if self.0.len() * SEARCHED < other.0.len() {
            return self.0.iter().all(|range| other.overlapping(*range).next() == Some(*range));
        }
        self.minus(other).is_empty()
    }

    /// The fewest ranges that hold just these addresses, first and last, in order. No two of them touch.
    pub fn spans(&self) -> impl Iterator<Item = (Ipv4Addr, Ipv4Addr)> + '_ {
        self.0.iter().map(|(first, last)| (Ipv4Addr::from_bits(*first), Ipv4Addr::from_bits(*last)))
    }

    /// The fewest CIDRs that hold just these addresses, in order.
    pub fn prefixes(&self) -> impl Iterator<Item = Ipv4Net> + '_ {
        self.0.iter().flat_map(|range| {
            let mut next = Some(range.0);
            std::iter::from_fn(move || {
                let first = next.filter(|first| *first <= range.1)?;
                // As many low bits as are free in the first address and leave the last one in the range.
                let room = u64::from(range.1) - u64::from(first) + 1;
                let bits = (63 - room.leading_zeros()).min(first.trailing_zeros());
                next = u32::try_from(u64::from(first) + (1 << bits)).ok();
                Some(Ipv4Net::new_assert(Ipv4Addr::from_bits(first), (32 - bits) as u8))
            })
        })
    }

    /// These addresses and what shares a prefix of that length with them.
    #[must_use]
    pub fn widened(&self, length: u8) -> Self {
        let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
        Self::of(self.0.iter().map(|(first, last)| (first & !host, last | host)))
    }
}

impl FromIterator<Ipv4Net> for Ranges {
    fn from_iter<T: IntoIterator<Item = Ipv4Net>>(nets: T) -> Self {
        Self::of(nets.into_iter().map(|net| (net.network().to_bits(), net.broadcast().to_bits())))
    }
}

/// How many ranges were looked at: what takes time, counted for tests.
#[cfg(test)]
pub(super) mod work {
    use std::cell::Cell;

    thread_local! {
        static DONE: Cell<u64> = const { Cell::new(0) };
    }

    pub(in crate::firewall) fn add(ranges: usize) {
        DONE.with(|done| done.set(done.get() + ranges as u64));
    }

    pub(in crate::firewall) fn done() -> u64 {
        DONE.with(Cell::get)
    }
}

#[cfg(not(test))]
mod work {
    pub(super) fn add(_ranges: usize) {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(ranges: &Ranges) -> Vec<String> {
        ranges.prefixes().map(|net| net.to_string()).collect()
    }

    #[test]
    fn ranges_are_the_fewest_prefixes() {
        assert_eq!(shown(&Ranges::all()), ["0.0.0.0/0"]);
        assert_eq!(shown(&Ranges::NONE), Vec::<String>::new());
        assert_eq!(shown(&Ranges::of([(5, 5)])), ["0.0.0.5/32"]);
        assert_eq!(shown(&Ranges::of([(1, 6)])), ["0.0.0.1/32", "0.0.0.2/31", "0.0.0.4/31", "0.0.0.6/32"]);
        assert_eq!(shown(&Ranges::of([(u32::MAX, u32::MAX), (0, 0x7fff_ffff)])), ["0.0.0.0/1", "255.255.255.255/32"]);
        assert_eq!(Ranges::all().prefixes().count(), 1);
        assert_eq!(Ranges::of([(1, u32::MAX - 1)]).prefixes().count(), 62);
    }

    #[test]
    fn widening_takes_neighbours_in() {
        let two = Ranges::of([(0x0a00_0005, 0x0a00_0005), (0x0a00_0100, 0x0a00_0110)]);
        assert_eq!(shown(&two.widened(24)), ["10.0.0.0/23"]);
        assert_eq!(two.widened(32), two);
        assert!(two.widened(0).is_all());
    }

    /// Of a world of 64 addresses at either end.
    fn some() -> impl Strategy<Value = (Ranges, Vec<u32>)> {
        let range = (0..64u32, 0..9u32, any::<bool>());
        prop::collection::vec(range, 0..6).prop_map(|all| {
            let ranges: Vec<_> = all
                .iter()
                .map(|(first, len, high)| {
                    let base = if *high { u32::MAX - 63 } else { 0 };
                    (base + first, base + (first + len).min(63))
                })
                .collect();
            let members = world().filter(|ip| ranges.iter().any(|(a, b)| (a..=b).contains(&ip))).collect();
            (Ranges::of(ranges), members)
        })
    }

    fn world() -> impl Iterator<Item = u32> {
        (0..64).chain(u32::MAX - 63..=u32::MAX)
    }

    fn members(ranges: &Ranges) -> Vec<u32> {
        world().filter(|ip| ranges.contains(Ipv4Addr::from_bits(*ip))).collect()
    }

    proptest! {
        /// A few ranges and many are looked at in another way.
        #[test]
        fn a_few_in_many((few, in_few) in some()) {
            let many = Ranges::of((0..20).flat_map(|n| [(n * 3, n * 3 + 1), (u32::MAX - n * 3 - 1, u32::MAX - n * 3)]));
            for many in [&many, &many.complement()] {
                let in_many = members(many);
                for few in few.0.iter().map(|range| Ranges::of([*range])).chain([few.clone()]) {
                    let kept = |inside: bool| -> Vec<u32> {
                        in_many.iter().copied().filter(|ip| few.contains(Ipv4Addr::from_bits(*ip)) == inside).collect()
                    };
                    let mut rest = many.clone();
                    rest.remove(&few);
                    prop_assert_eq!(members(&rest), kept(false));
                    prop_assert_eq!(&rest, &many.minus(&few));
                    prop_assert_eq!(members(&many.and(&few)), kept(true));
                    prop_assert_eq!(&many.and(&few), &few.and(many));
                    prop_assert_eq!(few.is_within(many), few.complement().or(many).is_all());
                }
            }
            prop_assert_eq!(members(&few), in_few);
        }

        #[test]
        fn sets_are_sets((a, in_a) in some(), (b, in_b) in some()) {
            let both = |in_one: bool, in_two: bool| -> Vec<u32> {
                world().filter(|ip| (in_a.contains(ip) == in_one) && (in_b.contains(ip) == in_two)).collect()
            };
            prop_assert_eq!(&members(&a), &in_a);
            prop_assert_eq!(members(&a.and(&b)), both(true, true));
            prop_assert_eq!(members(&a.minus(&b)), both(true, false));
            prop_assert_eq!(members(&a.complement().minus(&b)), both(false, false));
            let mut rest = a.clone();
            rest.remove(&b);
            prop_assert_eq!(rest, a.minus(&b));
            prop_assert_eq!(Ranges::any_of([&a, &b]), a.or(&b));
            prop_assert_eq!(a.or(&b), Ranges::of(a.0.iter().chain(&b.0).copied()));
            prop_assert_eq!(a.complement().complement(), a.clone());
            prop_assert_eq!(a.is_within(&b), in_a.iter().all(|ip| in_b.contains(ip)));
            prop_assert_eq!(a.prefixes().collect::<Ranges>(), a);
        }
    }
}
