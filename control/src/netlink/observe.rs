//! Reads the node's links, addresses, forwarding entries and neighbours.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use hiveway_core::observed::{Kind, Layer, Link, Vxlan};
use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
        LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};

use super::{Error, Socket};

/// All links of the socket's namespace by name, with what is needed to compare ours.
///
/// # Errors
/// When the kernel refuses a request.
pub async fn observe_node(socket: &Socket) -> Result<BTreeMap<String, Link>, Error> {
    let mut links = observe_links(socket).await?;
    observe_entries(socket, &mut links).await?;
    Ok(links)
}

/// As [`observe_node`] without forwarding entries and neighbours, which may be many.
///
/// # Errors
/// When the kernel refuses a request.
pub async fn observe_links(socket: &Socket) -> Result<BTreeMap<String, Link>, Error> {
    let messages = links(socket).await?;
    let mut addresses = addresses(socket).await?;
    let names: BTreeMap<u32, String> =
        messages.iter().filter_map(|link| Some((link.header.index, name(link)?.to_owned()))).collect();
    let found = messages.iter().filter_map(|message| {
        let mut link = parse(message, &names);
        link.addresses = addresses.remove(&link.index).unwrap_or_default();
        Some((name(message)?.to_owned(), link))
    });
    Ok(found.collect())
}

/// Reads the vxlan devices' forwarding entries and neighbours.
///
/// # Errors
/// When the kernel refuses a request.
pub async fn observe_entries(socket: &Socket, links: &mut BTreeMap<String, Link>) -> Result<(), Error> {
    let mut fdb = BTreeMap::<u32, BTreeSet<_>>::new();
    for (index, mac, vtep) in forwarding(socket).await? {
        fdb.entry(index).or_default().insert((mac, vtep));
    }
    let mut neighbours = BTreeMap::<u32, BTreeMap<_, _>>::new();
    for (index, ip, mac) in permanent_neighbours(socket, None).await? {
        neighbours.entry(index).or_default().insert(ip, mac);
    }
    for link in links.values_mut().filter(|link| matches!(link.kind, Kind::Vxlan(_))) {
        link.fdb = fdb.remove(&link.index).unwrap_or_default();
        link.neighbours = neighbours.remove(&link.index).unwrap_or_default();
    }
    Ok(())
}

/// Raw link messages.
pub(super) async fn links(socket: &Socket) -> Result<Vec<LinkMessage>, Error> {
    socket.collect("list interfaces", socket.handle().link().get().execute()).await
}

/// IPv4 addresses by interface index.
pub(super) async fn addresses(socket: &Socket) -> Result<BTreeMap<u32, BTreeSet<Ipv4Net>>, Error> {
    let messages: Vec<AddressMessage> =
        socket.collect("list addresses", socket.handle().address().get().execute()).await?;
    let mut found = BTreeMap::<u32, BTreeSet<_>>::new();
    for message in messages.iter().filter(|message| message.header.family == AddressFamily::Inet) {
        // On point-to-point links `Address` is the other end; `Local` is always ours.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
            _ => None,
        });
        if let Some(net) = local.and_then(|ip| Ipv4Net::new(ip, message.header.prefix_len).ok()) {
            found.entry(message.header.index).or_default().insert(net);
        }
    }
    Ok(found)
}

pub(super) fn name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

pub(super) fn mac(bytes: &[u8]) -> Option<[u8; 6]> {
    bytes.try_into().ok()
}

