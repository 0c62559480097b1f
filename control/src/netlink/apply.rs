//! Does the planner's steps, one netlink request (or two) each.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
};

use hiveway_core::{
    observed::Vxlan,
    plan::{Action, Inner, Setting},
};
use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoBridge, InfoData, InfoVeth, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::RouteProtocol,
};
use rtnetlink::{
    LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder,
    packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE},
};

use super::{
    Error, ROUTE_PROTOCOL, Socket, Spaces, host,
    links::{change, create, delete, label, quiet},
    offload::LATE_SEGMENTATION,
};

/// Does one step.
///
/// # Errors
/// What was tried and the kernel's answer.
pub async fn apply(node: &Socket, spaces: &Spaces, action: &Action) -> Result<(), Error> {
    node.change(&action.to_string(), act(node, spaces, action)).await
}

async fn act(node: &Socket, spaces: &Spaces, action: &Action) -> Result<(), Error> {
    let what = action.to_string();
    match action {
        Action::CreateBridge { name, alias, mtu } => {
            let mut message =
                LinkMessageBuilder::<LinkBridge>::new(name).append_info_data(InfoBridge::MulticastSnooping(false));
            if let Some(mtu) = mtu {
                message = message.mtu(*mtu);
            }
            create(node, &what, message.build()).await?;
            label(node, name, alias).await
        }
        Action::CreateVxlan { name, alias, vxlan, mtu } => {
            create(node, &what, vxlan_message(name, vxlan, *mtu)).await?;
            label(node, name, alias).await
        }
        Action::CreateVeth { task, host, alias, container, mac, mtu } => {
            let space = spaces.0.get(task).ok_or_else(|| Error::NoNamespace(task.clone()))?;
            let peer = LinkMessageBuilder::<LinkUnspec>::new()
                .name(container.clone())
                .mtu(*mtu)
                .address(mac.to_vec())
                .setns_by_fd(space.file.as_raw_fd())
                .build();
            let message = LinkMessageBuilder::<LinkVeth>::new(host, container)
                .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
                .mtu(*mtu)
                .build();
            create(node, &what, message).await?;
            label(node, host, alias).await?;
            let socket = space.socket()?;
            for feature in LATE_SEGMENTATION {
                socket.set_offload(container, feature, false)?;
            }
            quiet(&socket, container).await
        }
        Action::CreateHostLink { mtu } => host::create(node, &what, *mtu).await,
        Action::HostRoute { to, mtu } => host::route(node, &what, *to, *mtu).await,
        Action::DeleteLink { name } => delete(node, name).await,
        Action::Set { name, setting } => set(node, &what, name, setting).await,
        Action::AddFdb { name, .. }
        | Action::RemoveFdb { name, .. }
        | Action::AddNeighbour { name, .. }
        | Action::RemoveNeighbour { name, .. } => enter_entry(node, node.index(name).await?, action).await,
        Action::Inside { task, container, inner } => {
            let space = spaces.0.get(task).ok_or_else(|| Error::NoNamespace(task.clone()))?;
            enter(&space.socket()?, &what, container, inner).await
        }
    }
}

/// Does one step of [`Stage::Fill`](hiveway_core::plan::Stage::Fill) on the vxlan device with that index; several may
/// be under way at once.
///
/// # Errors
/// What was tried and the kernel's answer.
pub async fn fill(node: &Socket, index: u32, action: &Action) -> Result<(), Error> {
    node.change(&action.to_string(), enter_entry(node, index, action)).await
}

async fn enter_entry(node: &Socket, index: u32, action: &Action) -> Result<(), Error> {
    let what = action.to_string();
    match action {
        Action::AddFdb { mac, vtep, .. } => {
            // Only the zero MAC (flooding) may have several destinations.
            let mode = if *mac == [0; 6] { NLM_F_APPEND } else { NLM_F_REPLACE };
            let entry = RouteNetlinkMessage::NewNeighbour(fdb(index, *mac, *vtep));
            node.request(&what, entry, NLM_F_CREATE | mode).await
        }
        Action::RemoveFdb { mac, vtep, .. } => {
            node.request(&what, RouteNetlinkMessage::DelNeighbour(fdb(index, *mac, *vtep)), 0).await
        }
        Action::AddNeighbour { ip, mac, .. } => {
            let request = node.handle().neighbours().add(index, IpAddr::V4(*ip)).link_layer_address(mac).replace();
            request.execute().await.map_err(|error| Error::from_rtnetlink(what, error))
        }
        Action::RemoveNeighbour { ip, .. } => {
            let mut entry = NeighbourMessage::default();
            entry.header.family = AddressFamily::Inet;
            entry.header.ifindex = index;
            entry.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(*ip)));
            node.request(&what, RouteNetlinkMessage::DelNeighbour(entry), 0).await
        }
        _ => Err(Error::Other { what, why: "no entry of a vxlan device".to_owned() }),
    }
}

