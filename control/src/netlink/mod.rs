//! The kernel's links, over rtnetlink: observed into plain data, changed by the planner's steps.

mod apply;
mod conntrack;
mod host;
mod inside;
mod lenient;
mod link_state;
mod links;
pub mod monitor;
mod namespace;
pub mod netconf;
mod observe;
mod offload;
mod port;
mod replies;
mod routes;
mod routes_to;
mod socket;
mod spaces;
mod threads;

pub use apply::{apply, fill};
pub use conntrack::{Ends, Stale, forget_connections};
pub use host::observe_host;
pub use link_state::LinkState;
pub use observe::{observe_entries, observe_links, observe_node};
pub use offload::LATE_SEGMENTATION;
pub use port::Port;
pub use routes_to::{confirm, leading, neighbours, route, underlay};
pub use socket::Socket;
pub(crate) use socket::used;
pub use spaces::{Former, Looked, Space, Spaces, open as open_space};
#[doc(hidden)]
pub use threads::occupy;
pub use threads::start;

use std::{io, time::Duration};

/// Routing protocol number of the routes that we add inside containers, so that they are recognised as ours.
pub const ROUTE_PROTOCOL: u8 = 72;

/// What went wrong with a netlink request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{what}: {source}")]
    Kernel {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A step names an interface that is not there (any more).
    #[error("there is no interface {0}")]
    NoLink(String),
    /// A step needs a task's namespace that is not open.
    #[error("the network namespace of task {0} is gone")]
    NoNamespace(String),
    /// A list from inside a container's namespace that is longer than any that makes sense.
    #[error("{what}: there are more than {most}")]
    TooMany {
        /// What was tried.
        what: String,
        /// So many would have been taken.
        most: usize,
    },
    /// The kernel has not answered.
    #[error("{what}: the kernel has not answered within {} s; it is asked again on another socket", .time.as_secs())]
    Late {
        /// What was tried.
        what: String,
        /// How long was waited for it.
        time: Duration,
    },
    /// Something of the machinery itself.
    #[error("{what}: {why}")]
    Other {
        /// What was tried.
        what: String,
        /// Why not.
        why: String,
    },
}

impl Error {
    /// Wraps an error of the rtnetlink crate.
    pub(crate) fn from_rtnetlink(what: impl Into<String>, error: rtnetlink::Error) -> Self {
        match error {
            // See `lenient.rs`; nothing that is asked of rtnetlink fails with it.
            rtnetlink::Error::NetlinkError(message) if message.raw_code() == -libc::EBADMSG => {
                Self::Other { what: what.into(), why: "the kernel's answer cannot be read".to_owned() }
            }
            rtnetlink::Error::NetlinkError(message) => Self::Kernel { what: what.into(), source: message.to_io() },
            other => Self::Other { what: what.into(), why: other.to_string() },
        }
    }

    /// The kernel's error number, if it was the kernel.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
