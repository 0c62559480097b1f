//! What XDP answers when [`dataplane_core::ingress`] asks about a client's packet. What it has no answer to, or no room
//! for, it leaves to TC.

use aya_ebpf::bindings::xdp_md;
use dataplane_common::{
    addr::Ip4,
    config::Config,
    flow::{Affinity, flag},
    service::PublishedPort,
};

use super::{access::word, head::Head, known};
use crate::{
    ingress::{Known, World},
    maps::{self, NODE_ADDRESSES, PORTS},
    reverse,
};

/// A client's packet. `ESTABLISHED`: of a connection that is; otherwise it may open one, or prove it.
pub(super) struct Arrival<'a, const ESTABLISHED: bool> {
    pub(super) ctx: *mut xdp_md,
    pub(super) ifindex: u32,
    pub(super) config: &'a Config,
    pub(super) packet: &'a Head,
    /// Its connection's entry; null: there is none.
    pub(super) known: *mut Affinity,
    /// Whether what that remembers holds.
    pub(super) is_current: bool,
}

/// An entry that was found.
pub(super) struct Entry(pub(super) &'static mut Affinity);

impl Known for Entry {
    #[inline(always)]
    fn entry(&self) -> &Affinity {
        self.0
    }
}

/// The packet is left to TC.
pub(super) struct NotHere;

impl<const ESTABLISHED: bool> World for Arrival<'_, ESTABLISHED> {
    const OPENS: bool = !ESTABLISHED;
    type Refusal = NotHere;
    type Known = Entry;

    #[inline(always)]
    fn may_open(&self) -> bool {
        self.packet.may_open()
    }

    #[inline(always)]
    fn is_spent(&self) -> bool {
        self.packet.ttl <= 1
    }

    #[inline(always)]
    fn src(&self) -> Ip4 {
        self.packet.src.to_le_bytes()
    }

    #[inline(always)]
    fn is_for_host_link(&self) -> bool {
        self.packet.dst == word(&self.config.host_ip)
    }

    #[inline(always)]
    fn is_from_host_link(&self) -> bool {
        self.packet.src == word(&self.config.host_ip)
    }

    // There are no XDP programs on it.
    #[inline(always)]
    fn is_on_host_link(&self) -> bool {
        false
    }

    #[inline(always)]
    fn published(&self) -> Option<&PublishedPort> {
        // SAFETY: entries are replaced as a whole by the agent.
        unsafe { PORTS.get(self.packet.port()) }
    }

    #[inline(always)]
    fn classes(&self) -> Option<u32> {
        // SAFETY: as above.
        unsafe { NODE_ADDRESSES.get(self.packet.dst.to_le_bytes()) }.map(|address| address.classes)
    }

    #[inline(always)]
    fn is_from_node(&self) -> bool {
        // SAFETY: as above.
        unsafe { NODE_ADDRESSES.get(self.src()) }.is_some()
    }

    /// Where a connection is not established the stack has no room for the question.
    #[inline(always)]
    fn is_left(&self, _: &PublishedPort) -> Result<bool, NotHere> {
        if ESTABLISHED { Ok(known::is_left(self.ctx)) } else { Err(NotHere) }
    }

    #[inline(always)]
    fn known(&self) -> Option<Entry> {
        // SAFETY: of a live line, or null. Entries change under their readers: their fields are read as wholes.
        unsafe { self.known.as_mut() }.map(Entry)
    }

    #[inline(always)]
    fn remembered(&self) -> Option<Entry> {
        if self.is_current { self.known() } else { None }
    }

    /// For TC, which knows how long ago the backend was heard.
    #[inline(always)]
    fn makes_room(&self, known: &Affinity) -> Result<bool, NotHere> {
        if known.flags & flag::ENDED != 0 && self.packet.is_syn() { Err(NotHere) } else { Ok(false) }
    }

    #[inline(always)]
    fn is_stock(&self, vtep: &Ip4) -> bool {
        maps::is_stock(vtep)
    }

    #[inline(always)]
    fn check_allowed(&self, _: &PublishedPort) -> Result<(), NotHere> {
        Err(NotHere)
    }

    /// To ask for the way back would need more stack than there is.
    #[inline(always)]
    fn reverse_refuses(&self) -> Result<bool, NotHere> {
        if reverse::is_asked(self.ifindex) { Err(NotHere) } else { Ok(false) }
    }

    /// Who is told what is TC's.
    #[inline(always)]
    fn is_served(&self, _: &PublishedPort) -> bool {
        true
    }
}