fn vxlan_message(name: &str, vxlan: &Vxlan, mtu: u32) -> LinkMessage {
    LinkMessageBuilder::<LinkVxlan>::new(name)
        .id(vxlan.vni)
        .local(vxlan.local)
        .port(vxlan.port)
        .learning(vxlan.learning)
        .udp_csum(false)
        .mtu(mtu)
        .build()
}

async fn set(node: &Socket, what: &str, name: &str, setting: &Setting) -> Result<(), Error> {
    match setting {
        Setting::Alias(alias) => change(node, what, name, |link| link.alias(alias)).await,
        Setting::Mtu(mtu) => change(node, what, name, |link| link.mtu(*mtu)).await,
        Setting::Master(master) => {
            let master = node.index(master).await?;
            change(node, what, name, |link| link.controller(master)).await
        }
        Setting::NoMaster => change(node, what, name, |link| link.nocontroller()).await,
        Setting::RouteLocalnet => host::set_route_localnet(what, name),
        Setting::Up => change(node, what, name, |link| link.up()).await,
        Setting::Isolated => {
            let message = LinkBridgePort::new(node.index(name).await?).isolated(true).build();
            let request = node.handle().link().set_port(message);
            request.execute().await.map_err(|error| Error::from_rtnetlink(what, error))
        }
        Setting::AddAddress(address) => add_address(node, what, node.index(name).await?, *address).await,
    }
}

async fn enter(space: &Socket, what: &str, name: &str, inner: &Inner) -> Result<(), Error> {
    match inner {
        Inner::LoopbackUp => change(space, what, "lo", |link| link.up()).await,
        Inner::Mtu(mtu) => change(space, what, name, |link| link.mtu(*mtu)).await,
        Inner::Up => change(space, what, name, |link| link.up()).await,
        Inner::AddAddress(address) => add_address(space, what, space.index(name).await?, *address).await,
        Inner::RemoveAddress(address) => {
            let mut message = AddressMessage::default();
            message.header.family = AddressFamily::Inet;
            message.header.prefix_len = address.prefix_len();
            message.header.index = space.index(name).await?;
            message.attributes.push(AddressAttribute::Local(IpAddr::V4(address.addr())));
            let request = space.handle().address().del(message);
            request.execute().await.map_err(|error| Error::from_rtnetlink(what, error))
        }
        Inner::AddRoute(to, via) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to.network(), to.prefix_len())
                .gateway(*via)
                .output_interface(space.index(name).await?)
                .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
                .build();
            let request = space.handle().route().add(route).replace();
            request.execute().await.map_err(|error| Error::from_rtnetlink(what, error))
        }
        Inner::RemoveRoute(to, via) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to.network(), to.prefix_len())
                .gateway(*via)
                .output_interface(space.index(name).await?)
                .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
                .build();
            space.handle().route().del(route).execute().await.map_err(|error| Error::from_rtnetlink(what, error))
        }
    }
}

async fn add_address(socket: &Socket, what: &str, index: u32, address: Ipv4Net) -> Result<(), Error> {
    let request = socket.handle().address().add(index, IpAddr::V4(address.addr()), address.prefix_len());
    request.execute().await.map_err(|error| Error::from_rtnetlink(what, error))
}

/// A static entry of a vxlan device's own forwarding database.
fn fdb(index: u32, mac: [u8; 6], vtep: Ipv4Addr) -> NeighbourMessage {
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Bridge;
    entry.header.ifindex = index;
    entry.header.state = NeighbourState::Permanent;
    // The device's own table, not the bridge's.
    entry.header.flags = NeighbourFlags::Own;
    entry.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    entry.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(vtep)));
    entry
}
