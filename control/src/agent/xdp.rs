//! Where XDP carries the routing mesh's hot path, and why not elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use dataplane::{Attached, Dataplane, Program};
use hiveway_core::observed::{Kind, Layer, Link};
use serde::Serialize;

use crate::{
    cli::XdpMode,
    measured::{self, Now, Record},
    netlink::Socket,
};

/// What runs on a mesh interface, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct XdpStatus {
    /// The interface.
    pub interface: String,
    /// `native`, `generic` or `off`.
    pub mode: &'static str,
    /// Why it is off, though it was not asked to be.
    pub why: Option<String>,
}

/// What was decided about an interface before anything was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    On(dataplane::XdpMode),
    Off(Option<String>),
}

impl Choice {
    fn off(why: &str) -> Self {
        Self::Off(Some(why.to_owned()))
    }
}

/// The offloads of a driver that takes VLAN tags off received frames, as the kernel's features are named, and what
/// `ethtool -K` calls them. The second one is for 802.1ad.
const TAG_OFFLOADS: [(&str, &str); 2] =
    [("rx-vlan-hw-parse", "rxvlan"), ("rx-vlan-stag-hw-parse", "rx-vlan-stag-hw-parse")];

/// Why XDP would not see the VLAN tags of frames that arrive on the interface, if there are VLAN devices on it: it
/// would serve a frame of another VLAN as one without a tag. A tag that is not in the frame is in the skb's metadata,
/// which only TC sees. `is_on` says whether an offload of the interface is on.
pub(crate) fn hidden_tags<E: std::fmt::Display>(
    name: &str,
    link: &Link,
    links: &BTreeMap<String, Link>,
    is_on: impl Fn(&str) -> Result<bool, E>,
) -> Option<String> {
    let (vlan, _) = links.iter().find(|(_, other)| other.vlan_on.as_deref() == Some(name))?;
    let instead = "leave it to TC, which sees them (--xdp off)";
    // Only a NIC's driver leaves all tags in their frames when it is told to. A veth hands over what its other end left
    // in the metadata; masters of other interfaces (bond, bridge) get frames whose tags the kernel has taken off.
    let kind = match &link.kind {
        Kind::Other(kind) if kind.is_empty() => None,
        Kind::Other(kind) => Some(kind.as_str()),
        Kind::Bridge => Some("bridge"),
        Kind::Vxlan(_) => Some("vxlan"),
        Kind::Veth { .. } => Some("veth"),
    };
    if let Some(kind) = kind {
        return Some(format!(
            "{vlan} is a VLAN device on {name}, and tags that reach a {kind} may be hidden from XDP whatever its \
             rx-vlan-offload is: {instead}"
        ));
    }
    let mut hiding = Vec::new();
    for (feature, option) in TAG_OFFLOADS {
        match is_on(feature) {
            Ok(true) => hiding.push(format!("{option} off")),
            Ok(false) => {}
            Err(error) => {
                return Some(format!(
                    "{vlan} is a VLAN device on {name}, and whether its rx-vlan-offload hides tags from XDP is not \
                     known ({error}): {instead}"
                ));
            }
        }
    }
    (!hiding.is_empty()).then(|| {
        let settings = hiding.join(" ");
        format!(
            "{vlan} is a VLAN device on {name}, whose rx-vlan-offload hides tags from XDP: `ethtool -K {name} \
             {settings}`, or {instead}"
        )
    })
}

/// Why XDP in the driver does not pay on an interface of this kind, whatever attaching costs on it.
pub(crate) fn never(link: &Link) -> Option<&'static str> {
    match &link.kind {
        _ if link.layer != Layer::Ethernet => Some(NO_ETHERNET),
        Kind::Other(kind) if kind == "bond" || kind == "team" => Some(BOND),
        Kind::Veth { .. } => Some(VETH),
        _ => None,
    }
}

const NO_ETHERNET: &str = "its packets have no Ethernet header";
const BOND: &str = "a bond runs the driver's programs on its slaves, whose interfaces have no addresses; --xdp generic \
                    runs on the bond itself";
