//! Tells when links, addresses, routes or neighbours of the node change.

use std::{io, time::Duration};

use futures::StreamExt;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};
use rtnetlink::{MulticastGroup, packet_core::NetlinkPayload};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    task::JoinHandle,
};

use super::{
    lenient::Lenient,
    threads::{Whose, threads},
};

/// How long to wait for more changes of routes before telling of them together.
const ROUTES_SETTLE: Duration = Duration::from_millis(300);
/// The least time from telling of them to listening again.
const ROUTES_REST: Duration = Duration::from_millis(500);

/// What an event of a link is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// The link's index.
    pub index: u32,
    /// That of the bridge, or other master, that it belongs to.
    pub master: Option<u32>,
}

/// Sends `()` for every change of a link or an IPv4 address in the caller's namespace, but for events of links that
/// `ignores` wants to hear nothing of. Changes that come faster than they are taken are merged.
///
/// # Errors
/// When the kernel refuses the socket.
pub fn watch(
    changed: mpsc::Sender<()>,
    ignores: impl Fn(&About) -> bool + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    const GROUPS: &[MulticastGroup] = &[MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr];
    listen(GROUPS, move |message| match message {
        Some(message) if !is_link(message) => true,
        Some(RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)) if ignores(&about(link)) => true,
        // A full channel already says that something changed.
        _ => !matches!(changed.try_send(()), Err(TrySendError::Closed(()))),
    })
}

/// Sends `()` when IPv4 routes or rules in the caller's namespace have changed: once for all that comes within
/// [`ROUTES_SETTLE`], and after [`ROUTES_REST`] at the earliest again, for a routing protocol changes thousands.
///
/// # Errors
/// When the kernel refuses the socket.
pub fn watch_routes(changed: mpsc::Sender<()>) -> io::Result<JoinHandle<()>> {
    const GROUPS: &[MulticastGroup] = &[MulticastGroup::Ipv4Route, MulticastGroup::Ipv4Rule];
    let (news, mut heard) = mpsc::channel(1);
    let listening = listen(GROUPS, move |_| !matches!(news.try_send(()), Err(TrySendError::Closed(()))))?;
    tokio::spawn(async move {
        while heard.recv().await.is_some() {
            tokio::time::sleep(ROUTES_SETTLE).await;
            while heard.try_recv().is_ok() {}
            if let Err(TrySendError::Closed(())) = changed.try_send(()) {
                return;
            }
            tokio::time::sleep(ROUTES_REST).await;
        }
    });
    Ok(listening)
}

/// Numbers of changes that [`watch_next_hops`] has been told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteChanges {
    /// Changes of neighbours.
    pub neighbours: u64,
    /// Of everything that routes depend on.
    pub routes: u64,
}

/// Says when IPv4 routes, rules, neighbours, links or addresses in the caller's namespace change, but for links that
/// `ignores` wants to hear nothing of.
///
/// # Errors
/// When the kernel refuses the socket.
pub fn watch_next_hops(
    heard: watch::Sender<RouteChanges>,
    ignores: impl Fn(&About) -> bool + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    const GROUPS: &[MulticastGroup] = &[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Neigh,
    ];
    listen(GROUPS, move |message| {
        match message {
            Some(RouteNetlinkMessage::NewNeighbour(entry) | RouteNetlinkMessage::DelNeighbour(entry)) => {
                // The forwarding databases of bridges are told of here, too.
                if entry.header.family == AddressFamily::Inet {
                    heard.send_modify(|heard| heard.neighbours += 1);
                }
            }
            Some(RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)) if ignores(&about(link)) => {}
            _ => heard.send_modify(|heard| heard.routes += 1),
        }
        !heard.is_closed()
    })
}

/// Calls `hear` for each message of these groups, and with `None` when some were missed, until it says no.
fn listen(
    groups: &'static [MulticastGroup],
    mut hear: impl FnMut(Option<&RouteNetlinkMessage>) -> bool + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let threads = threads(Whose::Node)?;
    let open = move || {
        let _entered = threads.enter();
        rtnetlink::new_multicast_connection_with_socket::<Lenient>(groups)
    };
    let mut opened = Some(open()?);
    Ok(tokio::spawn(async move {
        loop {
            let connection = opened.take().map_or_else(open, Ok);
            match connection {
                // The connection ends when the last handle goes.
                Ok((connection, _handle, mut messages)) => {
                    let connection = threads.spawn(connection);
                    while let Some((message, _)) = messages.next().await {
                        let goes_on = match &message.payload {
                            NetlinkPayload::InnerMessage(message) => hear(Some(message)),
                            // More came than the socket could hold: some were missed, and others follow.
                            NetlinkPayload::Overrun(_) => hear(None),
                            _ => true,
                        };
                        if !goes_on {
                            break;
                        }
                    }
                    connection.abort();
                }
                Err(error) => tracing::warn!("cannot watch for changes of interfaces: {error}"),
            }
            // The connection has failed: what comes until there is another one is missed.
            if !hear(None) {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }))
}

fn about(link: &LinkMessage) -> About {
    let master = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    });
    About { index: link.header.index, master }
}

fn is_link(message: &RouteNetlinkMessage) -> bool {
    matches!(
        message,
        RouteNetlinkMessage::NewLink(_)
            | RouteNetlinkMessage::DelLink(_)
            | RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_)
    )
}
