//! Requests about a link: to make it, name it ours, change and delete it.

use hiveway_core::{names, observed::GATEWAY_ALIAS};
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::{Error, Socket};
use crate::sysctl;

pub(super) async fn create(node: &Socket, what: &str, message: LinkMessage) -> Result<(), Error> {
    node.handle().link().add(message).execute().await.map_err(|error| Error::from_rtnetlink(what, error))
}

/// Names a new link as ours and keeps IPv6 off it, and ARP off an overlay bridge; the kernel takes none of it while it
/// creates the link.
pub(super) async fn label(node: &Socket, name: &str, alias: &str) -> Result<(), Error> {
    change(node, "set alias", name, |link| link.alias(alias)).await?;
    quiet(node, name).await?;
    let overlay = (alias != GATEWAY_ALIAS && name.starts_with(names::BRIDGE)).then_some(name);
    let off = sysctl::ipv6_off(std::iter::once(name)).and_then(|_| sysctl::arp_off(overlay.into_iter()));
    off.map(drop).map_err(|error| Error::Other { what: format!("keep {name} quiet"), why: error.to_string() })
}

/// No IPv6 addresses come by themselves: overlays are IPv4 only as yet, and what they bring would be flooded.
pub(super) async fn quiet(socket: &Socket, name: &str) -> Result<(), Error> {
    let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let silenced = change(socket, "disable IPv6 addresses", name, |link| {
        link.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![mode]))
    });
    match silenced.await {
        // A kernel without IPv6 has nothing to silence.
        Err(error) if matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => Ok(()),
        other => other,
    }
}

pub(super) async fn delete(node: &Socket, name: &str) -> Result<(), Error> {
    let index = match node.index(name).await {
        Err(Error::NoLink(_)) => return Ok(()),
        other => other?,
    };
    match node.handle().link().del(index).execute().await {
        Ok(()) => Ok(()),
        Err(error) => match Error::from_rtnetlink(format!("delete interface {name}"), error) {
            // Gone by itself, as a veth goes with its namespace.
            error if error.errno() == Some(libc::ENODEV) => Ok(()),
            error => Err(error),
        },
    }
}

pub(super) async fn change(
    socket: &Socket,
    what: &str,
    name: &str,
    how: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
) -> Result<(), Error> {
    let message = how(LinkUnspec::new_with_index(socket.index(name).await?)).build();
    socket.handle().link().change(message).execute().await.map_err(|error| Error::from_rtnetlink(what, error))
}
