//! What is wrong with the paths to other nodes, and what an operator can do about it.

use std::{net::Ipv4Addr, time::Duration};

use dataplane_common::headers::ENCAP_LEN;
use serde::Serialize;

use crate::{
    model::Carrier,
    probe::{PathView, State, settles},
};

/// Loss from which it is worth a warning.
const LOSSY: f64 = 0.05;
/// Over at least so many probes.
const ENOUGH: u32 = 20;

/// Whether so much loss over so many probes is worth a warning.
pub(crate) fn is_lossy(loss: f64, counted: u32) -> bool {
    loss >= LOSSY && counted >= ENOUGH
}

/// A node and the path to it.
#[derive(Clone, Debug)]
pub struct PathTo {
    /// Host name of the node.
    pub hostname: String,
    /// Its tunnel address.
    pub address: Ipv4Addr,
    /// The longest outer packet that this node sends there.
    pub mtu: u16,
    /// What probes have shown.
    pub view: PathView,
}

/// This node.
#[derive(Clone, Debug)]
pub struct Here {
    /// Its host name.
    pub hostname: String,
    /// Its tunnel address.
    pub address: Ipv4Addr,
    /// Its UDP port for VXLAN.
    pub port: u16,
    /// What its underlay interface takes.
    pub interface: u16,
}

