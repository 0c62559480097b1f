//! Routing mesh, ingress node: what becomes of a client's packet.
//!
//! [`decide`] asks all questions, in one order, and changes nothing. A [`World`] answers: a hook's, from maps and
//! packet; or a test's, on the host. TC carries every decision out. XDP carries out what it can, and where it has no
//! answer itself it refuses ([`World::Refusal`]), so that the packet goes on to TC as if nobody had looked at it.

use dataplane_common::{
    addr::Ip4,
    flow::{Affinity, flag},
    service::{PublishedPort, port_flag},
};

use crate::connection;

/// What is asked about one packet of a client's: one that carries ports, and is no later fragment.
pub trait World {
    /// Whether connections are opened at all: otherwise what does not belong to one passes.
    const OPENS: bool;
    /// Why nobody decides here: in TC the packet is dropped for it, in XDP it is left to TC.
    type Refusal;
    /// An entry of the table of clients, as it was found.
    type Known: Known;

    /// Whether it may open a connection, see [`connection::may_open`].
    fn may_open(&self) -> bool;

    /// Whether it must go no further: its TTL is 1, or 0.
    fn is_spent(&self) -> bool;

    /// Its source address.
    fn src(&self) -> Ip4;

    /// Whether it is for the node's address on the host link, which exists there only.
    fn is_for_host_link(&self) -> bool;

    /// Whether its source is that address.
    fn is_from_host_link(&self) -> bool;

    /// Whether it came in through the host link.
    fn is_on_host_link(&self) -> bool;

    /// The published port that it is for, if there is one.
    fn published(&self) -> Option<&PublishedPort>;

    /// The classes of the node's address that it is for (`dataplane_common::mesh::NodeAddress`); `None`: it is for no
    /// address of the node.
    fn classes(&self) -> Option<u32>;

    /// Whether its source is an address of the node.
    fn is_from_node(&self) -> bool;

    /// Whether the host's own rules may close the port to it. Asked of ports with [`port_flag::LEFT`] only.
    fn is_left(&self, port: &PublishedPort) -> Result<bool, Self::Refusal>;

    /// The entry of its connection, whichever of its ports and addresses are published today.
    fn known(&self) -> Option<Self::Known>;

    /// The same, if the other questions were answered for an earlier packet of its connection, and the answers hold.
    fn remembered(&self) -> Option<Self::Known>;

    /// See [`crate::succession::makes_room`].
    fn makes_room(&self, known: &Affinity) -> Result<bool, Self::Refusal>;

    /// Whether the node with this tunnel address is known to run no Hiveway (any more).
    fn is_stock(&self, vtep: &Ip4) -> bool;

    /// Whether the lists of a restricted port let its client in; asked of ports with [`port_flag::RESTRICTED`] only.
    ///
    /// # Errors
    /// If they do not.
    fn check_allowed(&self, port: &PublishedPort) -> Result<(), Self::Refusal>;

    /// Whether the reverse-path filter of the interface that it arrived at refuses its source.
    fn reverse_refuses(&self) -> Result<bool, Self::Refusal>;

    /// Whether anybody serves the port.
    fn is_served(&self, port: &PublishedPort) -> bool;
}

/// An entry that was found.
pub trait Known {
    /// The entry.
    fn entry(&self) -> &Affinity;
}

/// What becomes of the packet.
pub enum Decision<'a, K> {
    /// It is none of the mesh's: the next program, or the stack, which drops what is martian and answers what nobody
    /// serves.
    Pass,
    /// It is for no published port.
    Unpublished,
    /// It answers a connection of this node's own: the stack's, and a sign that the connection is in use.
    Own(K),
    /// It is left to the host's own rules.
    Left,
    /// It would go on, and its TTL has come to an end: its sender is told so.
    TimeExceeded,
    /// It belongs to this connection, and goes to its backend. The port, if it was asked for.
    Forward(K, Option<&'a PublishedPort>),
    /// It opens a connection: the port's next backend serves it, and if there is none nobody does.
    Open {
        /// The port.
        port: &'a PublishedPort,
        /// Its key is that of an entry that makes room for it.
        replaces: bool,
    },
}

