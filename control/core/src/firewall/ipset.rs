//! Sets as `ipset save` prints them.

use std::{net::Ipv4Addr, sync::Arc};

use ipnet::Ipv4Net;

use super::{ranges::Ranges, rules::Addresses, words::words};

/// What one set holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Set {
    /// Addresses.
    Of(Addresses),
    /// A `list:set`: what is in one of the sets of these names. They are no lists themselves.
    Lists(Vec<String>),
}

/// A set as `ipset save NAME` prints it. `None`: its elements do not begin with an address, or with one that is
/// compared in a way that is not followed.
pub fn set(saved: &str) -> Option<Set> {
    let mut lines = saved.lines();
    let create = words(lines.find(|line| line.starts_with("create "))?);
    let kind = create.get(2)?.as_str();
    let options = &create[3..];
    let option = |name: &str| options.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_str());
    let added = lines.filter(|line| line.starts_with("add ")).map(words);
    if kind == "list:set" {
        return added.map(|line| line.get(2).cloned()).collect::<Option<_>>().map(Set::Lists);
    }
    if !["hash:ip", "hash:net", "bitmap:ip"].iter().any(|known| kind.starts_with(known)) {
        return None;
    }
    if option("family") == Some("inet6") {
        // No IPv4 packet is in it.
        return Some(Set::Of(Addresses::exactly(Ranges::NONE)));
    }
    // Addresses that agree in some bits, which need not be the first ones.
    if options.iter().any(|word| word == "bitmask") {
        return None;
    }
    // The elements stand for all addresses that agree in so many bits.
    let length: u8 = option("netmask").map_or(Some(32), |length| length.parse().ok())?;
    let (mut yes, mut no) = (Vec::new(), Vec::new());
    for line in added {
        // Further dimensions, ports say, may match or not.
        let range = element(line.get(2)?.split(',').next()?)?;
        // The words of a comment are no flags.
        let mut flags = line.iter().skip(3).take_while(|word| *word != "comment");
        if flags.any(|word| word == "nomatch") { no.push(range) } else { yes.push(range) }
    }
    let (yes, no) = (Ranges::of(yes).widened(length), Ranges::of(no).widened(length));
    Some(Set::Of(match () {
        () if kind.contains(',') => Addresses::some_of(yes.or(&no)),
        () if no.is_empty() => Addresses::exactly(yes),
        // An exception of an exception is an element again: what lies in both may be in the set or not.
        () => Addresses { least: Arc::new(yes.minus(&no)), most: Arc::new(yes.or(&no)) },
    }))
}

/// `10.0.0.1`, `10.0.0.0/8` or `10.0.0.1-10.0.0.9`.
fn element(text: &str) -> Option<(u32, u32)> {
    if let Some((first, last)) = text.split_once('-') {
        return Some((first.parse::<Ipv4Addr>().ok()?.to_bits(), last.parse::<Ipv4Addr>().ok()?.to_bits()));
    }
    let net = text.parse::<Ipv4Net>().or_else(|_| text.parse::<Ipv4Addr>().map(Ipv4Net::from)).ok()?;
    Some((net.network().to_bits(), net.broadcast().to_bits()))
}

