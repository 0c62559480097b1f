//! Where XDP carries the routing mesh's hot path, and why not elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use dataplane::{Attached, Dataplane, Program};
use hiveway_core::observed::{Kind, Layer, Link};
use serde::Serialize;

use crate::cli::XdpMode;

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
    Off(Option<&'static str>),
}

/// On a veth it was measured; on others it was not.
fn choose(mode: XdpMode, link: &Link) -> Choice {
    match (mode, &link.kind) {
        (XdpMode::Off, _) => Choice::Off(None),
        (_, _) if link.layer != Layer::Ethernet => Choice::Off(Some("its packets have no Ethernet header")),
        (XdpMode::Native, Kind::Other(kind)) if kind == "bond" || kind == "team" => Choice::Off(Some(
            "a bond runs the driver's programs on its slaves, whose interfaces have no addresses; --xdp generic runs on the \
             bond itself",
        )),
        (XdpMode::Native, _) => Choice::On(dataplane::XdpMode::Native),
        (XdpMode::Generic, _) => Choice::On(dataplane::XdpMode::Generic),
        (XdpMode::Auto, Kind::Veth { .. }) => Choice::Off(Some(
            "a veth: XDP in its driver turns off segmentation offload at its peer, which costs everybody else more than \
             the mesh gains; --xdp native turns it on",
        )),
        (XdpMode::Auto, _) => Choice::Off(Some(
            "not measured on this kind of interface yet; --xdp native turns it on where the driver can",
        )),
    }
}

/// What the agent remembers of its attempts.
#[derive(Debug, Default)]
pub(super) struct Xdp {
    /// Interfaces, by name and index, that refused, and why: not asked again while they are the same.
    refused: BTreeMap<(String, u32), String>,
}

impl Xdp {
    /// Attaches where it is wanted. Returns what runs where, and whether anything was changed.
    pub(super) fn attach(
        &mut self,
        mode: XdpMode,
        dataplane: &mut Dataplane,
        (clients, uplinks): (&BTreeSet<String>, &BTreeSet<String>),
        links: &BTreeMap<String, Link>,
    ) -> (Vec<XdpStatus>, usize) {
        let present = |(name, index): &(String, u32)| links.get(name).is_some_and(|link| link.index == *index);
        self.refused.retain(|interface, _| present(interface));
        let mut changes = 0;
        let status = clients.iter().filter_map(|name| Some((name, links.get(name)?))).map(|(name, link)| {
            let off = |why: Option<String>| XdpStatus { interface: name.clone(), mode: "off", why };
            let wanted = match choose(mode, link) {
                Choice::On(wanted) => wanted,
                Choice::Off(why) => return off(why.map(str::to_owned)),
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
                Err(error) if error.no_interface() => off(Some(error.to_string())),
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

    #[test]
    fn auto_is_off_and_says_why() {
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