fn parse(message: &LinkMessage, names: &BTreeMap<u32, String>) -> Link {
    let mut link = Link {
        index: message.header.index,
        kind: Kind::Other(String::new()),
        layer: layer(message.header.link_layer_type),
        alias: None,
        master: None,
        vlan_on: None,
        mtu: 0,
        mac: [0; 6],
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        addresses: BTreeSet::new(),
        isolated: false,
        fdb: BTreeSet::new(),
        neighbours: BTreeMap::new(),
    };
    // Without a namespace's number `Link` is an index in this one.
    let (mut peer, mut elsewhere) = (0, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Controller(index) => link.master = names.get(index).cloned(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => link.mac = mac(bytes).unwrap_or_default(),
            LinkAttribute::Link(index) => peer = *index,
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            _ => {}
        }
    }
    for info in infos(message) {
        match info {
            LinkInfo::Kind(InfoKind::Bridge) => link.kind = Kind::Bridge,
            LinkInfo::Kind(InfoKind::Veth) => link.kind = Kind::Veth { peer },
            LinkInfo::Kind(InfoKind::Vxlan) => {}
            LinkInfo::Kind(kind @ InfoKind::Vlan) => {
                link.kind = Kind::Other(kind.to_string());
                link.vlan_on = names.get(&peer).filter(|_| !elsewhere).cloned();
            }
            LinkInfo::Kind(other) => link.kind = Kind::Other(format!("{other:?}").to_lowercase()),
            LinkInfo::Data(InfoData::Vxlan(settings)) => link.kind = Kind::Vxlan(vxlan(settings)),
            LinkInfo::PortData(InfoPortData::BridgePort(settings)) => {
                link.isolated = settings.iter().any(|setting| matches!(setting, InfoBridgePort::Isolated(true)));
            }
            _ => {}
        }
    }
    link
}

/// As the kernel's `dev_is_mac_header_xmit` has it.
fn layer(kind: LinkLayerType) -> Layer {
    use LinkLayerType as L;
    match kind {
        L::Ether | L::Loopback => Layer::Ethernet,
        L::None | L::Rawip | L::Ppp | L::Tunnel | L::Tunnel6 | L::Sit | L::Ipgre | L::Ip6gre => Layer::Ip,
        other => Layer::Other(other.into()),
    }
}

pub(super) fn infos(message: &LinkMessage) -> impl Iterator<Item = &LinkInfo> {
    message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        })
        .flatten()
}

fn vxlan(settings: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan { vni: 0, local: Ipv4Addr::UNSPECIFIED, port: 0, learning: false };
    for setting in settings {
        match setting {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Local(local) => vxlan.local = *local,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            _ => {}
        }
    }
    vxlan
}

/// Entries that carry a tunnel destination: (vxlan device's index, MAC, destination).
async fn forwarding(socket: &Socket) -> Result<Vec<(u32, [u8; 6], Ipv4Addr)>, Error> {
    // The bridge reports the same devices too, without a destination.
    let own =
        |entry: &NeighbourMessage| entry.header.flags.contains(NeighbourFlags::Own).then(|| pair(entry)).flatten();
    let found = neighbour_messages(socket, AddressFamily::Bridge, None, "list forwarding entries", own).await?;
    Ok(found.into_iter().map(|(index, ip, mac)| (index, mac, ip)).collect())
}

/// (interface index, address, MAC), of one interface or of all.
pub(super) async fn permanent_neighbours(
    socket: &Socket,
    interface: Option<u32>,
) -> Result<Vec<(u32, Ipv4Addr, [u8; 6])>, Error> {
    let permanent =
        |entry: &NeighbourMessage| (entry.header.state == NeighbourState::Permanent).then(|| pair(entry)).flatten();
    neighbour_messages(socket, AddressFamily::Inet, interface, "list neighbours", permanent).await
}

/// What `keep` makes of the messages: of one interface, or of all. There may be very many, and each takes far more
/// memory than what it says.
pub(super) async fn neighbour_messages<T>(
    socket: &Socket,
    family: AddressFamily,
    interface: Option<u32>,
    what: &str,
    keep: impl Fn(&NeighbourMessage) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let mut question = NeighbourMessage::default();
    question.header.family = family;
    // The kernel lists no others then.
    question.attributes.extend(interface.map(NeighbourAttribute::IfIndex));
    let mut kept = Vec::new();
    let each = |message| {
        if let RouteNetlinkMessage::NewNeighbour(message) = message {
            kept.extend(keep(&message));
        }
    };
    socket.list(what, RouteNetlinkMessage::GetNeighbour(question), each).await?;
    Ok(kept)
}

fn pair(entry: &NeighbourMessage) -> Option<(u32, Ipv4Addr, [u8; 6])> {
    let (mut ip, mut address) = (None, None);
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(destination)) => ip = Some(*destination),
            // The forwarding database gives addresses without their family.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                ip = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => address = mac(bytes),
            _ => {}
        }
    }
    Some((entry.header.ifindex, ip?, address?))
}
