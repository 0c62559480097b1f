//! Tells when links or addresses of the node change.

use std::{io, time::Duration};

use futures::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, packet_core::NetlinkPayload};
use tokio::{sync::mpsc, task::JoinHandle};

const GROUPS: [MulticastGroup; 2] = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr];

/// Sends `()` for every change of a link or an IPv4 address in the caller's namespace. Changes that come faster than
/// they are taken are merged.
///
/// # Errors
/// When the kernel refuses the socket.
pub fn watch(changed: mpsc::Sender<()>) -> io::Result<JoinHandle<()>> {
    let mut opened = Some(rtnetlink::new_multicast_connection(&GROUPS)?);
    Ok(tokio::spawn(async move {
        loop {
            let connection = opened.take().map_or_else(|| rtnetlink::new_multicast_connection(&GROUPS), Ok);
            match connection {
                // The connection ends when the last handle goes.
                Ok((connection, _handle, mut messages)) => {
                    let connection = tokio::spawn(connection);
                    while let Some((message, _)) = messages.next().await {
                        if concerns_us(&message.payload) {
                            // A full channel already says that something changed.
                            let _ = changed.try_send(());
                        }
                    }
                    connection.abort();
                }
                Err(error) => tracing::warn!("cannot watch for changes of interfaces: {error}"),
            }
            // More came than the socket could hold: some were missed.
            if let Err(mpsc::error::TrySendError::Closed(())) = changed.try_send(()) {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }))
}

fn concerns_us(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    matches!(
        payload,
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewLink(_)
                | RouteNetlinkMessage::DelLink(_)
                | RouteNetlinkMessage::NewAddress(_)
                | RouteNetlinkMessage::DelAddress(_),
        )
    )
}