const VETH: &str = "a veth: XDP in its driver turns off segmentation offload at its peer, which costs everybody else \
                    more than the mesh gains; --xdp native turns it on";

/// `measured`: whether a measurement of the interface allows XDP in [`XdpMode::Auto`].
fn choose(
    mode: XdpMode,
    link: &Link,
    measured: impl FnOnce() -> Result<(), String>,
    hidden_tags: impl FnOnce() -> Option<String>,
) -> Choice {
    let on = match (mode, never(link)) {
        (XdpMode::Off, _) => return Choice::Off(None),
        (_, Some(NO_ETHERNET)) => return Choice::off(NO_ETHERNET),
        (XdpMode::Auto, Some(why)) | (XdpMode::Native, Some(why @ BOND)) => return Choice::off(why),
        (XdpMode::Auto, None) => match measured() {
            Ok(()) => dataplane::XdpMode::Native,
            Err(why) => return Choice::Off(Some(why)),
        },
        (XdpMode::Native, _) => dataplane::XdpMode::Native,
        (XdpMode::Generic, _) => dataplane::XdpMode::Generic,
    };
    hidden_tags().map_or(Choice::On(on), |why| Choice::Off(Some(why)))
}

/// What `hiveway preflight --xdp` has left in the state directory, and the kernel that it must have been measured with.
struct Measurements<'a> {
    state_dir: &'a Path,
    record: Result<Record, String>,
    kernel: String,
}

impl<'a> Measurements<'a> {
    fn read(state_dir: &'a Path) -> Self {
        Self { state_dir, record: Record::read(state_dir), kernel: dataplane::release() }
    }

    fn allow(&self, name: &str, link: &Link, socket: &Socket) -> Result<(), String> {
        let command = measured::command(name, self.state_dir);
        let record = self.record.as_ref().map_err(|why| format!("{why}: {command} writes it anew"))?;
        let now = Now { name, mac: link.mac, kernel: &self.kernel };
        measured::allows(record, now, || measured::driver(socket, name, link), &command)
    }
}

/// What the agent remembers of its attempts.
#[derive(Debug, Default)]
pub(super) struct Xdp {
    /// Interfaces, by name and index, that refused, and why: not asked again while they are the same.
    refused: BTreeMap<(String, u32), String>,
    /// Interfaces whose tags it would not see, by name, and the reason that was logged.
    blind: BTreeMap<String, String>,
    /// Why the measurements cannot be read, as it was logged.
    unreadable: Option<String>,
}

impl Xdp {
    /// Attaches where it is wanted. Returns what runs where, and whether anything was changed. Measurements are read
    /// each time: they are made while the agent runs.
    pub(super) fn attach(
        &mut self,
        (mode, state_dir): (XdpMode, &Path),
        dataplane: &mut Dataplane,
        (clients, uplinks): (&BTreeSet<String>, &BTreeSet<String>),
        links: &BTreeMap<String, Link>,
        socket: &Socket,
    ) -> (Vec<XdpStatus>, usize) {
        let present = |(name, index): &(String, u32)| links.get(name).is_some_and(|link| link.index == *index);
        self.refused.retain(|interface, _| present(interface));
        let mut blind = std::mem::take(&mut self.blind);
        let measurements = (mode == XdpMode::Auto).then(|| Measurements::read(state_dir));
        self.warn_of(measurements.as_ref());
        let mut changes = 0;
        let status = clients.iter().filter_map(|name| Some((name, links.get(name)?))).map(|(name, link)| {
            let off = |why: Option<String>| XdpStatus { interface: name.clone(), mode: "off", why };
            let mut hidden = None;
            let measured = || measurements.as_ref().map_or(Ok(()), |kept| kept.allow(name, link, socket));
            let choice = choose(mode, link, measured, || {
                hidden = hidden_tags(name, link, links, |feature| socket.has_offload(name, feature));
                hidden.clone()
            });
            if let Some(why) = hidden {
                if blind.get(name) != Some(&why) {
                    tracing::warn!("XDP is off on {name}: {why}");
                }
                self.blind.insert(name.clone(), why);
            } else if blind.remove(name).is_some() && matches!(choice, Choice::On(_)) {
                tracing::info!("XDP sees all VLAN tags on {name} again");
            }
            let wanted = match choice {
                Choice::On(wanted) => wanted,
                Choice::Off(why) => return off(why),
            };
            let key = (name.clone(), link.index);
            if let Some(why) = self.refused.get(&key) {
                return off(Some(why.clone()));
            }
            match dataplane.attach_xdp(name, wanted, link.mac, uplinks.contains(name)) {
                Ok(attached) => {
                    changes += usize::from(attached != Attached::Unchanged);
                    XdpStatus { interface: name.clone(), mode: shown(wanted), why: None }
                }
                // Neither lasts: a measurement holds the interface for a second.
                Err(error) if error.no_interface() || error.is_taken() => off(Some(error.to_string())),
                Err(error) => {
                    let why = format!("{error}; the TC programs carry everything here");
                    tracing::warn!("--xdp {}: {why}", shown(wanted));
                    self.refused.insert(key, why.clone());
                    off(Some(why))
                }
            }
        });
        (status.collect(), changes)
    }