/// An overlay network that containers' packets keep to.
#[derive(Clone, Debug)]
pub struct Overlay {
    /// Its name.
    pub name: String,
    /// MTU of the containers' interfaces.
    pub mtu: u32,
    /// Who carries what containers send each other.
    pub carrier: Carrier,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Gravity {
    /// Traffic does not pass.
    Error,
    /// It passes, not as well as it could.
    Warning,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Gravity,
    /// Host name of the node that sees it; `None`: this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Host name of the other node.
    pub node: String,
    /// What was seen.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// What is wrong with the paths, and with the networks over them: of each network once.
pub fn findings(here: &Here, paths: &[PathTo], networks: &[Overlay]) -> Vec<Finding> {
    let mut found = Vec::new();
    for path in paths {
        found.extend(silence(here, path));
        found.extend(narrowness(here, path));
    }
    found.extend(waiting(paths));
    found.extend(networks.iter().filter_map(|network| too_large(paths, network)));
    found.sort_by(|a, b| (a.severity, &a.node).cmp(&(b.severity, &b.node)));
    found
}

/// Whether anything stands in the way of traffic, or none was seen to pass yet. A node that joins is given a moment, or
/// all others would not be healthy whenever one does.
pub fn blocked(paths: &[PathTo]) -> bool {
    paths.iter().any(|PathTo { view, .. }| match view.state {
        State::Failing => true,
        State::Waiting => !view.joining || view.port.is_some(),
        State::Passing => view.port.is_some(),
    })
}

/// Paths without an answer yet, in one: after a start these are all.
fn waiting(paths: &[PathTo]) -> Option<Finding> {
    const NAMED: usize = 3;
    let mut waiting = paths.iter().filter(|path| path.view.state == State::Waiting && path.view.port.is_none());
    let first = waiting.clone().next()?;
    let named: Vec<_> =
        waiting.by_ref().take(NAMED).map(|path| format!("{} ({})", path.hostname, path.address)).collect();
    let others = match waiting.count() {
        0 => String::new(),
        1 => " and to one other node".to_owned(),
        others => format!(" and to {others} other nodes"),
    };
    Some(finding(
        Gravity::Warning,
        first,
        format!("waiting for the first probe to pass to {}{others}", named.join(", ")),
        "wait a few seconds and look again".to_owned(),
    ))
}

fn finding(severity: Gravity, path: &PathTo, problem: String, remedy: String) -> Finding {
    Finding { severity, from: None, node: path.hostname.clone(), problem, remedy }
}

fn silence(here: &Here, path: &PathTo) -> Option<Finding> {
    let PathTo { hostname, address, view, .. } = path;
    let (own, port) = (here.address, here.port);
    if view.port == Some(port) {
        return Some(finding(
            Gravity::Error,
            path,
            format!(
                "tunnels of {hostname} ({address}) arrive here on an interface that is no uplink, and are not accepted"
            ),
            remedy::UPLINKS.to_owned(),
        ));
    }
    if let Some(theirs) = view.port {
        return Some(finding(
            Gravity::Error,
            path,
            format!("{hostname} ({address}) sends its tunnels to UDP port {theirs}, this node uses port {port}"),
            remedy::ONE_PORT.to_owned(),
        ));
    }
    let seconds = view.since.as_secs();
    match view.state {
        State::Failing if view.is_heard() => Some(finding(
            Gravity::Error,
            path,
            format!(
                "{hostname} ({address}) has not answered for {seconds} s, but what it sends arrives here: packets from \
                 {own} to {address}, UDP port {port}, are lost on the way"
            ),
            remedy::let_pass(own, *address, port, hostname),
        )),
        State::Failing => Some(finding(
            Gravity::Error,
            path,
            if view.is_settled() {
                format!(
                    "{hostname} ({address}) has not answered for {seconds} s, and nothing arrives from it: packets to UDP \
                     port {port} are lost in both directions or on the way here, or no agent runs there"
                )
            } else {
                format!(
                    "{hostname} ({address}) has not answered for {seconds} s: packets to UDP port {port} are lost, in which \
                     direction shows within {} s, or no agent runs there",
                    settles(view.period).as_secs()
                )
            },
            format!(
                "on {hostname}: `hiveway check` and `hiveway status` say whether packets from here arrive; let UDP between \
                 {own} and {address}, port {port}, pass both ways. A node without Hiveway has `dataplane: none` in a table"
            ),
        )),
        State::Passing if is_lossy(view.loss, view.counted) => Some(finding(
            Gravity::Warning,
            path,
            format!(
                "{:.0} % of the last {} probes of {hostname} ({address}) were lost",
                100.0 * view.loss,
                view.counted
            ),
            remedy::LINKS.to_owned(),
        )),
        State::Waiting | State::Passing => None,
    }
}

fn narrowness(here: &Here, path: &PathTo) -> Option<Finding> {
    let PathTo { hostname, address, .. } = path;
    let limit = path.view.limit.filter(|limit| *limit < here.interface)?;
    Some(finding(
        Gravity::Warning,
        path,
        format!(
            "packets to {hostname} ({address}) of {} vanish, and no router says so; this node sends no larger ones now",
            vanishing(limit, path.view.passed)
        ),
        remedy::narrow(here.address, *address, limit),
    ))
}

/// A network whose full packets do not fit, with the narrowest path and how many others there are.
fn too_large(paths: &[PathTo], network: &Overlay) -> Option<Finding> {
    let fits = |path: &PathTo| u32::from(path.mtu).saturating_sub(ENCAP_LEN as u32);
    // Nothing is known yet where the path takes nothing.
    let narrow = || paths.iter().filter(|path| path.mtu != 0 && network.mtu > fits(path));
    let narrowest = narrow().min_by_key(|path| (path.mtu, &path.hostname))?;
    let others = match narrow().count() - 1 {
        0 => String::new(),
        1 => ", and the path to one other node is too narrow as well".to_owned(),
        others => format!(", and the paths to {others} other nodes are too narrow as well"),
    };
    let PathTo { hostname, address, mtu: takes, .. } = narrowest;
    let Overlay { name, mtu, carrier } = network;
    let fits = fits(narrowest);
    let (then, make) = match carrier {
        Carrier::Hiveway => ("containers are told to send less", format!("an MTU of {fits}")),
        Carrier::Engine => (
            "what its containers send each other the engine carries: Hiveway does not tell them, and larger packets may be \
             fragmented or lost",
            format!("`--opt com.docker.network.driver.mtu={fits}`"),
        ),
    };
    Some(finding(
        Gravity::Warning,
        narrowest,
        format!(
            "network {name} has an MTU of {mtu}: with {ENCAP_LEN} bytes of tunnel that is more than the {takes} bytes that \
             the path to {hostname} ({address}) takes{others}; {then}"
        ),
        format!("make the network with {make}, or the path wider"),
    ))
}

/// Which packets a path swallows. Where not even the limit is known to pass, it is the least that is tried.
pub(crate) fn vanishing(limit: u16, passed: Option<u16>) -> String {
    format!("{} {limit} bytes", if passed.is_some() { "more than" } else { "as few as" })
}

/// What to do about a path, wherever it is told of.
pub(crate) mod remedy {
    use std::net::Ipv4Addr;

    pub(crate) const ONE_PORT: &str =
        "run all agents with the same --vxlan-port (in a swarm: the data path port that it was made with)";
    pub(crate) const UPLINKS: &str = "name all interfaces where other nodes' tunnels arrive with --underlay (`status` shows \
         the uplinks beside the tunnel address), or have them sent to one of the uplinks";
    pub(crate) const LINKS: &str =
        "look at the counters of the links and queues between the nodes (`ip -s link`, switches)";

    /// Packets of one direction are lost.
    pub(crate) fn let_pass(from: Ipv4Addr, to: Ipv4Addr, port: u16, receiver: &str) -> String {
        format!(
            "let UDP from {from} to {to}, port {port}, pass: firewalls and security groups between the nodes, and others' \
             XDP programs on {receiver}"
        )
    }

    /// Packets above a size are lost without a word.
    pub(crate) fn narrow(from: Ipv4Addr, to: Ipv4Addr, limit: u16) -> String {
        format!(
            "let ICMP type 3 code 4 (fragmentation needed) reach {from}, or set the route's MTU there: `ip route replace \
             {to}/32 … mtu {limit}`"
        )
    }
}

/// As people write it.
pub fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Here {
        Here { hostname: "n1".into(), address: Ipv4Addr::new(192, 0, 2, 1), port: 4789, interface: 1500 }
    }

    fn path(change: impl FnOnce(&mut PathView)) -> PathTo {
        let mut view = PathView::passing();
        change(&mut view);
        PathTo { hostname: "n2".into(), address: Ipv4Addr::new(192, 0, 2, 2), mtu: view.limit.unwrap_or(1500), view }
    }

    fn app(mtu: u32) -> Overlay {
        Overlay { name: "app".into(), mtu, carrier: Carrier::Hiveway }
    }

    fn found(change: impl FnOnce(&mut PathView), networks: &[Overlay]) -> Vec<Finding> {
        findings(&here(), &[path(change)], networks)
    }

    #[test]
    fn a_path_in_order_is_not_worth_a_word() {
        assert_eq!(found(|_| {}, &[app(1450)]), []);
        assert!(!blocked(&[path(|_| {})]));
    }

    #[test]
    fn what_has_not_passed_yet_does_not_pass() {
        let waits = |joining| path(|view| (view.state, view.joining) = (State::Waiting, joining));
        assert!(blocked(&[path(|_| {}), waits(false)]));
        // A moment for a node that joins.
        assert!(!blocked(&[path(|_| {}), waits(true)]));
        let many: Vec<_> = (0..200).map(|_| waits(false)).collect();
        let found = findings(&here(), &many, &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        let three = "n2 (192.0.2.2), n2 (192.0.2.2), n2 (192.0.2.2)";
        assert_eq!(found[0].problem, format!("waiting for the first probe to pass to {three} and to 197 other nodes"));
    }

    #[test]
    fn the_direction_that_fails_is_named() {
        let one = found(|view| view.state = State::Failing, &[]);
        assert!(one[0].problem.contains("packets from 192.0.2.1 to 192.0.2.2, UDP port 4789, are lost"), "{one:?}");
        // What arrived before it began to fail says nothing of the direction.
        let before = |since| {
            let fails = |view: &mut PathView| {
                (view.state, view.since, view.heard) =
                    (State::Failing, Duration::from_secs(since), Some(Duration::from_secs(since + 4)));
            };
            found(fails, &[]).remove(0).problem
        };
        assert!(before(7).contains("nothing arrives from it"));
        assert!(before(2).contains("in which direction shows within 3 s"), "{}", before(2));
        let both = found(|view| (view.state, view.heard) = (State::Failing, None), &[]);
        assert!(both[0].problem.contains("nothing arrives from it"), "{both:?}");
        assert!(blocked(&[path(|view| view.state = State::Failing)]));
    }

    #[test]
    fn a_network_is_named_once() {
        let narrow = |n: u8, mtu: u16| {
            let mut path = path(|_| {});
            (path.hostname, path.address, path.mtu) = (format!("n{n}"), Ipv4Addr::new(192, 0, 2, n), mtu);
            path
        };
        let paths = [narrow(2, 1400), narrow(3, 1380), narrow(4, 1500), narrow(5, 1400), narrow(6, 0)];
        let found = findings(&here(), &paths, &[app(1450), app(1300)]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            (found[0].node.as_str(), found[0].problem.as_str(), found[0].remedy.as_str()),
            (
                "n3",
                "network app has an MTU of 1450: with 50 bytes of tunnel that is more than the 1380 bytes that the path to \
                 n3 (192.0.2.3) takes, and the paths to 2 other nodes are too narrow as well; containers are told to send \
                 less",
                "make the network with an MTU of 1330, or the path wider"
            )
        );
        // Between containers on an engine's network the engine's tunnel decides.
        let engine = findings(&here(), &paths, &[Overlay { carrier: Carrier::Engine, ..app(1450) }]);
        assert!(engine[0].problem.contains("Hiveway does not tell them"), "{engine:?}");
        assert!(engine[0].remedy.contains("com.docker.network.driver.mtu=1330"), "{engine:?}");
    }

    #[test]
    fn ports_and_sizes_are_named() {
        let port = found(|view| (view.state, view.port) = (State::Failing, Some(7789)), &[]);
        assert!(port[0].problem.contains("UDP port 7789, this node uses port 4789"), "{port:?}");
        assert_eq!(port.len(), 1);
        // The right port, at the wrong interface.
        for state in [State::Failing, State::Passing] {
            let astray = found(|view| (view.state, view.port) = (state, Some(4789)), &[]);
            assert!(astray[0].problem.contains("arrive here on an interface that is no uplink"), "{astray:?}");
            assert!(astray.len() == 1 && astray[0].remedy.contains("--underlay"), "{astray:?}");
        }
        let narrow = found(|view| view.limit = Some(1400), &[app(1450)]);
        assert!(narrow.iter().all(|finding| finding.severity == Gravity::Warning));
        assert!(narrow.iter().any(|finding| finding.problem.contains("more than 1400 bytes vanish")), "{narrow:?}");
        let nothing = found(|view| (view.limit, view.passed) = (Some(552), None), &[]);
        assert!(nothing[0].problem.contains("as few as 552 bytes vanish"), "{nothing:?}");
        assert!(
            narrow.iter().any(|finding| finding.problem.contains("network app") && finding.remedy.contains("1350"))
        );
        let lossy = found(|view| view.loss = 0.2, &[]);
        assert!(lossy[0].problem.contains("20 %"), "{lossy:?}");
    }
}