/// What is in one of these.
pub fn any_of<'a>(sets: impl IntoIterator<Item = &'a Addresses>) -> Addresses {
    let (mut most, mut least, mut exact) = (Ranges::NONE, Ranges::NONE, true);
    for set in sets {
        most = most.or(&set.most);
        least = least.or(&set.least);
        exact &= set.most == set.least;
    }
    if exact { Addresses::exactly(most) } else { Addresses { most: Arc::new(most), least: Arc::new(least) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At most, and at least.
    fn held(saved: &str) -> (String, String) {
        let shown = |ranges: &Ranges| ranges.prefixes().map(|net| net.to_string()).collect::<Vec<_>>().join(" ");
        match set(saved) {
            Some(Set::Of(found)) => (shown(&found.most), shown(&found.least)),
            other => panic!("{saved}: {other:?}"),
        }
    }

    fn exactly(ranges: &str) -> (String, String) {
        (ranges.to_owned(), ranges.to_owned())
    }

    #[test]
    fn sets_of_addresses_are_read() {
        let pairs = "create p hash:ip,port family inet hashsize 1024 maxelem 65536\nadd p 203.0.113.7,tcp:80\n";
        assert_eq!(held(pairs), ("203.0.113.7/32".into(), String::new()));
        let six = "create six hash:ip family inet6 hashsize 1024 maxelem 65536\nadd six fd00::1\n";
        assert_eq!(held(six), exactly(""), "of no IPv4 address");
        let ports = "create ports bitmap:port range 0-1023\nadd ports 80\n";
        assert_eq!(set(ports), None);
    }

    /// As ipset 7.17 saves them.
    #[test]
    fn a_netmask_widens_the_elements() {
        let hash = "create x hash:ip family inet hashsize 1024 maxelem 65536 netmask 24 bucketsize 12 initval 0x1\n\
                    add x 10.5.5.0\nadd x 10.5.7.0\n";
        assert_eq!(held(hash), exactly("10.5.5.0/24 10.5.7.0/24"));
        let bitmap = "create b bitmap:ip range 10.0.0.0/8 netmask 24\nadd b 10.5.5.0\n";
        assert_eq!(held(bitmap), exactly("10.5.5.0/24"));
        let pairs = "create p hash:ip,port family inet netmask 24 maxelem 65536\nadd p 10.5.5.0,tcp:80\n";
        assert_eq!(held(pairs), ("10.5.5.0/24".into(), String::new()));
        for unread in ["netmask 255.255.0.255", "bitmask 255.255.0.255"] {
            assert_eq!(set(&format!("create x hash:ip family inet {unread} maxelem 9\nadd x 10.5.0.5\n")), None);
        }
    }

    #[test]
    fn exceptions_are_seen_wherever_they_stand() {
        let with = |flags: &str, comment: &str| {
            held(&format!(
                "create h hash:net family inet hashsize 1024 maxelem 65536 timeout 300 counters comment\n\
                 add h 10.0.0.0/8 timeout 299{comment}\nadd h 10.128.0.0/9 {flags}\n"
            ))
        };
        let carved = ("10.0.0.0/8".to_owned(), "10.0.0.0/9".to_owned());
        for flags in [
            "nomatch",
            "timeout 99 nomatch",
            "timeout 99 nomatch packets 0 bytes 0 comment \"x\"",
            "timeout 99 nomatch packets 0 bytes 0 comment \"an exception\"",
        ] {
            assert_eq!(with(flags, ""), carved, "{flags}");
        }
        for comment in [" comment \"nomatch\"", " packets 0 bytes 0 comment \"is nomatch\"", " comment \"a nomatch b\""]
        {
            assert_eq!(with("nomatch", comment), carved, "{comment}");
        }
        // Where nothing is taken out of they may still be asked for.
        assert_eq!(
            held("create h hash:net family inet\nadd h 10.0.0.0/8 nomatch\n"),
            ("10.0.0.0/8".into(), String::new())
        );
    }

    #[test]
    fn lists_name_sets() {
        let list =
            "create l list:set size 8 counters comment\nadd l bad packets 0 bytes 0 comment \"a b\"\nadd l worse\n";
        assert_eq!(set(list), Some(Set::Lists(vec!["bad".into(), "worse".into()])));
        assert_eq!(set("create l list:set size 8\n"), Some(Set::Lists(Vec::new())));
        let net = |text: &str| Ranges::net(text.parse().unwrap());
        let (one, some) = (Addresses::exactly(net("10.0.0.0/8")), Addresses::some_of(net("11.0.0.0/8")));
        assert_eq!(any_of([&one]), one);
        let both = any_of([&one, &some]);
        assert_eq!((&*both.most, &*both.least), (&net("10.0.0.0/7"), &net("10.0.0.0/8")));
        assert_eq!(any_of([]), Addresses::exactly(Ranges::NONE));
    }
}