/// What becomes of the packet.
///
/// # Errors
/// See [`World::Refusal`].
#[inline(always)]
pub fn decide<W: World>(world: &W) -> Result<Decision<'_, W::Known>, W::Refusal> {
    if let Some(known) = world.remembered()
        && !world.makes_room(known.entry())?
    {
        return Ok(forward(world, known, None));
    }
    let Some(port) = world.published() else { return Ok(Decision::Unpublished) };
    let Some(classes) = world.classes() else { return Ok(Decision::Pass) };
    if world.is_for_host_link() && !world.is_on_host_link() {
        return Ok(Decision::Pass);
    }
    if port.flags & port_flag::LEFT != 0 && is_left(world, port)? {
        return Ok(Decision::Left);
    }
    let known = world.known();
    let replaces = known.is_some();
    if let Some(known) = known
        && goes_on(world, known.entry())?
    {
        return Ok(forward(world, known, Some(port)));
    }
    if !W::OPENS {
        return Ok(Decision::Pass);
    }
    let elsewhere = port.flags & port_flag::BOUND != 0 && (classes >> (port.class & 31)) & 1 == 0;
    if elsewhere || !may_begin(world, port)? {
        return Ok(Decision::Pass);
    }
    if !is_over(world) {
        return Ok(Decision::Open { port, replaces });
    }
    Ok(if world.is_served(port) { Decision::TimeExceeded } else { Decision::Pass })
}

/// A packet of a connection that is known.
#[inline(always)]
fn forward<'a, W: World>(world: &W, known: W::Known, port: Option<&'a PublishedPort>) -> Decision<'a, W::Known> {
    if known.entry().flags & flag::OWN != 0 {
        return if is_over(world) { Decision::Pass } else { Decision::Own(known) };
    }
    if is_over(world) { Decision::TimeExceeded } else { Decision::Forward(known, port) }
}

/// Whether it may go no further from here. Over the host link this node is no hop: the kernel has routed such a packet
/// already, if it is not of a process of this node.
#[inline(always)]
fn is_over<W: World>(world: &W) -> bool {
    world.is_spent() && !world.is_for_host_link()
}

/// Whether it is left to the host. The host's rules do not know who may use the port, so who may not opens no
/// connection there either. What comes over the host link has passed those rules.
#[inline(always)]
fn is_left<W: World>(world: &W, port: &PublishedPort) -> Result<bool, W::Refusal> {
    if world.is_for_host_link() || !world.is_left(port)? {
        return Ok(false);
    }
    if world.may_open() && world.known().is_none() {
        check_allowed(world, port)?;
    }
    Ok(true)
}

/// Whether it belongs to the connection `known`, rather than opening another one in its place.
#[inline(always)]
fn goes_on<W: World>(world: &W, known: &Affinity) -> Result<bool, W::Refusal> {
    Ok(!(world.makes_room(known)? || world.may_open() && is_left_behind(world, known)))
}

/// Whether Hiveway was taken down on the backend's node since the connection began: nobody there knows mesh frames now,
/// and what may open a connection is given to a backend anew.
#[inline(always)]
fn is_left_behind<W: World>(world: &W, known: &Affinity) -> bool {
    known.flags & (flag::STOCK | flag::OWN) == 0 && world.is_stock(&known.vtep)
}

/// Whether it may open a connection to the port. TCP in the middle of a connection that did not begin with us is the
/// stack's.
#[inline(always)]
fn may_begin<W: World>(world: &W, port: &PublishedPort) -> Result<bool, W::Refusal> {
    if !world.may_open() || is_martian(world) {
        return Ok(false);
    }
    check_allowed(world, port)?;
    Ok(world.is_for_host_link() || !world.reverse_refuses()?)
}

/// Whether nobody outside has its source address, by what the kernel's input routing knows without the routing table:
/// it would call the packet martian, and drops it. What comes over the host link has passed that already, and is this
/// node's own.
#[inline(always)]
fn is_martian<W: World>(world: &W) -> bool {
    connection::is_nobodys(world.src()[0])
        || (!world.is_for_host_link() && (world.is_from_host_link() || world.is_from_node()))
}

#[inline(always)]
fn check_allowed<W: World>(world: &W, port: &PublishedPort) -> Result<(), W::Refusal> {
    if port.flags & port_flag::RESTRICTED != 0 { world.check_allowed(port) } else { Ok(()) }
}