    /// Logs that the measurements cannot be read, once for each reason.
    fn warn_of(&mut self, measurements: Option<&Measurements<'_>>) {
        let unreadable = measurements.and_then(|kept| kept.record.as_ref().err()).cloned();
        if let Some(why) = unreadable.as_ref().filter(|why| self.unreadable.as_ref() != Some(*why)) {
            tracing::warn!("--xdp auto: {why}; XDP is off");
        }
        self.unreadable = unreadable;
    }
}

/// The attachments that this status stands for.
pub(super) fn kept(status: &[XdpStatus]) -> impl Iterator<Item = (Program, String)> {
    status.iter().filter(|on| on.mode != "off").map(|on| (Program::XdpMesh, on.interface.clone()))
}

fn shown(mode: dataplane::XdpMode) -> &'static str {
    match mode {
        dataplane::XdpMode::Native => "native",
        dataplane::XdpMode::Generic => "generic",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(kind: Kind) -> Link {
        Link::new(2, kind)
    }

    /// Of an interface that carries no VLAN devices and was not measured.
    fn choose(mode: XdpMode, link: &Link) -> Choice {
        super::choose(mode, link, || Err("not measured".to_owned()), || None)
    }

    /// Why XDP is off in this mode on `eth0` of that kind, with these VLAN devices and these offloads on.
    fn why_off(mode: XdpMode, kind: Kind, vlans: &[(&str, &str)], on: &[&str]) -> Option<String> {
        let mut links = BTreeMap::from([("eth0".to_owned(), link(kind))]);
        for (name, parent) in vlans {
            let device = Link { vlan_on: Some((*parent).to_owned()), ..link(Kind::Other("vlan".into())) };
            links.insert((*name).to_owned(), device);
        }
        let is_on = |feature: &str| Ok::<_, std::fmt::Error>(on.contains(&feature));
        match super::choose(mode, &links["eth0"], || Ok(()), || hidden_tags("eth0", &links["eth0"], &links, is_on)) {
            Choice::On(_) => None,
            Choice::Off(why) => Some(why.expect("a reason")),
        }
    }

    #[test]
    fn where_the_driver_hides_vlan_tags_it_is_off_and_says_why() {
        let nic = || Kind::Other(String::new());
        let own = [("eth0.100", "eth0")];
        for mode in [XdpMode::Native, XdpMode::Generic, XdpMode::Auto] {
            let why = why_off(mode, nic(), &own, &["rx-vlan-hw-parse"]).expect("off");
            for word in ["eth0.100 is a VLAN device on eth0", "`ethtool -K eth0 rxvlan off`", "--xdp off"] {
                assert!(why.contains(word), "{why}");
            }
            let why = why_off(mode, nic(), &own, &["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"]).expect("off");
            assert!(why.contains("`ethtool -K eth0 rxvlan off rx-vlan-stag-hw-parse off`"), "{why}");
            // Tags stay in their frames, or no VLAN device is on this interface.
            assert_eq!(why_off(mode, nic(), &own, &["tx-vlan-hw-insert"]), None);
            assert_eq!(why_off(mode, nic(), &[("eth1.100", "eth1")], &["rx-vlan-hw-parse"]), None);
            assert_eq!(why_off(mode, nic(), &[], &["rx-vlan-hw-parse"]), None);
            assert_eq!(why_off(mode, Kind::Bridge, &[], &["rx-vlan-hw-parse"]), None);
        }
    }

    #[test]
    fn virtual_interfaces_hide_vlan_tags_whatever_their_offload() {
        let own = [("eth0.100", "eth0")];
        for (kind, word) in [(Kind::Veth { peer: 3 }, "a veth"), (Kind::Bridge, "a bridge")] {
            for mode in [XdpMode::Native, XdpMode::Generic] {
                let why = why_off(mode, kind.clone(), &own, &[]).expect("off");
                assert!(why.contains("eth0.100 is a VLAN device on eth0") && why.contains(word), "{why}");
            }
        }
        let why = why_off(XdpMode::Generic, Kind::Other("bond".into()), &own, &[]).expect("off");
        assert!(why.contains("a bond"), "{why}");
    }

    #[test]
    fn an_offload_that_cannot_be_read_counts_as_on() {
        let vlan = Link { vlan_on: Some("eth0".to_owned()), ..link(Kind::Other("vlan".into())) };
        let links = BTreeMap::from([("eth0.100".to_owned(), vlan)]);
        let nic = link(Kind::Other(String::new()));
        let why = hidden_tags("eth0", &nic, &links, |_| Err("no such device")).expect("off");
        assert!(why.contains("no such device"), "{why}");
    }

    #[test]
    fn auto_is_on_in_the_driver_where_it_was_measured_to_pay_and_elsewhere_says_why_not() {
        let (veth, nic) = (link(Kind::Veth { peer: 3 }), link(Kind::Other(String::new())));
        for link in [&veth, &nic] {
            assert_eq!(choose(XdpMode::Off, link), Choice::Off(None));
            assert_eq!(choose(XdpMode::Native, link), Choice::On(dataplane::XdpMode::Native));
            assert_eq!(choose(XdpMode::Generic, link), Choice::On(dataplane::XdpMode::Generic));
        }
        let why = |link| match choose(XdpMode::Auto, link) {
            Choice::Off(Some(why)) => why,
            other => panic!("{other:?}"),
        };
        assert!(why(&veth).contains("a veth"));
        assert!(why(&nic).contains("not measured"));
        let measured = |link| super::choose(XdpMode::Auto, link, || Ok(()), || None);
        assert_eq!(measured(&nic), Choice::On(dataplane::XdpMode::Native));
        // No measurement of its own says what a veth costs its peer.
        assert!(matches!(measured(&veth), Choice::Off(Some(why)) if why == VETH));
    }

    #[test]
    fn bonds_and_links_without_ethernet_header_say_why_not() {
        let bond = link(Kind::Other("bond".into()));
        assert!(matches!(choose(XdpMode::Native, &bond), Choice::Off(Some(why)) if why.contains("slaves")));
        assert_eq!(choose(XdpMode::Generic, &bond), Choice::On(dataplane::XdpMode::Generic));
        let tunnel = Link { layer: Layer::Ip, ..link(Kind::Other("wireguard".into())) };
        for mode in [XdpMode::Native, XdpMode::Generic, XdpMode::Auto] {
            assert!(matches!(choose(mode, &tunnel), Choice::Off(Some(why)) if why.contains("no Ethernet header")));
        }
        assert_eq!(choose(XdpMode::Off, &tunnel), Choice::Off(None));
    }

    #[test]
    fn what_is_off_is_not_kept() {
        let status = |interface: &str, mode| XdpStatus { interface: interface.to_owned(), mode, why: None };
        let all = [status("eth0", "native"), status("eth1", "off")];
        assert_eq!(kept(&all).collect::<Vec<_>>(), [(Program::XdpMesh, "eth0".to_owned())]);
    }
}
