//! Published ports.

use std::num::NonZeroU16;

use dataplane_common::headers::ipproto;

use super::state::named;
use std::{fmt, ops::Deref, str::FromStr, sync::Arc};

named! {
    /// Transport protocol.
    Protocol, "protocol" {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
        /// SCTP.
        Sctp = "sctp",
    }
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => ipproto::TCP,
            Self::Udp => ipproto::UDP,
            Self::Sctp => ipproto::SCTP,
        }
    }
}

named! {
    /// Where a published port answers.
    PublishMode, "publish mode" {
        /// On every node.
        Ingress = "ingress",
        /// On the nodes of the tasks only, each task by itself.
        Host = "host",
    }
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Port {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Where clients come to; `None` while the manager has not assigned one.
    pub published_port: Option<NonZeroU16>,
    /// Where the container listens.
    pub target_port: NonZeroU16,
    /// Where it answers.
    pub publish_mode: PublishMode,
}

impl Port {
    /// The port that answers on every node, as (IP protocol number, port).
    pub fn ingress(&self) -> Option<(u8, u16)> {
        self.published(PublishMode::Ingress)
    }

    /// The port that answers on the task's own node, in the same form.
    pub fn host(&self) -> Option<(u8, u16)> {
        self.published(PublishMode::Host)
    }

    fn published(&self, mode: PublishMode) -> Option<(u8, u16)> {
        let port = self.published_port.filter(|_| self.publish_mode == mode)?;
        Some((self.protocol.number(), port.get()))
    }

    /// Translating the port would need SCTP's checksum recomputed over the whole packet, which we can't.
    pub fn needs_sctp_translation(&self) -> bool {
        self.protocol == Protocol::Sctp && self.published_port.is_some_and(|p| p != self.target_port)
    }
}

/// Ports of a service or task, sorted. Tasks share their service's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(Arc<[Port]>);

impl Ports {
    /// Changes each of them; whoever else has them keeps them as they are.
    pub fn change(&mut self, change: impl FnMut(&mut Port)) {
        let mut ports = self.to_vec();
        ports.iter_mut().for_each(change);
        *self = ports.into_iter().collect();
    }
}

impl Deref for Ports {
    type Target = [Port];

    fn deref(&self) -> &[Port] {
        &self.0
    }
}

impl<'p> IntoIterator for &'p Ports {
    type Item = &'p Port;
    type IntoIter = std::slice::Iter<'p, Port>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// In any order, and more than once.
impl FromIterator<Port> for Ports {
    fn from_iter<I: IntoIterator<Item = Port>>(ports: I) -> Self {
        let mut ports: Vec<Port> = ports.into_iter().collect();
        ports.sort();
        ports.dedup();
        Self(ports.into())
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.published_port {
            Some(port) => write!(f, "{port}/{}", self.protocol),
            None => write!(f, "unpublished {}/{}", self.target_port, self.protocol),
        }
    }
}
