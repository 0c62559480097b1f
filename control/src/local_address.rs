//! At which of the node's own addresses tunnels arrive.
//!
//! The address that other nodes know need not be on any interface: a 1:1 NAT (an elastic address of a cloud) announces
//! another. Then it stays the node's name in frames and tables, and an address of its own is what packets carry.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
};

use hiveway_core::observed::Link;

use crate::{
    engine::EngineView,
    uplinks::{Underlay, carried},
};

/// Any port does: nothing is sent.
const ANY_PORT: u16 = 9;

/// Own addresses that a NAT is likely to lead to, the likeliest first: where the engine listens, the one that was found
/// `last`, and with what the kernel would send to a manager.
pub fn candidates(view: &EngineView, last: Option<Ipv4Addr>) -> Vec<Ipv4Addr> {
    let other = view.managers.iter().find(|(_, node)| view.local.node.as_ref() != Some(*node));
    view.local_addr.into_iter().chain(last).chain(other.and_then(|(manager, _)| source_towards(*manager))).collect()
}

/// The address with which the kernel would send there.
fn source_towards(address: IpAddr) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(SocketAddr::new(address, ANY_PORT)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

/// The address where tunnels arrive, if that is not `vtep`. `asked`: `--underlay-address`. `candidates`: of a live
/// source; files say nothing of NATs, and a wrong address in one must not look like one.
///
/// # Errors
/// When the address that was asked for is not there, or none is.
pub fn find(
    asked: Option<Ipv4Addr>,
    underlay: &Underlay,
    links: &BTreeMap<String, Link>,
    vtep: Ipv4Addr,
    candidates: Option<&[Ipv4Addr]>,
) -> Result<Option<Ipv4Addr>, String> {
    if let Some(address) = asked {
        if address.is_loopback() {
            return Err(format!("--underlay-address: nothing arrives at {address} from other nodes"));
        }
        return match carried(links, address) {
            true => Ok(Some(address).filter(|address| *address != vtep)),
            false => Err(format!("--underlay-address: no interface carries {address}")),
        };
    }
    if carried(links, vtep) {
        return Ok(None);
    }
    let named = |name: &String| match underlay {
        Underlay::Auto => true,
        Underlay::Named(names) => names.contains(name),
    };
    let there: Vec<Ipv4Addr> = links
        .iter()
        .filter(|(name, _)| named(name))
        .flat_map(|(_, link)| &link.addresses)
        .map(|net| net.addr())
        .filter(|ip| !ip.is_loopback())
        .collect();
    if let Some(own) = candidates.into_iter().flatten().find(|ip| there.contains(ip)) {
        return Ok(Some(*own));
    }
    match (candidates, underlay) {
        // What the interface has is the best guess for one that was named.
        (Some(_), Underlay::Named(names)) if names.iter().all(|name| links.contains_key(name)) => {
            Ok(there.first().copied())
        }
        // A mistake in the table, most likely; what is wrong with the interfaces is said where they are checked.
        (None, Underlay::Named(_)) | (Some(_), Underlay::Named(_)) => Ok(None),
        (_, Underlay::Auto) => Err(format!(
            "no interface carries this node's tunnel address {vtep}; name one with --underlay, and behind a 1:1 NAT the \
             node's own address there with --underlay-address"
        )),
    }
}

#[cfg(test)]
mod tests {
    use hiveway_core::observed::Kind;

    use super::*;

    const NAT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

    fn links() -> BTreeMap<String, Link> {
        let link = |index, addresses: &[&str]| {
            let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
            Link { addresses, ..Link::new(index, Kind::Other("device".into())) }
        };
        BTreeMap::from([
            ("eth0".to_owned(), link(2, &["10.0.0.5/24", "10.0.0.6/24"])),
            ("eth1".to_owned(), link(3, &["198.51.100.5/24"])),
            ("lo".to_owned(), link(1, &["127.0.0.1/8"])),
        ])
    }

    #[test]
    fn behind_a_nat_the_underlay_has_an_address_of_its_own() {
        let ip = |last: [u8; 4]| Ipv4Addr::from(last);
        let find = |asked, underlay: &str, vtep, own: Option<&[Ipv4Addr]>| {
            find(asked, &underlay.parse().unwrap(), &links(), vtep, own)
        };
        // An address of the node is its own, whatever an engine says.
        assert_eq!(find(None, "eth1", ip([198, 51, 100, 5]), Some(&[ip([10, 0, 0, 5])])), Ok(None));
        // The operator knows best.
        assert_eq!(find(Some(ip([10, 0, 0, 6])), "eth0", NAT, None), Ok(Some(ip([10, 0, 0, 6]))));
        assert!(
            find(Some(ip([10, 0, 0, 9])), "eth0", NAT, None).unwrap_err().contains("no interface carries 10.0.0.9")
        );
        assert!(
            find(Some(ip([127, 0, 0, 1])), "eth0", NAT, None).unwrap_err().contains("nothing arrives at 127.0.0.1")
        );
        // The engine or the kernel knows which it is; 127.0.0.1 it is not.
        let own = [NAT, ip([127, 0, 0, 1]), ip([198, 51, 100, 5])];
        assert_eq!(find(None, "auto", NAT, Some(&own)), Ok(Some(ip([198, 51, 100, 5]))));
        assert_eq!(find(None, "eth0", NAT, Some(&own)), Ok(Some(ip([10, 0, 0, 5]))));
        assert!(find(None, "auto", NAT, Some(&[])).unwrap_err().contains("--underlay-address"));
        // What was found before stays while it is there, whatever route to a manager there is now.
        let view = EngineView { local_addr: Some(NAT), ..EngineView::default() };
        let again = candidates(&view, Some(ip([10, 0, 0, 6])));
        assert_eq!(again, [NAT, ip([10, 0, 0, 6])]);
        assert_eq!(find(None, "auto", NAT, Some(&again)), Ok(Some(ip([10, 0, 0, 6]))));
        // Of a file a wrong address must not look like a NAT: the check of the interfaces refuses it.
        assert_eq!(find(None, "eth0", NAT, None), Ok(None));
    }
}
